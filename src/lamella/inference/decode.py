"""How summed logits of a finished layer become labels (and probabilities, where asked for).

Decoders work on *weighted sums* of logits: the sign and the largest of several sums are those of
the means, so labels need no division. Probabilities, and how sure the network was
(:mod:`~lamella.inference.confidence`), are taken from the mean logits; labels are the same, bit for
bit, whether or not these are asked for.

A runtime that also tells how far mirrored copies differ (``Mirrored`` with a spread) gives one
channel more, the last; decoders made with ``has_spread`` expect it.

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
from lamella.inference.confidence import (
    leave_foreground,
    leave_sigmoid,
    leave_softmax,
    leave_spread,
    sigmoid,
    to_uint8,
)

__all__ = ["Argmax", "Decoder", "Foreground", "Threshold", "label_dtype", "pick_largest"]


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
        n_classes: classes of the network, background included.
        measures: how sure it was, one map each.
        temperature: logits are divided by it before the softmax (calibration).
        has_spread: whether the last channel is the spread over mirrored copies.
    """

    def __init__(
        self,
        n_classes: int,
        *,
        measures: tuple[str, ...] = (),
        temperature: float = 1.0,
        has_spread: bool = False,
    ) -> None:
        self.n_outputs = n_classes + has_spread
        self.n_probabilities = len(measures)
        self.needs_weight = bool(measures)
        self.label_dtype = label_dtype(n_classes - 1)
        self._n_classes = n_classes
        self._measures = measures
        self._temperature = np.float32(temperature)

    def decode(
        self,
        total: NDArray[np.float32],
        weight: NDArray[np.float32] | None,
        labels: NDArray[np.unsignedinteger],
        probabilities: NDArray[np.uint8],
    ) -> None:
        """Pick the largest channel."""
        pick_largest(total[1 : self._n_classes], total[0].copy(), labels)
        if weight is None:
            return
        scale = weight * self._temperature
        leave_softmax(total[: self._n_classes], scale, self._measures, probabilities)
        leave_spread(total, weight, self._measures, probabilities)


class Threshold:
    """Sigmoid channels: channel i is class i + 1 where its probability exceeds a threshold.

    Where several do, the highest wins; the lowest channel of equals.

    Args:
        n_classes: channels of the network, background not included.
        threshold: probability, between 0 and 1.
        measures: how sure it was, one map each.
        temperature: logits are divided by it before the sigmoid (calibration).
        has_spread: whether the last channel is the spread over mirrored copies.
    """

    def __init__(
        self,
        n_classes: int,
        *,
        threshold: float = 0.5,
        measures: tuple[str, ...] = (),
        temperature: float = 1.0,
        has_spread: bool = False,
    ) -> None:
        self.n_outputs = n_classes + has_spread
        self.n_probabilities = len(measures)
        self._limit = logit_of(threshold) * temperature
        self.needs_weight = bool(measures) or self._limit != 0.0
        self.label_dtype = label_dtype(n_classes)
        self._n_classes = n_classes
        self._measures = measures
        self._temperature = np.float32(temperature)

    def decode(
        self,
        total: NDArray[np.float32],
        weight: NDArray[np.float32] | None,
        labels: NDArray[np.unsignedinteger],
        probabilities: NDArray[np.uint8],
    ) -> None:
        """Pick the largest channel above the threshold."""
        limit = np.zeros_like(total[0]) if weight is None else weight * np.float32(self._limit)
        pick_largest(total[: self._n_classes], limit, labels)
        if weight is None or not self._measures:
            return
        scale: NDArray[np.float32] = weight * self._temperature
        probability = sigmoid(total[: self._n_classes] / scale)
        leave_sigmoid(probability, labels, self._measures, probabilities)
        leave_spread(total, weight, self._measures, probabilities)


class Foreground:
    """Networks whose channels are made into instances later: all probabilities are left.

    Channel 0 is foreground (sigmoid); labels are its thresholded foreground, class 1. The maps are
    those of the channels, then those of the measures.

    Args:
        n_channels: channels of the network.
        threshold: probability from which a voxel is foreground.
        linear: channels that are a quantity in 0..1 (a normalised distance), not a logit.
        has_boundary: whether a channel 1 that is a logit is the probability of boundaries.
        measures: how sure it was, one map each.
        temperature: logits are divided by it for the measures (calibration).
        has_spread: whether the last channel is the spread over mirrored copies.
    """

    def __init__(
        self,
        n_channels: int,
        *,
        threshold: float = 0.5,
        linear: tuple[int, ...] = (),
        has_boundary: bool = True,
        measures: tuple[str, ...] = (),
        temperature: float = 1.0,
        has_spread: bool = False,
    ) -> None:
        self.n_outputs = n_channels + has_spread
        self.n_probabilities = n_channels + len(measures)
        self.needs_weight = True
        self.label_dtype = label_dtype(1)
        self._has_boundary = has_boundary and n_channels > 1 and 1 not in linear
        self._n_channels = n_channels
        self._limit = np.float32(logit_of(threshold))
        self._linear = linear
        self._measures = measures
        self._temperature = np.float32(temperature)

    def decode(
        self,
        total: NDArray[np.float32],
        weight: NDArray[np.float32] | None,
        labels: NDArray[np.unsignedinteger],
        probabilities: NDArray[np.uint8],
    ) -> None:
        """Threshold the foreground and leave every channel."""
        assert weight is not None, "Band passes weights to decoders that need them"
        mean: NDArray[np.float32] = total[: self._n_channels] / weight
        labels[...] = mean[0] > self._limit
        for channel in range(self._n_channels):
            value = mean[channel] if channel in self._linear else sigmoid(mean[channel])
            probabilities[channel] = to_uint8(value)
        if not self._measures:
            return
        maps = probabilities[self._n_channels :]
        leave_foreground(
            sigmoid(mean[0] / self._temperature),
            sigmoid(mean[1] / self._temperature) if self._has_boundary else None,
            labels,
            self._measures,
            maps,
        )
        leave_spread(total, weight, self._measures, maps)


def pick_largest(
    values: NDArray[np.float32],
    best: NDArray[np.float32],
    labels: NDArray[np.unsignedinteger],
) -> None:
    """Number of the largest of several channels that exceeds a limit; the lowest of equals.

    Args:
        values: (k, y, x).
        best: the limit, (y, x); becomes the larger of the limit and the largest value.
        labels: receives 1 for the first channel and so on, 0 where none exceeds the limit.
    """
    labels[...] = 0
    for number, value in enumerate(values, 1):
        np.copyto(labels, labels.dtype.type(number), where=value > best)
        np.maximum(best, value, out=best)


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
