"""Writing OME-Zarr: level 0 streamed from the source, every coarser level from the one before.

At most one slab of chunks is in memory at a time. The documents come last, so that an interrupted
folder is never taken for an image; an archive (``.zip``, ``.ozx``) is packed uncompressed from a
folder beside it, its document first, as RFC-9 of NGFF asks.
"""

import json
import math
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import InputError
from lamella.core.progress import Progress
from lamella.io.format import SaveOptions
from lamella.io.narrow import checked, parse_dtype
from lamella.io.ome_zarr_arrays import (
    LevelFormat,
    build_image_level,
    build_label_levels,
    chunk_shape,
    create_level,
    iter_blocks,
    level_factors,
    level_shape,
    shard_shape,
    storage_unit,
)
from lamella.io.ome_zarr_metadata import NgffVersion, group_attributes, level_path
from lamella.volume.box import Box
from lamella.volume.labels import Labels
from lamella.volume.volume import Volume

__all__ = ["write_image"]

_SLAB_BYTES = 256 * 2**20
_WINDOW_PERCENT = (0.1, 99.9)
_ARCHIVES = (".zip", ".ozx")


def write_image(volume: Volume, path: Path, options: SaveOptions, *, version: NgffVersion) -> None:
    """Write an image or labels with its pyramid.

    Args:
        volume: read slab by slab.
        path: folder, or archive by its suffix; does not exist yet.
        options: type, pyramid, compression, sink.
        version: NGFF 0.5 (zarr 3) or 0.4 (zarr 2).

    Raises:
        NarrowingError: when a value does not fit the type asked for.
        InputError: for a volume without voxels or of a type that zarr has not.
    """
    if path.suffix.lower() not in _ARCHIVES:
        _write_folder(volume, path, options, version)
        return
    folder = path.with_name(path.name + ".folder")
    try:
        _write_folder(volume, folder, options, version)
        _pack(folder, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_folder(volume: Volume, path: Path, options: SaveOptions, version: NgffVersion) -> None:
    dtype = _dtype(volume, options)
    if min(volume.shape) < 1:
        raise InputError(f"a volume of shape {volume.shape} has no voxels to write")
    factors = level_factors(volume.spatial_shape, volume.affine.spacing, options.pyramid)
    leading = volume.axes.n_leading
    chunks = chunk_shape(volume.spatial_shape, leading)
    is_labels = isinstance(volume, Labels)
    layout = LevelFormat(
        volume.axes,
        chunks,
        zarr_format=3 if version == "0.5" else 2,
        compress=options.compress,
        is_labels=is_labels,
    )
    path.mkdir(parents=True)
    arrays: list[Any] = []
    for level, factor in enumerate(factors):
        shape = level_shape(volume.shape, factor)
        shards = None
        if version == "0.5":
            shards = shard_shape(shape, chunks, dtype.itemsize, band_axis=leading)
        arrays.append(
            create_level(path / level_path(level), shape, dtype, replace(layout, shards=shards))
        )
    _fill_full(arrays[0], volume, options)
    values = _fill_coarser(arrays, factors, volume, options)
    windows = _windows(arrays[-1], volume) if not is_labels else []
    attributes = group_attributes(
        volume, factors, version=version, label_values=values, windows=windows
    )
    _write_documents(path, attributes, version)


def _dtype(volume: Volume, options: SaveOptions) -> np.dtype[Any]:
    dtype = volume.dtype if options.dtype is None else parse_dtype(options.dtype)
    if isinstance(volume, Labels) and dtype.kind == "b":
        return np.dtype(np.uint8)
    if dtype.kind not in "buif" or dtype.itemsize > 8:
        raise InputError(
            f"voxels of type {dtype} cannot be written", hint="convert with --dtype float32"
        )
    if isinstance(volume, Labels) and dtype.kind == "f":
        raise InputError(
            f"labels cannot be written as {dtype}", hint="choose an integer type with --dtype"
        )
    return dtype.newbyteorder("=")


def _fill_full(array: Any, volume: Volume, options: SaveOptions) -> None:
    """Stream level 0 in slabs one chunk thick, as wide as memory allows."""
    blocks = list(_slabs(array))
    total = float(math.prod(array.shape))
    done = 0
    for block in blocks:
        options.sink.check()
        data = np.asarray(volume.data[block.slices()])
        array[block.slices()] = checked(data, array.dtype)
        done += block.size
        options.sink.emit(Progress("write", float(done), total, "voxels"))
    options.sink.check()


def _slabs(array: Any) -> Iterator[Box]:
    unit = list(storage_unit(array))
    # Sources decode whole planes (DICOM, TIFF): cut them only when a slab would be too large.
    for axis in (-1, -2):
        unit_bytes = math.prod(unit) * array.dtype.itemsize
        times = max(1, _SLAB_BYTES // max(1, unit_bytes))
        count = -(-array.shape[axis] // unit[axis])
        unit[axis] *= min(times, count)
    return iter_blocks(array.shape, unit, array.dtype.itemsize, max_bytes=1)


def _fill_coarser(
    arrays: Sequence[Any],
    factors: Sequence[Sequence[int]],
    volume: Volume,
    options: SaveOptions,
) -> tuple[int, ...]:
    """Fill the pyramid; returns the values of labels that nobody named."""
    if isinstance(volume, Labels):
        has_names = bool(volume.classes) and not volume.is_instance
        if has_names and len(arrays) == 1:
            return ()
        full = (1,) * volume.axes.n_leading
        levels = [
            ((*full, *factor), array) for factor, array in zip(factors[1:], arrays[1:], strict=True)
        ]
        values = build_label_levels(arrays[0], levels, options.sink, "pyramid")
        return () if has_names else values
    for level in range(1, len(arrays)):
        relative = [f // g for f, g in zip(factors[level], factors[level - 1], strict=True)]
        stage = f"pyramid {level}/{len(arrays) - 1}"
        build_image_level(arrays[level - 1], arrays[level], relative, options.sink, stage)
    return ()


def _windows(array: Any, volume: Volume) -> list[tuple[float, float]]:
    """Intensities to show per channel, from the coarsest level; none without channels."""
    if "c" not in volume.axes:
        return []
    axis = volume.axes.index("c")
    windows: list[tuple[float, float]] = []
    for channel in range(volume.n_channels):
        index = tuple(
            slice(channel, channel + 1) if a == axis else slice(0, 1) if a < axis else slice(0, n)
            for a, n in enumerate(array.shape)
        )
        windows.append(_window(np.asarray(array[index])))
    return windows


def _window(data: NDArray[Any]) -> tuple[float, float]:
    # Every so many voxels are plenty for a display range.
    step = max(1, data.size // 2**20)
    sample = data.ravel()[::step].astype(np.float64)
    sample = sample[np.isfinite(sample)]
    if sample.size == 0:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(sample, _WINDOW_PERCENT))
    return (low, high) if high > low else (low, low + 1.0)


def _write_documents(path: Path, attributes: dict[str, Any], version: NgffVersion) -> None:
    if version == "0.5":
        document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        (path / "zarr.json").write_text(json.dumps(document, indent=2), "utf-8")
        return
    (path / ".zattrs").write_text(json.dumps(attributes, indent=2), "utf-8")
    (path / ".zgroup").write_text(json.dumps({"zarr_format": 2}), "utf-8")


def _pack(folder: Path, path: Path) -> None:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    documents = [p for p in files if p.name == "zarr.json" or p.name.startswith(".z")]
    documents.sort(key=lambda p: len(p.parts))
    others = [p for p in files if p not in set(documents)]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for file in (*documents, *others):
            # A fixed date: the same volume gives the same archive.
            info = zipfile.ZipInfo(file.relative_to(folder).as_posix(), (1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            with archive.open(info, "w", force_zip64=True) as target, file.open("rb") as source:
                shutil.copyfileobj(source, target, 2**20)
