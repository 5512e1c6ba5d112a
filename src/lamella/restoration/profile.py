"""Quality along z: slices that differ from their neighbours.

A slice is compared with the median of the slices around it, so that slow changes (bleaching, depth)
raise no alarm and a single bad section does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["SliceQuality", "flag_slices"]

_REACH = 5
"""Slices on each side that a slice is compared with."""
_NOISE_RATIO = 1.6
_SHARPNESS_RATIO = 0.5
_LEVEL_SHARE = 0.35
"""Change of the mean, in parts of the signal."""
_SIGNAL_RATIO = 0.15
_VISIBLE = 3.0
"""Signal over noise of the neighbours below which detail and contrast say nothing."""


@dataclass(frozen=True, slots=True)
class SliceQuality:
    """One slice of a volume.

    Attributes:
        z: its number.
        mean: mean intensity.
        noise_sigma: standard deviation of its noise.
        signal: p99 - p1 without the noise's share.
        sharpness: share of fine detail, 0..1.
        is_constant: whether it holds one value.
        flags: what is odd about it: empty, noisy, blurred, dark, bright, faint.
    """

    z: int
    mean: float
    noise_sigma: float
    signal: float
    sharpness: float
    is_constant: bool = False
    flags: tuple[str, ...] = ()


def flag_slices(slices: Sequence[SliceQuality], signal: float) -> tuple[SliceQuality, ...]:
    """Name what is odd about each slice.

    Args:
        slices: in the order of z.
        signal: range of the whole volume, the measure for changes of brightness.
    """
    if len(slices) < 5:
        return tuple(replace(s, flags=("empty",)) if s.is_constant else s for s in slices)
    full = np.array([not s.is_constant for s in slices])
    noise = _relative([s.noise_sigma for s in slices], full)
    sharpness = _relative([s.sharpness for s in slices], full)
    own = _relative([s.signal for s in slices], full)
    visible = _around(np.array([s.signal for s in slices]), full) > _VISIBLE * _around(
        np.array([s.noise_sigma for s in slices]), full
    )
    mean = np.array([s.mean for s in slices])
    shift = (mean - _around(mean, full)) / signal if signal > 0 else np.zeros(len(slices))
    flagged: list[SliceQuality] = []
    for k, entry in enumerate(slices):
        if entry.is_constant:
            flagged.append(replace(entry, flags=("empty",)))
            continue
        odd = {
            "noisy": noise[k] > _NOISE_RATIO,
            "blurred": visible[k] and sharpness[k] < _SHARPNESS_RATIO,
            "dark": shift[k] < -_LEVEL_SHARE,
            "bright": shift[k] > _LEVEL_SHARE,
            "faint": visible[k] and own[k] < _SIGNAL_RATIO,
        }
        flagged.append(replace(entry, flags=tuple(name for name, is_odd in odd.items() if is_odd)))
    return tuple(flagged)


def _relative(values: Sequence[float], full: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Each value over the median of its neighbours; 1 where that is 0."""
    table = np.asarray(values, np.float64)
    around = _around(table, full)
    return np.divide(table, around, out=np.ones_like(table), where=around > 0)


def _around(table: NDArray[np.float64], full: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Median over the neighbours of each slice, itself and constant ones left out."""
    result = table.copy()
    for k in range(len(table)):
        near = np.arange(max(0, k - _REACH), min(len(table), k + _REACH + 1))
        near = near[(near != k) & full[near]]
        if len(near):
            result[k] = np.median(table[near])
    return result
