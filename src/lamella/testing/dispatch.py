"""What a queue with its dispatcher promises, whatever runs the jobs, as a pytest class to inherit.

Examples:
    The embedded queue, in words that a process of its own can run too::

        class TestEmbedded(DispatcherContract):
            def executor_source(self):
                return "from lamella.jobs.local import *; executor = LocalExecutor()"
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lamella.core.errors import InputError, StorageError
from lamella.jobs import dispatch as dispatch_module
from lamella.jobs.attempt import Outcome, Work, begin_attempt
from lamella.jobs.database import open_database, sqlite_url
from lamella.jobs.dispatch import Dispatcher, DispatchOptions
from lamella.jobs.executor import Executor
from lamella.jobs.machine import JobRecord, NewJob
from lamella.jobs.store import JobStore
from lamella.jobs.tables import METADATA
from lamella.jobs.work import run_work
from lamella.testing.executor import check_numbers, is_running, pid_of, told_in, wait_for

__all__ = ["DispatcherContract", "Site"]

FUNCTIONS = {
    name: f"lamella.testing.job_functions:{name}"
    for name in ("count", "crash", "fail", "hold", "wait", "write")
}


@dataclass
class Site:
    """A queue on disk and what is needed to serve it."""

    folder: Path
    url: str
    store: JobStore
    source: str
    heard: list[tuple[str, str]] = field(default_factory=list)
    executors: list[Executor] = field(default_factory=list)

    def folder_of(self, job_id: str) -> Path:
        """The folder of a job."""
        return self.folder / "jobs" / job_id

    def job_changed(self, job_id: str) -> None:
        self.heard.append(("changed", job_id))

    def events_added(self, job_id: str) -> None:
        self.heard.append(("events", job_id))

    def add(self, kind: str, **spec: Any) -> str:
        """Queue a job."""
        return self.store.add(NewJob(owner="ada", kind=kind, spec=spec))[0].id

    def make_executor(self) -> Executor:
        """The executor of this site, its workers ready."""
        names: dict[str, Any] = {}
        exec(self.source, names)
        executor: Executor = names["executor"]
        self.executors.append(executor)
        wait_for(lambda: executor.capacity().get("cpu", 0.0) >= 1, "a ready worker")
        return executor

    def make_dispatcher(self, **changes: Any) -> Dispatcher:
        """A dispatcher of this site that was not started yet."""
        options = DispatchOptions(lease_s=30.0, idle_s=0.2, renew_s=0.3, log_wait_s=5.0)
        known: dict[str, Any] = {
            "folder_of": self.folder_of,
            "functions": FUNCTIONS,
            "listener": self,
            "options": options,
        }
        return Dispatcher(self.store, self.make_executor(), **{**known, **changes})

    @contextmanager
    def serving(self, grace_s: float = 5.0, **changes: Any) -> Iterator[Dispatcher]:
        """A running dispatcher, stopped at the end."""
        dispatcher = self.make_dispatcher(**changes)
        dispatcher.start()
        try:
            yield dispatcher
        finally:
            dispatcher.stop(grace_s)

    @contextmanager
    def server(self) -> Iterator[subprocess.Popen[bytes]]:
        """The same in a process of its own, which may be killed."""
        program = _PROGRAM.format(source=self.source, url=self.url, folder=str(self.folder))
        process = subprocess.Popen([sys.executable, "-c", program])
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def ended(self, job_id: str, timeout_s: float = 40.0) -> JobRecord:
        """Wait until a job has ended and its log says so; its record."""

        def is_over() -> bool:
            return self.store.get(job_id).is_final

        wait_for(is_over, f"the end of job {job_id}", timeout_s)
        return self.store.get(job_id)

    def states_of(self, dispatcher: Dispatcher, job_id: str) -> list[tuple[str, int]]:
        """States that a job's log tells, with attempts."""
        wait_for(
            lambda: (
                (dispatcher.log(job_id).last_state or ("", 0))[0] == self.store.get(job_id).state
            ),
            "the last state event",
        )
        documents = [json.loads(line) for _, line in dispatcher.log(job_id).read()]
        return [(d["state"], d["attempt"]) for d in documents if d["type"] == "state"]


_PROGRAM = """
import os
import time
from pathlib import Path
{source}
from lamella.jobs.database import open_database
from lamella.jobs.dispatch import Dispatcher, DispatchOptions
from lamella.jobs.store import JobStore
from lamella.testing.dispatch import FUNCTIONS
folder = Path({folder!r}) / "jobs"
dispatcher = Dispatcher(
    JobStore(open_database({url!r})),
    executor,
    folder_of=lambda job_id: folder / job_id,
    functions=FUNCTIONS,
    options=DispatchOptions(lease_s=30.0, idle_s=0.2, renew_s=0.3),
)
dispatcher.start()
Path({folder!r}, f"server-{{os.getpid()}}").touch()
time.sleep(600)
"""


class DispatcherContract(ABC):
    """Every job that was taken ends once, whatever is killed when.

    Attributes:
        grace_s: what the executor gives a cancelled attempt, seconds.
    """

    grace_s: ClassVar[float] = 1.0

    @abstractmethod
    def executor_source(self) -> str:
        """Python that makes ``executor``: at least one worker, ``grace_s`` as above."""

    def make_url(self, folder: Path) -> str:
        """Address of an empty database."""
        return sqlite_url(folder / "jobs.db")

    @pytest.fixture
    def site(self, tmp_path: Path) -> Iterator[Site]:
        """An empty queue."""
        url = self.make_url(tmp_path)
        database = open_database(url)
        METADATA.create_all(database.engine)
        site = Site(tmp_path, url, JobStore(database), self.executor_source())
        try:
            yield site
        finally:
            for executor in site.executors:
                executor.close(0.0)
            database.close()

    # --- The ordinary way ---------------------------------------------------------------------

    def test_a_job_runs_and_all_of_it_is_told(self, site: Site) -> None:
        job_id = site.add("count", n=12)
        with site.serving() as dispatcher:
            dispatcher.changed(job_id)
            record = site.ended(job_id)
            states = site.states_of(dispatcher, job_id)
            told = told_in(dispatcher.log(job_id))
            check_numbers(dispatcher.log(job_id))
        assert (record.state, record.result) == ("finished", {"n": 12, "began_at": 0})
        assert told == list(range(12))
        assert states[-2:] == [("running", 1), ("finished", 1)]
        assert ("events", job_id) in site.heard
        assert site.heard[-1] == ("changed", job_id)

    def test_a_failure_is_the_jobs_problem(self, site: Site) -> None:
        job_id = site.add("fail", how="lamella")
        with site.serving() as dispatcher:
            record = site.ended(job_id)
            assert site.states_of(dispatcher, job_id)[-1] == ("failed", 1)
        assert record.state == "failed"
        assert record.problem is not None
        assert (record.problem.code, record.problem.hint) == ("invalid_input", "wait a week")

    def test_many_jobs_each_once(self, site: Site) -> None:
        jobs = [site.add("count", n=3) for _ in range(12)]
        with site.serving() as dispatcher:
            for job_id in jobs:
                assert site.ended(job_id).state == "finished"
                assert told_in(dispatcher.log(job_id)) == [0, 1, 2]
                assert site.states_of(dispatcher, job_id).count(("finished", 1)) == 1

    def test_a_kind_that_nobody_knows_fails(self, site: Site) -> None:
        job_id = site.add("dance")
        with site.serving():
            record = site.ended(job_id)
        assert record.problem is not None
        assert "'dance'" in record.problem.message

    def test_what_preparing_says_is_how_a_job_fails_and_what_it_gives_is_done(
        self, site: Site
    ) -> None:
        def prepare(record: JobRecord) -> dict[str, Any]:
            if record.spec["n"] == 0:
                raise InputError("there is no such volume", hint="upload it again")
            return {"n": 2}

        good, bad = site.add("count", n=7), site.add("count", n=0)
        with site.serving(prepare=prepare):
            assert site.ended(good).result == {"n": 2, "began_at": 0}
            record = site.ended(bad)
        assert record.problem is not None
        assert record.problem.message == "there is no such volume"

    # --- Cancelling ---------------------------------------------------------------------------

    def test_a_running_job_is_cancelled_and_retried(self, site: Site) -> None:
        job_id = site.add("count", n=400, pause_s=0.005)
        with site.serving() as dispatcher:
            pid_of(site.folder_of(job_id))
            site.store.cancel(job_id)
            dispatcher.changed(job_id)
            dispatcher.wake()
            assert site.ended(job_id).state == "cancelled"
            assert site.states_of(dispatcher, job_id)[-2:] == [("cancelling", 1), ("cancelled", 1)]
            site.store.retry(job_id)
            dispatcher.wake()
            assert site.ended(job_id).state == "finished"
            assert told_in(dispatcher.log(job_id)) == list(range(400))

    def test_one_that_does_not_stop_is_cancelled_all_the_same(self, site: Site) -> None:
        job_id = site.add("hold", hold_s=30.0)
        with site.serving() as dispatcher:
            pid = pid_of(site.folder_of(job_id))
            site.store.cancel(job_id)
            dispatcher.wake()
            assert site.ended(job_id).state == "cancelled"
            wait_for(lambda: not is_running(pid), "the end of the worker")
            other = site.add("count", n=3)
            dispatcher.wake()
            assert site.ended(other).state == "finished"

    # --- Workers that die ---------------------------------------------------------------------

    def test_a_crash_is_an_interruption_and_the_job_finishes_once(self, site: Site) -> None:
        job_id = site.add("crash", n_crashes=2)
        with site.serving() as dispatcher:
            record = site.ended(job_id)
            states = site.states_of(dispatcher, job_id)
        assert (record.state, record.attempt, record.result) == ("finished", 3, {"attempt": 3})
        assert states[-1] == ("finished", 3)
        assert [state for state, _ in states].count("finished") == 1

    def test_one_that_always_crashes_fails_in_the_end(self, site: Site) -> None:
        job_id = site.add("crash", n_crashes=99)
        with site.serving():
            record = site.ended(job_id, 60.0)
        assert record.state == "failed"
        assert record.problem is not None
        assert "interrupted 4 times" in record.problem.message

    # --- Servers that end ---------------------------------------------------------------------

    def test_a_server_that_is_stopped_puts_jobs_back_or_lets_them_go_on(self, site: Site) -> None:
        job_id = site.add("count", n=300, pause_s=0.005)
        with site.serving():
            pid_of(site.folder_of(job_id))
        record = site.store.get(job_id)
        assert record.state in ("queued", "running")
        assert record.n_interruptions == 0
        with site.serving() as dispatcher:
            assert site.ended(job_id).state == "finished"
            assert told_in(dispatcher.log(job_id)) == list(range(300))
            check_numbers(dispatcher.log(job_id))

    def test_a_server_killed_at_any_moment_loses_nothing(self, site: Site) -> None:
        seed = random.randrange(1 << 30)
        print(f"seed {seed}")  # noqa: T201 - shown by pytest where this fails
        moments = random.Random(seed)
        jobs = [site.add("count", n=200, pause_s=0.003) for _ in range(3)]
        for _ in range(4):
            with site.server() as process:
                # Also in the middle of taking up what the last one left.
                sign = site.folder / f"server-{process.pid}"
                wait_for(sign.exists, "a server that serves")
                time.sleep(moments.uniform(0.0, 0.8))
                process.send_signal(signal.SIGKILL)
        with site.serving() as dispatcher:
            for job_id in jobs:
                assert site.ended(job_id).state == "finished"
                states = site.states_of(dispatcher, job_id)
                assert [state for state, _ in states].count("finished") == 1
                log = dispatcher.log(job_id)
                check_numbers(log)
                # A worker killed between a report and its note reports the number again.
                assert list(dict.fromkeys(told_in(log))) == list(range(200))
                on_disk = (site.folder_of(job_id) / "told.txt").read_text().split()
                assert on_disk == [str(i) for i in range(200)]

    @pytest.mark.parametrize("is_told", [False, True])
    def test_an_outcome_that_nobody_heard_of_is_taken(self, site: Site, is_told: bool) -> None:
        """The worker had finished; the server was killed before it wrote that down."""
        job_id, name = site.add("count", n=5), site.make_executor().name
        record = site.store.claim(name, {"cpu": 1.0}, 30.0)
        assert record is not None
        folder = site.folder_of(job_id)
        begin_attempt(folder, 1)
        run_work(Work(job_id, 1, "count", FUNCTIONS["count"], {"n": 5}, folder))
        if is_told:
            # ... or after that, and before the log said so.
            site.store.finish(job_id, 1, {"n": 5, "began_at": 0})
        with site.serving() as dispatcher:
            assert site.ended(job_id).result == {"n": 5, "began_at": 0}
            if is_told:
                # Whoever looks at the log mends it.
                dispatcher.log(job_id).ingest(1)
                dispatcher.changed(job_id)
            assert site.states_of(dispatcher, job_id)[-1] == ("finished", 1)
            assert told_in(dispatcher.log(job_id)) == list(range(5))
        assert site.store.get(job_id).attempt == 1

    def test_a_job_of_a_server_that_never_comes_back_goes_on(self, site: Site) -> None:
        job_id = site.add("count", n=5)
        assert site.store.claim("another-server", {"cpu": 1.0}, 0.5) is not None
        options = DispatchOptions(lease_s=1.2, idle_s=0.1, renew_s=0.2)
        with site.serving(options=options):
            record = site.ended(job_id)
        assert (record.state, record.attempt) == ("finished", 2)

    def test_a_server_that_lost_a_job_stops_its_work(self, site: Site) -> None:
        """Another server thinks that we are dead and goes on: our attempt is void."""
        job_id = site.add("wait", limit_s=30.0)
        with site.serving() as dispatcher:
            folder = site.folder_of(job_id)
            pid_of(folder)
            site.store.cancel(job_id)
            site.store.stopped(job_id, 1)
            wait_for(lambda: Outcome.read(folder, 1) is not None, "the end of the work")
            other = site.add("count", n=1)
            dispatcher.wake()
            assert site.ended(other).state == "finished"
            assert site.store.get(job_id).state == "cancelled"

    # --- Trouble ------------------------------------------------------------------------------

    def test_saying_it_twice_changes_nothing(self, site: Site) -> None:
        job_id = site.add("count", n=1)
        with site.serving() as dispatcher:
            site.ended(job_id)
            states = site.states_of(dispatcher, job_id)
            dispatcher.changed(job_id)
            dispatcher.changed("nobody")
            assert site.states_of(dispatcher, job_id) == states

    def test_a_database_that_is_away_for_a_moment_loses_no_ending(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        finish, n_failures = site.store.finish, []

        def flaky(*arguments: Any) -> Any:
            if len(n_failures) < 2:
                n_failures.append(1)
                raise ConnectionError("the database is away")
            return finish(*arguments)

        monkeypatch.setattr(site.store, "finish", flaky)
        job_id = site.add("count", n=1)
        with site.serving():
            assert site.ended(job_id).state == "finished"
        assert len(n_failures) == 2

    def test_a_full_disk_postpones_jobs_and_fails_none(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begin, n_failures = dispatch_module.begin_attempt, []

        def full(folder: Path, attempt: int) -> None:
            if not n_failures:
                n_failures.append(1)
                raise StorageError("the disk is full")
            begin(folder, attempt)

        monkeypatch.setattr(dispatch_module, "begin_attempt", full)
        monkeypatch.setattr(dispatch_module, "_TROUBLE_S", 0.3)
        job_id = site.add("count", n=1)
        with site.serving():
            record = site.ended(job_id)
        assert (record.state, record.n_interruptions) == ("finished", 0)
        assert n_failures

    def test_a_listener_that_fails_is_in_nobodys_way(self, site: Site) -> None:
        class Deaf:
            def job_changed(self, job_id: str) -> None:
                raise RuntimeError(job_id)

            events_added = job_changed

        job_id = site.add("count", n=3)
        with site.serving(listener=Deaf()):
            assert site.ended(job_id).state == "finished"
