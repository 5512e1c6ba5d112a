"""Parts that were sent side by side become one file."""

import os
from collections.abc import Sequence
from pathlib import Path

from lamella.core.errors import ConflictError
from lamella.server.uploads.file import UploadFile
from lamella.server.uploads.rows import UploadRecord, no_upload

__all__ = ["check_parts", "copy_parts"]

_BLOCK_BYTES = 4 * 2**20
_COMMIT_BYTES = 64 * 2**20


def check_parts(found: Sequence[UploadRecord], owner: str, parts: tuple[str, ...]) -> str | None:
    """The upload that these parts were joined to before, if any.

    Args:
        found: the parts, each once.
        owner: who joins them.
        parts: their ids, in order.

    Raises:
        MissingPathError: a part is somebody else's.
        ConflictError: one is no part, is not finished, or went into something else.
    """
    for one in found:
        if one.owner != owner:
            raise no_upload(one.id)
        if not one.is_partial:
            raise ConflictError(
                f"upload {one.id} is no part", hint="create parts with Upload-Concat: partial"
            )
        if one.state not in ("finished", "joined"):
            raise ConflictError(
                f"part {one.id} is {one.state}, not finished",
                hint="send the rest of it, then join the parts again",
            )
    wholes = {one.joined for one in found}
    if wholes == {None}:
        return None
    if len(wholes) == 1:
        return wholes.pop()
    raise ConflictError("some of these parts have gone into another upload", hint="send them again")


def copy_parts(file: UploadFile, paths: Sequence[Path]) -> None:
    """Append files to an upload, hash them on the way, and commit; goes on where it had stopped.

    Raises:
        ConflictError: a part's bytes were removed meanwhile.
    """
    skip = file.end
    for path in paths:
        try:
            source = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise ConflictError("a part was removed meanwhile", hint="send it again") from None
        try:
            skip -= os.lseek(source, min(skip, os.fstat(source).st_size), os.SEEK_SET)
            while block := os.read(source, _BLOCK_BYTES):
                file.write([block])
                if file.end - file.offset >= _COMMIT_BYTES:
                    file.commit()
        finally:
            os.close(source)
    file.commit()
