"""What the commands that convert drawings share: options, and the answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lamella.cli.console import Console, table
from lamella.cli.parameters import answer_options, stack_options

if TYPE_CHECKING:
    from lamella.training.annotations.classes import ClassList
    from lamella.training.annotations.convert import Conversion, ConvertOptions

__all__ = ["answer_conversion", "conversion_options", "conversion_options_of"]

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--labels",
        type=click.Path(path_type=Path),
        help="Class names, one a line; __ignore__ first if it occurs. Default: the names found.",
    ),
    click.option(
        "--instances", is_flag=True, help="Also write which object each pixel belongs to."
    ),
    click.option(
        "--format",
        "layout",
        type=click.Choice(("pairs", "voc", "coco")),
        default="pairs",
        help="Image and label pairs for `lamella train`, PASCAL VOC, or COCO.",
    ),
    click.option("--skip-bad", is_flag=True, help="Leave out files that cannot be converted."),
    click.option("--overwrite", is_flag=True, help="Replace OUT where it is there."),
    answer_options,
)


def conversion_options(function: F) -> F:
    """Add the options about what is written; see :func:`conversion_options_of`."""
    return stack_options(_OPTIONS, function)


def conversion_options_of(words: dict[str, Any]) -> ConvertOptions:
    """What a command's words say about what is written.

    Raises:
        InputError: for a list of classes that is none.
        MissingPathError: for one that is not there.
        UnreadableFileError: for one that is no text.
    """
    from lamella.training.annotations.convert import ConvertOptions

    return ConvertOptions(
        layout=words["layout"],
        classes=None if words["labels"] is None else _class_list(words["labels"]),
        has_instances=words["instances"],
        overwrite=words["overwrite"],
        skip_bad=words["skip_bad"],
    )


def answer_conversion(console: Console, made: Conversion) -> None:
    """Say what a conversion made, and what it left out."""
    for path, problem in made.problems.items():
        console.warn(f"left out {path}: {problem}")
    document = {
        "folder": str(made.folder),
        "n_images": made.n_images,
        "classes": list(made.classes.names),
        "n_objects": made.n_objects,
        "n_pixels": made.n_pixels,
        "problems": made.problems,
    }
    console.answer(document, lambda: _text(made))


def _class_list(path: Path) -> ClassList:
    """Class names out of a file, one a line.

    Raises:
        MissingPathError: there is none.
        UnreadableFileError: it is no text.
        InputError: it is no list of names.
    """
    from lamella.core.errors import MissingPathError, UnreadableFileError
    from lamella.training.annotations.classes import ClassList

    try:
        return ClassList.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingPathError(f"there is no list of classes at {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableFileError(
            f"the list of classes {path} cannot be read: {error}",
            hint="write it as UTF-8 text, one name a line",
        ) from None


def _text(made: Conversion) -> str:
    total = max(1, sum(made.n_pixels.values()))
    values = {name: value for value, name in enumerate(made.classes.names)}
    rows = [
        (values.get(name, "ignore"), name, made.n_objects.get(name, ""), f"{100 * n / total:.3g} %")
        for name, n in made.n_pixels.items()
        if n or made.n_objects.get(name)
    ]
    head = f"{made.n_images} image{'s' * (made.n_images != 1)} in {made.folder}"
    return f"{head}\n\n{table(rows, ('value', 'class', 'objects', 'of all pixels'))}"
