"""Volumes over HTTP: /volumes."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from lamella.core.errors import ConflictError
from lamella.server.auth import Principal, ServicesDep, require
from lamella.server.problems import problems
from lamella.server.volumes.owned import owned_volume
from lamella.server.volumes.service import Volumes
from lamella.wire.upload import VolumeDoc, VolumeSpec

__all__ = ["router"]

router = APIRouter(prefix="/volumes", tags=["volumes"])

Reader = Annotated[Principal, require("volumes:read")]
Writer = Annotated[Principal, require("volumes:write")]


@router.post(
    "",
    operation_id="create_volume",
    status_code=201,
    responses=problems(404, 409, 413, 507),
)
def create_volume(
    spec: VolumeSpec, request: Request, response: Response, who: Writer, services: ServicesDep
) -> VolumeDoc:
    """Make a volume of finished uploads, a path on the server, or an S3 address.

    It is `preparing` at first; then `ready`, or `refused` with what its reader has against it.
    """
    volumes: Volumes = services.volumes
    record = volumes.create(who.user, spec)
    services.audit.record(request, action="volume.create", target=record.id, status=201)
    response.headers["Location"] = f"{request.url.path.rstrip('/')}/{record.id}"
    return record.to_document()


@router.get("", operation_id="list_volumes")
def list_volumes(
    who: Reader,
    services: ServicesDep,
    sha256: Annotated[str | None, Query(pattern="^[0-9a-f]{64}$")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> list[VolumeDoc]:
    """Your volumes, newest first; an admin sees everybody's. `sha256` finds equal ones."""
    volumes: Volumes = services.volumes
    owner = None if who.is_admin else who.user
    return [one.to_document() for one in volumes.list(owner, sha256=sha256, limit=limit)]


@router.get("/{volume_id}", operation_id="get_volume", responses=problems(404))
def get_volume(volume_id: str, who: Reader, services: ServicesDep) -> VolumeDoc:
    """One volume: its state, geometry, notes, or why it was refused."""
    return owned_volume(services, who, volume_id).to_document()


@router.delete(
    "/{volume_id}",
    operation_id="delete_volume",
    status_code=204,
    response_class=Response,
    responses=problems(404, 409),
)
def delete_volume(volume_id: str, request: Request, who: Writer, services: ServicesDep) -> Response:
    """Delete a volume and its files; refused while a job uses it."""
    record = owned_volume(services, who, volume_id)
    if record.state == "preparing":
        raise ConflictError(
            f"volume {volume_id} is being prepared", hint="delete it once that is done"
        )
    services.volumes.remove(volume_id)
    services.audit.record(request, action="volume.delete", target=volume_id, status=204)
    return Response(status_code=204)
