"""Which pairs are learnt from and which only judge: whole specimens, unless a person says else.

Slices of one stack look alike. A network that has seen some of them is not judged by the others,
it is only asked what it remembers. So a specimen stands on one side; where the configuration says
otherwise, that is done, and reported as leakage.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from lamella.core.errors import InputError
from lamella.core.registry import nearest_names
from lamella.training.pairs.finding import Finding
from lamella.training.pairs.pairing import Pair
from lamella.training.pairs.pattern import split_location, without_suffix

if TYPE_CHECKING:
    from lamella.training.configuration import SplitConfig

__all__ = ["SPLITS", "assign_splits", "groups_of", "leakage"]

_NUMBERED = re.compile(
    r"^((?:.*[/_. -])?(?:|z|s|slices?|sections?|sec|img|images?|frames?|planes?)[_. -]?)(\d+)$",
    re.I,
)
"""Names of slices: a number, or one behind a word for slices (not ``case12``)."""
SPLITS = ("train", "validation", "test")
_WAYS_OUT = (
    "add data of another specimen, or set data.split.by=file (files of one specimen on both"
    " sides) or data.split.by=part (each image is cut along its longest axis); both are reported as"
    " leakage"
)


def assign_splits(pairs: Sequence[Pair], config: SplitConfig) -> tuple[Pair, ...]:
    """Say for each pair on which side it stands.

    Args:
        pairs: with their specimens.
        config: patterns, fractions and seed.

    Returns:
        The pairs with their ``split``; empty for what is used nowhere. With ``by: part`` every
        pair is ``train``: images are cut when they are read.

    Raises:
        InputError: when a pattern fits nothing, a specimen would stand on both sides, or too few
            specimens are there.
    """
    if config.by == "part":
        if config.train or config.validation or config.test:
            raise InputError(
                "data.split.by=part cuts every image and takes no patterns",
                hint="use validation_fraction and test_fraction, or by=file with patterns",
            )
        return tuple(replace(pair, split="train") for pair in pairs)
    named = _named(pairs, config)
    units = [pair.specimen if config.by == "specimen" else pair.image for pair in pairs]
    by_unit: dict[str, str] = {}
    for pair, unit, split in zip(pairs, units, named, strict=True):
        if by_unit.setdefault(unit, split) != split:
            raise InputError(
                f"the specimen {pair.specimen!r} would stand on two sides:"
                f" {by_unit[unit] or 'not named'} and {split or 'not named'} ({pair.image})",
                hint="split by whole specimens, or set data.split.by=file, which is reported as"
                " leakage",
            )
    for split, fraction in (
        ("test", config.test_fraction),
        ("validation", config.validation_fraction),
    ):
        if fraction and not getattr(config, split):
            _take(by_unit, split, fraction, config)
    for unit, split in by_unit.items():
        if not split and not config.train:
            by_unit[unit] = "train"
    if "train" not in by_unit.values():
        raise InputError(
            "no pair is left to train on",
            hint="name fewer specimens for validation and test, or lower their fractions",
        )
    return tuple(
        replace(pair, split=by_unit[unit]) for pair, unit in zip(pairs, units, strict=True)
    )


def groups_of(pairs: Sequence[Pair]) -> dict[str, tuple[str, ...]]:
    """Specimens by split."""
    return {
        split: tuple(sorted({pair.specimen for pair in pairs if pair.split == split}))
        for split in SPLITS
    }


def leakage(pairs: Sequence[Pair], config: SplitConfig) -> list[Finding]:
    """What a split lets through: specimens on two sides, slices that pass for specimens."""
    if config.by == "part":
        return [
            Finding(
                "warning",
                "leakage_part",
                "training and judging use different parts of the same images: scores are too good",
                hint="judge on another specimen before believing them",
            )
        ]
    found = []
    sides: dict[str, set[str]] = {}
    for pair in pairs:
        if pair.split:
            sides.setdefault(pair.specimen, set()).add(pair.split)
    both = sorted(name for name, splits in sides.items() if len(splits) > 1)
    if both:
        found.append(
            Finding(
                "warning",
                "leakage_specimen",
                f"files of {len(both)} specimen(s) stand on several sides: scores are too good",
                tuple(both),
                "judge on another specimen before believing them",
            )
        )
    if not both and _are_slices(pairs):
        found.append(
            Finding(
                "warning",
                "leakage_slices",
                "the files are numbered like slices of one volume, but each counts as a specimen",
                (pairs[0].image, pairs[-1].image),
                "if they are, name the volume: data.specimen with a regular expression",
            )
        )
    return found


def _named(pairs: Sequence[Pair], config: SplitConfig) -> list[str]:
    """The split that patterns give each pair; empty where none fits."""
    result = [""] * len(pairs)
    for split in SPLITS:
        for pattern in getattr(config, split):
            fitting = [i for i, pair in enumerate(pairs) if _fits(pair, pattern)]
            if not fitting:
                known = sorted({pair.specimen for pair in pairs})
                near = nearest_names(pattern, known)
                raise InputError(
                    f"data.split.{split}: nothing fits {pattern!r}",
                    hint=(f"did you mean {near[0]}? " if near else "")
                    + f"specimens are {', '.join(known[:8])}{' ...' if len(known) > 8 else ''};"
                    " patterns may name image files too",
                )
            for i in fitting:
                if result[i] not in ("", split):
                    raise InputError(
                        f"{pairs[i].image} is named for {result[i]} and for {split}",
                        hint="name every specimen once",
                    )
                result[i] = split
    return result


def _fits(pair: Pair, pattern: str) -> bool:
    path = split_location(pair.image)[0]
    name = path.rsplit("/", 1)[-1]
    names = (pair.specimen, path, without_suffix(path), name, without_suffix(name))
    return any(fnmatchcase(one, pattern) for one in names) or fnmatchcase(path, f"*/{pattern}")


def _take(by_unit: dict[str, str], split: str, fraction: float, config: SplitConfig) -> None:
    """Give a drawn share of what is not yet named to a split; at least one stays to train on."""
    free = sorted(unit for unit, taken in by_unit.items() if not taken)
    if len(free) < 2:
        kind = "specimen" if config.by == "specimen" else "file"
        raise InputError(
            f"only {len(free)} {kind}(s) for training and {split}: {', '.join(free) or 'none'}",
            hint=_WAYS_OUT
            if config.by == "specimen"
            else "set data.split.by=part, which cuts each image, or name files for each side",
        )
    n = min(len(free) - 1, max(1, round(fraction * len(free))))
    order = np.random.default_rng([config.seed, SPLITS.index(split)]).permutation(len(free))
    for i in order[:n]:
        by_unit[free[int(i)]] = split


def _are_slices(pairs: Sequence[Pair]) -> bool:
    """Whether names are numbers that count up, as those of slices, and several sides are used."""
    if len(pairs) < 5 or len({pair.split for pair in pairs if pair.split}) < 2:
        return False
    if len({pair.specimen for pair in pairs}) != len(pairs):
        return False
    stems = [without_suffix(split_location(pair.image)[0]) for pair in pairs]
    ends = [_NUMBERED.search(stem) for stem in stems]
    numbers = sorted(int(end.group(2)) for end in ends if end is not None)
    if len(numbers) < len(stems) or len({end.group(1) for end in ends if end is not None}) != 1:
        return False
    return numbers == list(range(numbers[0], numbers[0] + len(numbers)))
