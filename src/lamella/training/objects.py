"""How well single objects are found in a region: decoded as at inference, then compared.

Maps of the network are gathered as the engine leaves them (8 bits), made into objects by the
decoder of the card and matched with the reference. Regions beyond a limit are judged by their
middle, which the conditions of the score say.

Examples:
    >>> window_of((100, 100), 2500)
    Box(start=(25, 25), stop=(75, 75))
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lamella.evaluation.contingency import count_overlaps
from lamella.evaluation.instance import match_objects, variation_of_information
from lamella.inference.confidence import sigmoid, to_uint8
from lamella.inference.instance_maps import decode_maps, decoder_options, linear_outputs
from lamella.volume.box import Box

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lamella.training.augment import Sample
    from lamella.wire.card import DecoderDoc

__all__ = ["ObjectMaps", "ObjectScores", "window_of"]

MAX_VOXELS = 1 << 25
IOU = 0.5


@dataclass(frozen=True, slots=True)
class ObjectScores:
    """Objects of several regions, added up.

    Attributes:
        true_positives: objects that are found, at an IoU of 0.5.
        false_positives: found where none is.
        false_negatives: not found.
        voi_split: sum over the regions of VOI split times voxels, bits.
        voi_merge: the same of VOI merge.
        n_voxels: voxels VOI was taken over.
        is_cut: whether a region was judged by its middle.
    """

    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0
    voi_split: float = 0.0
    voi_merge: float = 0.0
    n_voxels: int = 0
    is_cut: bool = False

    def __add__(self, other: ObjectScores) -> ObjectScores:
        return ObjectScores(
            self.true_positives + other.true_positives,
            self.false_positives + other.false_positives,
            self.false_negatives + other.false_negatives,
            self.voi_split + other.voi_split,
            self.voi_merge + other.voi_merge,
            self.n_voxels + other.n_voxels,
            self.is_cut or other.is_cut,
        )

    @property
    def n_reference(self) -> int:
        """Objects in the reference."""
        return self.true_positives + self.false_negatives

    @property
    def average_precision(self) -> float:
        """TP / (TP + FP + FN); nan without objects."""
        whole = self.n_reference + self.false_positives
        return self.true_positives / whole if whole else math.nan


def window_of(shape: Sequence[int], limit: int) -> Box:
    """The middle of an array with at most ``limit`` voxels, of the array's proportions."""
    share = min(1.0, (limit / max(1, math.prod(shape))) ** (1 / len(shape)))
    extents = [max(1, int(n * share)) for n in shape]
    start = tuple((n - e) // 2 for n, e in zip(shape, extents, strict=True))
    return Box(start, tuple(s + e for s, e in zip(start, extents, strict=True)))


class ObjectMaps:
    """Maps and reference of one region, filled box by box.

    Args:
        shape: of the region.
        n_outputs: of the network.
        decoder: of the card.
        spacing: of the region's voxels.
    """

    def __init__(
        self, shape: tuple[int, ...], n_outputs: int, decoder: DecoderDoc, spacing: Sequence[float]
    ) -> None:
        self._window = window_of(shape, MAX_VOXELS)
        self._is_cut = self._window.shape != tuple(shape)
        self._decoder = decoder
        self._spacing = tuple(spacing)
        self._linear = linear_outputs(decoder, n_outputs)
        self._maps = np.zeros((n_outputs, *self._window.shape), np.uint8)
        self._ids = np.zeros(self._window.shape, np.int64)
        self._valid = np.zeros(self._window.shape, np.bool_)

    def put(self, box: Box, logits: NDArray[np.float32], sample: Sample) -> None:
        """Take a box of the region.

        Args:
            box: where it lies.
            logits: float32, (k, *spatial).
            sample: of the same box.
        """
        shared = box.intersect(self._window)
        if shared.is_empty:
            return
        there = shared.relative_to(self._window).slices()
        here = shared.relative_to(box).slices()
        for channel, output in enumerate(logits):
            value = output[here]
            value = value if channel in self._linear else sigmoid(value)
            self._maps[channel][there] = to_uint8(value)
        self._ids[there] = sample.labels[0][here]
        self._valid[there] = sample.valid[0][here]

    def scores(self) -> ObjectScores:
        """Decode and compare."""
        if not self._valid.any():
            return ObjectScores()
        options = decoder_options(self._decoder)
        found = decode_maps(self._maps, self._decoder.kind, self._spacing, options)
        prediction, reference = found[self._valid], self._ids[self._valid]
        table = count_overlaps(prediction, reference)
        matching = match_objects(table, IOU)
        voi = variation_of_information(table, ignore_background=True)
        n = int((reference != 0).sum())
        return ObjectScores(
            matching.true_positives,
            matching.false_positives,
            matching.false_negatives,
            voi.split * n,
            voi.merge * n,
            n,
            self._is_cut,
        )
