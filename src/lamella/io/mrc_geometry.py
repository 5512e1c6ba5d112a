"""Geometry of MRC files: cell, grid, start and origin in Ångström ↔ a volume's affine.

MRC holds spacing (as float32) and origin, but no frame, no direction and no unit. What it cannot
hold is written into text labels, so that a volume comes back as it went; the labels are believed
only while they agree with the header's own fields, since other programs copy labels unread.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lamella.io.mrc_header import IMOD_STAMP, MrcHeader
from lamella.volume import Affine, Note, Unit, Volume
from lamella.volume.affine import FRAMES
from lamella.volume.spacing import UNITS, convert_length

__all__ = ["Geometry", "geometry_labels", "header_fields", "read_geometry"]

_LABEL = "LAMELLA geometry 1"
_IMOD_INVERTED_ORIGIN = 4
# Smaller than an atom or larger than a millimetre: possible, but worth a look.
_PLAUSIBLE_ANGSTROM = (0.05, 1e7)


@dataclass(frozen=True, slots=True)
class Geometry:
    """What the header says about place: for the axes (z, y, x), after transposition.

    Args:
        order: file axes (0 = sections, 1 = rows, 2 = columns) in the order z, y, x.
        affine: three axes.
        unit: of the affine.
        notes: odd things found.
    """

    order: tuple[int, int, int]
    affine: Affine
    unit: Unit
    notes: tuple[Note, ...]


def read_geometry(header: MrcHeader, extended: bytes) -> Geometry:
    """Place a volume.

    Args:
        header: of the file.
        extended: the extended header's bytes.
    """
    notes: list[Note] = []
    axes = _map_axes(header, notes)
    # axes[i] says which of x, y, z the i-th file axis (columns, rows, sections) is.
    order = tuple(2 - axes.index(axis) for axis in (2, 1, 0))
    assert len(order) == 3
    spacing_xyz = _spacing_angstrom(header, axes, extended, notes)
    is_told = spacing_xyz is not None
    values = tuple(_nanometres(v) for v in reversed(spacing_xyz)) if spacing_xyz else (1.0,) * 3
    direction = _direction(header, notes)
    origin = _origin(header, axes, values, direction, notes) if is_told else (0.0, 0.0, 0.0)
    affine = Affine(values, origin, direction, "stage")
    unit: Unit = "nm" if is_told else "voxel"
    return _restored(header, Geometry(order, affine, unit, tuple(notes)))


def header_fields(volume: Volume, size_xyz: Sequence[int]) -> dict[str, Any]:
    """The header's geometry fields for a volume (3 axes or 2).

    Args:
        volume: to be written.
        size_xyz: grid of one volume, mx, my, mz.
    """
    if volume.unit == "voxel":
        return {"cell": (0.0, 0.0, 0.0), "origin": (0.0, 0.0, 0.0)}
    to_angstrom = convert_length(1.0, volume.unit, "nm") * 10.0
    spacing = [s * to_angstrom for s in reversed(volume.affine.spacing)]
    origin = [o * to_angstrom for o in reversed(volume.affine.origin)]
    if len(spacing) == 2:
        spacing.append(spacing[0])
        origin.append(0.0)
    cell = tuple(np.float32(s * n) for s, n in zip(spacing, size_xyz, strict=True))
    return {"cell": cell, "origin": tuple(np.float32(o) for o in origin)}


def geometry_labels(volume: Volume, size_crs: Sequence[int]) -> list[str]:
    """Text labels (80 characters at most) for what the header's fields cannot hold; or none."""
    affine = volume.affine
    n = affine.ndim
    is_straight = affine.direction == Affine.diagonal(affine.spacing).direction
    if volume.unit in ("nm", "voxel") and affine.frame == "stage" and is_straight:
        nanometres = all(np.float32(o * 10.0) / np.float32(10.0) == o for o in affine.origin)
        if nanometres or not any(affine.origin):
            return []
    size = "x".join(str(k) for k in size_crs)
    lines = [
        f"{_LABEL} unit={volume.unit} frame={affine.frame} size={size} n={n}",
        " ".join(repr(float(o)) for o in affine.origin),
    ]
    if not is_straight:
        lines += [" ".join(repr(float(v)) for v in row) for row in affine.direction]
    return lines


def _map_axes(header: MrcHeader, notes: list[Note]) -> tuple[int, int, int]:
    columns, rows, sections = (int(a) - 1 for a in header.raw["map_axes"])
    axes = (columns, rows, sections)
    if sorted(axes) == [0, 1, 2]:
        if axes != (0, 1, 2):
            letters = "".join("xyz"[a] for a in axes)
            message = f"stored with columns, rows, sections along {letters}; turned to z, y, x"
            notes.append(Note("axes_turned", message))
        return axes
    if any(header.raw["map_axes"]):
        stated = tuple(int(a) for a in header.raw["map_axes"])
        notes.append(Note("axes_invalid", f"axis order {stated} is invalid; taken as x, y, z"))
    return (0, 1, 2)


def _spacing_angstrom(
    header: MrcHeader, axes: tuple[int, int, int], extended: bytes, notes: list[Note]
) -> tuple[float, float, float] | None:
    """Spacing along (x, y, z) in Å, or None when the file does not say."""
    counts = [header.size_crs[axes.index(axis)] for axis in range(3)]
    values = [
        _shortest(float(cell), int(grid) if grid > 0 else count)
        for cell, grid, count in zip(header.raw["cell"], header.raw["grid"], counts, strict=True)
    ]
    values[2] = _section_spacing(header, values, counts[2])
    good = [math.isfinite(v) and v > 0 for v in values]
    if not (good[0] and good[1]):
        pixel = _extended_pixel_size(header, extended)
        if pixel is None:
            notes.append(
                Note("spacing_missing", "the header gives no spacing; set it with --spacing")
            )
            return None
        notes.append(Note("spacing_from_extended_header", "spacing from the FEI extended header"))
        values, good = [pixel, pixel, pixel], [True] * 3
    if not good[2]:
        values[2] = values[0]
        if counts[2] > 1:
            message = "the header gives no spacing along z; taken equal to x"
            notes.append(Note("spacing_suspicious", message))
    low, high = _PLAUSIBLE_ANGSTROM
    if all(v == 1.0 for v in values):
        message = "spacing of exactly 1 Å on every axis is what programs write when they know none"
        notes.append(Note("spacing_suspicious", message))
    elif min(values) < low or max(values) > high:
        text = " x ".join(f"{v:.6g}" for v in reversed(values))
        notes.append(Note("spacing_suspicious", f"spacing {text} Å is out of the ordinary"))
    return values[0], values[1], values[2]


def _section_spacing(header: MrcHeader, values: list[float], count: int) -> float:
    """Spacing along z. Writers that leave mz = 1 in a volume mean either cell or cell / nz."""
    if int(header.raw["grid"][2]) != 1 or count == 1 or header.is_volume_stack:
        return values[2]
    whole, shared = values[2], _shortest(float(header.raw["cell"][2]), count)
    is_shared = abs(shared - values[0]) < abs(whole - values[0])
    return shared if is_shared else whole


def _shortest(cell: float, count: int) -> float:
    """The decimal with fewest digits that gives the header's float32 cell: 23.2, not 23.199999."""
    if not math.isfinite(cell) or cell <= 0:
        return 0.0
    exact = cell / count
    for digits in range(1, 10):
        short = float(f"{exact:.{digits}g}")
        if np.float32(short * count) == np.float32(cell):
            return short
    return exact


def _nanometres(angstrom: float) -> float:
    value = angstrom / 10.0
    return float(f"{value:.12g}")


def _extended_pixel_size(header: MrcHeader, extended: bytes) -> float | None:
    """Pixel size in Å out of an FEI extended header (metres there), or None."""
    kind = bytes(header.raw["exttyp"])
    order = header.byte_order
    metres = 0.0
    if kind in (b"FEI1", b"FEI2") and len(extended) >= 172:
        (metres,) = struct.unpack_from(f"{order}d", extended, 156)
    elif len(extended) >= 128 and header.raw["nsymbt"] % 128 == 0 and kind in (b"AGAR", b""):
        (metres,) = struct.unpack_from(f"{order}f", extended, 44)
    angstrom = metres * 1e10
    if not math.isfinite(angstrom) or not 1e-3 < angstrom < 1e8:
        return None
    return float(f"{angstrom:.7g}")


def _origin(
    header: MrcHeader,
    axes: tuple[int, int, int],
    spacing: tuple[float, ...],
    direction: tuple[tuple[float, ...], ...],
    notes: list[Note],
) -> tuple[float, float, float]:
    """World position of the first voxel in nm, (z, y, x)."""
    stored = [float(v) for v in header.raw["origin"]]
    if not header.has_map_string:
        # Before MRC 2000 these bytes held wavelengths, and the origin stood elsewhere.
        stored = [0.0, 0.0, 0.0]
    if not all(math.isfinite(v) and abs(v) < 1e12 for v in stored):
        notes.append(Note("origin_invalid", "the header's origin is not finite; taken as 0"))
        stored = [0.0, 0.0, 0.0]
    if any(stored):
        flags = int(header.raw["imod_flags"])
        if int(header.raw["imod_stamp"]) == IMOD_STAMP and not flags & _IMOD_INVERTED_ORIGIN:
            stored = [-v for v in stored]
        z, y, x = (_shortest_single(v) for v in reversed(stored))
        return z, y, x
    starts = [int(header.raw["start"][axes.index(axis)]) for axis in (2, 1, 0)]
    steps = [k * s for k, s in zip(starts, spacing, strict=True)]
    z, y, x = (
        _nanometres(10.0 * sum(d * step for d, step in zip(row, steps, strict=True)))
        for row in direction
    )
    return z, y, x


def _shortest_single(angstrom: float) -> float:
    """Nanometres of a float32 in Å, without the digits that float32 made up."""
    for digits in range(1, 10):
        short = float(f"{angstrom:.{digits}g}")
        if np.float32(short) == np.float32(angstrom):
            return _nanometres(short)
    return angstrom / 10.0


def _direction(header: MrcHeader, notes: list[Note]) -> tuple[tuple[float, ...], ...]:
    """Directions of z, y, x for the cell's angles: crystallographers' convention, a along x."""
    alpha, beta, gamma = (float(a) for a in header.raw["angles"])
    straight = Affine.diagonal((1.0,) * 3).direction
    if all(abs(a - 90.0) < 1e-3 for a in (alpha, beta, gamma)) or alpha == beta == gamma == 0.0:
        return straight
    if not all(math.isfinite(a) and 10.0 < a < 170.0 for a in (alpha, beta, gamma)):
        notes.append(Note("cell_angles_invalid", "the cell's angles are impossible; taken as 90°"))
        return straight
    cos_a, cos_b, cos_g = (math.cos(math.radians(a)) for a in (alpha, beta, gamma))
    sin_g = math.sin(math.radians(gamma))
    c_y = (cos_a - cos_b * cos_g) / sin_g
    rest = 1.0 - cos_b**2 - c_y**2
    if rest <= 1e-6:
        notes.append(Note("cell_angles_invalid", "the cell's angles are impossible; taken as 90°"))
        return straight
    notes.append(
        Note("oblique_cell", f"the cell's angles are {alpha:g}, {beta:g} and {gamma:g} degrees")
    )
    # Columns: where the index axes z, y, x run; rows: world z, y, x.
    return (
        (math.sqrt(rest), 0.0, 0.0),
        (c_y, sin_g, 0.0),
        (cos_b, cos_g, 1.0),
    )


def _restored(header: MrcHeader, plain: Geometry) -> Geometry:
    """The geometry that our own labels hold, if they agree with the header; else ``plain``."""
    labels = header.labels
    at = next((i for i, text in enumerate(labels) if text.startswith(_LABEL)), None)
    if at is None:
        return plain
    try:
        return _parse_labels(header, plain, labels[at:])
    except (ValueError, KeyError, IndexError):
        return plain


def _parse_labels(header: MrcHeader, plain: Geometry, labels: tuple[str, ...]) -> Geometry:
    facts = dict(word.split("=", 1) for word in labels[0].removeprefix(_LABEL).split())
    n = int(facts["n"])
    unit, frame = facts["unit"], facts["frame"]
    size = "x".join(str(k) for k in header.size_crs)
    if facts["size"] != size or unit not in UNITS or frame not in FRAMES or n not in (2, 3):
        return plain
    if (plain.unit == "voxel") != (unit == "voxel"):
        return plain
    origin = tuple(float(word) for word in labels[1].split())
    spacing = plain.affine.spacing
    if unit != "voxel":
        spacing = tuple(float(f"{convert_length(s, 'nm', unit):.12g}") for s in spacing)
        to_angstrom = convert_length(1.0, unit, "nm") * 10.0
        stored = [float(v) for v in reversed(header.raw["origin"])][-n:]
        expected = [float(np.float32(o * to_angstrom)) for o in origin]
        if not np.allclose(stored, expected, rtol=1e-6, atol=0.0):
            return plain
    direction = np.eye(3)
    rows = [[float(v) for v in line.split()] for line in labels[2 : 2 + n]]
    if len(rows) == n and all(len(row) == n for row in rows):
        direction[3 - n :, 3 - n :] = rows
    affine = Affine(
        spacing,
        (0.0,) * (3 - n) + origin,
        tuple(tuple(float(v) for v in row) for row in direction),
        frame,
    )
    return Geometry(plain.order, affine, unit, plain.notes)
