"""What holds for all of the client: light, discreet, the same awaited, good with other versions."""

import asyncio
import inspect
import json
import logging
import subprocess
import sys

import pytest
from fake_server import FakeServer, problem
from misfortune import Machine, MemoryPart

import lamella as lm
from lamella.client.answers import document_of
from lamella.client.download import download
from lamella.client.flow import Response
from lamella.client.job import WatchOptions, submit, watch
from lamella.client.patience import Patience
from lamella.client.upload import _place
from lamella.core.errors import (
    LamellaError,
    QuotaError,
    ServerConnectionError,
    StorageError,
    UnauthenticatedError,
)
from lamella.models.part import open_part
from lamella.wire.event import LogEvent, RunEvent, StateEvent
from lamella.wire.job import JobDoc, JobSpec
from lamella.wire.request import InputDoc, SegmentRequest

PATIENCE = Patience(chance=lambda: 0.5)
SPEC = JobSpec(request=SegmentRequest(input=InputDoc(path="volume:v1"), model="classical:otsu"))
SECRET = "lam_0123456789ab_thisisasecret"


# --- Light --------------------------------------------------------------------------------------


def test_the_client_is_light():
    """No network of neurons, no array library beyond NumPy, not even HTTP before it is spoken."""
    heavy = (
        "torch", "zarr", "pandas", "scipy", "skimage", "openvino", "numba", "fastapi", "sqlalchemy",
        "httpx2", "h5py", "PIL", "distributed", "cryptography",
    )  # fmt: skip
    code = "import sys, lamella.client.client, lamella.client.async_client; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & set(heavy)


def test_awaited_it_is_the_same():
    """The same methods with the same arguments; only waiting differs."""

    def surface(kind):
        return {
            name: list(inspect.signature(member).parameters)
            for name, member in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_") and name not in ("drive", "steps")
        }

    assert surface(lm.AsyncClient) == surface(lm.Client)


# --- Discreet -----------------------------------------------------------------------------------


def test_the_token_is_nowhere_but_in_its_header(fake, live, places, image_path, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    fake.token = SECRET
    texts = []
    with lm.Client(live, SECRET, places=places) as client:
        remote = client.segment(image_path, "classical:otsu", run_dir=tmp_path / "r.run")
        fake.say(remote.id, LogEvent(message="hello"))
        fake.say(remote.id, StateEvent(state="failed"))
        with pytest.raises(LamellaError) as failed:
            remote.wait()
        texts += [repr(one) for one in (client.endpoint, client.context, remote, vars(client))]
        texts.append(f"{failed.value!r} {failed.value.details} {failed.value.hint}")
    with lm.Client(live, SECRET + "x", places=places) as client:
        with pytest.raises(UnauthenticatedError) as refused:
            client.jobs()
        texts.append(f"{refused.value!r} {refused.value.details} {refused.value.hint}")
    texts += [caplog.text, *(path for _, path in fake.seen)]
    texts += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    texts.append(json.dumps([job.spec for job in fake.jobs.values()]))
    assert len(fake.seen) > 5
    assert not [text for text in texts if "thisisasecret" in text]


def test_a_token_that_expires_on_the_way(fake, live, places, image_path, tmp_path):
    """It is said at once; with a new one the same call goes on, and sends nothing again."""
    fake.token = SECRET
    honest = fake.handle

    def handle(method, path, *rest):
        if method == "POST" and path.endswith("jobs"):
            fake.token, fake.handle = "lam_new", honest
        return honest(method, path, *rest)

    fake.handle = handle
    folder = tmp_path / "r.run"
    with (
        lm.Client(live, SECRET, places=places) as client,
        pytest.raises(UnauthenticatedError) as caught,
    ):
        client.segment(image_path, "classical:otsu", run_dir=folder)
    assert "lamella login" in caught.value.hint
    n_seen = len(fake.seen)
    with lm.Client(live, "lam_new", places=places) as client:
        remote = client.segment(image_path, "classical:otsu", run_dir=folder)
        assert "PATCH" not in {method for method, _ in fake.seen[n_seen:]}
        fake.say(remote.id, LogEvent(message="hello"))
        events = remote.events()
        assert next(events).number == 1
        # While it is watched: the job goes on without a listener.
        fake.token = "lam_third"
        fake.changed.acquire()
        fake.changed.notify_all()
        fake.changed.release()
    assert fake.jobs[remote.id].state == "queued"
    with lm.Client(live, "lam_third", places=places) as client:
        again = client.segment(image_path, "classical:otsu", run_dir=folder)
        assert again.id == remote.id


# --- Hard times ---------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["watch", "download", "queue"])
def test_a_server_that_is_gone_for_good(what):
    """After patience one clear error; waits are bounded, and their sum is the patience."""
    server = FakeServer()
    job = Machine(server, []).run(submit(SPEC, "key", PATIENCE)).id
    server.artifacts["run.tar"] = bytes(100)
    machine = Machine(server, [("lost_before", 0.0)] * 100_000, piece=10)
    patience = Patience(chance=lambda: 0.5, total_s=600.0)
    # The same client had spoken with it before, whatever it does now.
    patience.contact.was_made = True
    flow = {
        "watch": lambda: watch(job, WatchOptions(), patience),
        "queue": lambda: watch(job, WatchOptions(has_stream=False), patience),
        "download": lambda: download(f"jobs/{job}/artifacts/run.tar", MemoryPart(), patience),
    }[what]()
    with pytest.raises(ServerConnectionError, match="tried again for 6") as caught:
        machine.run(flow)
    assert "the same command again" in caught.value.hint
    waits = [one.seconds for one in machine.told if getattr(one, "type", "") == "waiting"]
    assert max(waits) <= patience.longest_wait_s
    assert 600 <= machine.now_s <= 600 + patience.longest_wait_s + 5


def test_a_full_disk_keeps_what_came(tmp_path):
    server = FakeServer()
    job = Machine(server, []).run(submit(SPEC, "key", PATIENCE)).id
    server.artifacts["run.tar"] = bytes(range(200))
    address, part = f"jobs/{job}/artifacts/run.tar", MemoryPart(room=75)
    with pytest.raises(StorageError, match=r"the disk is full: .*run\.tar") as caught:
        Machine(server, [], piece=10).run(
            download(address, part, PATIENCE, place=tmp_path / "run.tar")
        )
    assert "free some space" in caught.value.hint
    assert part.size == 70
    part.room = 1000
    Machine(server, [], piece=10).run(download(address, part, PATIENCE))
    assert bytes(part.data) == bytes(range(200))
    assert part.n_come == 200, "what had come did not come again"


def test_a_part_on_a_full_device():
    """The same with a real file of the system that is always full."""
    from pathlib import Path

    from lamella.client.download import _Download
    from lamella.client.patience import Trouble

    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    work = _Download("a", MemoryPart(), Trouble(PATIENCE), "download", full)
    with full.open("wb", buffering=0) as stream, pytest.raises(StorageError, match="full"):
        work._write(stream.write, b"1")


@pytest.mark.parametrize(
    ("status", "code", "detail"),
    [
        (413, "quota_exceeded", "your volumes take 9.9 GB of 10 GB"),
        (507, "storage", "the server's disk is full"),
    ],
)
def test_no_room_on_the_server_is_said_once(
    fake, live, places, image_path, tmp_path, status, code, detail
):
    honest = fake.handle

    def handle(method, *rest):
        return problem(status, code, detail) if method == "PATCH" else honest(method, *rest)

    fake.handle = handle
    with (
        lm.Client(live, places=places) as client,
        pytest.raises(LamellaError, match=detail) as caught,
    ):
        client.segment(image_path, "classical:otsu", run_dir=tmp_path / "r.run")
    assert caught.value.code == code
    assert isinstance(caught.value, QuotaError | StorageError)
    assert [method for method, _ in fake.seen].count("PATCH") == 0, "nothing was taken"
    assert not (tmp_path / "r.run" / "manifest.json").exists()
    # Once there is room, the same call goes on.
    fake.handle = honest
    with lm.Client(live, places=places) as client:
        assert client.segment(image_path, "classical:otsu", run_dir=tmp_path / "r.run").id


@pytest.mark.parametrize(
    "location",
    [
        "/api/v1/uploads/u1", "uploads/u1", "https://gpu.lab/api/v1/uploads/u1",
        "http://behind.a.proxy:80/lamella/api/v1/uploads/u1/", "//host/files/u1?x=1#y",
    ],
)  # fmt: skip
def test_of_a_location_only_the_id_counts(location):
    """Proxies rewrite hosts, schemes and prefixes; the server is spoken to where it was found."""
    assert _place(Response(201, {"location": location}, b"", 0.0)) == "uploads/u1"


def test_a_creation_without_a_place():
    with pytest.raises(ServerConnectionError, match="without saying where"):
        _place(Response(201, {}, b"", 0.0))


# --- Other versions -----------------------------------------------------------------------------


@pytest.mark.parametrize("has_stream", [True, False])
def test_a_newer_server_may_say_more(has_stream):
    """Unknown fields are left out, unknown events passed over, and the end is heard."""
    server = FakeServer()
    name = Machine(server, []).run(submit(SPEC, "key", PATIENCE)).id
    server.say(name, StateEvent(state="running", attempt=1))
    events = server.jobs[name].events
    events.append({"number": len(events) + 1, "type": "weather", "time_s": 0.0})
    server.say(name, LogEvent(message="hello"))
    events[-1]["colour"] = "green"
    server.say(name, StateEvent(state="finished"))
    events[-1]["carbon_g"] = 3
    events.append({"number": len(events) + 1, "type": "epilogue", "time_s": 0.0})
    machine = Machine(server, [])
    job = machine.run(watch(name, WatchOptions(has_stream=has_stream), PATIENCE))
    assert job.state == "finished"
    heard = [event for event in machine.told if isinstance(event, RunEvent)]
    assert [event.type for event in heard] == ["state", "state", "log", "state"]


def test_documents_of_other_versions():
    server = FakeServer()
    job = Machine(server, []).run(submit(SPEC, "key", PATIENCE))
    words = job.model_dump(mode="json")
    newer = {**words, "mood": "good", "spec": {**words["spec"], "tags": ["a"]}}
    assert document_of(JobDoc, json.dumps(newer).encode(), what="job") == job
    older = {name: value for name, value in words.items() if name != "state"}
    with pytest.raises(ServerConnectionError, match=r"job cannot be read here \(state: ") as caught:
        document_of(JobDoc, older, what="job")
    assert "another version" in caught.value.hint


def test_something_else_than_lamella_answers(fake, live, places):
    fake.handle = lambda *_: (200, {"content-type": "text/html"}, b"<h1>It works!</h1>")
    with lm.Client(live, places=places) as client, pytest.raises(LamellaError) as caught:
        client.jobs()
    assert caught.value.hint

    async def work():
        async with lm.AsyncClient(live, places=places) as other:
            await other.volumes()

    with pytest.raises(LamellaError) as caught:
        asyncio.run(work())
    assert caught.value.hint


# --- Damage -------------------------------------------------------------------------------------


def test_damage_on_the_disk_is_found_and_fetched_again(tmp_path):
    """What lay here between two calls and is not what had come."""
    server = FakeServer()
    job = Machine(server, []).run(submit(SPEC, "key", PATIENCE)).id
    data = bytes(range(256)) * 4
    server.artifacts["run.tar"] = data
    address, path = f"jobs/{job}/artifacts/run.tar", tmp_path / "run.tar"
    with open_part(path, lambda: None) as part:
        Machine(server, []).run(download(address, part, PATIENCE))
    for place in (0, 500, 1023):
        changed = bytearray(path.read_bytes())
        changed[place] ^= 1
        path.write_bytes(changed)
        with open_part(path, lambda: None) as part:
            Machine(server, [], piece=100).run(download(address, part, PATIENCE))
        assert path.read_bytes() == data
