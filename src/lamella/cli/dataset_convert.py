"""``lamella dataset convert``: drawings of people become data sets to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lamella.cli.conversion import answer_conversion, conversion_options, conversion_options_of
from lamella.cli.dataset_words import parse_color
from lamella.cli.parameters import console_of

__all__ = ["convert"]


@click.command(short_help="Turn drawings of any program into a data set.")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--from",
    "program",
    type=click.Choice(("labelme", "coco", "geojson", "imagej", "colors")),
    help="What SOURCE holds. Default: as its files look.",
)
@click.option(
    "--images",
    default="",
    metavar="PATTERN",
    help="Images below SOURCE, e.g. 'images/*.tif'; for COCO their folder. Default: all.",
)
@click.option(
    "--annotations",
    default="",
    metavar="PATTERN",
    help="Drawings below SOURCE, e.g. 'rois/*.zip'. Default: all of their kind.",
)
@click.option(
    "--color",
    "colors",
    multiple=True,
    metavar="NAME=COLOR",
    help="Colour of a class in coloured pictures, e.g. axon=#ff0000; black is background.",
)
@click.option(
    "--unclassified",
    default="object",
    show_default=True,
    metavar="NAME",
    help="Class of GeoJSON areas and ImageJ regions that have none.",
)
@conversion_options
def convert(source: Path, target: Path, **words: Any) -> None:
    """Convert the drawings in SOURCE and all folders below it.

    Labelme and COCO (.json), QuPath's GeoJSON, regions of ImageJ (.roi, .zip), and pictures in
    which every class has a colour (--color). Later drawings lie on top; what is to be ignored
    becomes 255 in label images. All files are checked before any is written.
    """
    from lamella.core.errors import InputError
    from lamella.training.annotations.importing import ImportOptions, convert_annotations

    console = console_of(words)
    colors = {}
    for word in words["colors"]:
        name, _, text = word.partition("=")
        try:
            colors[name] = parse_color(text)
        except ValueError:
            raise InputError(
                f"--color {word!r} cannot be understood", hint="write --color axon=#ff0000"
            ) from None
    options = conversion_options_of(words)
    where = ImportOptions(
        program=words["program"],
        images=words["images"],
        annotations=words["annotations"],
        colors=colors,
        unclassified=words["unclassified"],
    )
    with console.running() as sink:
        made = convert_annotations(source, target, where, options, sink=sink)
    answer_conversion(console, made)
