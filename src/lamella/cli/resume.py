"""``lamella resume``: go on with a run that was interrupted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from lamella.cli.parameters import answer_options, console_of
from lamella.cli.segmenting import run_document, run_text, stopped, trust_option
from lamella.core.errors import RunCancelledError

__all__ = ["command"]


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace the output file the run was to write.")
@trust_option
@answer_options
def command(run: Path, *, overwrite: bool, trust: bool, **words: Any) -> None:
    """Go on with the run in the folder RUN, from the last finished layer.

    The labels are the same to the last bit as those of a run that was never interrupted.
    """
    from lamella.workflows.run import Run
    from lamella.workflows.segment import RunOptions, segment

    console = console_of(words)
    known = Run.open(run)
    if known.is_finished:
        result = replace(known, was_finished=True)
    else:
        export = known.manifest.outputs.get("export")
        options = RunOptions(
            run,
            export=None if export is None else Path(export),
            overwrite=overwrite,
            is_trusted=trust,
        )
        try:
            with console.running(on_stop="finished work is kept") as sink:
                result = segment(known.manifest.request, options, sink=sink)
        except RunCancelledError as error:
            raise stopped(error, run) from error
    console.answer(run_document(result), lambda: run_text(result, console))
