"""Pictures (PNG, JPEG, BMP) and folders of slices.

Written are PNG files and folders of them, losslessly; a record inside the PNG, or ``lamella.json``
in the folder, keeps what pictures cannot say.

Examples:
    >>> from pathlib import Path
    >>> probe(Path("a.png"), b"GIF89a").verdict
    'no'
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import AxesError, InputError
from lamella.core.progress import Progress
from lamella.io.arrangement import AxesPlan, arranged, make_plan, with_recorded_axes
from lamella.io.damage import packed_reason
from lamella.io.format import OpenOptions, Probe, SaveOptions
from lamella.io.narrow import checked, parse_dtype
from lamella.io.placed import read_sidecar, recorded_axes, with_placed_record, write_sidecar
from lamella.io.raster_folder import open_slices, slice_paths
from lamella.io.raster_image import beside, decode, look_at
from lamella.io.raster_png import encode_png
from lamella.io.record import make_record
from lamella.io.tiff_spacing import Calibration
from lamella.volume import Affine, FunctionArray, LazyArray, Note, Volume

__all__ = ["probe", "read", "write"]

_SIDECAR = "lamella.json"
_LOSSY = (".jpg", ".jpeg", ".bmp")
_HINT = (
    "PNG holds whole numbers from 0 to 65535: write OME-TIFF or OME-Zarr, or rescale and use"
    " --dtype uint16"
)


def probe(path: Path, head: bytes) -> Probe:
    """By the first bytes; a folder by the pictures in it."""
    if path.is_dir():
        n = len(slice_paths(path))
        if n == 0:
            return Probe.no("no pictures in the folder")
        return Probe.yes("slices that Lamella wrote") if _has_sidecar(path) else _folder(n)
    if (packed := packed_reason(path)) is not None:
        return Probe.no(packed)
    if head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
        return Probe.yes("the first bytes of a PNG or JPEG")
    if head.startswith(b"BM") and path.suffix.lower() == ".bmp":
        return Probe.yes("the first bytes of a BMP")
    return Probe.no("it does not start with the bytes of a PNG, JPEG or BMP file")


def read(path: Path, options: OpenOptions) -> Volume:
    """Open a picture, (y, x) or (c, y, x), or a folder of slices, (z, y, x) or (c, z, y, x).

    Raises:
        UnreadableFileError: for damaged files.
        InputError: for a folder of files that do not belong together.
    """
    del options
    return _read_folder(path) if path.is_dir() else _read_picture(path)


def write(volume: Volume, path: Path, options: SaveOptions) -> None:
    """Write a PNG, or for a volume with z a folder of them.

    Raises:
        InputError: for lossy suffixes, and for a volume under the name of a single picture.
        AxesError: for time, and for channels that are no colors.
        NarrowingError: for values that are no whole numbers from 0 to 65535.
    """
    suffix = path.suffix.lower()
    if suffix in _LOSSY:
        raise InputError(
            f"{suffix[1:].upper()} is not written: it would lose or cut values",
            hint="end the name with .png, or with .ome.tif for more than 16 bits",
        )
    if "t" in volume.axes and volume.shape[0] == 1:
        volume = volume.select("t", 0)
    if "t" in volume.axes or ("c" in volume.axes and volume.n_channels > 4):
        raise AxesError(
            f"pictures hold no axes {str(volume.axes)!r} of shape {volume.shape}",
            hint="choose one channel or time with --channel or --time, or write OME-TIFF",
        )
    dtype = _stored_dtype(volume, options)
    if "z" not in volume.axes:
        options.sink.check()
        plane = _plane(volume, None, dtype)
        record = make_record(volume)
        path.write_bytes(encode_png(plane, volume=volume, record=record, compress=options.compress))
        options.sink.emit(Progress("write", 1.0, 1.0, "planes"))
        return
    if suffix == ".png":
        raise InputError(
            f"a PNG file holds one image, the volume has {volume.spatial_shape[0]} slices",
            hint="name a folder and add --format raster, or write .ome.tif",
        )
    _write_folder(volume, path, dtype, options)


def _folder(n: int) -> Probe:
    return Probe.maybe(f"a folder of {n} picture{'s' if n > 1 else ''}")


def _has_sidecar(folder: Path) -> bool:
    return (folder / _SIDECAR).is_file()


def _read_picture(path: Path) -> Volume:
    picture = look_at(path)
    record = picture.record
    calibration = beside(path)
    if "x" not in calibration.spacing:
        calibration = picture.calibration
    source: LazyArray = FunctionArray(picture.shape, picture.dtype, _once(lambda: decode(picture)))
    notes = picture.notes
    if record is None and len(picture.shape) == 3 and _is_grey(source):
        source = _first_sample(source)
        notes = (Note("grey_as_color", "grey stored as color; one channel read"),)
    plan = _with_samples(source, {"y": (0,), "x": (1,)}, recorded_axes(record))
    return _volume(path, source, plan, calibration, notes, record, {"mode": picture.mode})


def _read_folder(path: Path) -> Volume:
    stack = open_slices(path)
    shape = tuple(stack.data.shape)
    record = _folder_record(path, shape)
    plan = _with_samples(stack.data, {"z": (0,), "y": (1,), "x": (2,)}, recorded_axes(record))
    return _volume(path, stack.data, plan, stack.calibration, stack.notes, record, {})


def _folder_record(path: Path, stored: tuple[int, ...]) -> dict[str, Any] | None:
    turned = (stored[3], *stored[:3]) if len(stored) == 4 else stored
    record = read_sidecar(path / _SIDECAR, turned)
    return record or read_sidecar(path / _SIDECAR, (1, *turned))


def _with_samples(
    source: LazyArray, groups: Mapping[str, tuple[int, ...]], recorded: str | None
) -> AxesPlan:
    spatial = dict(groups)
    if len(source.shape) > len(spatial):
        spatial["c"] = (len(spatial),)
    return with_recorded_axes(make_plan(spatial), recorded)


def _volume(
    path: Path,
    source: LazyArray,
    plan: AxesPlan,
    calibration: Calibration,
    notes: tuple[Note, ...],
    record: dict[str, Any] | None,
    metadata: dict[str, Any],
) -> Volume:
    spacing, unit, more = calibration.values(plan.axes.spatial)
    volume = Volume(
        data=arranged(source, plan),
        axes=plan.axes,
        affine=Affine.diagonal(spacing),
        unit=unit,
        name=path.name.split(".")[0],
        notes=(*notes, *plan.notes, *more),
        metadata=metadata,
        path=path,
    )
    if record is not None:
        # The record is exact, a PNG's resolution is rounded to whole pixels per metre.
        volume = replace(volume, notes=(*notes, *plan.notes))
        return with_placed_record(volume, record, knows_spacing=False)
    return volume


def _once(load: Any) -> Any:
    """A reader of regions out of pixels that are decoded at the first access."""
    kept: list[NDArray[Any]] = []

    def read_region(slices: tuple[slice, ...]) -> NDArray[Any]:
        # Two threads may both decode; either result is right.
        if not kept:
            kept.append(load())
        return np.array(kept[0][slices])

    return read_region


def _is_grey(source: LazyArray) -> bool:
    samples = source.shape[2]
    if samples not in (2, 3, 4):
        return False
    pixels = np.asarray(source[...])
    colors = 3 if samples > 2 else 1
    is_opaque = samples in (1, 3) or bool((pixels[..., -1] == np.iinfo(pixels.dtype).max).all())
    return is_opaque and all(
        bool(np.array_equal(pixels[..., 0], pixels[..., k])) for k in range(1, colors)
    )


def _first_sample(source: LazyArray) -> LazyArray:
    shape = source.shape[:2]
    return FunctionArray(shape, source.dtype, lambda s: np.asarray(source[(*s, 0)]))


def _stored_dtype(volume: Volume, options: SaveOptions) -> np.dtype[Any]:
    wanted = parse_dtype(options.dtype) if options.dtype is not None else volume.dtype
    if wanted.kind in "fc":
        raise InputError(f"PNG holds no {wanted} values", hint=_HINT)
    return np.dtype("uint8" if wanted.name in ("uint8", "bool") else "uint16")


def _plane(volume: Volume, z: int | None, dtype: np.dtype[Any]) -> NDArray[Any]:
    """One slice as (y, x), or (y, x, samples)."""
    place: tuple[Any, ...] = () if z is None else (z,)
    if "c" not in volume.axes:
        return checked(np.asarray(volume.data[place or ...]), dtype, hint=_HINT)
    pixels = checked(np.asarray(volume.data[(slice(None), *place)]), dtype, hint=_HINT)
    return pixels[0] if pixels.shape[0] == 1 else np.moveaxis(pixels, 0, -1)


def _write_folder(volume: Volume, path: Path, dtype: np.dtype[Any], options: SaveOptions) -> None:
    path.mkdir()
    depth = volume.spatial_shape[0]
    digits = max(4, math.ceil(math.log10(depth + 1)))
    for z in range(depth):
        options.sink.check()
        plane = _plane(volume, z, dtype)
        encoded = encode_png(plane, volume=volume, record=None, compress=options.compress)
        (path / f"slice_{z:0{digits}d}.png").write_bytes(encoded)
        options.sink.emit(Progress("write", float(z + 1), float(depth), "planes"))
    write_sidecar(volume, path / _SIDECAR)
