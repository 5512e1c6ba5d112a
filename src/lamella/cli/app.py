"""The ``lamella`` command: which commands there are, and what happens when one fails.

Commands are listed with a line of help each and imported when called, so ``lamella --help``
imports nothing but click. Exit codes:

====  ==============================================================
0     done
1     a defect of Lamella (please report it)
2     bad input, bad options, or anything else with a clear reason
3     the command did its work and the answer is no (``reproduce`` found differences)
130   stopped with Ctrl-C; finished work is kept
141   whoever read the output went away (``lamella info ... | head``)
====  ==============================================================
"""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
from click.shell_completion import CompletionItem

from lamella.cli.failure import EXIT_BROKEN_PIPE, report, wants_debug, wants_json

__all__ = ["COMMANDS", "CommandEntry", "cli", "main"]


@dataclass(frozen=True, slots=True)
class CommandEntry:
    """A command as it is listed: ``module`` has an attribute ``command``."""

    name: str
    module: str
    help: str
    section: str


def _entries() -> tuple[CommandEntry, ...]:
    sections: dict[str, tuple[tuple[str, str], ...]] = {
        "Files": (
            ("info", "Say what a file holds, and what is odd about it."),
            ("convert", "Write a volume or labels in another format."),
            ("quality", "How noisy and how blurred images are, with reasons."),
            ("restore", "Denoise or deblur an image, or let its quality decide."),
        ),
        "Segmentation": (
            ("segment", "Segment volumes or images with a model."),
            ("detect", "Find the vertebrae of a CT: levels, places, doubts."),
            ("preview", "Labels of the whole volume in seconds, coarse."),
            ("resume", "Go on with an interrupted run."),
            ("reproduce", "Run a finished run again and compare the labels."),
        ),
        "Results": (
            ("measure", "Measure every object: size, surface, intensity."),
            ("evaluate", "Compare labels with a reference: Dice, splits, merges."),
            ("clean", "Remove small objects, fill holes, keep the largest."),
            ("link", "Join objects of single slices to objects in 3-D."),
        ),
        "Models and engines": (
            ("models", "List, pull, import, verify and remove models."),
            ("engines", "List what can segment here, or why it cannot."),
        ),
        "Training": (("train", "Train a model from annotated images."),),
        "Training data": (
            ("dataset", "Check, split and convert data to train on."),
            ("labelme", "Turn Labelme drawings into label images."),
            ("cellmap", "CellMap challenge: index, train, predict, score, pack."),
        ),
        "Server": (
            ("serve", "Serve segmentation: uploads, a queue, results."),
            ("tokens", "Add, list and revoke tokens of a server."),
            ("login", "Keep the token and the certificate of a server."),
            ("submit", "Queue segmentations on a server and leave."),
            ("jobs", "List, watch, cancel, retry and download jobs."),
            ("uploads", "List and remove what lies on a server."),
        ),
        "More": (
            ("simulate", "Make tomograms or nuclei with known labels."),
            ("demo", "Simulate, segment and score a small tomogram."),
            ("doctor", "Check this installation and say what is missing."),
            ("completion", "Print the completion script of a shell."),
        ),
    }
    return tuple(
        CommandEntry(name, f"lamella.cli.{name}", text, section)
        for section, commands in sections.items()
        for name, text in commands
    )


COMMANDS: tuple[CommandEntry, ...] = _entries()


class LazyGroup(click.Group):
    """A group whose commands are listed from :data:`COMMANDS` and imported when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of the help."""
        return [entry.name for entry in COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None for an unknown name."""
        for entry in COMMANDS:
            if entry.name == cmd_name:
                command: click.Command = importlib.import_module(entry.module).command
                return command
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, but an unknown name names its neighbours."""
        if args and args[0] not in self.list_commands(ctx) and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=2, cutoff=0.65)
            advice = f"did you mean {' or '.join(near)}?" if near else "see lamella --help"
            raise click.UsageError(f"there is no command {args[0]!r}; {advice}", ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, by section, without importing them."""
        width = max(len(entry.name) for entry in COMMANDS)
        for section in dict.fromkeys(entry.section for entry in COMMANDS):
            rows = [
                (entry.name.ljust(width), entry.help)
                for entry in COMMANDS
                if entry.section == section
            ]
            with formatter.section(section):
                formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete command names without importing the commands."""
        names = [
            CompletionItem(entry.name, help=entry.help)
            for entry in COMMANDS
            if entry.name.startswith(incomplete)
        ]
        return names or super().shell_complete(ctx, incomplete)


def _print_version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"lamella {version('lamella')}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="lamella COMMAND --help tells all about a command.",
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version,
    help="Print the version and stop.",
)  # fmt: skip
@click.option(
    "--debug", is_flag=True, expose_value=False, help="Show tracebacks (also LAMELLA_DEBUG=1)."
)
def cli() -> None:
    """From a microscopy or CT volume to a measured, reproducible segmentation.

    Start with: lamella info FILE, then lamella segment FILE --model membrane-3d
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Args:
        arguments: words after ``lamella``; those of the process unless given.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = wants_debug(words)
    if not debug:
        # What foreign packages warn about is for developers; our own warnings are events.
        import warnings

        warnings.simplefilter("ignore")
    try:
        result: Any = cli.main(
            args=words, prog_name="lamella", standalone_mode=False,
            complete_var="_LAMELLA_COMPLETE",
        )  # fmt: skip
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):
        # click exits by itself only when the reader went away. Python flushes stdout once more
        # at exit: give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last line of defence
        return report(error, as_json=wants_json(words), debug=debug)
    return result if isinstance(result, int) else 0
