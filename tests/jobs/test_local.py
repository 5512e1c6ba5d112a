"""Worker processes of this machine keep what executors promise, and something more."""

import os
import signal
import subprocess
import sys
import time

import pytest

from lamella.core.errors import InputError
from lamella.jobs.attempt import Outcome
from lamella.jobs.local import LocalExecutor, LocalOptions
from lamella.testing import job_functions as does
from lamella.testing.executor import ExecutorContract, id_of, is_running, pid_of, wait_for


class TestLocal(ExecutorContract):
    def make_executor(self, folder):
        return LocalExecutor(LocalOptions(n_workers=self.n_workers, grace_s=self.grace_s))


class _Single(ExecutorContract):
    """Helpers of the contract without its tests."""

    __test__ = False

    def make_executor(self, folder):
        raise AssertionError("made by each test itself")


def ready(**options):
    executor = LocalExecutor(LocalOptions(**options))
    n_workers = executor.options.n_workers
    wait_for(lambda: executor.capacity().get("cpu") == n_workers, "ready workers")
    return executor


@pytest.fixture
def jobs():
    return _Single()


@pytest.fixture
def closing():
    opened = []
    yield lambda **options: opened.append(ready(**options)) or opened[-1]
    for executor in opened:
        executor.close(0.0)


class TestWorkers:
    def test_each_has_its_threads_and_cores(self, jobs, closing, tmp_path):
        executor = closing(n_workers=1, n_threads=1)
        job = jobs.begin(executor, tmp_path / "a", does.look)
        jobs.end_of(executor, job)
        seen = Outcome.read(job, 1).result
        assert seen["environment"]["OMP_NUM_THREADS"] == "1"
        assert seen["environment"]["NUMBA_NUM_THREADS"] == "1"
        if hasattr(os, "sched_setaffinity"):
            assert seen["n_cores"] == 1
        assert seen["modules"] == [], "a worker imports only what it was told to"

    def test_gpus_are_places_of_their_own(self, jobs, closing, tmp_path):
        executor = closing(n_workers=3, gpus=("2", "5"), n_threads=1)
        assert executor.limits() == {"cpu": 3.0, "gpu": 1.0}
        assert executor.capacity() == {"cpu": 3.0, "gpu": 2.0}
        seen = {}
        for i, resources in enumerate([{"gpu": 1.0}, {"gpu": 1.0}, {}]):
            job = tmp_path / f"job-{i}"
            work = jobs.make_work(job, does.wait, 1, {})
            jobs_folder(job)
            executor.start(type(work)(**{**fields(work), "resources": resources}))
        assert executor.capacity() == {"cpu": 0.0}
        for i in range(3):
            executor.cancel(id_of(tmp_path / f"job-{i}"), 1)
        wait_for(lambda: executor.capacity() == {"cpu": 3.0, "gpu": 2.0}, "free workers")
        executor.poll(0.0)
        for i, resources in enumerate([{"gpu": 1.0}, {"gpu": 1.0}, {}]):
            job = tmp_path / f"look-{i}"
            work = jobs.make_work(job, does.look, 1, {})
            jobs_folder(job)
            executor.start(type(work)(**{**fields(work), "resources": resources}))
            jobs.end_of(executor, job)
            seen[i] = Outcome.read(job, 1).result["environment"]["CUDA_VISIBLE_DEVICES"]
        assert seen == {0: "2", 1: "2", 2: ""}

    def test_a_job_of_two_places_keeps_another_out(self, jobs, closing, tmp_path):
        executor = closing(n_workers=2, n_threads=1)
        work = jobs.make_work(tmp_path / "a", does.wait, 1, {})
        jobs_folder(tmp_path / "a")
        executor.start(type(work)(**{**fields(work), "resources": {"cpu": 2.0}}))
        assert executor.capacity() == {"cpu": 0.0}

    def test_modules_are_there_before_the_first_job(self, jobs, closing, tmp_path):
        executor = closing(n_workers=1, preload=("numpy",))
        job = jobs.begin(executor, tmp_path / "a", does.look)
        jobs.end_of(executor, job)
        assert "numpy" in Outcome.read(job, 1).result["modules"]

    def test_the_folder_of_the_server_is_no_place_to_import_from(self, jobs, closing, tmp_path):
        executor = closing(n_workers=1)
        job = jobs.begin(executor, tmp_path / "a", does.look)
        jobs.end_of(executor, job)
        path = Outcome.read(job, 1).result["path"]
        assert "" not in path
        assert os.getcwd() not in path  # noqa: PTH109

    def test_the_same_worker_does_one_job_after_another(self, jobs, closing, tmp_path):
        executor = closing(n_workers=1)
        pids = set()
        for i in range(3):
            job = jobs.begin(executor, tmp_path / f"job-{i}", does.look)
            jobs.end_of(executor, job)
            pids.add(Outcome.read(job, 1).result["pid"])
        assert len(pids) == 1

    def test_one_that_cannot_start_is_tried_again_later_and_takes_no_work(self, caplog):
        executor = LocalExecutor(LocalOptions(preload=("lamella.there_is_no_such_module",)))
        try:
            wait_for(lambda: "did not start" in caplog.text, "a word about it")
            assert executor.capacity() == {"cpu": 0.0}
            assert executor.workers()[0].state == "starting"
        finally:
            executor.close(0.0)

    def test_too_much_memory_fails_the_job_and_replaces_the_worker(self, jobs, closing, tmp_path):
        executor = closing(n_workers=1, memory_limit_bytes=200 << 20)
        job = jobs.begin(executor, tmp_path / "a", does.allocate, n_bytes=400 << 20)
        report = jobs.end_of(executor, job)
        assert report.kind == "failed"
        assert "memory" in report.problem.message
        wait_for(lambda: executor.capacity().get("cpu") == 1, "another worker")

    def test_a_terminated_worker_stops_cleanly(self, jobs, closing, tmp_path):
        executor = closing(n_workers=1)
        job = jobs.begin(executor, tmp_path / "a", does.wait)
        os.kill(pid_of(job), signal.SIGTERM)
        assert jobs.end_of(executor, job).kind == "outcome"
        assert Outcome.read(job, 1).status == "cancelled"
        wait_for(lambda: executor.capacity().get("cpu") == 1, "another worker")

    def test_fewer_workers_than_gpus_are_refused(self):
        with pytest.raises(InputError, match="too few"):
            LocalOptions(n_workers=1, gpus=("0", "1"))


class TestTheEnd:
    def test_closing_lets_attempts_stop_and_leaves_nobody(self, jobs, tmp_path):
        executor = ready(n_workers=2, n_threads=1)
        job = jobs.begin(executor, tmp_path / "a", does.wait)
        pid_of(job)
        pids = [fact.pid for fact in executor.workers()]
        executor.close(5.0)
        assert Outcome.read(job, 1).status == "cancelled"
        assert [report.kind for report in executor.poll(0.0)] == ["events", "outcome"]
        assert not any(is_running(pid) for pid in pids)
        assert executor.capacity() == {"cpu": 0.0}

    def test_closing_does_not_wait_for_who_ignores_it(self, jobs, tmp_path):
        executor = ready(n_workers=1, grace_s=60.0)
        job = jobs.begin(executor, tmp_path / "a", does.hold, hold_s=60.0)
        pid = pid_of(job)
        began = time.monotonic()
        executor.close(0.3)
        assert time.monotonic() - began < 4.0
        assert not is_running(pid)

    @pytest.mark.parametrize("function", ["wait", "hold"])
    def test_workers_end_with_a_killed_server(self, tmp_path, function):
        program = f"""
import time
from pathlib import Path
from lamella.jobs.attempt import Work, begin_attempt
from lamella.jobs.local import LocalExecutor
executor = LocalExecutor()
while executor.capacity()["cpu"] < 1:
    time.sleep(0.01)
job = Path({str(tmp_path)!r}) / "a"
begin_attempt(job, 1)
name = "lamella.testing.job_functions:{function}"
executor.start(Work("a", 1, "test", name, {{"hold_s": 60.0}}, job))
time.sleep(60)
"""
        server = subprocess.Popen([sys.executable, "-c", program])
        try:
            (tmp_path / "a").mkdir()
            pid = pid_of(tmp_path / "a")
            server.kill()
            server.wait()
            wait_for(lambda: not is_running(pid), "the end of the worker", 5.0)
        finally:
            server.kill()
            server.wait()


def fields(work):
    return {name: getattr(work, name) for name in work.__dataclass_fields__}


def jobs_folder(job):
    from lamella.jobs.attempt import begin_attempt

    begin_attempt(job, 1)
