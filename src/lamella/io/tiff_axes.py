"""What the axes of a TIFF series mean, as a plan for t, c, z, y, x.

TIFF files name their axes in a description, or not at all. ``I`` (a sequence of pages) and ``Q``
(unknown) are taken for what they most likely are, with a note; where two readings are equally
likely the user is asked.
"""

from lamella.core.errors import AxesError
from lamella.io.arrangement import MAX_CHANNELS, AxesPlan, make_plan, plan_as_told
from lamella.volume import Note

__all__ = ["plan_axes"]

_KNOWN = {"T": "t", "C": "c", "Z": "z", "Y": "y", "X": "x"}


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
        return plan_as_told(stored, wanted)
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
    return make_plan({name: tuple(group) for name, group in found.items()}, tuple(notes))


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
    return (first <= MAX_CHANNELS) != (second <= MAX_CHANNELS)


def _samples(n: int) -> str:
    return {3: "red, green and blue", 4: "red, green, blue and alpha"}.get(n, f"{n} samples")
