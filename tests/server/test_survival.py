"""A real server, on either backend, that is killed or told to stop while a job runs."""

import hashlib
import time

import httpx2
import pytest

from lamella.io import save_volume
from lamella.simulation.tomogram import simulate_tomogram
from lamella.testing.server import run_server
from lamella.volume import Volume


@pytest.fixture(scope="module")
def tomogram(tmp_path_factory):
    simulated = simulate_tomogram((48, 128, 128), seed=3)
    volume = Volume.from_array(simulated.intensity, spacing=(1.0, 1.0, 1.0), unit="nm")
    return save_volume(volume, tmp_path_factory.mktemp("inputs") / "tomogram.mrc")


class Lab:
    """A client that waits for what it wants to see."""

    def __init__(self, server):
        self.server = server

    def ask(self, method, path, **words):
        url = f"{self.server.url}/api/v1{path}"
        headers = self.server.headers
        return httpx2.request(method, url, headers=headers, timeout=30.0, trust_env=False, **words)

    def job(self, job):
        return self.ask("GET", f"/jobs/{job}").json()

    def wait(self, job, holds, limit_s=120.0):
        deadline = time.monotonic() + limit_s
        while not holds(document := self.job(job)):
            assert document["state"] in ("queued", "running"), document
            assert time.monotonic() < deadline, document
            time.sleep(0.05)
        return document


def is_under_way(document):
    progress = document["progress"]
    return document["state"] == "running" and progress is not None and progress["done"] > 0


@pytest.mark.parametrize("end", ["killed", "stopped"])
def test_a_job_goes_on_when_the_server_is_back(backend, tomogram, tmp_path, end):
    flags = ("--gpus", "none", "--allow-root", str(tomogram.parent), *backend.flags())
    with run_server(tmp_path / "data", *flags) as server:
        lab = Lab(server)
        request = {"input": {"path": str(tomogram)}, "model": "membrane-3d"}
        job = lab.ask("POST", "/jobs", json={"request": request}).json()["id"]
        lab.wait(job, is_under_way)
        if end == "killed":
            server.kill()
        else:
            assert server.stop() == 0
        server.start()
        document = lab.wait(job, lambda document: document["state"] == "finished")
        # Processes of the server end with it; attempts on a cluster are adopted by the next one.
        assert document["attempt"] == (1 if backend.name == "engines" else 2)
        page = lab.ask("GET", f"/jobs/{job}/events?limit=1000").json()
        assert [event["number"] for event in page["events"]] == list(range(1, page["last"] + 1))
        states = [event["state"] for event in page["events"] if event["type"] == "state"]
        assert states.count("finished") == 1
        listed = {one["name"]: one for one in lab.ask("GET", f"/jobs/{job}/artifacts").json()}
        tar = lab.ask("GET", f"/jobs/{job}/artifacts/run.tar", follow_redirects=True)
        assert hashlib.sha256(tar.content).hexdigest() == listed["run.tar"]["sha256"]
