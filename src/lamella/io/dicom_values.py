"""Values of DICOM elements, for headers that may lack, double or damage any of them."""

import math
from typing import Any

from lamella.core.errors import UnreadableFileError

__all__ = [
    "first_item",
    "group_item",
    "grouped_numbers",
    "header_thickness",
    "number",
    "numbers",
    "positive",
    "sortable",
    "text",
    "whole",
]


def text(dataset: Any, name: str) -> str:
    """A short text in one line, several values joined; empty where it lacks.

    Empty too where it holds control characters: a damaged length lets an element swallow what
    follows it, the patient's name perhaps.
    """
    value = dataset.get(name)
    if value is None:
        return ""
    is_list = not isinstance(value, str) and hasattr(value, "__iter__")
    joined = ", ".join(str(part) for part in value) if is_list else str(value)
    joined = joined.strip()
    return " ".join(joined.split()) if joined.isprintable() else ""


def first_item(dataset: Any, name: str) -> Any:
    """The first item of a sequence, or None."""
    sequence = dataset.get(name) if dataset is not None else None
    return sequence[0] if sequence else None


def group_item(groups: list[Any], name: str) -> Any:
    """The first item of a sequence in the first functional group that has it, or None."""
    for group in groups:
        item = first_item(group, name)
        if item is not None:
            return item
    return None


def grouped_numbers(
    groups: list[Any], sequence: str, name: str, count: int
) -> tuple[float, ...] | None:
    """The numbers of an element in what :func:`group_item` finds, or None."""
    item = group_item(groups, sequence)
    return None if item is None else numbers(item, name, count)


def number(dataset: Any, name: str) -> float | None:
    """A number, or None where it lacks or is none."""
    value = dataset.get(name)
    if value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def sortable(dataset: Any, name: str) -> float:
    """A number, or minus infinity, for sorting."""
    value = number(dataset, name)
    return -math.inf if value is None or math.isnan(value) else value


def numbers(dataset: Any, name: str, count: int) -> tuple[float, ...] | None:
    """A multi-valued number, or None where it lacks, is incomplete or not finite."""
    value = dataset.get(name)
    try:
        values = tuple(float(part) for part in value) if value is not None else ()
    except (TypeError, ValueError):
        return None
    if len(values) != count or not all(math.isfinite(part) for part in values):
        return None
    return values


def whole(dataset: Any, name: str, default: int) -> int:
    """A whole number, or ``default`` where it lacks.

    Raises:
        UnreadableFileError: when it is something else.
    """
    value = dataset.get(name)
    if value is None or value == "":
        return default
    try:
        return int(value)
    except (TypeError, ValueError):
        raise UnreadableFileError(
            f"the DICOM element {name} is {str(value)[:40]!r}, expected a whole number",
            hint="the header is damaged; copy the file again",
        ) from None


def positive(dataset: Any, name: str) -> float | None:
    """The magnitude of a number, or None where it lacks, is zero or not finite."""
    try:
        value = abs(float(dataset.get(name)))
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and value > 0 else None


def header_thickness(dataset: Any) -> tuple[float | None, str]:
    """What the header says about the distance of slices, in mm, and where it says so."""
    holders = [dataset]
    for sequence in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in (dataset.get(sequence) or ())[:1]:
            holders += list(group.get("PixelMeasuresSequence") or ())[:1]
    for name in ("SpacingBetweenSlices", "SliceThickness"):
        for holder in holders:
            value = positive(holder, name)
            if value is not None:
                return value, name
    return None, "SliceThickness"
