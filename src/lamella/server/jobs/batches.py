"""Routes of batches: many jobs in one request."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from lamella.core.errors import LamellaError
from lamella.jobs.machine import NewJob
from lamella.server.auth import ServicesDep
from lamella.server.jobs.documents import batch_document
from lamella.server.jobs.owned import owned_batch
from lamella.server.jobs.routes import Key, Reader, Writer, check_open
from lamella.server.jobs.submit import Submission, check_key
from lamella.server.problems import ProtocolError, problems
from lamella.wire.job import BatchDoc, BatchSpec

__all__ = ["router"]

router = APIRouter(prefix="/batches", tags=["batches"])


@router.post(
    "", operation_id="create_batch", summary="Queue many segmentations", status_code=201,
    response_model=BatchDoc,
    responses={
        200: {"description": "It was queued before, under the same key.", "model": BatchDoc},
        **problems(404, 409, 413, 501),
    },
)  # fmt: skip
def create_batch(
    spec: BatchSpec,
    request: Request,
    response: Response,
    services: ServicesDep,
    who: Writer,
    idempotency_key: Key = None,
) -> BatchDoc:
    """Queue all jobs or none: one that cannot be taken refuses the whole batch, and is named."""
    check_open(services)
    submission = Submission(services, who)
    new_jobs: list[NewJob] = []
    for number, job in enumerate(spec.jobs):
        try:
            new_jobs.append(submission.job(job))
        except ProtocolError:
            # To be sent again as it is.
            raise
        except LamellaError as error:
            raise type(error)(
                f"job {number} of the batch: {error.message}",
                hint=error.hint,
                details={**error.details, "job": number},
            ) from error
    record, is_new = services.jobs.add_batch(
        who.user, new_jobs, name=spec.name, idempotency_key=check_key(idempotency_key)
    )
    if is_new:
        submission.confirm(record.jobs)
        for job_id in record.jobs:
            services.dispatcher.changed(job_id)
        services.audit.record(
            request, action="batch.create", target=record.id, status=201,
            details={"n_jobs": len(record.jobs)},
        )  # fmt: skip
    else:
        response.status_code = 200
    response.headers["Location"] = f"{request.url.path.rstrip('/')}/{record.id}"
    return batch_document(record)


@router.get("/{batch_id}", operation_id="get_batch", summary="A batch", responses=problems(404))
def get_batch(batch_id: str, services: ServicesDep, who: Reader) -> BatchDoc:
    """Its jobs, and how many of them are in which state."""
    return batch_document(owned_batch(services, who, batch_id))


@router.post(
    "/{batch_id}/cancel", operation_id="cancel_batch", summary="Cancel a batch",
    responses=problems(404),
)  # fmt: skip
def cancel_batch(batch_id: str, request: Request, services: ServicesDep, who: Writer) -> BatchDoc:
    """Cancel every job of the batch that has not ended."""
    owned_batch(services, who, batch_id)
    for record in services.jobs.cancel_batch(batch_id):
        services.dispatcher.changed(record.id)
    services.audit.record(request, action="batch.cancel", target=batch_id)
    return batch_document(services.jobs.get_batch(batch_id))
