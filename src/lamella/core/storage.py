"""The file system's errors in our words.

Examples:
    >>> import errno
    >>> error = storage_error(OSError(errno.ENOSPC, "No space left on device"), "labels.mrc")
    >>> error.code, error.message
    ('storage', 'the disk is full: labels.mrc could not be written')
"""

import errno
from pathlib import Path

from lamella.core.errors import StorageError

__all__ = ["is_disk_full", "storage_error"]

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
