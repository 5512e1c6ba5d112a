"""Submitting, listing, cancelling, retrying, removing; and whose things these are."""

import json

import pytest

from lamella.server.jobs.documents import iso_time


@pytest.fixture(scope="module")
def path(site):
    return str(site.inputs / "nuclei.mrc")


def test_the_same_key_is_the_same_job(site, path):
    body = {"request": {"input": {"path": path}, "model": "classical:otsu"}}
    headers = {**site.owner, "Idempotency-Key": "k-1"}
    first = site.client.post("/api/v1/jobs", json=body, headers=headers)
    second = site.client.post("/api/v1/jobs", json=body, headers=headers)
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json()["id"] == second.json()["id"]
    assert first.headers["location"] == f"/api/v1/jobs/{first.json()['id']}"
    other = {**body, "name": "another"}
    third = site.client.post("/api/v1/jobs", json=other, headers=headers)
    assert (third.status_code, third.json()["code"]) == (409, "conflict")
    # Another user's key is another key.
    fourth = site.client.post(
        "/api/v1/jobs", json=body, headers={**site.headers["otto"], "Idempotency-Key": "k-1"}
    )
    assert fourth.status_code == 201
    site.cancel(first.json()["id"])
    site.cancel(fourth.json()["id"], user="otto")


@pytest.mark.parametrize("key", ["", "a b", "ü", "x" * 300])
def test_keys_are_short_plain_words(site, path, key):
    body = {"request": {"input": {"path": path}, "model": "classical:otsu"}}
    headers = [*site.owner.items(), ("Idempotency-Key", key.encode("latin-1"))]
    answer = site.client.post("/api/v1/jobs", json=body, headers=headers)
    assert answer.status_code == 422, answer.text


@pytest.mark.parametrize(
    ("request_fields", "input_path", "status", "word"),
    [
        ({"model": "no-such-model"}, None, 422, "no-such-model"),
        ({"model": "/etc/passwd"}, None, 422, "is a path"),
        ({"model": "nnunet:/etc"}, None, 422, "is a path"),
        ({"model": "nnunet:../../x"}, None, 422, "is a path"),
        ({"model": "~/model"}, None, 422, "is a path"),
        ({"options": {"weights": "/etc/shadow"}}, None, 422, "is a path"),
        ({"device": "cuda"}, None, 422, "no GPU"),
        ({"engine": "cellpose"}, None, 422, ""),
        ({}, "/etc/passwd", 403, "not below a folder"),
        ({}, "volume:none", 404, "no volume"),
        ({}, "relative.mrc", 422, "absolute path"),
        ({}, "s3://bucket/key", 403, "S3"),
        ({"restore": {"psf": "/etc/passwd"}}, None, 403, "not below"),
        ({"unknown": 1}, None, 422, "unknown"),
    ],
)
def test_what_cannot_be_is_refused_at_once(site, path, request_fields, input_path, status, word):
    answer = site.submit(input_path or path, request=request_fields)
    assert answer.status_code == status, answer.text
    problem = answer.json()
    assert problem["code"]
    assert word in json.dumps(problem)
    assert problem["hint"]


@pytest.mark.parametrize("suffix", [".docx", ".zarr", ".hdr"])
def test_formats_are_checked_at_once(site, path, suffix):
    answer = site.submit(path, exports=[suffix])
    assert answer.status_code == 422, answer.text


def test_a_job_is_its_owners(site, path):
    job = site.submit(path).json()["id"]
    seen = {user: site.get(f"/jobs/{job}", user=user).status_code for user in site.headers}
    assert seen == {"maria": 200, "otto": 404, "root": 200}
    for method, where in (
        ("get", ""), ("get", "/events"), ("get", "/log"), ("get", "/manifest"),
        ("get", "/artifacts"), ("get", "/artifacts/run.tar"), ("get", "/view-url"),
        ("get", "/labels.ome.zarr/zarr.json"), ("post", "/cancel"), ("post", "/retry"),
        ("delete", ""),
    ):  # fmt: skip
        url = f"/api/v1/jobs/{job}{where}"
        answer = getattr(site.client, method)(url, headers=site.headers["otto"])
        gone = getattr(site.client, method)(
            url.replace(job, "0" * 20), headers=site.headers["otto"]
        )
        assert (answer.status_code, gone.status_code) == (404, 404), where
        # That it exists is nobody's business: both sound the same.
        assert answer.json()["code"] == gone.json()["code"]
        assert answer.json()["detail"] == gone.json()["detail"].replace("0" * 20, job)
    assert job not in site.get("/jobs", user="otto").text
    assert site.get("/jobs", user="otto", params={"owner": "maria"}).json()["jobs"] == []
    mine = site.get("/jobs", user="root", params={"owner": "maria"}).json()["jobs"]
    assert job in {item["id"] for item in mine}
    site.cancel(job)
    site.wait(job)


def test_lists_are_read_page_by_page(site, path):
    ids = [site.submit(path, user="otto", name=str(n)).json()["id"] for n in range(5)]
    found, cursor = [], None
    while True:
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = site.get("/jobs", user="otto", params=params).json()
        found += [item["id"] for item in page["jobs"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found[:5] == ids[::-1]
    assert len(found) == len(set(found))
    for job in ids:
        site.cancel(job, user="otto")
    answer = site.get("/jobs", params={"cursor": "nonsense"})
    assert answer.status_code == 422


def test_a_waiting_job_has_a_place_and_is_cancelled_at_once(site, path):
    jobs = [site.submit(path).json()["id"] for _ in range(5)]
    last = jobs.pop()
    document = site.get(f"/jobs/{last}").json()
    assert document["state"] == "queued"
    assert document["position"] >= 1
    answer = site.client.post(f"/api/v1/jobs/{last}/cancel", headers=site.owner)
    assert answer.json()["state"] == "cancelled"
    assert site.wait(last)["state"] == "cancelled"
    again = site.client.post(f"/api/v1/jobs/{last}/retry", headers=site.owner)
    assert again.json()["state"] == "queued"
    for job in jobs:
        site.cancel(job)
    finished = site.wait(last)
    assert finished["state"] == "finished", finished
    retried = site.client.post(f"/api/v1/jobs/{last}/retry", headers=site.owner)
    assert (retried.status_code, retried.json()["code"]) == (409, "conflict")
    removed = site.client.delete(f"/api/v1/jobs/{last}", headers=site.owner)
    assert removed.status_code == 204
    assert site.get(f"/jobs/{last}").status_code == 404
    assert not (site.folder / "data" / "jobs" / last).exists()


def test_a_job_that_fails_says_why_without_paths(site):
    broken = site.inputs / "broken.mrc"
    broken.write_bytes(b"\0" * 2000)
    job = site.submit(str(broken)).json()["id"]
    document = site.wait(job)
    assert document["state"] == "failed"
    assert document["problem"]["code"] in ("unreadable_file", "unknown_format")
    assert str(site.folder / "data") not in json.dumps(document)
    retried = site.client.post(f"/api/v1/jobs/{job}/retry", headers=site.owner)
    assert retried.json()["state"] == "queued"
    assert site.wait(job)["attempt"] == 2


def test_a_batch_is_taken_whole_or_not_at_all(site, path):
    one = {"request": {"input": {"path": path}, "model": "classical:otsu"}}
    bad = {"request": {"input": {"path": "/etc/passwd"}, "model": "classical:otsu"}}
    before = len(site.get("/jobs", params={"limit": 500}).json()["jobs"])
    refused = site.client.post(
        "/api/v1/batches", json={"jobs": [one, bad, one]}, headers=site.owner
    )
    assert refused.status_code == 403
    assert "job 1 of the batch" in refused.json()["detail"]
    assert len(site.get("/jobs", params={"limit": 500}).json()["jobs"]) == before
    headers = {**site.owner, "Idempotency-Key": "batch-1"}
    body = {"name": "both", "jobs": [one, one]}
    made = site.client.post("/api/v1/batches", json=body, headers=headers)
    again = site.client.post("/api/v1/batches", json=body, headers=headers)
    assert (made.status_code, again.status_code) == (201, 200)
    batch = made.json()
    assert again.json()["id"] == batch["id"]
    assert len(batch["jobs"]) == 2
    listed = site.get("/jobs", params={"batch": batch["id"]}).json()["jobs"]
    assert {item["id"] for item in listed} == set(batch["jobs"])
    assert site.get(f"/batches/{batch['id']}", user="otto").status_code == 404
    cancelled = site.client.post(f"/api/v1/batches/{batch['id']}/cancel", headers=site.owner)
    assert sum(cancelled.json()["states"].values()) == 2
    for job in batch["jobs"]:
        assert site.wait(job)["state"] in ("cancelled", "finished")


def test_a_full_disk_takes_no_jobs(site, path, monkeypatch):
    settings = site.services.settings.model_copy(update={"min_free_bytes": 10**18})
    monkeypatch.setattr(site.services, "settings", settings)
    answer = site.submit(path)
    assert (answer.status_code, answer.json()["code"]) == (507, "storage")


def test_a_server_that_goes_down_takes_no_jobs(site, path, monkeypatch):
    monkeypatch.setattr(site.services, "is_closing", True)
    answer = site.submit(path)
    assert (answer.status_code, answer.json()["code"]) == (503, "closing")
    assert answer.headers["retry-after"]


def test_times_are_utc():
    assert iso_time(None) is None
    assert iso_time(1e9) == "2001-09-09T01:46:40.000+00:00"
