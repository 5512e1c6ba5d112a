"""What exactly went in and came out: SHA-256 of files, folders and voxels, streamed.

Examples:
    >>> import numpy as np
    >>> from lamella.volume.volume import Volume
    >>> a = np.arange(24, dtype="<u2").reshape(2, 3, 4)
    >>> voxel_sha256(a) == voxel_sha256(a.astype(">u2"))
    True
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lamella.core.errors import MissingPathError
from lamella.core.progress import Progress, ProgressSink, SilentSink
from lamella.io.format import storage_errors
from lamella.volume.source import LazyArray, iter_slabs

__all__ = ["Fingerprint", "path_fingerprint", "voxel_sha256"]

_BLOCK_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """SHA-256 (hex) and size of an input."""

    sha256: str
    n_bytes: int


def path_fingerprint(path: Path, sink: ProgressSink | None = None) -> Fingerprint:
    """Fingerprint of a file's bytes, or of a folder's sorted list of (name, SHA-256).

    Names inside a folder are relative to it, with ``/``: a folder that was moved keeps its
    fingerprint. Hidden files (``.DS_Store``) do not count; zarr's dot files do.

    Raises:
        MissingPathError: when there is nothing at ``path``.
        StorageError: when it cannot be read.
    """
    sink = sink or SilentSink()
    if not path.exists():
        raise MissingPathError(f"there is nothing at {path}", hint="check the path")
    with storage_errors(path):
        files = sorted(_files(path)) if path.is_dir() else [path]
        total = sum(file.stat().st_size for file in files)
        meter = _Meter(sink, total)
        if not path.is_dir():
            return Fingerprint(_file_sha256(path, meter), total)
        listing = hashlib.sha256()
        for file in files:
            name = file.relative_to(path).as_posix()
            listing.update(f"{name}\n{_file_sha256(file, meter)}\n".encode())
        return Fingerprint(listing.hexdigest(), total)


def voxel_sha256(array: LazyArray, sink: ProgressSink | None = None) -> str:
    """SHA-256 of voxels in C order, little-endian, however they are stored.

    Args:
        array: any numeric dtype and shape; read slab by slab.
        sink: progress and cancellation.
    """
    sink = sink or SilentSink()
    digest = hashlib.sha256()
    for extent, slab in iter_slabs(array):
        sink.check()
        digest.update(_little_endian(slab))
        sink.emit(Progress("fingerprint", extent.stop, array.shape[0], "slices"))
    return digest.hexdigest()


def _little_endian(slab: np.ndarray[Any, Any]) -> memoryview:
    # As bytes: hashlib takes the buffer without a copy.
    return np.ascontiguousarray(slab, dtype=slab.dtype.newbyteorder("<")).data.cast("B")


class _Meter:
    """Adds up bytes read over several files."""

    def __init__(self, sink: ProgressSink, total: int) -> None:
        self._sink = sink
        self._total = total
        self._done = 0

    def add(self, n_bytes: int) -> None:
        self._sink.check()
        self._done += n_bytes
        megabytes = 1e6
        self._sink.emit(
            Progress("fingerprint", self._done / megabytes, self._total / megabytes, "MB")
        )


def _file_sha256(path: Path, meter: _Meter) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
            meter.add(len(block))
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    zarr_names = (".zarray", ".zgroup", ".zattrs", ".zmetadata")
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and (not path.name.startswith(".") or path.name in zarr_names)
    ]
