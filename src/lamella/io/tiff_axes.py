"""What the axes of a TIFF series mean, and how to turn them to t, c, z, y, x.

TIFF files name their axes in a description, or not at all. ``I`` (a sequence of pages) and ``Q``
(unknown) are taken for what they most likely are, with a note; where two readings are equally
likely the user is asked.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import AxesError
from lamella.volume import Axes, FunctionArray, LazyArray, Note
from lamella.volume.axes import ORDER

__all__ = ["AxesPlan", "arranged", "plan_axes"]

_KNOWN = {"T": "t", "C": "c", "Z": "z", "Y": "y", "X": "x"}
_MAX_CHANNELS = 8


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


def plan_axes(letters: str, stored: tuple[int, ...], wanted: str | None) -> AxesPlan:
    """Decide what stored axes mean.

    Args:
        letters: tifffile's letters, one per stored axis longer than 1.
        stored: their lengths.
        wanted: what the user says they are, in the stored order, such as ``"czyx"``.

    Raises:
        AxesError: when the axes are ambiguous, or the user's do not fit.
    """
    if wanted is not None:
        return _as_told(stored, wanted)
    found: dict[str, list[int]] = {}
    unknown: list[int] = []
    samples: int | None = None
    for at, letter in enumerate(letters):
        name = _KNOWN.get(letter)
        if letter == "S":
            samples = at
        elif name is not None and name not in found:
            found[name] = [at]
        else:
            unknown.append(at)
    notes: list[Note] = []
    if samples is not None:
        found.setdefault("c", []).append(samples)
        notes.append(Note("color_samples", f"{_samples(stored[samples])} read as channels"))
    _place_unknown(letters, stored, unknown, found, notes)
    return _plan({name: tuple(group) for name, group in found.items()}, tuple(notes))


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


def _as_told(stored: tuple[int, ...], wanted: str) -> AxesPlan:
    names = wanted.lower()
    if len(names) != len(stored) or len(set(names)) != len(names) or set(names) - set(ORDER):
        raise AxesError(
            f"--axes {wanted} does not fit an image of {len(stored)} axes, {stored}",
            hint=f"name each of the {len(stored)} axes once with letters out of tczyx",
        )
    return _plan({name: (at,) for at, name in enumerate(names)}, ())


def _place_unknown(
    letters: str,
    stored: tuple[int, ...],
    unknown: list[int],
    found: dict[str, list[int]],
    notes: list[Note],
) -> None:
    if not unknown:
        return
    free = [name for name in ("z", "t", "c") if name not in found]
    text = ", ".join(f"{letters[at]} ({stored[at]})" for at in unknown)
    if len(unknown) == 1 and free:
        names = free[:1]
    elif len(unknown) == 2 and {"z", "c"} <= set(free) and _one_is_short(stored, unknown):
        first, second = (stored[at] for at in unknown)
        names = ["c", "z"] if first < second else ["z", "c"]
    else:
        raise AxesError(
            f"the file does not say what its axes {text} are",
            hint=f"name the {len(stored)} axes of {stored} in their order, as in --axes zcyx",
        )
    for at, name in zip(unknown, names, strict=True):
        found[name] = [at]
    taken = " and ".join(f"{n} ({stored[at]})" for at, n in zip(unknown, names, strict=True))
    message = f"the file does not name its axes; taken as {taken}: correct with --axes"
    notes.append(Note("axes_assumed", message))


def _one_is_short(stored: tuple[int, ...], unknown: list[int]) -> bool:
    first, second = (stored[at] for at in unknown)
    return (first <= _MAX_CHANNELS) != (second <= _MAX_CHANNELS)


def _plan(found: dict[str, tuple[int, ...]], notes: tuple[Note, ...]) -> AxesPlan:
    for name in ("y", "x"):
        found.setdefault(name, ())
    names = tuple(name for name in ORDER if name in found)
    return AxesPlan(Axes(names), tuple(found[name] for name in names), notes)


def _samples(n: int) -> str:
    return {3: "red, green and blue", 4: "red, green, blue and alpha"}.get(n, f"{n} samples")
