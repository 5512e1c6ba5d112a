"""Moves a body from its socket to memory, in a thread; the file, the hash and the disk follow.

Bytes are received into large blocks. A block is hashed in a second thread and written in a third,
while the next ones come. The answer waits until all is written, not until it is hashed.
"""

import select
from collections import deque
from concurrent.futures import Executor
from typing import Any, Literal

from lamella.server.body import TakenBody
from lamella.server.uploads.blocks import Block, BlockPool, Share
from lamella.server.uploads.disk import DiskSync
from lamella.server.uploads.file import ALIGNMENT, RunningHash, UploadFile
from lamella.server.uploads.threads import Follower

__all__ = ["SocketPump"]

State = Literal["whole", "cut", "interrupted", "dry", "turn"]

_TURN_BYTES = 32 * 2**20
"""After so much, other uploads have the thread."""
_PATIENCE_MS = 5
"""How long a thread waits for more, before the event loop does."""
_BLOCK_S = 0.05
"""How long it waits for a block, before others have their turn."""


class SocketPump:
    """One body on its way to the disk.

    Args:
        body: taken from its connection.
        file: open upload.
        executor: threads that write, hash and sync.
        pool: of blocks.
        check: a hash of this body alone, updated; nothing is committed with it.
    """

    def __init__(
        self, body: TakenBody, file: UploadFile, executor: Executor, pool: BlockPool, check: Any
    ) -> None:
        self._body = body
        self._file = file
        self._start = self._end = file.end
        self._received: deque[tuple[Block, memoryview, bool]] = deque()
        self._writing = Follower(executor, self._write)
        self._hashing = Follower(executor, file.catch_up)
        self._own: RunningHash | None = None
        self._checking: Follower | None = None
        if check is not None:
            own = self._own = RunningHash(check, file.end)
            self._checking = Follower(executor, lambda: file.hash_for(own))
        self._disk = Follower(executor, DiskSync(file, may_commit=check is None).follow)
        self._poll = select.poll()
        self._poll.register(body.socket, select.POLLIN)
        self._pool = pool
        self._share = Share()
        self._block: Block | None = None
        self._begin = self._filled = 0
        self._is_stopped = False

    @property
    def n_bytes(self) -> int:
        """Bytes that went to the file; all that came, once :meth:`finish` has returned."""
        return self._file.end - self._start

    def stop(self) -> None:
        """Let a running :meth:`run` end soon. From any thread."""
        self._is_stopped = True

    def run(self) -> State:
        """Receive until the body ends, nothing comes for the moment, or it is others' turn.

        Raises:
            OSError: the disk is full, or fails.
        """
        body = self._body
        turn_ends = body.n_left - _TURN_BYTES
        state: State = "whole"
        while state == "whole" and (body.first or body.n_left):
            if self._is_stopped:
                state = "interrupted"
            elif self._block is None and (body.n_left <= turn_ends or not self._take_block()):
                state = "turn"
            else:
                state = self._receive()
        self._pass_on()
        return state

    async def finish(self) -> None:
        """Close the body, and wait until the file has all of it, and so has ``check``.

        In the event loop's thread.
        """
        self._body.close()
        try:
            await self._writing.finish()
            if self._checking is not None:
                await self._checking.finish()
        finally:
            # After an error: what was not written gives its blocks back.
            self._block = None
            self._received.clear()
            await self._disk.finish()

    def _take_block(self) -> bool:
        """Have a block to receive into; it is waited for, but not long."""
        self._block = self._pool.take(self._share, _BLOCK_S)
        # As in the file, so that whole pages of one are whole pages of the other.
        self._begin = self._filled = self._end % ALIGNMENT
        if self._block is None:
            self._follow()  # which tells what has gone wrong there
        return self._block is not None

    def _receive(self) -> State:
        """Take what has come into the block; "whole" while all is well."""
        assert self._block is not None
        body = self._body
        room = self._block.view[self._filled :]
        if body.first:
            n_bytes = min(len(room), len(body.first))
            room[:n_bytes] = body.first[:n_bytes]
            body.first = body.first[n_bytes:]
        else:
            try:
                n_bytes = body.socket.recv_into(room[: body.n_left])
            except BlockingIOError:
                return "whole" if self._poll.poll(_PATIENCE_MS) else "dry"
            except ConnectionError:  # reset by the client, or by what lies between
                n_bytes = 0
            body.n_left -= n_bytes
        self._filled += n_bytes
        if n_bytes == len(room):
            self._pass_on()
        return "whole" if n_bytes else "cut"

    def _pass_on(self) -> None:
        """Let go of the block, and have what is in it hashed and written."""
        block, self._block = self._block, None
        if block is None or self._filled == self._begin:
            return
        piece = block.view[self._begin : self._filled]
        if self._own is not None:
            self._own.offer(self._end, block, piece)
        is_hashed = self._file.offer(self._end, block, piece)
        self._end += len(piece)
        self._received.append((block, piece, is_hashed))
        self._follow()

    def _write(self) -> None:
        """Append what was received."""
        while self._received:
            # It stays there, and so does its block, until it is written.
            piece, is_hashed = self._received[0][1:]
            if is_hashed:
                self._file.append_direct(piece)
            else:
                # What the hash has to read again is better left in the system's cache.
                self._file.append([piece])
                self._hashing.nudge()
            self._disk.nudge()
            self._received.popleft()

    def _follow(self) -> None:
        self._writing.nudge()
        self._hashing.nudge()
        if self._checking is not None:
            self._checking.nudge()
