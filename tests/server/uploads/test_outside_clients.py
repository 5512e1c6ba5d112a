"""Clients that know nothing of us, against a real server: cut, resumed, killed, and right.

tuspy and aiotus come from PyPI, tus-js-client from npm; none is changed. Between them and
``lamella serve --tls self-signed`` stands a proxy that drops connections.
"""

import asyncio
import base64
import hashlib
import json
import os
import random
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import pytest

from lamella.testing.server import LiveServer, run_server

MIB = 2**20
CHUNK = 5 * MIB
SERVER_FLAGS = ("--gpus", "none", "--rate-limit", "0")


class CuttingProxy:
    """Passes bytes on, and drops a connection once it has carried so many; a number a cut."""

    def __init__(self, target: int, cuts: list[int]) -> None:
        self.target, self.cuts, self.n_cut = target, list(cuts), 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                client.close()
                continue
            self._open += [client, server]
            for ends in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, may_cut: bool) -> None:
        n_bytes = 0
        try:
            while block := source.recv(65_536):
                n_bytes += len(block)
                if may_cut and self.cuts and n_bytes > self.cuts[0]:
                    del self.cuts[0]
                    self.n_cut += 1
                    break
                sink.sendall(block)
        except OSError:
            pass
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        for one in self._open:
            one.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("server") / "data"
    with run_server(folder, "--tls", "self-signed", *SERVER_FLAGS) as made:
        yield made


@pytest.fixture(autouse=True)
def _trusted(server, monkeypatch):
    """Whom tuspy's own library trusts."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", server.certificate)


@pytest.fixture
def proxy(server) -> Iterator[CuttingProxy]:
    made = CuttingProxy(port_of(server), [3 * MIB, 2 * MIB + 12_345, 700_000])
    yield made
    made.close()


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "tomo.raw"
    path.write_bytes(random.Random(0).randbytes(8 * MIB + 17))
    return path


def port_of(server: LiveServer) -> int:
    return int(server.url.rpartition(":")[2])


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_upload(server: LiveServer, address: str, path: Path) -> None:
    """The server has the whole file, byte for byte."""
    context = ssl.create_default_context(cafile=server.certificate)
    upload = address.rpartition("/")[2]
    where = f"{server.url}/api/v1/uploads/{upload}"
    document = httpx2.get(where, headers=server.headers, verify=context).json()
    assert document["state"] == "finished"
    assert document["n_bytes"] == path.stat().st_size
    assert document["sha256"] == sha256_of(path)
    assert sha256_of(server.data_dir / "uploads" / upload / "data") == sha256_of(path)


def metadata_of(path: Path) -> dict[str, str]:
    return {"filename": path.name, "sha256": sha256_of(path), "volume": "0"}


@contextmanager
def tuspy_uploader(server: LiveServer, port: int, path: Path, **options):
    from tusclient.client import TusClient

    client = TusClient(f"https://127.0.0.1:{port}/api/v1/uploads", headers=server.headers)
    # Given a path, tuspy opens the file anew for every chunk and leaves it open.
    with path.open("rb") as stream:
        yield client.uploader(
            file_stream=stream, chunk_size=CHUNK, metadata=metadata_of(path), retries=100,
            retry_delay=0.1, **options,
        )  # fmt: skip


@pytest.mark.parametrize("with_checksum", [False, True])
def test_tuspy_is_cut_and_goes_on(server, proxy, sample, with_checksum):
    with tuspy_uploader(server, proxy.port, sample, upload_checksum=with_checksum) as uploader:
        uploader.upload()
    assert proxy.n_cut >= 2
    check_upload(server, uploader.url, sample)


def test_tuspy_outlives_a_killed_server(server, sample):
    with tuspy_uploader(server, port_of(server), sample) as uploader:
        uploader.upload_chunk()
        assert uploader.offset == CHUNK
        server.kill()
        sending = threading.Thread(target=uploader.upload)
        sending.start()
        # Here: the server ends with the thread that started it.
        server.start()
        sending.join()
    check_upload(server, uploader.url, sample)


def test_aiotus_is_cut_and_goes_on(server, proxy, sample):
    import aiotus

    async def upload(function, given):
        context = ssl.create_default_context(cafile=server.certificate)
        with sample.open("rb") as stream:
            return await function(
                f"https://127.0.0.1:{proxy.port}/api/v1/uploads",
                stream if given == 1 else [stream],
                {name: value.encode() for name, value in metadata_of(sample).items()},
                config=aiotus.RetryConfiguration(max_retry_period_seconds=0.1, ssl=context),
                headers=server.headers,
                chunksize=MIB - 1,  # aiohttp warns of larger ones
            )

    address = asyncio.run(upload(aiotus.upload, 1))
    assert address is not None
    assert proxy.n_cut >= 2
    check_upload(server, str(address), sample)


def test_aiotus_sends_parts_side_by_side(server, sample, tmp_path):
    import aiotus

    whole = sample.read_bytes()
    parts = []
    for number, cut in enumerate((slice(0, CHUNK), slice(CHUNK, None))):
        path = tmp_path / f"part{number}"
        path.write_bytes(whole[cut])
        parts.append(path.open("rb"))

    async def upload():
        context = ssl.create_default_context(cafile=server.certificate)
        return await aiotus.upload_multiple(
            f"https://127.0.0.1:{port_of(server)}/api/v1/uploads",
            parts,
            {name: value.encode() for name, value in metadata_of(sample).items()},
            config=aiotus.RetryConfiguration(ssl=context),
            headers=server.headers,
            chunksize=MIB - 1,
        )

    try:
        address = asyncio.run(upload())
    finally:
        for one in parts:
            one.close()
    check_upload(server, str(address), sample)


# --- tus-js-client --------------------------------------------------------------------------------

SCRIPT = """
const tus = require("tus-js-client"), fs = require("fs");
const [path, endpoint, token, metadata, parallel] = process.argv.slice(2);
const upload = new tus.Upload(fs.createReadStream(path), {
  endpoint, metadata: JSON.parse(metadata), chunkSize: 5 * 1024 * 1024,
  parallelUploads: Number(parallel), retryDelays: Array(20).fill(200),
  headers: { Authorization: "Bearer " + token },
  onError: (error) => { console.error(String(error)); process.exit(1); },
  onSuccess: () => console.log(upload.url),
});
upload.start();
"""


@pytest.fixture(scope="session")
def node(node_packages):
    """A folder with tus-js-client, and what uploads with it."""
    folder = node_packages
    (folder / "upload.js").write_text(SCRIPT)
    return folder


def run_node(node: Path, server: LiveServer, port: int, path: Path, parallel: int = 1) -> str:
    done = subprocess.run(
        [
            "node", node / "upload.js", path, f"https://127.0.0.1:{port}/api/v1/uploads",
            server.token, json.dumps(metadata_of(path)), str(parallel),
        ],
        capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "NODE_EXTRA_CA_CERTS": server.certificate},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_tus_js_client_is_cut_and_goes_on(server, proxy, sample, node):
    address = run_node(node, server, proxy.port, sample)
    assert proxy.n_cut >= 2
    check_upload(server, address, sample)


def test_tus_js_client_sends_parts_side_by_side(server, proxy, sample, node):
    address = run_node(node, server, proxy.port, sample, parallel=3)
    check_upload(server, address, sample)


# --- kill -9 --------------------------------------------------------------------------------------


def test_no_acknowledged_byte_is_lost_when_the_server_is_killed_at_random(server):
    """Rounds of sending, killing at a random moment, and asking how much is there."""
    rng = random.Random(time.time_ns())
    body = rng.randbytes(6 * MIB)
    told = {"sha256": hashlib.sha256(body).hexdigest(), "volume": "0"}
    metadata = ",".join(
        f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in told.items()
    )
    n_kills = 0
    with httpx2.Client(
        headers=server.headers | {"Tus-Resumable": "1.0.0"},
        verify=ssl.create_default_context(cafile=server.certificate),
    ) as client:
        made = client.post(
            f"{server.url}/api/v1/uploads",
            headers={"Upload-Length": str(len(body)), "Upload-Metadata": metadata},
        )
        where = made.headers["Location"]
        offset = acknowledged = 0
        while offset < len(body):
            # It hits a body on its way, a write, an answer, or nothing.
            timer = threading.Timer(rng.uniform(0.01, 0.1), server.kill)
            if n_kills < 2:
                timer.start()
            try:
                while offset < len(body):
                    chunk = body[offset : offset + rng.randrange(1, MIB // 2)]
                    sent = client.patch(
                        where, content=chunk,
                        headers={
                            "Content-Type": "application/offset+octet-stream",
                            "Upload-Offset": str(offset),
                        },
                    )  # fmt: skip
                    assert sent.status_code == 204, sent.text
                    acknowledged = offset = int(sent.headers["Upload-Offset"])
                    time.sleep(rng.uniform(0, 0.02))
                    if n_kills < 2 and offset == len(body):
                        timer.join()
                        client.get(f"{server.url}/api/v1/health")
            except httpx2.TransportError:
                timer.join()
                n_kills += 1
                server.start()
                offset = int(client.head(where).headers["Upload-Offset"])
                assert offset >= acknowledged
        document = client.get(where).json()
    assert n_kills
    assert document["state"] == "finished"
    assert document["sha256"] == told["sha256"]
