"""What all kinds of targets share: classes of the card, parameters of decoders, ids of a patch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lamella.core.errors import InputError, ModelError
from lamella.training.configuration import LossTermConfig
from lamella.training.target import Target
from lamella.volume.labels import label_color
from lamella.wire.card import ClassDoc, DecoderDoc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lamella.training.augment import Sample
    from lamella.training.configuration import TaskConfig

__all__ = [
    "Pieces",
    "channels_target",
    "class_docs",
    "decoder_of",
    "find_pieces",
    "read_ids",
    "single_class",
    "sum_of_losses",
]

UNKNOWN = -1
"""Id of voxels of which nothing is known."""


def class_docs(config: TaskConfig) -> tuple[ClassDoc, ...]:
    """Background and the classes, values 1..n, each with a colour of its own.

    Colours that nobody chose are those of Okabe and Ito, then hues by the golden ratio, without
    any that is taken.

    Raises:
        InputError: without classes, with names that repeat, or with a background among them.
    """
    names = [known.name for known in config.classes]
    if not names:
        raise InputError(
            f"the task {config.kind!r} has no classes",
            hint="name at least one, as in task.classes=[{name: mitochondrion}]",
        )
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"classes are named twice: {', '.join(repeated)}")
    if "background" in names:
        raise InputError(
            "background is listed as a class",
            hint="leave it out: what belongs to no class is background, output 0 of a softmax",
        )
    taken = {known.color for known in config.classes if known.color is not None}
    docs = [ClassDoc(value=0, name="background", color=(0, 0, 0))]
    candidate = 0
    for value, known in enumerate(config.classes, start=1):
        color = known.color
        while color is None:
            candidate += 1
            found = label_color(candidate)
            color = None if found in taken else found
        taken.add(color)
        docs.append(ClassDoc(value=value, name=known.name, color=color))
    return tuple(docs)


def single_class(config: TaskConfig) -> str:
    """The name of the class whose objects are learnt.

    Raises:
        InputError: unless there is exactly one.
    """
    names = [known.name for known in class_docs(config)[1:]]
    if len(names) > 1:
        raise InputError(
            f"the task {config.kind!r} makes objects of one class, {len(names)} are named:"
            f" {', '.join(names)}",
            hint="train a network a class, or use kind: semantic or multilabel",
        )
    return names[0]


def decoder_of(kind: Any, config: TaskConfig, **parameters: Any) -> DecoderDoc:
    """The card's decoder, its parameters checked by those who will read them.

    Raises:
        InputError: for parameters that the decoder does not take, or values that cannot be.
    """
    from lamella.inference.instance_maps import decoder_options

    doc = DecoderDoc(kind=kind, parameters={**parameters, **config.decoder})
    if kind not in ("argmax", "threshold"):
        try:
            decoder_options(doc)
        except ModelError as error:
            raise InputError(f"task.decoder: {error.message}", hint=error.hint) from error
        return doc
    known = ("threshold",) if kind == "threshold" else ()
    unknown = sorted(set(doc.parameters) - set(known))
    if unknown:
        raise InputError(
            f"task.decoder: the decoder {kind!r} has no parameter {', '.join(unknown)}",
            hint=f"it takes {', '.join(known)}" if known else "it takes none",
        )
    threshold = doc.parameters.get("threshold", 0.5)
    if not isinstance(threshold, int | float) or not 0 < threshold < 1:
        raise InputError(f"task.decoder: threshold is {threshold!r}, expected between 0 and 1")
    return doc


def sum_of_losses(
    *terms: tuple[str, float, tuple[int, ...] | None, str],
) -> tuple[LossTermConfig, ...]:
    """Terms of a loss: name, weight, channels and activation (empty: the loss takes none)."""
    return tuple(
        LossTermConfig(
            name=name,
            weight=weight,
            channels=channels,
            arguments={"activation": activation} if activation else {},
        )
        for name, weight, channels, activation in terms
    )


def channels_target(values: torch.Tensor, valid: torch.Tensor) -> Target:
    """A batch of encoded channels as the losses take it."""
    valid = valid.bool()
    return Target(torch.where(valid, values.float(), 0.0), valid, False)


def read_ids(sample: Sample) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Ids of a patch, int64 (*spatial), -1 where nothing is known; and where something is.

    Raises:
        InputError: for labels that are no single map of ids.
    """
    if sample.labels.shape[0] != 1:
        raise InputError(
            f"labels have {sample.labels.shape[0]} channels, expected one with an id per object"
        )
    ids, known = sample.labels[0], sample.valid[0]
    if not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"labels have dtype {ids.dtype}, expected integer ids of objects")
    ids = np.where(known, ids, UNKNOWN).astype(np.int64, copy=False)
    if ids.size and int(ids.min()) < UNKNOWN:
        raise InputError(f"an object has the id {int(ids.min())}; ids are 0 (background) and above")
    return ids, known


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """Connected pieces of objects in a patch.

    Attributes:
        labels: unsigned integers (*spatial), pieces 1..n; 0 is background or unknown.
        count: how many.
        is_whole: bool, (n + 1,): which lie in the patch with all their voxels.
    """

    labels: NDArray[Any]
    count: int
    is_whole: NDArray[np.bool_]


def find_pieces(ids: NDArray[np.int64]) -> Pieces:
    """Connected pieces (by faces), and which of them end within what is known.

    A piece at the border of the patch, or beside a voxel of which nothing is known, may go on
    there: nobody knows its middle or how deep it is.

    Args:
        ids: int64, (*spatial), -1 where nothing is known.
    """
    from lamella.instances.components import label_components

    found = label_components(np.maximum(ids, 0), connectivity=2 * ids.ndim)
    is_whole = np.ones(found.count + 1, bool)
    for axis in range(ids.ndim):
        moved, pieces = np.moveaxis(ids, axis, 0), np.moveaxis(found.labels, axis, 0)
        for side in (0, -1):
            is_whole[pieces[side]] = False
        unknown = moved == UNKNOWN
        if unknown.any():
            is_whole[pieces[1:][unknown[:-1]]] = False
            is_whole[pieces[:-1][unknown[1:]]] = False
    is_whole[0] = True
    return Pieces(found.labels, found.count, is_whole)


def offsets_within(radius: float, sizes: Sequence[float]) -> NDArray[np.int64]:
    """Steps to voxels whose centres lie within a radius, and to all face neighbours.

    Args:
        radius: in voxels of the finest axis.
        sizes: of a voxel per axis, the finest 1.

    Returns:
        int64, (n, axes); the voxel itself is left out.
    """
    reach = [max(1, int(radius / size + 1e-9)) for size in sizes]
    grid = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), -1)
    steps = grid.reshape(-1, len(sizes))
    far = np.sqrt(((steps * np.asarray(sizes)) ** 2).sum(axis=1))
    is_neighbour = np.abs(steps).sum(axis=1) == 1
    return steps[((far <= radius + 1e-9) | is_neighbour) & steps.any(axis=1)]
