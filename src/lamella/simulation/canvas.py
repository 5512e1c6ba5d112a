"""The scene a simulated tomogram is drawn on: density, classes and ids on one padded grid.

Positions are in nm from the centre of voxel 0 of the padded grid, (z, y, x). Density is relative:
0 is vitreous ice, about 1 the head groups of a lipid bilayer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lamella.volume.box import Box

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MEMBRANE", "MICROTUBULE", "PARTICLE", "Canvas", "surface_distance"]

MEMBRANE, PARTICLE, MICROTUBULE = 1, 2, 3

_BEAD_SIGMA_NM = 1.2
_BEAD_RADIUS_NM = 3.2
_HEAD_DISTANCE_NM = np.float32(2.0)
_HEAD_SIGMA_NM = 0.8
_CORE_SIGMA_NM = 1.2
_CORE_DENSITY = 0.15
_MEMBRANE_HALF_THICKNESS_NM = 2.5
_CLEARANCE_NM = 4.5


@dataclass(slots=True)
class Canvas:
    """A scene while it is drawn.

    Attributes:
        shape: voxels per axis, padding included.
        spacing_nm: distance of voxel centres, the same along every axis.
    """

    shape: tuple[int, int, int]
    spacing_nm: float
    density: NDArray[np.float32] = field(init=False)
    labels: NDArray[np.uint8] = field(init=False)
    instances: NDArray[np.uint32] = field(init=False)
    occupied: NDArray[np.bool_] = field(init=False)
    n_objects: int = field(init=False, default=0)
    _beads: NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        self.density = np.zeros(self.shape, np.float32)
        self.labels = np.zeros(self.shape, np.uint8)
        self.instances = np.zeros(self.shape, np.uint32)
        self.occupied = np.zeros(self.shape, np.bool_)
        self._beads = np.zeros(self.shape, np.float32)

    @property
    def extent_nm(self) -> NDArray[np.float64]:
        """Size of the grid, float64, (3,), in nm."""
        return np.asarray(self.shape, np.float64) * self.spacing_nm

    def box_around(self, centre_nm: NDArray[np.float64], reach_nm: float) -> Box | None:
        """The voxels within ``reach_nm`` of a point along every axis; None outside the grid."""
        lower = np.floor((centre_nm - reach_nm) / self.spacing_nm).astype(int)
        upper = np.ceil((centre_nm + reach_nm) / self.spacing_nm).astype(int) + 1
        start = tuple(int(v) for v in np.maximum(lower, 0))
        stop = tuple(int(v) for v in np.minimum(upper, self.shape))
        if any(low >= high for low, high in zip(start, stop, strict=True)):
            return None
        return Box(start, stop)

    def coordinates(self, box: Box) -> tuple[NDArray[np.float32], ...]:
        """Positions of a box's voxel centres in nm, float32, open grids (z, 1, 1) (1, y, 1) (x)."""
        axes = [
            np.arange(low, high, dtype=np.float32) * np.float32(self.spacing_nm)
            for low, high in zip(box.start, box.stop, strict=True)
        ]
        return np.ix_(*axes)

    def draw_membrane(self, box: Box, distance: NDArray[np.float32], strength: float = 1.0) -> bool:
        """Draw a lipid bilayer around the zero set of a distance.

        Two leaflets of head groups 4 nm apart with a faint core between (profile after Nagle &
        Tristram-Nagle, 2000); labelled 5 nm thick.

        Args:
            box: where ``distance`` lies in the grid.
            distance: to the middle of the bilayer in nm, float32, (z, y, x); right near zero.
            strength: density of the head groups.

        Returns:
            Whether it was drawn; not where it would cross something drawn before.
        """
        slices = box.slices()
        near = np.abs(distance)
        if np.any(self.occupied[slices] & (near < _CLEARANCE_NM)):
            return False
        wall = near <= max(_MEMBRANE_HALF_THICKNESS_NM, 0.5 * self.spacing_nm)
        if not wall.any():
            return False
        # A voxel coarser than a leaflet holds its mean: same mass, wider peak.
        blur = 0.35 * self.spacing_nm
        reach = float(_HEAD_DISTANCE_NM) + 5 * float(np.hypot(_CORE_SIGMA_NM, blur))
        touched = near < reach
        close = near[touched]
        profile = _peak(close - _HEAD_DISTANCE_NM, _HEAD_SIGMA_NM, blur)
        profile += _peak(close + _HEAD_DISTANCE_NM, _HEAD_SIGMA_NM, blur)
        profile += _CORE_DENSITY * _peak(close, _CORE_SIGMA_NM, blur)
        self.density[slices][touched] += strength * profile
        self.n_objects += 1
        self.labels[slices][wall] = MEMBRANE
        self.instances[slices][wall] = self.n_objects
        self.occupied[slices] |= near < _CLEARANCE_NM
        return True

    def draw_beads(self, beads_nm: NDArray[np.float64], label: int, strength: float = 1.0) -> bool:
        """Draw an object made of beads (Gaussian balls), unless it would touch another.

        Args:
            beads_nm: bead centres in nm, float64, (n, 3); those off the grid are left out.
            label: class it is labelled as; 0 draws density without labels.
            strength: density at the centre of a lone bead.
        """
        voxels = self._voxels_of_balls(beads_nm)
        if len(voxels) == 0 or self.occupied.ravel()[voxels].any():
            return False
        self.add_density(beads_nm, strength)
        self.occupied.ravel()[voxels] = True
        if label:
            self.n_objects += 1
            self.labels.ravel()[voxels] = label
            self.instances.ravel()[voxels] = self.n_objects
        return True

    def add_density(
        self, beads_nm: NDArray[np.float64], strength: float | NDArray[np.float64]
    ) -> None:
        """Add beads to the density alone, each spread over its eight nearest voxels."""
        position = beads_nm / self.spacing_nm
        base = np.floor(position).astype(np.int64)
        inside = np.all((base >= 0) & (base < np.asarray(self.shape) - 1), axis=1)
        base, fraction = base[inside], (position - base)[inside]
        weight = np.broadcast_to(np.asarray(strength, np.float64), len(beads_nm))[inside]
        flat = self._beads.ravel()
        for corner in np.ndindex(2, 2, 2):
            share = np.prod(np.where(corner, fraction, 1 - fraction), axis=1)
            index = np.ravel_multi_index(tuple((base + corner).T), self.shape)
            np.add.at(flat, index, (share * weight).astype(np.float32))

    def finish(self) -> None:
        """Turn the beads gathered into density, and forget them."""
        from scipy.ndimage import gaussian_filter

        sigma = _BEAD_SIGMA_NM / self.spacing_nm
        peak = (2 * np.pi) ** 1.5 * sigma**3
        blurred = gaussian_filter(self._beads, max(sigma, 0.5), mode="constant", truncate=3.5)
        self.density += np.float32(peak) * blurred
        self._beads = np.zeros((0, 0, 0), np.float32)

    def _voxels_of_balls(self, beads_nm: NDArray[np.float64]) -> NDArray[np.int64]:
        reach = int(np.ceil(_BEAD_RADIUS_NM / self.spacing_nm))
        offsets = np.indices((2 * reach + 1,) * 3).reshape(3, -1).T - reach
        ball = offsets[np.linalg.norm(offsets * self.spacing_nm, axis=1) <= _BEAD_RADIUS_NM]
        centres = np.round(beads_nm / self.spacing_nm).astype(np.int64)
        voxels = (centres[:, None, :] + ball[None, :, :]).reshape(-1, 3)
        voxels = voxels[np.all((voxels >= 0) & (voxels < self.shape), axis=1)]
        return np.unique(np.ravel_multi_index(tuple(voxels.T), self.shape))


def surface_distance(implicit: NDArray[np.float32], spacing_nm: float) -> NDArray[np.float32]:
    """First-order distance in nm to the zero set of a smooth function: f / |grad f|.

    Right near the surface, which is all a bilayer needs (Taubin 1994).
    """
    if min(implicit.shape) < 2:
        return implicit
    squared = np.zeros_like(implicit)
    for axis in range(3):
        squared += np.gradient(implicit, np.float32(spacing_nm), axis=axis) ** 2
    distance = implicit / np.sqrt(np.maximum(squared, np.float32(1e-12)))
    return distance.astype(np.float32, copy=False)


def _peak(offset: NDArray[np.float32], sigma: float, blur: float) -> NDArray[np.float32]:
    wide = float(np.hypot(sigma, blur))
    return np.float32(sigma / wide) * np.exp(np.float32(-0.5 / wide**2) * offset**2)
