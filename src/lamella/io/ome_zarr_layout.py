"""From a zarr array's axes and matrix to Lamella's: order, names, units, affine.

NGFF fixes neither the order of the axes nor, in old versions, their names; units may differ per
axis. Whatever has to be assumed becomes a note.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lamella.core.errors import AxesError, GeometryError
from lamella.io.ome_zarr_transform import Matrix
from lamella.volume.affine import Affine
from lamella.volume.axes import ORDER, Axes
from lamella.volume.spacing import Unit, parse_unit
from lamella.volume.volume import Note

__all__ = ["Layout", "layout_of", "layout_of_names", "place", "spacing_notes"]

_KIND_OF_TYPE = {"time": "t", "channel": "c"}


@dataclass(frozen=True, slots=True)
class Layout:
    """How an array's axes become ours.

    Args:
        axes: what comes out.
        keep: positions of the array's axes in the order of ``axes``; the others have length 1.
        notes: what had to be assumed.
    """

    axes: Axes
    keep: tuple[int, ...]
    notes: tuple[Note, ...] = ()

    @property
    def spatial(self) -> tuple[int, ...]:
        """Positions of the spatial axes, (z, y, x)."""
        return self.keep[self.axes.n_leading :]


def layout_of(axes: Sequence[Mapping[str, Any]], shape: Sequence[int]) -> Layout:
    """Which array axis becomes which of ours.

    Names decide (``t c z y x`` in either case), then types; space axes of other names are taken
    in their order as z, y, x. Further axes are dropped where they have length 1.

    Raises:
        AxesError: when an image cannot be made of them.
    """
    roles: dict[str, int] = {}
    rest: list[int] = []
    for position, axis in enumerate(axes):
        role = _role(axis)
        if role is None or role in roles:
            rest.append(position)
        else:
            roles[role] = position
    notes: list[Note] = []
    _name_space_axes(axes, roles, rest, notes)
    for position in rest:
        name = str(axes[position].get("name"))
        if shape[position] == 1:
            notes.append(Note("axis_dropped", f"axis {name!r} has length 1 and is left out"))
        elif "c" not in roles:
            roles["c"] = position
            notes.append(Note("axis_as_channel", f"axis {name!r} is read as channels"))
        else:
            raise AxesError(
                f"axis {name!r} of length {shape[position]} is none of t, c, z, y, x",
                hint="Lamella reads images of time, channel and space",
            )
    if "y" not in roles or "x" not in roles:
        names = ", ".join(str(axis.get("name")) for axis in axes)
        raise AxesError(
            f"the axes ({names}) lack y or x", hint="say what the axes mean with --axes, e.g. zyx"
        )
    names = tuple(name for name in ORDER if name in roles)
    return Layout(Axes(names), tuple(roles[name] for name in names), tuple(notes))


def layout_of_names(text: str) -> Layout:
    """The layout of ``--axes``, in any order: ``"xyz"`` is transposed.

    Raises:
        AxesError: for letters that are no axes, repeated ones, and without y and x.
    """
    letters = tuple(text.lower())
    names = tuple(name for name in ORDER if name in letters)
    if len(set(letters)) != len(letters) or len(names) != len(letters):
        raise AxesError(
            f"--axes {text!r} is no order of different letters out of tczyx",
            hint="name every axis of the array once, for example --axes czyx",
        )
    return Layout(Axes(names), tuple(letters.index(name) for name in names))


def _role(axis: Mapping[str, Any]) -> str | None:
    name, kind = str(axis.get("name", "")).lower(), axis.get("type")
    if name in ORDER and kind in (None, _type_of(name), "array"):
        return name
    return _KIND_OF_TYPE.get(str(kind))


def _type_of(name: str) -> str:
    return {"t": "time", "c": "channel"}.get(name, "space")


def _name_space_axes(
    axes: Sequence[Mapping[str, Any]], roles: dict[str, int], rest: list[int], notes: list[Note]
) -> None:
    """Give space axes of unknown names the free places among z, y, x."""
    unnamed = [p for p in rest if axes[p].get("type") == "space"]
    if not unnamed or any(name in roles for name in "zyx") or len(unnamed) not in (2, 3):
        return
    for name, position in zip("zyx"[3 - len(unnamed) :], unnamed, strict=True):
        roles[name] = position
        rest.remove(position)
    given = ", ".join(str(axes[p].get("name")) for p in unnamed)
    taken = ", ".join("zyx"[3 - len(unnamed) :])
    notes.append(Note("axes_assumed", f"the space axes ({given}) are taken as {taken}"))


def place(
    matrix: Matrix | None, axes: Sequence[Mapping[str, Any]], layout: Layout
) -> tuple[Affine, Unit, tuple[Note, ...]]:
    """Geometry of the spatial axes.

    Args:
        matrix: index → world in the array's order, or None.
        axes: documents of the axes, which give the units.
        layout: which axes are spatial.

    Raises:
        GeometryError: when time or channels are mixed with space, or the matrix is singular.
    """
    n = layout.axes.n_spatial
    spatial = list(layout.spatial)
    if matrix is None:
        matrix = np.eye(len(axes) + 1)
    size = matrix.shape[0] - 1
    others = [axis for axis in range(size) if axis not in spatial]
    if matrix[np.ix_(spatial, others)].any():
        raise GeometryError(
            "the metadata mixes time or channels with space in one transformation",
            hint="open the array itself with --dataset and --spacing",
        )
    unit, factors, notes = _units([axes[position] for position in spatial])
    linear = matrix[np.ix_(spatial, spatial)]
    origin = matrix[spatial, size]
    if unit == "voxel" and not notes and not np.array_equal(linear, np.eye(n)):
        notes = (
            *notes,
            Note("spacing_unit_missing", "the metadata has a scale but no unit of length"),
        )
    if np.any(~linear.any(axis=0)):
        notes = (Note("spacing_invalid", "the scale is 0 along an axis: taken as not calibrated"),)
        return Affine.diagonal((1.0,) * n), "voxel", notes
    scaled = np.array([_times(row, factor) for row, factor in zip(linear, factors, strict=True)])
    start = tuple(float(_times(o, f)) for o, f in zip(origin, factors, strict=True))
    return replace(_affine_of(scaled), origin=start), unit, notes


def _affine_of(linear: Matrix) -> Affine:
    """Spacing and direction of a linear map; exact where every axis runs along a world axis."""
    n = len(linear)
    if np.all(np.count_nonzero(linear, axis=0) == 1) and np.linalg.det(np.sign(linear)) != 0:
        spacing = np.abs(linear).max(axis=0)
        direction = np.sign(linear) + 0.0
        return Affine(
            tuple(float(s) for s in spacing),
            (0.0,) * n,
            tuple(tuple(float(v) for v in row) for row in direction),
        )
    full = np.eye(n + 1)
    full[:n, :n] = linear
    return Affine.from_matrix(full)


def _times(value: Any, factor: float) -> Any:
    # x / 10 is the nearest number to a tenth of x, x * 0.1 is not.
    return value / round(1.0 / factor) if factor < 1.0 else value * factor


def _units(axes: Sequence[Mapping[str, Any]]) -> tuple[Unit, list[float], tuple[Note, ...]]:
    """Common unit of the spatial axes (that of x where they differ) and factors to reach it."""
    words = [axis.get("unit") for axis in axes]
    known: list[tuple[Unit, float]] = []
    for word in words:
        if not word:
            continue
        try:
            known.append(parse_unit(str(word)))
        except GeometryError:
            return (
                "voxel",
                [1.0] * len(axes),
                (Note("spacing_unit_unknown", f"the unit {word!r} is no length Lamella knows"),),
            )
    physical: list[Unit] = [unit for unit, _ in known if unit != "voxel"]
    if not physical:
        return "voxel", [1.0] * len(axes), ()
    notes: tuple[Note, ...] = ()
    if len(known) < len(words) or len(physical) < len(known):
        text = f"only some axes have a unit: {physical[-1]} is taken for all"
        notes = (Note("spacing_unit_assumed", text),)
        return physical[-1], [known[-1][1]] * len(axes), notes
    common = known[-1][0]
    exponents = {"nm": -9, "um": -6, "mm": -3}
    factors = [f * 10.0 ** (exponents[u] - exponents[common]) for u, f in known]
    return common, factors, notes


def spacing_notes(affine: Affine, unit: Unit, matrix: Matrix | None) -> tuple[Note, ...]:
    """A note where the file gives no spacing at all."""
    if unit == "voxel" and (matrix is None or all(s == 1.0 for s in affine.spacing)):
        return (Note("spacing_missing", "the file gives no spacing: set it with --spacing"),)
    return ()
