"""The durable queue: every change of a job is one transaction, made by the pure machine.

The store decides nothing about states itself: it locks a row, lets :mod:`lamella.jobs.machine`
say what becomes of it, and writes the difference. Several processes may use one database at once.

Examples:
    >>> from tempfile import TemporaryDirectory
    >>> from pathlib import Path
    >>> from lamella.jobs.database import open_database, sqlite_url
    >>> from lamella.jobs.tables import METADATA
    >>> folder = TemporaryDirectory()
    >>> database = open_database(sqlite_url(Path(folder.name) / "jobs.db"))
    >>> METADATA.create_all(database.engine)
    >>> store = JobStore(database)
    >>> job, is_new = store.add(NewJob(owner="ada", kind="segment", spec={"input": "a.mrc"}))
    >>> store.position(job.id)
    1
    >>> claimed = store.claim("worker-1", {"cpu": 2.0}, lease_s=30.0)
    >>> claimed.id == job.id, claimed.attempt
    (True, 1)
    >>> store.finish(job.id, claimed.attempt, {"n_objects": 7}).state
    'finished'
    >>> database.close(); folder.cleanup()
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lamella.core.errors import ConflictError, InputError
from lamella.jobs import batch, users
from lamella.jobs.batch import BatchRecord
from lamella.jobs.leases import Leases
from lamella.jobs.machine import (
    ACTIVE_STATES,
    Cancel,
    JobRecord,
    NewJob,
    Retry,
    apply,
    new_record,
)
from lamella.jobs.rows import (
    check_new_job,
    digest_of,
    new_id,
    read_job,
    record_of,
    values_of,
)
from lamella.jobs.tables import batches, jobs
from lamella.jobs.view import QueueView
from lamella.wire.state import JobState

__all__ = ["JobList", "JobStore"]


@dataclass(frozen=True, slots=True)
class JobList:
    """Jobs, newest first; ``next_cursor`` asks for the following ones."""

    jobs: tuple[JobRecord, ...]
    next_cursor: str | None


class JobStore(Leases):
    """Jobs of one database; what workers do is in :class:`~lamella.jobs.leases.Leases`.

    Args:
        database: where the tables are.
        clock: Unix time, seconds.
        limits: of every user for whom no other ones are set.
        max_interruptions: how often in a row a job goes on by itself without getting further.
    """

    # --- Submitting ---------------------------------------------------------------------------

    def add(self, job: NewJob) -> tuple[JobRecord, bool]:
        """Queue a job; the record, and whether it is new.

        The same idempotency key with the same content gives the job that is there already.

        Raises:
            InputError: for names that are too long, or impossible resources.
            ConflictError: when the key was used for something else.
            QuotaError: when the owner has as many jobs in the queue as allowed.
        """
        check_new_job(job)
        digest = digest_of(job)

        def work(connection: Connection) -> tuple[JobRecord, bool]:
            user = users.lock_user(connection, job.owner, self.clock())
            old = _by_key(connection, job)
            if old is not None:
                batch.check_digest(job.idempotency_key, old["digest"], digest)
                return record_of(old), False
            users.check_queue(connection, user, 1, self.limits)
            record = new_record(new_id(), job, now=self.clock())
            connection.execute(jobs.insert().values(**values_of(record), digest=digest))
            return read_job(connection, record.id), True

        return self._changed(work)

    def add_batch(
        self,
        owner: str,
        new_jobs: Sequence[NewJob],
        *,
        name: str = "",
        idempotency_key: str | None = None,
    ) -> tuple[BatchRecord, bool]:
        """Queue many jobs of one owner: all of them, or none.

        Raises:
            InputError: for an empty batch, another owner's job, or a job that cannot be.
            ConflictError: when the key was used for something else.
            QuotaError: when not all of them are allowed.
        """
        request = batch.BatchRequest(owner, tuple(new_jobs), name, idempotency_key)
        batch.check(request)

        def work(connection: Connection) -> tuple[BatchRecord, bool]:
            user = users.lock_user(connection, owner, self.clock())
            old = batch.by_key(connection, request)
            if old is not None:
                return old, False
            users.check_queue(connection, user, len(new_jobs), self.limits)
            return batch.insert(connection, request, self.clock()), True

        return self._changed(work)

    # --- Looking ------------------------------------------------------------------------------

    def get(self, job_id: str) -> JobRecord:
        """A job.

        Raises:
            UnknownIdError: when there is none.
        """
        with self.database.read() as connection:
            return read_job(connection, job_id)

    def list(
        self,
        owner: str | None = None,
        states: Collection[JobState] | None = None,
        batch: str | None = None,
        *,
        limit: int = 100,
        cursor: str | None = None,
    ) -> JobList:
        """Jobs, newest first.

        Args:
            owner: only this user's.
            states: only those in one of these states.
            batch: only those of this batch.
            limit: at most so many.
            cursor: ``next_cursor`` of the list before.

        Raises:
            InputError: for a cursor that no list gave.
        """
        query = sa.select(jobs).order_by(jobs.c.number.desc()).limit(limit + 1)
        if owner is not None:
            query = query.where(jobs.c.owner == owner)
        if states is not None:
            query = query.where(jobs.c.state.in_(list(states)))
        if batch is not None:
            query = query.where(jobs.c.batch == batch)
        if cursor is not None:
            query = query.where(jobs.c.number < _number_of(cursor))
        with self.database.read() as connection:
            records = [record_of(row) for row in connection.execute(query).mappings()]
        more = len(records) > limit
        records = records[:limit]
        return JobList(tuple(records), str(records[-1].number) if more and records else None)

    def get_batch(self, batch_id: str) -> BatchRecord:
        """A batch and the states of its jobs.

        Raises:
            UnknownIdError: when there is none.
        """
        with self.database.read() as connection:
            return batch.read(
                connection, batches.c.id == batch_id, f"there is no batch {batch_id!r}"
            )

    def counts(self, owner: str | None = None) -> dict[JobState, int]:
        """How many jobs are in which state."""
        query = sa.select(jobs.c.state, sa.func.count().label("n")).group_by(jobs.c.state)
        if owner is not None:
            query = query.where(jobs.c.owner == owner)
        with self.database.read() as connection:
            return {row.state: row.n for row in connection.execute(query)}

    def uses_volume(self, volume: str) -> bool:
        """Whether a job that is queued or runs reads this volume, or names it in its spec."""
        # Ids are random: a text that holds one means it.
        named = sa.cast(jobs.c.spec, sa.Text).contains(volume, autoescape=True)
        query = (
            sa.select(jobs.c.id)
            .where(jobs.c.state.in_(["queued", *ACTIVE_STATES]))
            .where(sa.or_(jobs.c.volume == volume, named))
            .limit(1)
        )
        with self.database.read() as connection:
            return connection.execute(query).first() is not None

    def view(self, queued_id: str | None = None) -> QueueView:
        """Positions and estimates of all queued and running jobs, at most a moment old.

        Args:
            queued_id: a job that waits: a view that is too old to know it will not do.
        """
        return self._views.get(queued_id)

    def answers_at_once(self, job_id: str) -> bool:
        """Whether a job and its place can be read in less time than the way to a thread takes.

        So it is where the database is a file of this machine, and nobody changed the queue since a
        view of it was made.
        """
        return self.database.dialect == "sqlite" and self._views.has_ready(job_id)

    def position(self, job_id: str) -> int | None:
        """Jobs ahead of it in the queue, plus one; None for a job that does not wait.

        Ask for jobs that are queued: for others nothing is ever found, and that takes longer.
        """
        return self._views.get(job_id).position(job_id)

    def eta_s(self, job_id: str) -> float | None:
        """Expected seconds until it starts (queued) or ends (running); None = not known."""
        return self._views.get().eta_s(job_id)

    # --- What people ask for ------------------------------------------------------------------

    def cancel(self, job_id: str) -> JobRecord:
        """A queued job is cancelled at once, a running one is asked to stop.

        Raises:
            UnknownIdError: when there is no such job.
            ConflictError: when it has ended already.
        """
        return self._apply(job_id, Cancel(now=self.clock()))

    def cancel_batch(self, batch_id: str) -> Sequence[JobRecord]:
        """Cancel all jobs of a batch that have not ended; those that changed.

        Raises:
            UnknownIdError: when there is no such batch.
        """
        found = self.get_batch(batch_id)
        changed: list[JobRecord] = []
        for job_id in found.jobs:
            try:
                changed.append(self.cancel(job_id))
            except ConflictError:
                continue
        return changed

    def retry(self, job_id: str) -> JobRecord:
        """Queue a job again that failed, was cancelled or was interrupted; it resumes.

        Raises:
            UnknownIdError: when there is no such job.
            ConflictError: when it is queued, runs or has finished.
            QuotaError: when the owner has as many jobs in the queue as allowed.
        """

        def work(connection: Connection) -> JobRecord:
            job = read_job(connection, job_id, lock=True)
            after = apply(job, Retry(now=self.clock()))
            user = users.lock_user(connection, job.owner, self.clock())
            users.check_queue(connection, user, 1, self.limits)
            return self._write(connection, job, after)

        return self._changed(work)

    def delete(self, job_id: str) -> JobRecord:
        """Forget a job that has ended; its last record.

        Raises:
            UnknownIdError: when there is no such job.
            ConflictError: when it has not ended.
        """

        def work(connection: Connection) -> JobRecord:
            job = read_job(connection, job_id, lock=True)
            if not job.is_final:
                raise ConflictError(
                    f"job {job_id} is {job.state}: only a job that has ended can be removed",
                    hint="cancel it first",
                    details={"job": job_id, "state": job.state},
                )
            connection.execute(jobs.delete().where(jobs.c.id == job_id))
            if job.batch is not None:
                batch.delete_if_empty(connection, job.batch)
            return job

        return self._changed(work)

    def set_user(
        self,
        owner: str,
        *,
        weight: float | None = None,
        max_queued: int | None = None,
        max_running: int | None = None,
    ) -> None:
        """Give a user another share or other limits than the rest.

        Raises:
            InputError: for a weight that is not above 0.
        """
        values = {"weight": weight, "max_queued": max_queued, "max_running": max_running}
        self._changed(lambda connection: users.update(connection, owner, values, self.clock()))


def _by_key(connection: Connection, job: NewJob) -> sa.RowMapping | None:
    if job.idempotency_key is None:
        return None
    query = sa.select(jobs).where(
        jobs.c.owner == job.owner, jobs.c.idempotency_key == job.idempotency_key
    )
    return connection.execute(query).mappings().first()


def _number_of(cursor: str) -> int:
    if not cursor.isdecimal() or len(cursor) > 18:
        raise InputError(
            f"expected a cursor from a list of jobs, got {cursor[:40]!r}",
            hint="leave it out to begin with the newest job",
        )
    return int(cursor)
