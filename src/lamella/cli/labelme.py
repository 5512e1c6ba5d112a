"""``lamella labelme``: drawings of people become data sets to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lamella.cli.conversion import answer_conversion, conversion_options, conversion_options_of
from lamella.cli.parameters import console_of

__all__ = ["command"]


@click.group(name="labelme")
def command() -> None:
    """Turn Labelme drawings into label images."""


@command.command(name="convert")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@conversion_options
def convert_command(source: Path, target: Path, **words: Any) -> None:
    """Convert the Labelme files in SOURCE and all folders below it.

    Later shapes lie on top; shapes of one label and group are one object; __ignore__ becomes 255
    in label images. All files are checked before any is written.
    """
    from lamella.training.annotations.convert import convert_labelme

    console = console_of(words)
    options = conversion_options_of(words)
    with console.running() as sink:
        made = convert_labelme(source, target, options, sink=sink)
    answer_conversion(console, made)
