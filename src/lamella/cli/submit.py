"""``lamella submit``: queue jobs on a server and leave."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lamella.cli.failure import EXIT_INPUT
from lamella.cli.parameters import answer_options, console_of, input_options
from lamella.cli.remote import Leaving, connect, leaving, server_options, short_id
from lamella.cli.sections import SEGMENT_SECTIONS, SectionedCommand
from lamella.cli.segmenting import (
    build_request,
    objects_options,
    request_options,
    tell_problem,
)
from lamella.core.errors import LamellaError, RunCancelledError

if TYPE_CHECKING:
    from lamella.client.client import RemoteRun

__all__ = ["command"]


@click.command(cls=SectionedCommand, sections=SEGMENT_SECTIONS)
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@request_options
@objects_options
@click.option("--preview/--no-preview", default=True, help="Coarse labels of the whole first.")
@input_options
@click.option("--name", default="", help="For lists of jobs; the input's name unless given.")
@click.option(
    "--priority", type=click.IntRange(-100, 100), default=0,
    help="Higher runs earlier, among your own jobs.",
)  # fmt: skip
@click.option(
    "--export", "exports", multiple=True, metavar="SUFFIX",
    help="Keep the labels on the server in this format too: .mrc, .nii.gz; repeatable.",
)  # fmt: skip
@server_options
@answer_options
def command(
    inputs: Sequence[Path], name: str, priority: int, exports: tuple[str, ...], **words: Any
) -> int:
    """Upload each of INPUTS to a server, queue its segmentation, and leave.

    INPUTS may also be paths on the server (server:/data/tomo.mrc) or s3:// addresses.
    """
    console = console_of(words)
    jobs: list[RemoteRun] = []
    problems: list[dict[str, Any]] = []
    with connect(words) as client:
        leave = Leaving(client.context.server)
        with leaving(console, leave) as sink:
            for path in inputs:
                try:
                    request = build_request(path, words)
                    jobs.append(
                        client.submit_request(
                            request, name=name, priority=priority, exports=exports, sink=sink
                        )
                    )
                except RunCancelledError:
                    raise
                except LamellaError as error:
                    if len(inputs) == 1:
                        raise
                    problems.append(tell_problem(path, error, console))
                else:
                    sink.clear()
                    leave.n_queued += 1
                    if not console.as_json:
                        click.echo(f"{short_id(jobs[-1].id)}  {path}")
        document: dict[str, Any] = {
            "server": client.context.server,
            "jobs": [job.job.model_dump(mode="json") for job in jobs] if console.as_json else [],
        }
    if problems:
        document["problems"] = problems
    if console.as_json:
        console.answer(document, "")
    elif jobs:
        first = short_id(jobs[0].id)
        console.say(f"`lamella jobs watch` shows them, `lamella jobs download {first}` fetches one")
    return EXIT_INPUT if problems else 0
