"""How patient a download is, what came of it, and who is told meanwhile."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Fetched", "TransferSettings", "Watcher"]


@dataclass(frozen=True, slots=True)
class TransferSettings:
    """How patient a download is; all times in seconds.

    Attributes:
        timeout_s: longest silence of a server.
        attempts: failures in a row, without a byte gained, after which an address is left.
        first_wait_s: before the second try; doubles, times 0.5 to 1.5 by chance.
        longest_wait_s: of our own waits.
        longest_asked_wait_s: of waits the server asks for; beyond it the address is left.
        sleep: waits.
        chance: uniform in 0..1.
    """

    timeout_s: float = 30.0
    attempts: int = 5
    first_wait_s: float = 1.0
    longest_wait_s: float = 30.0
    longest_asked_wait_s: float = 120.0
    sleep: Callable[[float], None] = time.sleep
    chance: Callable[[], float] = random.random


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that came whole.

    Attributes:
        sha256: of the file.
        n_bytes: its size.
        n_bytes_moved: what was transferred for it this time.
        address: who gave the last of it; empty where all was there.
    """

    sha256: str
    n_bytes: int
    n_bytes_moved: int
    address: str


def _nothing(*_words: object) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class Watcher:
    """Who is told while a file comes.

    Attributes:
        check: raises when the work should stop.
        on_bytes: called with bytes there and the whole length (None where unknown).
        on_total: called with the length once it is known, before anything is written.
        on_trouble: called with each reason for trying again.
    """

    check: Callable[[], None] = _nothing
    on_bytes: Callable[[int, int | None], None] = _nothing
    on_total: Callable[[int], None] = _nothing
    on_trouble: Callable[[str], None] = _nothing
