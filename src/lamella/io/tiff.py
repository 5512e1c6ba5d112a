r"""TIFF: plain pages, ImageJ hyperstacks, OME-TIFF, tiles, pyramids, any compression.

Examples:
    >>> from pathlib import Path
    >>> probe(Path("a.tif"), b"II*\0").verdict
    'yes'
"""

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lamella.core.errors import InputError, UnreadableFileError
from lamella.io.arrangement import AxesPlan, arranged, with_recorded_axes
from lamella.io.damage import damage_named, packed_reason
from lamella.io.format import ContentEntry, OpenOptions, Probe
from lamella.io.placed import recorded_axes, with_placed_record
from lamella.io.record import RECORD_KEY, parse_record
from lamella.io.tiff_axes import plan_axes
from lamella.io.tiff_chain import check_chain
from lamella.io.tiff_pages import kept_axes, series_array
from lamella.io.tiff_spacing import OmeImage, parse_ome, read_calibration
from lamella.io.tiff_write import write
from lamella.volume import Affine, Note, Volume

__all__ = ["contents", "probe", "read", "write"]

# tifffile reports through logging; without a handler Python would print it to the user's terminal.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def probe(path: Path, head: bytes) -> Probe:
    """By the first four bytes, which every TIFF has."""
    if (packed := packed_reason(path)) is not None:
        return Probe.no(packed)
    if head[:4] in _MAGICS:
        return Probe.yes("TIFF's first bytes")
    return Probe.no("it does not start with the bytes of a TIFF file")


def read(path: Path, options: OpenOptions) -> Volume:
    """Open a series of a TIFF file.

    Args:
        path: the file.
        options: ``series`` (number or name), ``level`` and ``axes`` matter.

    Returns:
        The volume, lazy, with its pyramid's coarser levels.

    Raises:
        UnreadableFileError: for damaged files.
        AxesError: when the file does not say what its axes are and they cannot be told.
        InputError: for a series or level that does not exist.
    """
    import tifffile

    with damage_named(path, "TIFF"):
        check_chain(path)
        with tifffile.TiffFile(path) as tiff:
            if not tiff.series:
                raise UnreadableFileError(
                    f"{path.name} holds no image", hint="copy or download the file again"
                )
            return _open_series(tiff, path, options)


def contents(path: Path) -> tuple[ContentEntry, ...]:
    """The series of a file, when there are several."""
    import tifffile

    with damage_named(path, "TIFF"), tifffile.TiffFile(path) as tiff:
        if len(tiff.series) < 2:
            return ()
        return tuple(
            ContentEntry(
                "series",
                str(at),
                series.name or f"series {at}",
                tuple(int(n) for n in series.shape),
                str(series.dtype),
            )
            for at, series in enumerate(tiff.series)
        )


@dataclass(frozen=True, slots=True)
class _Description:
    """What the file says about a series besides its pages."""

    name: str
    spacing: tuple[float, ...]
    unit: Any
    channel_names: tuple[str, ...]
    notes: tuple[Note, ...]
    record: dict[str, Any] | None


def _open_series(tiff: Any, path: Path, options: OpenOptions) -> Volume:
    at, notes = _choose_series(tiff, path, options)
    series = tiff.series[at]
    _check_complete(tiff, series, path)
    ome = _ome_image(tiff, at)
    record = parse_record(ome.annotations.get(RECORD_KEY, "")) if ome else None
    stored = kept_axes(series)
    letters, shape = "".join(a for a, _ in stored), tuple(n for _, n in stored)
    plan = with_recorded_axes(plan_axes(letters, shape, options.axes), recorded_axes(record))
    description = _describe(tiff, series, ome, plan, record)
    volumes = [
        _level_volume(level, path, plan, description) for level in _usable_levels(series, shape)
    ]
    if not 0 <= options.level < len(volumes):
        raise InputError(
            f"{path.name} has no level {options.level}: there are {len(volumes)}",
            hint=f"choose 0 to {len(volumes) - 1}",
        )
    finest = _complete(volumes[0], description)
    coarser = [_coarser(finest, volume) for volume in volumes[1:]]
    chosen = ([finest, *coarser])[options.level]
    return replace(
        chosen,
        notes=(*notes, *plan.notes, *chosen.notes, *_page_notes(series)),
        levels=tuple(coarser[options.level :]),
        metadata=_metadata(tiff, series),
        path=path,
    )


def _choose_series(tiff: Any, path: Path, options: OpenOptions) -> tuple[int, tuple[Note, ...]]:
    names = [series.name or "" for series in tiff.series]
    wanted = options.series
    if wanted is None:
        if len(names) == 1:
            return 0, ()
        message = f"{len(names)} series in the file; the first is read, choose with --series"
        return 0, (Note("several_series", message),)
    if wanted.isdigit() and int(wanted) < len(names):
        return int(wanted), ()
    if names.count(wanted) == 1:
        return names.index(wanted), ()
    listed = ", ".join(f"{i} ({name})" if name else str(i) for i, name in enumerate(names[:20]))
    raise InputError(f"{path.name} has no series {wanted!r}", hint=f"choose one of {listed}")


def _ome_image(tiff: Any, at: int) -> OmeImage | None:
    if not tiff.is_ome or not tiff.ome_metadata:
        return None
    images = parse_ome(tiff.ome_metadata)
    if len(images) == len(tiff.series):
        return images[at]
    named = [image for image in images if image.name == tiff.series[at].name]
    if named:
        return named[0]
    return images[0] if images else None


def _describe(
    tiff: Any, series: Any, ome: OmeImage | None, plan: AxesPlan, record: dict[str, Any] | None
) -> _Description:
    page = series.keyframe
    calibration = ome.calibration if ome else read_calibration(tiff, page)
    spacing, unit, notes = calibration.values(plan.axes.spatial)
    names = ome.channel_names if ome else ()
    return _Description(series.name or "", spacing, unit, names, notes, record)


def _usable_levels(series: Any, shape: tuple[int, ...]) -> list[Any]:
    """The pyramid's levels as far as they have the same axes as the first."""
    levels = [series]
    for level in list(series.levels)[1:]:
        if len(kept_axes(level)) != len(shape):
            break
        levels.append(level)
    return levels


def _level_volume(level: Any, path: Path, plan: AxesPlan, description: _Description) -> Volume:
    data = arranged(series_array(level, path), plan)
    n_channels = data.shape[plan.axes.index("c")] if "c" in plan.axes else 1
    has_names = "c" in plan.axes and len(description.channel_names) == n_channels
    return Volume(
        data=data,
        axes=plan.axes,
        affine=Affine.diagonal(description.spacing),
        unit=description.unit,
        name=description.name or path.name.split(".")[0],
        channel_names=description.channel_names if has_names else (),
        notes=description.notes,
    )


def _complete(volume: Volume, description: _Description) -> Volume:
    is_voxel = description.unit == "voxel"
    return with_placed_record(volume, description.record, knows_spacing=not is_voxel)


def _coarser(finest: Volume, level: Volume) -> Volume:
    factors = [
        full / coarse
        for full, coarse in zip(finest.spatial_shape, level.spatial_shape, strict=True)
    ]
    # 1025 pixels halved are 513 or 512: the factor meant is 2.
    meant = [float(round(f)) if abs(f - round(f)) < 0.25 else f for f in factors]
    return replace(
        finest, data=level.data, affine=finest.affine.downsampled(meant), notes=finest.notes
    )


def _check_complete(tiff: Any, series: Any, path: Path) -> None:
    """Compare with the number of images that ImageJ's or tifffile's description promises.

    Where the voxels do not suffice tifffile falls back to the first image, in silence.
    """
    import tifffile

    there = math.prod(series.get_shape(squeeze=False))
    promised = 0
    if tiff.is_imagej:
        images = int((tiff.imagej_metadata or {}).get("images", 1))
        promised = images * math.prod(series.keyframe.shape)
    elif len(tiff.series) == 1 and (text := series.keyframe.shaped_description):
        shape = tifffile.tifffile.shaped_description_metadata(text).get("shape", ())
        promised = math.prod(shape)
    if promised > there:
        raise UnreadableFileError(
            f"{path.name} is truncated: its description promises {promised} values, the file holds"
            f" {there}",
            hint="copy or download the file again",
        )


def _page_notes(series: Any) -> tuple[Note, ...]:
    notes: list[Note] = []
    photometric = int(series.keyframe.photometric)
    if photometric == 0:
        notes.append(Note("min_is_white", "the file says that 0 is white; values are as stored"))
    if photometric == 3:
        notes.append(Note("palette", "a color palette is ignored; values are as stored"))
    missing = sum(page is None for page in series) if len(series) > 1 else 0
    if missing:
        message = f"{missing} of {len(series)} images are missing in the file; they are read as 0"
        notes.append(Note("missing_images", message))
    return tuple(notes)


def _metadata(tiff: Any, series: Any) -> dict[str, Any]:
    page = series.keyframe
    return {
        "kind": series.kind,
        "stored_axes": series.axes,
        "compression": getattr(page.compression, "name", str(page.compression)),
        "is_tiled": bool(page.is_tiled),
        "is_big_tiff": bool(tiff.is_bigtiff),
        "description": str(page.description)[:1000] if not tiff.is_ome else "",
        "software": str(page.software)[:200],
    }
