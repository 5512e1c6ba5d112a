"""A server on a cluster is ready while jobs can run there, and says why not where they cannot."""

import signal
import time

import pytest
from starlette.testclient import TestClient

from lamella.core.places import Places
from lamella.jobs.batch_system import ClusterOptions
from lamella.jobs.cluster import ClusterExecutor
from lamella.server.app import create_app
from lamella.server.services import open_services
from lamella.server.settings import Settings
from lamella.testing.dask import DaskSite
from lamella.testing.executor import wait_for


@pytest.fixture
def dask(tmp_path):
    made = DaskSite(tmp_path)
    yield made
    made.stop()


def test_ready_knows_the_cluster(dask, tmp_path):
    dask.start_scheduler()
    port = int(dask.address.rpartition(":")[2])
    settings = Settings(
        data_dir=tmp_path / "data",
        port=0,
        min_free_bytes=0,
        scheduler=dask.address,
        shutdown_grace_s=1.0,
    )
    services = open_services(settings, places=Places(models=tmp_path / "models"))
    app = create_app(settings, services)
    told = []

    def check():
        before = time.perf_counter()
        answer = client.get("/ready")
        told.append(time.perf_counter() - before)
        document = answer.json()
        assert answer.status_code == (200 if document["is_ready"] else 503)
        others = {name: text for name, text in document["checks"].items() if name != "cluster"}
        assert others == {"database": "ok", "disk": "ok"}
        assert document["is_ready"] == (document["checks"]["cluster"] == "ok")
        return document["checks"]["cluster"]

    before = TestClient(app).get("/ready")
    assert before.status_code == 503
    assert before.json()["checks"]["cluster"] == "it has not been connected to yet"
    with TestClient(app, raise_server_exceptions=False) as client:
        assert check() == "the scheduler has no workers"
        dask.start_workers(1)
        wait_for(lambda: check() == "ok", "a worker")
        for process in reversed(dask.processes):
            process.send_signal(signal.SIGKILL)
            process.wait()
        wait_for(lambda: check() == "the scheduler cannot be reached", "the end of the connection")
        dask.start_scheduler(port)
        wait_for(lambda: check() == "the scheduler has no workers", "the new scheduler")
    # Nothing of the cluster is asked while somebody waits for the answer.
    assert sorted(told)[len(told) // 2] < 2


def test_a_cluster_that_starts_workers_when_they_are_needed_is_ready_without():
    options = ClusterOptions(kind="local", options={"minimum": 0, "maximum": 2})
    cluster = ClusterExecutor(options)
    try:
        assert cluster.workers() == []
        assert cluster.problem() is None
    finally:
        cluster.close(0.0)
