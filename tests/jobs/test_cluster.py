"""A Dask cluster of processes of its own keeps what executors promise, and something more."""

import os
import signal
import subprocess
import sys
import time

import pytest

from lamella.core.errors import InputError, ServerConnectionError
from lamella.jobs.attempt import Outcome, Work, begin_attempt
from lamella.jobs.cluster import ClusterExecutor, ClusterOptions
from lamella.testing import job_functions as does
from lamella.testing.dask import make_certificates, run_dask
from lamella.testing.dispatch import DispatcherContract
from lamella.testing.executor import (
    ExecutorContract,
    ends_of,
    id_of,
    is_running,
    pid_of,
    told_in,
    wait_for,
)


class TestCluster(ExecutorContract):
    @pytest.fixture(autouse=True)
    def _dask(self, dask_site):
        self.options = {"scheduler": dask_site.address, **dask_site.certificates.options}

    def make_executor(self, folder):
        return ClusterExecutor(ClusterOptions(**self.options, grace_s=self.grace_s))


class TestQueueOnCluster(DispatcherContract):
    """The suite of the embedded queue, unchanged, on PostgreSQL and Dask."""

    @pytest.fixture(autouse=True)
    def _servers(self, dask_site, postgres_url):
        self.options = {"scheduler": dask_site.address, **dask_site.certificates.options}
        self.url = postgres_url

    def make_url(self, folder):
        return self.url

    def executor_source(self):
        return (
            "from lamella.jobs.cluster import ClusterExecutor, ClusterOptions\n"
            f"options = ClusterOptions(**{self.options!r}, grace_s={self.grace_s})\n"
            "executor = ClusterExecutor(options)\n"
        )

    def test_a_job_goes_on_while_the_server_is_away_and_is_adopted(self, site):
        job_id = site.add("count", n=300, pause_s=0.005)
        with site.serving():
            pid = pid_of(site.folder_of(job_id))
        assert site.store.get(job_id).state == "running"
        assert is_running(pid)
        with site.serving() as dispatcher:
            record = site.ended(job_id)
            assert told_in(dispatcher.log(job_id)) == list(range(300))
        assert (record.state, record.attempt) == ("finished", 1)

    def test_a_job_that_ended_while_the_server_was_away_is_adopted_too(self, site):
        job_id = site.add("count", n=40, pause_s=0.005)
        with site.serving():
            pid_of(site.folder_of(job_id))
        wait_for(lambda: Outcome.read(site.folder_of(job_id), 1) is not None, "the outcome")
        with site.serving():
            record = site.ended(job_id)
        assert (record.state, record.attempt, record.result["n"]) == ("finished", 1, 40)


def start(executor, job, function, resources=None, **document):
    begin_attempt(job, 1)
    name = does.name_of(function)
    executor.start(Work(id_of(job), 1, "test", name, document, job, resources or {}))


class TestSites:
    def test_gpu_workers_and_others(self, tmp_path):
        with run_dask(tmp_path, 1, "--resources", "GPU=1") as site:
            site.start_workers(1)
            executor = ClusterExecutor(ClusterOptions(scheduler=site.address))
            try:
                both = {"cpu": 2.0, "gpu": 1.0}
                wait_for(lambda: executor.capacity() == both, "both workers")
                assert executor.limits()["gpu"] == 1
                start(executor, tmp_path / "a", does.wait, {"gpu": 1.0})
                assert executor.capacity() == {"cpu": 1.0}
                start(executor, tmp_path / "b", does.count, n=2)
                assert ends_of(executor, [(id_of(tmp_path / "b"), 1)])[0].kind == "outcome"
                executor.cancel(id_of(tmp_path / "a"), 1)
                ends_of(executor, [(id_of(tmp_path / "a"), 1)])
                gpu = [fact for fact in executor.workers() if "gpu" in fact.resources]
                assert len(gpu) == 1
            finally:
                executor.close(0.0)

    def test_a_scheduler_that_dies_and_comes_back(self, tmp_path):
        with run_dask(tmp_path, 1) as site:
            executor = ClusterExecutor(ClusterOptions(scheduler=site.address))
            try:
                wait_for(lambda: executor.capacity()["cpu"] == 1, "a worker")
                port = int(site.address.rpartition(":")[2])
                start(executor, tmp_path / "a", does.wait, limit_s=60.0)
                pid = pid_of(tmp_path / "a")
                for process in reversed(site.processes):
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                if is_running(pid):
                    os.kill(pid, signal.SIGKILL)
                wait_for(lambda: executor.capacity()["cpu"] == 0, "the end of the connection")
                site.start_scheduler(port)
                site.start_workers(1)
                assert ends_of(executor, [(id_of(tmp_path / "a"), 1)])[0].kind == "lost"
                wait_for(lambda: executor.capacity()["cpu"] == 1, "a worker")
                start(executor, tmp_path / "b", does.count, n=2)
                assert ends_of(executor, [(id_of(tmp_path / "b"), 1)])[0].kind == "outcome"
            finally:
                executor.close(0.0)

    def test_over_tls_with_certificates_on_both_sides(self, tmp_path):
        certificates = make_certificates(tmp_path)
        with run_dask(tmp_path, 1, certificates=certificates) as site:
            assert site.address.startswith("tls://")
            options = ClusterOptions(scheduler=site.address, **certificates.options)
            executor = ClusterExecutor(options)
            try:
                wait_for(lambda: executor.capacity()["cpu"] == 1, "a worker")
                start(executor, tmp_path / "a", does.count, n=2)
                assert ends_of(executor, [(id_of(tmp_path / "a"), 1)])[0].kind == "outcome"
            finally:
                executor.close(0.0)


_SUBMIT = """#!/bin/sh
# Keeps the job script, runs it in a session of its own, and prints its number.
cat "${{1:-/dev/stdin}}" >"{folder}/script.$$"
setsid sh "{folder}/script.$$" >"{folder}/job.log" 2>&1 &
echo "$!" >>"{folder}/jobs"
echo "{answer}"
"""
_CANCEL = """#!/bin/sh
for number in "$@"; do kill -9 -- "-$number" 2>/dev/null; done
exit 0
"""
_BATCH = {
    "slurm": ("sbatch", "scancel", "Submitted batch job $!"),
    "pbs": ("qsub", "qdel", "$!"),
    "lsf": ("bsub", "bkill", "Job <$!> is submitted"),
}


@pytest.mark.parametrize("kind", ["slurm", "pbs", "lsf"])
def test_workers_come_as_jobs_of_a_batch_system_and_go(kind, tmp_path, monkeypatch):
    """The batch system's commands are stand-ins that run what they are given on this machine."""
    submit, cancel, answer = _BATCH[kind]
    programs = tmp_path / "bin"
    programs.mkdir()
    text = _SUBMIT.format(folder=tmp_path, answer=answer)
    for name, program in ((submit, text), (cancel, _CANCEL)):
        (programs / name).write_text(program)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    options = {
        "cores": 2,
        "memory": "2 GB",
        "walltime": "00:10" if kind == "lsf" else "00:10:00",
        "interface": "lo",
        "local_directory": str(tmp_path),
        "maximum": 2,
    }
    if kind == "lsf":
        options |= {"use_stdin": True, "lsf_units": "mb", "ncpus": 2, "mem": 2 << 30}
    executor = ClusterExecutor(
        ClusterOptions(
            kind=kind,
            options=options,
            resources={"gpu": 1.0},
            grace_s=2.0,
            folder=str(tmp_path / "certificates"),
        )
    )
    try:
        assert executor.capacity() == {"cpu": 2.0, "gpu": 2.0}
        assert not (tmp_path / "jobs").exists(), "workers come when there is work"
        assert executor._cluster.scheduler_address.startswith("tls://")
        assert (tmp_path / "certificates").stat().st_mode & 0o077 == 0
        start(executor, tmp_path / "a", does.look, {"gpu": 1.0})
        assert ends_of(executor, [(id_of(tmp_path / "a"), 1)])[0].kind == "outcome"
        seen = Outcome.read(tmp_path / "a", 1).result
        assert seen["environment"]["OMP_NUM_THREADS"] == "2"
        start(executor, tmp_path / "b", does.wait)
        pid_of(tmp_path / "b")
    finally:
        executor.close(5.0)
    assert Outcome.read(tmp_path / "b", 1).status == "cancelled"
    wait_for(lambda: not is_running(seen["pid"]), "the end of the workers")


def test_a_server_can_start_a_cluster_and_keeps_its_ctrl_c():
    """dask-jobqueue sets a handler of signals when imported, which only the main thread may."""
    program = """
import signal, sys, threading
from lamella.jobs import batch_system
before = signal.getsignal(signal.SIGINT)
thread = threading.Thread(target=batch_system._jobqueue)
thread.start()
thread.join()
assert "dask_jobqueue" in sys.modules
assert signal.getsignal(signal.SIGINT) is before
assert signal.signal(signal.SIGINT, before) is before
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_what_waits_for_a_worker_that_never_comes_is_called_back(tmp_path):
    options = ClusterOptions(kind="local", options={"maximum": 1}, resources={"gpu": 1.0})
    executor = ClusterExecutor(options)
    try:
        executor._cluster.adapt(minimum=0, maximum=0)
        start(executor, tmp_path / "a", does.count, n=1)
        assert executor.capacity()["cpu"] == 0
        time.sleep(0.3)
        executor.cancel(id_of(tmp_path / "a"), 1)
        (report,) = ends_of(executor, [(id_of(tmp_path / "a"), 1)])
        assert report.kind == "outcome"
        assert Outcome.read(tmp_path / "a", 1).status == "cancelled"
        assert not (tmp_path / "a" / "told.txt").exists()
    finally:
        executor.close(0.0)


class TestBadInput:
    def test_no_scheduler_answers(self, monkeypatch):
        monkeypatch.setattr("lamella.jobs.batch_system._CONNECT_S", 0.5)
        with pytest.raises(ServerConnectionError, match="no Dask scheduler answers") as caught:
            ClusterExecutor(ClusterOptions(scheduler="tcp://127.0.0.1:1"))
        assert "dask scheduler" in caught.value.hint

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({}, "name either"),
            ({"scheduler": "tcp://a:1", "kind": "slurm"}, "name either"),
            ({"scheduler": "gpu.lab:8786"}, "gpu.lab:8786"),
        ],
    )
    def test_options_that_name_no_cluster(self, options, words):
        with pytest.raises(InputError, match=words):
            ClusterOptions(**options)

    # dask-jobqueue's own half-made object complains when it is forgotten.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    @pytest.mark.parametrize(
        "options",
        [{"minimum": 3, "maximum": 2}, {"cores": 1}, {"cores": 1, "memory": "1GB", "moon": 1}],
    )
    def test_options_that_make_no_cluster(self, options):
        with pytest.raises(InputError):
            ClusterExecutor(ClusterOptions(kind="slurm", options=options))
