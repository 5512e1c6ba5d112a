"""Jobs that are stopped, go on, are limited, and are removed."""

import io
import json
import tarfile
import time

import numpy as np
import pytest

import lamella as lm
from lamella.simulation.tomogram import simulate_tomogram


@pytest.fixture(scope="module")
def tomogram(site):
    """A run of some seconds, in several slabs."""
    path = site.inputs / "tomogram.mrc"
    made = simulate_tomogram((128, 96, 96), seed=1)
    lm.save(lm.Volume.from_array(made.intensity, spacing=(1.0, 1.0, 1.0), unit="nm"), path)
    return path


def submit(site, path, **fields):
    request = {"model": "membrane-3d", "instances": "none"}
    answer = site.submit(str(path), request=request, **fields)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def post(site, path, user="maria"):
    return site.client.post(f"/api/v1{path}", headers=site.headers[user])


def events(site, job, after=0):
    """What comes, as it comes, by long polls."""
    while True:
        params = {"after": after, "wait_s": 20}
        page = site.get(f"/jobs/{job}/events", params=params).json()
        for event in page["events"]:
            assert event["number"] == after + 1
            after = event["number"]
            yield event
        if page["state"] in ("finished", "failed", "cancelled") and after == page["last"]:
            return


def test_a_job_that_runs_is_stopped_and_goes_on_to_the_same_labels(site, tomogram, tmp_path):
    job = submit(site, tomogram)
    seen = []
    for event in events(site, job):
        seen.append(event)
        if event["type"] == "preview" and event["is_final"]:
            answer = post(site, f"/jobs/{job}/cancel")
            assert answer.json()["state"] in ("cancelling", "cancelled"), answer.text
            # While it stops, and again: the same.
            assert post(site, f"/jobs/{job}/cancel").status_code in (200, 409)
    states = [event["state"] for event in seen if event["type"] == "state"]
    assert states[-2:] == ["cancelling", "cancelled"]
    document = site.get(f"/jobs/{job}").json()
    assert (document["state"], document["attempt"]) == ("cancelled", 1)
    assert document["progress"]["done"] > 0
    # What it has done is there to look at; the whole is not.
    names = {item["name"] for item in site.get(f"/jobs/{job}/artifacts").json()}
    assert "manifest.json" in names
    assert "run.tar" not in names
    assert site.get(f"/jobs/{job}/artifacts/run.tar").status_code == 404

    assert post(site, f"/jobs/{job}/retry").json()["state"] == "queued"
    more = list(events(site, job, after=seen[-1]["number"]))
    # What was on the disk is not made again, and what is said of it names no path of the server.
    assert any("layers are on disk already" in event.get("message", "") for event in more)
    boxes = [event["box_start"] for event in more if event["type"] == "preview"]
    assert all(start[0] > 0 for start in boxes)
    assert str(site.folder / "data") not in json.dumps(seen + more)
    assert site.get(f"/jobs/{job}").json()["attempt"] == 2
    archive = site.get(f"/jobs/{job}/artifacts/run.tar").content
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(tmp_path, filter="data")
    local = lm.segment(tomogram, "membrane-3d", instances="none", run_dir=tmp_path / "local.run")
    remote = lm.open_run(tmp_path / f"{job}.run")
    assert remote.manifest.labels == local.manifest.labels
    assert np.array_equal(remote.labels.load(), local.labels.load())
    log = site.get(f"/jobs/{job}/log").text
    assert "cancelled (attempt 1)" in log
    assert "finished (attempt 2)" in log
    assert post(site, f"/jobs/{job}/cancel").status_code == 409


def test_limits_of_a_user_are_exact_and_said(site, tomogram):
    site.services.jobs.set_user("otto", max_queued=2, max_running=1)
    path = str(tomogram)
    request = {"model": "membrane-3d", "instances": "none"}
    answers = [site.submit(path, user="otto", request=request) for _ in range(4)]
    made = [answer.json()["id"] for answer in answers if answer.status_code == 201]
    # Two wait; one may have been taken from the queue in between.
    refused = answers[-1]
    assert (refused.status_code, refused.json()["code"]) == (413, "quota_exceeded")
    assert len(made) in (2, 3)
    assert refused.json()["hint"]
    # A batch that does not fit is refused whole.
    one = {"request": {**request, "input": {"path": path}}}
    batch = site.client.post(
        "/api/v1/batches", json={"jobs": [one, one, one]}, headers=site.headers["otto"]
    )
    assert (batch.status_code, batch.json()["code"]) == (413, "quota_exceeded")
    states = [site.get(f"/jobs/{job}", user="otto").json()["state"] for job in made]
    assert states.count("running") <= 1
    for job in made[::-1]:
        post(site, f"/jobs/{job}/cancel", user="otto")
    # Room again, for a retry too.
    last = made[-1]
    deadline = time.monotonic() + 60
    while (state := site.get(f"/jobs/{last}", user="otto").json()["state"]) != "cancelled":
        assert time.monotonic() < deadline, state
        time.sleep(0.05)
    assert post(site, f"/jobs/{last}/retry", user="otto").json()["state"] == "queued"
    post(site, f"/jobs/{last}/cancel", user="otto")
    site.services.jobs.set_user("otto", max_queued=None, max_running=None)


def test_a_job_that_has_not_ended_cannot_be_removed_nor_retried(site, tomogram):
    job = submit(site, tomogram)
    for method, path in (("DELETE", f"/jobs/{job}"), ("POST", f"/jobs/{job}/retry")):
        answer = site.client.request(method, f"/api/v1{path}", headers=site.owner)
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict"), path
        assert answer.json()["hint"]
    post(site, f"/jobs/{job}/cancel")
    assert site.wait(job)["state"] == "cancelled"
    removed = site.client.delete(f"/api/v1/jobs/{job}", headers=site.owner)
    assert removed.status_code == 204
    assert not (site.folder / "data" / "jobs" / job).exists()
    for path in ("", "/events", "/log", "/artifacts", "/view-url"):
        assert site.get(f"/jobs/{job}{path}").status_code == 404, path


def test_priority_orders_the_jobs_of_one_user(site, tomogram):
    """While one job holds the worker, or both, the rest stand in the order of their priority."""
    running = [submit(site, tomogram) for _ in range(2)]
    waiting = {n: submit(site, tomogram, priority=n) for n in (-5, 7, 0, 3)}
    placed = {n: site.get(f"/jobs/{job}").json() for n, job in waiting.items()}
    queued = {n: told["position"] for n, told in placed.items() if told["state"] == "queued"}
    assert len(queued) >= 2
    assert sorted(queued, key=lambda n: queued[n]) == sorted(queued, reverse=True)
    for job in (*waiting.values(), *running):
        post(site, f"/jobs/{job}/cancel")
    for job in (*waiting.values(), *running):
        assert site.wait(job)["state"] in ("cancelled", "finished")


def test_labels_that_a_run_did_not_leave_are_missing_not_prepared(finished):
    answer = finished.get(f"/jobs/{finished.job}/view-url", params={"labels": "objects"})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert "left no 'objects'" in answer.json()["detail"]
    assert finished.get(f"/jobs/{finished.job}").json()["progress"] is None
