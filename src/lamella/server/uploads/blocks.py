"""Blocks of memory that bodies pass through, few enough for any number of uploads."""

from __future__ import annotations

import mmap
import threading
from dataclasses import dataclass

__all__ = ["BLOCK_BYTES", "Block", "BlockPool", "Share"]

BLOCK_BYTES = 4 * 2**20
"""Large: below 4 MiB, threads handing blocks to each other cost more than a third of the rate."""
_N_BLOCKS = 16
_N_EACH = 6
"""One is received while others are hashed."""


@dataclass
class Share:
    """What one body has of a pool."""

    n_blocks: int = 0


class Block:
    """Memory that begins at a page; back in its pool once nobody holds the block any more.

    Args:
        pool: it goes back to.
        share: it counts for.
        memory: its bytes.
    """

    def __init__(self, pool: BlockPool, share: Share, memory: mmap.mmap) -> None:
        self._pool = pool
        self._share = share
        self._memory = memory
        self.view = memoryview(memory)

    def __del__(self) -> None:
        self._pool.take_back(self._share, self._memory)


class BlockPool:
    """Lends blocks; at most so many at once, and to each share.

    Args:
        n_blocks: of the pool.
        n_each: of one share.
    """

    def __init__(self, n_blocks: int = _N_BLOCKS, n_each: int = _N_EACH) -> None:
        self._n_each = n_each
        self._n_new = n_blocks
        self._free: list[mmap.mmap] = []
        # Re-entrant, as `take_back` may be called wherever Python collects garbage.
        self._changed = threading.Condition(threading.RLock())

    def take(self, share: Share, timeout_s: float) -> Block | None:
        """A block; None where none has come back in time."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._may_have(share), timeout_s):
                return None
            share.n_blocks += 1
            # The one that was used last: memory that is never needed is never touched.
            if self._free:
                memory = self._free.pop()
            else:
                self._n_new -= 1
                memory = mmap.mmap(-1, BLOCK_BYTES)
            return Block(self, share, memory)

    def take_back(self, share: Share, memory: mmap.mmap) -> None:
        """What a block does when it ends."""
        with self._changed:
            share.n_blocks -= 1
            self._free.append(memory)
            self._changed.notify_all()

    def _may_have(self, share: Share) -> bool:
        return share.n_blocks < self._n_each and bool(self._free or self._n_new)
