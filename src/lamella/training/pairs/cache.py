"""Arrays kept in memory up to a stated number of bytes; the ones used longest ago go first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

__all__ = ["DEFAULT_CACHE_BYTES", "ArrayCache"]

DEFAULT_CACHE_BYTES = 1 << 30
"""Memory that images and labels of one process may take, 1 GiB."""


class ArrayCache:
    """A cache with a limit; safe to use from several threads, empty again when pickled.

    Args:
        max_bytes: limit of everything that is kept.
    """

    def __init__(self, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def max_entry_bytes(self) -> int:
        """What is larger is not kept whole."""
        return self.max_bytes // 4

    def get(self, key: Hashable, make: Callable[[], tuple[Any, int]]) -> Any:
        """What is kept under a key, made where it is not.

        Args:
            key: name of the entry.
            make: gives the entry and its bytes; may run twice when two threads ask at once.
        """
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key][0]
        value, size = make()
        with self._lock:
            if key not in self._entries and size <= self.max_entry_bytes:
                self._entries[key] = (value, size)
                self.n_bytes += size
                while self.n_bytes > self.max_bytes:
                    _, (_, freed) = self._entries.popitem(last=False)
                    self.n_bytes -= freed
        return value

    def __getstate__(self) -> dict[str, Any]:
        return {"max_bytes": self.max_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["max_bytes"])
