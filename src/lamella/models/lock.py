"""One at a time: a lock between threads and processes that a dead owner cannot keep.

The operating system holds the lock (``flock``; a byte of the file on Windows) and lets go of it
when the process ends, however it ends, so a lock file that is left behind locks nothing. The file
says who holds it, for people.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lamella.core.errors import StorageError
from lamella.core.storage import storage_error

__all__ = ["hold", "is_held", "owner_of"]

_POLL_S = 0.1
_BUSY = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


@contextmanager
def hold(
    path: Path,
    *,
    on_wait: Callable[[], None],
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Hold the lock of a path, waiting for whoever has it.

    Args:
        path: the lock file, made where it is not; its folder too.
        on_wait: called ten times a second while somebody else has it; may raise.
        sleep: waits.

    Raises:
        StorageError: the file may not be written, or the file system has no locks.
    """
    while (stream := _try(path)) is None:
        on_wait()
        sleep(_POLL_S)
    try:
        _say_who(stream)
        yield
    finally:
        # Whoever opened the file meanwhile sees that it is gone, and makes a new one.
        with suppress(OSError):
            path.unlink()
        stream.close()


def is_held(path: Path) -> bool:
    """Whether somebody has the lock now; a file that is not there is held by nobody."""
    if not path.is_file():
        return False
    stream = _try(path)
    if stream is None:
        return True
    stream.close()
    return False


def owner_of(path: Path) -> str:
    """Return who has the lock, for people; empty where it does not say."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        told = json.loads(path.read_text(encoding="utf-8"))
        return f"process {told['process']} on {told['host']}"
    return ""


def _try(path: Path) -> BinaryIO | None:
    """Take the lock, or None where somebody else has it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("ab", buffering=0)
    except OSError as error:
        raise storage_error(error, path) from error
    try:
        _lock(stream)
        # Whoever had it may have removed the file meanwhile: a lock on no file keeps nobody out.
        if _is_at(stream, path):
            return stream
    except OSError as error:
        stream.close()
        if error.errno in _BUSY:
            return None
        raise StorageError(
            f"{path.parent} is on a file system without locks ({error.strerror})",
            hint="keep it on another disk: LAMELLA_MODELS for models, --data-dir for a server",
        ) from error
    stream.close()
    return _try(path)


def _is_at(stream: BinaryIO, path: Path) -> bool:
    """Whether a path still names an open file."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(stream.fileno()))


def _lock(stream: BinaryIO) -> None:
    if sys.platform == "win32":
        import msvcrt

        # Beyond the text, so that others can read it.
        stream.seek(1 << 20)
        msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        return
    import fcntl

    fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def _say_who(stream: BinaryIO) -> None:
    text = json.dumps({"process": os.getpid(), "host": socket.gethostname()})
    stream.truncate(0)
    stream.write(text.encode())
