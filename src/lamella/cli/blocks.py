"""Options that cut a volume into blocks, and who then segments them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lamella.cli.parameters import is_given, parse_integers, parse_options, stack_options
from lamella.core.errors import InputError

if TYPE_CHECKING:
    from lamella.jobs.batch_system import ClusterOptions
    from lamella.workflows.blocks import BlockOptions

__all__ = ["block_options", "opened_blocks", "take_block_words"]

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--block-workers", type=click.IntRange(1), metavar="N",
        help="Cut the volume into blocks for N processes of this machine; the labels are the same.",
    ),
    click.option(
        "--scheduler", metavar="ADDRESS",
        help="... for the workers of this Dask scheduler (tls://HOST:8786), which see these files.",
    ),
    click.option(
        "--cluster", type=click.Choice(["local", "slurm", "pbs", "lsf"]),
        help="... for workers that this command starts as jobs of a batch system.",
    ),
    click.option(
        "--cluster-option", "cluster_options", multiple=True, metavar="NAME=VALUE",
        help="For --cluster: maximum=8, cores=4, memory=16GB, queue=gpu, ...; for tls:// schedulers"
        " tls_ca=FILE, tls_cert=FILE, tls_key=FILE.",
    ),
    click.option("--block", metavar="Z,Y,X", help="Voxels of a block; chosen unless given."),
)  # fmt: skip
_FOR_SCHEDULERS = ("tls_ca", "tls_cert", "tls_key", "resources")
_MOST_WORKERS = 4
_NAMES = ("block_workers", "scheduler", "cluster", "cluster_options", "block")


def block_options(function: F) -> F:
    """Add the options; see :func:`opened_blocks`."""
    return stack_options(_OPTIONS, function)


def take_block_words(words: dict[str, Any]) -> dict[str, Any]:
    """The words of these options, taken out of all words."""
    return {name: words.pop(name) for name in _NAMES}


@contextmanager
def opened_blocks(words: dict[str, Any]) -> "Iterator[BlockOptions | None]":
    """Who segments blocks, for as long as the block lasts; None where nothing is to be cut.

    Args:
        words: of :func:`take_block_words`.

    Raises:
        InputError: for words that contradict each other.
        ServerConnectionError: when no scheduler answers.
        MissingDependencyError: when Dask is not installed here.
    """
    ways = [name for name in _NAMES[:3] if words[name] is not None]
    if not ways:
        if is_given(words, "block") or words["cluster_options"]:
            raise InputError(
                "--block and --cluster-option say how others segment blocks, but nobody is named",
                hint="add --block-workers N, --scheduler ADDRESS or --cluster KIND",
            )
        yield None
        return
    if len(ways) > 1:
        flags = " and ".join("--" + name.replace("_", "-") for name in ways)
        raise InputError(f"{flags} exclude each other", hint="give one of them")
    from lamella.workflows.blocks import BlockOptions

    extent = _extent(words["block"])
    if words["block_workers"] is not None:
        from lamella.jobs.blocks import LocalBlocks

        yield BlockOptions(LocalBlocks(words["block_workers"]), extent)
        return
    from lamella.jobs.blocks import DaskBlocks

    with _cluster_options(words) as options, DaskBlocks(options) as runner:
        yield BlockOptions(runner, extent)


@contextmanager
def _cluster_options(words: dict[str, Any]) -> "Iterator[ClusterOptions]":
    """The options, and for a cluster of our own a folder that all nodes see, for certificates."""
    given = parse_options(words["cluster_options"])
    kind = words["cluster"] or ""
    if not kind:
        yield _options_of(words, given)
        return
    given.setdefault("maximum", _MOST_WORKERS)
    place = str(given.pop("folder", "."))
    try:
        made = TemporaryDirectory(dir=place, prefix=".lamella-cluster-")
    except OSError as error:
        raise InputError(
            f"the cluster's certificates cannot be written in {place!r}: {error.strerror}",
            hint="name a folder that all nodes see with --cluster-option folder=PATH",
        ) from error
    with made as folder:
        yield _options_of(words, given, folder=str(Path(folder).absolute()))


def _options_of(words: dict[str, Any], given: dict[str, Any], folder: str = "") -> "ClusterOptions":
    from lamella.jobs.batch_system import ClusterOptions

    wrong = sorted(set(given) - set(_FOR_SCHEDULERS)) if words["scheduler"] else []
    if wrong:
        raise InputError(
            f"a scheduler that runs already takes no --cluster-option {', '.join(wrong)}",
            hint=f"it takes {', '.join(_FOR_SCHEDULERS)}",
        )
    ours = {name: given.pop(name) for name in _FOR_SCHEDULERS if name in given}
    return ClusterOptions(
        scheduler=words["scheduler"] or "",
        kind=words["cluster"] or "",
        options=given,
        folder=folder,
        name="blocks",
        **ours,
    )


def _extent(text: str | None) -> tuple[int, int, int] | None:
    values = parse_integers(text, what="--block")
    if values is None:
        return None
    if len(values) != 3:
        raise InputError(f"--block {text!r} has {len(values)} numbers", hint="--block 128,512,512")
    return values[0], values[1], values[2]
