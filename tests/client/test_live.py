"""Both drivers over real sockets: the same flows, cuts, certificates, a whole remote run."""

import asyncio
import datetime
import hashlib
import ssl
import tarfile
import threading
from dataclasses import replace

import numpy as np
import pytest
from fake_server import live as serve
from fake_server import until

import lamella as lm
from lamella.client.upload import UploadOptions
from lamella.core.errors import (
    InputError,
    LamellaError,
    RunCancelledError,
    RunError,
    ServerConnectionError,
    UnauthenticatedError,
)
from lamella.core.progress import Progress
from lamella.testing.proxy import Proxy
from lamella.wire.event import LabelsDelta, LogEvent, PreviewEvent, StateEvent
from lamella.wire.problem import Problem


@pytest.fixture
def client(live, places):
    with lm.Client(live, places=places) as opened:
        yield opened


@pytest.fixture
def finished(fake, image_path, tmp_path):
    """A server whose jobs have a real run as their result; the local run."""
    local = lm.segment(image_path, "classical:otsu", run_dir=tmp_path / "local.run")
    archive = tmp_path / "run.tar"
    there = tmp_path / "there"
    run = lm.segment(image_path, "classical:otsu", run_dir=there / "j.run")
    text = run.folder.joinpath("manifest.json").read_text()
    (run.folder / "manifest.json").write_text(text.replace(str(image_path), "volume:v2"))
    with tarfile.open(archive, "w") as opened:
        opened.add(there / "j.run", "j.run")
    fake.artifacts["run.tar"] = archive.read_bytes()
    return local


def play(fake, n=1, state="finished", problem=None):
    """Run the n-th job, once it has come."""

    def work():
        until(lambda: len(fake.jobs) >= n)
        name = list(fake.jobs)[n - 1]
        fake.say(name, StateEvent(state="running", attempt=1))
        fake.say(name, LogEvent(message="hello"))
        fake.say(name, StateEvent(state=state, problem=problem))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def same(a, b):
    assert np.array_equal(a.labels.load(), b.labels.load())
    assert (a.folder / "objects.csv").read_bytes() == (b.folder / "objects.csv").read_bytes()
    names = {p.name for p in a.folder.iterdir()}
    assert names == {p.name for p in b.folder.iterdir()}
    assert a.manifest.request == b.manifest.request
    assert a.manifest.input == b.manifest.input
    assert a.manifest.labels == b.manifest.labels


def test_a_remote_run_is_a_local_run(fake, client, finished, image_path, tmp_path):
    told = []

    class Sink(lm.CancelToken):
        def emit(self, event):
            told.append(event)

    thread = play(fake)
    remote = client.segment(
        image_path, "classical:otsu", run_dir=tmp_path / "remote.run", sink=Sink()
    )
    assert {e.stage for e in told if isinstance(e, Progress)} == {"fingerprint", "upload"}
    numbers = [event.number for event in remote.events()]
    assert numbers == [1, 2, 3, 4]
    thread.join()
    assert remote.job.state == "finished"
    same(remote.run, finished)
    # Again: everything is here already, and nothing is asked of the server but its volume.
    again = client.segment(image_path, "classical:otsu", run_dir=tmp_path / "remote.run")
    assert again.run.was_finished
    assert list(again.events()) == []
    assert len(fake.jobs) == 1
    with pytest.raises(RunError, match="another run"):
        client.segment(image_path, "classical:li", run_dir=tmp_path / "remote.run")
    play(fake, 2)
    other = client.segment(
        image_path, "classical:otsu", run_dir=tmp_path / "remote.run", overwrite=True
    )
    assert other.run.is_finished
    assert len(fake.volumes) == 1


def test_the_same_awaited(fake, live, places, finished, image_path, tmp_path):
    async def work():
        async with lm.AsyncClient(live, places=places) as client:
            thread = play(fake)
            remote = await client.segment(
                image_path, "classical:otsu", run_dir=tmp_path / "remote.run"
            )
            numbers = [event.number async for event in remote.events()]
            assert numbers == [1, 2, 3, 4]
            assert (await remote.job).state == "finished"
            same(await remote.run, finished)
            thread.join()
            assert [job.state for job in await client.jobs()] == ["finished"]
            assert len(await client.volumes()) == len(await client.uploads()) == 1
            assert await client.log(remote.id) == "all is well\n"
            submitted = await client.submit(image_path, "classical:otsu", name="x", priority=3)
            assert (await submitted.cancel()).state == "cancelled"
            assert (await submitted.retry()).state == "queued"
            await client.remove("uploads", (await client.uploads())[0].id)
            with pytest.raises(LamellaError, match="no such job"):
                await client.job("none")

    asyncio.run(work())


def test_a_second_process_goes_on_with_the_job(fake, client, finished, image_path, tmp_path):
    folder = tmp_path / "remote.run"
    first = client.segment(image_path, "classical:otsu", run_dir=folder)
    # A local run keeps off, another request too.
    with pytest.raises(InputError, match="waits for a run of a server"):
        lm.segment(image_path, "classical:otsu", run_dir=folder)
    with pytest.raises(RunError, match="another request"):
        client.segment(image_path, "classical:li", run_dir=folder)
    play(fake)
    second = client.segment(image_path, "classical:otsu", run_dir=folder)
    assert second.id == first.id
    same(second.run, finished)
    assert len(fake.jobs) == 1


def test_a_failed_job_is_tried_again_by_the_same_call(fake, client, finished, image_path, tmp_path):
    folder = tmp_path / "remote.run"
    problem = Problem(code="engine_failed", message="the GPU fell off", hint="put it back")
    play(fake, state="failed", problem=problem)
    remote = client.segment(image_path, "classical:otsu", run_dir=folder)
    with pytest.raises(LamellaError, match="the GPU fell off"):
        _ = remote.run
    again = client.segment(image_path, "classical:otsu", run_dir=folder)
    assert again.id == remote.id
    assert again.job.state == "queued"
    play(fake)
    same(again.run, finished)
    # Where the server has forgotten the job, it is a new one.
    client.segment(image_path, "classical:otsu", run_dir=tmp_path / "b.run")
    fake.jobs.clear()
    third = client.segment(image_path, "classical:otsu", run_dir=tmp_path / "b.run")
    assert list(fake.jobs) == [third.id]
    fresh = client.segment(image_path, "classical:otsu", run_dir=tmp_path / "b.run", fresh=True)
    assert fresh.id != third.id
    assert fake.jobs[third.id].state == "cancelled"


def test_previews_come_into_the_run_folder(fake, client, image_path, tmp_path):
    import base64
    import zlib

    volume = lm.open(image_path)
    shape = volume.spatial_shape
    coarse = tuple(n // 2 for n in shape)
    folder = tmp_path / "remote.run"

    def delta(array, factors):
        data = base64.b64encode(zlib.compress(array.tobytes())).decode()
        return LabelsDelta(dtype=str(array.dtype), shape=array.shape, factors=factors, data=data)

    remote = client.segment(image_path, "classical:otsu", run_dir=folder)
    words = {"path": "x", "factors": (2.0,) * 3, "box_start": (0, 0, 0)}
    first = np.ones(coarse, np.uint8)
    fake.say(
        remote.id,
        PreviewEvent(**words, box_stop=shape, is_final=False, labels=delta(first, (2.0,) * 3)),
    )
    final = np.full((shape[0] // 2, *shape[1:]), 2, np.uint8)
    fake.say(
        remote.id,
        PreviewEvent(**words, box_stop=final.shape, is_final=True, labels=delta(final, (1.0,) * 3)),
    )
    broken = delta(final, (1.0,) * 3).model_copy(update={"data": "AAAA"})
    fake.say(remote.id, PreviewEvent(**words, box_stop=final.shape, is_final=True, labels=broken))
    play(fake)
    assert [e.type for e in remote.events()].count("preview") == 3
    shown = lm.open(folder / "preview.ome.zarr")
    assert shown.spatial_shape == coarse
    values = np.asarray(shown.data[...])
    assert (values[: coarse[0] // 2] == 2).all()
    assert (values[coarse[0] // 2 :] == 1).all()
    middle = shown.affine.apply([(0, 0, 0)])
    assert np.allclose(middle, volume.affine.apply([(0.5, 0.5, 0.5)]))


class _Counting(Proxy):
    """Knows how often it was cut."""

    n_cuts = 0

    def cut(self, **words):
        self.n_cuts += 1
        super().cut(**words)


def test_cuts_in_upload_and_watch_and_download(fake, live, places, finished, image_path, tmp_path):
    proxy = _Counting(live)
    try:
        with lm.Client(proxy.url, places=places) as client:
            client.context = _quick(client.context)
            client.request("GET", "volumes")

            def mender():
                while proxy.n_cuts < 3:
                    if proxy.is_cut:
                        stop.wait(0.3)
                        proxy.mend()
                    stop.wait(0.02)

            stop = threading.Event()
            threading.Thread(target=mender, daemon=True).start()
            proxy.limit = proxy.n_bytes + 60_000
            remote = client.segment(image_path, "classical:otsu", run_dir=tmp_path / "r.run")
            assert proxy.n_cuts == 1
            events = remote.events()
            assert next(events).number == 1
            proxy.cut()
            play(fake).join()
            assert [event.number for event in events] == [2, 3, 4]
            proxy.limit = proxy.n_bytes + 20_000
            threading.Timer(0.5, proxy.mend).start()
            same(remote.run, finished)
            assert proxy.n_cuts == 3
            stop.set()
    finally:
        proxy.close()
    data = image_path.read_bytes()
    assert [v["sha256"] for v in fake.volumes.values()] == [hashlib.sha256(data).hexdigest()]


def _quick(context):

    patience = replace(context.patience, first_wait_s=0.05, longest_wait_s=0.2)
    return replace(context, patience=patience, upload=UploadOptions(1024, 8192, 16384))


def test_parts_are_sent_at_the_same_time_and_joined(fake, live, places, tmp_path):

    data = np.random.default_rng(0).bytes(300_000)
    path = tmp_path / "a.raw"
    path.write_bytes(data)
    options = UploadOptions(1024, 8192, 16384, n_parts=3, part_bytes=50_000)
    with lm.Client(live, places=places) as client:
        client.context = replace(client.context, upload=options)
        volume = client.upload(path)

    async def work():
        async with lm.AsyncClient(live, places=places) as client:
            client.context = replace(client.context, upload=options)
            fake.volumes.clear()
            return await client.upload(path)

    assert volume.sha256 == asyncio.run(work()).sha256 == hashlib.sha256(data).hexdigest()


def test_a_part_that_fails_ends_the_others(fake, live, places, tmp_path):

    path = tmp_path / "a.raw"
    path.write_bytes(bytes(300_000))
    options = UploadOptions(64, 64, 64, n_parts=3, part_bytes=50_000)
    n = 0
    honest = fake.handle

    def handle(method, *rest):
        nonlocal n
        n += method == "PATCH"
        if n == 20:
            from fake_server import problem

            return problem(413, "quota_exceeded", "enough")
        return honest(method, *rest)

    fake.handle = handle
    with lm.Client(live, places=places) as client:
        client.context = replace(client.context, upload=options)
        with pytest.raises(LamellaError, match="enough"):
            client.upload(path)

        async def work():
            async with lm.AsyncClient(live, places=places) as other:
                other.context = replace(other.context, upload=options)
                await other.upload(path)

        n = 0
        with pytest.raises(LamellaError, match="enough"):
            asyncio.run(work())
    assert n < 100


def test_a_sink_stops_the_upload_and_the_watching(fake, client, image_path, tmp_path):
    class Sink(lm.CancelToken):
        def emit(self, event):
            if isinstance(event, Progress) and event.stage == "upload":
                self.cancel()
            if isinstance(event, LogEvent):
                self.cancel()

    with pytest.raises(RunCancelledError):
        client.segment(image_path, "classical:otsu", run_dir=tmp_path / "r.run", sink=Sink())
    assert not fake.jobs
    remote = client.segment(image_path, "classical:otsu", run_dir=tmp_path / "r.run")
    fake.say(remote.id, LogEvent(message="hello"))
    with pytest.raises(RunCancelledError):
        remote.wait(Sink())
    assert fake.jobs[remote.id].state == "queued"


@pytest.mark.parametrize("is_moving", [False, True])
def test_a_download_that_was_stopped_goes_on(
    fake, client, finished, image_path, tmp_path, monkeypatch, is_moving
):
    """Of a job that somebody else submitted: no note in the folder says what it waits for."""

    class Sink(lm.CancelToken):
        def emit(self, event):
            if isinstance(event, Progress) and event.stage == "download" and not is_moving:
                self.cancel()

    def stop(unpacked, folder, asked):
        (unpacked / "labels.ome.zarr").rename(folder.path / "labels.ome.zarr")
        raise RunCancelledError("stopped")

    play(fake)
    job = client.submit(image_path, "classical:otsu").id
    client.job(job).wait()
    folder = tmp_path / "theirs.run"
    with monkeypatch.context() as patch:
        if is_moving:
            patch.setattr("lamella.client.follow.settle", stop)
        with pytest.raises(RunCancelledError):
            client.job(job).download(folder, sink=Sink())
    assert folder.is_dir()
    run = client.job(job).download(folder)
    assert np.array_equal(run.labels.load(), finished.labels.load())
    assert {p.name for p in run.folder.iterdir()} == {p.name for p in finished.folder.iterdir()}
    with pytest.raises(RunError, match="holds a run already"):
        client.job(job).download(folder)


def test_a_token_is_asked_for(fake, live, places, tmp_path):
    fake.token = "lam_1"
    with lm.Client(live, places=places) as client, pytest.raises(UnauthenticatedError):
        client.jobs()
    with lm.Client(live, "lam_1", places=places) as client:
        assert client.jobs() == []


def test_nobody_is_there(places):
    with (
        lm.Client("http://127.0.0.1:9", places=places, patience_s=0.3) as client,
        pytest.raises(ServerConnectionError, match="cannot be reached") as caught,
    ):
        client.jobs()
    assert "lamella serve" in caught.value.hint


def test_a_server_that_is_away_when_one_comes_back_is_waited_for(
    fake, places, image_path, tmp_path
):
    """Another process, a server that restarts: it has answered before, so it will again."""
    folder = tmp_path / "r.run"
    with serve(fake) as url, lm.Client(url, places=places) as client:
        job = client.segment(image_path, "classical:otsu", run_dir=folder).id
    told = []

    class Sink(lm.CancelToken):
        def emit(self, event):
            told.append(event)

    with lm.Client(url, places=places, patience_s=1.0) as client:
        patience = replace(client.context.patience, first_s=0.0, first_wait_s=0.05)
        client.context = replace(client.context, patience=patience)
        with pytest.raises(ServerConnectionError, match="tried again for"):
            client.segment(image_path, "classical:otsu", run_dir=folder, sink=Sink())
    assert {event.type for event in told} == {"waiting"}
    assert job in fake.jobs


# --- Certificates -------------------------------------------------------------------------------


def certificate(folder):
    """A self-signed certificate for another name, long expired, and its pin."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "elsewhere")])
    then = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(then)
        .not_valid_after(then + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(exist_ok=True)
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = (
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (folder / "key.pem").write_bytes(key.private_bytes(*plain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context, made.fingerprint(hashes.SHA256()).hex()


def test_only_the_pinned_certificate_is_spoken_to(fake, places, tmp_path):
    context, pin = certificate(tmp_path / "tls")
    with serve(fake, context) as url:
        with (
            lm.Client(url, places=places) as client,
            pytest.raises(ServerConnectionError) as caught,
        ):
            client.jobs()
        # Nothing was asked, and the error gives the pin to compare.
        assert pin in caught.value.message
        assert fake.seen == []
        with (
            lm.Client(url, places=places, pin="00" * 32) as client,
            pytest.raises(ServerConnectionError, match="another certificate"),
        ):
            client.jobs()
        assert fake.seen == []
        with lm.Client(url, places=places, pin=pin) as client:
            assert client.jobs() == []
        # Kept; and a wrong one, given for once, does not take its place.
        with (
            lm.Client(url, places=places, pin="11" * 32) as client,
            pytest.raises(ServerConnectionError, match="another certificate"),
        ):
            client.jobs()
        with lm.Client(url, places=places) as client:
            assert client.jobs() == []

        async def work():
            async with lm.AsyncClient(url, places=places) as other:
                assert await other.jobs() == []
            async with lm.AsyncClient(url, places=places, pin="00" * 32) as other:
                await other.jobs()

        with pytest.raises(ServerConnectionError, match="another certificate"):
            asyncio.run(work())


def test_the_first_certificate_is_kept_and_another_refused(fake, places, tmp_path):
    from lamella.client.servers import Servers

    first, pin = certificate(tmp_path / "a")
    with serve(fake, first) as url:
        with lm.Client(url, places=places, pin="first") as client:
            client.jobs()
        assert Servers(places.servers).get(url).pin == pin
        n_seen = len(fake.seen)
    other, _ = certificate(tmp_path / "b")
    known = Servers(places.servers).get(url)
    with serve(fake, other) as moved:
        Servers(places.servers).put(moved, known)
        for words in ({}, {"pin": "first"}):
            with (
                lm.Client(moved, places=places, **words) as client,
                pytest.raises(ServerConnectionError, match="either it was renewed"),
            ):
                client.jobs()
        assert len(fake.seen) == n_seen


def test_tls_and_plain_are_not_mixed_up(fake, live, places):
    secure = live.replace("http://", "https://")
    with (
        lm.Client(secure, places=places, pin="first", patience_s=0.2) as client,
        pytest.raises(ServerConnectionError),
    ):
        client.jobs()


def test_what_cannot_be_sent(client, image_path, tmp_path, volume):
    with pytest.raises(InputError, match="array in memory"):
        client.segment(volume, "classical:otsu", run_dir=tmp_path / "r.run")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.json").write_text("{}")
    with pytest.raises(InputError, match="folder on this machine"):
        client.segment(image_path, str(tmp_path / "m"), run_dir=tmp_path / "r.run")
    (tmp_path / "no.mrc").write_bytes(b"nothing")
    with pytest.raises(LamellaError):
        client.segment(tmp_path / "no.mrc", "classical:otsu", run_dir=tmp_path / "r.run")
    with pytest.raises(InputError, match="not valid"):
        client.segment(image_path, "classical:otsu", run_dir=tmp_path / "r.run", wrong=1)
    assert not (tmp_path / "r.run").exists()


def test_paths_on_the_server_are_not_uploaded(fake, client):
    for source, path in (
        ("server:/data/a.mrc", "/data/a.mrc"),
        ("s3://b/a.zarr", "s3://b/a.zarr"),
        ("volume:v7", "volume:v7"),
    ):
        remote = client.submit(source, "classical:otsu")
        assert remote.job.spec.request.input.path == path
    assert not fake.uploads
