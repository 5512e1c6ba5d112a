"""Non-local means: each voxel the average of those whose surroundings look alike.

Surroundings are compared as patches; a neighbour counts by ``exp(-(d² - 2)/h²)`` of the mean square
difference d² of the patches, on a scale where the noise has standard deviation 1 (see
:mod:`lamella.restoration.variance`), so that 2 is what noise alone makes of equal patches and
``strength`` 1 fits an image whatever its gain, offset and photon noise.

Source: A. Buades, B. Coll, J.-M. Morel, "A non-local algorithm for image denoising", CVPR 2005; the
order of loops (shifts outside, box filter inside) after J. Darbon et al., "Fast nonlocal filtering
applied to electron cryomicroscopy", ISBI 2008.

Examples:
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> flat = rng.normal(10, 1, (1, 48, 48)).astype(np.float32)
    >>> smooth = NonLocalMeans(Stabiliser(0.0, 1.0)).apply(flat)
    >>> bool(smooth.std() < 0.35)
    True
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.restoration.tiles import Triple
from lamella.restoration.variance import Stabiliser

__all__ = ["NonLocalMeans"]

_BEST_H = 0.9
"""Width of the weights at strength 1, in standard deviations of the noise: the best on photographs
and micrographs alike, within 0.1 dB."""


@dataclass(frozen=True, slots=True)
class NonLocalMeans:
    """Non-local means over slices or over volumes.

    Attributes:
        stabiliser: makes the noise the same everywhere.
        strength: 1 fits the estimated noise; more smooths more.
        is_volumetric: compare and average along z too.
        patch: side of the patches, odd.
        distance: how far away a patch may lie, in voxels.
    """

    stabiliser: Stabiliser
    strength: float = 1.0
    is_volumetric: bool = False
    patch: int = 5
    distance: int = 6

    @property
    def halo(self) -> Triple:
        """Patch and distance around each voxel."""
        reach = self.distance + self.patch // 2
        return (reach if self.is_volumetric else 0, reach, reach)

    @property
    def alignment(self) -> Triple:
        """None needed."""
        return (1, 1, 1)

    @property
    def tile(self) -> Triple:
        """Of some twenty megabytes."""
        return (32, 256, 256) if self.is_volumetric else (8, 512, 512)

    @property
    def parameters(self) -> dict[str, Any]:
        """All there are."""
        return asdict(self)

    def apply(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Denoise a block, (z, y, x)."""
        return self.stabiliser.restore(self.average(self.stabiliser.stabilise(block)))

    def average(self, stable: NDArray[np.float32]) -> NDArray[np.float32]:
        """Denoise a block, (z, y, x), on the scale where the noise has standard deviation 1."""
        if self.is_volumetric:
            return self._averaged(stable)
        return np.stack([self._averaged(plane[None])[0] for plane in stable])

    @classmethod
    def fitting(
        cls, stabiliser: Stabiliser, *, is_volumetric: bool, strength: float = 1.0
    ) -> NonLocalMeans:
        """With patches and distances that suit slices or volumes."""
        patch, distance = (3, 3) if is_volumetric else (5, 6)
        return cls(stabiliser, strength, is_volumetric, patch, distance)

    def _averaged(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Weighted mean over all shifts; each pair of voxels is compared once for both."""
        total = image.copy()  # a voxel's own patch always looks alike
        weights = np.ones_like(image)
        steep = np.float32(-1.0 / (_BEST_H * self.strength) ** 2)
        for shift in self._half_shifts(image.shape):
            here = tuple(
                slice(max(0, -s), n - max(0, s)) for s, n in zip(shift, image.shape, strict=True)
            )
            there = tuple(
                slice(max(0, s), n - max(0, -s)) for s, n in zip(shift, image.shape, strict=True)
            )
            difference = image[here] - image[there]
            difference *= difference
            weight = self._boxed(difference)
            weight -= 2.0
            np.maximum(weight, 0.0, out=weight)
            weight *= steep
            np.exp(weight, out=weight)
            total[here] += weight * image[there]
            weights[here] += weight
            total[there] += weight * image[here]
            weights[there] += weight
        return total / weights

    def _boxed(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mean over the patch."""
        from scipy.ndimage import uniform_filter1d

        for axis, length in enumerate(values.shape):
            if length > 1:
                values = np.asarray(
                    uniform_filter1d(values, self.patch, axis=axis, mode="mirror"), np.float32
                )
        return values

    def _half_shifts(self, shape: tuple[int, ...]) -> list[Triple]:
        """Shifts inside a ball, one of every opposite pair."""
        reach = [min(self.distance, n - 1) for n in shape]
        shifts = itertools.product(*(range(-r, r + 1) for r in reach))
        return [(z, y, x) for z, y, x in shifts if (z, y, x) > (0, 0, 0)]
