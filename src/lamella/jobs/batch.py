"""Batches: many jobs that are submitted together, all or none."""

import hashlib
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lamella.core.errors import ConflictError, InputError, UnknownIdError
from lamella.jobs.machine import NewJob, new_record
from lamella.jobs.rows import check_new_job, digest_of, new_id, values_of
from lamella.jobs.tables import batches, jobs
from lamella.wire.state import JobState

__all__ = [
    "BatchRecord",
    "BatchRequest",
    "by_key",
    "check",
    "check_digest",
    "delete_if_empty",
    "insert",
    "read",
]


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """What is asked for."""

    owner: str
    jobs: tuple[NewJob, ...]
    name: str
    idempotency_key: str | None

    @property
    def digest(self) -> str:
        """SHA-256, hexadecimal, of the jobs in their order."""
        text = "\n".join([self.name, *(digest_of(job) for job in self.jobs)])
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch: ids of its jobs in the order of submission, and how many are in which state."""

    id: str
    owner: str
    name: str
    created: float
    states: dict[JobState, int]
    jobs: tuple[str, ...]


def check(request: BatchRequest) -> None:
    """Refuse a batch that cannot be.

    Raises:
        InputError: for an empty batch, a job of somebody else, or one that cannot be.
    """
    if not request.jobs:
        raise InputError("a batch needs at least one job", hint="name the volumes to be segmented")
    if len(request.name) > 200 or len(request.idempotency_key or "") > 255:
        raise InputError(
            "the name or the idempotency key of a batch is too long",
            hint="at most 200 and 255 characters",
        )
    for job in request.jobs:
        check_new_job(job)
        if job.owner != request.owner or job.idempotency_key is not None:
            raise InputError(
                "jobs of a batch belong to its owner and have no idempotency key of their own",
                hint="give the key to the batch",
            )


def check_digest(key: str | None, old: str, new: str) -> None:
    """Refuse a key that was used for something else.

    Raises:
        ConflictError: when the digests differ.
    """
    if old != new:
        raise ConflictError(
            f"the idempotency key {key!r} was used for another request",
            hint="use a new key for every new request, the same one only to repeat it",
            details={"idempotency_key": key},
        )


def by_key(connection: Connection, request: BatchRequest) -> BatchRecord | None:
    """The batch that was made with this key.

    Raises:
        ConflictError: when it was made for something else.
    """
    if request.idempotency_key is None:
        return None
    is_it = (batches.c.owner == request.owner) & (
        batches.c.idempotency_key == request.idempotency_key
    )
    digest = connection.execute(sa.select(batches.c.digest).where(is_it)).scalar()
    if digest is None:
        return None
    check_digest(request.idempotency_key, digest, request.digest)
    return read(connection, is_it, "the batch was removed")


def insert(connection: Connection, request: BatchRequest, now: float) -> BatchRecord:
    """A new batch and its jobs."""
    batch_id = new_id()
    connection.execute(
        batches.insert().values(
            id=batch_id,
            owner=request.owner,
            name=request.name,
            created=now,
            idempotency_key=request.idempotency_key,
            digest=request.digest,
        )
    )
    records = [new_record(new_id(), job, now=now, batch=batch_id) for job in request.jobs]
    connection.execute(
        jobs.insert(),
        [
            {**values_of(record), "digest": digest_of(job)}
            for record, job in zip(records, request.jobs, strict=True)
        ],
    )
    ids = tuple(record.id for record in records)
    return BatchRecord(batch_id, request.owner, request.name, now, {"queued": len(ids)}, ids)


def read(connection: Connection, is_it: sa.ColumnElement[bool], absent: str) -> BatchRecord:
    """The batch that qualifies.

    Raises:
        UnknownIdError: with the message ``absent`` when none does.
    """
    row = connection.execute(sa.select(batches).where(is_it)).mappings().first()
    if row is None:
        raise UnknownIdError(absent, hint="list the jobs: it may have been removed with them")
    query = (
        sa.select(jobs.c.id, jobs.c.state).where(jobs.c.batch == row["id"]).order_by(jobs.c.number)
    )
    members = connection.execute(query).all()
    states: dict[JobState, int] = {}
    for _, state in members:
        states[state] = states.get(state, 0) + 1
    ids = tuple(job_id for job_id, _ in members)
    return BatchRecord(row["id"], row["owner"], row["name"], row["created"], states, ids)


def delete_if_empty(connection: Connection, batch_id: str) -> None:
    """Forget a batch whose last job is gone."""
    is_used = sa.exists().where(jobs.c.batch == batch_id)
    connection.execute(batches.delete().where(batches.c.id == batch_id, ~is_used))
