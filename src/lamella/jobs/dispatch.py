"""Brings queue and executor together: claims jobs, hears their events, records how they end.

Two threads: one only listens, so that an event reaches those who wait for it within milliseconds;
the other makes every change of the queue. What is true is in the store and in the jobs' folders;
this object can be killed at any instant, and the next one goes on from there::

    claim ─▶ attempt file ─▶ state event ─▶ executor ─▶ events ─▶ log     (again and again)
                                               │
                                               └▶ outcome file ─▶ rest of the events ─▶ store
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from lamella.core.errors import (
    ConflictError,
    InputError,
    LamellaError,
    StorageError,
    UnknownIdError,
)
from lamella.jobs.attempt import Outcome, Work, begin_attempt
from lamella.jobs.executor import Executor, Report
from lamella.jobs.log import JobLog, LogCache
from lamella.jobs.machine import JobRecord, LeaseLostError
from lamella.jobs.store import JobStore
from lamella.wire.event import StateEvent
from lamella.wire.problem import Problem

__all__ = ["DispatchOptions", "Dispatcher", "Listener"]

_LOGGER = logging.getLogger(__name__)
_POLL_S = 0.5
_PROGRESS_FIELDS = ("stage", "done", "total", "unit", "eta_s")
_TROUBLE_S = 2.0
_GONE = Problem(
    code="run_failed",
    message="the worker is gone",
    hint="what is finished is kept: the next attempt goes on from there",
)


class Listener(Protocol):
    """Who wants to know at once. Called from the dispatcher's threads: return quickly."""

    def job_changed(self, job_id: str) -> None:
        """The state of a job is another."""
        ...

    def events_added(self, job_id: str) -> None:
        """A job's log has more events."""
        ...


@dataclass(frozen=True, slots=True)
class DispatchOptions:
    """How often, and how long.

    Attributes:
        lease_s: how long a job belongs to this server without a sign of life, seconds.
        idle_s: how often the queue is looked at when nobody says that there is something new.
        renew_s: how often leases are renewed and progress is written to the queue.
        log_wait_s: how long to wait for the last events of an attempt that has ended, where a
            network file system shows them late.
        is_shared: the jobs' folders lie on a network file system.
    """

    lease_s: float = 60.0
    idle_s: float = 1.0
    renew_s: float = 5.0
    log_wait_s: float = 10.0
    is_shared: bool = False


@dataclass
class _Held:
    """An attempt that this server answers for."""

    work: Work
    log: JobLog
    is_told_to_stop: bool = False


class Dispatcher:
    """Runs the jobs of a store on an executor, between :meth:`start` and :meth:`stop`.

    Args:
        store: the queue.
        executor: what runs attempts; closed by :meth:`stop`.
        folder_of: the folder of a job, by its id; made when it is needed.
        functions: for every kind of job, ``package.module:function`` (see
            :mod:`lamella.jobs.work`).
        listener: told what changes.
        prepare: makes the document for the worker from a job, in this process; the job's spec
            unless given. What it raises is how the job fails.
        options: how often, and how long.
    """

    def __init__(
        self,
        store: JobStore,
        executor: Executor,
        *,
        folder_of: Callable[[str], Path],
        functions: Mapping[str, str],
        listener: Listener | None = None,
        prepare: Callable[[JobRecord], dict[str, Any]] | None = None,
        options: DispatchOptions | None = None,
    ) -> None:
        self.store = store
        self.executor = executor
        self.options = options or DispatchOptions()
        self._folder_of = folder_of
        self._functions = dict(functions)
        self._listener = listener
        self._prepare = prepare or (lambda record: dict(record.spec))
        self._logs = LogCache(folder_of)
        self._held: dict[str, _Held] = {}
        self._places: dict[str, int] = {}
        self._endings: queue.SimpleQueue[Report] = queue.SimpleQueue()
        self._attention = threading.Event()
        self._state_lock = threading.Lock()
        self._is_stopping = self._is_silent = self._is_over = False
        self._renew_at = self._expired_at = self._claim_at = 0.0
        self._listening = threading.Thread(target=self._listen, name="job-events", daemon=True)
        self._working = threading.Thread(target=self._serve, name="job-queue", daemon=True)

    def start(self) -> None:
        """Take up what a former server left, and begin to work."""
        self._recover()
        self._listening.start()
        self._working.start()

    def stop(self, grace_s: float = 10.0) -> None:
        """Take no more jobs, let those that run stop cleanly, and put them back into the queue.

        Attempts on a cluster go on; the next server adopts them.
        """
        self._is_stopping = True
        self.executor.close(grace_s)
        # What the executor had still to say is heard first, then written down.
        self._is_silent = True
        self.executor.wake()
        self._listening.join(timeout=grace_s + 10.0)
        self._is_over = True
        self._attention.set()
        self._working.join(timeout=grace_s + 10.0)

    def wake(self) -> None:
        """Look at the queue now: something was added, cancelled or retried."""
        self._attention.set()

    def log(self, job_id: str) -> JobLog:
        """The events of a job."""
        return self._logs.get(job_id)

    def changed(self, job_id: str) -> None:
        """Say in a job's log in which state it is, unless that was the last thing said of it.

        Call it after every change of a job that was not made here. It also mends the log of a job
        whose server was killed between the change and the word about it.
        """
        with self._state_lock:
            try:
                record = self.store.get(job_id)
            except UnknownIdError:
                return
            log = self.log(job_id)
            is_news = log.last_state != (record.state, record.attempt)
            if is_news:
                self._folder_of(job_id).mkdir(parents=True, exist_ok=True)
                log.append(self._state_event(record))
        if is_news:
            self._tell("events_added", job_id)
        self._tell("job_changed", job_id)

    def placed(self, job_id: str) -> None:
        """Say in the log of a job that waits where it stands now, if that is another place.

        For jobs that somebody watches: to say it of every job each time that one ends would be
        the square of their number in lines.
        """
        log = self.log(job_id)
        if (known := log.last_state) is None or known[0] != "queued":
            return
        if self.store.position(job_id) in (None, self._places.get(job_id)):
            return
        with self._state_lock:
            try:
                record = self.store.get(job_id)
            except UnknownIdError:
                return
            if log.last_state != (record.state, record.attempt) or record.state != "queued":
                return
            log.append(self._state_event(record))
        self._tell("events_added", job_id)

    def _state_event(self, record: JobRecord) -> StateEvent:
        place = self.store.position(record.id) if record.state == "queued" else None
        if place is None:
            self._places.pop(record.id, None)
        else:
            self._places[record.id] = place
        return StateEvent(
            state=record.state,
            attempt=record.attempt,
            position=place,
            eta_s=None if place is None else self.store.eta_s(record.id),
            problem=record.problem,
            message=record.problem.message if record.problem else "",
        )

    # --- Listening ----------------------------------------------------------------------------

    def _listen(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._is_silent
            reports = self.executor.poll(0.0 if is_last else _POLL_S)
            for report in reports:
                if report.kind == "events":
                    self._take_over(report)
                else:
                    self._endings.put(report)
            if not any(report.kind == "events" for report in reports):
                # An ending, or a word that there is room for more.
                self._attention.set()

    def _take_over(self, report: Report) -> None:
        held = self._held.get(report.job_id)
        if held is None or held.work.attempt != report.attempt:
            return
        try:
            n_new = held.log.ingest(report.attempt)
        except StorageError as error:
            # Nothing is lost: what cannot be taken over now is taken over later.
            _LOGGER.error("events of job %s cannot be recorded: %s", report.job_id, error)  # noqa: TRY400
            return
        if n_new:
            self._tell("events_added", report.job_id)

    def _tell(self, what: str, job_id: str) -> None:
        if self._listener is None:
            return
        try:
            getattr(self._listener, what)(job_id)
        except Exception:
            _LOGGER.exception("a listener failed at %s of job %s", what, job_id)

    # --- Working ------------------------------------------------------------------------------

    def _serve(self) -> None:
        steps = (
            self._settle_endings,
            self._pass_cancellations_on,
            self._renew,
            self._look_for_expired,
            self._claim,
        )
        is_last = False
        while not is_last:
            is_last = self._is_over
            for step in steps:
                try:
                    step()
                except Exception:
                    # A database that is away for a moment must not end the server's work.
                    _LOGGER.exception("the queue cannot be served just now; it is tried again")
            if not is_last:
                self._attention.wait(self.options.idle_s)
                self._attention.clear()
        self._let_go()

    def _claim(self) -> None:
        while not self._is_stopping and time.monotonic() >= self._claim_at:
            free = self.executor.capacity()
            if free.get("cpu", 0.0) < 1:
                return
            record = self.store.claim(self.executor.name, free, self.options.lease_s)
            if record is None:
                return
            self._begin(record)

    def _begin(self, record: JobRecord) -> None:
        held = self._hold(record)
        try:
            self._check_possible(record)
            held.work = replace(held.work, document=self._prepare(record))
        except Exception as error:
            if not isinstance(error, LamellaError):
                _LOGGER.exception("job %s could not be prepared", record.id)
            fail = partial(self.store.fail, record.id, record.attempt, Problem.from_error(error))
            self._end(held, fail)
            return
        try:
            begin_attempt(held.work.folder, record.attempt)
            self.changed(record.id)
            self.executor.start(held.work)
        except LamellaError as error:
            # Not the job's fault: a full disk, a worker that has died since it was counted, a
            # folder that remembers a newer attempt (a database put back from a copy).
            _LOGGER.warning("job %s could not be started: %s", record.id, error)
            is_grave = not isinstance(error, ConflictError)
            self._claim_at = time.monotonic() + (_TROUBLE_S if is_grave else 0.0)
            self._end(held, partial(self.store.release, record.id, record.attempt))

    def _check_possible(self, record: JobRecord) -> None:
        if record.kind not in self._functions:
            raise InputError(
                f"this server runs no jobs of kind {record.kind!r}",
                hint=f"it runs {', '.join(sorted(self._functions))}",
            )
        limits = self.executor.limits()
        too_much = {
            name: amount
            for name, amount in record.resources.items()
            if amount > limits.get(name, 0.0)
        }
        if too_much:
            raise InputError(
                f"the job needs {too_much}, and no worker here has more than {limits}",
                hint="ask for less, or start the server with such workers",
            )

    def _hold(self, record: JobRecord) -> _Held:
        """Answer for an attempt from now on."""
        function = self._functions.get(record.kind, "")
        work = Work(
            job_id=record.id,
            attempt=record.attempt,
            kind=record.kind,
            function=function,
            document={},
            folder=self._folder_of(record.id),
            resources=dict(record.resources),
            is_shared=self.options.is_shared,
        )
        held = _Held(work, self.log(record.id))
        self._held[record.id] = held
        return held

    def _end(self, held: _Held, answer: Callable[[], object]) -> None:
        """Tell the queue how an attempt ended, and answer for it no longer."""
        job_id, attempt = held.work.job_id, held.work.attempt
        try:
            answer()
        except (LeaseLostError, UnknownIdError) as error:
            _LOGGER.info("the end of attempt %d of job %s is void: %s", attempt, job_id, error)
        del self._held[job_id]
        self.changed(job_id)

    # --- Endings ------------------------------------------------------------------------------

    def _settle_endings(self) -> None:
        again: list[Report] = []
        for _ in range(self._endings.qsize()):
            report = self._endings.get_nowait()
            try:
                self._settle(report)
            except Exception:
                _LOGGER.exception("the end of job %s is recorded later", report.job_id)
                again.append(report)
        for report in again:
            self._endings.put(report)

    def _settle(self, report: Report) -> None:
        held = self._held.get(report.job_id)
        if held is None or held.work.attempt != report.attempt:
            return
        job_id, attempt = report.job_id, report.attempt
        outcome = Outcome.read(held.work.folder, attempt) or report.outcome
        self._drain(held, outcome)
        if outcome is not None and outcome.status == "finished":
            self._end(held, lambda: self.store.finish(job_id, attempt, outcome.result))
            return
        problem = report.problem or (outcome.problem if outcome else None) or _GONE
        if report.kind == "failed" or (outcome is not None and outcome.status == "failed"):
            self._end(held, lambda: self.store.fail(job_id, attempt, problem))
            return
        self._end(held, lambda: self._give_back(held, problem))

    def _give_back(self, held: _Held, problem: Problem) -> None:
        """An attempt stopped before its end: cancelled, or to go on in another attempt."""
        job_id, attempt = held.work.job_id, held.work.attempt
        state = self.store.renew(job_id, attempt, self.options.lease_s, _progress_of(held.log))
        if state == "cancelling":
            self.store.stopped(job_id, attempt)
        elif self._is_stopping:
            self.store.release(job_id, attempt)
        else:
            self.store.interrupt(job_id, attempt, problem)

    def _drain(self, held: _Held, outcome: Outcome | None) -> None:
        """Take over the rest of what an attempt reported."""
        n_bytes = 0 if outcome is None else outcome.n_log_bytes
        deadline = time.monotonic() + self.options.log_wait_s
        while True:
            n_new = held.log.ingest(held.work.attempt)
            if n_new:
                self._tell("events_added", held.work.job_id)
            if held.log.taken_over(held.work.attempt) >= n_bytes:
                return
            if time.monotonic() > deadline:
                _LOGGER.error("the last events of job %s cannot be seen here", held.work.job_id)
                return
            time.sleep(0.05)

    # --- Leases -------------------------------------------------------------------------------

    def _pass_cancellations_on(self) -> None:
        if not self._held:
            return
        for record in self.store.list(states=("cancelling",), limit=1000).jobs:
            held = self._held.get(record.id)
            if held is not None and not held.is_told_to_stop:
                held.is_told_to_stop = True
                self.changed(record.id)
                self.executor.cancel(record.id, held.work.attempt)

    def _renew(self) -> None:
        if time.monotonic() < self._renew_at:
            return
        self._renew_at = time.monotonic() + self.options.renew_s
        for held in list(self._held.values()):
            job_id, attempt = held.work.job_id, held.work.attempt
            try:
                self.store.renew(job_id, attempt, self.options.lease_s, _progress_of(held.log))
            except (LeaseLostError, UnknownIdError):
                held.is_told_to_stop = True
                self.executor.cancel(job_id, attempt)

    def _look_for_expired(self) -> None:
        """Jobs of a server that is gone for good: take their outcomes, or let them go on."""
        if time.monotonic() < self._expired_at:
            return
        self._expired_at = time.monotonic() + self.options.lease_s / 4
        for record in self.store.expired():
            held = self._held.get(record.id)
            if held is None or held.work.attempt != record.attempt:
                self._hold(record)
                self._settle(Report(record.id, record.attempt, "lost", _GONE))

    def _recover(self) -> None:
        """Take up what a former server under this name was doing when it ended."""
        for record in self._left_behind():
            try:
                held = self._hold(record)
                is_over = Outcome.read(held.work.folder, record.attempt) is not None
                if is_over:
                    self._endings.put(Report(record.id, record.attempt, "outcome"))
                elif not self.executor.adopt(held.work):
                    self._drain(held, None)
                    release = partial(self.store.release, record.id, record.attempt)
                    self._end(held, release)
            except Exception:
                # Its lease runs out: it is looked at again then.
                _LOGGER.exception("job %s cannot be taken up", record.id)
                self._held.pop(record.id, None)

    def _left_behind(self) -> list[JobRecord]:
        found: list[JobRecord] = []
        cursor = None
        while True:
            page = self.store.list(states=("running", "cancelling"), limit=500, cursor=cursor)
            found += [record for record in page.jobs if record.worker == self.executor.name]
            cursor = page.next_cursor
            if cursor is None:
                return found

    def _let_go(self) -> None:
        """Put back what has not ended when the server does."""
        if self.executor.outlives_server:
            return
        for held in list(self._held.values()):
            try:
                self._drain(held, None)
                self._end(held, partial(self._give_back, held, _GONE))
            except Exception:
                _LOGGER.exception("job %s is put back when the server is back", held.work.job_id)


def _progress_of(log: JobLog) -> dict[str, Any] | None:
    progress = log.last_progress
    return None if progress is None else {name: progress[name] for name in _PROGRESS_FIELDS}
