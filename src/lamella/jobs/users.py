"""Users as the queue sees them: limits, weights, and what they used."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lamella.core.errors import InputError, QuotaError
from lamella.jobs.fairness import Share, decayed, size_of
from lamella.jobs.machine import JobRecord
from lamella.jobs.tables import jobs, users

__all__ = ["Limits", "add_usage", "check_queue", "lock_user", "read_shares", "update"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one user; None = any number.

    Args:
        max_queued: jobs in the queue.
        max_running: jobs that run at once.
    """

    max_queued: int | None = None
    max_running: int | None = None


def lock_user(connection: Connection, owner: str, now: float) -> sa.RowMapping:
    """The row of a user, made if there is none; nobody else changes it until the commit."""
    # Each takes a twentieth of a second to import.
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert
    else:
        from sqlalchemy.dialects.sqlite import insert
    connection.execute(
        insert(users)
        .values(owner=owner, weight=1.0, usage_s=0.0, usage_time=now)
        .on_conflict_do_nothing()
    )
    query = sa.select(users).where(users.c.owner == owner).with_for_update()
    return connection.execute(query).mappings().one()


def check_queue(connection: Connection, user: sa.RowMapping, n_more: int, limits: Limits) -> None:
    """Refuse jobs beyond the user's limit; the user's row must be locked.

    Raises:
        QuotaError: when the queue would hold too many of this user's jobs.
    """
    allowed = user["max_queued"] if user["max_queued"] is not None else limits.max_queued
    if allowed is None:
        return
    query = (
        sa.select(sa.func.count())
        .select_from(jobs)
        .where(jobs.c.owner == user["owner"], jobs.c.state == "queued")
    )
    n_queued = connection.execute(query).scalar_one()
    if n_queued + n_more > allowed:
        raise QuotaError(
            f"{user['owner']} has {n_queued} jobs in the queue and asks for {n_more} more; "
            f"{allowed} are allowed",
            hint="wait until some have started, or cancel some",
            details={"n_queued": n_queued, "n_more": n_more, "max_queued": allowed},
        )


def update(
    connection: Connection, owner: str, values: Mapping[str, float | None], now: float
) -> None:
    """Set what is not None.

    Raises:
        InputError: for a weight that is not above 0, or a negative limit.
    """
    given = {name: value for name, value in values.items() if value is not None}
    if given.get("weight", 1.0) <= 0 or any(value < 0 for value in given.values()):
        raise InputError(
            f"expected a weight above 0 and limits of 0 or more, got {given}",
            hint="1 is the usual weight",
        )
    lock_user(connection, owner, now)
    if given:
        connection.execute(users.update().where(users.c.owner == owner).values(**given))


def add_usage(connection: Connection, job: JobRecord, seconds: float, now: float) -> None:
    """Count what a job held for some seconds against its owner."""
    user = lock_user(connection, job.owner, now)
    before = decayed(user["usage_s"], now - user["usage_time"])
    connection.execute(
        users.update()
        .where(users.c.owner == job.owner)
        .values(usage_s=before + seconds * size_of(job.resources), usage_time=now)
    )


def read_shares(
    connection: Connection,
    held: Mapping[str, tuple[float, int]],
    owners: set[str],
    limits: Limits,
    now: float,
) -> dict[str, Share]:
    """Shares of the owners.

    Args:
        connection: within a transaction.
        held: per owner, the amounts that running jobs hold, and how many run.
        owners: for whom shares are wanted.
        limits: of those who have none of their own.
        now: Unix time, seconds.
    """
    rows: dict[str, Any] = {
        row["owner"]: row for row in connection.execute(sa.select(users)).mappings()
    }
    return {
        owner: _share(rows.get(owner), held.get(owner, (0.0, 0)), limits, now) for owner in owners
    }


def _share(row: Any, held: tuple[float, int], limits: Limits, now: float) -> Share:
    amount, n_running = held
    if row is None:
        return Share(held=amount, n_running=n_running, max_running=limits.max_running)
    own = row["max_running"]
    return Share(
        held=amount,
        n_running=n_running,
        usage=decayed(row["usage_s"], now - row["usage_time"]),
        weight=row["weight"],
        max_running=limits.max_running if own is None else own,
    )
