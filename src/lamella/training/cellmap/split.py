"""Which crops are learnt from and which only judge: by specimen, so that neighbours do not leak.

Crops of one data set show the same cells in the same embedding with the same microscope. A score
on crops whose neighbours were learnt from says little, so data sets stay together unless the
configuration says ``by: file``, and then the result says that it leaks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from lamella.core.errors import InputError

if TYPE_CHECKING:
    from lamella.training.cellmap.survey import CropPlace
    from lamella.training.configuration import SplitConfig

__all__ = ["CropSplit", "split_crops"]

_N_TRIALS = 64
"""Shuffles of which the one is taken that leaves most classes on both sides."""

Knows = Callable[["CropPlace", str], bool]
"""Whether anything of a class may be known in a crop."""


@dataclass(frozen=True, slots=True)
class CropSplit:
    """Crops by what they are for."""

    train: tuple[CropPlace, ...]
    validation: tuple[CropPlace, ...]
    test: tuple[CropPlace, ...]
    groups: dict[str, tuple[str, ...]]
    """Names of specimens (crops where split by file) of each split."""
    warnings: tuple[str, ...]


def split_crops(
    crops: Sequence[CropPlace], config: SplitConfig, *, classes: Sequence[str], knows: Knows
) -> CropSplit:
    """Split crops by data set, or one by one with ``by: file``.

    Validation is drawn where no pattern names it: of several shuffles (from ``seed``) the one that
    leaves every class something to learn from, and then most classes something to be judged on.

    Args:
        crops: all.
        config: patterns of names; of crops, ``DATASET/cropN`` and ``cropN`` are both meant.
        classes: that are learnt.
        knows: whether anything of a class may be known in a crop.

    Raises:
        InputError: nothing left to learn from, or one data set alone that would have to be cut.
    """
    if config.by == "part":
        raise InputError(
            "data.split.by=part cuts images into parts; CellMap crops are parts already",
            hint="use data.split.by=specimen (data sets) or data.split.by=file (crops)",
        )
    by_crop = config.by == "file"
    groups: dict[str, list[CropPlace]] = {}
    for crop in crops:
        groups.setdefault(crop.key if by_crop else crop.data_set, []).append(crop)
    test = _chosen(groups, config.test)
    validation = _chosen(groups, config.validation)
    both = sorted(set(test) & set(validation))
    if both:
        raise InputError(
            f"{', '.join(both)} would be both validation and test",
            hint="make the patterns of data.split say different things",
        )
    rest = [name for name in groups if name not in {*test, *validation}]
    draw = _Draw(groups, config, tuple(classes), knows)
    if not config.test and config.test_fraction > 0:
        test = draw.take(rest, config.test_fraction, "test")
        rest = [name for name in rest if name not in test]
    if not config.validation and config.validation_fraction > 0:
        validation = draw.take(rest, config.validation_fraction, "validation")
    train = [name for name in rest if name not in validation]
    if config.train:
        train = [name for name in _chosen(groups, config.train) if name in train]
    if not train:
        raise InputError(
            f"no crop is left to learn from: validation and test take all of {', '.join(groups)}",
            hint="change data.split",
        )
    names = {"train": tuple(train), "validation": tuple(validation), "test": tuple(test)}
    places = {of: tuple(c for n in known for c in groups[n]) for of, known in names.items()}
    return CropSplit(places["train"], places["validation"], places["test"], names, _leakage(places))


@dataclass(frozen=True, slots=True)
class _Draw:
    """Draws groups that judge, leaving every class something to learn from."""

    groups: dict[str, list[CropPlace]]
    config: SplitConfig
    classes: tuple[str, ...]
    knows: Knows

    def take(self, rest: list[str], fraction: float, use: str) -> list[str]:
        if len(rest) == 1:
            raise self._too_few(rest[0], use)
        if not rest:
            return []
        n = min(len(rest) - 1, max(1, round(fraction * len(rest))))
        rng = np.random.default_rng([self.config.seed, use == "test"])
        best: tuple[tuple[int, int], list[str]] | None = None
        for _ in range(_N_TRIALS):
            order = [rest[i] for i in rng.permutation(len(rest))]
            merit = (self._n_known(order[n:]), self._n_known(order[:n]))
            if best is None or merit > best[0]:
                best = (merit, sorted(order[:n], key=rest.index))
            if merit == (len(self.classes), len(self.classes)):
                break
        assert best is not None, "there is at least one trial"
        return best[1]

    def _n_known(self, names: Sequence[str]) -> int:
        return sum(
            any(self.knows(crop, wanted) for name in names for crop in self.groups[name])
            for wanted in self.classes
        )

    def _too_few(self, name: str, use: str) -> InputError:
        by_crop = self.config.by == "file"
        what = "crop" if by_crop else "data set"
        way = (
            "add crops"
            if by_crop
            else "data.split.by=file splits by crops (neighbours leak, and the result says so)"
        )
        return InputError(
            f"{name} is the only {what} left to learn from: none can be kept for {use}",
            hint=f"{way}, or data.split.{use}_fraction=0 goes without",
        )


def _chosen(groups: dict[str, list[CropPlace]], patterns: Sequence[str]) -> list[str]:
    chosen: list[str] = []
    for pattern in patterns:
        found = [n for n in groups if fnmatchcase(n, pattern) or _ends_as(n, pattern)]
        if not found:
            raise InputError(
                f"data.split names {pattern!r}, but there are only {', '.join(groups)}",
                hint="write the name of a data set, of a crop with by=file, or a pattern (jrc_*)",
            )
        chosen += [name for name in found if name not in chosen]
    return chosen


def _ends_as(name: str, pattern: str) -> bool:
    return "/" in name and fnmatchcase(name.rsplit("/", 1)[-1], pattern)


def _leakage(places: dict[str, tuple[CropPlace, ...]]) -> tuple[str, ...]:
    learnt = {crop.data_set for crop in places["train"]}
    said = []
    for of in ("validation", "test"):
        both = sorted({crop.data_set for crop in places[of]} & learnt)
        if both:
            said.append(
                f"leakage: crops of {', '.join(both)} are learnt from and also used for {of}; the"
                " scores will be better than on a new specimen"
            )
    return tuple(said)
