"""The disk, that follows an upload's bytes while more of them come."""

import time

from lamella.server.uploads.file import UploadFile

__all__ = ["DiskSync"]

_BEGIN_BYTES = 4 * 2**20
"""The disk is not troubled with less."""
_COMMIT_BYTES = 128 * 2**20
_COMMIT_S = 5.0


class DiskSync:
    """Brings what was written to the disk, now and then.

    Args:
        file: open upload.
        may_commit: whether bytes may become safe before the whole body was checked.
    """

    def __init__(self, file: UploadFile, *, may_commit: bool) -> None:
        self._file = file
        self._may_commit = may_commit
        self._begun = file.end
        self._committed_at = time.monotonic()

    def follow(self) -> None:
        """Make much, or old, bytes safe; let the disk begin with the others."""
        now, end = time.monotonic(), self._file.end
        is_much = end - self._file.offset >= _COMMIT_BYTES
        is_late = now - self._committed_at > _COMMIT_S
        if self._may_commit and (is_much or is_late):
            self._file.commit()
            self._committed_at = now
        elif end - self._begun >= _BEGIN_BYTES:
            self._file.begin_commit()
            self._begun = end
