"""NumPy's .npy, mapped; never pickled objects.

A .npy file has no room for geometry, but NumPy does not look beyond the array: Lamella appends its
record (:mod:`lamella.io.record`) after the last element, so a volume stays one file.

Examples:
    >>> from pathlib import Path
    >>> probe(Path("a.npy"), b"PK").verdict
    'no'
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from lamella.core.errors import InputError, UnreadableFileError
from lamella.io.arrangement import arranged, guess_axes
from lamella.io.damage import damage_named, packed_reason
from lamella.io.format import OpenOptions, Probe, SaveOptions
from lamella.io.narrow import checked_slabs, parse_dtype
from lamella.io.placed import recorded_axes, with_placed_record
from lamella.io.record import make_record, parse_record
from lamella.volume import Affine, FunctionArray, LazyArray, Note, Volume

__all__ = ["probe", "read", "write"]

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 10_000
_MAX_RECORD = 2**20
_POINT_COLUMNS = 7


def probe(path: Path, head: bytes) -> Probe:
    """By its magic."""
    if (packed := packed_reason(path)) is not None:
        return Probe.no(packed)
    if head.startswith(_MAGIC):
        return Probe.yes("NumPy's magic")
    return Probe.no("it does not start with NumPy's magic")


def read(path: Path, options: OpenOptions) -> Volume:
    """Open an array.

    Args:
        path: the file.
        options: ``axes`` matters; without it 2 axes are (y, x) and 3 are (z, y, x).

    Raises:
        UnreadableFileError: for damaged files and arrays of objects.
        AxesError: when the axes are ambiguous.
    """
    with damage_named(path, "npy"):
        shape, is_fortran, dtype, offset = _header(path)
        _check(path, shape, dtype, offset)
        record = _record(path, offset + math.prod(shape) * dtype.itemsize)
        source = _mapped(path, shape, dtype, offset, is_fortran=is_fortran)
    plan = guess_axes(shape, options.axes, recorded_axes(record))
    n = plan.axes.n_spatial
    notes = [*plan.notes]
    if record is None:
        notes.append(Note("spacing_missing", "npy files give no spacing; set it with --spacing"))
        if len(shape) == 2 and shape[1] <= _POINT_COLUMNS < shape[0] and dtype.kind == "f":
            message = f"{shape[0]} rows of {shape[1]} numbers are more likely points than an image"
            notes.append(Note("looks_like_points", message))
    volume = Volume(
        data=arranged(source, plan),
        axes=plan.axes,
        affine=Affine.diagonal((1.0,) * n),
        name=path.stem,
        notes=tuple(notes),
        metadata={"stored_order": "Fortran" if is_fortran else "C", "stored_type": str(dtype)},
        path=path,
    )
    return with_placed_record(volume, record, knows_spacing=False)


def write(volume: Volume, path: Path, options: SaveOptions) -> None:
    """Write the array with the record behind it.

    Raises:
        NarrowingError: when values do not fit the type asked for.
    """
    dtype = parse_dtype(options.dtype) if options.dtype is not None else volume.dtype
    little = dtype.newbyteorder("<")
    header = {
        "descr": np.lib.format.dtype_to_descr(little),
        "fortran_order": False,
        "shape": volume.shape,
    }
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for _, slab in checked_slabs(volume, dtype, options):
            stream.write(np.ascontiguousarray(slab, little).data)
        stream.write(b"\n" + make_record(volume).encode("ascii") + b"\n")


def _header(path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    with path.open("rb") as stream:
        version = np.lib.format.read_magic(stream)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in readers:
            raise UnreadableFileError(
                f"{path.name} is npy version {version[0]}.{version[1]}; 1.0 and 2.0 are known",
                hint="load it with NumPy and save it again",
            )
        shape, is_fortran, dtype = readers[version](stream, max_header_size=_MAX_HEADER)
        return tuple(int(n) for n in shape), bool(is_fortran), dtype, stream.tell()


def _check(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int) -> None:
    if dtype.kind not in "buifc" or dtype.itemsize > 16:
        raise UnreadableFileError(
            f"{path.name} holds {'pickled objects' if dtype.hasobject else dtype}, not numbers",
            hint="save a plain numeric array; pickled objects are never loaded, they can run code",
        )
    if not 2 <= len(shape) <= 5 or min(shape) < 1:
        raise InputError(
            f"{path.name} holds an array of shape {shape}, not an image",
            hint="an image has 2 to 5 axes, none of them empty",
        )
    needed, actual = offset + math.prod(shape) * dtype.itemsize, path.stat().st_size
    if actual < needed:
        raise UnreadableFileError(
            f"{path.name} is truncated: {shape} {dtype} needs {needed} bytes, it has {actual}",
            hint="copy or download the file again",
        )


def _record(path: Path, end: int) -> dict[str, Any] | None:
    if path.stat().st_size <= end:
        return None
    with path.open("rb") as stream:
        stream.seek(end)
        rest = stream.read(_MAX_RECORD)
    record = parse_record(rest)
    if record is None and rest.startswith(b"\n{"):
        raise UnreadableFileError(
            f"{path.name} is truncated: the geometry behind the array is cut off",
            hint="copy or download the file again",
        )
    return record


def _mapped(
    path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int, *, is_fortran: bool
) -> LazyArray:
    order: Any = "F" if is_fortran else "C"
    mapped = np.memmap(path, dtype, "r", offset, shape, order)
    return FunctionArray(shape, dtype, lambda s: np.array(mapped[s], order="C"))
