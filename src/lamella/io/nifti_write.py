"""Writes NIfTI: sform and qform alike, mm, slab by slab, with Lamella's record beside the header.

Stage coordinates have no anatomy; their x, y, z are written as NIfTI's x, y, z (sform code 2,
"aligned to something else"), anatomical ones with code 1 ("scanner").
"""

import gzip
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from lamella.core.errors import InputError, NarrowingError
from lamella.core.progress import Progress
from lamella.io.format import SaveOptions
from lamella.io.frames import affine_in_unit, affine_to_xyz
from lamella.io.narrow import SLAB_BYTES, checked, parse_dtype
from lamella.io.nifti_header import RECORD_ECODE
from lamella.io.record import make_record
from lamella.volume import Affine, Labels, Volume

__all__ = ["write_nifti"]

_HELD = ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")
_WIDENED = {"b1": "u1", "f2": "f4"}
_NIFTI1_LONGEST = 32767
_GZIP_LEVEL = 3
"""Within a few percent of level 6 on CT and labels at a third of its time."""


def write_nifti(volume: Volume, path: Path, options: SaveOptions) -> None:
    """Stream a volume into a NIfTI file.

    Args:
        volume: at most the axes t, c, z, y, x.
        path: ``.nii`` or ``.nii.gz``; without either, uncompressed.
        options: type, compression level, progress.

    Raises:
        InputError: for types that NIfTI does not hold and names of two-file pairs.
        NarrowingError: when values do not fit the type asked for.
    """
    name = path.name.lower()
    if name.endswith((".hdr", ".img", ".hdr.gz", ".img.gz")):
        raise InputError(
            "NIfTI is written as one file, not as a pair of .hdr and .img",
            hint="end the name with .nii or .nii.gz",
        )
    dtype = _dtype(volume, options)
    header = _header(volume, dtype)
    with _opened(path, is_packed=name.endswith(".gz"), compress=options.compress) as stream:
        header.write_to(stream)
        stream.write(b"\0" * (int(header["vox_offset"]) - stream.tell()))
        _write_data(volume, dtype, stream, options)


def _dtype(volume: Volume, options: SaveOptions) -> np.dtype[Any]:
    dtype = parse_dtype(options.dtype) if options.dtype is not None else volume.dtype
    code = f"{dtype.kind}{dtype.itemsize}"
    code = _WIDENED.get(code, code)
    if code not in _HELD:
        raise InputError(
            f"NIfTI holds integers and floats, not {dtype}",
            hint="convert with --dtype float32",
        )
    return np.dtype(code).newbyteorder("<")


def _header(volume: Volume, dtype: np.dtype[Any]) -> Any:
    from nibabel.nifti1 import Nifti1Extension, Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    lengths = _lengths(volume)
    is_long = max(lengths) > _NIFTI1_LONGEST
    header = Nifti2Header(endianness="<") if is_long else Nifti1Header(endianness="<")
    header.set_data_dtype(dtype)
    header.set_data_shape(lengths)
    unit = volume.unit if volume.unit == "voxel" else "mm"
    _set_geometry(header, volume, affine_in_unit(volume.affine, volume.unit, unit))
    header.set_xyzt_units("unknown" if unit == "voxel" else unit, None)
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    header["descrip"] = b"Lamella"
    if isinstance(volume, Labels):
        header["intent_code"] = 1002
    elif "c" in volume.axes:
        header["intent_code"] = 1007
    record = make_record(volume).encode("ascii")
    header.extensions.append(Nifti1Extension(RECORD_ECODE, record))
    size = (540 if is_long else 348) + 4 + header.extensions.get_sizeondisk()
    header["vox_offset"] = math.ceil(size / 16) * 16
    return header


def _lengths(volume: Volume) -> tuple[int, ...]:
    """Extents x, y, z, t, c; trailing axes that the volume lacks are left out."""
    extent = dict(zip(volume.axes.names, volume.shape, strict=True))
    last = max("xyztc".index(name) for name in extent)
    return tuple(extent.get(name, 1) for name in "xyztc"[: last + 1])


def _set_geometry(header: Any, volume: Volume, affine: Affine) -> None:
    geometry = affine_to_xyz(affine, "xyz")
    n = affine.ndim
    matrix = np.eye(4)
    matrix[:n, :n] = geometry.matrix[:n, :n]
    matrix[:n, 3] = geometry.matrix[:n, n]
    code = 1 if affine.frame == "RAS" else 2
    largest = float(np.finfo(header["srow_x"].dtype).max)
    smallest = float(np.finfo(header["pixdim"].dtype).tiny)
    if np.abs(matrix).max() > largest or min(affine.spacing) < smallest:
        raise NarrowingError(
            f"the geometry {affine.spacing} mm does not fit into a NIfTI header",
            hint="write OME-Zarr or NRRD, or correct the spacing with --spacing",
        )
    if affine.is_orthogonal:
        header.set_qform(matrix, code, strip_shears=True)
    header.set_sform(matrix, code)
    for axis, value in enumerate(geometry.spacing):
        header["pixdim"][axis + 1] = value


def _write_data(
    volume: Volume, dtype: np.dtype[Any], stream: IO[bytes], options: SaveOptions
) -> None:
    planes = list(_leading(volume))
    depth = volume.shape[volume.axes.index("z")] if "z" in volume.axes else 1
    total = float(len(planes) * depth)
    plane_bytes = math.prod(volume.shape[-2:]) * dtype.itemsize
    step = max(1, SLAB_BYTES // max(1, plane_bytes))
    options.sink.check()
    for number, fixed in enumerate(planes):
        for start in range(0, depth, step):
            stop = min(depth, start + step)
            along_z = (slice(start, stop),) if "z" in volume.axes else ()
            slab = np.asarray(volume.data[(*fixed, *along_z)])
            values = checked(slab, dtype.newbyteorder("="))
            stream.write(np.ascontiguousarray(values, dtype).data)
            options.sink.check()
            options.sink.emit(Progress("write", float(number * depth + stop), total, "planes"))


def _leading(volume: Volume) -> Iterator[tuple[slice, ...]]:
    """One slice per leading axis of the volume, in the file's order: c slowest, then t."""
    extent = dict(zip(volume.axes.names, volume.shape, strict=True))
    for channel in range(extent.get("c", 1)):
        for time in range(extent.get("t", 1)):
            chosen = {"t": time, "c": channel}
            yield tuple(
                slice(chosen[name], chosen[name] + 1)
                for name in volume.axes.names
                if name in chosen
            )


@contextmanager
def _opened(path: Path, *, is_packed: bool, compress: bool) -> Iterator[IO[bytes]]:
    with path.open("wb") as raw:
        if not is_packed:
            yield raw
            return
        # No name and no time in the gzip header: the same volume gives the same bytes.
        level = _GZIP_LEVEL if compress else 0
        with gzip.GzipFile("", "wb", level, raw, mtime=0) as packed:
            yield packed  # type: ignore[misc]
