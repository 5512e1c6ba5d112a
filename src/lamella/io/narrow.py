"""Checked conversion of voxel types: a value changes type only if it stays the same value.

Writers whose format holds fewer types than numpy stream their slabs through :func:`checked`;
an id that would wrap (70 000 as uint16 becomes 4 464) is an error that says what to do instead.

Examples:
    >>> checked(np.array([0, 300]), "uint16").tolist()
    [0, 300]
    >>> checked(np.array([0, 300]), "uint8")
    Traceback (most recent call last):
    lamella.core.errors.NarrowingError: 300 does not fit into uint8 (0 to 255)
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lamella.core.errors import InputError, NarrowingError
from lamella.core.progress import Progress
from lamella.io.format import SaveOptions
from lamella.volume import Volume, iter_slabs

__all__ = ["SLAB_BYTES", "checked", "checked_slabs", "parse_dtype"]

SLAB_BYTES = 4 * 2**20
"""How much a writer holds at a time: large enough for disks, small enough to forget."""

_KINDS = "buif"


def parse_dtype(text: str) -> np.dtype[Any]:
    """A type as ``--dtype`` names it.

    Raises:
        InputError: for anything but booleans, integers and floats.
    """
    try:
        kind = np.dtype(text)
    except TypeError:
        kind = np.dtype("O")
    if kind.kind not in _KINDS or kind.itemsize > 8:
        raise InputError(
            f"{text!r} is no voxel type", hint="choose one of uint8, uint16, uint32, int16, float32"
        )
    return kind.newbyteorder("=")


def checked(array: NDArray[Any], dtype: DTypeLike, *, hint: str | None = None) -> NDArray[Any]:
    """Convert, or refuse when a value would change.

    Floats become integers only where they are whole numbers; wide floats become narrow ones with
    rounding (float64 1.1 as float32), but not to infinity. Integers become floats only where the
    float holds them exactly. Complex numbers lose no imaginary part.

    Args:
        array: any numeric dtype, any shape.
        dtype: wanted.
        hint: what to do when it does not fit; a general one unless given.

    Returns:
        The same values as ``dtype``; the same array where nothing changes.

    Raises:
        NarrowingError: naming the first offending value.
    """
    wanted = np.dtype(dtype)
    if array.dtype == wanted:
        return array
    if np.can_cast(array.dtype, wanted, "safe"):
        return array.astype(wanted)
    bad = _misfits(array, wanted)
    if bad is not None:
        raise NarrowingError(
            f"{_number(bad)} does not fit into {wanted} ({_range(wanted)})",
            hint=hint or _advice(array.dtype, wanted, bad),
            details={"value": str(bad), "from": str(array.dtype), "to": str(wanted)},
        )
    if array.dtype.kind == "c" and wanted.kind != "c":
        return np.real(array).astype(wanted)
    return array.astype(wanted)


def checked_slabs(
    volume: Volume,
    dtype: DTypeLike,
    options: SaveOptions,
    *,
    hint: str | None = None,
    max_bytes: int = SLAB_BYTES,
) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Stream a volume along its first axis, checked, reporting and cancellable.

    Args:
        volume: what is written.
        dtype: of the slabs.
        options: give the sink.
        hint: see :func:`checked`.
        max_bytes: largest slab (but one plane at least).

    Yields:
        The extent along the first axis and the slab.

    Raises:
        NarrowingError: when a value does not fit.
        RunCancelledError: when the sink says so.
    """
    total = float(volume.shape[0])
    options.sink.check()
    for extent, slab in iter_slabs(volume.data, max_bytes=max_bytes):
        yield extent, checked(slab, dtype, hint=hint)
        options.sink.check()
        options.sink.emit(Progress("write", float(extent.stop), total, "planes"))


def _misfits(array: NDArray[Any], wanted: np.dtype[Any]) -> Any:
    """A value of ``array`` that ``wanted`` cannot hold, or None."""
    if array.size == 0:
        return None
    if array.dtype.kind == "c" and wanted.kind != "c":
        imaginary = array[np.imag(array) != 0]
        return imaginary.flat[0] if imaginary.size else _misfits(np.real(array), wanted)
    if wanted.kind in "uib":
        return _misfit_integer(array, wanted)
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(wanted)
    if array.dtype.kind in "uib":
        wrong = converted.astype(np.longdouble) != array.astype(np.longdouble)
    else:
        wrong = np.isinf(converted) & ~np.isinf(array)
    return array[wrong].flat[0] if wrong.any() else None


def _misfit_integer(array: NDArray[Any], wanted: np.dtype[Any]) -> Any:
    low, high = (0, 1) if wanted.kind == "b" else _bounds(wanted)
    if array.dtype.kind == "f":
        # NaN is unequal to itself, so it lands here too. 2.0**64 as a bound is exact.
        wrong = (array != np.rint(array)) | ~np.isfinite(array)
        wide = array.astype(np.float64)  # float16 does not reach the bounds
        wrong |= (wide < float(low)) | (wide >= float(high) + 1.0)
        return array[wrong].flat[0] if wrong.any() else None
    smallest, largest = int(array.min()), int(array.max())
    if smallest < low:
        return smallest
    return largest if largest > high else None


def _bounds(dtype: np.dtype[Any]) -> tuple[int, int]:
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def _range(dtype: np.dtype[Any]) -> str:
    if dtype.kind == "b":
        return "0 to 1"
    if dtype.kind in "ui":
        low, high = _bounds(dtype)
        return f"{low} to {high}"
    return f"up to {np.finfo(dtype).max:.3g}"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def _advice(came: np.dtype[Any], wanted: np.dtype[Any], value: Any) -> str:
    if came.kind == "f" and wanted.kind in "ui":
        if not np.isfinite(value):
            return "NaN and infinity have no integer: keep a float type, or fill them first"
        return "only whole numbers become integers: keep float32, or rescale first"
    if came.kind in "ui" and wanted.kind in "ui":
        return (
            "write OME-Zarr, OME-TIFF or NIfTI, which hold such ids; or renumber the labels so that"
            " they fit; or choose a wider type with --dtype"
        )
    return "choose a wider type with --dtype, such as float32"
