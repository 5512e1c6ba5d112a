"""Inputs and outputs of a model as a BioImage.io description, version 0.5: plain documents.

What a card says is said there in other words; what has no words there (spacing that an input is
resampled to, decoders of objects) stays in the attached card. Statistics of ``zscore`` and
``percentile`` are taken over the spatial axes of the sample, each channel for itself, as Lamella
does over the volume; with scope ``slice`` over (y, x).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import ModelError
from lamella.models.export import check_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lamella.wire.card import ModelCard

__all__ = [
    "INPUT_ID",
    "OUTPUT_ID",
    "Extents",
    "channel_names",
    "extents_of",
    "fitted",
    "input_axes",
    "output_axes",
    "postprocessing",
    "preprocessing",
]

INPUT_ID, OUTPUT_ID = "image", "prediction"
Extents = tuple[tuple[int, int, int], ...]
"""Per spatial axis: smallest extent, step, halo."""

_UNITS = {"nm": "nanometer", "um": "micrometer", "mm": "millimeter"}
_LARGEST = 1 << 14
_MIN_STD = 1e-6


def extents_of(card: ModelCard) -> Extents:
    """Extents a model takes: ``smallest + n * step``, with a halo of half the tiles' overlap.

    Examples:
        A tile of 96 with overlap 0.5 and divisor 8 gives ``(56, 8, 24)``.
    """
    found = []
    divisor = card.divisor or (1,) * len(card.axes)
    for tile, step, small in zip(card.tile, divisor, check_shape(card), strict=True):
        halo = int(tile * card.overlap_fraction / 2)
        smallest = max(small, 2 * halo + 1)
        found.append((-(-smallest // step) * step, step, halo))
    return tuple(found)


def fitted(image: NDArray[Any], extents: Extents) -> NDArray[Any]:
    """An image with extents the model takes: the middle of it, or mirrored at the end.

    Args:
        image: (c, *spatial).
        extents: of the model.
    """
    for axis, (smallest, step, _) in enumerate(extents, start=1):
        n = image.shape[axis]
        wanted = smallest + max(0, n - smallest) // step * step
        if n < wanted:
            pad = [(0, 0)] * image.ndim
            pad[axis] = (0, wanted - n)
            image = np.pad(image, pad, mode="symmetric")
        start = (image.shape[axis] - wanted) // 2
        image = np.take(image, range(start, start + wanted), axis=axis)
    return image


def input_axes(card: ModelCard, extents: Extents) -> list[dict[str, Any]]:
    """Axes of the input."""
    names = ["intensity"] if card.n_channels == 1 else _numbered("channel", card.n_channels)
    axes: list[dict[str, Any]] = [
        {"type": "batch"},
        {"type": "channel", "channel_names": names},
    ]
    for axis, (smallest, step, _), scale in zip(card.axes, extents, _scales(card), strict=True):
        size: dict[str, int] = {"min": smallest, "step": step}
        axes.append({"type": "space", "id": axis, "size": size, **scale})
    return axes


def output_axes(card: ModelCard, extents: Extents) -> list[dict[str, Any]]:
    """Axes of the output: one channel an output, the grid of the input."""
    axes: list[dict[str, Any]] = [
        {"type": "batch"},
        {"type": "channel", "channel_names": channel_names(card)},
    ]
    for axis, (_, _, halo), scale in zip(card.axes, extents, _scales(card), strict=True):
        size = {"tensor_id": INPUT_ID, "axis_id": axis}
        document = {"type": "space", "id": axis, "size": size, **scale}
        if halo:
            document["halo"] = halo
        axes.append(document)
    return axes


def channel_names(card: ModelCard) -> list[str]:
    """What each output is."""
    classes = {known.value: known.name for known in card.classes}
    kind, n = card.decoder.kind, card.n_outputs
    if kind == "argmax":
        return [classes.get(k, f"class {k}") for k in range(n)]
    if kind == "threshold":
        return [classes.get(k + 1, f"class {k + 1}") for k in range(n)]
    if kind == "boundary_watershed":
        return ["foreground", "boundary"]
    if kind == "distance_watershed":
        return ["foreground", "distance"]
    if kind == "flows":
        return ["foreground", *(f"flow {axis}" for axis in card.axes)]
    offsets = card.decoder.parameters.get("offsets")
    if isinstance(offsets, list) and len(offsets) == n - 1:
        return ["foreground", *(f"affinity {_offset(offset)}" for offset in offsets)]
    return ["foreground", *_numbered("affinity", n - 1)]


def preprocessing(card: ModelCard) -> list[dict[str, Any]]:
    """The normalisation of the card as operations.

    Raises:
        ModelError: for percentiles that the format does not take.
    """
    doc = card.normalisation
    axes = list(card.axes if doc.scope == "volume" else card.axes[-2:])
    steps: list[dict[str, Any]] = [_step("ensure_dtype", dtype="float32")]
    if doc.kind == "zscore":
        steps.append(_step("zero_mean_unit_variance", axes=axes))
    elif doc.kind == "percentile":
        low = 1.0 if doc.low is None else doc.low
        high = 99.0 if doc.high is None else doc.high
        if high <= 1:
            raise ModelError(
                f"percentiles {low} to {high} cannot be described to BioImage.io",
                hint="its upper percentile lies above 1; percentiles are counted to 100",
            )
        steps.append(_step("scale_range", axes=axes, min_percentile=low, max_percentile=high))
        if doc.clip:
            steps.append(_step("clip", min=0.0, max=1.0))
    elif doc.kind == "fixed":
        limits = {"min": doc.low, "max": doc.high}
        given = {name: value for name, value in limits.items() if value is not None}
        if given:
            steps.append(_step("clip", **given))
        mean = 0.0 if doc.mean is None else doc.mean
        std = 1.0 if doc.std is None else doc.std
        if std >= _MIN_STD:
            steps.append(_step("fixed_zero_mean_unit_variance", mean=mean, std=std))
        else:
            steps.append(_step("scale_linear", gain=1 / std, offset=-mean / std))
    return steps


def postprocessing(card: ModelCard) -> list[dict[str, Any]]:
    """From logits to probabilities; nothing where outputs are logits and quantities mixed."""
    steps: list[dict[str, Any]] = []
    if card.decoder.kind == "argmax":
        steps.append(_step("softmax", axis="channel"))
    elif card.decoder.kind not in ("distance_watershed", "flows"):
        steps.append({"id": "sigmoid"})
    return steps


def _step(name: str, **arguments: Any) -> dict[str, Any]:
    return {"id": name, "kwargs": arguments}


def _scales(card: ModelCard) -> list[dict[str, Any]]:
    spacing = card.spacing
    if spacing is None or spacing.unit not in _UNITS:
        return [{} for _ in card.axes]
    return [{"unit": _UNITS[spacing.unit], "scale": _dividable(v)} for v in spacing.values]


def _dividable(scale: float) -> float:
    """The scale, or the nearest one by which every extent times it can be divided again exactly.

    The format computes an output's extent as ``n * scale / scale`` and compares it with a whole
    number; 24 bits of mantissa leave room for that.
    """
    n = np.arange(1, _LARGEST)
    return scale if bool((n * scale / scale == n).all()) else float(np.float32(scale))


def _numbered(word: str, n: int) -> list[str]:
    return [f"{word} {k + 1}" for k in range(n)]


def _offset(offset: Sequence[int] | Any) -> str:
    return ",".join(str(step) for step in offset) if isinstance(offset, list) else str(offset)
