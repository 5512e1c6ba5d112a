"""One writer for an upload, and never a stale one.

A connection that died says nothing: its request waits for bytes that will not come. Whoever asks
for the same upload next, with HEAD or PATCH, therefore interrupts the request before it, which
keeps what it has received and lets go. Nobody is told "locked, try later" for a lock that no one
uses.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from lamella.core.errors import ConflictError

__all__ = ["Hold", "UploadLocks"]


@dataclass(eq=False, slots=True)
class Hold:
    """The right to write one upload; ``interrupt`` is called once someone else wants it."""

    interrupt: Callable[[], None] | None = None
    is_interrupted: bool = False


@dataclass(eq=False, slots=True)
class _Place:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    holder: Hold | None = None
    n_users: int = 0
    n_asked: int = 0


class UploadLocks:
    """The locks of all uploads of one server process.

    Args:
        patience_s: how long to wait for an interrupted request that is busy writing or verifying.
    """

    def __init__(self, patience_s: float = 60.0) -> None:
        self._patience_s = patience_s
        self._places: dict[str, _Place] = {}

    @asynccontextmanager
    async def hold(self, upload: str) -> AsyncIterator[Hold]:
        """Wait for, take and release the lock of ``upload``.

        Raises:
            ConflictError: when the request before does not end in time.
        """
        place = self._places.setdefault(upload, _Place())
        place.n_users += 1
        place.n_asked += 1
        number = place.n_asked
        try:
            await self._acquire(upload, place)
            # Whoever came while this one waited wants it to let go as well: the newest wins.
            hold = place.holder = Hold(is_interrupted=number != place.n_asked)
            try:
                yield hold
            finally:
                place.holder = None
                place.lock.release()
        finally:
            place.n_users -= 1
            if not place.n_users:
                self._places.pop(upload, None)

    async def _acquire(self, upload: str, place: _Place) -> None:
        if place.holder is not None and not place.holder.is_interrupted:
            place.holder.is_interrupted = True
            if place.holder.interrupt is not None:
                place.holder.interrupt()
        try:
            await asyncio.wait_for(place.lock.acquire(), self._patience_s)
        except TimeoutError as error:
            raise ConflictError(
                f"upload {upload} is still being written by another request",
                hint="ask for its offset again in a few seconds",
            ) from error

    def is_held(self, upload: str) -> bool:
        """Whether a request works on the upload now."""
        place = self._places.get(upload)
        return place is not None and place.holder is not None
