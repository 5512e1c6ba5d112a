"""Servers and workers killed with -9 at random moments, and a client that does not give up.

A round uploads a volume, queues a job, follows its events and downloads the result. In every phase
a villain may kill the server (and start it again on the same folder) or a worker. What is judged:

* no byte that an upload acknowledged is lost, and the whole file has the hash that was announced;
* the same submission, sent again because its answer was lost, is the same job;
* events are numbered without gaps, and say once that the job has finished;
* the labels and the table of objects are bit-identical to those of a quiet round.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import queue
import random
import signal
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lamella.testing.server import LiveServer

__all__ = ["Chaos", "ChaosClient", "Round", "Villain"]

PHASES: tuple[str, ...] = ("upload", "queue", "run", "download")
_PATIENCE_S = 180.0
_TUS = {"Tus-Resumable": "1.0.0"}


@dataclass
class Round:
    """What a round saw."""

    seed: int
    labels_sha256: str = ""
    objects_sha256: str = ""
    n_events: int = 0
    attempt: int = 0
    elapsed_s: float = 0.0
    kills: list[str] = field(default_factory=list)


class Villain:
    """Owns a server: starts it, kills it or its workers, starts it again; in a thread of its own.

    Args:
        server: not yet started.
    """

    def __init__(self, server: LiveServer) -> None:
        self.server = server
        self.kills: list[str] = []
        self._orders: queue.SimpleQueue[tuple[str, str, float] | None] = queue.SimpleQueue()
        self._ready = threading.Event()
        self._error: BaseException | None = None
        # Linux ends the server together with the thread that started it: it has to be one.
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Villain:
        self._thread.start()
        self._ready.wait()
        self._check()
        return self

    def __exit__(self, *_error: object) -> None:
        self._orders.put(None)
        self._thread.join(timeout=60.0)

    def order(self, phase: str, whom: str, delay_s: float) -> None:
        """Kill ``server`` or ``worker`` some seconds from now."""
        self._check()
        self._orders.put((phase, whom, delay_s))

    def _check(self) -> None:
        if self._error is not None:
            raise RuntimeError("the server did not come back") from self._error

    def _serve(self) -> None:
        try:
            self.server.start()
            self._ready.set()
            while (order := self._orders.get()) is not None:
                phase, whom, delay_s = order
                time.sleep(delay_s)
                if whom == "server":
                    self.server.restart()
                    self.kills.append(f"server:{phase}")
                elif self._kill_worker():
                    self.kills.append(f"worker:{phase}")
        except BaseException as error:  # noqa: BLE001 - told to the thread that waits
            self._error = error
        finally:
            self._ready.set()
            self.server.close()

    def _kill_worker(self) -> bool:
        import psutil

        with suppress(psutil.Error):
            for child in psutil.Process(self.server.pid).children():
                if any("worker_process" in word for word in child.cmdline()):
                    os.kill(child.pid, signal.SIGKILL)
                    return True
        return False


class ChaosClient:
    """A client that asks again until it is answered, and takes nothing on trust."""

    def __init__(self, server: LiveServer) -> None:
        import httpx2

        self._errors = (httpx2.TransportError,)
        self._client = httpx2.Client(
            base_url=server.url, headers=server.headers, timeout=10.0, trust_env=False
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(self, method: str, path: str, **options: Any) -> Any:
        """The answer, asked for again while the server is away."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            with suppress(*self._errors):
                answer = self._client.request(method, f"/api/v1{path}", **options)
                # 503 while it starts or stops; 409 and 423 while a killed request is forgotten.
                if answer.status_code not in (423, 429, 503):
                    assert answer.status_code < 500, f"{method} {path}: {answer.text}"
                    return answer
            assert time.monotonic() < deadline, f"{method} {path} is not answered"
            time.sleep(0.05)

    def upload(self, path: Path, moments: random.Random, result: Round) -> str:
        """Upload a file in pieces of random size; id of the volume that became of it."""
        content = path.read_bytes()
        metadata = {"filename": path.name, "sha256": hashlib.sha256(content).hexdigest()}
        words = ",".join(
            f"{k} {base64.b64encode(v.encode()).decode()}" for k, v in metadata.items()
        )
        key = f"upload-{result.seed}"
        answer = self.ask(
            "POST",
            "/uploads",
            headers=_TUS
            | {
                "Upload-Length": str(len(content)),
                "Upload-Metadata": words,
                "Idempotency-Key": key,
            },
        )
        assert answer.status_code == 201, answer.text
        place = f"/uploads/{answer.headers['Location'].rpartition('/')[2]}"
        acknowledged = 0
        while acknowledged < len(content):
            offset = int(self.ask("HEAD", place, headers=_TUS).headers["Upload-Offset"])
            assert offset >= acknowledged, f"{acknowledged - offset} acknowledged bytes are lost"
            acknowledged = self._send(place, content, offset, moments)
        return self._volume(place)

    def _send(self, place: str, content: bytes, offset: int, moments: random.Random) -> int:
        """Send pieces until the end or the first trouble; the last offset that was acknowledged."""
        with suppress(*self._errors):
            while offset < len(content):
                piece = content[offset : offset + moments.randint(16 << 10, 256 << 10)]
                digest = base64.b64encode(hashlib.sha256(piece).digest()).decode()
                answer = self._client.patch(
                    f"/api/v1{place}",
                    content=piece,
                    headers=_TUS
                    | {
                        "Upload-Offset": str(offset),
                        "Upload-Checksum": f"sha256 {digest}",
                        "Content-Type": "application/offset+octet-stream",
                    },
                )
                if answer.status_code != 204:
                    assert answer.status_code in (409, 423, 429, 503), answer.text
                    break
                offset = int(answer.headers["Upload-Offset"])
        return offset

    def _volume(self, place: str) -> str:
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            known = self.ask("GET", place).json()
            if known["volume"]:
                volume = self.ask("GET", f"/volumes/{known['volume']}").json()
                assert volume["state"] != "refused", volume
                if volume["state"] == "ready":
                    return volume["id"]
            time.sleep(0.05)
        raise AssertionError(f"no volume became of {place}")

    def submit(self, volume: str, model: str, key: str) -> str:
        """Queue a job, twice: the second time it is the same."""
        spec = {"request": {"input": {"path": f"volume:{volume}"}, "model": model}}
        first, second = (
            self.ask("POST", "/jobs", json=spec, headers={"Idempotency-Key": key}) for _ in range(2)
        )
        assert first.status_code in (200, 201), first.text
        assert second.status_code == 200, second.text
        assert second.json()["id"] == first.json()["id"]
        return first.json()["id"]

    def follow(self, job: str, result: Round) -> None:
        """Read all events until the job has ended, page by page."""
        after, states = 0, Counter[str]()
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            path = f"/jobs/{job}/events?after={after}&limit=50&wait_s=1"
            page = self.ask("GET", path, headers={"Accept": "application/json"}).json()
            for event in page["events"]:
                assert event["number"] == after + 1, f"{event['number']} follows {after}"
                after = event["number"]
                if event["type"] == "state":
                    states[event["state"]] += 1
                    result.attempt = event["attempt"]
            if not page["events"] and page["state"] in ("finished", "failed", "cancelled"):
                break
        seen = self.ask("GET", f"/jobs/{job}").json()
        assert seen["state"] == "finished", seen
        assert states["finished"] == 1, states
        result.n_events = after

    def download(self, job: str, moments: random.Random) -> bytes:
        """The whole run folder as a tar, in ranges of random size."""
        path = f"/jobs/{job}/artifacts/run.tar"
        content, etag, n_bytes = b"", "", -1
        while len(content) != n_bytes:
            last = len(content) + moments.randint(32 << 10, 512 << 10) - 1
            wanted = {"Range": f"bytes={len(content)}-{last}"} | (
                {"If-Range": etag} if etag else {}
            )
            answer = self.ask("GET", path, headers=wanted, follow_redirects=True)
            assert answer.status_code == 206, answer.text
            etag = answer.headers["ETag"]
            n_bytes = int(answer.headers["Content-Range"].rpartition("/")[2])
            content += answer.content
        assert hashlib.sha256(content).hexdigest() == etag.strip('"'), "the download is damaged"
        return content


class Chaos:
    """Rounds on one server that is killed again and again.

    Args:
        folder: for the server's data.
        image: what is uploaded.
        model: what segments it.
        say: called with a line about every round.
    """

    def __init__(
        self, folder: Path, image: Path, model: str, say: Callable[[str], None] = print
    ) -> None:
        self._image = image
        self._model = model
        self._say = say
        self._server = LiveServer(folder / "data", ("--shutdown-grace-s", "2"))
        self._typical: dict[str, float] = dict.fromkeys(PHASES, 0.5)

    def run(self, n_rounds: int, seed: int, n_kills: int = 2) -> list[Round]:
        """A quiet round, then ``n_rounds`` with up to ``n_kills`` kills each; what they saw."""
        with Villain(self._server) as villain:
            quiet = self._round(villain, seed, 0)
            rounds = [quiet]
            for i in range(1, n_rounds + 1):
                rounds.append(self._round(villain, seed + i, n_kills))
                same = (quiet.labels_sha256, quiet.objects_sha256)
                seen = (rounds[-1].labels_sha256, rounds[-1].objects_sha256)
                assert seen == same, f"seed {seed + i}: another result than in quiet"
        return rounds

    def _round(self, villain: Villain, seed: int, n_kills: int) -> Round:
        result, moments = Round(seed), random.Random(seed)
        began, n_before = time.monotonic(), len(villain.kills)
        plan = Counter(moments.choice(PHASES) for _ in range(moments.randint(1, max(1, n_kills))))
        if not n_kills:
            plan.clear()
        client = ChaosClient(self._server)

        def during(phase: str, work: Callable[[], Any]) -> Any:
            for _ in range(plan[phase]):
                whom = "worker" if phase == "run" and moments.random() < 0.5 else "server"
                villain.order(phase, whom, moments.uniform(0.0, self._typical[phase]))
            phase_began = time.monotonic()
            value = work()
            if not n_kills:
                self._typical[phase] = time.monotonic() - phase_began
            return value

        try:
            volume = during("upload", lambda: client.upload(self._image, moments, result))
            key = f"job-{seed}"
            job = during("queue", lambda: client.submit(volume, self._model, key))
            during("run", lambda: client.follow(job, result))
            content = during("download", lambda: client.download(job, moments))
        finally:
            client.close()
        result.labels_sha256, result.objects_sha256 = _digests(content)
        result.kills = villain.kills[n_before:]
        result.elapsed_s = time.monotonic() - began
        self._say(
            f"seed {seed}: {result.elapsed_s:.1f} s, attempt {result.attempt},"
            f" {result.n_events} events, killed: {', '.join(result.kills) or 'nobody'}"
        )
        return result


def _digests(content: bytes) -> tuple[str, str]:
    """SHA-256 of the labels' files and of the table of objects in a run folder's tar."""
    labels, objects = hashlib.sha256(), ""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            stream = archive.extractfile(member)
            if stream is None:
                continue
            name = member.name.partition("/")[2]
            if name.startswith("labels.ome.zarr/"):
                labels.update(name.encode() + b"\0" + stream.read())
            elif name == "objects.csv":
                objects = hashlib.sha256(stream.read()).hexdigest()
    assert objects, "the run folder holds no objects.csv"
    return labels.hexdigest(), objects
