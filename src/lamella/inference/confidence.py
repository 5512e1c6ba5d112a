"""How sure a network was of every voxel, from its logits alone: maps of 0..255 beside the labels.

Every measure is a number between 0 and 1 (``lamella.engines.engine.ConfidenceMaps`` names them)::

    probability   of the chosen class                        1 = sure
    margin        best minus second best probability         1 = sure
    entropy       of the classes' probabilities / log k      0 = sure
    tta_spread    of the chosen class's probability over     0 = sure
                  mirrored copies, a standard deviation

All are computed for the rows of one layer at a time, while these leave the band.

Examples:
    >>> maps = np.empty((3, 1, 2), np.uint8)
    >>> logits = np.array([[[0.0, 9.0]], [[0.0, -9.0]]], np.float32)
    >>> leave_softmax(logits, np.ones((1, 2), np.float32), MEASURES[:3], maps)
    >>> maps[:, 0].tolist()
    [[128, 255], [0, 255], [255, 0]]
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MEASURES",
    "SPREAD",
    "leave_foreground",
    "leave_sigmoid",
    "leave_softmax",
    "leave_spread",
    "measures_of",
    "sigmoid",
    "softmax",
    "to_uint8",
]

SPREAD = "tta_spread"
MEASURES: tuple[str, ...] = ("probability", "margin", "entropy", SPREAD)
"""What networks with class probabilities can leave, in this order."""

_TINY = np.float32(1e-12)


def measures_of(*, is_asked: bool, has_spread: bool) -> tuple[str, ...]:
    """The measures a run leaves: all where asked, the spread only with mirrored copies."""
    if not is_asked:
        return ()
    return MEASURES if has_spread else MEASURES[:3]


def leave_softmax(
    total: NDArray[np.float32],
    scale: NDArray[np.float32],
    measures: Sequence[str],
    maps: NDArray[np.uint8],
) -> None:
    """Measures of softmax classes.

    Args:
        total: weighted sums of logits, float32, (k, y, x).
        scale: sums of weights times temperature, float32, (y, x); positive.
        measures: any of ``probability``, ``margin``, ``entropy``; others are passed over.
        maps: receives one map a measure, (n_measures, y, x).
    """
    if not measures:
        return
    below = (total - total.max(axis=0)) / scale
    share = np.exp(below)
    norm = share.sum(axis=0)
    for name, out in zip(measures, maps, strict=True):
        if name == "probability":
            out[...] = to_uint8(np.reciprocal(norm))
        elif name == "margin":
            # The winner's share is exp(0) = 1.
            out[...] = to_uint8((np.float32(1.0) - _second(share)) / norm)
        elif name == "entropy":
            nats = np.log(norm) - np.einsum("kyx,kyx->yx", share, below) / norm
            out[...] = to_uint8(nats * np.float32(1.0 / math.log(max(2, len(total)))))


def leave_sigmoid(
    probability: NDArray[np.float32],
    labels: NDArray[np.unsignedinteger],
    measures: Sequence[str],
    maps: NDArray[np.uint8],
) -> None:
    """Measures of channels that are decided one by one, background where none is chosen.

    The background's probability is what the surest channel leaves, 1 - max p. The entropy is that
    of the channel nearest to one half: as unsure as the least sure of its decisions.

    Args:
        probability: of every channel, float32, (k, y, x).
        labels: what was chosen, 0 = none, (y, x).
        measures: as for :func:`leave_softmax`.
        maps: receives one map a measure, (n_measures, y, x).
    """
    if not measures:
        return
    best = probability.max(axis=0)
    none = np.float32(1.0) - best
    is_chosen = labels > 0
    chosen = np.where(is_chosen, best, none)
    for name, out in zip(measures, maps, strict=True):
        if name == "probability":
            out[...] = to_uint8(chosen)
        elif name == "margin":
            second = np.maximum(none, _second(probability)) if len(probability) > 1 else none
            out[...] = to_uint8(chosen - np.where(is_chosen, second, best))
        elif name == "entropy":
            away = np.abs(probability - np.float32(0.5)).min(axis=0)
            out[...] = to_uint8(_binary_entropy(away + np.float32(0.5)))


def leave_foreground(
    foreground: NDArray[np.float32],
    boundary: NDArray[np.float32] | None,
    labels: NDArray[np.unsignedinteger],
    measures: Sequence[str],
    maps: NDArray[np.uint8],
) -> None:
    """Measures of networks that tell foreground, and where they do, boundaries between objects.

    With boundaries a voxel is background (1 - f), inside an object f (1 - b) or between two f b;
    margin and entropy are those of the three, so a doubtful split counts as much as a doubtful
    outline. The probability is that of foreground (or background), whichever was chosen.

    Args:
        foreground: probability f, float32, (y, x).
        boundary: probability b, or None.
        labels: what was chosen, 0 = background, (y, x).
        measures: as for :func:`leave_softmax`.
        maps: receives one map a measure, (n_measures, y, x).
    """
    if boundary is None or not measures:
        leave_sigmoid(foreground[None], labels, measures, maps)
        return
    none = np.float32(1.0) - foreground
    between = foreground * boundary
    three = np.stack([none, foreground - between, between])
    for name, out in zip(measures, maps, strict=True):
        if name == "probability":
            out[...] = to_uint8(np.where(labels > 0, foreground, none))
        elif name == "margin":
            out[...] = to_uint8(three.max(axis=0) - _second(three))
        elif name == "entropy":
            nats = -(three * np.log(np.maximum(three, _TINY))).sum(axis=0)
            out[...] = to_uint8(nats * np.float32(1.0 / math.log(3)))


def leave_spread(
    total: NDArray[np.float32],
    weight: NDArray[np.float32] | None,
    measures: Sequence[str],
    maps: NDArray[np.uint8],
) -> None:
    """The weighted mean of the last channel, the spread over mirrored copies, where asked for.

    Args:
        total: weighted sums, float32, (k, y, x).
        weight: sums of weights, float32, (y, x); None where ``total`` holds means.
        measures: as for :func:`leave_softmax`.
        maps: receives one map a measure, (n_measures, y, x).
    """
    if SPREAD in measures:
        mean = total[-1] if weight is None else total[-1] / weight
        maps[list(measures).index(SPREAD)] = to_uint8(mean)


def softmax(
    logits: NDArray[np.float32], *, axis: int = 0, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Probabilities of logits along an axis, float32.

    Args:
        logits: float32, of any shape.
        axis: of the classes.
        out: receives them; may be ``logits`` itself.
    """
    share = np.subtract(logits, logits.max(axis=axis, keepdims=True), out=out)
    np.exp(share, out=share)
    share /= share.sum(axis=axis, keepdims=True)
    return share


def sigmoid(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probability of a logit, float32, of any shape."""
    # Clipped: exp(88) is the largest that float32 holds, and 40 is 1 - 1e-18 already.
    return np.reciprocal(np.float32(1.0) + np.exp(-np.clip(values, -40.0, 40.0)))


def to_uint8(share: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Numbers of 0..1 as 0..255, rounded; what lies outside is cut."""
    return np.rint(np.clip(share, 0.0, 1.0) * np.float32(255.0)).astype(np.uint8)


def _second(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The second largest along the first axis."""
    first, second = np.maximum(values[0], values[1]), np.minimum(values[0], values[1])
    for value in values[2:]:
        second = np.maximum(second, np.minimum(first, value))
        first = np.maximum(first, value)
    return second


def _binary_entropy(likely: NDArray[np.float32]) -> NDArray[np.float32]:
    """Entropy in bits of a decision whose likelier outcome has this probability."""
    rest = np.maximum(np.float32(1.0) - likely, _TINY)
    return -(likely * np.log2(likely) + rest * np.log2(rest))
