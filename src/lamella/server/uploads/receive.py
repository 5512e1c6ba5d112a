"""A request's body on its way to the disk: receive, hash and write overlap.

A thread moves the body from its socket to the file, or, where it can only come by the event loop
(TLS, a size that is not told), pieces are gathered there while a thread hashes and writes the
batches before them. Then at most four batches of an upload are in memory, and all uploads together
share one budget.
"""

import asyncio
import itertools
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import anyio

from lamella.server.body import TakenBody
from lamella.server.uploads.blocks import BlockPool
from lamella.server.uploads.disk import DiskSync
from lamella.server.uploads.file import UploadFile
from lamella.server.uploads.locks import Hold
from lamella.server.uploads.protocol import TusError
from lamella.server.uploads.pump import SocketPump
from lamella.server.uploads.threads import Follower, outlast

__all__ = ["BodyReceiver", "Receive", "Reception"]

End = Literal["whole", "cut", "interrupted", "silent"]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_BATCH_BYTES = 4 * 2**20
_LEAST_BATCH_BYTES = 256 * 2**10
_BUDGET_BYTES = 96 * 2**20
_MAX_WAITING = 2
"""Batches between the one that is gathered and the one that is written."""
_MAX_PIECES = 512
_HOLD_BACK_S = 1.0
"""A slow client's bytes are written after this time, however few they are."""
_TURN = 4
"""Batches that a thread writes for one upload before others have their turn."""
_SILENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Reception:
    """How a body ended: whole, or cut by the client, by another request, or by silence."""

    end: End
    n_bytes: int


class BodyReceiver:
    """Receives bodies for all uploads of a server.

    Args:
        writers: threads that hash and write.
        readers: threads that read sockets.
        silence_s: a connection that sends nothing for so long is given up.
    """

    def __init__(self, writers: Executor, readers: Executor, silence_s: float = _SILENCE_S) -> None:
        self._writers = writers
        self._readers = readers
        self._silence_s = silence_s
        self._blocks = BlockPool()
        self._n_active = 0

    async def receive(
        self, body: Receive | TakenBody, file: UploadFile, hold: Hold, limit: int, check: Any = None
    ) -> Reception:
        """Append a body to ``file``; nothing of it is committed with ``check``.

        Without ``check``, what has come is committed now and then, and finally by the caller.

        Args:
            body: the request's messages (ASGI), or what was taken from its connection.
            file: open upload.
            hold: the lock of the upload; whoever interrupts it ends this body.
            limit: most bytes that may come; what was taken is known to have no more.
            check: a hash of this body alone.

        Raises:
            TusError: 413, when more bytes come.
        """
        if isinstance(body, TakenBody):
            return await self._pump(body, file, hold, check)
        self._n_active += 1
        try:
            return await self._gather(body, file, hold, limit, check)
        finally:
            self._n_active -= 1

    async def _pump(self, body: TakenBody, file: UploadFile, hold: Hold, check: Any) -> Reception:
        """Threads move bytes while they come; the event loop waits for more."""
        pump = SocketPump(body, file, self._writers, self._blocks, check)
        end: End = "interrupted"
        try:
            with _interruptible(hold, pump.stop):
                while True:
                    state = await outlast(
                        asyncio.get_running_loop().run_in_executor(self._readers, pump.run)
                    )
                    if state == "dry":
                        if not await _readable(body, self._silence_s):
                            end = "silent"
                            break
                    elif state != "turn":
                        end = state
                        break
        finally:
            await outlast(asyncio.ensure_future(pump.finish()))
        return Reception(end, pump.n_bytes)

    async def _gather(
        self, receive: Receive, file: UploadFile, hold: Hold, limit: int, check: Any
    ) -> Reception:
        feed = _Feed(self._writers, file, check, self._batch_bytes())
        end: End = "interrupted"
        try:
            with _interruptible(hold) as scope, _Watch(scope, self._silence_s) as watch:
                end = await _drain(receive, feed, watch, limit)
            if watch.is_silent and end == "interrupted":
                end = "silent"
        finally:
            await feed.finish()
        return Reception(end, feed.n_bytes)

    def _batch_bytes(self) -> int:
        share = _BUDGET_BYTES // ((2 + _MAX_WAITING) * self._n_active)
        return max(_LEAST_BATCH_BYTES, min(_BATCH_BYTES, share))


@contextmanager
def _interruptible(
    hold: Hold, stop: Callable[[], None] | None = None
) -> Iterator[anyio.CancelScope]:
    """End what is inside, without an error, once somebody else wants the upload."""
    with anyio.CancelScope() as scope:

        def interrupt() -> None:
            if stop is not None:
                stop()
            scope.cancel()

        hold.interrupt = interrupt
        try:
            if hold.is_interrupted:
                interrupt()
            yield scope
        finally:
            hold.interrupt = None


async def _readable(body: TakenBody, timeout_s: float) -> bool:
    """Wait until something comes, or the other side has gone; whether it did in time."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(body.socket, ready.set)
    try:
        await asyncio.wait_for(ready.wait(), timeout_s)
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(body.socket)
    return True


async def _drain(
    receive: Receive, feed: "_Feed", watch: "_Watch", limit: int
) -> Literal["whole", "cut"]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return "cut"
        body = message.get("body", b"")
        if body:
            watch.is_fresh = True
            if feed.n_bytes + len(body) > limit:
                raise TusError(
                    "more bytes came than the upload has left",
                    status=413,
                    hint="ask for the offset with HEAD and send the rest only",
                )
            if feed.add(body):
                await feed.pass_on()
        if not message.get("more_body", False):
            return "whole"


class _Feed:
    """Gathers pieces; a thread writes batches in their order while the next ones come."""

    def __init__(self, executor: Executor, file: UploadFile, check: Any, batch_bytes: int) -> None:
        self._executor = executor
        self._file = file
        self._check = check
        self._batch_bytes = batch_bytes
        self._pieces: list[bytes] = []
        self._size = 0
        self._since = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._waiting: deque[list[bytes]] = deque()
        self._room = asyncio.Event()
        self._writer: Future[None] | None = None
        self._is_writing = False
        self._error: BaseException | None = None
        self._hashing = Follower(executor, file.catch_up)
        self._disk = Follower(executor, DiskSync(file, may_commit=check is None).follow)
        self.n_bytes = 0

    def add(self, piece: bytes) -> bool:
        """Keep a piece; whether the batch should go on its way."""
        if not self._pieces:
            self._since = time.monotonic()
        self._pieces.append(piece)
        self._size += len(piece)
        self.n_bytes += len(piece)
        return (
            self._size >= self._batch_bytes
            or len(self._pieces) >= _MAX_PIECES
            or time.monotonic() - self._since > _HOLD_BACK_S
        )

    async def pass_on(self) -> None:
        """Give the batch to the writing thread, once there is room; raise what went wrong there."""
        while len(self._waiting) >= _MAX_WAITING:
            self._room.clear()
            # Looked at again: the thread may have taken one just before.
            if len(self._waiting) >= _MAX_WAITING:
                await self._room.wait()
        pieces, self._pieces, self._size = self._pieces, [], 0
        with self._lock:
            if self._error is not None:
                raise self._error
            if not pieces:
                return
            self._waiting.append(pieces)
            if not self._is_writing:
                self._is_writing = True
                self._writer = self._executor.submit(self._write)

    async def finish(self) -> None:
        """Write what is left, and wait for it, even when the request is cancelled meanwhile."""
        await outlast(asyncio.ensure_future(self._finish()))

    async def _finish(self) -> None:
        try:
            await self.pass_on()
        finally:
            # The next turn of the writer is named before this one ends.
            while (writer := self._writer) is not None:
                await asyncio.wrap_future(writer)
                if writer is self._writer:
                    break
            await self._disk.finish()
        if self._error is not None:
            raise self._error

    def _write(self) -> None:
        """Write what waits, until nothing does; now and then let other uploads have the thread."""
        for n_written in itertools.count():
            with self._lock:
                if not self._waiting:
                    self._is_writing = False
                    return
                if n_written == _TURN:
                    self._writer = self._executor.submit(self._write)
                    return
                pieces = self._waiting.popleft()
            self._loop.call_soon_threadsafe(self._room.set)
            try:
                self._write_batch(pieces)
            except BaseException as error:  # noqa: BLE001 - raised where the batches come from
                with self._lock:
                    self._error, self._is_writing = error, False
                    self._waiting.clear()
                self._loop.call_soon_threadsafe(self._room.set)
                return

    def _write_batch(self, pieces: list[bytes]) -> None:
        self._file.write(pieces, self._check)
        # After a restart: old bytes are read while new ones come.
        if self._file.is_behind:
            self._hashing.nudge()
        # The disk follows in a thread of its own: it is slower than the cache, and nobody waits.
        self._disk.nudge()


class _Watch:
    """Ends a body whose connection has fallen silent; looks now and then, at no cost a piece."""

    def __init__(self, scope: anyio.CancelScope, silence_s: float) -> None:
        self._scope = scope
        self._silence_s = silence_s
        self.is_fresh = True
        self.is_silent = False
        self._timer = asyncio.get_running_loop().call_later(silence_s, self._look)

    def _look(self) -> None:
        if not self.is_fresh:
            self.is_silent = True
            self._scope.cancel()
            return
        self.is_fresh = False
        self._timer = asyncio.get_running_loop().call_later(self._silence_s, self._look)

    def __enter__(self) -> "_Watch":
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
