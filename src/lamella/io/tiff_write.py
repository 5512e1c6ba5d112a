"""OME-TIFF, page by page, with a pyramid and everything that makes the volume come back whole."""

import math
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.progress import Progress
from lamella.io.format import SaveOptions
from lamella.io.narrow import checked, parse_dtype
from lamella.io.record import RECORD_KEY, make_record
from lamella.volume import FunctionArray, Labels, LazyArray, Volume
from lamella.volume.pyramid import downsample_labels, downsample_mean
from lamella.volume.spacing import convert_length

__all__ = ["write"]

_PYRAMID_FROM = 256
_BIG_FROM = 2**31
# What OME-XML has no name for, and what holds it.
_STORED_AS = {"bool": "uint8", "float16": "float32", "int64": "int32", "uint64": "uint32"}
_HINT = "OME-TIFF holds integers up to 4294967295: write OME-Zarr, or renumber the labels"


def write(volume: Volume, path: Path, options: SaveOptions) -> None:
    """Write an OME-TIFF.

    Coarser levels are SubIFDs and halve y and x only, as OME-TIFF demands. 64-bit integers are
    written as 32 bits when every value fits, float16 as float32.

    Raises:
        NarrowingError: when an integer does not fit.
    """
    import tifffile

    wanted = parse_dtype(options.dtype) if options.dtype is not None else volume.dtype
    dtype = np.dtype(_STORED_AS.get(wanted.name, wanted.name))
    factors = _factors(volume, options)
    source = FunctionArray(
        volume.shape, dtype, lambda s: checked(np.asarray(volume.data[s]), dtype, hint=_HINT)
    )
    size = math.prod(volume.shape) * dtype.itemsize
    is_float = dtype.kind in "fc"
    common: dict[str, Any] = {
        "photometric": "minisblack",
        "compression": "zlib" if options.compress else None,
        "predictor": bool(options.compress and dtype.kind in "ui" and not _is_labels(volume)),
        "compressionargs": {"level": 4 if is_float else 6} if options.compress else None,
        "dtype": dtype,
    }
    with tifffile.TiffWriter(path, bigtiff=size * 4 // 3 > _BIG_FROM, ome=True) as writer:
        writer.write(
            _pages(source, options),
            shape=volume.shape,
            metadata=_metadata(volume),
            subifds=len(factors),
            **_resolution(volume, 1),
            **common,
        )
        for factor in factors:
            level = _level(volume, source, factor)
            writer.write(
                _pages(level, None),
                shape=level.shape,
                subfiletype=1,
                metadata=None,
                **_resolution(volume, factor),
                **common,
            )
    n_planes = float(math.prod(volume.shape[:-2]))
    options.sink.emit(Progress("write", n_planes, n_planes, "planes"))


def _pages(source: LazyArray, options: SaveOptions | None) -> Iterator[NDArray[Any]]:
    """The volume's planes one after the other, reporting and cancellable."""
    lead = source.shape[:-2]
    total = math.prod(lead)
    for at, place in enumerate(np.ndindex(*lead)):
        if options is not None:
            options.sink.check()
            options.sink.emit(Progress("write", float(at), float(total), "planes"))
        yield np.ascontiguousarray(source[place])


def _factors(volume: Volume, options: SaveOptions) -> tuple[int, ...]:
    longest = max(volume.shape[-2:])
    is_wanted = longest > _PYRAMID_FROM if options.pyramid is None else options.pyramid
    if not is_wanted:
        return ()
    steps = max(0, math.ceil(math.log2(longest / _PYRAMID_FROM))) if longest > 1 else 0
    return tuple(2**step for step in range(1, steps + 1))


def _level(volume: Volume, source: LazyArray, factor: int) -> LazyArray:
    *lead, rows, columns = source.shape
    shape = (*lead, -(-rows // factor), -(-columns // factor))
    reduce = downsample_labels if _is_labels(volume) else downsample_mean

    def read(slices: tuple[slice, ...]) -> NDArray[Any]:
        fine = (
            *slices[:-2],
            slice(slices[-2].start * factor, min(rows, slices[-2].stop * factor)),
            slice(slices[-1].start * factor, min(columns, slices[-1].stop * factor)),
        )
        return reduce(np.asarray(source[fine]), (factor, factor))

    return FunctionArray(shape, source.dtype, read)


def _metadata(volume: Volume) -> dict[str, Any]:
    record = make_record(volume)
    metadata: dict[str, Any] = {
        "axes": str(volume.axes).upper(),
        # Of the content, not of the day: the same volume gives the same bytes.
        "UUID": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, f'{volume.shape} {record}')}",
        "Name": volume.name or "image",
        "MapAnnotation": {"Namespace": "lamella", "Value": {RECORD_KEY: record}},
    }
    if volume.unit != "voxel":
        word = "µm" if volume.unit == "um" else volume.unit
        for letter, value in zip(volume.axes.spatial, volume.affine.spacing, strict=True):
            metadata[f"PhysicalSize{letter.upper()}"] = repr(float(value))
            metadata[f"PhysicalSize{letter.upper()}Unit"] = word
    if volume.channel_names and "c" in volume.axes:
        metadata["Channel"] = {"Name": list(volume.channel_names)}
    return metadata


def _resolution(volume: Volume, factor: int) -> Mapping[str, Any]:
    """The resolution tags: what programs that do not know OME-XML look at."""
    if volume.unit == "voxel":
        return {}
    y, x = (
        convert_length(v * factor, volume.unit, "mm") / 10.0 for v in volume.affine.spacing[-2:]
    )
    # Rationals of 32 bits hold neither 1 fm nor 400 km.
    if not all(1e-9 < length < 1e6 for length in (y, x)):
        return {}
    return {"resolution": (1.0 / x, 1.0 / y), "resolutionunit": "CENTIMETER"}


def _is_labels(volume: Volume) -> bool:
    return isinstance(volume, Labels)
