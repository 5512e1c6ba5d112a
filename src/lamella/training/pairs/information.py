"""What a data set says of itself before its voxels are read, and what a person should hear."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from lamella.core.errors import InputError
from lamella.training.pairs.split import SPLITS
from lamella.training.source import SourceInfo
from lamella.wire.request import SpacingDoc

if TYPE_CHECKING:
    from lamella.training.configuration import PairsConfig
    from lamella.training.pairs.opening import Opening
    from lamella.training.pairs.piece import Piece
    from lamella.training.pairs.store import Facts, PairStore
    from lamella.volume.box import Box
    from lamella.volume.spacing import Spacing
    from lamella.wire.card import NormalisationDoc

__all__ = ["common_spacing", "describe"]

_ASKED = 48
"""Images whose headers are read when a data set is opened."""
_SCANNED_VOXELS = 1 << 25
"""Data sets of up to so many voxels are searched for their classes when they are opened."""
_SAME = 0.01


class Described(Protocol):
    """What of a source is asked for."""

    store: PairStore

    @property
    def axes(self) -> Literal["zyx", "yx"]:
        """Of patches."""
        ...

    @property
    def pieces(self) -> Sequence[Piece]:
        """All images and parts of images."""
        ...

    def box(self, piece: Piece) -> Box:
        """Where a piece lies in its image, (z, y, x)."""
        ...

    def counts(self, piece: Piece) -> tuple[int, ...]:
        """Valid voxels of each class in a piece."""
        ...


def describe(
    source: Described, opened: Opening, config: PairsConfig, normalisation: NormalisationDoc
) -> SourceInfo:
    """What :class:`lamella.training.source.SourceInfo` wants to know.

    Raises:
        InputError: when images differ in their channels, or no class occurs anywhere.
    """
    numbers = sorted({piece.number for piece in source.pieces})
    asked = numbers if len(numbers) <= _ASKED else numbers[:: len(numbers) // _ASKED + 1]
    facts = {number: source.store.facts(number) for number in asked}
    for piece in source.pieces:
        if piece.number in facts:
            source.box(piece)
    names = {number: source.store.pairs[number].image for number in asked}
    _check_channels([(names[n], fact.n_channels) for n, fact in facts.items()])
    spacing, differing = common_spacing([fact.spacing for fact in facts.values()], source.axes)
    warnings = [found.sentence for found in opened.findings if found.severity != "note"]
    warnings += differing
    warnings += _missing_sides(source)
    if len(asked) == len(numbers) and _n_voxels(facts.values()) <= _SCANNED_VOXELS:
        warnings += _missing_classes(source)
    return SourceInfo(
        axes=source.axes,
        n_channels=next(iter(facts.values())).n_channels,
        spacing=spacing,
        normalisation=normalisation,
        specimens={
            split: tuple(
                sorted(
                    {
                        source.store.pairs[piece.number].specimen
                        for piece in source.pieces
                        if piece.split == split
                    }
                )
            )
            for split in SPLITS
        },
        description=config.description,
        licence=config.licence,
        fingerprint=opened.fingerprint,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def common_spacing(spacings: Sequence[Spacing], axes: str) -> tuple[SpacingDoc | None, list[str]]:
    """The spacing that all images have (within a percent), and what to say where they differ.

    Args:
        spacings: of images, at least one.
        axes: of patches; the last ones are taken.
    """
    n = len(axes)
    known = [one for one in spacings if one.unit != "voxel" and len(one.values) >= n]
    if not known:
        return None, []
    if len(known) < len(spacings):
        text = f"{len(spacings) - len(known)} of {len(spacings)} images do not say their spacing"
        return None, [f"{text}; set data.spacing if all have the same"]
    first = known[0]
    values = [tuple(v for v in one.to(first.unit).values[-n:]) for one in known]
    ratio = max(
        max(column) / min(column) for column in zip(*values, strict=True) if min(column) > 0
    )
    if ratio <= 1 + _SAME:
        return SpacingDoc(values=values[0], unit=first.unit), []
    low, high = min(v[-1] for v in values), max(v[-1] for v in values)
    text = f"spacings differ from {low:.4g} to {high:.4g} {first.unit} along x"
    if ratio >= 100:
        text += f", by a factor of {ratio:.3g}: a wrong unit? set data.spacing"
    else:
        text += "; voxels are taken as they come"
    return None, [text]


def _check_channels(found: Sequence[tuple[str, int]]) -> None:
    by_n: dict[int, list[str]] = {}
    for name, n in found:
        by_n.setdefault(n, []).append(name)
    if len(by_n) > 1:
        text = "; ".join(
            f"{len(names)} image(s) with {n} channel(s), such as {names[0]}"
            for n, names in sorted(by_n.items())
        )
        raise InputError(
            f"images differ in their channels: {text}",
            hint="choose channels that all have (data.channels=[0]), or narrow data.images",
        )


def _n_voxels(facts: Iterable[Facts]) -> int:
    return sum(math.prod(fact.shape) for fact in facts)


def _missing_sides(source: Described) -> list[str]:
    sides = {piece.split for piece in source.pieces}
    if "validation" in sides:
        return []
    return [
        "there is no validation data: training cannot tell its best state; set"
        " data.split.validation_fraction or name specimens in data.split.validation"
    ]


def _missing_classes(source: Described) -> list[str]:
    """Classes without a voxel to learn from, or to judge by."""
    names = source.store.codec.balanced
    warnings = []
    for split in SPLITS:
        pieces = [piece for piece in source.pieces if piece.split == split]
        if not pieces:
            continue
        totals = [sum(column) for column in zip(*map(source.counts, pieces), strict=True)]
        absent = [name for name, total in zip(names, totals, strict=True) if not total]
        if split == "train" and len(absent) == len(names):
            raise InputError(
                f"no training image has a voxel of {', '.join(names)}",
                hint="check data.threshold, task.classes (values) and the label files;"
                " `lamella dataset check` shows their values",
            )
        if absent:
            warnings.append(f"no {split} image has a voxel of {', '.join(absent)}")
    return warnings
