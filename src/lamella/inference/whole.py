"""Small images as a whole: normalised by their own statistics, and logits made into labels.

What the engine does tile by tile on volumes of any size, for images that fit into memory many times
over: examples, test tensors and their labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lamella.inference.confidence import sigmoid, to_uint8
from lamella.inference.instance_maps import decode_maps, decoder_options, linear_outputs
from lamella.inference.normalise import Normaliser
from lamella.inference.slab import VolumeSlabs
from lamella.inference.statistics import measure
from lamella.volume.box import Box
from lamella.volume.labels import LabelClass, Labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.volume.volume import Volume
    from lamella.wire.card import ModelCard

__all__ = ["labels_of_logits", "normalised_whole", "probabilities_of_logits"]


def normalised_whole(volume: Volume, card: ModelCard) -> NDArray[np.float32]:
    """An image as the network of a card sees it, float32, (c, z, y, x) or (c, y, x).

    Args:
        volume: intensities, with the axes and channels of the card.
        card: says how intensities are normalised.
    """
    slabs = VolumeSlabs(volume)
    finding = measure(slabs, card.normalisation)
    normaliser = Normaliser.resolve(card.normalisation, finding.statistics)
    image = normaliser.apply(slabs.read(Box.from_shape(slabs.shape)), 0)
    return image[:, 0] if card.axes == "yx" else image


def probabilities_of_logits(logits: NDArray[np.float32], card: ModelCard) -> NDArray[np.float32]:
    """Softmax or sigmoid, as the decoder of the card reads the outputs.

    Args:
        logits: float32, (k, *spatial).
        card: its decoder; quantities that are no logits stay as they are.
    """
    if card.decoder.kind == "argmax":
        shifted = np.exp(logits - logits.max(axis=0, keepdims=True))
        return shifted / shifted.sum(axis=0, keepdims=True)
    linear = linear_outputs(card.decoder, card.n_outputs)
    return np.stack([one if k in linear else sigmoid(one) for k, one in enumerate(logits)])


def labels_of_logits(logits: NDArray[np.float32], card: ModelCard, volume: Volume) -> Labels:
    """Labels of a whole image, as the engine makes them.

    Args:
        logits: float32, (k, *spatial).
        card: says what they mean.
        volume: the image, for its geometry.
    """
    decoder = card.decoder
    if decoder.kind == "argmax":
        data = logits.argmax(0).astype(np.uint8 if len(logits) <= 256 else np.uint16)
    else:
        values = probabilities_of_logits(logits, card)
        if decoder.kind == "threshold":
            threshold = float(str(decoder.parameters.get("threshold", 0.5)))
            data = np.where(values.max(0) > threshold, values.argmax(0) + 1, 0).astype(np.uint16)
        else:
            maps = to_uint8(values)
            options = decoder_options(decoder)
            data = decode_maps(maps, decoder.kind, volume.spacing.values, options)
    classes = tuple(LabelClass(c.value, c.name, c.color) for c in card.classes if c.value)
    return Labels.like(volume, data, classes=classes, is_instance=card.task == "instance")
