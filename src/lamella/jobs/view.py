"""Positions and estimates of the whole queue, made at once and kept for a moment.

Two thousand people may ask for their place at once: everybody is answered from one view, which is
made again when the queue changed, but, where that takes long, not for more than a twentieth of the
time.
"""

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lamella.jobs.database import Database
from lamella.jobs.estimate import Durations, Occupied, Planned, plan_starts
from lamella.jobs.fairness import in_order, size_of
from lamella.jobs.machine import ACTIVE_STATES
from lamella.jobs.tables import jobs
from lamella.jobs.users import Limits, read_shares

__all__ = ["QueueView", "ViewCache"]

_N_DURATIONS = 30
_MAX_KEYS = 50
_MAX_AGE_S = 1.0
_QUICK_S = 0.01
_REST = 20.0
"""A view that was not quick to make is used so many times longer than that took."""


@dataclass(frozen=True, slots=True)
class QueueView:
    """Who stands where.

    Args:
        positions: of every queued job, from 1.
        etas_s: seconds until a queued job starts or a running one ends, where known.
    """

    positions: Mapping[str, int]
    etas_s: Mapping[str, float]

    def position(self, job_id: str) -> int | None:
        """Jobs ahead in the queue, plus one; None for a job that does not wait."""
        return self.positions.get(job_id)

    def eta_s(self, job_id: str) -> float | None:
        """Seconds until it starts (queued) or ends (running); None = not known."""
        return self.etas_s.get(job_id)


@dataclass(frozen=True, slots=True)
class _Row:
    id: str
    owner: str
    priority: int
    number: int
    resources: Mapping[str, float]
    estimate_key: str
    cost: float | None


class ViewCache:
    """The newest view, shared by all threads."""

    def __init__(self, database: Database, clock: Callable[[], float], limits: Limits) -> None:
        self._database = database
        self._clock = clock
        self._limits = limits
        self._lock = threading.Lock()
        self._capacity: dict[str, Mapping[str, float]] = {}
        self._view: QueueView | None = None
        self._made = self._took_s = 0.0
        self._is_stale = True

    def note_capacity(self, worker: str, total: Mapping[str, float]) -> None:
        """Remember what a worker has when nothing runs on it."""
        self._capacity = {**self._capacity, worker: dict(total)}

    def invalidate(self) -> None:
        """The queue changed."""
        self._is_stale = True

    def get(self, queued_id: str | None = None) -> QueueView:
        """The newest view, or a new one where that is too old or lacks a job that is queued."""
        view = self._view
        if view is not None and self._is_good(view, queued_id):
            return view
        if view is not None and self._lock.locked() and _knows(view, queued_id):
            # Another thread makes the next one: nobody waits for that who can be answered.
            return view
        with self._lock:
            # Another thread may have made it in the meantime.
            view = self._view
            if view is not None and self._is_good(view, queued_id):
                return view
            # Before reading: a change while it is read makes the view stale again.
            self._is_stale = False
            began = time.perf_counter()
            view = self._make()
            self._made = time.perf_counter()
            self._took_s = self._made - began
            self._view = view
            return view

    def has_ready(self, queued_id: str | None = None) -> bool:
        """Whether :meth:`get` would answer without reading the queue."""
        view = self._view
        return view is not None and self._is_good(view, queued_id)

    def _is_good(self, view: QueueView, queued_id: str | None) -> bool:
        age_s = time.perf_counter() - self._made
        if age_s > max(_MAX_AGE_S, _REST * self._took_s):
            return False
        if not self._is_stale:
            return True
        if not _knows(view, queued_id):
            return False
        return self._took_s > _QUICK_S and age_s < _REST * self._took_s

    def _make(self) -> QueueView:
        now = self._clock()
        with self._database.read() as connection:
            queued = _queued(connection)
            running = _running(connection)
            held: defaultdict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
            for row, _ in running:
                amount, n = held[row.owner]
                held[row.owner] = (amount + size_of(row.resources), n + 1)
            owners = {row.owner for row in queued}
            shares = read_shares(connection, held, owners, self._limits, now)
            durations = _durations(connection, [*queued, *(row for row, _ in running)])
        order = list(in_order(queued, shares))
        remaining = {row.id: _remaining_s(row, started, durations, now) for row, started in running}
        occupied = [Occupied(row.resources, remaining[row.id]) for row, _ in running]
        planned = [Planned(row.id, row.resources, _expected_s(row, durations)) for row in order]
        etas: dict[str, float] = {
            job_id: seconds for job_id, seconds in remaining.items() if seconds is not None
        }
        etas |= plan_starts(planned, occupied, self._total(occupied))
        return QueueView({row.id: n for n, row in enumerate(order, 1)}, etas)

    def _total(self, occupied: Iterable[Occupied]) -> dict[str, float]:
        total: defaultdict[str, float] = defaultdict(float)
        for resources in self._capacity.values() or [held.resources for held in occupied]:
            for name, amount in resources.items():
                total[name] += amount
        return total


def _knows(view: QueueView, queued_id: str | None) -> bool:
    return queued_id is None or queued_id in view.positions


_COLUMNS = (
    jobs.c.id,
    jobs.c.owner,
    jobs.c.priority,
    jobs.c.number,
    jobs.c.resources,
    jobs.c.estimate_key,
    jobs.c.cost,
)


def _queued(connection: Connection) -> list[_Row]:
    parsed: dict[str, Mapping[str, float]] = {}
    rows = connection.execute(sa.select(*_COLUMNS).where(jobs.c.state == "queued"))
    return [_row(row, parsed) for row in rows]


def _running(connection: Connection) -> list[tuple[_Row, float | None]]:
    parsed: dict[str, Mapping[str, float]] = {}
    query = sa.select(*_COLUMNS, jobs.c.started).where(jobs.c.state.in_(ACTIVE_STATES))
    return [(_row(row[:-1], parsed), row[-1]) for row in connection.execute(query)]


def _row(row: Any, parsed: dict[str, Mapping[str, float]]) -> _Row:
    job_id, owner, priority, number, text, key, cost = row
    if text not in parsed:
        parsed[text] = json.loads(text)
    return _Row(job_id, owner, priority, number, parsed[text], key, cost)


def _durations(connection: Connection, rows: Iterable[_Row]) -> dict[str, Durations]:
    keys = sorted({row.estimate_key for row in rows})[:_MAX_KEYS]
    return {"": _lately(connection, None)} | {key: _lately(connection, key) for key in keys}


def _lately(connection: Connection, key: str | None) -> Durations:
    query = (
        sa.select(jobs.c.run_s, jobs.c.cost)
        .where(jobs.c.state == "finished")
        .order_by(jobs.c.finished.desc())
        .limit(_N_DURATIONS)
    )
    if key is not None:
        query = query.where(jobs.c.estimate_key == key)
    return Durations.of((seconds, cost) for seconds, cost in connection.execute(query))


def _expected_s(row: _Row, durations: Mapping[str, Durations]) -> float | None:
    own = durations.get(row.estimate_key, Durations()).expected_s(row.cost)
    # Costs of different keys are in different units: of other kinds only the time counts.
    return durations[""].median_s if own is None else own


def _remaining_s(
    row: _Row, started: float | None, durations: Mapping[str, Durations], now: float
) -> float | None:
    expected = _expected_s(row, durations)
    if expected is None or started is None:
        return None
    # One that takes longer than usual is believed to be nearly done.
    return max(expected - (now - started), 0.05 * expected)
