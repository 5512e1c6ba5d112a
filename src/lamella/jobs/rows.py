"""Records as rows of the tables, and back."""

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lamella.core.errors import InputError, UnknownIdError
from lamella.jobs.machine import JobRecord, NewJob, normal_resources
from lamella.jobs.tables import jobs
from lamella.wire.problem import Problem

__all__ = [
    "changed_values",
    "check_new_job",
    "digest_of",
    "new_id",
    "read_job",
    "record_of",
    "resources_text",
    "values_of",
]

_NAMES = tuple(item.name for item in fields(JobRecord))
_LIMITS = {"owner": 64, "kind": 32, "name": 200, "idempotency_key": 255, "estimate_key": 128}


def new_id() -> str:
    """An id that was never used before, 20 characters."""
    return secrets.token_hex(10)


def resources_text(resources: Mapping[str, float]) -> str:
    """Canonical JSON of resources: the same text for the same needs."""
    return json.dumps(dict(sorted(resources.items())), separators=(",", ":"))


def check_new_job(job: NewJob) -> None:
    """Refuse what a database would refuse with a worse message.

    Raises:
        InputError: for a name that is too long or has control characters, or wrong resources.
    """
    for name, limit in _LIMITS.items():
        text = getattr(job, name) or ""
        if len(text) > limit or "\0" in text:
            raise InputError(
                f"{name} of a job: expected at most {limit} characters and no NUL, "
                f"got {len(text)} characters",
                hint=f"choose a shorter {name} of plain text",
            )
    if not job.owner or not job.kind:
        raise InputError("a job needs an owner and a kind", hint="name both")
    if len(resources_text(normal_resources(job.resources))) > 255:
        raise InputError(
            f"a job names {len(job.resources)} resources, more than can be kept",
            hint="name only those that are scarce",
        )


def digest_of(job: NewJob) -> str:
    """SHA-256, hexadecimal, of what is asked for: two requests with one key must have the same."""
    document = {
        "kind": job.kind,
        "spec": job.spec,
        "name": job.name,
        "priority": job.priority,
        "resources": normal_resources(job.resources),
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def record_of(row: sa.RowMapping) -> JobRecord:
    """The record of a row of ``jobs``."""
    values: dict[str, Any] = {name: row[name] for name in _NAMES}
    values["resources"] = json.loads(values["resources"])
    if values["problem"] is not None:
        values["problem"] = Problem.model_validate(values["problem"])
    return JobRecord(**values)


def values_of(job: JobRecord) -> dict[str, Any]:
    """Columns of a record, without its number: the database gives that."""
    return {name: _value(name, job) for name in _NAMES if name != "number"}


def changed_values(before: JobRecord, after: JobRecord) -> dict[str, Any]:
    """Columns that differ."""
    return {
        name: _value(name, after)
        for name in _NAMES
        if getattr(before, name) is not getattr(after, name)
        and getattr(before, name) != getattr(after, name)
    }


def read_job(connection: Connection, job_id: str, *, lock: bool = False) -> JobRecord:
    """A job by its id; with ``lock`` nobody else changes it until the end of the transaction.

    Raises:
        UnknownIdError: when there is none.
    """
    query = sa.select(jobs).where(jobs.c.id == job_id)
    row = connection.execute(query.with_for_update() if lock else query).mappings().first()
    if row is None:
        raise UnknownIdError(
            f"there is no job {job_id!r}", hint="list the jobs: it may have been removed"
        )
    return record_of(row)


def _value(name: str, job: JobRecord) -> Any:
    value = getattr(job, name)
    if name == "resources":
        return resources_text(value)
    if isinstance(value, Problem):
        return value.model_dump(mode="json")
    return _plain(value) if isinstance(value, Mapping) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"expected JSON values, got {type(value).__name__}")
