"""Deblurring by Richardson-Lucy iterations with total variation and a stopping rule.

Each iteration compares the image with the blurred guess and corrects the guess by the ratio,
blurred back. It conserves the sum of intensities and keeps them from falling below the black level;
left alone it would in the end sharpen the noise. Two things hold it back: a little total-variation
regularisation, and stopping where the blurred guess is nearest to the image without its noise. How
near it is nobody can see, but Stein's unbiased risk estimate says so: the misfit plus twice the
share of the noise that the guess follows, which is found by adding a little noise more and looking
how the result changes. (Stopping when the misfit reaches the noise stops far too early: what is
fitted to the noise makes the misfit smaller than that.) A blur that is taken for too wide never
explains the image; then it is over as soon as the misfit hardly falls. The number of iterations is
found once, on a few windows, and then used for every tile.

Source: W. Richardson (1972), L. Lucy (1974); total variation after N. Dey et al., "Richardson-Lucy
algorithm with total variation regularization for 3D confocal microscope deconvolution", Microscopy
Research and Technique 69 (2006); C. Stein (1981), in the Monte-Carlo form of S. Ramani et al.,
"Monte-Carlo SURE", IEEE Transactions on Image Processing 17 (2008).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.progress import Progress, ProgressSink
from lamella.restoration.noise import NoiseModel
from lamella.restoration.psf import PointSpread
from lamella.restoration.source import ChannelSource
from lamella.restoration.tiles import Triple
from lamella.volume.box import Box

__all__ = ["RichardsonLucy", "tune_iterations"]

MAX_ITERATIONS = 100
_TV = 0.002
"""Weight of total variation at strength 1."""
_SMALL = 1e-6
_HALO_REACHES = 3
"""Context in reaches of the point spread function; beyond it the influence of a voxel on the
result has fallen below a thousandth of the range (tested)."""
_PROBE = 0.1
"""Noise that is added to see what the result follows, in standard deviations of the image's own."""
_LEAST_FALL = 2e-4
"""Relative fall of the risk an iteration below which more of them are not worth it."""
_LEAST_FALL_OF_MISFIT = 0.005
"""The same of a misfit above the noise."""
_N_WINDOWS = 4
_WINDOW = (16, 192, 192)


@dataclass(frozen=True, slots=True)
class RichardsonLucy:
    """Deconvolution with its parameters fixed; a :class:`~lamella.restoration.tiles.Restorer`.

    Attributes:
        psf: what blurred the image.
        black: intensity of no light; the image is deconvolved above it.
        scale: brightness of the image above black, to which total variation relates.
        n_iterations: how many.
        strength: of the regularisation; more is smoother.
    """

    psf: PointSpread
    black: float
    scale: float
    n_iterations: int
    strength: float = 1.0

    @property
    def halo(self) -> Triple:
        """Three reaches of the point spread function and a margin."""
        z, y, x = (_HALO_REACHES * r + 4 if r else 1 for r in self.psf.reach)
        return z, y, x

    @property
    def alignment(self) -> Triple:
        """None needed."""
        return (1, 1, 1)

    @property
    def tile(self) -> Triple:
        """Large against the halo."""
        return (48, 256, 256) if self.psf.reach[0] else (4, 512, 512)

    @property
    def parameters(self) -> dict[str, Any]:
        """All there are."""
        return {
            **self.psf.parameters,
            "n_iterations": self.n_iterations,
            "strength": self.strength,
            "total_variation": _TV * self.strength,
            "black_level": self.black,
        }

    def apply(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Deblur a block, (z, y, x)."""
        image = self._above_black(block)
        guess = self._first(image)
        for _ in range(self.n_iterations):
            guess = self.step(guess, image)
        return guess * np.float32(self.scale) + np.float32(self.black)

    def step(self, guess: NDArray[np.float32], image: NDArray[np.float32]) -> NDArray[np.float32]:
        """One iteration, both relative to black and scale."""
        blurred = self.psf.blur(guess)
        ratio = (image / np.maximum(blurred, _SMALL)).astype(np.float32)
        correction = self.psf.blur_back(ratio)
        weight = _TV * self.strength
        if weight:
            correction /= np.maximum(np.float32(1) - np.float32(weight) * _curvature(guess), 0.5)
        return np.maximum(guess * correction, 0.0)

    def _above_black(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.maximum((block - np.float32(self.black)) / np.float32(self.scale), 0.0)

    def _first(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        # The image itself: closer than a constant, and never 0 where light was.
        return np.maximum(image, _SMALL)


class _Trial:
    """A window deblurred twice, as it is and with a little noise more."""

    def __init__(
        self, image: NDArray[np.float32], restorer: RichardsonLucy, noise: NoiseModel, seed: int
    ) -> None:
        self._restorer = restorer
        level = restorer.psf.blur(np.maximum(image, 0.0)) * restorer.scale + restorer.black
        least = max(noise.floor, (1e-4 * restorer.scale) ** 2)
        variance = np.maximum(noise.gain * level + noise.variance, least)
        self._sigma = (np.sqrt(variance) / restorer.scale).astype(np.float32)
        rng = np.random.default_rng(seed)
        self._probe = rng.standard_normal(image.shape, np.float32)
        self._images = [
            np.maximum(image + extra * self._sigma * self._probe, 0.0).astype(np.float32)
            for extra in (0.0, _PROBE)
        ]
        self._guesses = [np.maximum(image, _SMALL) for image in self._images]

    def step(self) -> tuple[float, float]:
        """One iteration more; misfit and risk after it, in variances of the noise."""
        restorer = self._restorer
        self._guesses = [
            restorer.step(guess, image)
            for guess, image in zip(self._guesses, self._images, strict=True)
        ]
        blurred, probed = (restorer.psf.blur(guess) for guess in self._guesses)
        misfit = np.mean(((blurred - self._images[0]) / self._sigma) ** 2)
        followed = np.mean(self._probe * (probed - blurred) / (_PROBE * self._sigma))
        return float(misfit), float(misfit + 2.0 * followed)


def tune_iterations(
    source: ChannelSource, restorer: RichardsonLucy, noise: NoiseModel, sink: ProgressSink
) -> int:
    """How many iterations bring the blurred guess nearest to the image without its noise.

    Args:
        source: the channel; a few windows of it are deblurred.
        restorer: with any number of iterations.
        noise: of the image.
        sink: progress and cancellation.

    Returns:
        1 to :data:`MAX_ITERATIONS`: the last before the risk rises or hardly falls, or before the
        misfit hardly falls while it is still above the noise.
    """
    trials = [
        _Trial(window, restorer, noise, seed)
        for seed, window in enumerate(_windows(source, restorer))
    ]
    misfit_before = risk_before = math.inf
    for iteration in range(1, MAX_ITERATIONS + 1):
        sink.check()
        misfit, risk = np.mean([trial.step() for trial in trials], axis=0)
        sink.emit(Progress("tune", iteration, MAX_ITERATIONS, "iterations"))
        is_stuck = misfit > 1.0 and misfit > misfit_before * (1.0 - _LEAST_FALL_OF_MISFIT)
        if is_stuck or risk > risk_before * (1.0 - _LEAST_FALL):
            return max(1, iteration - 1)
        misfit_before, risk_before = misfit, risk
    return MAX_ITERATIONS


def _windows(source: ChannelSource, restorer: RichardsonLucy) -> list[NDArray[np.float32]]:
    """The brightest of the windows on a coarse grid, relative to black and scale."""
    size = tuple(min(w, n) for w, n in zip(_WINDOW, source.shape, strict=True))
    starts = [
        sorted({int(v) for v in np.linspace(0, n - s, 3).round()})
        for n, s in zip(source.shape, size, strict=True)
    ]
    found: list[tuple[float, NDArray[np.float32]]] = []
    for z in starts[0]:
        for y in starts[1]:
            for x in starts[2]:
                stop = tuple(a + s for a, s in zip((z, y, x), size, strict=True))
                block = source.read(Box((z, y, x), stop))
                found.append((float(block.std(dtype=np.float64)), block))
    found.sort(key=lambda entry: -entry[0])
    return [
        (block - np.float32(restorer.black)) / np.float32(restorer.scale)
        for _, block in found[:_N_WINDOWS]
    ]


def _curvature(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Divergence of the normalised gradient: what total variation pushes against."""
    axes = [axis for axis, n in enumerate(image.shape) if n > 1]
    forward = []
    for axis in axes:
        step = np.zeros_like(image)
        inner = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
        step[inner] = np.diff(image, axis=axis)
        forward.append(step)
    length = np.sqrt(sum((step * step for step in forward), np.float32(1e-4)))
    total = np.zeros_like(image)
    for axis, step in zip(axes, forward, strict=True):
        unit = step / length
        total += unit
        later = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
        earlier = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
        total[later] -= unit[earlier]
    return total
