"""Compressed data, unpacked once: into memory when small, into a temporary file when large.

gzip and bzip2 cannot be read from the middle. Unpacking again for each slice would make reading a
volume quadratic, so the first read unpacks everything and later reads slice what is there.
Memory stays flat: above :data:`MEMORY_BYTES` the numbers lie in a temporary file that is mapped
and disappears with the array.
"""

import bz2
import gzip
import lzma
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import UnreadableFileError
from lamella.io.format import storage_errors

__all__ = [
    "MEMORY_BYTES",
    "Packing",
    "UnpackedBytes",
    "check_claim",
    "decompression_errors",
    "open_packed",
]

MEMORY_BYTES = 256 * 2**20
_CHUNK = 4 * 2**20

Packing = Literal["gzip", "bzip2"]


# Most that a packed byte can unpack to: deflate's format allows 1032; bzip2 codes 900 kB of equal
# bytes in about 40.
_MOST: dict[str, int] = {"gzip": 1040, "bzip2": 50_000}


def check_claim(path: Path, size: int, packing: Packing | None, *, offset: int = 0) -> None:
    """Refuse a header that claims more data than the file can hold, before memory is taken.

    Args:
        path: the file with the data.
        size: bytes of data that the header describes.
        packing: how they are packed; None for plain bytes.
        offset: where in the file they begin.

    Raises:
        UnreadableFileError: with both numbers.
    """
    there = max(0, path.stat().st_size - offset)
    if size > there * (_MOST[packing] if packing else 1):
        raise UnreadableFileError(
            f"{path} is truncated or its header is wrong: it describes {size} bytes of data, the"
            f" file has {there}{' packed' if packing else ''}",
            hint="copy or download the file again",
        )


class UnpackedBytes:
    """The unpacked bytes of a compressed stream, there after the first read. Thread-safe.

    Args:
        path: for messages.
        opener: opens the stream of unpacked bytes.
        size: how many bytes it must give.
        skip: unpacked bytes to pass over first; -1 takes the last ``size`` bytes.
        is_exact: whether further bytes after ``size`` are an error.
    """

    def __init__(
        self,
        path: Path,
        opener: Callable[[], IO[bytes]],
        size: int,
        *,
        skip: int = 0,
        is_exact: bool = False,
    ) -> None:
        self._path = path
        self._opener = opener
        self._size = size
        self._skip = skip
        self._is_exact = is_exact
        self._lock = threading.Lock()
        self._bytes: NDArray[np.uint8] | None = None

    def get(self) -> NDArray[np.uint8]:
        """All bytes, uint8, (size,).

        Raises:
            UnreadableFileError: when the stream is damaged or too short.
            StorageError: when a temporary file cannot be written.
        """
        with self._lock:
            if self._bytes is None:
                with storage_errors(self._path), decompression_errors(self._path):
                    self._bytes = self._unpack()
            return self._bytes

    def _unpack(self) -> NDArray[np.uint8]:
        with self._opener() as stream:
            if self._skip == -1:
                whole = stream.read()
                if len(whole) < self._size:
                    raise self._too_short(len(whole))
                return np.frombuffer(whole, np.uint8)[len(whole) - self._size :]
            _pass_over(stream, self._skip)
            target = _allocate(self._size)
            view = target.data
            at = 0
            while at < self._size:
                part = stream.read(min(_CHUNK, self._size - at))
                if not part:
                    raise self._too_short(at)
                view[at : at + len(part)] = part
                at += len(part)
            # Reading on checks the checksum, which gzip and bzip2 keep at the end.
            rest = stream.read(_CHUNK)
            if rest and self._is_exact:
                raise UnreadableFileError(
                    f"{self._path} holds more data than its header describes"
                    f" ({self._size} bytes expected, at least {self._size + len(rest)} there)",
                    hint="the header's sizes, type or byte skip are wrong",
                )
        return target

    def _too_short(self, found: int) -> UnreadableFileError:
        return UnreadableFileError(
            f"{self._path} is truncated: {found} bytes of data, {self._size} expected",
            hint="copy or download the file again",
        )


def open_packed(path: Path, packing: Packing, *, offset: int = 0) -> Callable[[], IO[bytes]]:
    """A function that opens the unpacked bytes of a file from ``offset`` of its packed bytes on."""

    def open_stream() -> IO[bytes]:
        raw = path.open("rb")
        raw.seek(offset)
        packed: Any = (
            gzip.GzipFile(fileobj=raw, mode="rb") if packing == "gzip" else bz2.BZ2File(raw)
        )
        return _Closing(packed, raw)  # type: ignore[return-value]

    return open_stream


@contextmanager
def decompression_errors(path: Path) -> Iterator[None]:
    """Turn the errors of damaged compressed streams into ours.

    Raises:
        UnreadableFileError: for bad checksums, bad headers and streams that stop early.
    """
    try:
        yield
    except (gzip.BadGzipFile, zlib.error, EOFError, lzma.LZMAError) as error:
        raise UnreadableFileError(
            f"{path}: the compressed data is damaged or cut off ({error})",
            hint="copy or download the file again",
        ) from error
    except OSError as error:
        # bz2 reports damage as OSError without an errno; the operating system always gives one.
        if error.errno is not None:
            raise
        raise UnreadableFileError(
            f"{path}: the compressed data is damaged ({error})",
            hint="copy or download the file again",
        ) from error


class _Closing:
    """A decompressing stream that also closes the file below it."""

    def __init__(self, packed: Any, raw: IO[bytes]) -> None:
        self._packed = packed
        self._raw = raw

    def read(self, size: int = -1) -> bytes:
        return bytes(self._packed.read(size))

    def __enter__(self) -> "_Closing":
        return self

    def __exit__(self, *_: object) -> None:
        self._packed.close()
        self._raw.close()


def _pass_over(stream: IO[bytes], count: int) -> None:
    while count > 0:
        part = stream.read(min(_CHUNK, count))
        if not part:
            return
        count -= len(part)


def _allocate(size: int) -> NDArray[np.uint8]:
    if size <= MEMORY_BYTES:
        return np.empty(size, np.uint8)
    # Unnamed on POSIX: it goes when the last map is gone, whatever happens to the process.
    with tempfile.TemporaryFile(prefix="lamella-") as stream:
        stream.truncate(size)
        return np.memmap(stream, np.uint8, "r+", shape=(size,))
