"""Whatever lies on a server and whatever the rules: nothing that an active job uses is removed."""

import shutil
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.core.errors import ConflictError, LamellaError, MissingPathError
from lamella.core.places import Places
from lamella.jobs.machine import NewJob
from lamella.server.jobs.folder import job_folder
from lamella.server.retention import Retention, Rules
from lamella.server.services import open_services
from lamella.server.settings import Settings
from lamella.server.volumes.rows import insert_volume, update_volume

DAY_S = 86_400.0
ENDED = ("finished", "failed", "cancelled")
STATES = ("queued", "running", "cancelling", *ENDED)


def add_volume(services, n_bytes, days_old):
    record = replace(
        services.volumes._new("ada", "x.mrc", {"kind": "upload", "upload": "gone"}, n_bytes),
        state="ready",
        location="data/x.mrc",
        last_used=time.time() - days_old * DAY_S,
    )
    path = services.volumes.folder / record.id / "data" / "x.mrc"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(n_bytes))
    pyramid = services.pyramids.folder / f"{record.id}.ome.zarr"
    pyramid.mkdir(parents=True)
    (pyramid / "c").write_bytes(bytes(n_bytes // 2))
    services.database.run(lambda connection: insert_volume(connection, record))
    return record.id


def add_job(services, state, n_bytes, volume, psf):
    spec = {"request": {"restore": {"psf": f"volume:{psf}"}}} if psf else {}
    store = services.jobs
    job = store.add(NewJob(owner="ada", kind="segment", spec=spec, volume=volume))[0]
    if state != "queued":
        # The only one that waits for this much.
        claimed = store.claim("w", {"cpu": 1000.0}, 600.0)
        assert claimed is not None
        job = claimed
    if state == "finished":
        store.finish(job.id, job.attempt, {})
    elif state == "failed":
        store.fail(job.id, job.attempt, None)
    elif state in ("cancelling", "cancelled"):
        store.cancel(job.id)
        if state == "cancelled":
            store.stopped(job.id, job.attempt)
    folder = job_folder(services.settings.data_dir, job.id)
    folder.mkdir(parents=True)
    (folder / "labels").write_bytes(bytes(n_bytes))
    return job.id


SIZES = st.integers(0, 5000)
VOLUMES = st.lists(st.tuples(SIZES, st.integers(0, 60)), max_size=5)
JOBS = st.lists(
    st.tuples(
        # Those that wait come last: each other one is claimed at once.
        st.sampled_from(STATES),
        SIZES,
        st.none() | st.integers(0, 4),
        st.none() | st.integers(0, 4),
    ),
    max_size=6,
).map(lambda jobs: sorted(jobs, key=lambda job: job[0] == "queued"))
RULES = st.builds(
    Rules,
    retention_s=st.sampled_from([0.0, 1.0, 30 * DAY_S]),
    max_total_bytes=st.sampled_from([0, 1, 3000, 20_000]),
    min_free_bytes=st.sampled_from([0, 2**60]),
)


@settings(max_examples=25)
@given(VOLUMES, JOBS, RULES, st.integers(0, 90))
def test_nothing_that_an_active_job_uses_is_removed(volumes, jobs, rules, days):
    with tempfile.TemporaryDirectory() as name:
        services = open_services(
            Settings(data_dir=Path(name), port=0, min_free_bytes=0), places=Places()
        )
        try:
            check(services, volumes, jobs, rules, days)
        finally:
            services.database.close()


def check(services, volumes, jobs, rules, days):
    ids = [add_volume(services, *volume) for volume in volumes]

    def pick(n):
        return ids[n % len(ids)] if ids and n is not None else None

    needed, active, ended = set(), set(), set()
    for state, n_bytes, volume, psf in jobs:
        job = add_job(services, state, n_bytes, pick(volume), pick(psf))
        (ended if state in ENDED else active).add(job)
        if state not in ENDED:
            needed |= {pick(volume), pick(psf)} - {None}
    retention = Retention(services, clock=lambda: time.time() + days * DAY_S)
    retention._rules = rules
    removed = retention.sweep()
    gone = {(item.kind, item.id) for item in removed}
    kept = {record.id for record in services.jobs.list().jobs}
    assert active <= kept
    assert kept == active | {job for job in ended if ("job", job) not in gone}
    for job in kept:
        assert (job_folder(services.settings.data_dir, job) / "labels").is_file()
    for volume in needed:
        assert services.volumes.path_of(volume).is_file()
    for volume in ids:
        is_kept = ("volume", volume) not in gone
        assert (services.volumes.folder / volume).exists() == is_kept
    # Over the limit, only what is in use is left.
    left = sum(
        path.stat().st_size
        for root in ("jobs", "volumes", "cache")
        for path in (services.settings.data_dir / root).rglob("*")
        if path.is_file()
    )
    is_all_gone = ended.isdisjoint(kept) and all(
        volume in needed or ("volume", volume) in gone for volume in ids
    )
    assert not rules.max_total_bytes or left <= rules.max_total_bytes or is_all_gone
    # A second look finds nothing more.
    assert retention.sweep() == []


@pytest.mark.parametrize("is_first", [True, False])
def test_a_job_and_the_removal_of_its_input_never_both_succeed(services, is_first):
    """Many times at the same instant, one of the two a little earlier."""
    for n in range(12):
        volume = add_volume(services, 10, 0)
        begin = threading.Barrier(2)
        done = {}

        def remove(volume=volume, begin=begin, done=done, n=n):
            begin.wait()
            time.sleep(0 if is_first else n * 0.0005)
            try:
                services.volumes.remove(volume)
                done["removed"] = True
            except (ConflictError, MissingPathError):
                done["removed"] = False

        def submit(volume=volume, begin=begin, done=done, n=n):
            begin.wait()
            time.sleep(n * 0.0005 if is_first else 0)
            job = services.jobs.add(NewJob(owner="a", kind="segment", spec={}, volume=volume))[0]
            done["submitted"] = services.volumes.touch(volume)
            if not done["submitted"]:
                services.jobs.cancel(job.id)

        threads = [threading.Thread(target=one) for one in (remove, submit)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert done["removed"] != done["submitted"]


def test_a_submission_whose_volume_went_away_is_refused(client, services, tokens, monkeypatch):
    volume = add_volume(services, 10, 0)
    monkeypatch.setattr(
        "lamella.server.jobs.submit._input_volume",
        lambda *_: services.volumes.get(volume),
    )
    add = services.jobs.add

    def too_late(job):
        services.database.run(lambda connection: update_volume(connection, volume, state="refused"))
        services.volumes.remove(volume)
        return add(job)

    monkeypatch.setattr(services.jobs, "add", too_late)
    body = {"request": {"input": {"path": f"volume:{volume}"}, "model": "classical:otsu"}}
    answer = client.post("/api/v1/jobs", json=body, headers=tokens["annotator"])
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert "was removed while" in answer.json()["detail"]
    jobs = client.get("/api/v1/jobs", headers=tokens["annotator"]).json()["jobs"]
    assert [job["state"] for job in jobs] in (["cancelled"], ["failed"])


def test_pyramids_of_volumes_that_are_gone_go_after_a_while(services):
    volume = add_volume(services, 10, 0)
    pyramid = services.pyramids.folder / f"{volume}.ome.zarr"
    services.volumes.remove(volume)
    assert pyramid.exists()
    Retention(services).sweep()
    assert pyramid.exists()
    Retention(services, clock=lambda: time.time() + 7200).sweep()
    assert not pyramid.exists()
    shutil.rmtree(services.volumes.folder / volume, ignore_errors=True)
    with pytest.raises(LamellaError):
        services.volumes.get(volume)


@pytest.mark.parametrize("is_remote", [False, True])
def test_a_full_disk_costs_the_copies_of_what_lies_in_the_storage(tmp_path, s3_url, is_remote):
    told = Settings(data_dir=tmp_path, port=0, storage_url=s3_url if is_remote else "")
    services = open_services(told, places=Places())
    volumes = services.volumes
    idle, asked, used = (add_volume(services, 100, 0) for _ in range(3))
    for volume in (idle, asked, used):
        volumes.copies.keep(volume)
    services.jobs.add(NewJob(owner="ada", kind="segment", spec={}, volume=used))
    volumes.path_of(asked)
    retention = Retention(services)
    retention._rules = Rules(min_free_bytes=2**60)
    removed = [(item.kind, item.id) for item in retention.sweep()]
    # Of files that only this disk has there is no copy.
    gone = [one for kind, one in removed if kind == "copy"]
    assert gone == ([idle] if is_remote else [])
    assert {kind for kind, _ in removed} <= {"copy", "pyramid"}
    assert services.audit.list() == []
    for volume in (idle, asked, used):
        assert volumes.copies.is_here(volume) == (is_remote and volume != idle)
        assert volumes.get(volume).state == "ready"
        assert volumes.path_of(volume).read_bytes() == bytes(100)
    assert retention.sweep() == []
    volumes.stop()
    services.database.close()
