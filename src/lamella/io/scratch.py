"""An array in a file for the time of a command: written slab by slab, read lazily.

Plain reads and writes, no memory map: the pages of a map count as memory of the process, so a
command would seem to need as much of it as the volume is large.

Examples:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     array = ScratchArray(Path(folder) / "ids", (4, 2, 3), np.uint32)
    ...     array[1:3] = np.arange(12).reshape(2, 2, 3)
    ...     array[2, :, 1:].tolist()
    [[7, 8], [10, 11]]
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import BoxOutOfBoundsError
from lamella.core.storage import storage_error
from lamella.volume.source import FunctionArray, normalise_index

__all__ = ["ScratchArray"]


class ScratchArray(FunctionArray):
    """A lazy array, 0 until something else is written.

    Args:
        path: the file; it must outlive the array, and is replaced if it is there.
        shape: extent per axis.
        dtype: of the elements.

    Raises:
        StorageError: when the file cannot be made, or the disk is full.
    """

    def __init__(self, path: Path, shape: Sequence[int], dtype: Any) -> None:
        super().__init__(shape, dtype, self._fetch)
        self._path = path
        try:
            with path.open("wb") as stream:
                stream.truncate(math.prod(self.shape) * self.dtype.itemsize)
        except OSError as error:
            raise storage_error(error, path) from error

    def __setitem__(self, index: Any, values: Any) -> None:
        """Write whole slices along the first axis.

        Raises:
            BoxOutOfBoundsError: for anything less than whole slices.
        """
        box, _ = normalise_index(index, self.shape)
        if any((s.start, s.stop) != (0, n) for s, n in zip(box[1:], self.shape[1:], strict=True)):
            raise BoxOutOfBoundsError(
                f"{index} is not made of whole slices of an array of shape {self.shape}"
            )
        if box[0].start == box[0].stop:
            return
        extent = (box[0].stop - box[0].start, *self.shape[1:])
        block = np.empty(extent, self.dtype)
        block[...] = values
        try:
            with self._path.open("r+b") as stream:
                stream.seek(box[0].start * self._slice_bytes())
                stream.write(block.data.cast("B"))
        except OSError as error:
            raise storage_error(error, self._path) from error

    def _slice_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def _fetch(self, box: tuple[slice, ...]) -> NDArray[Any]:
        """Read slice by slice, the rows between the first and the last one wanted."""
        first, *rest = box
        found = np.empty([s.stop - s.start for s in box], self.dtype)
        rows = rest[0] if rest else slice(0, 1)
        row = math.prod(self.shape[2:])
        with self._path.open("rb") as stream:
            for k in range(first.start, first.stop):
                stream.seek(k * self._slice_bytes() + rows.start * row * self.dtype.itemsize)
                block = np.fromfile(stream, self.dtype, (rows.stop - rows.start) * row)
                part = block.reshape(-1, *self.shape[2:]) if rest else block[0]
                found[k - first.start] = part[(slice(None), *rest[1:])] if rest else part
        return found
