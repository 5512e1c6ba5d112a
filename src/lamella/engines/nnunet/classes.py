"""What the outputs of a network mean: classes by softmax, or overlapping regions by sigmoid.

Examples:
    >>> rule = ClassRule.parse({"labels": {"background": 0, "cell": 1, "nucleus": 2}})
    >>> rule.n_outputs, rule.values, rule.has_regions
    (3, (0, 1, 2), False)
    >>> labels = {"background": 0, "whole": [1, 2], "core": 2}
    >>> ClassRule.parse({"labels": labels, "regions_class_order": [1, 2]}).values
    (1, 2)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lamella.core.errors import ModelError

__all__ = ["ClassRule"]

_HINT = "labels must be 0 (background), 1, 2, ... without gaps, and 'ignore' the highest"


@dataclass(frozen=True, slots=True)
class ClassRule:
    """Outputs of a network.

    Attributes:
        values: label value of each output; with regions, later outputs overwrite earlier ones.
        names: name of each output.
        has_regions: whether outputs are decided one by one (sigmoid) instead of against each other.
        foreground: all label values but background and ignore: the channels of a cascade.
        ignore: value that marks voxels nobody annotated; never predicted.
    """

    values: tuple[int, ...]
    names: tuple[str, ...]
    has_regions: bool
    foreground: tuple[int, ...]
    ignore: int | None

    @classmethod
    def parse(cls, dataset: Mapping[str, Any]) -> ClassRule:
        """Read ``labels`` and ``regions_class_order`` of a ``dataset.json``.

        Raises:
            ModelError: for a class map nnU-Net itself would refuse, or that contradicts itself.
        """
        labels = dataset.get("labels")
        if not isinstance(labels, Mapping) or _members(labels.get("background")) != (0,):
            raise ModelError(
                "dataset.json declares no label 'background' with the value 0",
                hint="old files map values to names; nnU-Net v2 maps names to values",
            )
        ignore = labels.get("ignore")
        parts = {str(k): _members(v) for k, v in labels.items() if k != "ignore"}
        every = sorted({value for part in parts.values() for value in part})
        if ignore is not None and (not isinstance(ignore, int) or ignore != every[-1] + 1):
            raise ModelError(
                f"dataset.json: the ignore label is {ignore!r}, expected {every[-1] + 1}",
                hint=_HINT,
            )
        foreground = tuple(value for value in every if value != 0)
        if any(len(part) > 1 for part in parts.values()):
            return cls._of_regions(parts, dataset.get("regions_class_order"), foreground, ignore)
        if every != list(range(len(every))):
            raise ModelError(f"dataset.json: the labels are {every}", hint=_HINT)
        by_value = {part[0]: name for name, part in parts.items()}
        names = tuple(by_value[value] for value in every)
        return cls(tuple(every), names, False, foreground, ignore)

    @classmethod
    def _of_regions(
        cls,
        parts: Mapping[str, tuple[int, ...]],
        order: Any,
        foreground: tuple[int, ...],
        ignore: int | None,
    ) -> ClassRule:
        regions = [name for name, part in parts.items() if set(part) != {0}]
        if not isinstance(order, list | tuple) or len(order) != len(regions):
            raise ModelError(
                f"dataset.json: regions_class_order is {order!r}, but there are"
                f" {len(regions)} regions: {', '.join(regions)}",
                hint="it names the label value of each region, in the order of the regions",
            )
        return cls(tuple(int(v) for v in order), tuple(regions), True, foreground, ignore)

    @property
    def n_outputs(self) -> int:
        """Channels of the network's output."""
        return len(self.values)

    @property
    def named_values(self) -> tuple[tuple[int, str], ...]:
        """Value and name of every class that may be found, background left out."""
        pairs = zip(self.values, self.names, strict=True)
        return tuple(sorted((value, name) for value, name in pairs if value != 0))


def _members(value: Any) -> tuple[int, ...]:
    if isinstance(value, list | tuple):
        return tuple(sorted({int(member) for member in value}))
    return (int(value),) if isinstance(value, int) else ()
