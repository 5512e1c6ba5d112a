"""How sharp an image is, from the power spectrum of its tiles with the noise taken off.

Blur takes fine detail away, noise adds power at all frequencies alike. So the noise floor is read
where no detail is left (the corners of the spectrum) and subtracted, and sharpness is the share of
the remaining energy that belongs to fine detail. It does not change with offset or gain, falls with
every blur, and noise does not raise it. (The variance of the Laplacian does the opposite: noise
makes it large.)

A second number says how wide the blur is: the fall of a spectrum is taken as that of an ordinary
scene, ``f^-alpha``, times that of a Gaussian, ``exp(-(2 pi sigma f)^2)``.

Frequencies are in cycles per pixel; 0.5 is the finest a grid can hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["TILE", "AxisSpectrum", "SpectrumSum"]

TILE = 128
"""Side of the square tiles whose spectra are averaged, in pixels."""
LOW, FINE, HIGH = 0.02, 0.1, 0.4
"""Bands: structure from ``LOW`` up; detail finer than ``1 / FINE`` = 10 pixels counts as fine."""
_CORNER = 0.35
_MIN_BINS = 6
_DYNAMIC_RANGE = 1e-4
"""Power below this share of the strongest is leakage of the window and rounding."""
_FALL, _FALL_TOLERANCE = 2.5, 0.6
"""How power falls with frequency in sharp images (2.0 to 3.2 over those looked at)."""


@dataclass(frozen=True, slots=True)
class AxisSpectrum:
    """Power over frequency along one axis (or over all directions), noise included.

    Attributes:
        frequency: cycles per pixel, ascending, (n,).
        power: mean power density; white noise of standard deviation s gives s² everywhere.
        floor: power of the noise.
        n_tiles: tiles averaged.
    """

    frequency: NDArray[np.float64]
    power: NDArray[np.float64]
    floor: float
    n_tiles: int

    @property
    def signal(self) -> NDArray[np.float64]:
        """Power without the noise, ≥ 0."""
        return np.maximum(self.power - self.floor, 0.0)

    @property
    def sharpness(self) -> float:
        """Share of the energy in fine detail, 0..1; high is sharp, 0 where noise hides it all."""
        energy = self.signal * self.frequency  # a ring holds as many waves as it is long
        in_all = (self.frequency >= LOW) & (self.frequency < HIGH)
        total = float(energy[in_all].sum())
        if total <= 0:
            return 0.0
        return float(energy[in_all & (self.frequency >= FINE)].sum()) / total

    @property
    def cutoff(self) -> float:
        """Frequency up to which the signal stands above the noise; 0 where it never does."""
        inside = self._visible()
        return float(self.frequency[inside[-1]]) if len(inside) else 0.0

    @property
    def blur_sigma(self) -> float | None:
        """Width of the blur as the sigma of a Gaussian, in pixels; None where noise hides it."""
        inside = self._visible()
        if len(inside) < _MIN_BINS:
            return None
        frequency, signal = self.frequency[inside], self.signal[inside]
        # log S = c - alpha log f - (2 pi sigma f)², with alpha held near that of ordinary scenes.
        weight = np.sqrt(frequency)
        design = np.stack(
            [np.ones_like(frequency), -np.log(frequency), -((2 * np.pi * frequency) ** 2)], axis=1
        )
        prior = np.array([[0.0, 1.0 / _FALL_TOLERANCE, 0.0]])
        rows = np.concatenate([design * weight[:, None], prior])
        values = np.concatenate([np.log(signal) * weight, [_FALL / _FALL_TOLERANCE]])
        solution, *_ = np.linalg.lstsq(rows, values, rcond=None)
        return float(np.sqrt(max(solution[2], 0.0)))

    def _visible(self) -> NDArray[np.intp]:
        """Bins from ``LOW`` on, without a gap, whose signal stands above noise and leakage."""
        signal = self.signal
        usable = (self.frequency >= LOW) & (self.frequency < 0.46)
        if not usable.any():
            return np.zeros(0, np.intp)
        strongest = float(signal[usable].max())
        usable &= signal > max(self.floor, _DYNAMIC_RANGE * strongest, 1e-300)
        bins = np.flatnonzero(usable)
        if not len(bins):
            return bins
        gap = np.flatnonzero(np.diff(bins) > 1)
        return bins[: gap[0] + 1] if len(gap) else bins


@dataclass
class SpectrumSum:
    """Adds up the spectra of tiles; cheap to keep, whatever the size of the image.

    Args:
        tile: extent of the tiles along the two axes, in pixels.
    """

    tile: tuple[int, int]
    power: NDArray[np.float64] = field(init=False)
    n_tiles: int = 0

    def __post_init__(self) -> None:
        self.power = np.zeros((self.tile[0], self.tile[1] // 2 + 1))
        window = np.multiply.outer(*(np.hanning(n + 2)[1:-1] for n in self.tile))
        self._window = (window / np.sqrt((window**2).sum())).astype(np.float32)
        self._share = (window / window.sum()).astype(np.float32)

    @classmethod
    def for_plane(cls, shape: Sequence[int]) -> SpectrumSum:
        """With tiles that fit into planes of this shape."""
        return cls((min(TILE, shape[0]), min(TILE, shape[1])))

    def add_plane(self, plane: NDArray[np.float32]) -> None:
        """Add the tiles of a plane, each half over its neighbours."""
        starts = [_starts(n, t) for n, t in zip(plane.shape, self.tile, strict=True)]
        views = [
            plane[a : a + self.tile[0], b : b + self.tile[1]] for a in starts[0] for b in starts[1]
        ]
        self.add_tiles(views)

    def add_tiles(self, tiles: Iterable[NDArray[np.float32]]) -> None:
        """Add tiles of the right extent."""
        from scipy.fft import rfft2

        for tile in tiles:
            level = np.float32((tile * self._share).sum(dtype=np.float64))
            self.power += np.abs(np.asarray(rfft2((tile - level) * self._window))) ** 2
            self.n_tiles += 1

    def merge(self, other: SpectrumSum) -> None:
        """Add what another sum of the same tile holds."""
        self.power += other.power
        self.n_tiles += other.n_tiles

    def radial(self) -> AxisSpectrum:
        """Averaged over all directions."""
        return self._averaged(None)

    def along(self, axis: int) -> AxisSpectrum:
        """Averaged over directions within 45 degrees of an axis of the tiles (0 or 1)."""
        return self._averaged(axis)

    def _averaged(self, axis: int | None) -> AxisSpectrum:
        fy = np.abs(np.fft.fftfreq(self.tile[0]))[:, None]
        fx = np.abs(np.fft.rfftfreq(self.tile[1]))[None, :]
        power = self.power / max(1, self.n_tiles)
        # Every column but the first (and the last of an even tile) stands for two.
        twice = np.broadcast_to(np.where((fx == 0) | (fx == 0.5), 1.0, 2.0), power.shape)
        radius = np.hypot(fy, fx)
        inside = radius < 0.5
        if axis is not None:
            inside = inside & ((fy >= fx) if axis == 0 else (fx >= fy))
        n_bins = max(4, min(self.tile) // 2)
        at = np.minimum((radius * 2 * n_bins).astype(np.intp), n_bins - 1)
        weight = (twice * inside).ravel()
        count = np.bincount(at.ravel(), weight, n_bins)
        known = count > 0
        total = np.bincount(at.ravel(), weight * power.ravel(), n_bins)
        mean_radius = np.bincount(at.ravel(), weight * radius.ravel(), n_bins)
        return AxisSpectrum(
            frequency=mean_radius[known] / count[known],
            power=total[known] / count[known],
            floor=self._floor(power, fy, fx),
            n_tiles=self.n_tiles,
        )

    def _floor(self, power: NDArray[np.float64], fy: NDArray[Any], fx: NDArray[Any]) -> float:
        """Power in the corners, finer along both axes than nearly all detail."""
        corner = power[(fy > _CORNER) & (fx > _CORNER)]
        # Few tiles scatter like an exponential distribution, whose median is ln 2 of its mean.
        scale = np.log(2.0) + (1.0 - np.log(2.0)) * (1.0 - 1.0 / max(1, self.n_tiles))
        return float(np.median(corner)) / scale if corner.size else 0.0


def _starts(length: int, tile: int) -> list[int]:
    count = max(1, -(-(length - tile) // max(1, tile // 2)) + 1)
    return sorted({int(v) for v in np.linspace(0, length - tile, count).round()})
