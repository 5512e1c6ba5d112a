"""Routes of models."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Path, Query, Request, Response

from lamella.core.errors import ConflictError, InputError
from lamella.server.auth import Principal, ServicesDep, require
from lamella.server.models.listing import find_model_doc, list_model_docs
from lamella.server.problems import problems
from lamella.wire.model import ModelDoc, PullDoc, PullSpec

__all__ = ["router"]

router = APIRouter(prefix="/models", tags=["models"])

ModelId = Annotated[
    str,
    Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9:._+-]*$", max_length=200, examples=["membrane-3d"]),
]
Reader = Annotated[Principal, require("models:read")]
Writer = Annotated[Principal, require("models:write")]


@router.get("", operation_id="list_models", summary="List models")
def list_models(
    services: ServicesDep,
    _who: Reader,
    here: Annotated[bool, Query(description="Leave out what has to be pulled first.")] = False,
) -> list[ModelDoc]:
    """Models that jobs can name as `request.model`, then those that can be pulled."""
    return list_model_docs(services.places, only_here=here)


@router.get(
    "/{model_id}", operation_id="get_model", summary="Show a model", responses=problems(404)
)
def get_model(model_id: ModelId, services: ServicesDep, _who: Reader) -> ModelDoc:
    """All that is known of a model: what it segments, its classes, its licence."""
    return find_model_doc(model_id, services.places)


@router.post(
    "/{model_id}/pull",
    operation_id="pull_model",
    summary="Pull a model",
    status_code=202,
    responses={
        200: {"model": PullDoc, "description": "It is on its way already."},
        **problems(404),
    },
)
def pull_model(
    model_id: ModelId,
    request: Request,
    response: Response,
    services: ServicesDep,
    who: Writer,
    spec: Annotated[PullSpec | None, Body()] = None,
) -> PullDoc:
    """Fetch a model of a catalogue, or `ENGINE:NAME`, in the background.

    GET the same address for its progress. Where a licence has to be accepted, send
    `accept_licence: true`: it counts for everybody who uses this server.
    """
    accepts = spec is not None and spec.accept_licence
    pull, is_new = services.models.start_pull(model_id, who.user, accepts_licence=accepts)
    if is_new:
        services.audit.record(
            request, action="model.pull", target=model_id, status=202,
            details={"accept_licence": accepts},
        )  # fmt: skip
    response.status_code = 202 if is_new else 200
    return pull


@router.get(
    "/{model_id}/pull", operation_id="get_pull", summary="How far a pull is",
    responses=problems(404),
)  # fmt: skip
def get_pull(model_id: ModelId, services: ServicesDep, _who: Reader) -> PullDoc:
    """Progress of a pull, or how it ended; kept until the server stops."""
    return services.models.get(model_id)


@router.delete(
    "/{model_id}/pull", operation_id="cancel_pull", summary="Stop a pull", status_code=202,
    responses=problems(404),
)  # fmt: skip
def cancel_pull(
    model_id: ModelId, request: Request, services: ServicesDep, _who: Writer
) -> PullDoc:
    """Ask a pull to stop; what came is kept, and the next one goes on from there."""
    pull = services.models.cancel(model_id)
    services.audit.record(request, action="model.cancel_pull", target=model_id, status=202)
    return pull


@router.delete(
    "/{model_id}", operation_id="remove_model", summary="Remove a model", status_code=204,
    response_class=Response, responses=problems(404, 409),
)  # fmt: skip
def remove_model(
    model_id: ModelId, request: Request, services: ServicesDep, _who: Writer
) -> Response:
    """Delete a pulled or imported model from the server's disk; shipped ones stay (409)."""
    from lamella.core.progress import SilentSink
    from lamella.models import tidy

    known = find_model_doc(model_id, services.places)
    if known.origin == "catalogue":
        raise ConflictError(f"the model {model_id!r} is not here", hint="nothing to remove")
    try:
        tidy.remove_model(model_id, services.places, SilentSink())
    except InputError as error:
        raise ConflictError(error.message, hint=error.hint) from None
    services.audit.record(request, action="model.remove", target=model_id, status=204)
    return Response(status_code=204)
