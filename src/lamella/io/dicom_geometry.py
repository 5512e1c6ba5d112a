"""From the places of single frames to one regular grid, or the numbers that forbid it.

Frames are ordered by their position projected on the normal of the image plane; instance numbers
and file names can run either way or be shuffled and decide nothing.

                 normal (z)
                   ^    o   o   o   o      columns run along the first three direction cosines (x),
                   |   o   o   o   o       rows along the last three (y)
      gap ···      |
                   |  o   o   o   o        a stack whose first pixels drift sideways is tilted
                   +------------------>
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import GeometryError
from lamella.io.dicom_header import DicomFrame
from lamella.io.frames import XyzGeometry, affine_from_xyz
from lamella.volume import Affine, Note

__all__ = ["PlaneGrid", "Stack", "grid_of_planes", "stack_frames"]

_SAME_PLACE_MM = 1e-3
_SAME_DIRECTION = 1e-3
_SAME_SPACING = 1e-3
_UNEVEN = 0.05
"""Largest distance of a slice from its even place, in slice spacings (headers round to 0.1 mm)."""
_UNEVEN_NOTED = 0.01
_DRIFT = 0.1
"""Largest sideways drift over a whole stack that is rounding and not tilt, in pixels."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Frames in their order.

    Args:
        frames: ``frames[k][m]``: k-th of the extra axis (a single one without it), m-th slice.
        extra: ``"t"`` or ``"c"`` when several frames share each position, else None.
        heights: distance of each slice along the normal, mm, from the first.
        shifts: sideways place of each slice's first pixel, mm, (y, x), from the first.
        affine: of the even grid (after resampling, when irregular).
        problem: why the frames make no even grid; None when they do.
        notes: odd things found.
    """

    frames: tuple[tuple[DicomFrame, ...], ...]
    extra: str | None
    heights: NDArray[np.float64]
    shifts: NDArray[np.float64]
    affine: Affine
    problem: str | None
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True)
class _Plane:
    """The common plane of all frames."""

    row: NDArray[np.float64]
    column: NDArray[np.float64]
    normal: NDArray[np.float64]
    spacing: tuple[float, float]


def stack_frames(
    frames: Sequence[DicomFrame], *, thickness: float | None, thickness_name: str
) -> Stack:
    """Order frames that have positions, and check that they make a grid.

    Args:
        frames: of one series, each with a position.
        thickness: slice spacing of a single slice, from its header, mm.
        thickness_name: where that comes from.

    Raises:
        GeometryError: for mixed or impossible orientations and spacings, and for positions that
            hold several slices nobody can tell apart.
    """
    plane = _common_plane(frames)
    heights = np.array([frame.position for frame in frames], dtype=np.float64) @ plane.normal
    order = np.argsort(heights, kind="stable")
    groups = _by_height([frames[i] for i in order], heights[order])
    ordered, extra, notes = _told_apart(groups)
    places = np.array([frame.position for frame in ordered[0]], dtype=np.float64)
    along = (places - places[0]) @ plane.normal
    shifts = np.stack(
        [(places - places[0]) @ plane.column, (places - places[0]) @ plane.row], axis=1
    )
    spacing_z, problem = _spacing_z(along, thickness, thickness_name, notes)
    problem = _tilt(along, shifts, plane) or problem
    geometry = XyzGeometry(
        (plane.spacing[1], plane.spacing[0], spacing_z),
        tuple(float(value) for value in places[0]),
        tuple(zip(*(_clean(v) for v in (plane.row, plane.column, plane.normal)), strict=True)),
    )
    return Stack(
        ordered,
        extra,
        along,
        shifts,
        affine_from_xyz(geometry, "LPS"),
        problem,
        tuple(notes),
    )


@dataclass(frozen=True, slots=True)
class PlaneGrid:
    """A regular grid of which some planes may hold no frame, and others several.

    Args:
        affine: of the grid, its first plane being the lowest one that is there.
        n_planes: from the lowest to the highest.
        plane_of: plane of each frame, in the order of the frames.
    """

    affine: Affine
    n_planes: int
    plane_of: tuple[int, ...]


def grid_of_planes(frames: Sequence[DicomFrame], *, thickness: float | None) -> PlaneGrid:
    """The grid on which frames lie that leave planes out, as segmentations do.

    Args:
        frames: each with a position.
        thickness: distance of planes according to the header, mm.

    Raises:
        GeometryError: for frames that lie on no common grid; the message has the numbers.
    """
    plane = _common_plane(frames)
    places = np.array([frame.position for frame in frames], dtype=np.float64)
    heights = places @ plane.normal
    lowest = int(np.argmin(heights))
    along = heights - heights[lowest]
    offsets = places - places[lowest]
    shifts = np.stack([offsets @ plane.column, offsets @ plane.row], axis=1)
    drift = float((np.abs(shifts) / np.array(plane.spacing)).max())
    if drift > _DRIFT:
        raise GeometryError(
            f"the frames drift sideways by up to {drift:.3g} pixels: they lie on no grid",
            hint="the object was made on tilted or shifted slices; export it on an even grid",
        )
    steps: NDArray[np.float64] = np.diff(np.unique(np.round(along, 4)))
    steps = steps[steps > _SAME_PLACE_MM]
    for spacing in (thickness, _rounded(float(steps.min())) if len(steps) else None):
        if spacing is None:
            continue
        index = np.rint(along / spacing)
        if np.abs(along - index * spacing).max() <= max(_UNEVEN * spacing, 0.01):
            break
    else:
        if len(steps):
            raise GeometryError(
                f"the frames are unevenly spaced: {steps.min():.6g} to {steps.max():.6g} mm",
                hint="export the segmentation on an even grid",
            )
        spacing, index = 1.0, np.zeros(len(along))
    geometry = XyzGeometry(
        (plane.spacing[1], plane.spacing[0], float(spacing or 1.0)),
        tuple(float(value) for value in places[lowest]),
        tuple(zip(*(_clean(v) for v in (plane.row, plane.column, plane.normal)), strict=True)),
    )
    return PlaneGrid(
        affine_from_xyz(geometry, "LPS"),
        int(index.max()) + 1,
        tuple(int(value) for value in index),
    )


def _clean(vector: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(value) for value in vector)


def _common_plane(frames: Sequence[DicomFrame]) -> _Plane:
    without = [frame for frame in frames if frame.orientation is None]
    if without:
        raise GeometryError(
            f"{len(without)} of {len(frames)} DICOM frames have a position but no orientation"
            f" (first: {without[0].path.name})",
            hint="the headers are incomplete; export the series again",
        )
    kinds = Counter(
        tuple(round(value / _SAME_DIRECTION) for value in frame.orientation or ())
        for frame in frames
    )
    first = np.array(frames[0].orientation)
    far = [f for f in frames if np.abs(np.array(f.orientation) - first).max() > 2 * _SAME_DIRECTION]
    if far:
        raise GeometryError(
            f"the series mixes {len(kinds)} orientations"
            f" ({', '.join(str(n) for n in sorted(kinds.values(), reverse=True)[:5])} slices);"
            f" for example {_numbers(frames[0].orientation)} and"
            f" {_numbers(far[0].orientation)}",
            hint="localizers often do; choose another series with --series, or sort the files",
        )
    row, column = first[:3], first[3:]
    lengths = float(np.linalg.norm(row)), float(np.linalg.norm(column))
    if abs(lengths[0] - 1) > 0.02 or abs(lengths[1] - 1) > 0.02 or abs(row @ column) > 0.02:
        raise GeometryError(
            f"the orientation {_numbers(frames[0].orientation)} is no pair of unit vectors at a"
            " right angle",
            hint="the header is damaged; export the series again",
        )
    row, column = row / lengths[0], column / lengths[1]
    normal = np.cross(row, column)
    return _Plane(row, column, normal / np.linalg.norm(normal), _pixel_spacing(frames))


def _pixel_spacing(frames: Sequence[DicomFrame]) -> tuple[float, float]:
    given = [frame.spacing for frame in frames]
    known = [spacing for spacing in given if spacing is not None and min(spacing) > 0]
    if len(known) != len(given):
        raise GeometryError(
            f"{len(given) - len(known)} of {len(given)} DICOM frames have no pixel spacing",
            hint="give it with --spacing z,y,x --unit mm, for one file at a time",
        )
    first = known[0]
    for spacing in known:
        if any(abs(a - b) > _SAME_SPACING * b for a, b in zip(spacing, first, strict=True)):
            raise GeometryError(
                f"the series mixes pixel spacings {first} and {spacing} mm",
                hint="choose another series with --series, or sort the files",
            )
    return first[0], first[1]


def _by_height(frames: list[DicomFrame], heights: NDArray[np.float64]) -> list[list[DicomFrame]]:
    groups = [[frames[0]]]
    for frame, height, before in zip(frames[1:], heights[1:], heights[:-1], strict=True):
        if height - before <= _SAME_PLACE_MM:
            groups[-1].append(frame)
        else:
            groups.append([frame])
    return groups


def _told_apart(
    groups: list[list[DicomFrame]],
) -> tuple[tuple[tuple[DicomFrame, ...], ...], str | None, list[Note]]:
    """Frames that share a position as a time axis (or channels of a segmentation)."""
    counts = Counter(len(group) for group in groups)
    if set(counts) == {1}:
        return (tuple(group[0] for group in groups),), None, []
    has_segments = all(frame.channel is not None for group in groups for frame in group)
    keys = [[_key(frame, has_segments) for frame in group] for group in groups]
    if len(counts) > 1:
        several = sum(count for n, count in counts.items() if n > 1)
        raise GeometryError(
            f"{several} of {len(groups)} slice positions hold several slices"
            f" ({', '.join(f'{count} positions with {n}' for n, count in sorted(counts.items()))})",
            hint="copies or several acquisitions were mixed: sort the files into folders",
        )
    if any(len(set(own)) != len(own) for own in keys):
        n = next(iter(counts))
        raise GeometryError(
            f"each of {len(groups)} slice positions holds {n} slices, and nothing in the headers"
            " tells them apart (time, acquisition, echo, b-value, image type)",
            hint="sort the files into folders, or leave one copy of each slice",
        )
    ordered = [
        sorted(group, key=lambda frame: (_key(frame, has_segments), frame.number))
        for group in groups
    ]
    extra = "c" if has_segments else "t"
    n = len(ordered[0])
    notes = [
        Note(
            "positions_repeated",
            f"each slice position holds {n} frames: they are read as axis {extra}",
        )
    ]
    return tuple(tuple(group[k] for group in ordered) for k in range(n)), extra, notes


def _key(frame: DicomFrame, has_segments: bool) -> tuple[Any, ...]:
    return (frame.channel,) if has_segments else frame.order


def _spacing_z(
    along: NDArray[np.float64], thickness: float | None, name: str, notes: list[Note]
) -> tuple[float, str | None]:
    """Distance between slices, and what is uneven about it."""
    n = len(along)
    if n == 1:
        if thickness is None or not thickness > 0:
            notes.append(Note("spacing_missing", "a single slice without thickness: 1 mm is taken"))
            return 1.0, None
        notes.append(Note("spacing_from_header", f"a single slice: its {name} is the z spacing"))
        return thickness, None
    spacing = _rounded((along[-1] - along[0]) / (n - 1))
    if thickness is not None and math.isclose(spacing, thickness, rel_tol=1e-5):
        spacing = thickness
    off = np.abs(along - np.arange(n) * spacing)
    if off.max() <= max(_UNEVEN * spacing, 0.01):
        if off.max() > _UNEVEN_NOTED * spacing:
            notes.append(
                Note(
                    "slices_slightly_uneven",
                    f"slices lie up to {off.max():.3g} mm from even places {spacing:.6g} mm apart",
                )
            )
        return spacing, None
    steps = np.diff(along)
    typical = _rounded(float(np.median(steps)))
    return typical, _unevenness(steps, typical)


def _unevenness(steps: NDArray[np.float64], typical: float) -> str:
    multiples = steps / typical
    whole = np.rint(multiples)
    if np.all(np.abs(multiples - whole) < _UNEVEN) and whole.min() >= 1:
        lacking = int((whole - 1).sum())
        at = int(np.argmax(whole))
        return (
            f"{lacking} slices are missing: slices lie {typical:.6g} mm apart, but"
            f" {steps[at]:.6g} mm after slice {at + 1} of {len(steps) + 1}"
        )
    return (
        f"the slices are unevenly spaced: {steps.min():.6g} to {steps.max():.6g} mm,"
        f" median {typical:.6g} mm"
    )


def _tilt(along: NDArray[np.float64], shifts: NDArray[np.float64], plane: _Plane) -> str | None:
    """How far and at what angle the slices drift sideways, if they do."""
    if len(along) < 2:
        return None
    drift = float((np.abs(shifts) / np.array(plane.spacing)).max())
    if drift <= _DRIFT:
        return None
    total = shifts[-1]
    straight = np.outer(along / along[-1], total)
    sideways = float(np.linalg.norm(total))
    if np.abs(shifts - straight).max() > _DRIFT * max(plane.spacing):
        return f"the slices are shifted sideways by up to {np.abs(shifts).max():.4g} mm"
    angle = math.degrees(math.atan2(sideways, float(along[-1])))
    return (
        f"the slices are tilted by {angle:.2f} degrees against the stack (gantry tilt): they shift"
        f" {sideways / (len(along) - 1):.4g} mm per slice"
    )


def _rounded(value: float) -> float:
    """Without the last digits of a difference of coordinates."""
    return float(f"{value:.10g}")


def _numbers(values: Any) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
