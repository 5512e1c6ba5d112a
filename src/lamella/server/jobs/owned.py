"""A job, if it belongs to whoever asks; else there is no such job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamella.core.errors import MissingPathError, UnknownIdError

if TYPE_CHECKING:
    from lamella.jobs.batch import BatchRecord
    from lamella.jobs.machine import JobRecord
    from lamella.server.auth import Principal
    from lamella.server.services import Services

__all__ = ["owned_batch", "owned_job"]


def owned_job(services: Services, who: Principal, job_id: str) -> JobRecord:
    """A job of this user, or any for an administrator.

    Raises:
        MissingPathError: when there is none, or it is somebody else's: both sound the same.
    """
    missing = f"there is no job {job_id[:40]!r}"
    hint = "GET /api/v1/jobs lists yours; ended ones are removed after a while"
    try:
        record = services.jobs.get(job_id)
    except UnknownIdError:
        raise MissingPathError(missing, hint=hint) from None
    if not who.may_see(record.owner):
        raise MissingPathError(missing, hint=hint)
    return record


def owned_batch(services: Services, who: Principal, batch_id: str) -> BatchRecord:
    """A batch of this user, or any for an administrator.

    Raises:
        MissingPathError: when there is none, or it is somebody else's.
    """
    missing = f"there is no batch {batch_id[:40]!r}"
    try:
        record = services.jobs.get_batch(batch_id)
    except UnknownIdError:
        raise MissingPathError(missing) from None
    if not who.may_see(record.owner):
        raise MissingPathError(missing)
    return record
