"""Routes of viewers: files of an OME-Zarr image, with a token or below a signed address.

Viewers cannot send headers, but they append paths to the address they were given: so the signature
is a part of the path, before the image, and is good for everything below it and for nothing else.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi import Path as PathParameter

from lamella.core.errors import MissingPathError
from lamella.server.artifacts.ranges import FileSource, readable, send_bytes
from lamella.server.auth import Principal, ServicesDep, require
from lamella.server.jobs.documents import iso_time
from lamella.server.jobs.owned import owned_job
from lamella.server.open_access import SharedRoute, allow_all, base_url
from lamella.server.problems import ProtocolError, problems
from lamella.server.pyramids.service import Pyramid, RunLabels
from lamella.server.services import Services
from lamella.server.volumes.owned import owned_volume
from lamella.wire.job import ViewUrl

__all__ = ["open_router", "router"]

router = APIRouter(tags=["viewers"])
open_router = APIRouter(prefix="/view", tags=["viewers"], route_class=SharedRoute)

_VOLUME, _JOB = "view-volume", "view-job"
_PART = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_DOCUMENTS = ("zarr.json", ".zattrs", ".zarray", ".zgroup", ".zmetadata")
_RETRY_S = 2

VolumeReader = Annotated[Principal, require("volumes:read")]
JobReader = Annotated[Principal, require("jobs:read")]
_ARRAY_BYTES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A document or a chunk.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
    206: {
        "description": "The range that was asked for.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
    304: {"description": "It is what the viewer has."},
}
Inside = Annotated[str, PathParameter(description="A document or a chunk, as `zarr.json`.")]
_RESPONSES = {**_ARRAY_BYTES, **problems(404, 410, 416, 503)}


# --- With a token -------------------------------------------------------------------------------


@router.get(
    "/volumes/{volume_id}/view-url", operation_id="get_volume_view_url",
    summary="An address for viewers", responses=problems(404),
)  # fmt: skip
def get_volume_view_url(
    volume_id: str, request: Request, services: ServicesDep, who: VolumeReader
) -> ViewUrl:
    """Where viewers read a volume as OME-Zarr without a token; its pyramid is begun if need be."""
    pyramid = services.pyramids.of_volume(owned_volume(services, who, volume_id))
    return _view_url(request, services, _VOLUME, volume_id, "ome.zarr", pyramid)


@router.get(
    "/jobs/{job_id}/view-url", operation_id="get_job_view_url",
    summary="An address for viewers", responses=problems(404),
)  # fmt: skip
def get_job_view_url(
    job_id: str,
    request: Request,
    services: ServicesDep,
    who: JobReader,
    labels: RunLabels = "labels",
) -> ViewUrl:
    """Where viewers read labels of a job as OME-Zarr without a token, once they are whole."""
    record = owned_job(services, who, job_id)
    pyramid = services.pyramids.of_run(job_id, labels)
    if pyramid.version is None and not record.is_active:
        raise MissingPathError(
            f"job {job_id} is {record.state} and left no {labels!r}",
            hint="ask for labels=labels; the stores of a run depend on what was asked of it",
        )
    return _view_url(request, services, _JOB, job_id, f"{labels}.ome.zarr", pyramid)


@readable(
    router,
    "/volumes/{volume_id}/ome.zarr/{inside:path}",
    operation="get_volume_zarr",
    summaries=("A file of a volume's OME-Zarr", "Whether there is such a file"),
    responses=_RESPONSES,
)
def get_volume_zarr(
    volume_id: str, inside: Inside, request: Request, services: ServicesDep, who: VolumeReader
) -> Response:
    """A document or a chunk; a chunk that is not there holds nothing but the fill value (404)."""
    pyramid = services.pyramids.of_volume(owned_volume(services, who, volume_id))
    return _send(request, pyramid, inside)


@readable(
    router,
    "/jobs/{job_id}/{labels}.ome.zarr/{inside:path}",
    operation="get_job_zarr",
    summaries=("A file of labels as OME-Zarr", "Whether there is such a file"),
    responses=_RESPONSES,
)
def get_job_zarr(
    job_id: str,
    labels: RunLabels,
    inside: Inside,
    request: Request,
    services: ServicesDep,
    who: JobReader,
) -> Response:
    """A document or a chunk of labels of a run; a chunk that is not there is background (404)."""
    owned_job(services, who, job_id)
    return _send(request, services.pyramids.of_run(job_id, labels), inside)


# --- Signed -------------------------------------------------------------------------------------


@readable(
    open_router,
    "/{sealed}/volumes/{volume_id}/ome.zarr/{inside:path}",
    operation="view_volume_zarr",
    summaries=("A file of a volume's OME-Zarr, signed", "Whether there is such a file, signed"),
    responses={**_RESPONSES, **problems(403)},
)
def view_volume_zarr(
    sealed: str, volume_id: str, inside: Inside, request: Request, services: ServicesDep
) -> Response:
    """As with a token, for viewers that cannot send one."""
    services.signer.open(sealed, _VOLUME, volume_id)
    return _send(request, services.pyramids.of_volume_id(volume_id), inside)


@readable(
    open_router,
    "/{sealed}/jobs/{job_id}/{labels}.ome.zarr/{inside:path}",
    operation="view_job_zarr",
    summaries=("A file of labels as OME-Zarr, signed", "Whether there is such a file, signed"),
    responses={**_RESPONSES, **problems(403)},
)
def view_job_zarr(
    sealed: str,
    job_id: str,
    labels: RunLabels,
    inside: Inside,
    request: Request,
    services: ServicesDep,
) -> Response:
    """As with a token, for viewers that cannot send one."""
    services.signer.open(sealed, _JOB, job_id)
    return _send(request, services.pyramids.of_run(job_id, labels), inside)


@open_router.options("/{rest:path}", include_in_schema=False)
def allow_view() -> Response:
    """What pages of other origins may do here."""
    return allow_all()


def _view_url(
    request: Request, services: Services, purpose: str, thing: str, name: str, pyramid: Pyramid
) -> ViewUrl:
    sealed = services.signer.seal(purpose, thing)
    kind = "volumes" if purpose == _VOLUME else "jobs"
    return ViewUrl(
        url=f"{base_url(request, services)}/view/{sealed}/{kind}/{thing}/{name}",
        state=pyramid.state,
        expires=iso_time(float(sealed.partition("-")[0])) or "",
        version=pyramid.version,
        problem=pyramid.problem,
    )


def _send(request: Request, pyramid: Pyramid, inside: str) -> Response:
    parts = inside.strip("/").split("/")
    if pyramid.folder is None:
        raise _not_ready(pyramid)
    path = pyramid.folder.joinpath(*parts)
    if not all(_PART.fullmatch(part) and part not in (".", "..") for part in parts):
        raise _missing(inside)
    try:
        known = path.stat()
        real = path.resolve(strict=True)
    except OSError:
        raise _missing(inside) from None
    # An uploaded folder, or one of the server, may hold links.
    if not real.is_file() or not real.is_relative_to(pyramid.folder.resolve()):
        raise _missing(inside)
    is_document = path.name in _DOCUMENTS
    return send_bytes(
        request,
        FileSource(real, known.st_size),
        media_type="application/json" if is_document else "application/octet-stream",
        etag=f"{known.st_mtime_ns:x}-{known.st_size:x}",
        # Chunks of a run that goes on may still change; a viewer asks whether they have.
        headers={"Cache-Control": "private, no-cache" if is_document else "private, max-age=600"},
    )


def _missing(inside: str) -> MissingPathError:
    return MissingPathError(
        f"this image has no {inside[:120]!r}", hint="a chunk that is not there is all fill value"
    )


def _not_ready(pyramid: Pyramid) -> Exception:
    if pyramid.problem is not None:
        return pyramid.problem.to_error()
    return ProtocolError(
        503,
        "the image is being prepared for viewers",
        code="preparing",
        hint="ask again shortly",
        headers={"Retry-After": str(_RETRY_S)},
    )
