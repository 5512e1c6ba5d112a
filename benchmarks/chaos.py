"""Nothing is lost: server, workers and clients killed with -9 at random moments, round after round.

Each round two clients, ``lamella segment --server`` and a script of ``lm.Client`` or
``lm.AsyncClient``, work through a slow proxy with one worker, so that one of the two jobs waits.
Somewhere in upload, queue, run or download processes are killed; servers and clients are started
again as a person would. Then every job must be finished, once, with labels and objects equal to
those of a quiet local run; no acknowledged byte of an upload may be lost or sent again; and events
must be numbered without gaps and end once::

    python benchmarks/chaos.py --rounds 50 --kills 2 --seed 1
    python benchmarks/chaos.py --rounds 15 --backend engines    # PostgreSQL, S3, Dask
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import httpx2
import numpy as np
import psutil

import lamella as lm
from lamella.core.errors import LamellaError
from lamella.core.places import ClientPlaces
from lamella.testing.proxy import Proxy
from lamella.testing.server import LiveServer

PHASES = ("upload", "queue", "run", "download")
VICTIMS = ("client", "server", "worker")
# How long after the beginning of a phase the kill may come, seconds.
SPANS = {"upload": 1.5, "queue": 3.0, "run": 4.0, "download": 0.6}
ROUND_S = 240.0
MODEL = "membrane-3d"
RESULTS = Path(__file__).parent / "results"
SCRIPTS = (
    """
import sys, lamella as lm
source, folder, url, model = sys.argv[1:]
with lm.Client(url) as client:
    client.segment(source, model, run_dir=folder).run
""",
    """
import asyncio, sys, lamella as lm
async def main(source, folder, url, model):
    async with lm.AsyncClient(url) as client:
        remote = await client.segment(source, model, run_dir=folder)
        await remote.run
asyncio.run(main(*sys.argv[1:]))
""",
)
"""Clients in Python; the same call again goes on, as the command does."""


@dataclass(frozen=True)
class Backend:
    """What the server stands on.

    Attributes:
        flags: of ``lamella serve``.
        environment: variables of the server.
        workers: the processes that do the work, which may be killed; None = those of the server.
    """

    flags: Sequence[str] = ("--workers", "1")
    environment: Mapping[str, str] = field(default_factory=dict)
    workers: Callable[[], list[psutil.Process]] | None = None


@dataclass
class Client:
    """One client, started again as often as it is killed; the command, or a ``script``."""

    source: Path
    folder: Path
    url: str
    environment: dict[str, str]
    script: str | None = None
    process: subprocess.Popen[bytes] | None = None
    n_starts: int = 0
    said: list[str] = field(default_factory=list)

    def start(self) -> None:
        self.n_starts += 1
        words = [
            "-m", "lamella", "segment", str(self.source), "--model", MODEL,
            "--run-dir", str(self.folder), "--server", self.url, "--json",
        ]  # fmt: skip
        if self.script is not None:
            words = ["-c", self.script, str(self.source), str(self.folder), self.url, MODEL]
        self.process = subprocess.Popen(
            [sys.executable, *words],
            env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.end()

    def end(self) -> int:
        assert self.process is not None
        out, _ = self.process.communicate()
        self.said.append(out.decode(errors="replace"))
        return self.process.returncode

    @property
    def is_over(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def phase(self, states: dict[str, str]) -> str:
        """Where it stands, as far as its folder and the server tell."""
        note = self.folder / "remote.json"
        if (self.folder / "manifest.json").exists():
            return "over"
        if (self.folder / ".download").exists():
            return "download"
        try:
            job = json.loads(note.read_text())["job"]
        except (OSError, ValueError):
            job = None
        if job is None:
            return "upload"
        return {"queued": "queue", "running": "run"}.get(states.get(job, ""), "")


class Chaos:
    """A server, a proxy and what a quiet run gives."""

    def __init__(
        self, folder: Path, seed: int, *, n_kills: int = 2, backend: Backend | None = None
    ) -> None:
        self.folder = folder
        self.n_kills = n_kills
        self.backend = backend or Backend()
        self.random = random.Random(seed)
        self.environment = {
            **os.environ,
            "XDG_CACHE_HOME": str(folder / "cache"),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "OMP_NUM_THREADS": "1",
        }
        self.sources = [self._source(i) for i in range(2)]
        self.quiet = [
            lm.segment(path, MODEL, run_dir=folder / f"quiet{i}.run")
            for i, path in enumerate(self.sources)
        ]
        self.kills: Counter[tuple[str, str]] = Counter()
        self.restarts = 0
        self.n_events = 0
        self.server = LiveServer(
            folder / "data", self.backend.flags, {**self.environment, **self.backend.environment}
        )
        self.server.start()
        self.environment["LAMELLA_TOKEN"] = self.server.token
        # Two or three seconds for an upload, less for a download.
        self.proxy = Proxy(self.server.url, bytes_per_s=2.5e6)

    def close(self) -> None:
        self.proxy.close()
        self.server.close()

    def round(self, number: int) -> None:
        """One round; raises AssertionError with the story when anything is not as it must be."""
        self._clean()
        clients = [
            Client(
                path,
                self.folder / f"r{number}-{i}.run",
                self.proxy.url,
                self.environment,
                None if i == 0 else SCRIPTS[number % len(SCRIPTS)],
            )
            for i, path in enumerate(self.sources)
        ]
        story: list[str] = []
        try:
            for client in clients:
                client.start()
            deadline = time.monotonic() + ROUND_S
            for _ in range(self.random.randint(1, self.n_kills)):
                self._strike(clients, story, deadline)
            self._see_it_through(clients, story, deadline)
            self._judge(clients, story)
        except BaseException:
            print("story:", *story, sep="\n  ")
            for client in clients:
                client.kill()
                print("said:", *client.said, sep="\n")
            raise
        finally:
            for client in clients:
                shutil.rmtree(client.folder, ignore_errors=True)

    # -- parts of a round

    def _strike(self, clients: list[Client], story: list[str], deadline: float) -> None:
        phase, victim = self.random.choice(PHASES), self.random.choice(VICTIMS)
        target = self._wait_for(phase, clients, deadline)
        if target is None:
            story.append(f"{phase} was over before {victim} could be killed")
            return
        time.sleep(self.random.uniform(0.0, SPANS[phase]))
        states = self._states()
        story.append(
            f"{victim} killed in or after {phase}; clients in {[c.phase(states) for c in clients]}"
        )
        self.kills[phase, victim] += 1
        if victim == "client":
            target.kill()
            time.sleep(self.random.uniform(0.0, 1.0))
            target.start()
        elif victim == "server":
            self.server.kill()
            time.sleep(self.random.uniform(0.0, 2.0))
            self.server.start()
        else:
            for one in self._workers():
                with suppress(psutil.Error):
                    one.kill()

    def _workers(self) -> list[psutil.Process]:
        if self.backend.workers is not None:
            return self.backend.workers()
        return [
            one
            for one in psutil.Process(self.server.pid).children(recursive=True)
            if "lamella.jobs.worker_process" in " ".join(one.cmdline())
        ]

    def _wait_for(self, phase: str, clients: list[Client], deadline: float) -> Client | None:
        while time.monotonic() < deadline:
            states = self._states()
            running = [client for client in clients if not client.is_over]
            for client in running:
                if client.phase(states) == phase:
                    return client
            if not running:
                return None
            time.sleep(0.02)
        raise AssertionError("the round takes too long")

    def _see_it_through(self, clients: list[Client], story: list[str], deadline: float) -> None:
        for client in clients:
            while True:
                assert client.process is not None
                try:
                    client.process.wait(max(1.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    raise AssertionError("a client does not end") from None
                if client.end() == 0:
                    break
                story.append("a client gave up; the same command again")
                self.restarts += 1
                assert client.n_starts < 6, "the same command again and again"
                client.start()

    def _judge(self, clients: list[Client], story: list[str]) -> None:
        for client, quiet in zip(clients, self.quiet, strict=True):
            run = lm.open_run(client.folder)
            assert run.is_finished
            assert run.manifest.labels == quiet.manifest.labels, "other labels"
            assert np.array_equal(run.labels.load(), quiet.labels.load()), "other labels"
            objects = (run.folder / "objects.csv").read_bytes()
            assert objects == (quiet.folder / "objects.csv").read_bytes(), "other objects"
        seen = self.proxy.seen
        assert not seen.lost, f"acknowledged bytes were lost: {seen.lost}"
        assert not seen.sent_again, f"acknowledged bytes were sent again: {seen.sent_again}"
        with self._client() as client:
            jobs = client.jobs()
        assert [job.state for job in jobs] == ["finished"] * 2, f"jobs: {jobs}"
        for job in jobs:
            self._judge_events(job.id)
        story.append("all is well")

    def _judge_events(self, job: str) -> None:
        """Numbered from 1 without gaps, whatever was killed, and finished exactly once."""
        answer = httpx2.get(
            f"{self.server.url}/api/v1/jobs/{job}/events?limit=1000",
            headers={**self.server.headers, "Accept": "application/json"},
            trust_env=False,
            timeout=30.0,
        )
        page = answer.json()
        numbers = [event["number"] for event in page["events"]]
        assert page["last"] <= 1000, "more events than a page holds"
        assert numbers == list(range(1, page["last"] + 1)), f"events of job {job}: {numbers}"
        ends = [e for e in page["events"] if e["type"] == "state" and e["state"] == "finished"]
        assert len(ends) == 1, f"job {job} finished {len(ends)} times"
        self.n_events += len(numbers)

    # -- the server's side

    def _clean(self) -> None:
        """Nothing of an earlier round helps this one."""
        shutil.rmtree(self.folder / "cache", ignore_errors=True)
        with self._client() as client:
            for job in client.jobs():
                client.remove("jobs", job.id)
            for volume in client.volumes():
                client.remove("volumes", volume.id)

    def _client(self) -> "lm.Client":
        places = ClientPlaces(None, None, self.server.token)
        return lm.Client(self.server.url, places=places)

    def _states(self) -> dict[str, str]:
        try:
            with self._client() as client:
                return {job.id: job.state for job in client.jobs()}
        except LamellaError:
            return {}

    def _source(self, i: int) -> Path:
        noise = np.random.default_rng(i).normal(0, 1, (48, 128, 128)).astype(np.float32)
        z, y, x = np.indices(noise.shape)
        shell = np.abs(np.sqrt((z - 24) ** 2 + (y - 64) ** 2 + (x - 64 + 8 * i) ** 2) - 18) < 2
        volume = lm.Volume.from_array(noise - 3 * shell, spacing=(1.0,) * 3, unit="nm")
        return lm.save(volume, self.folder / f"tomo{i}.mrc")


def engines(stack: ExitStack, folder: Path) -> Backend:
    """PostgreSQL, S3 and a Dask worker, each in processes of their own."""
    from lamella.testing.dask import make_certificates, run_dask
    from lamella.testing.postgres import run_postgres
    from lamella.testing.s3 import run_s3

    folder.mkdir()
    postgres = stack.enter_context(run_postgres(is_durable=True))
    s3 = stack.enter_context(run_s3())
    certificates = make_certificates(folder)
    dask = stack.enter_context(run_dask(folder, 1, certificates=certificates))
    nanny = dask.processes[-1].pid
    options = [f"{name}={path}" for name, path in certificates.options.items()]
    return Backend(
        (
            *("--database-url", postgres.create_database()),
            *("--storage-url", s3.create_bucket()),
            *("--scheduler", dask.address),
            *(word for option in options for word in ("--cluster-option", option)),
        ),
        s3.environment,
        lambda: [
            one
            for one in psutil.Process(nanny).children()
            if "spawn_main" in " ".join(one.cmdline())
        ],
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--kills", type=int, default=2, help="at most so many a round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", choices=("embedded", "engines"), default="embedded")
    words = parser.parse_args()
    began, times = time.monotonic(), []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lamella-chaos-")))
        backend = engines(stack, folder / "engines") if words.backend == "engines" else Backend()
        chaos = Chaos(folder, words.seed, n_kills=words.kills, backend=backend)
        stack.callback(chaos.close)
        for number in range(words.rounds):
            start = time.monotonic()
            chaos.round(number)
            times.append(time.monotonic() - start)
            print(f"round {number + 1} of {words.rounds}: {times[-1]:.1f} s", flush=True)
    kills = {f"{victim}, {phase}": n for (phase, victim), n in sorted(chaos.kills.items())}
    print(f"{words.rounds} rounds in {time.monotonic() - began:.0f} s; killed, by phase:")
    for what, n in kills.items():
        print(f"  {what:<18} {n}")
    document = {
        "rounds": words.rounds,
        "most kills a round": words.kills,
        "seed": words.seed,
        "backend": words.backend,
        "kills": kills,
        "kills in all": sum(kills.values()),
        "jobs, all finished once with the labels and objects of a quiet run": 2 * words.rounds,
        "events, all numbered without gaps": chaos.n_events,
        "acknowledged bytes lost or sent again": 0,
        "clients that gave up though nobody killed them": chaos.restarts,
        "median_s": round(median(times), 1),
        "total_s": round(time.monotonic() - began),
    }
    name = "chaos.json" if words.backend == "embedded" else "chaos-engines.json"
    (RESULTS / name).write_text(json.dumps(document, indent=1) + "\n")
    print(f"clients that gave up though nobody killed them: {chaos.restarts}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
