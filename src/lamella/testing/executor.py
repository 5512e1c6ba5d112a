"""What everything that runs attempts promises, as a pytest class to inherit.

Examples:
    An executor proves itself by being made::

        class TestLocal(ExecutorContract):
            def make_executor(self, folder):
                return LocalExecutor(LocalOptions(n_workers=2, grace_s=self.grace_s))
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lamella.core.errors import RunError
from lamella.jobs.attempt import Outcome, Work, attempt_path, begin_attempt
from lamella.jobs.executor import Executor, Report
from lamella.jobs.log import JobLog
from lamella.testing import job_functions as does

__all__ = [
    "ExecutorContract",
    "check_numbers",
    "ends_of",
    "id_of",
    "is_running",
    "messages_of",
    "pid_of",
    "told_in",
    "wait_for",
]

_LONG_S = 30.0


class ExecutorContract(ABC):
    """What the laws of :class:`lamella.jobs.executor.Executor` mean.

    Attributes:
        grace_s: what the executor was told to give a cancelled attempt, seconds.
        n_workers: how many attempts it runs at once, at least 2.
    """

    grace_s: ClassVar[float] = 1.0
    n_workers: ClassVar[int] = 2

    @abstractmethod
    def make_executor(self, folder: Path) -> Executor:
        """An executor with ``n_workers`` workers and without a tag; ``folder`` is for its files."""

    @pytest.fixture
    def executor(self, tmp_path: Path) -> Iterator[Executor]:
        """An executor whose workers are ready, closed at the end."""
        executor = self.make_executor(tmp_path)
        try:
            wait_for(lambda: executor.capacity().get("cpu") == self.n_workers, "ready workers")
            yield executor
            # Where workers outlive their executor, the next test finds them free.
            for path in tmp_path.glob("*/attempt"):
                executor.cancel(id_of(path.parent), int(path.read_text().split()[0]))
            wait_for(lambda: executor.capacity().get("cpu") == self.n_workers, "free workers")
        finally:
            executor.close(0.0)

    # --- What the tests do --------------------------------------------------------------------

    def begin(
        self,
        executor: Executor,
        folder: Path,
        function: Callable[..., Any],
        *,
        attempt: int = 1,
        **document: Any,
    ) -> Path:
        """Start an attempt at the job ``folder``; returns the folder."""
        begin_attempt(folder, attempt)
        executor.start(self.make_work(folder, function, attempt, document))
        return folder

    def make_work(
        self, folder: Path, function: Callable[..., Any], attempt: int, document: dict[str, Any]
    ) -> Work:
        """An attempt at the job ``folder``."""
        name = does.name_of(function)
        return Work(id_of(folder), attempt, "test", name, document, folder, lock_wait_s=20.0)

    def end_of(self, executor: Executor, folder: Path, attempt: int = 1) -> Report:
        """Wait for the last report of an attempt."""
        return ends_of(executor, [(id_of(folder), attempt)])[0]

    # --- From start to outcome ----------------------------------------------------------------

    def test_work_is_done_and_its_outcome_is_there_before_it_is_told(
        self, executor: Executor, tmp_path: Path
    ) -> None:
        job = self.begin(executor, tmp_path / "a", does.count, n=25)
        report = self.end_of(executor, job)
        outcome = outcome_of(job)
        assert report.kind == "outcome"
        assert (outcome.status, outcome.result) == ("finished", {"n": 25, "began_at": 0})
        assert outcome.n_log_bytes == attempt_path(job, 1).stat().st_size
        log = JobLog(job)
        log.ingest(1)
        assert told_in(log) == list(range(25))

    def test_events_are_told_while_the_work_goes_on(
        self, executor: Executor, tmp_path: Path
    ) -> None:
        job = self.begin(executor, tmp_path / "a", does.wait)
        log, deadline = JobLog(job), time.monotonic() + _LONG_S
        while not log.last and time.monotonic() < deadline:
            for report in executor.poll(1.0):
                assert report.kind == "events"
                log.ingest(report.attempt)
        assert messages_of(log)[0].startswith("pid")

    @pytest.mark.parametrize(
        ("how", "code", "words"),
        [
            ("lamella", "invalid_input", "the moon is full"),
            ("python", "internal_error", "ZeroDivisionError: by zero"),
            ("memory", "run_failed", "out of memory"),
            ("exit", "run_failed", "exit code 3"),
            ("no-json", "internal_error", "JSON"),
        ],
    )
    def test_a_failure_is_an_outcome_that_teaches(
        self, executor: Executor, tmp_path: Path, how: str, code: str, words: str
    ) -> None:
        job = self.begin(executor, tmp_path / "a", does.fail, how=how)
        assert self.end_of(executor, job).kind == "outcome"
        outcome = outcome_of(job)
        assert outcome.status == "failed"
        assert outcome.problem is not None
        assert outcome.problem.code == code
        assert words in outcome.problem.message
        # The same worker goes on with other work.
        wait_for(lambda: executor.capacity().get("cpu") == self.n_workers, "a free worker")

    def test_an_unknown_function_fails(self, executor: Executor, tmp_path: Path) -> None:
        begin_attempt(tmp_path / "a", 1)
        job = tmp_path / "a"
        executor.start(Work(id_of(job), 1, "test", "lamella.jobs:nowhere", {}, job))
        self.end_of(executor, job)
        outcome = outcome_of(job)
        assert outcome.status == "failed"

    def test_what_is_printed_lies_in_the_log_of_the_attempt(
        self, executor: Executor, tmp_path: Path
    ) -> None:
        job = self.begin(executor, tmp_path / "a", does.shout)
        self.end_of(executor, job)
        text = (job / "worker-1.log").read_text()
        assert "by Python" in text
        failed = self.begin(executor, tmp_path / "b", does.fail, how="python")
        self.end_of(executor, failed)
        assert "ZeroDivisionError" in (failed / "worker-1.log").read_text()

    def test_many_jobs_at_once_and_one_after_another(
        self, executor: Executor, tmp_path: Path
    ) -> None:
        waiting = [f"job-{i}" for i in range(3 * self.n_workers)]
        ended: list[Report] = []
        deadline = time.monotonic() + _LONG_S
        while (waiting or len(ended) < 3 * self.n_workers) and time.monotonic() < deadline:
            while waiting and executor.capacity().get("cpu", 0) >= 1:
                self.begin(executor, tmp_path / waiting.pop(), does.count, n=5, pause_s=0.01)
            ended += [report for report in executor.poll(0.2) if report.kind != "events"]
        assert sorted(report.job_id for report in ended) == sorted(
            id_of(tmp_path / f"job-{i}") for i in range(3 * self.n_workers)
        )
        assert {report.kind for report in ended} == {"outcome"}

    def test_capacity_is_what_can_be_started(self, executor: Executor, tmp_path: Path) -> None:
        assert executor.limits()["cpu"] >= self.n_workers
        for i in range(self.n_workers):
            self.begin(executor, tmp_path / f"job-{i}", does.wait)
        assert executor.capacity().get("cpu", 0.0) == 0
        with pytest.raises(RunError, match="free"):
            self.begin(executor, tmp_path / "one-too-many", does.wait)
        busy = {fact.job_id for fact in executor.workers() if fact.state == "busy"}
        assert busy <= {id_of(tmp_path / f"job-{i}") for i in range(self.n_workers)}

    def test_a_tag_that_nobody_has_is_refused(self, executor: Executor, tmp_path: Path) -> None:
        begin_attempt(tmp_path / "a", 1)
        job = tmp_path / "a"
        work = Work(id_of(job), 1, "test", does.name_of(does.wait), {}, job, {"moon": 1.0})
        with pytest.raises(RunError, match="moon"):
            executor.start(work)
        assert "moon" not in executor.limits()

    # --- Cancelling ---------------------------------------------------------------------------

    def test_a_cancelled_attempt_stops_within_the_grace_time(
        self, executor: Executor, tmp_path: Path
    ) -> None:
        job = self.begin(executor, tmp_path / "a", does.wait)
        pid_of(job)
        began = time.monotonic()
        executor.cancel(id_of(job), 1)
        report = self.end_of(executor, job)
        assert time.monotonic() - began < self.grace_s + 10
        outcome = outcome_of(job)
        assert report.kind == "outcome"
        assert outcome.status == "cancelled"

    def test_one_that_ignores_it_is_killed_and_replaced(
        self, executor: Executor, tmp_path: Path
    ) -> None:
        job = self.begin(executor, tmp_path / "a", does.hold, hold_s=_LONG_S)
        pid = pid_of(job)
        executor.cancel(id_of(job), 1)
        report = self.end_of(executor, job)
        assert report.kind == "lost"
        assert report.problem is not None
        assert "not stopped" in report.problem.message
        wait_for(lambda: not is_running(pid), "the end of the worker")
        wait_for(lambda: executor.capacity().get("cpu") == self.n_workers, "another worker")
        other = self.begin(executor, tmp_path / "b", does.count, n=3)
        assert self.end_of(executor, other).kind == "outcome"

    def test_cancelling_what_does_not_run_here_does_nothing(
        self, executor: Executor, tmp_path: Path
    ) -> None:
        executor.cancel("nobody", 1)
        job = self.begin(executor, tmp_path / "a", does.count, n=3, pause_s=0.05)
        executor.cancel(id_of(job), 7)
        self.end_of(executor, job)
        outcome = outcome_of(job)
        assert outcome.status == "finished"

    # --- Killing ------------------------------------------------------------------------------

    def test_a_worker_killed_at_any_moment_loses_its_attempt_and_not_one_event(
        self, executor: Executor, tmp_path: Path
    ) -> None:
        seed = random.randrange(1 << 30)
        print(f"seed {seed}")  # noqa: T201 - shown by pytest where this fails
        moments = random.Random(seed)
        job, attempt, kinds = tmp_path / "a", 1, []
        document: dict[str, Any] = {"n": 300, "pause_s": 0.001}
        log = JobLog(job)
        while not kinds or kinds[-1] != "outcome":
            assert attempt < 12, "it never finishes"
            self.begin(executor, job, does.count, attempt=attempt, **document)
            if attempt <= 3:
                pid = pid_of(job, attempt)
                time.sleep(moments.uniform(0.0, 0.15))
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            kinds.append(self.end_of(executor, job, attempt).kind)
            log.ingest(attempt)
            attempt += 1
            wait_for(lambda: executor.capacity().get("cpu", 0) >= 1, "another worker")
        told = told_in(log)
        # A number is reported before it is written down, so it may be there once more.
        assert list(dict.fromkeys(told)) == list(range(300)), "an event is lost or out of order"
        assert len(told) <= 300 + len(kinds)
        check_numbers(log)

    def test_an_attempt_that_runs_twice_runs_once(self, executor: Executor, tmp_path: Path) -> None:
        """A scheduler that gives lost work to another worker does not know our attempts."""
        job = tmp_path / "a"
        begin_attempt(job, 1)
        attempt_path(job, 1).write_bytes(b"")
        executor.start(self.make_work(job, does.count, 1, {"n": 3}))
        assert self.end_of(executor, job).kind == "lost"
        assert Outcome.read(job, 1) is None
        assert not (job / "told.txt").exists()

    def test_an_orphan_never_writes_once_a_newer_attempt_has_begun(
        self, executor: Executor, tmp_path: Path
    ) -> None:
        """The first attempt never asks whether to stop; the second waits until it has ended."""
        job = self.begin(executor, tmp_path / "a", does.hold, hold_s=0.8)
        pid_of(job)
        self.begin(executor, job, does.write, attempt=2, seconds=0.2)
        reports = ends_of(executor, [(id_of(job), 1), (id_of(job), 2)])
        kinds = {report.attempt: report.kind for report in reports}
        assert kinds[2] == "outcome"
        writers = (job / "writes.txt").read_text().split()
        assert set(writers) == {"1", "2"}
        assert writers == sorted(writers), "the attempts wrote at the same time"
        log = JobLog(job)
        log.ingest(2)
        said = [message for message in messages_of(log) if message.startswith("attempt")]
        assert said == sorted(said)

    def test_an_orphan_that_asks_stops_by_itself(self, executor: Executor, tmp_path: Path) -> None:
        job = self.begin(executor, tmp_path / "a", does.wait)
        pid_of(job)
        self.begin(executor, job, does.count, attempt=2, n=4)
        kinds = {
            report.attempt: report.kind
            for report in ends_of(executor, [(id_of(job), 1), (id_of(job), 2)])
        }
        assert kinds == {1: "lost", 2: "outcome"}
        assert Outcome.read(job, 1) is None

    # --- Closing ------------------------------------------------------------------------------

    def test_a_waiting_poll_can_be_woken(self, executor: Executor) -> None:
        executor.poll(0.0)
        threading.Timer(0.2, executor.wake).start()
        began = time.monotonic()
        deadline = began + _LONG_S
        while time.monotonic() - began < 0.15 and time.monotonic() < deadline:
            assert not executor.poll(_LONG_S)
        assert time.monotonic() - began < 5.0

    def test_what_is_never_adopted_does_not_run(self, executor: Executor, tmp_path: Path) -> None:
        assert not executor.adopt(self.make_work(tmp_path / "a", does.wait, 1, {}))


def id_of(folder: Path) -> str:
    """The job in a folder; the same id never means another job, whoever remembers it."""
    return f"{folder.name}-{zlib.crc32(str(folder).encode()):08x}"


def outcome_of(folder: Path) -> Outcome:
    """The outcome that the first attempt at a job has left."""
    outcome = Outcome.read(folder, 1)
    assert outcome is not None, "there is no outcome"
    return outcome


def ends_of(executor: Executor, keys: Sequence[tuple[str, int]]) -> list[Report]:
    """Wait for the last reports of some attempts; exactly one of each."""
    found: list[Report] = []
    deadline = time.monotonic() + _LONG_S
    while len(found) < len(keys) and time.monotonic() < deadline:
        found += [report for report in executor.poll(0.5) if report.kind != "events"]
    assert sorted((report.job_id, report.attempt) for report in found) == sorted(keys)
    return found


def wait_for(holds: Callable[[], bool], what: str, timeout_s: float = _LONG_S) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.01)


def messages_of(log: JobLog) -> list[str]:
    """The words of a log's lines for people."""
    documents = [json.loads(line) for _, line in log.read()]
    return [document["message"] for document in documents if document["type"] == "log"]


def told_in(log: JobLog) -> list[int]:
    """The numbers that :func:`lamella.testing.job_functions.count` reported."""
    return [int(text.split()[1]) for text in messages_of(log) if text.startswith("told")]


def check_numbers(log: JobLog) -> None:
    """Events are numbered from 1 without gaps, outside and inside."""
    rows = log.read()
    assert [number for number, _ in rows] == list(range(1, len(rows) + 1))
    assert [json.loads(line)["number"] for _, line in rows] == list(range(1, len(rows) + 1))


def pid_of(job: Path, attempt: int = 1) -> int:
    """Process id of the worker that runs an attempt; waits until it says so."""
    path = attempt_path(job, attempt)
    wait_for(lambda: path.exists() and path.read_bytes().count(b"\n") > 0, "the first event")
    message = json.loads(path.read_bytes().split(b"\n")[0])["message"]
    return int(message.split()[1])


def is_running(pid: int) -> bool:
    """Whether a process is there (and is not only waiting to be forgotten)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with suppress(OSError):
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    return True
