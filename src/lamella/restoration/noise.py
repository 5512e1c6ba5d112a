"""How much noise an image carries, and how it grows with the signal.

The noise is read off a residual from which smooth signal has gone: the product of two second
differences, ``[1, -2, 1]`` along y times ``[1, -2, 1]`` along x, which is blind to planes, ramps
and straight edges along the axes. Its median absolute deviation ignores the few places where
structure is left. Offset drops out, gain scales it: both by construction.

Source: J. Immerkær, "Fast noise variance estimation", Computer Vision and Image Understanding 64
(1996), with the median in place of the mean (D. Donoho, "De-noising by soft-thresholding", 1995).

Examples:
    >>> import numpy as np
    >>> plane = np.random.default_rng(0).normal(100, 7, (256, 256)).astype(np.float32)
    >>> round(noise_sigma(plane))
    7
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["NoiseModel", "NoiseSample", "fit_noise_model", "noise_sigma", "sample_noise"]

MAD_TO_SIGMA = 1.4826
"""Median absolute deviation → standard deviation, for Gaussian noise."""
_KERNEL_NORM = 6.0
"""Root of the sum of squares of the kernel: white noise keeps its standard deviation."""
_N_BINS = 24
_MIN_PER_BIN = 64
_N_ROUNDS = 6


@dataclass(frozen=True, slots=True)
class NoiseSample:
    """Pairs of what an image shows and how it scatters there.

    Attributes:
        level: local mean intensity, float32, (n,).
        residual: absolute residual, in the image's unit, float32, (n,).
    """

    level: NDArray[np.float32]
    residual: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class NoiseModel:
    """Variance of the noise as a straight line over the intensity (Poisson-Gaussian noise).

    Attributes:
        gain: growth of the variance with the intensity; for a counting detector the intensity of
            one count. 0 for noise that is the same everywhere.
        variance: variance at intensity 0 (the line's; negative where the black level lies above).
        floor: smallest variance believed, that of the darkest part.
    """

    gain: float
    variance: float
    floor: float

    def sigma_at(self, intensity: float) -> float:
        """Standard deviation of the noise where the image has this intensity."""
        return float(np.sqrt(max(self.gain * intensity + self.variance, self.floor, 0.0)))

    @property
    def is_signal_dependent(self) -> bool:
        """Whether the noise grows with the signal at all."""
        return self.gain > 0.0


def noise_sigma(plane: NDArray[np.float32]) -> float:
    """Standard deviation of the noise of a plane, as if it were the same everywhere.

    Noise that is correlated from pixel to pixel (interpolated, filtered images) is underestimated.

    Args:
        plane: float, (y, x), at least 3 x 3; places without any variation (padding, saturation)
            do not count.

    Returns:
        In the unit of the intensities; 0 for an image without variation.
    """
    residual = sample_noise(plane, n_samples=plane.size).residual
    return MAD_TO_SIGMA * float(np.median(residual)) if residual.size else 0.0


def sample_noise(plane: NDArray[np.float32], *, n_samples: int) -> NoiseSample:
    """Local mean and residual at about ``n_samples`` places on a regular grid.

    Args:
        plane: float, (y, x).
        n_samples: how many at most.
    """
    from scipy.ndimage import uniform_filter

    center = plane - plane.mean(dtype=np.float64).astype(np.float32)
    along_y = center[:-2] - 2 * center[1:-1] + center[2:]
    residual = np.abs(along_y[:, :-2] - 2 * along_y[:, 1:-1] + along_y[:, 2:]) / _KERNEL_NORM
    level = uniform_filter(plane, 5, mode="mirror")[1:-1, 1:-1]
    varies = _varies(plane)
    residual, level = residual[varies], level[varies]
    step = max(1, -(-residual.size // max(1, n_samples)))
    # An odd stride does not run along with rows of an even length.
    step |= 1 if step > 2 else step
    return NoiseSample(level[::step].astype(np.float32), residual[::step].astype(np.float32))


def fit_noise_model(sample: NoiseSample) -> NoiseModel:
    """The line of variance over intensity that fits the noise of an image.

    The residual's spread is taken in bins of intensity and the line fitted by reweighted least
    squares, each bin weighted by its count and discounted when structure makes it stand out. A
    line that falls, or that explains little, is replaced by a constant.

    Source: A. Foi et al., "Practical Poissonian-Gaussian noise modeling and fitting for single-image
    raw-data", IEEE Transactions on Image Processing 17 (2008), simplified.

    Args:
        sample: of all planes together.
    """  # noqa: E501
    if sample.level.size < _MIN_PER_BIN:
        return NoiseModel(0.0, 0.0, 0.0)
    level, variance, count = _binned(sample)
    everywhere = (MAD_TO_SIGMA * float(np.median(sample.residual))) ** 2
    if len(level) < 4:
        return NoiseModel(0.0, everywhere, everywhere)
    gain, at_zero = _fit_line(level, variance, count)
    rise = gain * (level[-1] - level[0])
    if gain <= 0 or rise < everywhere:
        return NoiseModel(0.0, everywhere, everywhere)
    floor = max(0.25 * float(variance[: max(2, len(level) // 8)].min()), 0.0)
    return NoiseModel(gain, at_zero, floor)


def _varies(plane: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where the 3 x 3 neighbourhood is not all one value, for the inner pixels."""
    from scipy.ndimage import maximum_filter, minimum_filter

    spread = maximum_filter(plane, 3) > minimum_filter(plane, 3)
    return spread[1:-1, 1:-1]


def _binned(sample: NoiseSample) -> tuple[NDArray[np.float64], ...]:
    """Level, variance and count of bins that are evenly spaced over the central intensities."""
    low, high = np.quantile(sample.level, (0.002, 0.998))
    edges = np.linspace(low, high, _N_BINS + 1)
    at = np.digitize(sample.level, edges[1:-1])
    order = np.argsort(at, kind="stable")
    bounds = np.searchsorted(at[order], np.arange(_N_BINS + 1))
    rows = []
    for a, b in itertools.pairwise(bounds):
        if b - a < _MIN_PER_BIN:
            continue
        inside = order[a:b]
        sigma = MAD_TO_SIGMA * float(np.median(sample.residual[inside]))
        rows.append((float(sample.level[inside].mean(dtype=np.float64)), sigma**2, float(b - a)))
    table = np.array(rows, np.float64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]


def _fit_line(
    level: NDArray[np.float64], variance: NDArray[np.float64], count: NDArray[np.float64]
) -> tuple[float, float]:
    """Slope and intercept by reweighted least squares; robust against bins full of structure."""
    design = np.stack([level, np.ones_like(level)], axis=1)
    expected = np.maximum(variance, 1e-12 * max(1e-300, float(variance.max())))
    trust = np.ones_like(level)
    gain = at_zero = 0.0
    for _ in range(_N_ROUNDS):
        # A variance estimated from n residuals scatters in proportion to itself, over root n.
        root = np.sqrt(np.minimum(count, 4096.0)) / expected * trust
        (gain, at_zero), *_ = np.linalg.lstsq(design * root[:, None], variance * root, rcond=None)
        fitted = np.maximum(gain * level + at_zero, 0.05 * float(np.median(variance)) + 1e-300)
        excess = np.abs(variance - fitted) / fitted
        trust = 1.0 / np.maximum(1.0, excess / 0.25)
        expected = fitted
    return float(gain), float(at_zero)
