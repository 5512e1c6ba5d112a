"""Runners of blocks: processes of this machine, and a Dask cluster."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lamella.core.errors import InputError, ServerConnectionError
from lamella.jobs.batch_system import ClusterOptions
from lamella.jobs.blocks import DaskBlocks, LocalBlocks, call
from lamella.testing.blocks import BlockRunnerContract
from lamella.testing.dask import run_dask


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


def test_functions_are_called_by_name():
    assert call("json:dumps", {"a": 1}) == '{"a": 1}'


def test_no_workers_are_refused():
    with pytest.raises(InputError, match="1 or more workers"):
        LocalBlocks(0)


def test_no_scheduler_is_one_clear_error(monkeypatch):
    monkeypatch.setattr("lamella.jobs.batch_system._CONNECT_S", 0.5)
    with pytest.raises(ServerConnectionError, match="no Dask scheduler answers"):
        DaskBlocks(ClusterOptions(scheduler="tcp://127.0.0.1:9"))


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie waits for its parent only.
    with Path(f"/proc/{pid}/stat").open() as stream:
        return stream.read().rpartition(")")[2].split()[0] != "Z"


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
        while is_alive(worker):
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.wait()
