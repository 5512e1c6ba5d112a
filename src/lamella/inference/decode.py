"""How summed logits of a finished layer become labels (and probabilities, where asked for).

Decoders work on *weighted sums* of logits: the sign and the largest of several sums are those of
the means, so labels need no division. Probabilities are taken from the mean logits.

Examples:
    >>> total = np.array([[[0.0, 2.0]], [[1.0, -1.0]]], np.float32)
    >>> labels = np.empty((1, 2), np.uint8)
    >>> Argmax(2).decode(total, None, labels, np.empty((0, 1, 2), np.uint8))
    >>> labels.tolist()
    [[1, 0]]
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import ModelError

__all__ = ["Argmax", "Decoder", "Foreground", "Threshold"]


class Decoder(Protocol):
    """Turns the logits of finished layers into labels.

    Contract:
        * ``decode`` writes every element of ``labels`` and ``probabilities``; it may not change
          ``total`` or ``weight``; each (y, x) position depends on itself alone.
    """

    @property
    def n_outputs(self) -> int:
        """Channels of the network's output."""
        ...

    @property
    def n_probabilities(self) -> int:
        """Probability maps left beside the labels."""
        ...

    @property
    def needs_weight(self) -> bool:
        """Whether ``decode`` wants the sums of weights."""
        ...

    @property
    def label_dtype(self) -> np.dtype[np.unsignedinteger]:
        """Type of the labels."""
        ...

    def decode(
        self,
        total: NDArray[np.float32],
        weight: NDArray[np.float32] | None,
        labels: NDArray[np.unsignedinteger],
        probabilities: NDArray[np.uint8],
    ) -> None:
        """Decode part of a layer.

        Args:
            total: weighted sums of logits, float32, (k, y, x).
            weight: sums of weights, float32, (y, x); None unless ``needs_weight``.
            labels: receives class ids, (y, x).
            probabilities: receives probabilities, 255 = 1.0, (n_probabilities, y, x).
        """
        ...


class Argmax:
    """Softmax classes: the output channel is the class id; the lowest of equals wins.

    Args:
        n_outputs: channels of the network, background included.
        confidence: leave the probability of the chosen class as well.
        temperature: logits are divided by it before the softmax (calibration).
    """

    def __init__(
        self, n_outputs: int, *, confidence: bool = False, temperature: float = 1.0
    ) -> None:
        self.n_outputs = n_outputs
        self.n_probabilities = 1 if confidence else 0
        self.needs_weight = confidence
        self.label_dtype = label_dtype(n_outputs - 1)
        self._temperature = np.float32(temperature)

    def decode(
        self,
        total: NDArray[np.float32],
        weight: NDArray[np.float32] | None,
        labels: NDArray[np.unsignedinteger],
        probabilities: NDArray[np.uint8],
    ) -> None:
        """Pick the largest channel."""
        best = total[0].copy()
        labels[...] = 0
        for channel in range(1, self.n_outputs):
            np.copyto(labels, labels.dtype.type(channel), where=total[channel] > best)
            np.maximum(best, total[channel], out=best)
        if weight is None:
            return
        # softmax of the winner: 1 / sum(exp(logit - best))
        scale = weight * self._temperature
        below = np.exp((total - best) / scale).sum(axis=0)
        probabilities[0] = _to_uint8(np.reciprocal(below))


class Threshold:
    """Sigmoid channels: channel i is class i + 1 where its probability exceeds a threshold.

    Where several do, the highest wins; the lowest channel of equals.

    Args:
        n_outputs: channels of the network, background not included.
        threshold: probability, between 0 and 1.
        confidence: leave the largest probability as well.
        temperature: logits are divided by it before the sigmoid (calibration).
    """

    def __init__(
        self,
        n_outputs: int,
        *,
        threshold: float = 0.5,
        confidence: bool = False,
        temperature: float = 1.0,
    ) -> None:
        self.n_outputs = n_outputs
        self.n_probabilities = 1 if confidence else 0
        self._limit = logit_of(threshold) * temperature
        self.needs_weight = confidence or self._limit != 0.0
        self.label_dtype = label_dtype(n_outputs)
        self._temperature = np.float32(temperature)

    def decode(
        self,
        total: NDArray[np.float32],
        weight: NDArray[np.float32] | None,
        labels: NDArray[np.unsignedinteger],
        probabilities: NDArray[np.uint8],
    ) -> None:
        """Pick the largest channel above the threshold."""
        best = np.zeros_like(total[0]) if weight is None else weight * np.float32(self._limit)
        labels[...] = 0
        for channel in range(self.n_outputs):
            np.copyto(labels, labels.dtype.type(channel + 1), where=total[channel] > best)
            np.maximum(best, total[channel], out=best)
        if weight is not None and self.n_probabilities:
            mean = total.max(axis=0) / (weight * self._temperature)
            probabilities[0] = _to_uint8(_sigmoid(mean))


class Foreground:
    """Networks whose channels are made into instances later: all probabilities are left.

    Channel 0 is foreground (sigmoid); labels are its thresholded foreground, class 1.

    Args:
        n_outputs: channels of the network.
        threshold: probability from which a voxel is foreground.
        linear: channels that are a quantity in 0..1 (a normalised distance), not a logit.
    """

    def __init__(
        self, n_outputs: int, *, threshold: float = 0.5, linear: tuple[int, ...] = ()
    ) -> None:
        self.n_outputs = n_outputs
        self.n_probabilities = n_outputs
        self.needs_weight = True
        self.label_dtype = label_dtype(1)
        self._limit = np.float32(logit_of(threshold))
        self._linear = linear

    def decode(
        self,
        total: NDArray[np.float32],
        weight: NDArray[np.float32] | None,
        labels: NDArray[np.unsignedinteger],
        probabilities: NDArray[np.uint8],
    ) -> None:
        """Threshold the foreground and leave every channel."""
        assert weight is not None, "Band passes weights to decoders that need them"
        mean = total / weight
        labels[...] = mean[0] > self._limit
        for channel in range(self.n_outputs):
            value = mean[channel] if channel in self._linear else _sigmoid(mean[channel])
            probabilities[channel] = _to_uint8(value)


def label_dtype(largest: int) -> np.dtype[np.unsignedinteger]:
    """The smallest unsigned type that holds class ids up to ``largest``."""
    return np.dtype(np.uint8) if largest <= 255 else np.dtype(np.uint16)


def logit_of(probability: float) -> float:
    """The logit whose sigmoid is a probability.

    Raises:
        ModelError: unless 0 < probability < 1.
    """
    if not 0.0 < probability < 1.0:
        raise ModelError(
            f"threshold {probability} must lie between 0 and 1", hint="0.5 is usual; see the card"
        )
    return math.log(probability / (1.0 - probability))


def _sigmoid(values: NDArray[np.float32]) -> NDArray[np.float32]:
    # Clipped: exp(88) is the largest that float32 holds, and 40 is 1 - 1e-18 already.
    return np.reciprocal(1.0 + np.exp(-np.clip(values, -40.0, 40.0)))


def _to_uint8(probability: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(np.clip(probability, 0.0, 1.0) * np.float32(255.0)).astype(np.uint8)
