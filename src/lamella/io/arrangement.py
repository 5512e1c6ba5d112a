"""Stored axes → axes in the order t, c, z, y, x, without reading anything.

Formats that store axes in any order, or do not name them, decide on an :class:`AxesPlan`;
:func:`arranged` turns their array accordingly, region by region.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import AxesError
from lamella.volume import Axes, FunctionArray, LazyArray, Note
from lamella.volume.axes import ORDER

__all__ = ["AxesPlan", "arranged", "guess_axes", "make_plan", "plan_as_told", "with_recorded_axes"]

MAX_CHANNELS = 8
"""A nameless axis no longer than this, beside a longer one, is taken for channels."""


@dataclass(frozen=True, slots=True)
class AxesPlan:
    """Which stored axes become which.

    Args:
        axes: of the volume.
        groups: for each of ``axes`` the stored axes that make it up (none for an axis of length 1).
        notes: what had to be assumed.
    """

    axes: Axes
    groups: tuple[tuple[int, ...], ...]
    notes: tuple[Note, ...] = ()

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the volume for a stored shape."""
        return tuple(math.prod(stored[i] for i in group) for group in self.groups)


def plan_as_told(stored: tuple[int, ...], wanted: str) -> AxesPlan:
    """A plan after the user's ``--axes``.

    Args:
        stored: lengths of the stored axes.
        wanted: a letter for each, in the stored order, such as ``"zyxc"``.

    Raises:
        AxesError: when the letters do not fit.
    """
    names = wanted.lower()
    if len(names) != len(stored) or len(set(names)) != len(names) or set(names) - set(ORDER):
        raise AxesError(
            f"--axes {wanted} does not fit an image of {len(stored)} axes, {stored}",
            hint=f"name each of the {len(stored)} axes once with letters out of tczyx",
        )
    return make_plan({name: (at,) for at, name in enumerate(names)})


def make_plan(groups: Mapping[str, tuple[int, ...]], notes: tuple[Note, ...] = ()) -> AxesPlan:
    """A plan from which stored axes make up which; y and x are added where nothing does."""
    found = dict(groups)
    for name in ("y", "x"):
        found.setdefault(name, ())
    names = tuple(name for name in ORDER if name in found)
    return AxesPlan(Axes(names), tuple(found[name] for name in names), notes)


def with_recorded_axes(plan: AxesPlan, recorded: str | None) -> AxesPlan:
    """The plan with the axes of length 1 that the writer had."""
    if recorded is None or not set(plan.axes.names) <= set(recorded):
        return plan
    groups = dict(zip(plan.axes.names, plan.groups, strict=True))
    axes = Axes.parse(recorded)
    return AxesPlan(axes, tuple(groups.get(name, ()) for name in axes.names), plan.notes)


def guess_axes(stored: tuple[int, ...], wanted: str | None, recorded: str | None) -> AxesPlan:
    """A plan for an array without names: the user's, the record's, or the one likely reading.

    Args:
        stored: the array's shape.
        wanted: ``--axes``.
        recorded: axes that Lamella wrote beside the array.

    Raises:
        AxesError: when there is no likely reading, or the user's does not fit.
    """
    n = len(stored)
    if wanted is not None:
        return plan_as_told(stored, wanted)
    if recorded is not None and len(recorded) == n:
        return plan_as_told(stored, recorded)
    if n == 2:
        return make_plan({"y": (0,), "x": (1,)})
    if n == 3 and not (stored[2] in (3, 4) and min(stored[:2]) > 2 * MAX_CHANNELS):
        return make_plan({"z": (0,), "y": (1,), "x": (2,)})
    names = "yxc" if n == 3 else _four(stored) if n == 4 else ""
    if not names:
        raise AxesError(
            f"an array of shape {stored} does not say what its axes are",
            hint=f"name them in their order, as in --axes {'tczyx'[-n:] if 1 < n < 6 else 'zyx'}",
        )
    message = f"axes taken as {names} from the shape {stored}: correct with --axes"
    plan = plan_as_told(stored, names)
    return AxesPlan(plan.axes, plan.groups, (Note("axes_assumed", message),))


def _four(stored: tuple[int, ...]) -> str:
    """Channels first or last, if one of the two is short and everything between is not."""
    first, last = stored[0] <= MAX_CHANNELS, stored[3] <= MAX_CHANNELS
    if first == last or min(stored[1:3]) <= MAX_CHANNELS:
        return ""
    return "czyx" if first else "zyxc"


def arranged(source: LazyArray, plan: AxesPlan) -> LazyArray:
    """A stored array in the order of the plan's axes."""
    stored = tuple(int(n) for n in source.shape)
    if plan.groups == tuple((i,) for i in range(len(stored))):
        return source
    shape = plan.shape(stored)

    def read(slices: tuple[slice, ...]) -> NDArray[Any]:
        inner = [slice(0, n) for n in stored]
        cuts: list[slice] = []
        for group, part in zip(plan.groups, slices, strict=True):
            cuts.append(slice(0, part.stop - part.start) if len(group) < 2 else part)
            if len(group) == 1:
                inner[group[0]] = part
            elif len(group) == 2:
                # Of two axes made one, whole rows are read and the rest is cut off.
                minor = stored[group[1]]
                first = part.start // minor
                inner[group[0]] = slice(first, -(-part.stop // minor))
                cuts[-1] = slice(part.start - first * minor, part.stop - first * minor)
        block = np.asarray(source[tuple(inner)])
        order = [at for group in plan.groups for at in group]
        turned = block.transpose(order)
        merged = tuple(math.prod(block.shape[at] for at in group) for group in plan.groups)
        return turned.reshape(merged)[tuple(cuts)]

    return FunctionArray(shape, source.dtype, read)
