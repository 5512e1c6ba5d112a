"""Local copies of volumes that lie in the storage of another machine: dropped, and brought back."""

import contextlib
import threading
import time

import pytest

from lamella.core.errors import MissingPathError
from lamella.server.problems import ProtocolError
from lamella.server.storage import LocalStorage
from lamella.server.volumes.copies import Copies


class Storage(LocalStorage):
    """Counts; holds back what is fetched until it may come."""

    def __init__(self, folder):
        super().__init__(folder)
        self.n_fetched = 0
        self.may_come = threading.Event()
        self.may_come.set()

    def fetch_folder(self, key, folder):
        self.n_fetched += 1
        self.may_come.wait(30)
        super().fetch_folder(key, folder)


class Site:
    def __init__(self, folder):
        self.storage = Storage(folder / "kept")
        self.used, self.now = set(), 1000.0
        self.folder = folder / "volumes"
        self.path = self.folder / "a" / "data" / "scan" / "c" / "0"
        self.path.parent.mkdir(parents=True)
        self.path.write_text("voxels")
        (self.path.parent.parent / "zarr.json").write_text("{}")
        self.copies = Copies(
            self.folder, self.storage, lambda one: one in self.used, clock=lambda: self.now
        )
        self.copies.keep("a")


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    yield made
    made.storage.may_come.set()
    made.copies.stop()


def test_what_went_comes_back_whole(site):
    assert site.copies.is_here("a")
    assert site.copies.evict("a")
    assert not site.copies.is_here("a")
    assert list(site.folder.rglob("*")) == [site.folder / "a"]
    # It is not here: there is nothing to drop.
    assert not site.copies.evict("a")
    site.copies.bring("a", site.path)
    assert site.path.read_text() == "voxels"
    assert (site.path.parent.parent / "zarr.json").read_text() == "{}"


def test_what_may_be_needed_stays(site):
    site.used.add("a")
    assert not site.copies.evict("a")
    site.used.clear()
    # Somebody was told where it lies, and may read it.
    site.copies.bring("a", site.path)
    site.now += 899
    assert not site.copies.evict("a", idle_s=900)
    assert site.path.exists()
    site.now += 1
    assert site.copies.evict("a", idle_s=900)


@pytest.mark.parametrize("change", ["missing", "shorter", "nothing"])
def test_only_what_the_storage_holds_goes(site, change):
    """A server that was started with another storage has what no storage has."""
    if change == "missing":
        site.storage.delete("volumes/a/scan/c/0")
    elif change == "shorter":
        (site.folder / "short").write_text("vox")
        site.storage.put(site.folder / "short", "volumes/a/scan/c/0")
    else:
        site.storage.delete_folder("volumes/a")
    assert not site.copies.evict("a")
    assert site.path.read_text() == "voxels"


def test_without_a_storage_everything_stays(site):
    copies = Copies(site.folder, None, lambda _: False)
    assert not copies.is_here("a")
    assert not copies.evict("a")
    copies.bring("a", site.path)
    assert site.path.exists()
    copies.stop()


def test_it_comes_once_for_all_who_wait(site):
    site.copies.evict("a")
    site.storage.may_come.clear()
    threads = [threading.Thread(target=site.copies.bring, args=("a", site.path)) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    site.storage.may_come.set()
    for thread in threads:
        thread.join(30)
    assert site.path.read_text() == "voxels"
    assert site.storage.n_fetched == 1


def test_nobody_waits_for_long(site, monkeypatch):
    monkeypatch.setattr("lamella.server.volumes.copies._WAIT_S", 0.05)
    site.copies.evict("a")
    site.storage.may_come.clear()
    for _ in range(2):
        with pytest.raises(ProtocolError, match="on their way") as caught:
            site.copies.bring("a", site.path)
        assert (caught.value.status, caught.value.problem_code) == (503, "preparing")
        assert caught.value.details["retry_after_s"] > 0
    site.storage.may_come.set()
    for _ in range(200):
        with contextlib.suppress(ProtocolError):
            site.copies.bring("a", site.path)
            break
    assert site.path.read_text() == "voxels"
    assert site.storage.n_fetched == 1


def test_what_neither_side_has_is_missing(site):
    site.copies.evict("a")
    site.storage.delete_folder("volumes/a")
    with pytest.raises(MissingPathError):
        site.copies.bring("a", site.path)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_job_always_finds_what_was_dropped_at_the_same_instant(site, is_first):
    for n in range(12):
        begin = threading.Barrier(2)

        def evict(begin=begin, n=n):
            begin.wait()
            time.sleep(0 if is_first else n * 0.0005)
            site.copies.evict("a")

        def run(begin=begin, n=n):
            begin.wait()
            time.sleep(n * 0.0005 if is_first else 0)
            site.used.add("a")
            site.copies.bring("a", site.path)
            time.sleep(0.01)
            assert site.path.read_text() == "voxels"

        failures = []
        threads = [threading.Thread(target=_noting, args=(one, failures)) for one in (evict, run)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not failures
        site.used.clear()


def _noting(work, failures):
    try:
        work()
    except BaseException as error:
        failures.append(error)
        raise


def test_jobs_bring_their_inputs_back(make_site, s3_url, mrc, monkeypatch):
    site = make_site(storage_url=s3_url)
    volume = site.volume(mrc, "tomo.mrc")["id"]
    copies = site.services.volumes.copies
    body = {"request": {"input": {"path": f"volume:{volume}"}, "model": "classical:otsu"}}
    assert copies.evict(volume)
    job = site.ask("POST", "jobs", json=body)
    assert job.status_code == 201, job.text
    assert copies.is_here(volume)
    # It waits: its input stays.
    assert not copies.evict(volume)
    job = job.json()["id"]
    site.ask("POST", f"jobs/{job}/cancel")
    assert copies.evict(volume)
    assert site.ask("POST", f"jobs/{job}/retry").json()["state"] == "queued"
    assert copies.is_here(volume)
    site.ask("POST", f"jobs/{job}/cancel")
    assert copies.evict(volume)
    # The storage is slow: clients come again by themselves after an answer of 503.
    monkeypatch.setattr("lamella.server.volumes.copies._WAIT_S", 0.0)
    fetch, may_come = site.services.storage.fetch_folder, threading.Event()
    monkeypatch.setattr(
        site.services.storage,
        "fetch_folder",
        lambda *words: (may_come.wait(30), fetch(*words)),
    )
    asked = {
        "jobs": body,
        f"jobs/{job}/retry": None,
        "batches": {"jobs": [body]},
    }
    for path, content in asked.items():
        answer = site.ask("POST", path, json=content)
        assert (answer.status_code, answer.json()["code"]) == (503, "preparing"), path
        assert answer.headers["Retry-After"] == "5"
    may_come.set()
