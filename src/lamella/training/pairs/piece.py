"""What is learnt from or judged on: images, or parts of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lamella.core.errors import InputError
from lamella.volume.box import Box

if TYPE_CHECKING:
    from lamella.training.configuration import SplitConfig
    from lamella.training.pairs.pairing import Pair

__all__ = ["Piece", "part_of", "pieces_of"]


@dataclass(frozen=True, slots=True)
class Piece:
    """An image, or a part of one, that belongs to one split.

    Attributes:
        number: of the pair.
        split: ``train``, ``validation`` or ``test``.
        span: share of the longest axis, (first, last); (0, 1) is all of it.
    """

    number: int
    split: str
    span: tuple[float, float] = (0.0, 1.0)


def part_of(shape: tuple[int, int, int], span: tuple[float, float]) -> Box:
    """The part of an image between two shares of its longest axis.

    Examples:
        >>> part_of((50, 100, 200), (0.5, 1.0))
        Box(start=(0, 0, 100), stop=(50, 100, 200))
    """
    if span == (0.0, 1.0):
        return Box.from_shape(shape)
    axis = max(range(3), key=lambda i: (shape[i], -i))
    start, stop = [0, 0, 0], list(shape)
    start[axis], stop[axis] = (round(share * shape[axis]) for share in span)
    return Box(tuple(start), tuple(stop))


def pieces_of(pairs: Sequence[Pair], config: SplitConfig) -> list[Piece]:
    """The pairs of all splits; their parts where images are cut.

    Raises:
        InputError: when nothing is left to train on.
    """
    if config.by != "part":
        return [Piece(i, pair.split) for i, pair in enumerate(pairs) if pair.split]
    judged = config.validation_fraction + config.test_fraction
    if judged >= 1:
        raise InputError(
            f"validation and test take {judged:.0%} of every image: nothing is left to train on",
            hint="lower data.split.validation_fraction or test_fraction",
        )
    ends = (1 - judged, 1 - config.test_fraction, 1.0)
    pieces, first = [], 0.0
    for split, last in zip(("train", "validation", "test"), ends, strict=True):
        if last > first:
            pieces += [Piece(i, split, (first, last)) for i in range(len(pairs))]
        first = last
    return pieces
