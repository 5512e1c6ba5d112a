"""Where everybody listens: channels of the jobs that are watched, and one pace per listener.

::

    worker ─▶ log of the job ─▶ events_added (any thread) ─▶ Channel ─▶ follow() of 1 … n listeners

Nothing is ever pushed at a listener: each pulls when it has sent what it had. One that is behind is
given less (:mod:`lamella.server.events.coalesce`), never out of order and never twice.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path

from lamella.core.errors import TooManyRequestsError
from lamella.server.events.channel import Channel, EventLog
from lamella.server.events.coalesce import coalesce
from lamella.server.events.entry import END_STATES, Entry, Previews
from lamella.server.events.labels import labels_delta

__all__ = ["Follow", "Hub", "JobSource"]

logger = logging.getLogger(__name__)

HEARTBEAT_S = 15.0
_LIFETIME_S = 3600.0
"""A stream ends after an hour; whoever listens comes again, and its token is looked at again."""
_BATCH = 512
"""Events pulled at once, before coalescing."""
_STREAMS_PER_USER = 512
_END_GRACE_S = 3.0
"""For the last events of a job whose end the queue knows already."""
_DELTA_BYTES = 64 * 2**20
"""Preview labels kept for the next one who asks."""


@dataclass(frozen=True, slots=True)
class JobSource:
    """What the hub has to know of jobs.

    Attributes:
        log_of: the event log of a job.
        state_of: the state of a job; None where there is no such job.
        folder_of: the folder of a job.
    """

    log_of: Callable[[str], EventLog]
    state_of: Callable[[str], str | None]
    folder_of: Callable[[str], Path]


@dataclass(frozen=True, slots=True)
class Follow:
    """How somebody listens.

    Attributes:
        after: number of the last event that is known already.
        previews: what of previews.
        is_coalesced: whether superseded events may be left out when the listener is behind.
        heartbeat_s: longest silence.
    """

    after: int = 0
    previews: Previews = "boxes"
    is_coalesced: bool = True
    heartbeat_s: float = HEARTBEAT_S


class Hub:
    """Channels of watched jobs.

    Args:
        jobs: where events, states and folders are.
    """

    def __init__(self, jobs: JobSource) -> None:
        self._jobs = jobs
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channels: dict[str, Channel] = {}
        self._is_closing = False
        self._streams: Counter[str] = Counter()
        self._warming: asyncio.Task[object] | None = None
        self._deltas: OrderedDict[tuple[str, int], asyncio.Task[Entry]] = OrderedDict()

    # --- From the queue, in any thread --------------------------------------------------------

    def events_added(self, job_id: str) -> None:
        """A job's log has more."""
        self._in_loop(self._notify, job_id)

    def job_changed(self, job_id: str) -> None:
        """A job's state changed."""
        self._in_loop(self._notify, job_id)

    def job_removed(self, job_id: str) -> None:
        """A job is no more: whoever watches it is told by the end of the stream."""
        self._in_loop(self._remove, job_id)

    # --- Life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Belong to the running event loop from now on."""
        self._loop = asyncio.get_running_loop()
        # What preview labels are read with takes a while to import: not when the first one waits.
        self._warming = asyncio.create_task(asyncio.to_thread(importlib.import_module, "zarr"))

    def begin_shutdown(self) -> None:
        """End every stream; listeners come again when the server is back."""
        self._is_closing = True
        self._in_loop(self._wake_all)

    async def stop(self) -> None:
        """Let go of everything."""
        self._is_closing = True
        self._wake_all()
        for channel in self._channels.values():
            channel.close()
        for task in (*self._deltas.values(), self._warming):
            if task is not None:
                task.cancel()

    @property
    def watched(self) -> tuple[str, ...]:
        """Jobs that somebody watches now."""
        return tuple(self._channels)

    @property
    def n_streams(self) -> int:
        """Open streams, for metrics."""
        return sum(self._streams.values())

    # --- For listeners ------------------------------------------------------------------------

    def admit(self, user: str) -> None:
        """Refuse one stream too many.

        Raises:
            TooManyRequestsError: when this user has as many as allowed.
        """
        if self._streams[user] >= _STREAMS_PER_USER:
            raise TooManyRequestsError(
                f"{self._streams[user]} event streams of {user} are open, as many as allowed",
                hint="close some of them",
                details={"retry_after_s": 5},
            )

    async def is_over(self, job_id: str, after: int) -> bool:
        """Whether a job has ended and everything up to its end is known to the listener."""
        async with _Watch(self, job_id) as channel:
            return channel.is_over and after >= channel.last

    async def follow(self, job_id: str, user: str, how: Follow) -> AsyncGenerator[list[Entry]]:
        """Events of a job, in pieces, until it has ended; an empty piece is a heartbeat.

        Args:
            job_id: the job.
            user: who listens, for limits.
            how: from where, and what of it.
        """
        self.admit(user)
        self._streams[user] += 1
        try:
            async with _Watch(self, job_id) as channel:
                async for entries in self._follow(job_id, channel, how):
                    yield entries
        finally:
            self._streams[user] -= 1
            if not self._streams[user]:
                del self._streams[user]

    async def page(
        self, job_id: str, how: Follow, *, limit: int, wait_s: float
    ) -> tuple[list[Entry], int]:
        """Events after a number, none left out, and the number of the newest one.

        Args:
            job_id: the job.
            how: from where, and what of previews.
            limit: at most so many events.
            wait_s: how long to wait where there are none yet; not for a job that has ended.
        """
        async with _Watch(self, job_id) as channel:
            deadline = time.monotonic() + wait_s
            while how.after >= channel.last and not self._is_silent(channel):
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                await channel.wait(how.after, left)
            entries = await channel.pull(how.after, limit)
            return await self._prepared(job_id, entries, how), channel.last

    # --- Within -------------------------------------------------------------------------------

    async def _follow(
        self, job_id: str, channel: Channel, how: Follow
    ) -> AsyncGenerator[list[Entry]]:
        after = how.after
        spoke = time.monotonic()
        until = spoke + _LIFETIME_S
        while not self._is_closing and spoke < until and not channel.is_removed:
            entries = await channel.pull(after, _BATCH)
            if entries:
                after = entries[-1].number
                if told := await self._prepared(job_id, entries, how):
                    yield told
                    spoke = time.monotonic()
                continue
            if channel.is_doubted:
                await self._look_at_queue(job_id, channel)
                continue
            if channel.is_over:
                return
            await channel.wait(after, max(0.0, spoke + how.heartbeat_s - time.monotonic()))
            if time.monotonic() >= spoke + how.heartbeat_s:
                channel.is_doubted = True
                yield []
                spoke = time.monotonic()

    async def _look_at_queue(self, job_id: str, channel: Channel) -> None:
        """Learn of an end that was never told: a server was killed between end and last words."""
        channel.is_doubted = False
        if channel.is_over:
            return
        state = await asyncio.to_thread(self._jobs.state_of, job_id)
        if state is None:
            self._remove(job_id)
        elif state in END_STATES:
            # Mostly the words are on their way.
            await channel.wait(channel.last, _END_GRACE_S)
            await channel.catch_up()
            if await asyncio.to_thread(self._jobs.state_of, job_id) == state:
                channel.is_over = True
                channel.wake()

    async def _prepared(self, job_id: str, entries: list[Entry], how: Follow) -> list[Entry]:
        if how.is_coalesced and len(entries) > 1:
            entries = coalesce(entries)
        if how.previews == "none":
            return [entry for entry in entries if entry.type != "preview"]
        if how.previews == "labels":
            return [
                await self._with_labels(job_id, entry) if entry.type == "preview" else entry
                for entry in entries
            ]
        return entries

    async def _with_labels(self, job_id: str, entry: Entry) -> Entry:
        key = (job_id, entry.number)
        task = self._deltas.get(key)
        if task is None:
            task = self._deltas[key] = asyncio.create_task(self._make_labels(job_id, entry))
            task.add_done_callback(lambda _: self._forget_labels())
        self._deltas.move_to_end(key)
        return await asyncio.shield(task)

    async def _make_labels(self, job_id: str, entry: Entry) -> Entry:
        folder = self._jobs.folder_of(job_id) / "run"
        try:
            delta = await asyncio.to_thread(labels_delta, folder, entry.document)
        except Exception:
            # A preview is a service: whoever listens still gets the box, and the log the reason.
            logger.exception("no preview labels of job %s, event %d", job_id, entry.number)
            return entry
        if delta is None:
            return entry
        return entry.with_document({**entry.document, "labels": delta.model_dump(mode="json")})

    def _forget_labels(self) -> None:
        """Keep what was made last, within the memory for it."""
        kept = 0
        for key in reversed(list(self._deltas)):
            task = self._deltas[key]
            if task.done():
                kept += 0 if task.cancelled() else len(task.result().line)
                if task.cancelled() or kept > _DELTA_BYTES:
                    del self._deltas[key]

    async def _open(self, job_id: str) -> Channel:
        channel = self._channels.get(job_id)
        if channel is None:
            channel = self._channels[job_id] = Channel(self._jobs.log_of(job_id))
        channel.n_listeners += 1
        try:
            await channel.ready()
        except BaseException:
            self._leave(job_id, channel)
            raise
        return channel

    def _leave(self, job_id: str, channel: Channel) -> None:
        channel.n_listeners -= 1
        if not channel.n_listeners and self._channels.get(job_id) is channel:
            channel.close()
            del self._channels[job_id]

    def _is_silent(self, channel: Channel) -> bool:
        return channel.is_over or channel.is_removed or self._is_closing

    def _notify(self, job_id: str) -> None:
        if (channel := self._channels.get(job_id)) is not None:
            channel.notify()

    def _remove(self, job_id: str) -> None:
        if (channel := self._channels.get(job_id)) is not None:
            channel.is_removed = True
            channel.wake()

    def _wake_all(self) -> None:
        for channel in self._channels.values():
            channel.wake()

    def _in_loop(self, function: Callable[..., None], *arguments: str) -> None:
        """Call in the event loop, from any thread; nothing before it runs or after its end."""
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        try:
            loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            # Closed between the question and the call.
            return


class _Watch:
    """A channel, held open."""

    def __init__(self, hub: Hub, job_id: str) -> None:
        self._hub, self._job_id = hub, job_id

    async def __aenter__(self) -> Channel:
        self._channel = await self._hub._open(self._job_id)
        return self._channel

    async def __aexit__(self, *_: object) -> None:
        self._hub._leave(self._job_id, self._channel)
