"""How many bytes of an upload are safe: a journal that survives a crash at any byte.

Records of 12 bytes are appended: the offset (little-endian, 64 bits) and its CRC-32. The last
whole and right record counts; whatever follows it is a torn write and is cut away.
"""

import ctypes
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

__all__ = ["OffsetJournal", "begin_sync", "read_offset", "sync", "sync_folder"]

_RECORD = struct.Struct("<QI")

sync = getattr(os, "fdatasync", os.fsync)
"""Bring a file's bytes and length to the disk (macOS has no ``fdatasync``)."""


_SYNC_FILE_RANGE_WRITE = 2


def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """Linux' own call, which Python does not have; None elsewhere."""
    call = getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None
    if call is not None:
        call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return call


_begin = _sync_file_range()


def begin_sync(handle: int, start: int, n_bytes: int) -> None:
    """Let the disk begin with these bytes, so that :func:`sync` has less to wait for later.

    Nothing is promised: an error is left for `sync` to find.
    """
    if _begin is not None and n_bytes > 0:
        _begin(handle, start, n_bytes, _SYNC_FILE_RANGE_WRITE)


def sync_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class OffsetJournal:
    """The journal of one upload, open for appending.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "offset"
        ...     with OffsetJournal(path) as journal:
        ...         journal.append(8)
        ...     _ = path.write_bytes(path.read_bytes() + b"torn")
        ...     read_offset(path)
        8
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        content = os.pread(self._file, os.fstat(self._file).st_size, 0)
        self.offset, self._end = _last_record(content)
        if self._end != len(content):
            os.ftruncate(self._file, self._end)

    def append(self, offset: int) -> None:
        """Record that ``offset`` bytes are on disk, and return once the record itself is."""
        body = struct.pack("<Q", offset)
        record = body + struct.pack("<I", zlib.crc32(body))
        os.pwrite(self._file, record, self._end)
        sync(self._file)
        self._end += len(record)
        self.offset = offset

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> "OffsetJournal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_offset(path: Path) -> int:
    """The last recorded offset in bytes; 0 where there is no journal."""
    try:
        return _last_record(path.read_bytes())[0]
    except FileNotFoundError:
        return 0


def _last_record(content: bytes) -> tuple[int, int]:
    """Offset and where the valid part of the journal ends."""
    # Newest first: older records were valid when the newer ones were written after them.
    for number in range(len(content) // _RECORD.size, 0, -1):
        end = number * _RECORD.size
        offset, check = _RECORD.unpack_from(content, end - _RECORD.size)
        if zlib.crc32(content[end - _RECORD.size : end - 4]) == check:
            return offset, end
    return 0, 0
