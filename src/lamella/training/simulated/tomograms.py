"""Simulated tomograms as training data: microscope and sample drawn as widely as tomograms differ.

Signal and noise are kept apart, so that every patch gets noise of its own, at a signal-to-noise
ratio of its own. Some patches may be averaged over blocks of 2³ voxels: a network that has only
seen full resolution finds nothing in the coarse preview of a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.simulation.tomogram import TomogramOptions, simulate_tomogram
from lamella.training.simulated.scene import window
from lamella.volume.pyramid import downsample_mean

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["COARSE", "SPACING_NM", "TomogramScene", "coarse_labels", "draw_options"]

SPACING_NM = 1.0
COARSE = 2
"""Voxels along an axis that a coarse patch is averaged over."""
_COARSE_SHARE = 0.4
"""A coarse voxel is of a class where this share of its block is."""
_MIN_FOREGROUND = 0.01


class TomogramScene:
    """A :class:`lamella.training.simulated.scene.Scene`.

    Args:
        shape: (z, y, x).
        seed: same seed, same tomogram.
        snr: range of the signal-to-noise ratios, variance over variance.
        coarse_fraction: share of patches that are averaged.
        wanted: label values of the classes that are learnt; patches without any are drawn again
            once.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        seed: int,
        *,
        snr: tuple[float, float],
        coarse_fraction: float = 0.0,
        wanted: tuple[int, ...] = (1,),
    ) -> None:
        rng = np.random.default_rng(seed)
        made = simulate_tomogram(shape, seed=seed, options=draw_options(rng))
        noise = made.intensity - made.signal
        # Half precision: a hundred tomograms stay in memory.
        self._signal = (made.signal / made.signal.std()).astype(np.float16)
        self._noise = (noise / noise.std()).astype(np.float16)
        self._snr = snr
        self._coarse_fraction = coarse_fraction
        self._ratio = float(np.exp(rng.uniform(*np.log(snr))))
        self._is_wanted = np.isin(made.labels, wanted)
        self.labels: NDArray[Any] = made.labels

    @property
    def image(self) -> NDArray[np.float32]:
        """The whole tomogram at a signal-to-noise ratio of its own."""
        mixed = np.float32(np.sqrt(self._ratio)) * self._signal.astype(np.float32)
        return mixed + self._noise.astype(np.float32)

    def cut(
        self, rng: np.random.Generator, shape: tuple[int, ...]
    ) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """A patch with new noise, normalised, and its label values."""
        factor = COARSE if rng.random() < self._coarse_fraction else 1
        extent = tuple(n * factor for n in shape)
        where = window(rng, self._signal.shape, extent)
        if self._is_wanted[where].mean() < _MIN_FOREGROUND:
            where = window(rng, self._signal.shape, extent)
        ratio = np.exp(rng.uniform(*np.log(self._snr)))
        noise = self._noise[window(rng, self._signal.shape, extent)].astype(np.float32)
        # Mirrored noise is as good as new, and any mirror keeps the missing wedge where it is.
        noise = np.flip(noise, tuple(axis for axis in range(3) if rng.random() < 0.5))
        image = np.float32(np.sqrt(ratio)) * self._signal[where].astype(np.float32) + noise
        # As after z-scoring the whole tomogram, give or take: patches differ from their tomogram.
        image = image / image.std() * np.float32(np.exp(rng.normal(0, 0.1)))
        image += np.float32(rng.normal(0, 0.1)) - image.mean()
        labels = self.labels[where]
        if factor > 1:
            image = downsample_mean(image, (factor,) * 3)
            labels = coarse_labels(labels, factor)
        return np.ascontiguousarray(image, np.float32), labels.copy()


def coarse_labels(labels: NDArray[Any], factor: int) -> NDArray[Any]:
    """The class that fills most of a block, where it fills enough of it."""
    values = [int(value) for value in np.unique(labels) if value]
    result = np.zeros([n // factor for n in labels.shape], labels.dtype)
    best = np.full(result.shape, np.float32(_COARSE_SHARE))
    for value in values:
        share = downsample_mean((labels == value).astype(np.float32), (factor,) * 3)
        result[share >= best] = value
        np.maximum(best, share, out=best)
    return result


def draw_options(rng: np.random.Generator) -> TomogramOptions:
    """A microscope and a sample; the noise is as strong as the signal."""
    tilt = rng.uniform(45, 66)
    return TomogramOptions(
        spacing_nm=SPACING_NM,
        snr=1.0,
        tilt_range=(-tilt, tilt + rng.uniform(-4, 4)),
        defocus_um=rng.uniform(1.5, 5.0),
        amplitude_contrast=rng.uniform(0.05, 0.12),
        b_factor_nm2=rng.uniform(2.0, 12.0),
        is_phase_flipped=bool(rng.random() < 0.3),
        membrane_density=rng.uniform(0.8, 2.5),
        particle_density=rng.uniform(0.0, 2.0),
        microtubule_density=rng.uniform(0.0, 2.0),
        solute_density=rng.uniform(0.3, 2.0),
        double_fraction=rng.uniform(0.0, 0.4),
        vesicle_radius_nm=(11.0, 55.0),
        n_gold=int(rng.random() < 0.15),
        avoids_wedge=False,
    )
