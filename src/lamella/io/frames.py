"""Between Lamella's geometry and that of the file formats: the only home of xyz, LPS and Ångström.

Lamella counts (z, y, x) everywhere, and its anatomical world is RAS in the same order, that is
(Superior, Anterior, Right). File formats count x first::

    format          index order   world                     unit
    NIfTI           x y z         RAS+: x→Right, y→Anterior  mm (usually)
    NRRD, ITK       x y z         LPS+: x→Left, y→Posterior  mm
    DICOM           x y z         LPS+                       mm
    MRC             x y z         the file's own axes        Å

Reversing an order and negating two signs are exact, so going there and back changes no bit.

Examples:
    >>> geometry = XyzGeometry((0.5, 0.5, 2.0), (-10.0, 20.0, 5.0), IDENTITY_XYZ)
    >>> affine = affine_from_xyz(geometry, "LPS")
    >>> affine.spacing, affine.origin, orientation_code(affine)
    ((2.0, 0.5, 0.5), (5.0, -20.0, 10.0), 'LPS')
    >>> affine_to_xyz(affine, "LPS") == geometry
    True
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lamella.core.errors import GeometryError
from lamella.volume import Affine, Unit
from lamella.volume.spacing import convert_length

__all__ = [
    "IDENTITY_XYZ",
    "World",
    "XyzGeometry",
    "affine_from_xyz",
    "affine_from_xyz_matrix",
    "affine_in_unit",
    "affine_to_xyz",
    "angstrom_to_nm",
    "decimal_float32",
    "nm_to_angstrom",
    "orientation_code",
]

World = Literal["RAS", "LPS", "xyz"]
"""A file's world: anatomical with x→Right or x→Left, or axes x, y, z of no anatomical meaning."""

IDENTITY_XYZ = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))

_LPS_SIGNS = (-1.0, -1.0, 1.0)
_SAME_LENGTH = 2e-5
"""Relative difference below which a spacing is the norm of its axis, but for header rounding."""


@dataclass(frozen=True, slots=True)
class XyzGeometry:
    """Spacing, origin and direction as formats write them, x first, 2 or 3 axes.

    Args:
        spacing: per index axis (x, y, z).
        origin: world (x, y, z) of the first voxel's centre.
        direction: rows are world axes (x, y, z), columns index axes (x, y, z).
    """

    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[tuple[float, ...], ...]

    @property
    def matrix(self) -> NDArray[np.float64]:
        """Homogeneous matrix, index (x, y, z) → world (x, y, z), float64, (n + 1, n + 1)."""
        n = len(self.spacing)
        full = np.eye(n + 1)
        full[:n, :n] = np.asarray(self.direction) * np.asarray(self.spacing)
        full[:n, n] = self.origin
        return full


def affine_from_xyz(geometry: XyzGeometry, world: World) -> Affine:
    """Bring a format's geometry into Lamella's order and frame. Exact.

    Args:
        geometry: as the format gives it.
        world: meaning of its world axes.

    Raises:
        GeometryError: for values that are not finite, not positive or singular.
    """
    signs = _signs(world, len(geometry.spacing))
    direction = tuple(
        tuple(_signed(value, sign) for value in reversed(row))
        for row, sign in zip(reversed(geometry.direction), reversed(signs), strict=True)
    )
    origin = tuple(
        _signed(value, sign)
        for value, sign in zip(reversed(geometry.origin), reversed(signs), strict=True)
    )
    _check_regular(geometry)
    return Affine(
        tuple(float(value) for value in reversed(geometry.spacing)),
        origin,
        direction,
        "stage" if world == "xyz" else "RAS",
    )


def affine_to_xyz(affine: Affine, world: World) -> XyzGeometry:
    """Lamella's geometry as a format wants it, the inverse of :func:`affine_from_xyz`.

    Args:
        affine: in any frame; its numbers are taken as they are, but for ``LPS`` signs.
        world: the format's world.
    """
    signs = _signs(world, affine.ndim)
    return XyzGeometry(
        tuple(reversed(affine.spacing)),
        tuple(_signed(o, s) for o, s in zip(reversed(affine.origin), signs, strict=True)),
        tuple(
            tuple(_signed(value, sign) for value in reversed(row))
            for row, sign in zip(reversed(affine.direction), signs, strict=True)
        ),
    )


def affine_from_xyz_matrix(
    matrix: ArrayLike, world: World, *, spacing_xyz: Sequence[float] | None = None
) -> Affine:
    """Take apart a format's homogeneous matrix once, keeping the spacing it was made of.

    Args:
        matrix: index (x, y, z) → world (x, y, z), (n + 1, n + 1).
        world: meaning of its world axes.
        spacing_xyz: what the header says apart from the matrix; kept to the last bit where the
            matrix's columns have that length but for rounding, ignored where they do not.

    Raises:
        GeometryError: for a matrix that is not finite or singular.
    """
    full = np.asarray(matrix, dtype=np.float64)
    n = full.shape[0] - 1
    linear = full[:n, :n]
    if not np.all(np.isfinite(full)):
        raise GeometryError(
            f"the affine {_rows(full)} has values that are not finite",
            hint="the header is damaged; give the geometry with --spacing z,y,x --unit mm",
        )
    length = np.sqrt((linear**2).sum(axis=0))
    if np.any(length == 0):
        raise GeometryError(
            f"the affine {_rows(full)} is singular: an axis has no length",
            hint="the header is damaged; give the geometry with --spacing z,y,x --unit mm",
        )
    spacing = [float(value) for value in length]
    for axis, given in enumerate(spacing_xyz or ()):
        if math.isfinite(given) and abs(given - spacing[axis]) <= _SAME_LENGTH * spacing[axis]:
            spacing[axis] = float(given)
    direction = linear / length
    return affine_from_xyz(
        XyzGeometry(
            tuple(spacing),
            tuple(float(value) for value in full[:n, n]),
            tuple(tuple(float(value) for value in row) for row in direction),
        ),
        world,
    )


def affine_in_unit(affine: Affine, unit: Unit, to: Unit) -> Affine:
    """The same grid with its numbers in another unit (by powers of ten).

    Raises:
        GeometryError: between ``voxel`` and a physical unit.
    """
    if unit == to:
        return affine
    return replace(
        affine,
        spacing=tuple(convert_length(value, unit, to) for value in affine.spacing),
        origin=tuple(convert_length(value, unit, to) for value in affine.origin),
    )


def orientation_code(affine: Affine) -> str:
    """Where each **index** axis runs, x first, as nibabel's ``aff2axcodes`` and ITK-SNAP say it.

    ``"LPS"`` means that x runs to the patient's Left, y to Posterior, z to Superior. Oblique axes
    get the closest direction. In the stage frame the world's own axes are named: ``"+x -y +z"``.

    Source of the method: nibabel ``io_orientation`` (closest rotation by SVD, strongest first).
    """
    n = affine.ndim
    geometry = affine_to_xyz(affine, "xyz")
    left, _, right = np.linalg.svd(np.asarray(geometry.direction))
    rotation = left @ right
    chosen: dict[int, tuple[int, bool]] = {}
    free = set(range(n))
    for axis in np.argsort(-np.abs(rotation).max(axis=0), kind="stable"):
        row = max(sorted(free), key=lambda r, a=int(axis): abs(rotation[r, a]))
        free.discard(row)
        chosen[int(axis)] = (row, bool(rotation[row, axis] >= 0))
    if affine.frame == "RAS":
        letters = (("L", "R"), ("P", "A"), ("I", "S"))
        return "".join(letters[chosen[axis][0]][chosen[axis][1]] for axis in range(n))
    return " ".join(("+" if chosen[a][1] else "-") + "xyz"[chosen[a][0]] for a in range(n))


def angstrom_to_nm(value: float) -> float:
    """Ångström → nm, rounded once."""
    return value / 10.0


def nm_to_angstrom(value: float) -> float:
    """Nanometre → Å, rounded once."""
    return value * 10.0


def decimal_float32(value: float) -> float:
    """The decimal number that someone wrote into a 32-bit header field.

    A spacing of 0.1 comes back from a float32 as 0.10000000149; where six significant digits
    give the very same float32 they are what was meant, otherwise the value is taken as it is.

    Examples:
        >>> decimal_float32(float(np.float32(0.1))), decimal_float32(0.9765625)
        (0.1, 0.9765625)
    """
    rounded = float(f"{value:.6g}")
    return rounded if np.float32(rounded) == np.float32(value) else float(value)


def _signs(world: World, n: int) -> tuple[float, ...]:
    return _LPS_SIGNS[:n] if world == "LPS" else (1.0,) * n


def _signed(value: float, sign: float) -> float:
    # Adding 0.0 turns -0.0 into 0.0, which would otherwise show up in headers and comparisons.
    return float(value) * sign + 0.0


def _rows(matrix: NDArray[np.float64]) -> str:
    return "; ".join(" ".join(f"{value:.6g}" for value in row) for row in matrix)


def _check_regular(geometry: XyzGeometry) -> None:
    """Refuse what no grid can have, before its numbers reach anything."""
    values = (*geometry.spacing, *geometry.origin, *(v for row in geometry.direction for v in row))
    if not all(math.isfinite(value) for value in values):
        raise GeometryError(
            f"spacing {geometry.spacing}, origin {geometry.origin}, direction"
            f" {geometry.direction} (x, y, z) hold values that are not finite",
            hint="the header is damaged; give the geometry with --spacing z,y,x --unit mm",
        )
    determinant = float(np.linalg.det(np.asarray(geometry.direction)))
    if abs(determinant) < 1e-6:
        raise GeometryError(
            f"direction {geometry.direction} (x, y, z) is singular: two axes run along each other",
            hint="the header is damaged; give the geometry with --spacing z,y,x --unit mm",
        )
