"""A request's body on its way to the disk: receive, hash and write overlap.

The event loop gathers pieces as they come; a thread hashes and writes the batches before them. At
most four batches of an upload are in memory, and all uploads together share one budget.
"""

import asyncio
import itertools
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import anyio

from lamella.server.uploads.file import UploadFile
from lamella.server.uploads.locks import Hold
from lamella.server.uploads.protocol import TusError

__all__ = ["BodyReceiver", "Receive", "Reception", "outlast"]

Result = TypeVar("Result")
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
_COMMIT_BYTES = 128 * 2**20
_COMMIT_S = 5.0
_SILENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Reception:
    """How a body ended: whole, or cut by the client, by another request, or by silence."""

    end: Literal["whole", "cut", "interrupted", "silent"]
    n_bytes: int


class BodyReceiver:
    """Receives bodies for all uploads of a server.

    Args:
        executor: threads that hash and write.
        silence_s: a connection that sends nothing for so long is given up.
    """

    def __init__(self, executor: Executor, silence_s: float = _SILENCE_S) -> None:
        self._executor = executor
        self._silence_s = silence_s
        self._n_active = 0

    async def receive(
        self, receive: Receive, file: UploadFile, hold: Hold, limit: int, check: Any = None
    ) -> Reception:
        """Append a body to ``file``; nothing of it is committed with ``check``.

        Without ``check``, what has come is committed now and then, and finally by the caller.

        Args:
            receive: the request's messages (ASGI).
            file: open upload.
            hold: the lock of the upload; whoever interrupts it ends this body.
            limit: most bytes that may come.
            check: a hash of this body alone.

        Raises:
            TusError: 413, when more bytes come.
        """
        self._n_active += 1
        feed = _Feed(self._executor, file, check, self._batch_bytes())
        scope = anyio.CancelScope()
        watch = _Watch(scope, self._silence_s)
        hold.interrupt = scope.cancel
        end: Literal["whole", "cut", "interrupted", "silent"] = "interrupted"
        try:
            with scope:
                if hold.is_interrupted:
                    scope.cancel()
                end = await _drain(receive, feed, watch, limit)
            if scope.cancelled_caught and watch.is_silent:
                end = "silent"
        finally:
            hold.interrupt = None
            watch.stop()
            self._n_active -= 1
            await feed.finish()
        return Reception(end, feed.n_bytes)

    def _batch_bytes(self) -> int:
        share = _BUDGET_BYTES // ((2 + _MAX_WAITING) * self._n_active)
        return max(_LEAST_BATCH_BYTES, min(_BATCH_BYTES, share))


async def outlast(future: "asyncio.Future[Result]") -> Result:
    """The result of work that must end before anything else may happen to its files.

    A cancellation is not lost: it goes on once the work has ended.
    """
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        future.exception()  # looked at, so that nobody complains that it was not
        raise cancelled
    return future.result()


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
        self._behind: Future[None] | None = None
        self._committed_at = time.monotonic()
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
            if self._behind is not None:
                await asyncio.wrap_future(self._behind)
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
        # The disk follows in a thread of its own: it is slower than the cache, and nobody waits.
        if self._behind is None or self._behind.done():
            if self._behind is not None:
                self._behind.result()
            self._behind = self._executor.submit(self._follow)

    def _follow(self) -> None:
        now = time.monotonic()
        is_much = self._file.end - self._file.offset >= _COMMIT_BYTES
        is_late = now - self._committed_at > _COMMIT_S
        if self._check is None and (is_much or is_late):
            self._file.commit()
            self._committed_at = now
        else:
            self._file.begin_commit()


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

    def stop(self) -> None:
        self._timer.cancel()
