"""The file system's errors in our words, and files that are whole or not there.

Examples:
    >>> import errno
    >>> error = storage_error(OSError(errno.ENOSPC, "No space left on device"), "labels.mrc")
    >>> error.code, error.message
    ('storage', 'the disk is full: labels.mrc could not be written')
"""

import contextlib
import errno
import os
from pathlib import Path

from lamella.core.errors import StorageError

__all__ = ["is_disk_full", "replace_file", "storage_error", "sync_folder"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def is_disk_full(error: BaseException) -> bool:
    """Whether a write failed for want of space: disk, quota or limit on file size."""
    return isinstance(error, OSError) and error.errno in _FULL


def storage_error(error: OSError, path: str | Path | None = None) -> StorageError:
    """The error to raise instead.

    Args:
        error: what the operating system said.
        path: the file concerned; the one the error names unless given.
    """
    place = path if path is not None else (error.filename or "a file")
    if is_disk_full(error):
        return StorageError(
            f"the disk is full: {place} could not be written",
            hint="free some space and run the same command again; nothing half-written is left",
        )
    if error.errno in _FORBIDDEN:
        return StorageError(
            f"{place} may not be read or written here ({error.strerror})",
            hint="check the permissions of the file and its folder",
        )
    return StorageError(f"{place}: {error.strerror or error}")


def replace_file(path: Path, partial: Path, content: bytes) -> None:
    """Replace a file; readers see the old content or the new one, also after a crash.

    Args:
        path: the file.
        partial: beside it, for what is not whole yet; writers at the same time need one each.
        content: all of it.

    Raises:
        OSError: when it cannot be written; ``path`` is as it was, and nothing else is left.
    """
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename last through a loss of power; not every system allows it for folders."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
