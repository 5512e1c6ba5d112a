"""From logits on the input's grid to labels: classes, regions, and averages of several models.

Examples:
    >>> decoder = Regions((1, 2))
    >>> logits = np.array([[[3.0, 3.0, -3.0]], [[-1.0, 2.0, -2.0]]], np.float32)
    >>> labels = np.empty((1, 3), np.uint8)
    >>> decoder.decode(logits, None, labels, np.empty((0, 1, 3), np.uint8))
    >>> labels.tolist()
    [[1, 2, 0]]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lamella.inference.confidence import leave_sigmoid, leave_spread, sigmoid, softmax
from lamella.inference.decode import Argmax, Decoder, label_dtype

if TYPE_CHECKING:
    from lamella.engines.nnunet.classes import ClassRule

__all__ = ["Regions", "Shares", "decoder_of"]

_SMALLEST = np.float32(1e-7)


class Regions:
    """Overlapping regions: each output by itself, later ones overwrite earlier ones.

    Args:
        values: label of each output.
        measures: how sure it was, one map each.
        has_spread: whether the last channel is the spread over mirrored copies.
    """

    def __init__(
        self, values: tuple[int, ...], *, measures: tuple[str, ...] = (), has_spread: bool = False
    ) -> None:
        self.n_outputs = len(values) + has_spread
        self.n_probabilities = len(measures)
        self.needs_weight = bool(measures)
        self.label_dtype = label_dtype(max(values))
        self._values = values
        self._measures = measures

    def decode(
        self,
        total: NDArray[np.float32],
        weight: NDArray[np.float32] | None,
        labels: NDArray[np.unsignedinteger],
        probabilities: NDArray[np.uint8],
    ) -> None:
        """Write the label of the last region that is there."""
        labels[...] = 0
        for channel, value in enumerate(self._values):
            np.copyto(labels, labels.dtype.type(value), where=total[channel] > 0)
        if weight is None or not self._measures:
            return
        share = sigmoid(total[: len(self._values)] / weight)
        leave_sigmoid(share, labels, self._measures, probabilities)
        leave_spread(total, weight, self._measures, probabilities)


def decoder_of(rule: ClassRule, measures: tuple[str, ...], *, has_spread: bool) -> Decoder:
    """The decoder of a model's outputs.

    Args:
        rule: what they mean.
        measures: maps of confidence to leave.
        has_spread: whether there is a channel more, the spread over mirrored copies.
    """
    if rule.has_regions:
        return Regions(rule.values, measures=measures, has_spread=has_spread)
    return Argmax(rule.n_outputs, measures=measures, has_spread=has_spread)


class Shares:
    """Probabilities of several models, averaged.

    Args:
        n_outputs: classes or regions.
        has_regions: sigmoid instead of softmax.
    """

    def __init__(self, n_outputs: int, *, has_regions: bool) -> None:
        self._n_outputs = n_outputs
        self._has_regions = has_regions

    def of(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities of logits (k, ...); a spread behind them is left out."""
        logits = logits[: self._n_outputs]
        if self._has_regions:
            return sigmoid(logits)
        return softmax(logits)

    def mean_logits(
        self, logits: NDArray[np.float32], others: list[NDArray[np.float16]]
    ) -> NDArray[np.float32]:
        """Logits whose probabilities are the mean of all models'.

        Args:
            logits: of the last model, (k, ...), perhaps with a spread behind them.
            others: probabilities of the models before it, (k, ...).
        """
        mean = self.of(logits)
        for share in others:
            mean += share
        mean *= np.float32(1.0 / (1 + len(others)))
        result = np.array(logits, np.float32)
        kept = result[: self._n_outputs]
        np.log(np.maximum(mean, _SMALLEST), out=kept)
        if self._has_regions:
            kept -= np.log(np.maximum(np.float32(1.0) - mean, _SMALLEST))
        return result
