"""``lamella segment``: from files to labels, objects and a report, one run folder each."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lamella.cli.blocks import block_options, opened_blocks, take_block_words
from lamella.cli.console import Console
from lamella.cli.failure import EXIT_INPUT
from lamella.cli.parameters import answer_options, console_of, input_options, is_given
from lamella.cli.remote import elsewhere_options
from lamella.cli.sections import SEGMENT_SECTIONS, SectionedCommand
from lamella.cli.segmenting import (
    build_request,
    objects_options,
    request_options,
    run_document,
    run_text,
    stopped,
    tell_problem,
    trust_option,
)
from lamella.core.errors import InputError, LamellaError, RunCancelledError

if TYPE_CHECKING:
    from lamella.workflows.run import Run
    from lamella.workflows.segment import RunOptions

__all__ = ["command"]

# Labels go back into the format of the input where that keeps them exactly.
_LABEL_SUFFIXES = (
    ".nii.gz", ".nii", ".nrrd", ".mrc", ".rec", ".map", ".ome.tif", ".ome.tiff", ".tif", ".tiff",
    ".h5", ".hdf5", ".ome.zarr", ".zarr", ".npy", ".dcm",
)  # fmt: skip


@click.command(cls=SectionedCommand, sections=SEGMENT_SECTIONS)
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path),
    help="Also write the labels here; a folder for several inputs.",
)  # fmt: skip
@click.option(
    "--run-dir", type=click.Path(path_type=Path),
    help="Run folder; ./NAME.MODEL.run unless given. For several inputs: the folder around them.",
)  # fmt: skip
@request_options
@objects_options
@trust_option
@click.option("--preview/--no-preview", default=True, help="Coarse labels of the whole first.")
@input_options
@click.option(
    "--resume/--fresh", default=True,
    help="Go on with unfinished work (default), or start anew whatever the folder holds.",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace the output; run a finished run again.")
@block_options
@elsewhere_options
@answer_options
def command(
    inputs: Sequence[Path],
    output: Path | None,
    run_dir: Path | None,
    *,
    resume: bool,
    overwrite: bool,
    trust: bool,
    **words: Any,
) -> int:
    """Segment each of INPUTS and leave a run folder with labels, objects and a report.

    Interrupted? The same command again goes on where it stopped, and the labels are the same
    to the last bit. With --server the same happens on a server, and the run comes here.
    """
    from lamella.workflows.segment import RunOptions

    console = console_of(words)
    jobs = _plan(inputs, output, run_dir, words["model"])
    cut = take_block_words(words)
    if words["server"] is not None:
        from lamella.cli.segment_remote import segment_remotely

        if any(cut.values()):
            raise InputError(
                "a server decides by itself who segments",
                hint="leave out --block, --block-workers, --scheduler and --cluster",
            )
        flags = {"resume": resume, "overwrite": overwrite, "trust": trust}
        return segment_remotely(jobs, words | flags, console)
    if is_given(words, "token", "pin", "insecure"):
        raise InputError("--token, --pin and --insecure are about a server", hint="add --server")
    options = RunOptions(Path(), not resume, overwrite=overwrite, is_trusted=trust)
    with opened_blocks(cut) as blocks:
        runs, problems = _segment_all(jobs, replace(options, blocks=blocks), words, console)
    document = {"runs": [run_document(run) for run in runs]}
    if problems:
        document["problems"] = problems
    console.answer(document, lambda: "\n".join(run_text(run, console) for run in runs))
    return EXIT_INPUT if problems else 0


def _segment_all(
    jobs: Sequence[tuple[Path, Path, Path | None]],
    common: "RunOptions",
    words: dict[str, Any],
    console: Console,
) -> "tuple[list[Run], list[dict[str, Any]]]":
    runs: list[Run] = []
    problems: list[dict[str, Any]] = []
    for path, folder, export in jobs:
        options = replace(common, run_dir=folder, export=export)
        if len(jobs) > 1:
            console.say(f"{path}  ({len(runs) + len(problems) + 1} of {len(jobs)})")
        try:
            runs.append(_segment(path, options, words, console))
        except RunCancelledError as error:
            raise stopped(error, folder) from error
        except LamellaError as error:
            # One bad file of many must not cost the others their turn.
            if len(jobs) == 1:
                raise
            problems.append(tell_problem(path, error, console))
    return runs, problems


def _segment(path: Path, options: "RunOptions", words: dict[str, Any], console: Console) -> "Run":
    from lamella.workflows.segment import segment

    request = build_request(path, words)
    with console.running(on_stop="finished work is kept") as sink:
        return segment(request, options, sink=sink)


def _plan(
    inputs: Sequence[Path], output: Path | None, run_dir: Path | None, model: str
) -> list[tuple[Path, Path, Path | None]]:
    """Input, run folder and output of every job.

    Raises:
        InputError: when two would write to the same place.
    """
    from lamella.workflows.api import run_folder_name

    many = len(inputs) > 1
    if many and output is not None and (output.is_file() or _names_labels(output)):
        raise InputError(
            f"-o {output} names one file, but there are {len(inputs)} inputs",
            hint="give a folder: -o results/",
        )
    jobs = []
    for path in inputs:
        name = run_folder_name(path, model)
        folder = Path(name) if run_dir is None else run_dir / name if many else run_dir
        jobs.append((path, folder, _output(path, output, model, is_folder=many)))
    for which, places in (
        ("run folder", [job[1] for job in jobs]),
        ("output", [j[2] for j in jobs]),
    ):
        known = [place for place in places if place is not None]
        twice = sorted({str(place) for place in known if known.count(place) > 1})
        if twice:
            raise InputError(
                f"several inputs share the {which} {twice[0]}",
                hint="segment files of the same name one by one, each with its --run-dir",
            )
    return jobs


def _output(path: Path, output: Path | None, model: str, *, is_folder: bool) -> Path | None:
    from lamella.workflows.api import run_folder_name

    if output is None:
        return None
    names_folder = not _names_labels(output) and (output.is_dir() or not output.suffix)
    if not (is_folder or names_folder):
        return output
    lower = path.name.lower()
    # A single DICOM image need not be one that a segmentation can refer to: -o NAME.dcm says so.
    usual = [known for known in _LABEL_SUFFIXES if known != ".dcm"]
    suffix = next((known for known in usual if lower.endswith(known)), ".ome.zarr")
    return output / (run_folder_name(path, model).removesuffix(".run") + suffix)


def _names_labels(path: Path) -> bool:
    return path.name.lower().endswith(_LABEL_SUFFIXES)
