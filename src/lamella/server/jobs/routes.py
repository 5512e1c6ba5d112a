"""Routes of jobs: create, list, show, cancel, retry, remove, log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse

from lamella.server.auth import Principal, ServicesDep, require
from lamella.server.jobs.diary import diary_lines
from lamella.server.jobs.documents import job_document, job_line
from lamella.server.jobs.owned import owned_job
from lamella.server.jobs.prepare import recall_inputs
from lamella.server.jobs.removal import remove_job
from lamella.server.jobs.submit import Submission, check_key
from lamella.server.problems import ProtocolError, problems
from lamella.server.services import Services
from lamella.wire.job import JobDoc, JobPage, JobSpec
from lamella.wire.state import JobState

__all__ = ["Key", "Reader", "Writer", "check_open", "router"]

router = APIRouter(prefix="/jobs", tags=["jobs"])

Reader = Annotated[Principal, require("jobs:read")]
Writer = Annotated[Principal, require("jobs:write")]
Key = Annotated[
    str | None,
    Header(
        description="Chosen by the client: sent again with the same body, it gives the same job."
    ),
]


@router.post(
    "", operation_id="create_job", summary="Queue a segmentation", status_code=201,
    response_model=JobDoc,
    responses={
        200: {"description": "It was queued before, under the same key.", "model": JobDoc},
        **problems(404, 409, 413, 501),
    },
)  # fmt: skip
def create_job(
    spec: JobSpec,
    request: Request,
    response: Response,
    services: ServicesDep,
    who: Writer,
    idempotency_key: Key = None,
) -> JobDoc:
    """Check a segmentation and put it into the queue.

    The answer is 201, or 200 when the `Idempotency-Key` was used before for the same request; for
    another request that is a conflict (409).
    """
    check_open(services)
    submission = Submission(services, who)
    job = submission.job(spec, check_key(idempotency_key))
    record, is_new = services.jobs.add(job)
    if is_new:
        submission.confirm([record.id])
        services.dispatcher.changed(record.id)
        services.audit.record(
            request, action="job.create", target=record.id, status=201,
            details={"model": spec.request.model, "input": spec.request.input.path[:200]},
        )  # fmt: skip
    else:
        response.status_code = 200
    response.headers["Location"] = f"{request.url.path.rstrip('/')}/{record.id}"
    return job_document(services, record)


@router.get("", operation_id="list_jobs", summary="List jobs")
def list_jobs(
    services: ServicesDep,
    who: Reader,
    state: Annotated[
        list[JobState] | None, Query(description="Only jobs in one of these states.")
    ] = None,
    batch: Annotated[str | None, Query(max_length=64, description="Only of this batch.")] = None,
    owner: Annotated[
        str | None, Query(max_length=64, description="Only of this user; for administrators.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    cursor: Annotated[
        str | None, Query(max_length=64, description="`next_cursor` of the page before.")
    ] = None,
) -> JobPage:
    """Jobs, newest first: yours, or everybody's for an administrator."""
    page = services.jobs.list(
        owner=owner if who.is_admin else who.user,
        states=state or None,
        batch=batch,
        limit=limit,
        cursor=cursor,
    )
    if owner is not None and not who.may_see(owner):
        return JobPage(jobs=())
    return JobPage(
        jobs=tuple(job_line(services, record) for record in page.jobs),
        next_cursor=page.next_cursor,
    )


@router.get(
    "/{job_id}", operation_id="get_job", summary="A job", response_model=JobDoc,
    responses=problems(404),
)  # fmt: skip
async def get_job(job_id: str, services: ServicesDep, who: Reader) -> Response:
    """Its state, its place in the queue, its progress, and what came out."""

    def read() -> str:
        return job_document(services, owned_job(services, who, job_id)).model_dump_json()

    # The most frequent question. On a busy machine a way to a thread and back takes ten times as
    # long as the answer.
    is_quick = services.jobs.answers_at_once(job_id)
    text = read() if is_quick else await run_in_threadpool(read)
    return Response(text, media_type="application/json")


@router.post(
    "/{job_id}/cancel", operation_id="cancel_job", summary="Cancel a job",
    responses=problems(404, 409),
)  # fmt: skip
def cancel_job(job_id: str, request: Request, services: ServicesDep, who: Writer) -> JobDoc:
    """A job that waits is cancelled at once; one that runs is asked to stop (`cancelling`).

    What it has done is kept: `retry` goes on from there.
    """
    owned_job(services, who, job_id)
    record = services.jobs.cancel(job_id)
    services.dispatcher.changed(job_id)
    services.audit.record(request, action="job.cancel", target=job_id)
    return job_document(services, record)


@router.post(
    "/{job_id}/retry", operation_id="retry_job", summary="Run a job again",
    responses=problems(404, 409, 413),
)  # fmt: skip
def retry_job(job_id: str, request: Request, services: ServicesDep, who: Writer) -> JobDoc:
    """Queue a job again that failed or was cancelled; it goes on where it stopped."""
    check_open(services)
    recall_inputs(services, owned_job(services, who, job_id))
    record = services.jobs.retry(job_id)
    services.dispatcher.changed(job_id)
    services.audit.record(request, action="job.retry", target=job_id)
    return job_document(services, record)


@router.delete(
    "/{job_id}", operation_id="delete_job", summary="Remove a job", status_code=204,
    response_class=Response, responses=problems(404, 409),
)  # fmt: skip
def delete_job(job_id: str, request: Request, services: ServicesDep, who: Writer) -> Response:
    """Remove a job that has ended, with all its files."""
    owned_job(services, who, job_id)
    remove_job(services, job_id)
    services.audit.record(request, action="job.delete", target=job_id, status=204)
    return Response(status_code=204)


@router.get(
    "/{job_id}/log", operation_id="get_job_log", summary="What happened to a job",
    response_class=PlainTextResponse, responses=problems(404),
)  # fmt: skip
def get_job_log(job_id: str, services: ServicesDep, who: Reader) -> PlainTextResponse:
    """The job's events as lines of text."""
    owned_job(services, who, job_id)
    lines = services.dispatcher.log(job_id).read(0)
    return PlainTextResponse("".join(f"{line}\n" for line in diary_lines(lines)))


def check_open(services: Services) -> None:
    """Refuse new work while the server goes down.

    Raises:
        ProtocolError: 503.
    """
    if services.is_closing:
        raise ProtocolError(
            503,
            "the server is going down and takes no jobs",
            code="closing",
            hint="try again when it is back",
            details={"retry_after_s": 10},
        )
