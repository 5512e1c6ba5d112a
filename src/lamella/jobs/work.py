"""What happens inside a worker: a function is called, reports, is asked to stop, and ends.

A job's function takes a document and a :class:`JobContext` and returns JSON values::

    def count(document: dict, context: JobContext) -> dict:
        for i in range(document["n"]):
            context.check()
            context.emit(ProgressEvent(stage="counting", done=i, total=document["n"]))
        return {"counted": document["n"]}

Which files it leaves, and in which order, is told in :mod:`lamella.jobs.attempt`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lamella.core.errors import LamellaError, RunCancelledError, RunError
from lamella.core.progress import Progress
from lamella.jobs.attempt import Control, Outcome, OutcomeStatus, Work, claim_attempt, read_control
from lamella.jobs.files import try_lock, unlock_file
from lamella.wire.event import ProgressEvent
from lamella.wire.problem import Problem

__all__ = ["JobContext", "JobFunction", "run_work"]

JobFunction = Callable[[dict[str, Any], "JobContext"], Mapping[str, Any] | None]

# How old an answer to "shall I stop?" may be; reading a small file that often costs nothing.
_CONTROL_S = 0.05
_LOCK_POLL_S = 0.05


# --- Where a function reports -------------------------------------------------------------------


class JobContext:
    """An event sink that writes to the job's folder, and knows when to stop.

    A :class:`lamella.wire.event.EventSink`; safe to use from several threads.

    Args:
        work: the attempt.
        stream: file descriptor of its event file, from :func:`claim_attempt`; closed by
            :meth:`close`.
        wake: called after every line, to tell whoever reads the file; must not block.
        is_cancelled: a faster way than the folder to learn that the attempt is to stop.
    """

    def __init__(
        self,
        work: Work,
        stream: int,
        wake: Callable[[], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self._work = work
        self._stream = stream
        self._wake = wake
        self._is_told = is_cancelled
        self._lock = threading.Lock()
        self._pending = bytearray()
        self._n_bytes = 0
        self._asked_at = -1.0
        self._control = Control(work.attempt)

    @property
    def folder(self) -> Path:
        """The job's folder."""
        return self._work.folder

    @property
    def job_id(self) -> str:
        """The job."""
        return self._work.job_id

    @property
    def attempt(self) -> int:
        """How often the job was started, this time included."""
        return self._work.attempt

    @property
    def resources(self) -> Mapping[str, float]:
        """What the attempt holds besides a place to run, such as ``{"gpu": 1}``."""
        return self._work.resources

    @property
    def is_overtaken(self) -> bool:
        """Whether a newer attempt has begun, so that nothing may be written any more."""
        return self._newest().attempt > self._work.attempt

    @property
    def is_cancelled(self) -> bool:
        """Whether someone asked this attempt to stop."""
        is_told = self._is_told is not None and self._is_told()
        return is_told or self._newest().is_cancelled

    @property
    def n_log_bytes(self) -> int:
        """Bytes reported so far, all of them on disk."""
        return self._n_bytes

    def emit(self, event: Any, /) -> None:
        """Report an event, or a plain ``Progress``; it outlives this process from here on."""
        if isinstance(event, Progress):
            event = ProgressEvent(
                stage=event.stage, done=event.done, total=event.total, unit=event.unit
            )
        if not event.time_s:
            event = event.model_copy(update={"time_s": time.time()})
        line = json.dumps(
            event.model_dump(mode="json"), ensure_ascii=False, separators=(",", ":")
        ).encode()
        with self._lock:
            if self._stream < 0 or self.is_overtaken:
                return
            self._pending += line + b"\n"
            self._write()
        if self._wake is not None:
            self._wake()

    def check(self) -> None:
        """Stop here if someone asked for it.

        Raises:
            RunCancelledError: the job was cancelled, or a newer attempt has taken over.
        """
        if self.is_overtaken:
            raise RunCancelledError(
                f"a newer attempt has overtaken attempt {self._work.attempt}",
                hint="nothing is lost: the newer attempt goes on with the same work",
            )
        if self.is_cancelled:
            raise RunCancelledError("cancelled", hint="retry the job to go on where it stopped")

    def close(self) -> None:
        """Write what a full disk held back, if it can be written now, and close the file."""
        with self._lock:
            self._write()
            if self._stream >= 0:
                os.close(self._stream)
                self._stream = -1

    def _write(self) -> None:
        """Write pending lines; what a full disk refuses is kept and comes first next time."""
        with contextlib.suppress(OSError):
            while self._pending and self._stream >= 0:
                n_bytes = os.write(self._stream, self._pending)
                self._n_bytes += n_bytes
                del self._pending[:n_bytes]
            if self._work.is_shared and self._stream >= 0:
                os.fsync(self._stream)

    def _newest(self) -> Control:
        now = time.monotonic()
        if now - self._asked_at >= _CONTROL_S:
            self._asked_at = now
            control = read_control(self._work.folder)
            # A file that cannot be read just now says nothing new; neither wish is ever withdrawn.
            if control.attempt >= self._work.attempt:
                self._control = control
        return self._control


# --- From work to outcome -----------------------------------------------------------------------


def run_work(
    work: Work,
    wake: Callable[[], None] | None = None,
    is_cancelled: Callable[[], bool] | None = None,
) -> Outcome:
    """Call the function of an attempt in this process, and leave the outcome in its folder.

    Args:
        work: the attempt.
        wake: called after every reported event.
        is_cancelled: a faster way than the folder to learn that the attempt is to stop.

    Returns:
        The outcome. It is on disk before this returns, unless the status is ``interrupted``.

    Raises:
        StorageError: when the outcome cannot be written.
    """
    stream = claim_attempt(work.folder, work.attempt)
    if stream is None:
        return _interrupted(work, f"attempt {work.attempt} was begun by another process")
    context = JobContext(work, stream, wake, is_cancelled)
    try:
        with _only_worker(work, context) as is_ours:
            if not is_ours:
                return _interrupted(
                    work,
                    f"an earlier attempt still holds the job's folder after {work.lock_wait_s:g} s",
                    hint="a worker that cannot be reached may still be running: end it by hand",
                )
            outcome = _call(work, context)
            if outcome.status != "interrupted":
                outcome.write(work.folder)
            return outcome
    except RunCancelledError:
        # Called back while it waited for the folder; nothing was done.
        if context.is_overtaken:
            return _interrupted(work, "a newer attempt took over")
        outcome = Outcome(work.attempt, "cancelled")
        outcome.write(work.folder)
        return outcome
    finally:
        context.close()


def _call(work: Work, context: JobContext) -> Outcome:
    result: dict[str, Any] | None = None
    problem: Problem | None = None
    status: OutcomeStatus = "finished"
    try:
        context.check()
        result = dict(_resolve(work.function)(dict(work.document), context) or {})
        json.dumps(result, allow_nan=False)
    except (RunCancelledError, KeyboardInterrupt):
        status, result = "cancelled", None
    except BaseException as error:  # noqa: BLE001 - whatever it was, the job's owner must hear of it
        traceback.print_exc()
        status, result, problem = "failed", None, _problem_of(error)
    context.close()
    if status != "finished" and context.is_overtaken:
        return _interrupted(work, "a newer attempt took over")
    return Outcome(work.attempt, status, result, problem, context.n_log_bytes)


def _resolve(name: str) -> JobFunction:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def _problem_of(error: BaseException) -> Problem:
    if isinstance(error, MemoryError) and not isinstance(error, LamellaError):
        error = RunError(
            f"the worker ran out of memory {error}".rstrip(),
            hint="use a smaller tile, or give the worker more memory",
        )
    if isinstance(error, SystemExit):
        error = RunError(f"the job's function left with exit code {error.code}")
    return Problem.from_error(error)


def _interrupted(work: Work, message: str, hint: str | None = None) -> Outcome:
    problem = Problem(code="run_failed", message=message, hint=hint)
    return Outcome(work.attempt, "interrupted", problem=problem)


@contextmanager
def _only_worker(work: Work, context: JobContext) -> Iterator[bool]:
    """Hold the job's folder, so that an orphan of an earlier attempt has stopped writing.

    Yields:
        Whether it was had within ``work.lock_wait_s``.

    Raises:
        RunCancelledError: while waiting.
    """
    with (work.folder / "worker.lock").open("ab") as stream:
        is_ours = _wait_for(stream, work, context)
        try:
            yield is_ours
        finally:
            if is_ours:
                unlock_file(stream)


def _wait_for(stream: IO[bytes], work: Work, context: JobContext) -> bool:
    deadline = time.monotonic() + work.lock_wait_s
    while not try_lock(stream):
        context.check()
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOCK_POLL_S)
    return True
