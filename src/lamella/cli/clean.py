"""``lamella clean``: labels without specks, holes and stray pieces."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lamella.cli.parameters import answer_options, console_of, input_options, open_options
from lamella.core.errors import InputError

if TYPE_CHECKING:
    from lamella.instances import CleanOptions
    from lamella.volume.labels import Labels

__all__ = ["command"]


@click.command()
@click.argument("labels", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Result.")
@click.option("--min-size", metavar="N[UNIT]", help="Drop what is smaller: 200, 500nm3, 0.2um3.")
@click.option("--fill-holes", is_flag=True, help="Fill background that one object encloses.")
@click.option("--per-slice", is_flag=True, help="Fill holes slice by slice, where tubes are open.")
@click.option("--max-hole", metavar="N[UNIT]", help="Fill only holes up to this size.")
@click.option("--keep-largest", is_flag=True, help="Keep the largest piece of every label.")
@click.option("--relabel", is_flag=True, help="Number the labels 1, 2, 3 ... afterwards.")
@click.option(
    "--instances/--classes", "is_instance", default=None,
    help="Whether a label is one object, connected or not, or a class of many pieces.",
)  # fmt: skip
@click.option("--connectivity", type=int, help="6, 18 or 26 (2-D: 4 or 8); default the largest.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it is there.")
@input_options
@answer_options
def command(labels: Path, output: Path, is_instance: bool | None, **words: Any) -> None:
    """Remove small objects, fill holes and keep the largest piece in LABELS.

    Holes are filled first, then pieces are dropped. Labels of any size are cleaned in flat memory.
    """
    from lamella.instances import clean_labels
    from lamella.io.format import SaveOptions, open_labels, save_volume

    console = console_of(words)
    given = open_labels(labels, open_options(words), is_instance=is_instance)
    options = _options(given, words)
    with (
        console.running(on_stop="nothing is written") as sink,
        tempfile.TemporaryDirectory(prefix="lamella-") as scratch,
    ):
        data = clean_labels(given.data, options, scratch=scratch, sink=sink)
        result = replace(given, data=data, levels=())
        save = SaveOptions(overwrite=words["overwrite"], sink=sink)
        written = save_volume(result, output, save)
    document = {
        "path": str(written),
        "dtype": str(result.dtype),
        "min_size_voxels": options.min_size,
        "fill_holes": options.fill_holes,
        "keep_largest": options.keep_largest,
        "relabel": options.relabel,
        "counted": "labels" if options.are_objects else "connected pieces",
    }
    console.answer(document, f"{written}: cleaned {given.name or labels.name} ({result.dtype})")


def _options(given: "Labels", words: dict[str, Any]) -> "CleanOptions":
    """The options of a command line.

    Raises:
        InputError: when nothing is asked for.
        GeometryError: for a physical size on labels without spacing.
    """
    from lamella.instances import CleanOptions

    asked = ("min_size", "fill_holes", "keep_largest", "relabel")
    if not any(words[name] for name in asked):
        raise InputError(
            "nothing to clean was asked for",
            hint="add --min-size N, --fill-holes, --keep-largest or --relabel",
        )
    for name in ("per_slice", "max_hole"):
        if words[name] and not words["fill_holes"]:
            raise InputError(
                f"--{name.replace('_', '-')} was given without --fill-holes",
                hint="add --fill-holes",
            )
    return CleanOptions(
        fill_holes=words["fill_holes"],
        per_slice=words["per_slice"],
        max_hole=_voxels(words["max_hole"], given),
        min_size=_voxels(words["min_size"], given) or 0,
        keep_largest=words["keep_largest"],
        are_objects=given.is_instance,
        connectivity=words["connectivity"],
        relabel=words["relabel"],
    )


def _voxels(text: str | None, given: "Labels") -> float | None:
    """A size as voxels of these labels; None stays None."""
    from lamella.volume.spacing import Size

    return None if text is None else Size.parse(text).to_voxels(given.spacing)
