"""The bytes of one upload on disk, and their SHA-256 as they come.

A folder holds ``data`` and ``offset`` (the journal). What is acknowledged is on disk first: data,
then the journal's record, each brought there by ``fdatasync``. Bytes behind the recorded offset
were never acknowledged and are cut away when the upload is opened again.
"""

import errno
import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lamella.server.uploads.blocks import Block
from lamella.server.uploads.journal import (
    OffsetJournal,
    begin_sync,
    read_offset,
    sync,
    sync_folder,
)

__all__ = [
    "ALIGNMENT",
    "DATA_NAME",
    "JOURNAL_NAME",
    "RunningHash",
    "UploadFile",
    "committed_offset",
    "create_folder",
]

DATA_NAME = "data"
JOURNAL_NAME = "offset"
_READ_BYTES = 512 * 2**10
"""Small enough that the processor still has it at hand when it is hashed."""
_CATCH_UP_BYTES = 64 * 2**20

ALIGNMENT = 4096
"""Of memory and of places in a file that is written past the system's cache, in bytes."""
_LEAST_DIRECT_BYTES = 2**20


class RunningHash:
    """SHA-256 of a file's first ``position`` bytes; survives between requests, not a restart.

    Python cannot store the state of a hash. After a restart it begins at zero and
    :meth:`catch_up` reads what is there, at 2 GB/s, while new bytes already come.

    Args:
        own: another hash than a new SHA-256.
        position: where in the file it begins.
    """

    def __init__(self, own: Any = None, position: int = 0) -> None:
        self._lock = threading.Lock()
        self._hash = hashlib.sha256() if own is None else own
        self._safe = (position, self._hash.copy())
        self.position = position
        self._waiting: deque[tuple[int, memoryview, Block]] = deque()
        self._gate = threading.Lock()
        """Of what waits; held for a moment only, and inside the other lock."""
        self.reach = position
        """Where what is hashed or waits ends."""

    def feed(self, start: int, pieces: Sequence[bytes | memoryview]) -> None:
        """Take bytes that begin at ``start``, if the hash has come so far; else they wait."""
        with self._lock:
            if start != self.position:
                return
            for piece in pieces:
                self._hash.update(piece)
                self._move_to(self.position + len(piece))

    def offer(self, start: int, block: Block, piece: memoryview) -> bool:
        """Have bytes of ``block`` that begin at ``start`` hashed soon, by :meth:`catch_up`.

        Returns:
            False where bytes before them are missing: then they are read from the file later.
        """
        with self._gate:
            if start != self.reach:
                return False
            self._waiting.append((start, piece, block))
            self.reach += len(piece)
            return True

    def keep(self, offset: int) -> None:
        """Bytes up to ``offset`` are safe: a later :meth:`discard` need not go back further."""
        # While a thread hashes, its word is not waited for: an answer is.
        if self._lock.acquire(blocking=False):
            try:
                if self.position <= offset:
                    self._safe = (self.position, self._hash.copy())
            finally:
                self._lock.release()

    def discard(self) -> None:
        """Forget bytes that were not kept."""
        with self._lock, self._gate:
            self.position, kept = self._safe
            self._hash = kept.copy()
            self._waiting.clear()
            self.reach = self.position

    def catch_up(self, path: Path, stop: Callable[[], int], most: int | None = None) -> None:
        """Read ``path`` up to ``stop()``, which may change meanwhile, where bytes were not fed.

        Args:
            path: of the file.
            stop: bytes that are written.
            most: bytes that are read; the rest is left for another time.
        """
        with ExitStack() as opened:
            reader: _Reader | None = None
            while most is None or most > 0:
                with self._lock:
                    n_bytes = self._hash_waiting()
                    if not n_bytes:
                        left = self._n_in_file(stop())
                        if left <= 0:
                            return
                        if reader is None:
                            reader = opened.enter_context(_Reader(path))
                        piece = reader.read(self.position, left)
                        n_bytes = len(piece)
                        self._hash.update(piece)
                        self._move_to(self.position + n_bytes)
                if most is not None:
                    most -= n_bytes

    def hexdigest(self) -> str:
        """Of the bytes up to ``position``."""
        with self._lock:
            return self._hash.hexdigest()

    def _hash_waiting(self) -> int:
        """Hash the next bytes, if they wait in memory; how many they were."""
        with self._gate:
            if not self._waiting or self._waiting[0][0] != self.position:
                return 0
            _, piece, _ = self._waiting[0]
        self._hash.update(piece)
        with self._gate:
            self.position += len(piece)
            self._waiting.popleft()
        return len(piece)

    def _n_in_file(self, end: int) -> int:
        """Bytes of the file up to ``end``, or up to those that wait in memory."""
        with self._gate:
            if self._waiting:
                end = min(end, self._waiting[0][0])
            return end - self.position

    def _move_to(self, position: int) -> None:
        self.position = position
        with self._gate:
            self.reach = max(self.reach, position)


class _Reader:
    """Reads a file through one small buffer."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream = path.open("rb", buffering=0)
        self._buffer = memoryview(bytearray(_READ_BYTES))

    def read(self, position: int, most: int) -> memoryview:
        """Some bytes, at most ``most``; valid until the next are read."""
        n_bytes = os.preadv(self._stream.fileno(), [self._buffer[:most]], position)
        if not n_bytes:
            raise OSError(f"{self._path} has fewer bytes than were written: {position}")
        return self._buffer[:n_bytes]

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


def create_folder(folder: Path) -> None:
    """Make the empty upload, on disk when this returns."""
    folder.mkdir(parents=True)
    for name in (DATA_NAME, JOURNAL_NAME):
        os.close(os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    sync_folder(folder)
    sync_folder(folder.parent)


class UploadFile:
    """One upload, open for writing; used by one request at a time.

    Args:
        folder: of the upload.
        running: its hash, where the whole file's SHA-256 is wanted.
    """

    def __init__(self, folder: Path, running: RunningHash | None = None) -> None:
        self._path = folder / DATA_NAME
        self._journal = OffsetJournal(folder / JOURNAL_NAME)
        try:
            self._data = os.open(self._path, os.O_RDWR)
        except OSError:
            self._journal.close()
            raise
        self._direct = _open_direct(self._path)
        self._running = running
        self.end = self._journal.offset
        """Where the next byte goes."""
        self._begun = self.end
        if os.fstat(self._data).st_size != self.end:
            os.ftruncate(self._data, self.end)
        if running is not None and running.reach > self.end:
            running.discard()

    @property
    def offset(self) -> int:
        """Bytes that are safe."""
        return self._journal.offset

    def write(self, pieces: Sequence[bytes | memoryview], check: Any = None) -> None:
        """Append, and hash; nothing is safe before :meth:`commit`.

        Args:
            pieces: in order.
            check: a hash to update as well.
        """
        start = self.end
        if check is not None:
            for piece in pieces:
                check.update(piece)
        self.append(pieces)
        # Last: a hash that is catching up reads up to `end`, and takes over from there.
        if self._running is not None:
            self._running.feed(start, pieces)

    def append(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Append only; :meth:`catch_up` hashes."""
        _write_all(self._data, pieces, self.end)
        self.end += sum(map(len, pieces))

    def offer(self, start: int, block: Block, piece: memoryview) -> bool:
        """Have bytes hashed in memory; whether nothing need be read for that.

        Args:
            start: where in the file they are, or will be.
            block: where they are in memory.
            piece: of its view.
        """
        return self._running is None or self._running.offer(start, block, piece)

    def append_direct(self, piece: memoryview) -> None:
        """Append, past the system's cache (``O_DIRECT``) where that can be and is worth it.

        It saves a copy and the search for free memory.

        Args:
            piece: its places in memory and in the file agree modulo :data:`ALIGNMENT`.
        """
        start = -self.end % ALIGNMENT
        stop = len(piece) - (self.end + len(piece)) % ALIGNMENT
        if stop - start < _LEAST_DIRECT_BYTES or self._direct is None:
            self.append([piece])
            return
        self.append([piece[:start]])
        try:
            _write_all(self._direct, [piece[start:stop]], self.end)
            self.end += stop - start
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # A disk that wants them aligned to more: not past the cache, then.
            os.close(self._direct)
            self._direct = None
            self.append([piece[start:stop]])
        self.append([piece[stop:]])

    @property
    def is_behind(self) -> bool:
        """Whether there are bytes that :meth:`catch_up` would hash."""
        return self._running is not None and self._running.position < self.end

    def catch_up(self) -> None:
        """Hash what was appended and not fed, or some of it; in any thread, also once closed."""
        if self._running is not None:
            self.hash_for(self._running, _CATCH_UP_BYTES)

    def hash_for(self, running: RunningHash, most: int | None = None) -> None:
        """Let a hash catch up, by at most so many bytes; in any thread, also once closed."""
        running.catch_up(self._path, lambda: self.end, most)

    def begin_commit(self) -> None:
        """Let the disk begin with what was written, while more comes; from any thread."""
        start, self._begun = self._begun, self.end
        begin_sync(self._data, start, self._begun - start)

    def commit(self) -> int:
        """Bring everything written to the disk, record it, and return the new offset."""
        end = self.end
        if end != self._journal.offset:
            sync(self._data)
            self._journal.append(end)
            if self._running is not None:
                self._running.keep(end)
        return end

    def discard(self) -> None:
        """Cut away what was not committed."""
        self.end = self._begun = self._journal.offset
        # First: who catches up meanwhile stops at the new end.
        if self._running is not None:
            self._running.discard()
        os.ftruncate(self._data, self.end)

    def close(self) -> None:
        """Close both files; bytes that were not committed are lost."""
        os.close(self._data)
        if self._direct is not None:
            os.close(self._direct)
        self._journal.close()

    def __enter__(self) -> "UploadFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def committed_offset(folder: Path) -> int:
    """Safe bytes of an upload that nobody has open."""
    return read_offset(folder / JOURNAL_NAME)


def _open_direct(path: Path) -> int | None:
    """Open a file for writing past the system's cache; None where that cannot be."""
    flag = getattr(os, "O_DIRECT", None)
    if flag is None:
        return None
    try:
        return os.open(path, os.O_WRONLY | flag)
    except OSError:
        return None


def _write_all(handle: int, pieces: Sequence[bytes | memoryview], start: int) -> None:
    views = [memoryview(piece) for piece in pieces if piece]
    while views:
        done = os.pwritev(handle, views[:512], start)
        start += done
        while views and done >= len(views[0]):
            done -= len(views[0])
            del views[0]
        if done:
            views[0] = views[0][done:]
