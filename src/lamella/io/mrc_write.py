"""MRC2014 on the way out: slab by slab, with statistics, valid for ``mrcfile.validate``."""

import bz2
import gzip
import math
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import AxesError
from lamella.io.format import SaveOptions
from lamella.io.mrc_geometry import geometry_labels, header_fields
from lamella.io.mrc_header import RAW_HEADER
from lamella.io.narrow import checked_slabs, parse_dtype
from lamella.volume import Volume, iter_slabs

__all__ = ["write"]

_STACK_ISPG = 401
_MODE_OF = {"int8": 0, "int16": 1, "float32": 2, "complex64": 4, "uint16": 6, "float16": 12}
_STORED_AS = {
    "bool": "int8",
    "uint8": "uint16",
    "uint32": "uint16",
    "uint64": "uint16",
    "float64": "float32",
    "complex128": "complex64",
}
_NARROWING_HINT = (
    "MRC holds integers up to 65535: write OME-Zarr, OME-TIFF or NIfTI instead, renumber the"
    " labels, or choose --dtype float32"
)


def write(volume: Volume, path: Path, options: SaveOptions) -> None:
    """Write MRC2014, slab by slab.

    uint8 is widened to uint16 (MRC's bytes are signed), float64 rounded to float32; wider integers
    are written as 16 bits when every value fits.

    Raises:
        AxesError: for channels.
        NarrowingError: when an integer does not fit.
    """
    volume = _writable(volume)
    dtype = _stored_dtype(volume, options)
    suffix = path.suffix.lower()
    if suffix not in (".gz", ".bz2"):
        _write_plain(volume, path, dtype, options)
        return
    # Statistics stand in front of the voxels they come from, and a packed file cannot be patched.
    plain = path.with_name(f"{path.name}.unpacked")
    try:
        _write_plain(volume, plain, dtype, options)
        _pack(plain, path, suffix)
    finally:
        plain.unlink(missing_ok=True)


def _writable(volume: Volume) -> Volume:
    """Without channel axes and single time points; what is left has 2 to 4 axes."""
    for axis in ("c", "t"):
        if str(volume.axes) in ("tzyx", "zyx", "yx"):
            break
        if axis in volume.axes and volume.shape[volume.axes.index(axis)] == 1:
            volume = volume.select(axis, 0)
    if str(volume.axes) not in ("tzyx", "zyx", "yx"):
        raise AxesError(
            f"MRC holds no axes {str(volume.axes)!r}",
            hint="choose one channel or time with --channel or --time, or write OME-Zarr",
        )
    return volume


def _stored_dtype(volume: Volume, options: SaveOptions) -> np.dtype[Any]:
    wanted = parse_dtype(options.dtype) if options.dtype is not None else volume.dtype
    if wanted.name in ("int32", "int64"):
        lowest = min((int(slab.min()) for _, slab in iter_slabs(volume.data)), default=0)
        return np.dtype("int16" if lowest < 0 else "uint16")
    return np.dtype(_STORED_AS.get(wanted.name, wanted.name))


def _write_plain(volume: Volume, path: Path, dtype: np.dtype[Any], options: SaveOptions) -> None:
    statistics = _Statistics()
    little = dtype.newbyteorder("<")
    with path.open("wb") as stream:
        _write_header(stream, volume, dtype, statistics)
        for part in _volumes(volume):
            for _, slab in checked_slabs(part, dtype, options, hint=_NARROWING_HINT):
                statistics.add(slab)
                stream.write(np.ascontiguousarray(slab, little).data)
        stream.seek(0)
        _write_header(stream, volume, dtype, statistics)


def _volumes(volume: Volume) -> list[Volume]:
    if "t" not in volume.axes:
        return [volume]
    return [volume.select("t", at) for at in range(volume.shape[0])]


def _write_header(
    stream: IO[bytes], volume: Volume, dtype: np.dtype[Any], statistics: "_Statistics"
) -> None:
    *lead, rows, columns = volume.shape
    depth = lead[-1] if lead else 1
    size_crs = (columns, rows, math.prod(lead))
    raw = np.zeros((), RAW_HEADER.newbyteorder("<"))
    raw["size"] = size_crs
    raw["mode"] = _MODE_OF[dtype.name]
    raw["grid"] = (columns, rows, depth)
    for name, value in header_fields(volume, (columns, rows, depth)).items():
        raw[name] = value
    raw["angles"] = 90.0
    raw["map_axes"] = (1, 2, 3)
    raw["dmin"], raw["dmax"], raw["dmean"], raw["rms"] = statistics.header_values()
    raw["ispg"] = {2: 0, 3: 1, 4: _STACK_ISPG}[volume.data.ndim]
    raw["nversion"] = 20141
    raw["map_id"] = b"MAP "
    raw["stamp"] = (0x44, 0x44, 0, 0)
    labels = ["Written by Lamella", *geometry_labels(volume, size_crs)]
    raw["n_labels"] = len(labels)
    raw["labels"][: len(labels)] = [label.encode("ascii") for label in labels]
    stream.write(raw.tobytes())


def _pack(plain: Path, path: Path, suffix: str) -> None:
    with plain.open("rb") as source, path.open("wb") as raw:
        # No name and no time inside: the same volume gives the same bytes.
        packed: Any = (
            gzip.GzipFile(filename="", mode="wb", compresslevel=3, fileobj=raw, mtime=0)
            if suffix == ".gz"
            else bz2.BZ2File(raw, "wb")
        )
        with packed:
            while block := source.read(2**20):
                packed.write(block)


@dataclass
class _Statistics:
    """Range, mean and standard deviation, slab by slab (Chan et al. 1983)."""

    low: float = math.inf
    high: float = -math.inf
    n: int = 0
    mean: float = 0.0
    squares: float = 0.0
    is_known: bool = True

    def add(self, slab: NDArray[Any]) -> None:
        # In pieces that stay in the processor's cache: float64 copies of a slab would not.
        flat = slab.reshape(-1)
        for start in range(0, flat.size, 2**16):
            self._add_piece(flat[start : start + 2**16])

    def _add_piece(self, slab: NDArray[Any]) -> None:
        if slab.dtype.kind == "c" or (slab.dtype.kind == "f" and not np.isfinite(slab).all()):
            self.is_known = False
        if not self.is_known:
            return
        self.low = min(self.low, float(slab.min()))
        self.high = max(self.high, float(slab.max()))
        mean = float(slab.mean(dtype=np.float64))
        squares = float(slab.var(dtype=np.float64)) * slab.size
        total = self.n + slab.size
        shift = mean - self.mean
        self.squares += squares + shift * shift * self.n * slab.size / total
        self.mean += shift * slab.size / total
        self.n = total

    def header_values(self) -> tuple[float, float, float, float]:
        """dmin, dmax, dmean, rms; MRC2014's marks for unknown ones (dmax < dmin) where so."""
        if not self.is_known or self.n == 0:
            return 0.0, -1.0, -2.0, -1.0
        return self.low, self.high, self.mean, math.sqrt(self.squares / self.n)
