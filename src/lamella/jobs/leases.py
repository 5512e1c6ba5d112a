"""What workers do with jobs: claim, renew, and answer; see :mod:`lamella.jobs.store`.

An answer names the attempt that was claimed. Whoever lost a job, because its lease ran out and
somebody else has it, learns so from :class:`~lamella.jobs.machine.LeaseLostError`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lamella.jobs import claiming, users
from lamella.jobs.database import Database
from lamella.jobs.machine import (
    ACTIVE_STATES,
    Advance,
    Claim,
    Event,
    Fail,
    Finish,
    Interrupt,
    JobRecord,
    LeaseLostError,
    Renew,
    Requeue,
    Stop,
    apply,
)
from lamella.jobs.rows import changed_values, read_job, record_of
from lamella.jobs.tables import jobs
from lamella.jobs.users import Limits
from lamella.jobs.view import ViewCache
from lamella.wire.problem import Problem
from lamella.wire.state import JobState

__all__ = ["Leases"]

Result = TypeVar("Result")

_WORKER_DIED = Problem(
    code="run_failed",
    message="the worker stopped answering",
    hint="it was killed, or lost its connection",
)


class Leases:
    """The side of the queue that workers see.

    Args:
        database: where the tables are.
        clock: Unix time, seconds.
        limits: of every user for whom no other ones are set.
        max_interruptions: how often in a row a job goes on by itself without getting further.
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float] = time.time,
        *,
        limits: Limits | None = None,
        max_interruptions: int = 3,
    ) -> None:
        self.database = database
        self.clock = clock
        self.limits = limits or Limits()
        self.max_interruptions = max_interruptions
        self._views = ViewCache(database, clock, self.limits)

    # --- What workers do ----------------------------------------------------------------------

    def claim(
        self, worker: str, resources: Mapping[str, float], lease_s: float
    ) -> JobRecord | None:
        """The next job that fits, now this worker's; None when there is none.

        Args:
            worker: who runs it.
            resources: what this worker has free.
            lease_s: seconds until somebody else may have it, unless it is renewed.
        """

        def work(connection: Connection) -> JobRecord | None:
            self.database.lock(connection, claiming.LOCK)
            now = self.clock()
            job, total = claiming.next_job(connection, worker, resources, self.limits, now)
            self._views.note_capacity(worker, total)
            if job is None:
                return None
            claim = Claim(worker=worker, now=now, lease_until=now + lease_s)
            return self._write(connection, job, apply(job, claim))

        if not self._has_queued():
            return None
        return self._changed(work)

    def renew(
        self,
        job_id: str,
        attempt: int,
        lease_s: float,
        progress: Mapping[str, Any] | None = None,
    ) -> JobState:
        """Keep a job for ``lease_s`` more seconds; its state: ``cancelling`` asks to stop.

        Args:
            job_id: the job.
            attempt: the one that was claimed.
            lease_s: seconds from now.
            progress: ``stage``, ``done``, ``total``, ``unit``, ``eta_s``.

        Raises:
            UnknownIdError: when there is no such job.
            LeaseLostError: when another attempt has it, or it has ended.
        """
        events: list[Event] = [Renew(attempt=attempt, lease_until=self.clock() + lease_s)]
        if progress is not None:
            events.append(Advance(attempt=attempt, progress=progress))
        return self._apply(job_id, *events, is_heartbeat=True).state

    def finish(
        self, job_id: str, attempt: int, result: Mapping[str, Any] | None = None
    ) -> JobRecord:
        """The job is done.

        Raises:
            UnknownIdError: when there is no such job.
            LeaseLostError: when another attempt has it, or it has ended.
        """
        return self._apply(
            job_id, Finish(attempt=attempt, now=self.clock(), result=dict(result or {}))
        )

    def fail(self, job_id: str, attempt: int, problem: Problem) -> JobRecord:
        """The job cannot be done.

        Raises:
            UnknownIdError: when there is no such job.
            LeaseLostError: when another attempt has it, or it has ended.
        """
        return self._apply(job_id, Fail(attempt=attempt, now=self.clock(), problem=problem))

    def stopped(self, job_id: str, attempt: int) -> JobRecord:
        """The job stopped because it was cancelled.

        Raises:
            UnknownIdError: when there is no such job.
            LeaseLostError: when another attempt has it, or it has ended.
            ConflictError: when nobody asked it to stop.
        """
        return self._apply(job_id, Stop(attempt=attempt, now=self.clock()))

    def interrupt(self, job_id: str, attempt: int, problem: Problem | None = None) -> JobRecord:
        """The worker died: the job is queued again, or failed after too many times in a row.

        Raises:
            UnknownIdError: when there is no such job.
            LeaseLostError: when another attempt has it, or it has ended.
        """
        return self._interrupt(job_id, attempt, problem or _WORKER_DIED, counts=True)

    def release(self, job_id: str, attempt: int) -> JobRecord:
        """Put a job back because this server shuts down; that counts against nothing.

        Raises:
            UnknownIdError: when there is no such job.
            LeaseLostError: when another attempt has it, or it has ended.
        """
        problem = Problem(code="run_failed", message="the server was shut down")
        return self._interrupt(job_id, attempt, problem, counts=False)

    def expired(self, now: float | None = None) -> Sequence[JobRecord]:
        """Jobs whose lease ran out: nobody answers for them."""
        now = self.clock() if now is None else now
        query = sa.select(jobs).where(jobs.c.state.in_(ACTIVE_STATES), jobs.c.lease_until < now)
        with self.database.read() as connection:
            return [record_of(row) for row in connection.execute(query).mappings()]

    def recover(self, now: float | None = None) -> Sequence[JobRecord]:
        """Interrupt every job whose lease ran out; their records afterwards."""
        recovered: list[JobRecord] = []
        for job in self.expired(now):
            try:
                recovered.append(self.interrupt(job.id, job.attempt))
            except LeaseLostError:
                # Its worker answered, or another server recovered it, in the meantime.
                continue
        return recovered

    # --- Inside -------------------------------------------------------------------------------

    def _interrupt(self, job_id: str, attempt: int, problem: Problem, *, counts: bool) -> JobRecord:
        now = self.clock()
        interrupt = Interrupt(attempt=attempt, now=now, problem=problem, counts=counts)

        def work(connection: Connection) -> JobRecord:
            job = read_job(connection, job_id, lock=True)
            after = apply(job, interrupt)
            if after.state == "interrupted":
                # In the same transaction: a crash between the two would leave it behind.
                after = apply(after, Requeue(now=now, max_interruptions=self.max_interruptions))
            return self._write(connection, job, after)

        return self._changed(work)

    def _apply(self, job_id: str, *events: Event, is_heartbeat: bool = False) -> JobRecord:
        def work(connection: Connection) -> JobRecord:
            job = read_job(connection, job_id, lock=True)
            after = job
            for event in events:
                after = apply(after, event)
            return self._write(connection, job, after)

        return self.database.run(work) if is_heartbeat else self._changed(work)

    def _write(self, connection: Connection, before: JobRecord, after: JobRecord) -> JobRecord:
        values = changed_values(before, after)
        if values:
            connection.execute(jobs.update().where(jobs.c.id == before.id).values(**values))
        if after.run_s > before.run_s:
            users.add_usage(connection, before, after.run_s - before.run_s, self.clock())
        return after

    def _has_queued(self) -> bool:
        # An idle server asks every moment: without taking the lock of those who write.
        query = sa.select(jobs.c.id).where(jobs.c.state == "queued").limit(1)
        with self.database.read() as connection:
            return connection.execute(query).first() is not None

    def _changed(self, work: Callable[[Connection], Result]) -> Result:
        result = self.database.run(work)
        self._views.invalidate()
        return result
