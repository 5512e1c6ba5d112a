"""Uploads over loopback: Lamella, tuspyserver and the reference Node server, with one client.

    python benchmarks/bench_uploads.py time                   4 GiB to each, three times in turn
    python benchmarks/bench_uploads.py memory                 10 GB: what the servers' memory does
    python benchmarks/bench_uploads.py time --gib 0.25        a small round
    python benchmarks/bench_uploads.py time --folder /data    another disk

The client is a socket and `sendfile`: what is measured are the servers. It sends PATCH requests of
64 MiB on one connection. Lamella hashes the whole file, compares the SHA-256 that was announced,
and answers once the bytes are on the disk; the others do none of this.

`time` measures twice. In memory (`/dev/shm`), where bringing bytes to the disk costs nothing, the
protocol, the hash and the writes are compared. On the disk, the others answer when the system's
cache has the bytes: for them a `sync` of the file is timed as well, since only then is the same
promised.
"""

import argparse
import base64
import hashlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from lamella.testing.server import run_server

HERE = Path(__file__).parent
RESULTS = HERE / "results"
MIB = 2**20
GIB = 2**30
FLAGS = ("--gpus", "none", "--rate-limit", "0", "--log-level", "warning")

TUSPYSERVER = """
import sys
import uvicorn
from fastapi import FastAPI
from tuspyserver import create_tus_router
app = FastAPI()
app.include_router(create_tus_router(prefix="files", files_dir=sys.argv[1]))
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error", access_log=False)
"""
NODE = """
import { Server } from "@tus/server";
import { FileStore } from "@tus/file-store";
const [folder, port] = process.argv.slice(2);
const datastore = new FileStore({ directory: folder });
new Server({ path: "/files", datastore }).listen({ host: "127.0.0.1", port: Number(port) });
"""


# --- Servers ------------------------------------------------------------------------------------


class Running:
    """A server: where uploads are created, what every request says, its process, its files."""

    def __init__(self, url, headers, pid, folder):
        parts = urlsplit(url)
        self.port, self.path = parts.port, parts.path
        self.headers = {"Tus-Resumable": "1.0.0", **headers}
        self.process = psutil.Process(pid)
        self.folder = folder


@contextmanager
def lamella(folder):
    with run_server(folder / "data", "--max-upload-bytes", "50GB", *FLAGS) as server:
        url = f"{server.url}/api/v1/uploads"
        yield Running(url, server.headers, server.pid, folder / "data" / "uploads")


@contextmanager
def started(words, folder, port):
    folder.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(words)
    try:
        for _ in range(300):
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        else:
            sys.exit(f"{words[0]} did not come up")
        yield Running(f"http://127.0.0.1:{port}/files", {}, process.pid, folder)
    finally:
        process.kill()
        process.wait()


@contextmanager
def tuspyserver(folder):
    port = free_port()
    words = [sys.executable, "-c", TUSPYSERVER, str(folder / "files"), str(port)]
    with started(words, folder / "files", port) as server:
        yield server


@contextmanager
def node(folder):
    port = free_port()
    packages = folder / "node"
    shutil.copytree(HERE / "node", packages)
    subprocess.run(
        ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", packages],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    (packages / "server.js").write_text(NODE)
    words = ["node", str(packages / "server.js"), str(folder / "files"), str(port)]
    with started(words, folder / "files", port) as server:
        yield server


SERVERS = {"lamella": lamella, "tuspyserver": tuspyserver, "node": node}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


# --- The client ---------------------------------------------------------------------------------


class Client:
    """One connection; requests by hand."""

    def __init__(self, server):
        self.server = server
        self.socket = socket.create_connection(("127.0.0.1", server.port))
        self.answers = self.socket.makefile("rb")

    def ask(self, method, path, headers, file=None, offset=0, n_bytes=0):
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.server.port}"]
        told = self.server.headers | headers | {"Content-Length": str(n_bytes)}
        lines += [f"{name}: {value}" for name, value in told.items()]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
        if n_bytes:
            self.socket.sendfile(file, offset, n_bytes)
        return self.answer()

    def answer(self):
        status = int(self.answers.readline().split()[1])
        headers = {}
        while (line := self.answers.readline().strip()) != b"":
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        body = self.answers.read(int(headers.get("content-length", 0)))
        if headers.get("transfer-encoding") == "chunked":
            while n_bytes := int(self.answers.readline(), 16):
                body += self.answers.read(n_bytes + 2)
            self.answers.readline()
        assert status in (200, 201, 204), (status, body)
        return headers


def upload(server, sample, chunk_bytes):
    """Seconds until the last byte was acknowledged; the name of the upload."""
    told = {"filename": "sample.raw", "sha256": sample.sha256, "volume": "0"}
    metadata = ",".join(
        f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in told.items()
    )
    began = time.perf_counter()
    client = Client(server)
    length = {"Upload-Length": str(sample.n_bytes), "Upload-Metadata": metadata}
    place = urlsplit(client.ask("POST", server.path, length)["location"]).path
    with sample.path.open("rb") as file:
        for offset in range(0, sample.n_bytes, chunk_bytes):
            n_bytes = min(chunk_bytes, sample.n_bytes - offset)
            headers = {
                "Upload-Offset": str(offset),
                "Content-Type": "application/offset+octet-stream",
            }
            answer = client.ask("PATCH", place, headers, file, offset, n_bytes)
    assert int(answer["upload-offset"]) == sample.n_bytes
    return time.perf_counter() - began, place.rpartition("/")[2]


class Sample:
    """A file of noise, in the page cache, and its SHA-256."""

    def __init__(self, folder, n_bytes):
        self.path, self.n_bytes = folder / "sample.raw", n_bytes
        digest = hashlib.sha256()
        block = os.urandom(16 * MIB)
        with self.path.open("wb") as file:
            left = n_bytes
            while left:
                # Every block differs from the one before.
                block = os.urandom(64) + block[64:]
                piece = block[: min(left, len(block))]
                file.write(piece)
                digest.update(piece)
                left -= len(piece)
        self.sha256 = digest.hexdigest()


def data_of(server, name):
    """The file that an upload became."""
    found = [path for path in server.folder.rglob("*") if path.is_file() and name in str(path)]
    return max(found, key=lambda path: path.stat().st_size)


def remove_all(server):
    for path in server.folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


# --- What is measured ---------------------------------------------------------------------------


def one_round(server, sample, chunk_bytes):
    """Rate in MB/s, and the rate until the bytes are on the disk."""
    seconds, name = upload(server, sample, chunk_bytes)
    data = data_of(server, name)
    assert data.stat().st_size == sample.n_bytes
    began = time.perf_counter()
    with data.open("rb") as file:
        os.fsync(file.fileno())
    safe_s = seconds + time.perf_counter() - began
    remove_all(server)
    return sample.n_bytes / seconds / 1e6, sample.n_bytes / safe_s / 1e6


def rates(folder, sample, arguments):
    """Medians of every server, measured in turn."""
    found = {name: [] for name in SERVERS}
    names = list(SERVERS)
    for turn in range(arguments.repeats):
        # One server at a time: an idle one would still have its workers. Each begins once: whoever
        # does may be the first to touch memory that a virtual machine has yet to be given.
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = SERVERS[name]
            with tempfile.TemporaryDirectory(dir=folder) as inside, start(Path(inside)) as server:
                # The first request pays for imports and compilation.
                upload(server, sample.small, MIB)
                found[name].append(one_round(server, sample, int(arguments.chunk_mib * MIB)))
            os.sync()
    medians = {
        name: [round(statistics.median(one), 1) for one in zip(*values, strict=True)]
        for name, values in found.items()
    }
    ours, theirs, nodes = (medians[name] for name in SERVERS)
    return {
        "mb_s": {name: values[0] for name, values in medians.items()},
        "mb_s_until_on_disk": {name: values[1] for name, values in medians.items()},
        "ratio_tuspyserver": round(ours[0] / theirs[0], 2),
        "ratio_node": round(ours[0] / nodes[0], 2),
        "ratio_tuspyserver_until_on_disk": round(ours[1] / theirs[1], 2),
        "ratio_node_until_on_disk": round(ours[1] / nodes[1], 2),
    }


def make_sample(folder, n_bytes):
    sample = Sample(folder, n_bytes)
    (folder / "small").mkdir()
    sample.small = Sample(folder / "small", MIB)
    return sample


def measure_time(arguments):
    n_bytes = int(arguments.gib * GIB)
    memory = Path("/dev/shm")
    places = {"disk": Path(arguments.folder or tempfile.gettempdir())}
    if memory.is_dir() and shutil.disk_usage(memory).free > 3 * n_bytes:
        places = {"memory": memory} | places
    found = {}
    # Beside what is written in memory, where it is read at no cost.
    where = memory if "memory" in places else places["disk"]
    with tempfile.TemporaryDirectory(dir=where) as name:
        sample = make_sample(Path(name), n_bytes)
        for place, folder in places.items():
            found[place] = rates(folder, sample, arguments)
            print(place, json.dumps(found[place]), flush=True)
    keep(
        "uploads-time" if arguments.gib == 4 else f"uploads-time-{arguments.gib:g}-gib",
        {
            "gib": arguments.gib,
            "chunk_mib": arguments.chunk_mib,
            "repeats": arguments.repeats,
            **found,
        },
    )


def measure_memory(arguments):
    n_bytes = int(arguments.gib * GIB) if arguments.gib else 10 * 10**9
    found = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        sample = make_sample(folder, n_bytes)
        for one, start in SERVERS.items():
            with start(folder / one) as server:
                upload(server, sample.small, MIB)
                time.sleep(2)
                idle = server.process.memory_info().rss
                peak, stop = [idle], threading.Event()
                watch = threading.Thread(target=sample_memory, args=(server, peak, stop))
                watch.start()
                upload(server, sample, int(arguments.chunk_mib * MIB))
                stop.set()
                watch.join()
            shutil.rmtree(folder / one)
            found[one] = {
                "idle_mb": round(idle / 1e6, 1),
                "above_idle_mb": round((max(peak) - idle) / 1e6, 1),
            }
            print(one, json.dumps(found[one]), flush=True)
    keep("uploads-memory", {"gb": round(n_bytes / 1e9, 2), **found})


def sample_memory(server, peak, stop):
    while not stop.wait(0.02):
        peak.append(server.process.memory_info().rss)


def keep(name, document):
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document, indent=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("time", "memory"))
    parser.add_argument("--gib", type=float, default=None, help="size of the upload")
    parser.add_argument("--chunk-mib", type=float, default=64, help="bytes of a PATCH")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", default=None, help="on the disk to measure")
    arguments = parser.parse_args()
    if arguments.what == "time":
        arguments.gib = arguments.gib or 4.0
        measure_time(arguments)
    else:
        measure_memory(arguments)


if __name__ == "__main__":
    main()
