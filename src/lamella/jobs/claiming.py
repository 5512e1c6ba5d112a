"""Which job a worker gets: what the tables say, judged by :mod:`lamella.jobs.fairness`."""

import json
from collections import defaultdict
from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lamella.jobs.fairness import Waiting, choose, size_of
from lamella.jobs.machine import ACTIVE_STATES, JobRecord
from lamella.jobs.rows import record_of, resources_text
from lamella.jobs.tables import jobs
from lamella.jobs.users import Limits, read_shares

__all__ = ["LOCK", "next_job"]

LOCK = 0x1A3E11A
"""Claims are made one after another: shares and limits are then exact."""


def next_job(
    connection: Connection,
    worker: str,
    free: Mapping[str, float],
    limits: Limits,
    now: float,
) -> tuple[JobRecord | None, dict[str, float]]:
    """The job to be claimed, locked, or None; and all resources that the worker has."""
    held, own = _held(connection, worker)
    total = {name: free.get(name, 0.0) + own.get(name, 0.0) for name in {*free, *own}}
    waiting = _waiting(connection)
    shares = read_shares(connection, held, {group.owner for group in waiting}, limits, now)
    chosen = choose(waiting, shares, free, total, now=now)
    if not chosen:
        return None, total
    query = (
        sa.select(jobs)
        .where(
            jobs.c.state == "queued",
            jobs.c.owner == chosen[0].owner,
            jobs.c.resources.in_([resources_text(group.resources) for group in chosen]),
        )
        .order_by(jobs.c.priority.desc(), jobs.c.number)
        .limit(1)
        # One that is just being cancelled is passed over.
        .with_for_update(skip_locked=True)
    )
    row = connection.execute(query).mappings().first()
    return (None if row is None else record_of(row)), total


def _held(
    connection: Connection, worker: str
) -> tuple[dict[str, tuple[float, int]], dict[str, float]]:
    query = (
        sa.select(jobs.c.owner, jobs.c.worker, jobs.c.resources, sa.func.count())
        .where(jobs.c.state.in_(ACTIVE_STATES))
        .group_by(jobs.c.owner, jobs.c.worker, jobs.c.resources)
    )
    by_owner: defaultdict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    own: defaultdict[str, float] = defaultdict(float)
    for owner, holder, text, n in connection.execute(query):
        resources = json.loads(text)
        amount, n_running = by_owner[owner]
        by_owner[owner] = (amount + n * size_of(resources), n_running + n)
        if holder == worker:
            for name, each in resources.items():
                own[name] += n * each
    return by_owner, own


def _waiting(connection: Connection) -> list[Waiting]:
    query = (
        sa.select(
            jobs.c.owner,
            jobs.c.resources,
            sa.func.min(jobs.c.number),
            sa.func.min(jobs.c.queued),
        )
        .where(jobs.c.state == "queued")
        .group_by(jobs.c.owner, jobs.c.resources)
    )
    return [
        Waiting(
            owner=owner,
            resources=json.loads(text),
            first_number=number,
            first_queued=queued,
        )
        for owner, text, number, queued in connection.execute(query)
    ]
