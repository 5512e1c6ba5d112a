"""Runners of blocks: processes of this machine, and a Dask cluster."""

import os
import signal
import subprocess
import sys
import time

import pytest

from lamella.core.errors import EngineError, InputError, ServerConnectionError
from lamella.jobs.batch_system import ClusterOptions
from lamella.jobs.blocks import DaskBlocks, LocalBlocks, call
from lamella.jobs.idle_blocks import IdleBlocks, idle_blocks
from lamella.testing.block_work import run_idle
from lamella.testing.blocks import BlockRunnerContract
from lamella.testing.dask import run_dask
from lamella.testing.executor import is_running

WORK = "lamella.testing.block_work:work"


@pytest.fixture(scope="module")
def on_dask(tmp_path_factory):
    with (
        run_dask(tmp_path_factory.mktemp("dask"), 2) as site,
        DaskBlocks(ClusterOptions(scheduler=site.address)) as runner,
    ):
        yield runner


class TestLocalBlocks(BlockRunnerContract):
    @pytest.fixture
    def runner(self):
        return LocalBlocks(2, n_threads=1)


class TestDaskBlocks(BlockRunnerContract):
    @pytest.fixture
    def runner(self, on_dask):
        on_dask._client.wait_for_workers(2, timeout=60)
        return on_dask


def test_a_cluster_of_its_own():
    options = ClusterOptions(kind="local", options={"minimum": 1, "maximum": 1, "processes": False})
    with DaskBlocks(options) as runner:
        answers = [answer for answer in runner.run("json:dumps", {1: {"a": 2}}) if answer]
    assert answers == [(1, '{"a": 2}')]


# --- A job on a worker, helped by the idle ones -------------------------------------------------


@pytest.fixture
def helped(on_dask):
    on_dask._client.wait_for_workers(2, timeout=60)
    while any(on_dask._client.processing().values()):
        time.sleep(0.05)
    return IdleBlocks(on_dask._client, "tcp://this-process", {})


def documents_in(folder, n, **values):
    return {k: {"n": k, "folder": str(folder), "pid": os.getpid(), **values} for k in range(n)}


def pids_in(folder):
    return {
        k: (folder / f"{k}.ran").read_text().split() for k in range(len(list(folder.iterdir())))
    }


def test_idle_workers_help(helped, tmp_path):
    answers = list(helped.run(WORK, documents_in(tmp_path, 12, pause_s=0.3)))
    assert None in answers
    assert dict(a for a in answers if a) == {k: {"n": k, "square": k * k} for k in range(12)}
    assert helped.n_workers == 3
    pids = pids_in(tmp_path)
    assert all(len(each) == 1 for each in pids.values())
    assert pids[0] == [str(os.getpid())]
    assert len({each[0] for each in pids.values()}) == 3


def test_nobody_helps_who_is_busy_or_lacks_the_tag(on_dask, helped, tmp_path):
    tagged = IdleBlocks(on_dask._client, "tcp://this-process", {"gpu": 1, "cpu": 1})
    assert tagged.n_workers == 1
    addresses = helped.idle()
    assert len(addresses) == 2
    busy = [on_dask._client.submit(time.sleep, 3.0, workers=[a], pure=False) for a in addresses]
    while helped.idle():
        time.sleep(0.02)
    answers = dict(a for a in helped.run(WORK, documents_in(tmp_path, 3)) if a)
    assert len(answers) == 3
    assert {each[0] for each in pids_in(tmp_path).values()} == {str(os.getpid())}
    on_dask._client.cancel(busy, force=True)


def test_a_helper_that_dies_costs_nothing(helped, tmp_path):
    documents = documents_in(tmp_path, 6, pause_s=0.3)
    documents[5]["how"] = "die once"
    answers = dict(a for a in helped.run(WORK, documents) if a)
    assert answers == {k: {"n": k, "square": k * k} for k in range(6)}
    assert len((tmp_path / "5.ran").read_text().splitlines()) >= 2


def test_errors_of_helpers_and_of_oneself_are_answers(helped, tmp_path):
    answers = dict(a for a in helped.run(WORK, documents_in(tmp_path, 4, how="raise")) if a)
    assert sorted(answers) == [0, 1, 2, 3]
    assert all(isinstance(error, EngineError) for error in answers.values())


def test_closing_takes_back_what_helpers_have_not_begun(helped, tmp_path):
    answers = helped.run(WORK, documents_in(tmp_path, 200, pause_s=0.2))
    while next(answers) is None:
        pass
    answers.close()
    time.sleep(0.5)
    n_ran = len(list(tmp_path.iterdir()))
    time.sleep(0.5)
    assert len(list(tmp_path.iterdir())) == n_ran < 100


def test_here_is_no_worker():
    assert idle_blocks() is None


def test_on_a_worker_it_is_helped_by_the_other(on_dask, helped, tmp_path):
    documents = documents_in(tmp_path, 6, pause_s=0.3)
    assert len(on_dask._client.submit(run_idle, WORK, documents, pure=False).result(60)) == 6
    assert len({each[0] for each in pids_in(tmp_path).values()}) == 2


def test_functions_are_called_by_name():
    assert call("json:dumps", {"a": 1}) == '{"a": 1}'


def test_no_workers_are_refused():
    with pytest.raises(InputError, match="1 or more workers"):
        LocalBlocks(0)


def test_no_scheduler_is_one_clear_error(monkeypatch):
    monkeypatch.setattr("lamella.jobs.batch_system._CONNECT_S", 0.5)
    with pytest.raises(ServerConnectionError, match="no Dask scheduler answers"):
        DaskBlocks(ClusterOptions(scheduler="tcp://127.0.0.1:9"))


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    code = (
        "from lamella.jobs.blocks import LocalBlocks\n"
        "if __name__ == '__main__':\n"
        f"    document = {{'n': 0, 'folder': {str(tmp_path)!r}, 'pause_s': 60}}\n"
        "    runner = LocalBlocks(1, n_threads=1)\n"
        "    list(runner.run('lamella.testing.block_work:work', {0: document}))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        ran = tmp_path / "0.ran"
        end = time.monotonic() + 60
        while not (ran.exists() and ran.read_text().endswith("\n")):
            assert time.monotonic() < end
            time.sleep(0.05)
        worker = int(ran.read_text())
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        while is_running(worker):
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.wait()
