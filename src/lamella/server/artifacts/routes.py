"""Routes of artifacts: with a token below the job, or by a signed address that expires."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

from lamella.server.artifacts.ranges import attachment, readable, send_bytes
from lamella.server.artifacts.service import Artifact, Artifacts, Preparing
from lamella.server.auth import Principal, ServicesDep, require
from lamella.server.jobs.documents import iso_time
from lamella.server.jobs.owned import owned_job
from lamella.server.open_access import SharedRoute, allow_all, base_url
from lamella.server.problems import problems
from lamella.server.services import Services
from lamella.wire.job import ArtifactDoc
from lamella.wire.manifest import RunManifest

__all__ = ["open_router", "router"]

router = APIRouter(prefix="/jobs", tags=["artifacts"])
open_router = APIRouter(prefix="/artifacts", tags=["artifacts"], route_class=SharedRoute)

_PURPOSE = "artifact"
_RETRY_S = 2
Reader = Annotated[Principal, require("jobs:read")]
_BYTES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The artifact.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
    202: {
        "description": "It is being made; ask again after `Retry-After` seconds.",
        "content": {"application/json": {"schema": {"type": "object"}}},
    },
    206: {
        "description": "The range that was asked for.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
    304: {"description": "It is what the client has."},
    307: {"description": "The storage gives it, without a token."},
}


@router.get(
    "/{job_id}/manifest", operation_id="get_job_manifest", summary="The manifest of a job's run",
    response_model=RunManifest, responses=problems(404),
)  # fmt: skip
def get_job_manifest(job_id: str, request: Request, services: ServicesDep, who: Reader) -> Response:
    """What the run was, as far as it came."""
    record = owned_job(services, who, job_id)
    return _send(request, services.artifacts.get(record, "manifest.json"), is_file=False)


@router.get(
    "/{job_id}/artifacts", operation_id="list_artifacts", summary="What a job left",
    responses=problems(404),
)  # fmt: skip
def list_artifacts(
    job_id: str, request: Request, services: ServicesDep, who: Reader
) -> list[ArtifactDoc]:
    """Every artifact with an address that works without a token until it expires."""
    record = owned_job(services, who, job_id)
    artifacts: Artifacts = services.artifacts
    return [_document(request, services, job_id, item) for item in artifacts.list(record)]


@readable(
    router,
    "/{job_id}/artifacts/{name}",
    operation="get_artifact",
    summaries=("An artifact", "Size of an artifact"),
    responses={**_BYTES, **problems(404, 416, 501)},
)
def get_artifact(
    job_id: str, name: str, request: Request, services: ServicesDep, who: Reader
) -> Response:
    """Its bytes, whole or a range; labels in a format nobody asked for before are made (202)."""
    record = owned_job(services, who, job_id)
    return _answer(request, services, services.artifacts.get(record, name), job_id)


@readable(
    open_router,
    "/{job_id}/{name}",
    operation="get_signed_artifact",
    summaries=("An artifact, signed", "Size of an artifact, signed"),
    responses={**_BYTES, **problems(403, 404, 410, 416, 501)},
)
def get_signed_artifact(
    job_id: str,
    name: str,
    request: Request,
    services: ServicesDep,
    expires: Annotated[str, Query(max_length=32)] = "",
    signature: Annotated[str, Query(max_length=128)] = "",
) -> Response:
    """An artifact by the address that the list of artifacts gave; no token is needed."""
    services.signer.check(_PURPOSE, job_id, name, expires=expires, signature=signature)
    record = services.jobs.get(job_id)
    return _answer(request, services, services.artifacts.get(record, name), job_id)


@open_router.options("/{job_id}/{name}", include_in_schema=False)
def allow_artifact() -> Response:
    """What pages of other origins may do here."""
    return allow_all()


def _answer(
    request: Request, services: Services, item: Artifact | Preparing, job_id: str
) -> Response:
    if isinstance(item, Artifact) and item.is_lasting and request.method == "GET":
        address = services.artifacts.address(job_id, item.name)
        if address is not None:
            # The storage has an ETag of its own; the client is to know what it will get.
            told = {"ETag": f'"{item.sha256}"'}
            return RedirectResponse(address, status_code=307, headers=told)
    return _send(request, item)


def _send(request: Request, item: Artifact | Preparing, *, is_file: bool = True) -> Response:
    if isinstance(item, Preparing):
        return JSONResponse(
            {"name": item.name, "state": "preparing"},
            status_code=202,
            headers={"Retry-After": str(_RETRY_S)},
        )
    headers = {"Cache-Control": "private, max-age=3600" if item.is_lasting else "no-cache"}
    if is_file:
        headers["Content-Disposition"] = attachment(item.name)
    return send_bytes(
        request, item.source, media_type=item.media_type, etag=item.sha256, headers=headers
    )


def _document(
    request: Request, services: Services, job_id: str, item: Artifact | Preparing
) -> ArtifactDoc:
    signed = services.signer.sign(_PURPOSE, job_id, item.name)
    path = f"/artifacts/{job_id}/{quote(item.name)}"
    is_made = isinstance(item, Artifact)
    return ArtifactDoc(
        name=item.name,
        media_type=item.media_type,
        n_bytes=item.source.n_bytes if is_made else None,
        sha256=item.sha256 if is_made else None,
        url=f"{base_url(request, services)}{path}"
        f"?expires={signed.expires}&signature={signed.signature}",
        expires=iso_time(signed.expires) or "",
    )
