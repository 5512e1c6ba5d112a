"""How often: token buckets per token, and per address for tokens that are none.

Examples:
    >>> now = [0.0]
    >>> limit = RateLimit(rate=2.0, burst=3.0, clock=lambda: now[0])
    >>> [limit.take("a") for _ in range(4)]
    [0.0, 0.0, 0.0, 0.5]
    >>> now[0] = 0.5
    >>> limit.take("a")
    0.0
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["RateLimit"]

_MAX_KEYS = 10_000
"""Buckets that are kept: the least recently used are forgotten, and are then full again."""


@dataclass
class RateLimit:
    """A bucket per key that fills at ``rate`` and holds ``burst``.

    Args:
        rate: what comes back a second; 0 = no limit.
        burst: what may be taken at once.
        clock: seconds, monotonic.
    """

    rate: float
    burst: float
    clock: Callable[[], float] = time.monotonic
    _buckets: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, key: str) -> float:
        """Take one, or say how long to wait.

        Returns:
            0.0 when it was taken, else the seconds until it can be.
        """
        if self.rate <= 0:
            return 0.0
        now = self.clock()
        with self._lock:
            level, then = self._buckets.get(key, (self.burst, now))
            level = min(self.burst, level + (now - then) * self.rate)
            is_enough = level >= 1.0
            self._buckets[key] = (level - 1.0 if is_enough else level, now)
            self._buckets.move_to_end(key)
            while len(self._buckets) > _MAX_KEYS:
                self._buckets.popitem(last=False)
        return 0.0 if is_enough else (1.0 - level) / self.rate
