"""Checkpoints: all that a training needs to go on exactly, and no code.

A checkpoint appears under its name when all of it is on the disk; a full disk or a kill leaves the
one before it. Files are read with ``weights_only``: what is in them is numbers and names, and
nothing that could be executed.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import torch

from lamella.core.errors import StorageError, UnreadableFileError
from lamella.core.storage import is_disk_full, storage_error

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LAST", "read_checkpoint", "same_file", "write_checkpoint", "write_text"]

FORMAT = 1
LAST = "last.ckpt"


def write_checkpoint(path: Path, document: Mapping[str, Any]) -> None:
    """Write a checkpoint; an older one of that name stays until the new one is whole.

    Args:
        path: file to make.
        document: tensors, numbers, texts, and lists and dictionaries of them.

    Raises:
        StorageError: the disk is full, or the folder may not be written.
    """
    staging = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staging.open("wb") as stream:
            careful = _Careful(stream)
            torch.save({"format": FORMAT, **document}, cast("IO[bytes]", careful))
            careful.check()
            stream.flush()
            os.fsync(stream.fileno())
        staging.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            staging.unlink(missing_ok=True)
        raise _explained(error, path) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        UnreadableFileError: truncated, corrupt, of another format, or with more than data in it.
    """
    try:
        document: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnreadableFileError(
            f"{path} is no readable checkpoint: {reason}",
            hint="start anew with --fresh, or put another of the run's checkpoints in its place",
        ) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise UnreadableFileError(
            f"{path} is no checkpoint of this version of Lamella",
            hint="start anew with --fresh",
        )
    return document


def same_file(path: Path, other: Path) -> None:
    """Make ``other`` the same file as ``path`` (a copy where the disk cannot link).

    Raises:
        StorageError: the disk is full.
    """
    staging = other.with_name(f".{other.name}.part")
    try:
        staging.unlink(missing_ok=True)
        try:
            os.link(path, staging)
        except OSError:
            shutil.copyfile(path, staging)
        staging.replace(other)
    except OSError as error:
        with contextlib.suppress(OSError):
            staging.unlink(missing_ok=True)
        raise _explained(error, other) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file; it is the old one or the new one, never half of one.

    Raises:
        StorageError: the disk is full.
    """
    staging = path.with_name(f".{path.name}.part")
    try:
        staging.write_text(text, encoding="utf-8")
        staging.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            staging.unlink(missing_ok=True)
        raise storage_error(error, path) from error


def _explained(error: OSError, path: Path) -> StorageError:
    plain = storage_error(error, path)
    if not is_disk_full(error):
        return plain
    kept = path.parent / LAST
    return StorageError(
        plain.message,
        hint="free some space, then go on with --resume: "
        + (f"the checkpoint before it, {kept}, is whole" if kept.is_file() else "no step is kept"),
    )


class _Careful:
    """A file that remembers the first error of the operating system.

    PyTorch's writer turns it into a RuntimeError about its own position, and writes again while it
    is taken down.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._error: OSError | None = None

    def write(self, data: Any) -> int:
        if self._error is None:
            try:
                self._stream.write(data)
            except OSError as error:
                self._error = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        if self._error is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._error = error

    def check(self) -> None:
        if self._error is not None:
            raise self._error
