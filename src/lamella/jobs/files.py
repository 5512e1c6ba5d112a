"""Small files that readers see whole or not at all, and locks that die with their process."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from pathlib import Path
from typing import IO

from lamella.core.storage import replace_file, storage_error, sync_folder

__all__ = ["lock_file", "try_lock", "unlock_file", "write_whole"]

# File systems that know no locks (some network mounts); the attempt's number guards there alone.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file; readers see the old content or the new one, also after a crash.

    Raises:
        StorageError: when it cannot be written.
    """
    # Two threads may write the same file: the last one to be done wins.
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident():x}.partial")
    try:
        replace_file(path, partial, content)
    except OSError as error:
        raise storage_error(error, path) from error
    sync_folder(path.parent)


def try_lock(stream: IO[bytes]) -> bool:
    """Take the operating system's lock of an open file without waiting.

    Returns:
        False while another process holds it. True also where the file system knows no locks.
    """
    try:
        if os.name == "posix":
            import fcntl

            fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            stream.seek(0)
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError as error:
        return os.name == "posix" and error.errno in _NO_LOCKS
    return True


def lock_file(stream: IO[bytes]) -> None:
    """Take the lock of an open file, waiting for it; for sections of a few milliseconds."""
    if os.name != "posix":
        while not try_lock(stream):
            pass
        return
    import fcntl

    try:
        fcntl.flock(stream.fileno(), fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def unlock_file(stream: IO[bytes]) -> None:
    """Give a lock back, also where a forked child still holds the same open file."""
    with contextlib.suppress(OSError):
        if os.name == "posix":
            import fcntl

            fcntl.flock(stream.fileno(), fcntl.LOCK_UN)
        else:
            import msvcrt

            stream.seek(0)
            msvcrt.locking(stream.fileno(), msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined]
