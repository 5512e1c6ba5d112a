"""The levels of the spine, their order, and which label value means which in known class maps.

Levels run from the head down: C1-C7, T1-T12, L1-L5, S1. T13 and L6 are variants: they lie where
one expects them, and their absence is no gap.

Examples:
    >>> level_of("vertebrae_L3"), level_of("T4"), level_of("sacrum")
    ('L3', 'T4', None)
    >>> levels_between("T11", "L2"), levels_between("T12", "L1"), levels_between("L5", "S1")
    (('T12', 'L1'), (), ())
    >>> levels_of(class_map("total"))[33]
    'T11'
"""

import re
from collections.abc import Iterable, Mapping

from lamella.core.errors import InputError
from lamella.volume.labels import LabelClass

__all__ = [
    "CLASS_MAPS",
    "LEVELS",
    "class_map",
    "level_of",
    "levels_between",
    "levels_of",
    "rank_of",
]

_CERVICAL = tuple(f"C{k}" for k in range(1, 8))
_THORACIC = tuple(f"T{k}" for k in range(1, 14))
_LUMBAR = tuple(f"L{k}" for k in range(1, 7))
LEVELS: tuple[str, ...] = (*_CERVICAL, *_THORACIC, *_LUMBAR, "S1")
"""Every level, from the head down, variants included."""

VARIANTS = ("T13", "L6")
"""Levels that most people do not have."""

_RANKS = {level: rank for rank, level in enumerate(LEVELS)}
_NAME = re.compile(
    r"(?:vertebrae?[ _-]?)?([CTLS])[ _-]?0?(\d{1,2})(?:[ _-]vertebra)?", re.IGNORECASE
)


def _ascending(first: int, levels: Iterable[str]) -> dict[int, str]:
    return {first + k: f"vertebrae_{level}" for k, level in enumerate(levels)}


_UPWARDS = tuple(level for level in reversed(LEVELS) if level not in VARIANTS and level != "S1")
"""L5 ... C1, the order in which TotalSegmentator counts."""

CLASS_MAPS: Mapping[str, Mapping[int, str]] = {
    "total": {26: "vertebrae_S1", **_ascending(27, _UPWARDS)},
    "total_v3": {26: "vertebrae_L6", **_ascending(27, _UPWARDS)},
    "total_v1": _ascending(18, _UPWARDS),
    "vertebrae_mr": _ascending(2, _UPWARDS),
    "vertebrae_pp": _ascending(1, reversed(_UPWARDS)),
}
"""Vertebrae in TotalSegmentator's tasks: label value → class. Source: its own class maps."""


def class_map(name: str) -> tuple[LabelClass, ...]:
    """The vertebrae of a known class map.

    Raises:
        InputError: naming those that are known.
    """
    if name not in CLASS_MAPS:
        raise InputError(
            f"there is no class map {name!r}",
            hint=f"use {', '.join(CLASS_MAPS)}, or a JSON file with values and class names",
        )
    return tuple(LabelClass(value, known) for value, known in CLASS_MAPS[name].items())


def level_of(name: str) -> str | None:
    """The level that a class name means, or None for anything but a vertebra."""
    match = _NAME.fullmatch(name.strip())
    if match is None:
        return None
    level = f"{match.group(1).upper()}{int(match.group(2))}"
    return level if level in _RANKS else None


def levels_of(classes: Iterable[LabelClass]) -> dict[int, str]:
    """Label value → level of every class that is a vertebra."""
    found = {known.value: level_of(known.name) for known in classes}
    return {value: level for value, level in found.items() if level is not None}


def rank_of(level: str) -> int:
    """Place of a level from the head down."""
    return _RANKS[level]


def levels_between(upper: str, lower: str) -> tuple[str, ...]:
    """Levels that everybody has between two others."""
    inner = LEVELS[_RANKS[upper] + 1 : _RANKS[lower]]
    return tuple(level for level in inner if level not in VARIANTS)
