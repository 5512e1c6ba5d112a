"""``lamella reproduce``: run a manifest again and compare the labels, voxel for voxel."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lamella.cli.failure import EXIT_NO
from lamella.cli.parameters import answer_options, console_of
from lamella.cli.segmenting import trust_option

if TYPE_CHECKING:
    from lamella.workflows.reproduce import Reproduction

__all__ = ["command"]


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--run-dir", type=click.Path(path_type=Path),
    help="Keep the second run in this folder; a temporary one unless given.",
)  # fmt: skip
@click.option(
    "--input", "source", type=click.Path(path_type=Path), help="Where the input lies now."
)
@trust_option
@answer_options
def command(
    run: Path, run_dir: Path | None, source: Path | None, *, trust: bool, **words: Any
) -> int:
    """Run RUN again from its manifest and say whether the labels are identical.

    The input and the model must be the same bytes as then. Exit code 0: identical; 3: not.
    """
    from lamella.workflows.reproduce import reproduce

    console = console_of(words)
    with console.running() as sink:
        result = reproduce(run, run_dir=run_dir, source=source, sink=sink, is_trusted=trust)
    document = {
        "run": str(run),
        "is_identical": result.is_identical,
        "n_different_voxels": result.n_different,
        "n_voxels": result.n_voxels,
        "labels_sha256": list(result.sha256),
        "changed": {name: list(values) for name, values in result.changed.items()},
        "second_run": None if result.folder is None else str(result.folder),
    }
    console.answer(document, lambda: _text(result))
    return 0 if result.is_identical else EXIT_NO


def _text(result: "Reproduction") -> str:
    if result.is_identical:
        lines = [f"identical: all {result.n_voxels:,} voxels, SHA-256 {result.sha256[0][:16]}..."]
    else:
        share = 100 * result.n_different / max(1, result.n_voxels)
        lines = [f"different: {result.n_different:,} of {result.n_voxels:,} voxels ({share:.3g} %)"]
    lines += [f"  {name}: {was} then, {now} now" for name, (was, now) in result.changed.items()]
    return "\n".join(lines)
