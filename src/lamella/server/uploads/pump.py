"""Moves a body from its socket to its file, in a thread; the hash and the disk follow.

On Linux the bytes never pass through this process (``splice``). They are hashed a moment later, in
another thread, as they lie in the system's cache; the next request does not wait for that.
"""

import os
import select
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any, Literal

from lamella.server.body import TakenBody
from lamella.server.uploads.disk import DiskSync
from lamella.server.uploads.file import RunningHash, UploadFile
from lamella.server.uploads.threads import Follower

__all__ = ["SocketPump"]

State = Literal["whole", "cut", "interrupted", "dry", "turn"]

_STEP_BYTES = 2**20
_BUFFER_BYTES = 512 * 2**10
"""Where there is no pipe to move bytes through."""
_TURN_BYTES = 32 * 2**20
"""After so much, other uploads have the thread."""
_PATIENCE_MS = 5
"""How long a thread waits for more, before the event loop does."""


class SocketPump:
    """One body on its way to the disk.

    Args:
        body: taken from its connection.
        file: open upload.
        executor: threads that hash and sync.
        check: a hash of this body alone, updated; nothing is committed with it.
    """

    def __init__(self, body: TakenBody, file: UploadFile, executor: Executor, check: Any) -> None:
        self._body = body
        self._file = file
        self._start = file.end
        self._hashing = Follower(executor, file.catch_up)
        self._checking: Follower | None = None
        if check is not None:
            own = RunningHash(check, file.end)
            self._checking = Follower(executor, lambda: file.hash_for(own))
        self._disk = Follower(executor, DiskSync(file, may_commit=check is None).follow)
        self._poll = select.poll()
        self._poll.register(body.socket, select.POLLIN)
        self._pipe = _Pipe() if hasattr(os, "splice") else None
        self._buffer = None if self._pipe else memoryview(bytearray(_BUFFER_BYTES))
        self._is_stopped = False

    @property
    def n_bytes(self) -> int:
        """Bytes that went to the file."""
        return self._file.end - self._start

    def stop(self) -> None:
        """Let a running :meth:`run` end soon. From any thread."""
        self._is_stopped = True

    def run(self) -> State:
        """Move until the body ends, nothing comes for the moment, or it is others' turn.

        Raises:
            OSError: the disk is full, or fails.
        """
        body = self._body
        if body.first:
            self._file.append([body.first])
            body.first = b""
        turn_ends = body.n_left - _TURN_BYTES
        while body.n_left:
            if self._is_stopped:
                return "interrupted"
            if body.n_left <= turn_ends:
                return "turn"
            try:
                n_bytes = self._move(min(_STEP_BYTES, body.n_left))
            except BlockingIOError:
                if not self._poll.poll(_PATIENCE_MS):
                    return "dry"
                continue
            except ConnectionError:  # reset by the client, or by what lies between
                n_bytes = 0
            if not n_bytes:
                return "cut"
            self._hashing.nudge()
            self._disk.nudge()
            if self._checking is not None:
                self._checking.nudge()
        return "whole"

    async def finish(self) -> None:
        """Close the body, and wait until ``check`` has all of it; in the event loop's thread."""
        self._body.close()
        if self._pipe is not None:
            self._pipe.close()
        try:
            if self._checking is not None:
                await self._checking.finish()
                # What came after its last look.
                self._checking.nudge()
                await self._checking.finish()
        finally:
            await self._disk.finish()

    def _move(self, n_bytes: int) -> int:
        """Move what has come, at most so many bytes; 0 at the end."""
        body = self._body
        if self._pipe is not None:
            n_bytes = self._pipe.fill(body.socket.fileno(), n_bytes)
            body.n_left -= n_bytes
            self._file.append_from(self._pipe.reader, n_bytes)
        else:
            assert self._buffer is not None
            n_bytes = body.socket.recv_into(self._buffer[:n_bytes])
            body.n_left -= n_bytes
            self._file.append([self._buffer[:n_bytes]])
        return n_bytes


class _Pipe:
    """Where bytes are between the socket and the file; empty after every step."""

    def __init__(self) -> None:
        import fcntl

        self.reader, self._writer = os.pipe()
        # More than a user may have of large ones: it works with small ones.
        with suppress(OSError):
            fcntl.fcntl(self._writer, fcntl.F_SETPIPE_SZ, _STEP_BYTES)

    def fill(self, handle: int, n_bytes: int) -> int:
        return os.splice(handle, self._writer, n_bytes, flags=os.SPLICE_F_NONBLOCK)

    def close(self) -> None:
        os.close(self.reader)
        os.close(self._writer)
