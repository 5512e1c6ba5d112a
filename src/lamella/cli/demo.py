"""``lamella demo``: the main job on a built-in volume, with an answer that can be checked."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import Console, format_duration
from lamella.cli.parameters import answer_options, console_of, parse_integers
from lamella.core.errors import InputError

if TYPE_CHECKING:
    from lamella.workflows.demo import DemoResult

__all__ = ["command"]


@click.command()
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("lamella-demo"),
    show_default=True, help="Folder for the tomogram, its reference, the run and the pictures.",
)  # fmt: skip
@click.option("--model", default="membrane-3d", show_default=True, help="Model to run.")
@click.option(
    "--shape", metavar="Z,Y,X", default="128,160,160", show_default=True,
    help="Of the simulated tomogram, in voxels.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=7, show_default=True)
@answer_options
def command(output: Path, model: str, shape: str, seed: int, **words: Any) -> None:
    """Simulate a tomogram, segment it, and compare the result with what was simulated.

    Needs no data, no network and no GPU.
    """
    from lamella.workflows.demo import run_demo

    console = console_of(words)
    extents = parse_integers(shape, what="--shape")
    if extents is None or len(extents) != 3:
        raise InputError(f"--shape {shape!r} is not z,y,x", hint="write --shape 128,160,160")
    console.say(f"simulating a tomogram of {' x '.join(map(str, extents))} voxels")
    with console.running() as sink:
        result = run_demo(output, model, shape=extents, seed=seed, sink=sink)
    console.answer(_document(result), lambda: _text(result, console))


def _document(result: "DemoResult") -> dict[str, Any]:
    return {
        "tomogram": str(result.tomogram),
        "reference": str(result.reference),
        "run": str(result.run.folder),
        "report": str(result.run.report),
        "pictures": [str(path) for path in result.pictures],
        "preview_s": result.preview_s,
        "run_s": result.run.manifest.elapsed_s,
        "dice": result.dice,
        "surface_dice": result.surface_dice,
        "n_objects": result.n_objects,
        "n_reference_objects": result.n_reference_objects,
    }


def _text(result: "DemoResult", console: Console) -> str:
    surface = ""
    if result.surface_dice is not None:
        surface = f", surface Dice within one voxel {result.surface_dice:.3f}"
    preview = "none" if result.preview_s is None else format_duration(result.preview_s)
    rows = [
        ("preview", f"after {preview}" if result.preview_s is not None else preview),
        ("run", format_duration(result.run.manifest.elapsed_s)),
        ("dice", f"{result.dice:.3f} against the simulated reference{surface}"),
        ("objects", f"{result.n_objects} ({result.n_reference_objects} simulated)"),
        ("tomogram", str(result.tomogram)),
        ("labels", str(result.labels)),
        ("report", str(result.run.report)),
        *(("picture", str(path)) for path in result.pictures),
    ]
    title = console.style(f"{result.run.manifest.model.id} on a simulated tomogram", bold=True)
    return "\n".join([title, *(f"  {name:<8}  {value}" for name, value in rows)])
