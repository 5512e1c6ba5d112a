"""``lamella cellmap``: data of the CellMap segmentation challenge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import table
from lamella.cli.parameters import answer_options, console_of, parse_spacing

if TYPE_CHECKING:
    from lamella.training.cellmap.grid import Triple
    from lamella.training.cellmap.index import CellmapIndex

__all__ = ["command"]


@click.group(name="cellmap")
def command() -> None:
    """Look at data of the CellMap segmentation challenge."""


@command.command(name="index")
@click.argument("root")
@click.option(
    "--voxel-size",
    metavar="Z,Y,X[UNIT]",
    help="Also say which levels are nearest to this voxel size (nm unless a unit is given).",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Also write the answer here, as JSON."
)
@click.option("--overwrite", is_flag=True, help="Replace the output where it is there.")
@answer_options
def index_command(
    root: str, *, voxel_size: str | None, output: Path | None, overwrite: bool, **words: Any
) -> None:
    """List data sets, crops and classes below ROOT (a folder or s3:// address), in nanometres.

    A class of a crop is present, absent (annotated, no voxels) or unknown (nobody looked).
    """
    from lamella.core.errors import OutputExistsError
    from lamella.io.format import storage_errors
    from lamella.training.cellmap.index import index_cellmap

    console = console_of(words)
    if output is not None and output.exists() and not overwrite:
        raise OutputExistsError(f"{output} is already there", hint="use --overwrite to replace it")
    spacing = _spacing(voxel_size)
    with console.running() as sink:
        index = index_cellmap(root, sink=sink)
    document = index.to_dict(spacing=spacing)
    if output is not None:
        with storage_errors(output):
            part = output.with_name(f".{output.name}.part")
            part.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
            part.replace(output)
    for finding in index.findings:
        console.warn(f"{finding.path}: {finding.message}")
    console.answer(document, lambda: _text(index, spacing))


def _spacing(text: str | None) -> Triple | None:
    if text is None:
        return None
    has_unit = any(letter.isalpha() for letter in text)
    known = parse_spacing(text, None if has_unit else "nm")
    assert known is not None, "a text gives a spacing"
    values = known.to("nm").values
    z, y, x = values if len(values) == 3 else (values[0],) * 3
    return z, y, x


def _text(index: CellmapIndex, spacing: Triple | None) -> str:
    lines = []
    for known in index.data_sets:
        raw = " ".join(_size(level.grid.spacing) for level in known.raw) or "none fetched"
        lines.append(f"{known.name}: raw levels {raw} nm")
        rows = []
        for crop in known.crops:
            finest = crop.classes[0].levels[0].grid
            holes = f"{crop.raw_missing[0]} of {crop.raw_chunks[0]}" if crop.raw_missing else "-"
            present = " ".join(c.name for c in crop.classes if c.status == "present")
            absent = " ".join(c.name for c in crop.classes if c.status == "absent")
            shape = " x ".join(map(str, finest.shape))
            rows.append((crop.name, shape, _size(finest.spacing), present, absent, holes))
        titles = ("crop", "labels", "nm", "present", "annotated, absent", "raw chunks missing")
        lines += ["", table(rows, titles), ""]
        if spacing is not None:
            lines += [*_choices(index, spacing), ""]
    return "\n".join(lines).rstrip()


def _choices(index: CellmapIndex, spacing: Triple) -> list[str]:
    document = index.to_dict(spacing=spacing)
    chosen = []
    for data_set in document["data_sets"]:
        picks = [data_set["raw_choice"]]
        picks += [c["choice"] for crop in data_set["crops"] for c in crop["classes"].values()]
        for pick in picks:
            if pick is not None:
                far = "  (resampled by more than a quarter)" if pick["is_resampled_far"] else ""
                chosen.append(f"  {pick['path']}{far}")
    return [f"nearest to {_size(spacing)} nm:", *chosen]


def _size(spacing: Triple) -> str:
    return "x".join(f"{value:g}" for value in spacing)
