"""Ctrl-C, kill -9 and cuts of the network in every phase: the same command goes on."""

import json
import os
import signal
import time
from contextlib import contextmanager

import pytest
from commands import MODEL, done, lamella, same, wait_for

import lamella as lm
from lamella.core.places import ClientPlaces
from lamella.testing.cuts import PHASES, CutOptions, run_with_cuts
from lamella.testing.proxy import Proxy


@pytest.fixture
def places(server, tmp_path):
    return ClientPlaces(None, tmp_path / "cache", server.token)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_interrupted_in_every_phase_and_again(
    number, server, home, places, quiet, tomogram, tmp_path
):
    """One run, stopped in upload, queue, run and download; every time the same command again."""
    folder = tmp_path / "r.run"
    home = {**home, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    with lm.Client(server.url, places=places) as client, Proxy(server.url, 1.5e6) as proxy:
        _forget(client)
        words = ("segment", tomogram, "--model", MODEL, "--server", proxy.url, "--run-dir", folder)

        def job():
            with_note = folder / "remote.json"
            return json.loads(with_note.read_text())["job"] if with_note.exists() else None

        def state():
            return client.job(job()).job.state if job() else None

        def interrupted(condition):
            process = lamella(home, *words)
            wait_for(condition, process)
            process.send_signal(number)
            if number == signal.SIGINT:
                return done(process, 130)[1]
            process.communicate()
            return ""

        said = [interrupted(lambda: any(proxy.seen.offsets.values()))]
        assert job() is None
        with _busy(client, tomogram):
            said.append(interrupted(lambda: state() == "queued"))
            known = job()
        # A preview is there long before the end.
        said.append(interrupted((folder / "preview.ome.zarr").exists))
        wait_for_state(client, known, "finished")
        archive = folder / ".download"
        said.append(interrupted(lambda: any(one.stat().st_size for one in archive.glob("*.tar*"))))
        out, _ = done(lamella(home, *words, "--json"))
        answer = json.loads(out)["runs"][0]
        assert answer["job"] == known, "one job, however often it was left"
        assert [one.id for one in client.jobs() if one.spec.name == "tomo.mrc"] == [known]
        assert not proxy.seen.lost
        assert not proxy.seen.sent_again
    same(lm.open_run(folder), quiet)
    if number == signal.SIGINT:
        assert "what was uploaded is kept" in said[0]
        for text in said[1:3]:
            assert f"left job {known[:8]}, which goes on" in text
            assert f"lamella jobs cancel {known[:8]}" in text
        assert "what was downloaded of it is kept" in said[3]
        assert all("the same command again" in text for text in said)


@pytest.mark.parametrize("is_silent", [False, True], ids=["broken", "hanging"])
def test_a_cut_in_every_phase(server, quiet, tomogram, tmp_path, is_silent):
    """Seconds here, the same way as the minute of ``benchmarks/bench_cuts.py``."""
    cut_s = float(os.environ.get("LAMELLA_TEST_CUT_S", "1"))
    found = run_with_cuts(server, tomogram, MODEL, tmp_path, CutOptions(cut_s, is_silent))
    assert tuple(cut.phase for cut in found.cuts) == PHASES
    assert all(cut.lasted_s >= cut_s for cut in found.cuts)
    assert all(cut.n_tries for cut in found.cuts)
    assert list(found.numbers) == sorted(set(found.numbers)), "every event once, in order"
    assert not found.lost
    assert not found.sent_again
    same(found.run, quiet)


def wait_for_state(client, job, state, limit_s=60):
    end = time.monotonic() + limit_s
    while client.job(job).job.state != state:
        assert time.monotonic() < end, client.job(job).job
        time.sleep(0.1)


@contextmanager
def _busy(client, image):
    """The only worker has a long job meanwhile."""
    front = client.submit(image, MODEL, tta=True, overlap_fraction=0.9, name="in front")
    wait_for_state(client, front.id, "running")
    try:
        yield
    finally:
        front.cancel()


def _forget(client):
    """The server has no volume that would make an upload needless."""
    for job in client.jobs():
        if job.state in ("finished", "failed", "cancelled"):
            client.remove("jobs", job.id)
    for volume in client.volumes():
        client.remove("volumes", volume.id)
