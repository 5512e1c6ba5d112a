"""``lamella labelme``: drawings of people become data sets to train on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import Console, table
from lamella.cli.parameters import answer_options, console_of

if TYPE_CHECKING:
    from lamella.training.annotations.classes import ClassList
    from lamella.training.annotations.convert import Conversion

__all__ = ["answer_conversion", "class_list", "command"]


@click.group(name="labelme")
def command() -> None:
    """Turn Labelme drawings into label images."""


@command.command(name="convert")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="Class names, one a line; __ignore__ first if it occurs. Default: the names found.",
)
@click.option("--instances", is_flag=True, help="Also write which object each pixel belongs to.")
@click.option(
    "--format",
    "layout",
    type=click.Choice(("pairs", "voc", "coco")),
    default="pairs",
    help="Image and label pairs for `lamella train`, PASCAL VOC, or COCO.",
)
@click.option("--skip-bad", is_flag=True, help="Leave out files that cannot be converted.")
@click.option("--overwrite", is_flag=True, help="Replace OUT where it is there.")
@answer_options
def convert_command(
    source: Path,
    target: Path,
    *,
    labels: Path | None,
    instances: bool,
    layout: Any,
    skip_bad: bool,
    overwrite: bool,
    **words: Any,
) -> None:
    """Convert the Labelme files in SOURCE and all folders below it.

    Later shapes lie on top; shapes of one label and group are one object; __ignore__ becomes 255
    in label images. All files are checked before any is written.
    """
    from lamella.training.annotations.convert import ConvertOptions, convert_labelme

    console = console_of(words)
    options = ConvertOptions(
        layout=layout,
        classes=None if labels is None else class_list(labels),
        has_instances=instances,
        overwrite=overwrite,
        skip_bad=skip_bad,
    )
    with console.running() as sink:
        made = convert_labelme(source, target, options, sink=sink)
    answer_conversion(console, made)


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


def class_list(path: Path) -> ClassList:
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
