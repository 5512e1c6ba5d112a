"""Bytes that came, as progress people can read: megabytes, rate and time left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from lamella.core.progress import Progress
from lamella.wire.event import EventSink

__all__ = ["Meter", "PullProgress"]

_SHORTEST_S = 0.1
"""Between two reports."""
_WINDOW_S = 10.0
"""What the rate is measured over."""


@dataclass(frozen=True, slots=True)
class PullProgress(Progress):
    """Progress over all files of a model, in MB (10⁶ bytes).

    Attributes:
        eta_s: time left, where it is known.
        bytes_per_s: over the last ten seconds.
        file: which file is coming.
        file_done: bytes of it that are there.
        file_total: its size; None where unknown.
    """

    eta_s: float | None = None
    bytes_per_s: float = 0.0
    file: str = ""
    file_done: int = 0
    file_total: int | None = None

    @property
    def type(self) -> str:
        """As the events of :mod:`lamella.wire.event` have it."""
        return "progress"


class Meter:
    """Counts the bytes of several files that come one after the other.

    Args:
        sink: whom to tell.
        stage: what is being done.
        n_bytes: of all files; None where a size is not known.
        clock: seconds.

    Examples:
        >>> from lamella.core.progress import SilentSink
        >>> meter = Meter(SilentSink(), "pulling", 10_000_000)
        >>> meter.start("a.zip", 4_000_000)
        >>> meter.tell(1_000_000, 4_000_000)
    """

    def __init__(
        self,
        sink: EventSink,
        stage: str,
        n_bytes: int | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sink = sink
        self._stage = stage
        self._n_bytes = n_bytes
        self._clock = clock
        self._before = 0
        self._file = ""
        self._file_done = 0
        self._told_s = float("-inf")
        self._seen: deque[tuple[float, int]] = deque()

    def start(self, file: str, n_there: int) -> None:
        """Begin a file of which ``n_there`` bytes are there already."""
        self._before += self._file_done
        self._file, self._file_done = file, n_there
        self._seen.clear()

    def tell(self, done: int, total: int | None) -> None:
        """Report bytes of the current file, at most ten times a second and at its end."""
        now = self._clock()
        self._file_done = done
        self._seen.append((now, done))
        while now - self._seen[0][0] > _WINDOW_S:
            self._seen.popleft()
        if now - self._told_s < _SHORTEST_S and done != total:
            return
        self._told_s = now
        first_s, first = self._seen[0]
        rate = max(0, done - first) / (now - first_s) if now > first_s else 0.0
        all_done = self._before + done
        whole = self._n_bytes if self._n_bytes is not None else self._before + (total or 0)
        left = max(0, whole - all_done)
        self._sink.emit(
            PullProgress(
                stage=self._stage,
                done=all_done / 1e6,
                total=max(whole, all_done) / 1e6,
                unit="MB",
                eta_s=left / rate if rate > 0 else None,
                bytes_per_s=rate,
                file=self._file,
                file_done=done,
                file_total=total,
            )
        )
