"""From a bundle's logits to labels, on its own grid or brought back to the input's first.

Where a bundle interpolates *probabilities* back to the image's grid (the usual ``Activationsd`` →
``Invertd`` → ``AsDiscreted``), they are made from the logits of each finished layer by
:func:`shares`, and the decoders here decide by them.

Examples:
    >>> logits = np.array([[[[0.0]]], [[[np.log(3.0)]]]], np.float32)
    >>> shares(logits, "softmax", n=2).ravel().round(2).tolist()
    [0.25, 0.75]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lamella.inference.confidence import (
    leave_sigmoid,
    leave_softmax,
    leave_spread,
    sigmoid,
    softmax,
)
from lamella.inference.decode import Argmax, Decoder, Threshold, label_dtype, pick_largest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.engines.monai.output import Output

__all__ = ["build_decoder", "shares"]

_SMALLEST = np.float32(1e-7)


def build_decoder(
    output: Output,
    *,
    n: int,
    drops_first: bool,
    is_resampled: bool,
    measures: tuple[str, ...] = (),
    has_spread: bool = False,
) -> Decoder:
    """The decoder of a bundle.

    Args:
        output: how logits become labels.
        n: channels of the network.
        drops_first: channel 0 is background and decides nothing (thresholds only).
        is_resampled: whether it is given what was brought back to the input's grid.
        measures: maps of confidence to leave.
        has_spread: whether there is a channel more, the spread over mirrored copies.
    """
    takes_shares = is_resampled and output.resampled == "probabilities"
    if output.threshold is None:
        if takes_shares:
            return _ArgmaxShares(n, measures=measures, has_spread=has_spread)
        return Argmax(n, measures=measures, has_spread=has_spread)
    n_classes = n - 1 if drops_first else n
    decoder: Decoder
    if takes_shares:
        decoder = _ThresholdShares(
            n_classes, threshold=output.threshold, measures=measures, has_spread=has_spread
        )
    else:
        # Without an activation the threshold is one of logits.
        limit = output.threshold
        if output.activation == "none":
            limit = float(sigmoid(np.array([limit], np.float32))[0])
        decoder = Threshold(n_classes, threshold=limit, measures=measures, has_spread=has_spread)
    return _WithoutFirst(decoder) if drops_first else decoder


def shares(logits: NDArray[np.float32], activation: str, *, n: int) -> NDArray[np.float32]:
    """Probabilities of logits; what lies behind the first ``n`` channels stays as it is.

    Args:
        logits: float32, (k, ...).
        activation: ``softmax`` or ``sigmoid``.
        n: channels of the network.
    """
    result = np.array(logits, np.float32)
    own = result[:n]
    if activation == "softmax":
        softmax(own, out=own)
    else:
        own[...] = sigmoid(own)
    return result


class _ArgmaxShares:
    """Softmax probabilities: the largest wins."""

    def __init__(self, n: int, *, measures: tuple[str, ...], has_spread: bool) -> None:
        self._plain = Argmax(n, has_spread=has_spread)
        self._n = n
        self._measures = measures
        self.n_outputs = self._plain.n_outputs
        self.n_probabilities = len(measures)
        self.needs_weight = bool(measures)
        self.label_dtype = self._plain.label_dtype

    def decode(
        self,
        total: NDArray[np.float32],
        weight: NDArray[np.float32] | None,
        labels: NDArray[np.unsignedinteger],
        probabilities: NDArray[np.uint8],
    ) -> None:
        """Pick the largest channel."""
        self._plain.decode(total, None, labels, probabilities)
        if not self._measures:
            return
        logits = np.log(np.maximum(total[: self._n], _SMALLEST))
        scale = np.ones(labels.shape, np.float32)
        leave_softmax(logits, scale, self._measures, probabilities)
        leave_spread(total, None, self._measures, probabilities)


class _ThresholdShares:
    """Sigmoid probabilities: the highest above a threshold."""

    def __init__(
        self, n: int, *, threshold: float, measures: tuple[str, ...], has_spread: bool
    ) -> None:
        self._n = n
        self._limit = np.float32(threshold)
        self._measures = measures
        self.n_outputs = n + has_spread
        self.n_probabilities = len(measures)
        self.needs_weight = bool(measures)
        self.label_dtype = label_dtype(n)

    def decode(
        self,
        total: NDArray[np.float32],
        weight: NDArray[np.float32] | None,
        labels: NDArray[np.unsignedinteger],
        probabilities: NDArray[np.uint8],
    ) -> None:
        """Pick the largest channel above the threshold."""
        limit = np.full(labels.shape, self._limit, np.float32)
        pick_largest(total[: self._n], limit, labels)
        leave_sigmoid(total[: self._n], labels, self._measures, probabilities)
        leave_spread(total, None, self._measures, probabilities)


class _WithoutFirst:
    """A decoder that does not see channel 0."""

    def __init__(self, inner: Decoder) -> None:
        self._inner = inner
        self.n_outputs = inner.n_outputs + 1
        self.n_probabilities = inner.n_probabilities
        self.needs_weight = inner.needs_weight
        self.label_dtype = inner.label_dtype

    def decode(
        self,
        total: NDArray[np.float32],
        weight: NDArray[np.float32] | None,
        labels: NDArray[np.unsignedinteger],
        probabilities: NDArray[np.uint8],
    ) -> None:
        """Decide by the other channels."""
        self._inner.decode(total[1:], weight, labels, probabilities)
