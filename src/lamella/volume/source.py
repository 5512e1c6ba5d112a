"""The lazy array: what stands behind every volume.

A numpy array, a ``numpy.memmap`` and a zarr array qualify as they are; readers wrap what does
not.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import BoxOutOfBoundsError

__all__ = ["FunctionArray", "LazyArray", "iter_slabs", "normalise_index"]

Index = tuple[slice | int, ...]


@runtime_checkable
class LazyArray(Protocol):
    """An array that reads what is sliced.

    Contract:
        * ``shape`` and ``dtype`` are known without reading data; ``dtype`` is native-endian and is
          the dtype of what slicing returns.
        * ``array[slices]`` takes one slice with step 1 or one integer per axis (fewer = the rest
          whole) and returns a numpy array; slices never drop an axis, integers do.
        * Only the region asked for (and the storage units it touches) is read.
        * Reads from several threads at once are safe.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent per axis."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        ...

    @property
    def ndim(self) -> int:
        """Number of axes."""
        ...

    def __getitem__(self, index: Any, /) -> Any:
        """Read a region."""
        ...


def normalise_index(index: Any, shape: Sequence[int]) -> tuple[tuple[slice, ...], tuple[int, ...]]:
    """Bring an index into one plain slice per axis.

    Args:
        index: an integer, a slice with step 1, an ellipsis, or a tuple of them.
        shape: the array's shape.

    Returns:
        Slices with both ends given, and the axes that integers ask to drop.

    Raises:
        BoxOutOfBoundsError: for an integer outside the array or a step other than 1.

    Examples:
        >>> normalise_index((2, slice(None)), (5, 7))
        ((slice(2, 3, None), slice(0, 7, None)), (0,))
    """
    parts: list[Any] = list(cast("tuple[Any, ...]", index)) if isinstance(index, tuple) else [index]
    if any(part is Ellipsis for part in parts):
        at = next(i for i, part in enumerate(parts) if part is Ellipsis)
        fill = len(shape) - (len(parts) - 1)
        parts[at : at + 1] = [slice(None)] * fill
    parts += [slice(None)] * (len(shape) - len(parts))
    if len(parts) != len(shape):
        raise BoxOutOfBoundsError(f"index {index} has more axes than the shape {tuple(shape)}")
    slices: list[slice] = []
    dropped: list[int] = []
    for axis, (part, length) in enumerate(zip(parts, shape, strict=True)):
        if isinstance(part, slice):
            start, stop, step = part.indices(length)
            if step != 1:
                raise BoxOutOfBoundsError(f"step {step} along axis {axis}: only 1 is supported")
            slices.append(slice(start, max(start, stop)))
        else:
            at = int(part)
            if not -length <= at < length:
                raise BoxOutOfBoundsError(f"index {at} lies outside axis {axis} of length {length}")
            at %= length
            slices.append(slice(at, at + 1))
            dropped.append(axis)
    return tuple(slices), tuple(dropped)


class FunctionArray:
    """A lazy array made of a function that reads a region.

    Args:
        shape: extent per axis.
        dtype: type of what ``read`` returns; results are checked against it.
        read: called with one plain slice per axis; returns an array of exactly that extent. Must be
            safe to call from several threads.

    Examples:
        >>> rows = FunctionArray((3, 2), np.uint8, lambda s: np.full((1, 2), s[0].start, np.uint8))
        >>> rows[1, :].tolist()
        [1, 1]
    """

    def __init__(
        self,
        shape: Sequence[int],
        dtype: Any,
        read: Callable[[tuple[slice, ...]], NDArray[Any]],
    ) -> None:
        self._shape = tuple(int(n) for n in shape)
        self._dtype = np.dtype(dtype).newbyteorder("=")
        self._read = read

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent per axis."""
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements, native-endian."""
        return self._dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self._shape)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        slices, dropped = normalise_index(index, self._shape)
        expected = tuple(s.stop - s.start for s in slices)
        if 0 in expected:
            region = np.empty(expected, self._dtype)
        else:
            region = np.ascontiguousarray(self._read(slices), dtype=self._dtype)
            assert region.shape == expected, (region.shape, expected)
        keep = tuple(n for axis, n in enumerate(expected) if axis not in dropped)
        return region.reshape(keep)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        whole = self[...]
        return whole if dtype is None else whole.astype(dtype)


def iter_slabs(
    array: LazyArray, *, axis: int = 0, max_bytes: int = 64 * 2**20
) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Read an array slab by slab along one axis, each at most ``max_bytes`` (but one plane).

    Yields:
        The slab's extent along ``axis`` and its data.
    """
    length = array.shape[axis]
    plane = max(1, int(np.prod(array.shape, dtype=np.int64)) // max(1, length))
    depth = max(1, max_bytes // max(1, plane * array.dtype.itemsize))
    before = (slice(None),) * axis
    for start in range(0, length, depth):
        extent = slice(start, min(length, start + depth))
        yield extent, np.asarray(array[(*before, extent)])
