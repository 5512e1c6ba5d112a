"""Options that several commands share, with one wording each.

A command takes them as decorators::

    @click.command()
    @input_options
    @output_options
    def command(..., **words): options = open_options(words)
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lamella.cli.console import Console
from lamella.core.errors import InputError

if TYPE_CHECKING:
    from lamella.io.format import OpenOptions
    from lamella.volume.spacing import Spacing

__all__ = [
    "answer_options",
    "console_of",
    "input_options",
    "open_options",
    "parse_integers",
    "parse_options",
    "parse_spacing",
    "segment_option",
    "stack_options",
]

F = TypeVar("F", bound=Callable[..., Any])

_INPUT_OPTIONS = (
    click.option("--dataset", help="Dataset inside HDF5 or OME-Zarr; `lamella info` lists them."),
    click.option("--series", help="DICOM or OME-TIFF series: number, UID or part of its name."),
    click.option("--level", type=click.IntRange(min=0), default=0, help="Pyramid level, 0 = full."),
    click.option("--channel", type=click.IntRange(min=0), help="Use this channel only."),
    click.option("--time", type=click.IntRange(min=0), help="Use this time point only."),
    click.option("--axes", help="What the axes mean where the file does not say, e.g. czyx."),
    click.option("--spacing", metavar="Z,Y,X", help="Replaces the header's spacing."),
    click.option("--unit", help="Unit of --spacing: nm, um, mm or angstrom."),
    click.option(
        "--resample-irregular",
        is_flag=True,
        help="Resample uneven, tilted or missing slices instead of refusing them.",
    ),
)

_ANSWER_OPTIONS = (
    click.option("--json", "as_json", is_flag=True, help="Answer with one JSON document."),
    click.option("-q", "--quiet", is_flag=True, help="Draw no progress."),
)


def input_options(function: F) -> F:
    """Add the options that say how an input is read; see :func:`open_options`."""
    return stack_options(_INPUT_OPTIONS, function)


def segment_option(function: F) -> F:
    """Add ``--segment``: one segment of a DICOM segmentation; part of :func:`open_options`."""
    return click.option(
        "--segment",
        metavar="N",
        help="Only this segment of a DICOM segmentation, by number or label.",
    )(function)


def answer_options(function: F) -> F:
    """Add ``--json`` (``as_json``) and ``--quiet``; see :func:`console_of`."""
    return stack_options(_ANSWER_OPTIONS, function)


def console_of(words: dict[str, Any]) -> Console:
    """Take ``as_json`` and ``quiet`` out of a command's words."""
    return Console(as_json=words.pop("as_json", False), quiet=words.pop("quiet", False))


def open_options(words: dict[str, Any]) -> "OpenOptions":
    """Take the input options out of a command's words.

    Raises:
        GeometryError: for a spacing that is none.
        InputError: for a unit without a spacing.
    """
    from lamella.io.format import OpenOptions

    spacing = parse_spacing(words.pop("spacing", None), words.pop("unit", None))
    names = (
        "dataset", "series", "segment", "level", "channel", "time", "axes", "resample_irregular",
    )  # fmt: skip
    chosen = {name: words.pop(name) for name in names if name in words}
    return OpenOptions(spacing=spacing, **chosen)


def parse_spacing(text: str | None, unit: str | None) -> "Spacing | None":
    """``--spacing`` and ``--unit`` as a value.

    Raises:
        GeometryError: when the text is no spacing.
        InputError: for a unit alone.
    """
    from lamella.volume.spacing import Spacing

    if text is None:
        if unit is not None:
            raise InputError("--unit was given without --spacing", hint="give --spacing z,y,x too")
        return None
    return Spacing.parse(text, unit)


def parse_integers(text: str | None, *, what: str) -> tuple[int, ...] | None:
    """``"64,64,64"`` as numbers; None stays None.

    Raises:
        InputError: when a part is no whole number ≥ 1.
    """
    if text is None:
        return None
    try:
        values = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        values = ()
    if not values or min(values) < 1:
        raise InputError(
            f"{what} {text!r} is not a list of whole numbers", hint=f"write {what} 64,128,128"
        )
    return values


def parse_options(pairs: tuple[str, ...]) -> dict[str, Any]:
    """``--option k=v`` pairs; values are JSON where they parse as such, else text.

    Raises:
        InputError: for a pair without ``=``, and for a key given twice.

    Examples:
        >>> parse_options(("method=otsu", "radius=4.5", "strict=true"))
        {'method': 'otsu', 'radius': 4.5, 'strict': True}
    """
    import json

    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise InputError(f"--option {pair!r} has no '='", hint="write --option name=value")
        if key in options:
            raise InputError(f"--option {key} is given twice", hint="give it once")
        try:
            options[key] = json.loads(text)
        except json.JSONDecodeError:
            options[key] = text
    return options


def stack_options(options: Iterable[Callable[[F], F]], function: F) -> F:
    """Add options to a command, listed in their order by ``--help``."""
    for option in reversed(tuple(options)):
        function = option(function)
    return function


def is_given(words: Mapping[str, Any], *names: str) -> bool:
    """Whether any of these words was given (is neither None nor False)."""
    return any(words.get(name) not in (None, False) for name in names)
