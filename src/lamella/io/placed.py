"""Records for formats whose own header says less than a grid: spacing at most, or nothing.

TIFF, HDF5, PNG and npy hold no origin and no direction. What Lamella wrote beside the voxels
(:mod:`lamella.io.record`) is then the only source, believed while the shape and what the format
does say agree.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from lamella.core.errors import LamellaError
from lamella.io.frames import affine_in_unit
from lamella.io.record import make_record, parse_record, with_record
from lamella.volume import Affine, Volume
from lamella.volume.spacing import UNITS

__all__ = ["read_sidecar", "recorded_axes", "sidecar_path", "with_placed_record", "write_sidecar"]


def with_placed_record(
    volume: Volume, record: dict[str, Any] | None, *, knows_spacing: bool
) -> Volume:
    """Complete a volume by its record.

    Args:
        volume: as the format describes it.
        record: what was written beside it, or None.
        knows_spacing: whether the format itself gives the spacing, which then counts.
    """
    if record is None:
        return volume
    try:
        unit = record["unit"]
        recorded = Affine(
            tuple(float(v) for v in record["spacing"]),
            tuple(float(v) for v in record["origin"]),
            tuple(tuple(float(v) for v in row) for row in record["direction"]),
            record["frame"],
        )
        if unit not in UNITS:
            return with_record(volume, record)
        if knows_spacing and volume.unit != unit and "voxel" not in (unit, volume.unit):
            recorded = affine_in_unit(recorded, unit, volume.unit)
            unit = volume.unit
    except (LamellaError, ValueError, TypeError, KeyError):
        return with_record(volume, record)
    if recorded.ndim != volume.affine.ndim:
        return with_record(volume, record)
    spacing = volume.affine.spacing if knows_spacing else recorded.spacing
    is_same = volume.unit == unit and all(
        math.isclose(a, b, rel_tol=1e-5) for a, b in zip(spacing, recorded.spacing, strict=True)
    )
    if knows_spacing and not is_same:
        return with_record(volume, record)
    placed = replace(volume, affine=recorded, unit=unit)
    notes = tuple(n for n in placed.notes if n.code != "spacing_missing")
    if unit != "voxel":
        placed = replace(placed, notes=notes)
    return with_record(placed, record)


def recorded_axes(record: dict[str, Any] | None) -> str | None:
    """The axes that a record names."""
    axes = record.get("axes") if record else None
    return axes if isinstance(axes, str) else None


def sidecar_path(path: Path) -> Path:
    """Where the record of a file without a header of its own lies: ``a.npy`` → ``a.npy.json``."""
    return path.with_name(path.name + ".json")


def write_sidecar(volume: Volume, path: Path) -> None:
    """Write a volume's record, with its shape, as a small JSON file."""
    document = json.loads(make_record(volume)) | {"shape": volume.shape}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def read_sidecar(path: Path, shape: tuple[int, ...]) -> dict[str, Any] | None:
    """The record beside a file, unless it is missing, damaged or of another shape."""
    try:
        record = parse_record(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    if record is None or record.get("shape") != list(shape):
        return None
    return record
