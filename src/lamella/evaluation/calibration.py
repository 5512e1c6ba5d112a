"""Whether probabilities are honest, and the temperature that makes them so.

A network that says 0.9 should be right nine times of ten. The *reliability curve* compares the two
in bins of confidence, the *expected calibration error* is their mean difference weighted by the
voxels of each bin, and *temperature scaling* divides all logits by one number, fitted on held-out
data, which changes no label. Voxels arrive in any pieces; nothing of their number is kept.

Sources: Guo, Pleiss, Sun, Weinberger, "On calibration of modern neural networks" (ICML 2017); for
the binned error Naeini, Cooper, Hauskrecht (AAAI 2015).

Examples:
    >>> curve = Reliability()
    >>> curve.add(np.array([0.95, 0.95, 0.65, 0.65]), np.array([True, True, True, False]))
    >>> round(curve.expected_error, 3)
    0.1
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lamella.core.errors import InputError

__all__ = ["Reliability", "ReliabilityBin", "Temperature", "fit_temperature"]

LogitBlock = tuple[NDArray[np.floating], NDArray[np.integer]]
"""Logits (k, ...) and the true class of every voxel (...)."""

_GOLDEN = (5**0.5 - 1) / 2
_CHUNK = 1 << 18


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """One bin of a reliability curve.

    Attributes:
        low: smallest confidence in it.
        high: largest.
        n: voxels.
        confidence: their mean confidence; nan where there are none.
        accuracy: share of them that is right; nan where there are none.
    """

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


class Reliability:
    """A reliability curve that grows piece by piece.

    Args:
        n_bins: bins of equal width between 0 and 1.
    """

    def __init__(self, *, n_bins: int = 15) -> None:
        if n_bins < 1:
            raise InputError(f"{n_bins} bins are none", hint="15 are usual")
        self._n = np.zeros(n_bins, np.int64)
        self._confidence = np.zeros(n_bins)
        self._right = np.zeros(n_bins, np.int64)

    def add(
        self, confidence: ArrayLike, is_right: ArrayLike, *, ignore: ArrayLike | None = None
    ) -> None:
        """Add voxels.

        Args:
            confidence: probability of the chosen class, 0..1 (or uint8, 255 = 1.0), any shape.
            is_right: whether the chosen class is the true one, bool, the same shape.
            ignore: voxels that do not count, bool, the same shape.

        Raises:
            InputError: for confidences outside of 0..1, or shapes that differ.
        """
        sure, right = np.asarray(confidence), np.asarray(is_right, bool)
        if sure.dtype == np.uint8:
            sure = sure / 255.0
        if sure.shape != right.shape:
            raise InputError(
                f"confidence has shape {sure.shape}, right or wrong {right.shape}",
                hint="give both on the same grid",
            )
        sure, right = sure.ravel().astype(np.float64), right.ravel()
        if ignore is not None:
            counts = ~np.asarray(ignore, bool).ravel()
            sure, right = sure[counts], right[counts]
        if sure.size == 0:
            return
        if not (sure.min() >= 0.0 and sure.max() <= 1.0):
            raise InputError(
                f"confidence ranges from {sure.min():g} to {sure.max():g}, expected 0 to 1",
                hint="give probabilities, not logits",
            )
        n_bins = len(self._n)
        which = np.minimum((sure * n_bins).astype(np.int64), n_bins - 1)
        self._n += np.bincount(which, minlength=n_bins)
        self._confidence += np.bincount(which, weights=sure, minlength=n_bins)
        self._right += np.bincount(which[right], minlength=n_bins)

    @property
    def n(self) -> int:
        """Voxels that count."""
        return int(self._n.sum())

    @property
    def bins(self) -> tuple[ReliabilityBin, ...]:
        """The curve."""
        n = len(self._n)
        return tuple(
            ReliabilityBin(
                k / n,
                (k + 1) / n,
                int(self._n[k]),
                float(self._confidence[k] / self._n[k]) if self._n[k] else float("nan"),
                float(self._right[k] / self._n[k]) if self._n[k] else float("nan"),
            )
            for k in range(n)
        )

    @property
    def expected_error(self) -> float:
        """Mean of |confidence - accuracy| over voxels; nan without any."""
        if self.n == 0:
            return float("nan")
        return float(np.abs(self._confidence - self._right).sum() / self.n)

    @property
    def greatest_error(self) -> float:
        """Largest |confidence - accuracy| of a bin with voxels; nan without any."""
        used = self._n > 0
        if not used.any():
            return float("nan")
        gaps = np.abs(self._confidence[used] - self._right[used]) / self._n[used]
        return float(gaps.max())


@dataclass(frozen=True, slots=True)
class Temperature:
    """A fitted temperature.

    Attributes:
        value: logits are divided by it; above 1 where the network was too sure.
        loss_before: mean negative log-likelihood per voxel at temperature 1, nats.
        loss_after: the same at ``value``.
        n: voxels it was fitted on.
    """

    value: float
    loss_before: float
    loss_after: float
    n: int


def fit_temperature(
    blocks: Callable[[], Iterable[LogitBlock]],
    *,
    ignore_label: int | None = None,
    bounds: tuple[float, float] = (0.05, 20.0),
    tolerance: float = 1e-3,
) -> Temperature:
    """The temperature with the least negative log-likelihood on held-out voxels.

    The loss is convex in 1 / temperature, so a golden-section search over its logarithm finds the
    minimum. Every step evaluates all blocks once; nothing is kept between them. One channel of
    logits is a sigmoid (class 1 or 0), several are a softmax.

    Args:
        blocks: gives the held-out blocks, anew each time it is called: logits, float, (k, ...), and
            the true class of every voxel, integer, (...).
        ignore_label: true class of voxels that do not count.
        bounds: temperatures between which the minimum is looked for.
        tolerance: relative precision of the result.

    Raises:
        InputError: for blocks whose shapes differ, classes that the logits lack, or no voxels.

    Examples:
        >>> logits = np.array([[4.0, 4.0, 4.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
        >>> truth = np.array([0, 0, 0, 1])
        >>> round(fit_temperature(lambda: [(logits, truth)]).value, 2)
        3.64
    """
    low, high = np.log(bounds[0]), np.log(bounds[1])
    at = (high - _GOLDEN * (high - low), low + _GOLDEN * (high - low))
    # Two temperatures a pass, and the first pass also tells the loss as it is.
    losses, n = _losses(blocks, (1.0, *np.exp(at)), ignore_label)
    if n == 0:
        raise InputError(
            "there is no voxel to fit a temperature on",
            hint="every one is ignored, or there are no blocks",
        )
    before, left, right = losses
    while high - low > tolerance:
        if left <= right:
            high, at = at[1], (at[1] - _GOLDEN * (at[1] - low), at[0])
            right = left
            left = _losses(blocks, (np.exp(at[0]),), ignore_label)[0][0]
        else:
            low, at = at[0], (at[1], at[0] + _GOLDEN * (high - at[0]))
            left = right
            right = _losses(blocks, (np.exp(at[1]),), ignore_label)[0][0]
    value = float(np.exp((low + high) / 2))
    after = _losses(blocks, (value,), ignore_label)[0][0]
    return Temperature(value, before / n, after / n, n)


def _losses(
    blocks: Callable[[], Iterable[LogitBlock]],
    temperatures: Sequence[float],
    ignore_label: int | None,
) -> tuple[list[float], int]:
    """Sums of the negative log-likelihood at several temperatures, and the voxels that count."""
    total, n = [0.0] * len(temperatures), 0
    for logits, truth in blocks():
        values, classes = _flat(logits, truth, ignore_label)
        n += len(classes)
        for start in range(0, len(classes), _CHUNK):
            part = slice(start, start + _CHUNK)
            for k, temperature in enumerate(temperatures):
                total[k] += _loss(values[:, part] / temperature, classes[part])
    return total, n


def _flat(
    logits: NDArray[np.floating], truth: NDArray[np.integer], ignore_label: int | None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    if logits.shape[1:] != truth.shape:
        raise InputError(
            f"logits have shape {logits.shape}, classes {truth.shape}: expected (k, ...) and (...)"
        )
    values = logits.reshape(logits.shape[0], -1).astype(np.float64)
    classes = truth.ravel().astype(np.int64)
    if ignore_label is not None:
        counts = classes != ignore_label
        values, classes = values[:, counts], classes[counts]
    if len(values) == 1:
        values = np.concatenate([np.zeros_like(values), values])
    if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < len(values):
        raise InputError(
            f"classes range from {classes.min()} to {classes.max()}, the logits have"
            f" {len(values)} of them",
            hint="name the label that does not count with ignore_label",
        )
    return values, classes


def _loss(scaled: NDArray[np.float64], classes: NDArray[np.int64]) -> float:
    top = scaled.max(axis=0)
    log_sum = top + np.log(np.exp(scaled - top).sum(axis=0))
    return float((log_sum - np.take_along_axis(scaled, classes[None], axis=0)[0]).sum())
