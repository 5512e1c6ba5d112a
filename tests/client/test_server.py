"""Against ``lamella serve``: remote is local, Ctrl-C and again, cuts in every phase, chaos."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import lamella as lm
from lamella.client.connect import ConnectOptions
from lamella.core.places import ClientPlaces
from lamella.testing.proxy import Proxy
from lamella.testing.server import run_server

MODEL = "membrane-3d"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with run_server(tmp_path_factory.mktemp("server") / "data", "--workers", "1") as opened:
        yield opened


@pytest.fixture(scope="module")
def home(server, tmp_path_factory):
    """Variables of a user who has a token."""
    folder = tmp_path_factory.mktemp("home")
    return {
        **os.environ,
        "XDG_CACHE_HOME": str(folder / "cache"),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "LAMELLA_TOKEN": server.token,
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def places(server, tmp_path):
    return ClientPlaces(None, tmp_path / "cache", server.token)


@pytest.fixture(scope="module")
def tomogram(tmp_path_factory):
    noise = np.random.default_rng(0).normal(0, 1, (48, 96, 96)).astype(np.float32)
    z, y, x = np.indices(noise.shape)
    shell = np.abs(np.sqrt((z - 24) ** 2 + (y - 48) ** 2 + (x - 48) ** 2) - 16) < 2
    volume = lm.Volume.from_array(noise - 3 * shell, spacing=(1.0,) * 3, unit="nm")
    return lm.save(volume, tmp_path_factory.mktemp("data") / "tomo.mrc")


@pytest.fixture(scope="module")
def quiet(tomogram, tmp_path_factory):
    """What a run of this machine gives."""
    return lm.segment(tomogram, MODEL, run_dir=tmp_path_factory.mktemp("quiet") / "a.run")


def lamella(home, *words):
    return subprocess.Popen(
        [sys.executable, "-m", "lamella", *map(str, words)],
        env=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def done(process, code=0):
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return out, err


def same(run, quiet):
    assert np.array_equal(run.labels.load(), quiet.labels.load())
    assert (run.folder / "objects.csv").read_bytes() == (quiet.folder / "objects.csv").read_bytes()
    assert run.manifest.labels == quiet.manifest.labels
    assert run.manifest.input == quiet.manifest.input
    assert run.manifest.request == quiet.manifest.request
    assert run.manifest.options_resolved == quiet.manifest.options_resolved
    names = {path.name for path in run.folder.iterdir()}
    assert names == {path.name for path in quiet.folder.iterdir()}
    # No trace of the way there.
    for path in run.folder.glob("*.json*"):
        assert "volume:" not in path.read_text()


def test_remote_is_local(server, home, quiet, tomogram, tmp_path):
    words = ("segment", tomogram, "--model", MODEL, "--server", server.url)
    places = ("--run-dir", tmp_path / "r.run", "-o", tmp_path / "labels.mrc")
    out, err = done(lamella(home, *words, *places))
    assert "tomo.mrc: finished" in out
    assert "preview.ome.zarr" in err
    same(lm.open_run(tmp_path / "r.run"), quiet)
    written = lm.open(tmp_path / "labels.mrc")
    assert np.array_equal(np.asarray(written.data[...]), quiet.labels.load())
    # The server's own word for it, and the same command again.
    out, _ = done(lamella(home, *words, "--run-dir", tmp_path / "r.run", "--json"))
    answer = json.loads(out)["runs"][0]
    assert answer["was_finished"]
    assert answer["labels_sha256"] == quiet.manifest.labels.sha256
    # A local command sees the same finished run.
    assert lm.segment(tomogram, MODEL, run_dir=tmp_path / "r.run").was_finished


def test_options_travel(server, home, tomogram, tmp_path):
    options = ("--instances", "components", "--min-size", "30nm3", "--spacing", "2,1,1",
               "--unit", "nm", "--fill-holes", "--model", "classical:otsu")  # fmt: skip
    runs = []
    for name, where in (("a.run", ()), ("b.run", ("--server", server.url))):
        done(lamella(home, "segment", tomogram, *options, *where, "--run-dir", tmp_path / name))
        runs.append(lm.open_run(tmp_path / name))
    same(runs[1], runs[0])


def test_a_folder_is_sent_as_it_is(server, places, tomogram, tmp_path):
    folder = lm.save(lm.open(tomogram), tmp_path / "tomo.ome.zarr")
    local = lm.segment(folder, "classical:otsu", run_dir=tmp_path / "a.run")
    with lm.Client(server.url, places=places) as client:
        remote = client.segment(folder, "classical:otsu", run_dir=tmp_path / "b.run")
        same(remote.run, local)


def test_ctrl_c_leaves_the_job_and_again_comes_back(server, home, quiet, tomogram, tmp_path):
    folder = tmp_path / "r.run"
    words = ("segment", tomogram, "--model", MODEL, "--server", server.url, "--run-dir", folder)
    process = lamella(home, *words)
    note = folder / "remote.json"
    wait_for(lambda: note.exists() and json.loads(note.read_text())["job"], process)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = done(process, 130)
    job = json.loads(note.read_text())["job"]
    assert f"left job {job[:8]}, which goes on" in err
    assert f"lamella jobs cancel {job[:8]}" in err
    out, _ = done(lamella(home, *words, "--json"))
    assert json.loads(out)["runs"][0]["job"] == job
    same(lm.open_run(folder), quiet)


def test_jobs_from_the_command_line(server, home, tomogram, tmp_path):
    where = ("--server", server.url)
    out, _ = done(
        lamella(home, "submit", tomogram, "--model", "classical:li", "--name", "x", *where)
    )
    job = out.split()[0]
    out, _ = done(lamella(home, "jobs", "watch", job, *where))
    assert f"{job}  x  finished" in out
    out, _ = done(lamella(home, "jobs", "list", *where))
    assert out.splitlines()[1].startswith(f"{job}  x     classical:li")
    out, _ = done(lamella(home, "jobs", "show", "last", "--json", *where))
    assert json.loads(out)["id"].startswith(job)
    out, _ = done(lamella(home, "jobs", "log", job, *where))
    assert "finished" in out
    folder = tmp_path / "d.run"
    out, _ = done(lamella(home, "jobs", "download", job, "-o", folder, *where))
    assert "tomo.mrc: finished" in out
    assert lm.open_run(folder).is_finished
    _, err = done(lamella(home, "jobs", "cancel", job, *where), 2)
    assert "is finished" in err
    _, err = done(lamella(home, "jobs", "show", "nothing", *where), 2)
    assert "there is no job nothing" in err
    done(lamella(home, "jobs", "remove", job, *where))
    out, _ = done(lamella(home, "uploads", "list", "--json", *where))
    volumes = json.loads(out)["volumes"]
    assert volumes
    out, _ = done(lamella(home, "uploads", "remove", volumes[0]["id"][:8], *where))
    assert "removed" in out


def test_what_the_server_refuses_is_said_and_nothing_is_left(server, home, tomogram, tmp_path):
    where = ("--server", server.url, "--run-dir", tmp_path / "r.run")
    for words, message in (
        (("--model", "membran-3d"), "did you mean membrane-3d"),
        (("--model", "classical:otzu"), "no method 'otzu'"),
        (("--model", MODEL, "--option", "x=1"), "no option 'x'"),
        (("--model", MODEL, "--trust"), "--trust is for models of this machine"),
        (("--model", MODEL, "--token", "lam_wrong"), "lamella login"),
        (("--model", MODEL, "-o", tmp_path / "a.xyz"), "a.xyz"),
    ):
        _, err = done(lamella(home, "segment", tomogram, *words, *where), 2)
        assert message in err
        assert not (tmp_path / "r.run").exists()
    _, err = done(lamella(home, "segment", tomogram, "--model", MODEL, "--pin", "first"), 2)
    assert "add --server" in err


def test_login_keeps_the_token_for_the_user_alone(server, home, tmp_path):
    home = {**home, "XDG_CONFIG_HOME": str(tmp_path)}
    token = home.pop("LAMELLA_TOKEN")
    _, err = done(lamella(home, "jobs", "list", "--server", server.url), 2)
    assert "lamella login" in err
    _, err = done(lamella(home, "login", server.url, "--token", "lam_wrong"), 2)
    assert "does not know this token" in err
    out, _ = done(lamella(home, "login", server.url, "--token", token))
    assert "the token works" in out
    path = tmp_path / "lamella" / "servers.json"
    assert path.stat().st_mode & 0o777 == 0o600
    done(lamella(home, "jobs", "list"))
    done(lamella(home, "login", server.url, "--forget"))
    _, err = done(lamella(home, "jobs", "list"), 2)
    assert "which server" in err


@pytest.mark.parametrize("is_silent", [False, True])
def test_a_cut_in_every_phase(server, home, quiet, tomogram, tmp_path, is_silent):
    """Seconds here; ``LAMELLA_TEST_CUT_S=60`` cuts for a minute."""
    cut_s = float(os.environ.get("LAMELLA_TEST_CUT_S", "1.5"))
    places = ClientPlaces(None, tmp_path / "cache", server.token)
    _forget(server, places)
    with (
        Proxy(server.url, bytes_per_s=1.5e6) as proxy,
        lm.Client(proxy.url, places=places) as client,
    ):
        client.models()

        def cut(n_bytes=0):
            """Cut now, or once so much more has gone through; mended after a while."""

            def work():
                start = proxy.n_bytes
                while proxy.n_bytes < start + n_bytes:
                    time.sleep(0.01)
                proxy.cut(is_silent=is_silent)
                time.sleep(cut_s)
                proxy.mend()

            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            return thread

        threads = [cut(600_000)]
        remote = client.segment(tomogram, MODEL, run_dir=tmp_path / "r.run")
        numbers = []
        for event in remote.events():
            numbers.append(event.number)
            if event.type == "started":
                threads.append(cut())
        assert numbers == sorted(set(numbers))
        size = _size_of_result(server, places, remote.id)
        threads.append(cut(size // 3))
        same(remote.run, quiet)
        for thread in threads:
            thread.join()
        assert proxy.n_cuts == 3
        assert not proxy.seen.lost
        assert not proxy.seen.sent_again


def _size_of_result(server, places, job):
    with lm.Client(server.url, places=places) as client:
        listed = client.request("GET", f"jobs/{job}/artifacts")
    items = listed if isinstance(listed, list) else listed["artifacts"]
    return next(one["n_bytes"] for one in items if one["name"] == "run.tar")


def _forget(server, places):
    """The server has no volume that would make an upload needless."""
    with lm.Client(server.url, places=places) as client:
        for volume in client.volumes():
            client.remove("volumes", volume.id)


def test_the_same_awaited_and_parts(server, places, tomogram, quiet, tmp_path):
    import asyncio
    from dataclasses import replace

    async def work():
        async with lm.AsyncClient(server.url, places=places, n_parts=3) as client:
            options = replace(client.context.upload, part_bytes=200_000, can_skip=False)
            client.context = replace(client.context, upload=options)
            remote = await client.segment(tomogram, MODEL, run_dir=tmp_path / "r.run")
            return await remote.run

    same(asyncio.run(work()), quiet)
    assert ConnectOptions().n_parts == 1


def test_chaos(tmp_path):
    """A few rounds of the script that is run by hand with fifty."""
    path = Path(__file__).parents[2] / "benchmarks" / "chaos.py"
    spec = importlib.util.spec_from_file_location("chaos", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["chaos"] = module
    spec.loader.exec_module(module)
    chaos = module.Chaos(tmp_path, seed=3)
    try:
        for number in range(int(os.environ.get("LAMELLA_TEST_CHAOS_ROUNDS", "2"))):
            chaos.round(number)
    finally:
        chaos.close()


def wait_for(condition, process, limit_s=60):
    end = time.monotonic() + limit_s
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
