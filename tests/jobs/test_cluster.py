"""A Dask cluster of processes of its own keeps what executors promise, and something more."""

import pytest

from lamella.core.errors import InputError, ServerConnectionError
from lamella.jobs.attempt import Outcome
from lamella.jobs.cluster import ClusterExecutor, ClusterOptions
from lamella.testing.dask import run_dask
from lamella.testing.dispatch import DispatcherContract
from lamella.testing.executor import ExecutorContract


@pytest.fixture(scope="module")
def dask(tmp_path_factory):
    with run_dask(tmp_path_factory.mktemp("dask"), 2) as site:
        yield site


@pytest.fixture(autouse=True)
def _address(request, dask):
    if request.cls is not None:
        request.cls.address = dask.address


class TestCluster(ExecutorContract):
    def make_executor(self, folder):
        return ClusterExecutor(ClusterOptions(scheduler=self.address, grace_s=self.grace_s))


class TestQueueOnCluster(DispatcherContract):
    def executor_source(self):
        return (
            "from lamella.jobs.cluster import ClusterExecutor, ClusterOptions\n"
            f"options = ClusterOptions(scheduler={self.address!r}, grace_s={self.grace_s})\n"
            "executor = ClusterExecutor(options)\n"
        )
