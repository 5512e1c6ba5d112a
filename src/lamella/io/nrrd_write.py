"""Writes NRRD: one attached file, slab by slab, with Lamella's record as a key/value pair.

Anatomical volumes are written in the space left-posterior-superior and in mm, as ITK and 3D Slicer
read them; stage coordinates in a space of no name, in their own unit. Numbers are written with all
their digits.
"""

import gzip
import math
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np

from lamella.core.errors import InputError
from lamella.core.progress import Progress
from lamella.io.format import SaveOptions
from lamella.io.frames import affine_in_unit, affine_to_xyz
from lamella.io.narrow import SLAB_BYTES, checked, parse_dtype
from lamella.io.record import RECORD_KEY, make_record
from lamella.volume import Volume

__all__ = ["write_nrrd"]

_TYPES = {
    "u1": "uint8", "i1": "int8", "u2": "uint16", "i2": "int16", "u4": "uint32", "i4": "int32",
    "u8": "uint64", "i8": "int64", "f4": "float", "f8": "double",
}  # fmt: skip
_WIDENED = {"b1": "u1", "f2": "f4"}
_GZIP_LEVEL = 3


def write_nrrd(volume: Volume, path: Path, options: SaveOptions) -> None:
    """Stream a volume into an attached NRRD file.

    Args:
        volume: at most the axes t, c, z, y, x; c is stored fastest, as ITK's vectors.
        path: ``.nrrd``.
        options: type, compression, progress.

    Raises:
        InputError: for detached headers and types that NRRD does not hold.
        NarrowingError: when values do not fit the type asked for.
    """
    if path.name.lower().endswith(".nhdr"):
        raise InputError(
            "NRRD is written as one file, not as a header beside its data",
            hint="end the name with .nrrd",
        )
    dtype = parse_dtype(options.dtype) if options.dtype is not None else volume.dtype
    code = f"{dtype.kind}{dtype.itemsize}"
    code = _WIDENED.get(code, code)
    if code not in _TYPES:
        raise InputError(
            f"NRRD holds integers and floats, not {dtype}", hint="convert with --dtype float32"
        )
    stored = np.dtype(code).newbyteorder("<")
    with path.open("wb") as raw:
        raw.write(_header(volume, _TYPES[code], is_packed=options.compress).encode("ascii"))
        if not options.compress:
            _write_data(volume, stored, raw, options)
            return
        with gzip.GzipFile("", "wb", _GZIP_LEVEL, raw, mtime=0) as packed:
            _write_data(volume, stored, packed, options)  # type: ignore[arg-type]


def _header(volume: Volume, type_name: str, *, is_packed: bool) -> str:
    extent = dict(zip(volume.axes.names, volume.shape, strict=True))
    stored = [name for name in "cxyzt" if name in extent]
    n = volume.affine.ndim
    is_medical = volume.affine.frame == "RAS" and n == 3
    unit = "mm" if is_medical and volume.unit != "voxel" else volume.unit
    affine = affine_in_unit(volume.affine, volume.unit, unit)
    geometry = affine_to_xyz(affine, "LPS" if is_medical else "xyz")
    matrix = geometry.matrix
    directions = [
        _vector(matrix[:n, "xyz".index(name)]) if name in "xyz" else "none" for name in stored
    ]
    kinds = {"c": "vector", "t": "time"}
    lines = [
        "NRRD0005",
        f"type: {type_name}",
        f"dimension: {len(stored)}",
        "space: left-posterior-superior" if is_medical else f"space dimension: {n}",
        "sizes: " + " ".join(str(extent[name]) for name in stored),
        "space directions: " + " ".join(directions),
        "kinds: " + " ".join(kinds.get(name, "domain") for name in stored),
        "endian: little",
        "encoding: " + ("gzip" if is_packed else "raw"),
        "space origin: " + _vector(matrix[:n, n]),
    ]
    if unit != "voxel":
        lines.append("space units: " + " ".join([f'"{unit}"'] * n))
    record = make_record(volume).replace("\\", "\\\\")
    lines.append(f"{RECORD_KEY}:={record}")
    return "\n".join(lines) + "\n\n"


def _vector(values: Iterable[float]) -> str:
    return "(" + ",".join(repr(float(value)) for value in values) + ")"


def _write_data(
    volume: Volume, dtype: np.dtype[Any], stream: IO[bytes], options: SaveOptions
) -> None:
    names = volume.axes.names
    extent = dict(zip(names, volume.shape, strict=True))
    slow = "z" if "z" in extent else "y"
    depth = extent[slow]
    total = float(extent.get("t", 1) * depth)
    n_fixed = math.prod(n for name, n in extent.items() if name not in ("t", slow))
    step = max(1, SLAB_BYTES // max(1, n_fixed * dtype.itemsize))
    options.sink.check()
    for time in range(extent.get("t", 1)):
        for start in range(0, depth, step):
            stop = min(depth, start + step)
            chosen = {"t": slice(time, time + 1), slow: slice(start, stop)}
            slab = np.asarray(volume.data[tuple(chosen.get(name, slice(None)) for name in names)])
            values = checked(slab, dtype.newbyteorder("="))
            if "c" in extent:
                values = np.moveaxis(values, names.index("c"), -1)
            stream.write(np.ascontiguousarray(values, dtype).data)
            options.sink.check()
            options.sink.emit(Progress("write", float(time * depth + stop), total, "planes"))
