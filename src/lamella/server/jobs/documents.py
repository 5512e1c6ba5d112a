"""Jobs as their owners see them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from lamella.wire.job import BatchDoc, JobDoc, JobSpec, ProgressDoc
from lamella.wire.manifest import NoteDoc

if TYPE_CHECKING:
    from lamella.jobs.batch import BatchRecord
    from lamella.jobs.machine import JobRecord
    from lamella.server.services import Services

__all__ = ["batch_document", "iso_time", "job_document", "job_line"]


def iso_time(seconds: float | None) -> str | None:
    """Unix time as ISO 8601, UTC.

    Examples:
        >>> iso_time(0.5)
        '1970-01-01T00:00:00.500+00:00'
    """
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def job_document(services: Services, record: JobRecord) -> JobDoc:
    """Everything about a job, its newest progress and event number too."""
    log = services.dispatcher.log(record.id)
    document = job_line(services, record)
    update: dict[str, Any] = {"last_event": log.last}
    if record.is_active and (newest := log.last_progress) is not None:
        update["progress"] = _progress(newest)
    return document.model_copy(update=update)


def job_line(services: Services, record: JobRecord) -> JobDoc:
    """A job as in lists: what the queue knows of it, without a look at its files."""
    result = record.result or {}
    has_more = record.state != "finished"
    view = services.jobs.view(record.id if record.state == "queued" else None)
    return JobDoc(
        id=record.id,
        owner=record.owner,
        spec=JobSpec.model_validate(record.spec),
        state=record.state,
        attempt=record.attempt,
        batch=record.batch,
        created=iso_time(record.created) or "",
        started=iso_time(record.started),
        finished=iso_time(record.finished) if record.is_final else None,
        position=view.position(record.id) if record.state == "queued" else None,
        eta_s=view.eta_s(record.id),
        progress=_progress(record.progress) if record.progress and has_more else None,
        n_objects=result.get("n_objects"),
        warnings=tuple(NoteDoc.model_validate(note) for note in result.get("warnings", ())),
        problem=record.problem,
        summary=dict(result.get("summary", {})),
    )


def batch_document(record: BatchRecord) -> BatchDoc:
    """A batch and how many of its jobs are in which state."""
    return BatchDoc(
        id=record.id,
        name=record.name,
        owner=record.owner,
        created=iso_time(record.created) or "",
        states={state: n for state, n in record.states.items() if n},
        jobs=tuple(record.jobs),
    )


def _progress(values: Mapping[str, Any]) -> ProgressDoc:
    names = ("stage", "done", "total", "unit", "eta_s")
    return ProgressDoc(**{name: values[name] for name in names if name in values})
