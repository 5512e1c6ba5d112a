"""The newest events of one job in memory, shared by all who watch it.

A channel is there while somebody watches. It alone reads what is new from the job's log, once, and
wakes every listener; a listener that is further behind than the memory reaches reads from the log
by itself, so nobody waits for anybody. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_right
from typing import Protocol

from lamella.server.events.entry import END_STATES, Entry, entries_of

__all__ = ["Channel", "EventLog"]


class EventLog(Protocol):
    """The numbered events of a job; :class:`lamella.jobs.log.JobLog` is one. Calls may block."""

    @property
    def last(self) -> int:
        """Number of the newest event."""
        ...

    @property
    def last_state(self) -> tuple[str, int] | None:
        """State and attempt of the newest event about the job's state."""
        ...

    def read(self, after: int = 0, limit: int | None = None) -> list[tuple[int, str]]:
        """Numbered lines after a number, oldest first."""
        ...


_KEPT = 2048
"""Events in memory."""
_READ = 1024
"""Lines of the log read at once."""


class Channel:
    """Events of one job, as they come.

    Args:
        log: of the job.
    """

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._start = 0
        self._tail: list[Entry] = []
        self._changed = asyncio.Event()
        self._opening: asyncio.Task[None] | None = None
        self._filling: asyncio.Task[None] | None = None
        self._has_news = False
        self.n_listeners = 0
        self.is_over = False
        """Whether the newest state that was told is one of those in which a job ends."""
        self.is_doubted = True
        """Whether somebody should ask the queue if the job has ended without saying so."""
        self.is_removed = False
        """Whether the job is no more."""

    @property
    def last(self) -> int:
        """Number of the newest event in memory, or of the last one before it."""
        return self._tail[-1].number if self._tail else self._start

    async def ready(self) -> None:
        """Until the memory holds the newest events; whoever comes second waits with the first."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        await asyncio.shield(self._opening)

    def notify(self) -> None:
        """The log has more; returns at once."""
        self._has_news = True
        if self._filling is None or self._filling.done():
            self._filling = asyncio.create_task(self._fill())
            self._filling.add_done_callback(_heed)

    async def catch_up(self) -> None:
        """Read what the log has beyond the memory."""
        self.notify()
        assert self._filling is not None, "notify has just made it"
        await asyncio.shield(self._filling)

    def wake(self) -> None:
        """Let every listener look again."""
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    async def pull(self, after: int, limit: int) -> list[Entry]:
        """Events after a number, oldest first; none when there are none yet."""
        if after >= self.last:
            return []
        if after >= self._start:
            first = bisect_right(self._tail, after, key=lambda entry: entry.number)
            return self._tail[first : first + limit]
        return entries_of(await asyncio.to_thread(self._log.read, after, limit))

    async def wait(self, after: int, timeout_s: float) -> None:
        """Until there is more than ``after``, something else changed, or time is over."""
        if after < self.last:
            return
        event = self._changed
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), timeout_s)

    def close(self) -> None:
        """Read no more."""
        for task in (self._opening, self._filling):
            if task is not None:
                task.cancel()

    async def _open(self) -> None:
        newest, state = await asyncio.to_thread(lambda: (self._log.last, self._log.last_state))
        self._start = max(0, newest - _KEPT)
        self.is_over = state is not None and state[0] in END_STATES
        await self.catch_up()

    async def _fill(self) -> None:
        while self._has_news:
            self._has_news = False
            lines = await asyncio.to_thread(self._log.read, self.last, _READ)
            if not lines:
                continue
            self._has_news = True
            entries = entries_of(lines)
            for entry in entries:
                if entry.is_end is not None:
                    self.is_over = entry.is_end
            self._tail += entries
            if len(self._tail) > 2 * _KEPT:
                # In large pieces: every cut moves the rest.
                self._start = self._tail[-_KEPT - 1].number
                del self._tail[:-_KEPT]
            self.wake()


def _heed(task: asyncio.Task[None]) -> None:
    """Look at a task's error: a log that cannot be read is met again by whoever pulls from it."""
    if not task.cancelled():
        task.exception()
