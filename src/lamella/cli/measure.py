"""``lamella measure``: a table of objects from labels on disk."""

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import Console, ConsoleSink, table
from lamella.cli.parameters import answer_options, console_of, input_options, open_options

if TYPE_CHECKING:
    from lamella.measurement import ObjectTable
    from lamella.volume.labels import Labels

__all__ = ["command"]

_SHOWN = 20
"""Rows printed; the file has them all."""


@click.command()
@click.argument("labels", type=click.Path(path_type=Path))
@click.option("--image", type=click.Path(path_type=Path), help="Measure intensities in this image.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write all rows as CSV.")
@click.option(
    "--components", is_flag=True, help="Number the connected pieces of every label first."
)
@click.option("--surface/--no-surface", default=True, help="Surface areas (most of the time).")
@click.option("--overwrite", is_flag=True, help="Replace the output if it is there.")
@input_options
@answer_options
def command(
    labels: Path, image: Path | None, output: Path | None, components: bool, **words: Any
) -> None:
    """Measure every object in LABELS: voxels, volume, surface, place, intensity.

    A row is a label: an object where labels are instances, a whole class otherwise; with
    --components a row is a connected piece. Lengths are in the unit of the spacing, and the names
    of the columns say which.
    """
    from lamella.core.errors import OutputExistsError
    from lamella.io.format import open_labels, open_volume
    from lamella.measurement import MeasureOptions, measure_labels

    console = console_of(words)
    options = open_options(words)
    given = open_labels(labels, options)
    # Time, channel and dataset choose within LABELS; an image has its own.
    plain = replace(options, dataset=None, level=0, axes=None)
    intensities = None if image is None else open_volume(image, plain)
    if output is not None and output.exists() and not words["overwrite"]:
        raise OutputExistsError(f"{output} exists", hint="add --overwrite to replace it")
    if not given.spacing.is_calibrated:
        console.warn(f"{labels}: no spacing is known; sizes are in voxels (--spacing sets it)")
    with ExitStack() as stack:
        sink = stack.enter_context(console.running(on_stop="nothing is written"))
        classes = None
        if components:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="lamella-"))
            given, classes = _numbered(given, Path(scratch), sink), given
        found = measure_labels(
            given,
            intensities,
            classes=classes,
            options=MeasureOptions(surface=words["surface"]),
            sink=sink,
        )
    if output is not None:
        found.write_csv(output, overwrite=words["overwrite"])
    _answer(console, found, output)


def _numbered(given: "Labels", scratch: Path, sink: ConsoleSink) -> "Labels":
    """Connected pieces as instances, in a scratch file."""
    import numpy as np

    from lamella.instances import label_components_blockwise

    created: list[Any] = []

    def create(dtype: Any) -> Any:
        created.append(np.memmap(scratch / "ids", dtype, "w+", shape=tuple(given.shape)))
        return created[0]

    label_components_blockwise(given.data, create, sink=sink)
    return replace(given, data=created[0], is_instance=True, levels=())


def _answer(console: Console, found: "ObjectTable", output: Path | None) -> None:
    columns = {name: values.tolist() for name, values in found.columns().items()}
    document: dict[str, Any] = {"unit": found.unit, "n_objects": len(found)}
    if output is not None:
        document["path"] = str(output)
    else:
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        document["objects"] = [{k: _json(v) for k, v in row.items()} for row in rows]
    console.answer(document, lambda: _text(columns, len(found), output))


def _json(value: Any) -> Any:
    """JSON has no nan."""
    return None if isinstance(value, float) and value != value else value


def _text(columns: dict[str, list[Any]], n_objects: int, output: Path | None) -> str:
    """The first rows with the columns that fit a terminal, and what there is in all."""
    hidden = ("box_", "equivalent_", "intensity_min", "intensity_max")
    shown = [name for name in columns if not name.startswith(hidden)]
    if any(name.startswith("centroid") and not name.endswith("_vox") for name in shown):
        shown = [n for n in shown if not (n.startswith("centroid") and n.endswith("_vox"))]
    if not any(columns["class"]):
        shown.remove("class")
    rows = list(zip(*(columns[name][:_SHOWN] for name in shown), strict=True))
    lines = [table(rows, shown)] if rows else []
    if n_objects > _SHOWN:
        lines.append(f"... and {n_objects - _SHOWN} more")
    lines.append(f"{n_objects} objects" if n_objects else "no objects: every label is 0")
    if output is not None:
        lines.append(f"wrote {output}")
    return "\n".join(lines)
