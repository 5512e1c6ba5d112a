"""Where voxels lie in the world.

An affine maps a voxel index to world coordinates, both in the order (z, y, x), in the volume's
unit; index (0, 0, 0) is the **centre** of the first voxel::

    world = origin + direction @ (spacing * index)

``direction[:, k]`` is the unit vector, in world (z, y, x), along which index axis ``k`` runs.
``frame`` says what the world is: ``"stage"`` (microscopy: axes of the instrument or the file) or
``"RAS"`` (anatomy: x to the patient's Right, y to Anterior, z to Superior). LPS and xyz order
exist only in :mod:`lamella.io.frames`.

Spacing, origin and direction are kept apart, never folded into a matrix and taken out again:
0.1 stays 0.1 through any number of conversions.

Examples:
    >>> affine = Affine.diagonal((4.0, 2.0, 2.0), origin=(100.0, 0.0, 0.0))
    >>> affine.apply([(1, 1, 1)]).tolist()
    [[104.0, 2.0, 2.0]]
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lamella.core.errors import GeometryError
from lamella.volume.box import Box

__all__ = ["FRAMES", "Affine", "Frame"]

Frame = Literal["stage", "RAS"]
FRAMES: tuple[Frame, ...] = get_args(Frame)

_ORTHOGONALITY = 1e-3
"""Largest cosine between two axes that still counts as a right angle (header rounding)."""


def _identity(n: int) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(1.0 if i == j else 0.0 for j in range(n)) for i in range(n))


@dataclass(frozen=True, slots=True)
class Affine:
    """Spacing, origin and direction of a regular grid, in (z, y, x), or (y, x) in 2-D.

    Args:
        spacing: centre-to-centre distance per index axis, positive.
        origin: world position of the first voxel's centre.
        direction: rows are world axes, columns index axes; columns are unit vectors.
        frame: what the world axes mean.
    """

    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[tuple[float, ...], ...]
    frame: Frame = "stage"

    def __post_init__(self) -> None:
        n = len(self.spacing)
        if n not in (2, 3) or len(self.origin) != n or len(self.direction) != n:
            raise GeometryError(
                f"spacing {self.spacing}, origin {self.origin} and direction {self.direction}"
                " do not describe 2 or 3 axes alike"
            )
        if not all(math.isfinite(s) and s > 0 for s in self.spacing):
            raise GeometryError(
                f"spacing {self.spacing} must be positive and finite",
                hint="set it with --spacing z,y,x --unit nm",
            )
        if not all(math.isfinite(o) for o in self.origin):
            raise GeometryError(f"origin {self.origin} is not finite")
        matrix = np.asarray(self.direction, dtype=np.float64)
        gram = matrix.T @ matrix
        if not np.allclose(np.diag(gram), 1.0, atol=_ORTHOGONALITY):
            raise GeometryError(f"direction {self.direction} has columns that are no unit vectors")

    @classmethod
    def diagonal(
        cls,
        spacing: Sequence[float],
        origin: Sequence[float] | None = None,
        frame: Frame = "stage",
    ) -> "Affine":
        """Axes along the world axes, ascending."""
        n = len(spacing)
        start = (0.0,) * n if origin is None else tuple(float(o) for o in origin)
        return cls(tuple(float(s) for s in spacing), start, _identity(n), frame)

    @classmethod
    def from_matrix(cls, matrix: ArrayLike, frame: Frame = "stage") -> "Affine":
        """Take apart a homogeneous matrix, index (z, y, x) → world (z, y, x).

        Args:
            matrix: float, (n + 1, n + 1), n = 2 or 3.
            frame: meaning of the world axes.

        Raises:
            GeometryError: for a singular matrix.
        """
        full = np.asarray(matrix, dtype=np.float64)
        n = full.shape[0] - 1
        linear = full[:n, :n]
        spacing = np.sqrt((linear**2).sum(axis=0))
        if not np.all(np.isfinite(full)) or np.any(spacing == 0) or np.linalg.det(linear) == 0:
            raise GeometryError(
                f"the affine {full.tolist()} is singular or not finite",
                hint="set the geometry with --spacing z,y,x --unit mm",
            )
        direction = linear / spacing
        # -0.0 would survive into headers and break comparisons by text.
        direction = direction + 0.0
        return cls(
            tuple(float(s) for s in spacing),
            tuple(float(o) for o in full[:n, n]),
            tuple(tuple(float(v) for v in row) for row in direction),
            frame,
        )

    @property
    def ndim(self) -> int:
        """2 or 3."""
        return len(self.spacing)

    @property
    def matrix(self) -> NDArray[np.float64]:
        """Homogeneous matrix, float64, (n + 1, n + 1)."""
        n = self.ndim
        full = np.eye(n + 1)
        full[:n, :n] = np.asarray(self.direction) * np.asarray(self.spacing)
        full[:n, n] = self.origin
        return full

    @property
    def is_axis_aligned(self) -> bool:
        """Whether every index axis runs along one world axis (perhaps flipped or swapped)."""
        magnitude = np.abs(np.asarray(self.direction))
        return bool(np.all(np.isclose(magnitude.max(axis=0), 1.0, atol=1e-6)))

    @property
    def is_orthogonal(self) -> bool:
        """Whether the index axes stand at right angles."""
        matrix = np.asarray(self.direction)
        gram = matrix.T @ matrix
        return bool(np.all(np.abs(gram - np.diag(np.diag(gram))) < _ORTHOGONALITY))

    def apply(self, index: ArrayLike) -> NDArray[np.float64]:
        """World positions of (fractional) indices.

        Args:
            index: float, (..., n), in voxels.

        Returns:
            float64, (..., n), in the volume's unit.
        """
        steps = np.asarray(index, dtype=np.float64) * np.asarray(self.spacing)
        return steps @ np.asarray(self.direction).T + np.asarray(self.origin)

    def inverse_apply(self, world: ArrayLike) -> NDArray[np.float64]:
        """Fractional indices of world positions, the inverse of :meth:`apply`."""
        offset = np.asarray(world, dtype=np.float64) - np.asarray(self.origin)
        inverse = np.linalg.inv(np.asarray(self.direction))
        return (offset @ inverse.T) / np.asarray(self.spacing)

    def cropped(self, box: Box) -> "Affine":
        """The affine of a box cut out of the grid: the same voxels at the same places."""
        if not any(box.start):
            return self
        return replace(self, origin=tuple(float(v) for v in self.apply(box.start)))

    def downsampled(self, factors: Sequence[float]) -> "Affine":
        """The affine after averaging blocks of ``factors`` voxels (pyramid levels).

        The first coarse centre lies in the middle of the first block: shifted by
        ``(factor - 1) / 2`` fine voxels (OME-Zarr's convention for a multiscale translation).
        """
        shift = tuple((float(f) - 1.0) / 2.0 for f in factors)
        spacing = tuple(s * float(f) for s, f in zip(self.spacing, factors, strict=True))
        return replace(self, spacing=spacing, origin=tuple(float(v) for v in self.apply(shift)))

    def with_spacing(self, spacing: Sequence[float]) -> "Affine":
        """The same origin and direction at another spacing (a correction by the user)."""
        return replace(self, spacing=tuple(float(s) for s in spacing))

    def is_close(self, other: "Affine", tolerance: float = 1e-4) -> bool:
        """Whether both put every voxel at the same place within ``tolerance`` of a voxel.

        Origins are compared in units of the smallest spacing, spacings by ratio, directions by
        component; frames must be equal.
        """
        if self.ndim != other.ndim or self.frame != other.frame:
            return False
        smallest = min(self.spacing)
        return (
            bool(np.allclose(self.spacing, other.spacing, rtol=tolerance, atol=0.0))
            and bool(np.allclose(self.origin, other.origin, rtol=0.0, atol=tolerance * smallest))
            and bool(np.allclose(self.direction, other.direction, rtol=0.0, atol=tolerance))
        )
