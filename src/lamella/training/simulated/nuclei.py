"""Simulated nuclei as training data: of any size, density, blur and noise. 2-D or 3-D."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.simulation.nuclei import NucleiOptions, draw_nuclei
from lamella.training.simulated.scene import normalised, window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.wire.card import NormalisationDoc

__all__ = ["NucleiScene", "draw_options"]

_RADII = (3.5, 22.0)
_MAX_NUCLEI = 220


class NucleiScene:
    """A :class:`lamella.training.simulated.scene.Scene`; lengths are in voxels.

    Args:
        shape: (z, y, x) or (y, x).
        seed: same seed, same image.
        normalisation: of the image.
    """

    def __init__(self, shape: tuple[int, ...], seed: int, normalisation: NormalisationDoc) -> None:
        made = draw_nuclei(draw_options(np.random.default_rng(seed), shape), seed=seed)
        self.image: NDArray[np.float32] = made.image.astype(np.float32)
        self.labels: NDArray[Any] = made.labels
        self._normalised = normalised(self.image, normalisation)

    def cut(
        self, rng: np.random.Generator, shape: tuple[int, ...]
    ) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """A patch, normalised, and its ids."""
        where = window(rng, self.labels.shape, shape)
        return self._normalised[where].copy(), self.labels[where].copy()


def draw_options(rng: np.random.Generator, shape: tuple[int, ...]) -> NucleiOptions:
    """Nuclei and a microscope; lengths are in voxels (spacing 1).

    Args:
        rng: gives all randomness.
        shape: of the image, (z, y, x) or (y, x).
    """
    n = len(shape)
    # Nuclei have to fit a volume that is not deep.
    largest = min(_RADII[1], min(shape) / 3)
    radius = math.exp(rng.uniform(math.log(_RADII[0]), math.log(max(largest, _RADII[0] + 1))))
    volume = math.pi * radius**2 if n == 2 else 4 / 3 * math.pi * radius**3
    count = rng.uniform(0.03, 0.5) * math.prod(shape) / volume
    return NucleiOptions(
        shape=shape,
        spacing_um=(1.0,) * n,
        n_nuclei=int(np.clip(count, 2, _MAX_NUCLEI)),
        radius_um=radius,
        radius_variation=rng.uniform(0.05, 0.35),
        elongation=rng.uniform(1.1, 2.2),
        deformation=rng.uniform(0, 0.12),
        touching_fraction=rng.uniform(0, 0.8),
        brightness_variation=rng.uniform(0.05, 0.7),
        texture=rng.uniform(0, 0.5),
        rounding=rng.uniform(0, 1),
        psf_sigma_um=(rng.uniform(0.3, 0.12 * radius + 0.7),) * n,
        haze=rng.uniform(0, 0.4),
        background=rng.uniform(0, 0.3),
        illumination=rng.uniform(0, 0.5),
        photons=math.exp(rng.uniform(math.log(8), math.log(600))),
        read_noise=rng.uniform(0, 4),
    )
