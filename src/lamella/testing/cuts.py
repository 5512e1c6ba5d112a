"""A remote run whose network is cut once in every phase: upload, queue, run, download.

The client gets no help: it has to notice, wait, come back and go on by itself. ::

    client ──▶ Proxy (cut for seconds, or a minute) ──▶ lamella serve, one worker

The queue is made by another job in front, which is cancelled once the cut there is over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamella.core.places import ClientPlaces
from lamella.testing.proxy import Proxy
from lamella.testing.server import LiveServer

if TYPE_CHECKING:
    from lamella.client.client import Client, RemoteRun
    from lamella.workflows.run import Run

__all__ = ["PHASES", "Cut", "CutOptions", "CutRun", "run_with_cuts"]

PHASES: tuple[str, ...] = ("upload", "queue", "run", "download")


@dataclass(frozen=True, slots=True)
class CutOptions:
    """How the network fails.

    Attributes:
        cut_s: how long each cut lasts, seconds.
        is_silent: connections hang, as when a cable is pulled; else they break.
        bytes_per_s: of the network while it works.
    """

    cut_s: float = 60.0
    is_silent: bool = False
    bytes_per_s: float = 1.5e6


@dataclass(frozen=True, slots=True)
class Cut:
    """One cut, and what it cost.

    Attributes:
        phase: where.
        lasted_s: without network.
        recovered_s: from its end until the client had got further.
        n_tries: announced waits in between.
    """

    phase: str
    lasted_s: float
    recovered_s: float
    n_tries: int


@dataclass(frozen=True, slots=True)
class CutRun:
    """What came of it.

    Attributes:
        run: the run folder, as it was brought here.
        cuts: one of each phase.
        numbers: of the server's events, as they were told.
        lost: acknowledged bytes that the server did not have afterwards, in words.
        sent_again: acknowledged bytes that were sent again, in words.
    """

    run: Run
    cuts: tuple[Cut, ...]
    numbers: tuple[int, ...]
    lost: tuple[str, ...]
    sent_again: tuple[str, ...]


def run_with_cuts(
    server: LiveServer, image: Path, model: str, folder: Path, options: CutOptions
) -> CutRun:
    """Segment an image on a server through a network that is cut in every phase.

    Args:
        server: with one worker; the user's volumes on it are removed first.
        image: at least twice ``bytes_per_s`` large.
        model: one whose run takes a second or more.
        folder: for the run and the client's memory.
        options: of the cuts.
    """
    from lamella.client.client import Client

    places = ClientPlaces(None, folder / "cache", server.token)
    with (
        Client(server.url, places=places) as direct,
        Proxy(server.url, bytes_per_s=options.bytes_per_s) as proxy,
        Client(proxy.url, places=ClientPlaces(None, folder / "cache-2", server.token)) as client,
    ):
        front = _occupy(direct, image, model)
        for volume in direct.volumes():
            if front.job.spec.request.input.path != f"volume:{volume.id}":
                direct.remove("volumes", volume.id)
        # The same bytes are there already, as the volume in front: they are to be sent again.
        client.context = _sending(client.context)
        network = _Network(proxy, options, on_queue_over=front.cancel)
        remote = client.segment(image, model, run_dir=folder / "cut.run", sink=network)
        remote.wait(network)
        run = remote.download(sink=network)
        network.join()
        return CutRun(
            run,
            tuple(network.cuts),
            tuple(network.numbers),
            tuple(proxy.seen.lost),
            tuple(proxy.seen.sent_again),
        )


def _occupy(client: Client, image: Path, model: str) -> RemoteRun:
    """A job that keeps the only worker busy for a long time."""
    front = client.submit(image, model, tta=True, overlap_fraction=0.9, name="in front")
    while front.job.state == "queued":
        time.sleep(0.05)
    return front


def _sending(context: Any) -> Any:
    return replace(context, upload=replace(context.upload, can_skip=False))


@dataclass
class _Network:
    """A sink that cuts the network when a phase has begun; mended by a thread."""

    proxy: Proxy
    options: CutOptions
    on_queue_over: Callable[[], Any]
    cuts: list[Cut] = field(default_factory=list[Cut])
    numbers: list[int] = field(default_factory=list[int])

    def __post_init__(self) -> None:
        self._begun: list[str] = []
        self._cut_s = 0.0
        self._mended_s: float | None = None
        self._n_tries = 0
        self._threads: list[threading.Thread] = []

    def check(self) -> None:
        """Nobody stops it."""

    def emit(self, event: Any, /) -> None:
        """Note what the client does, and cut where a phase begins."""
        if getattr(event, "type", "") == "waiting":
            self._n_tries += 1
            return
        if getattr(event, "number", 0):
            self.numbers.append(event.number)
        now = time.monotonic()
        if self._mended_s is not None and not self.proxy.is_cut:
            lasted_s = self._mended_s - self._cut_s
            self.cuts.append(Cut(self._begun[-1], lasted_s, now - self._mended_s, self._n_tries))
            self._mended_s = None
        if len(self._begun) == len(self.cuts) and len(self._begun) < len(PHASES):
            phase = PHASES[len(self._begun)]
            if _is_in(phase, event):
                self._cut(phase)

    def join(self) -> None:
        """Wait until the last cut is over."""
        for thread in self._threads:
            thread.join()

    def _cut(self, phase: str) -> None:
        self._begun.append(phase)
        self._n_tries = 0
        self._cut_s = time.monotonic()
        self.proxy.cut(is_silent=self.options.is_silent)
        thread = threading.Thread(target=self._mend, args=(phase,), daemon=True)
        thread.start()
        self._threads.append(thread)

    def _mend(self, phase: str) -> None:
        time.sleep(self.options.cut_s)
        self.proxy.mend()
        self._mended_s = time.monotonic()
        if phase == "queue":
            self.on_queue_over()


def _is_in(phase: str, event: Any) -> bool:
    """Whether an event shows that a phase is under way."""
    stage, done = getattr(event, "stage", ""), getattr(event, "done", 0)
    if phase in ("upload", "download"):
        return stage == phase and 0 < done < event.total
    if phase == "queue":
        return getattr(event, "state", "") == "queued"
    return bool(stage and getattr(event, "number", 0))
