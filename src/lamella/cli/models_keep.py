"""``lamella models pull|import|remove|gc|move``: what changes the models folder."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import Console, table
from lamella.cli.parameters import answer_options, console_of
from lamella.core.errors import InputError

if TYPE_CHECKING:
    from lamella.core.places import Places
    from lamella.models.licence import Terms
    from lamella.models.offer import Offers
    from lamella.models.pull import PullResult
    from lamella.workflows.model_store import Wanted

__all__ = [
    "gc_command",
    "import_command",
    "move_command",
    "pull_command",
    "remove_command",
    "size_text",
]

_PATH = click.Path(path_type=Path)
_yes = click.option("-y", "--yes", is_flag=True, help="Do not ask.")
_accept = click.option(
    "--accept-licence", is_flag=True, help="You read the licence and accept it; it is recorded."
)


@click.command(name="pull")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--from", "source", type=_PATH, help="Take the files from here: a file, or a folder of them."
)
@click.option(
    "--mirror", "mirrors", multiple=True, metavar="URL",
    help="Ask here first, for MODEL/FILE and for FILE; a folder will do. May be repeated.",
)  # fmt: skip
@_accept
@click.option("--offline", is_flag=True, help="Ask no web address (also LAMELLA_OFFLINE=1).")
@click.option(
    "--trust-changed", is_flag=True,
    help="Take a file without published hash although another came under this version before.",
)  # fmt: skip
@click.option("--id", "model_id", help="Of an address: its id here; made of its name unless given.")
@click.option(
    "--engine", help="Of an address: whose model it is; asked of all engines unless given."
)
@click.option("--sha256", help="Of an address: what the file must have.")
@answer_options
def pull_command(models: tuple[str, ...], source: Path | None, **words: Any) -> None:
    """Fetch models: MODEL is an id of a catalogue, ENGINE:NAME, or a web address.

    Interrupted pulls go on where they stopped. Every file is verified; nothing appears under its
    name before all of it is there.
    """
    from lamella.core.errors import MissingPathError
    from lamella.models.offer import read_offers
    from lamella.models.pull import PullOptions
    from lamella.workflows.model_store import open_terms, pull_models

    console = console_of(words)
    places = _places(offline=words["offline"])
    if source is not None and not source.expanduser().exists():
        raise MissingPathError(f"there is nothing at {source}", hint="check the path of --from")
    offers = read_offers(places)
    for problem in offers.problems:
        console.warn(problem)
    wanted = _wanted(models, places, offers, words)
    terms = open_terms(wanted, places)
    accepted = words["accept_licence"] or _ask_for_licences(terms, console)
    options = PullOptions(
        mirrors=words["mirrors"],
        source=None if source is None else source.expanduser().absolute(),
        accepts_licence=accepted,
        trusts_change=words["trust_changed"],
    )
    with console.running(on_stop="what came is kept: run the same command to go on") as sink:
        results = pull_models(wanted, places, sink, options)
    console.answer(
        {"models": [_pulled(result) for result in results]},
        "\n".join(_pulled_text(result) for result in results),
    )


@click.command(name="import")
@click.argument("source", type=_PATH)
@click.option("--id", "model_id", help="Its id here; made of its name unless given.")
@click.option("--engine", help="Whose model it is, where several engines could run it.")
@click.option("--link", is_flag=True, help="Refer to it where it lies instead of copying it.")
@click.option("--replace", "replaces", is_flag=True, help="Take the place of a model of this id.")
@_accept
@answer_options
def import_command(
    source: Path,
    model_id: str | None,
    engine: str | None,
    link: bool,
    replaces: bool,
    accept_licence: bool,
    **words: Any,
) -> None:
    """Take in a model from SOURCE: a folder, a zip or a file of weights.

    Known are Lamella model folders, what `lamella models export` wrote, and what the engines know:
    nnU-Net folders and exported zips, TotalSegmentator weights, Cellpose files, MONAI bundles.
    """
    from lamella.models.adopt import ImportOptions
    from lamella.workflows.model_store import add_model

    console = console_of(words)
    options = ImportOptions(
        id=model_id,
        engine=engine,
        is_link=link,
        replaces=replaces,
        accepts_licence=accept_licence,
    )
    with console.running() as sink:
        result = add_model(source, _places(), sink, options)
    document = {
        "id": result.id,
        "engine": result.engine,
        "title": result.title,
        "path": str(result.path),
        "n_bytes": result.n_bytes,
        "is_link": result.is_link,
        "usage": result.usage,
    }
    how = "linked" if result.is_link else f"{size_text(result.n_bytes)} copied"
    console.answer(
        document,
        f"{result.id}: {result.title or 'a model'} of {result.engine}, {how}\n"
        f"use it with --model {result.usage}",
    )


@click.command(name="remove")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@_yes
@answer_options
def remove_command(models: tuple[str, ...], yes: bool, **words: Any) -> None:
    """Remove models of yours; of a linked one only the link."""
    from lamella.models.tidy import removable_path, remove_model

    console = console_of(words)
    places = _places()
    paths = [removable_path(name, places) for name in models]
    _confirm(f"remove {', '.join(map(str, paths))}?", console, yes=yes)
    with console.running() as sink:
        removed = [remove_model(name, places, sink) for name in models]
    console.answer(
        {"removed": [str(path) for path in removed]},
        "\n".join(f"removed {path}" for path in removed),
    )


@click.command(name="gc")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@_yes
@answer_options
def gc_command(dry_run: bool, yes: bool, **words: Any) -> None:
    """Clear away unfinished pulls, locks nobody holds, copies of catalogues no longer named."""
    from lamella.models.tidy import find_leftovers, remove_leftovers

    console = console_of(words)
    places = _places()
    found = find_leftovers(places)
    total = sum(one.n_bytes for one in found)
    if found and not dry_run:
        if not (yes or console.as_json):
            click.echo(_leftovers_text(found), err=True)
        _confirm(f"clear away {size_text(total)}?", console, yes=yes)
        with console.running() as sink:
            total = remove_leftovers(found, places, sink)
    document = {
        "leftovers": [
            {"kind": one.kind, "path": str(one.path), "n_bytes": one.n_bytes, "about": one.about}
            for one in found
        ],
        "n_bytes": total,
        "is_removed": bool(found) and not dry_run,
    }

    def text() -> str:
        if not found:
            return "nothing is left over"
        what = "would go" if dry_run else "cleared away"
        return f"{_leftovers_text(found)}\n{size_text(total)} {what}"

    console.answer(document, text)


@click.command(name="move")
@click.argument("target", type=_PATH)
@_yes
@answer_options
def move_command(target: Path, yes: bool, **words: Any) -> None:
    """Move the models folder to TARGET; to another disk it is copied and verified first."""
    from lamella.models.tidy import move_store

    console = console_of(words)
    places = _places()
    _confirm(f"move {places.models} to {target}?", console, yes=yes)
    with console.running() as sink:
        moved = move_store(places, target, sink)
    console.answer(
        {"path": str(moved)}, f"the models are in {moved} now; set LAMELLA_MODELS={moved}"
    )


def size_text(n_bytes: int) -> str:
    """A size for people.

    Examples:
        >>> size_text(3_820_000), size_text(231_000_000), size_text(1_200_000_000)
        ('3.8 MB', '231 MB', '1.2 GB')
    """
    if n_bytes >= 10**9:
        return f"{n_bytes / 1e9:.1f} GB"
    if n_bytes >= 10**8:
        return f"{n_bytes / 1e6:.0f} MB"
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 10**5 else f"{n_bytes / 1e3:.1f} kB"


def _places(*, offline: bool = False) -> Places:
    from lamella.core.places import Places

    places = Places.of_user()
    return replace(places, is_offline=True) if offline else places


def _is_interactive(console: Console) -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty() and not console.as_json


def _confirm(question: str, console: Console, *, yes: bool) -> None:
    if yes:
        return
    if not _is_interactive(console):
        raise InputError(
            f"{question.rstrip('?')}: nobody is here to be asked", hint="add --yes to do it"
        )
    click.confirm(question, abort=True, err=True)


def _ask_for_licences(terms: tuple[Terms, ...], console: Console) -> bool:
    """Show licences and ask; False where nobody can answer: the pull then says what is needed."""
    if not terms or not _is_interactive(console):
        return False
    for one in terms:
        click.echo(f"\n{one.model} comes under a licence that has to be accepted:\n", err=True)
        click.echo(one.text, err=True)
        click.echo(err=True)
        click.confirm("do you accept it?", abort=True, err=True)
    return True


def _wanted(
    models: tuple[str, ...], places: Places, offers: Offers, words: dict[str, Any]
) -> list[Wanted]:
    from lamella.workflows.model_store import find_wanted, wanted_address

    addresses = [name for name in models if name.startswith(("http://", "https://"))]
    told = {name: words[name] for name in ("model_id", "engine", "sha256") if words[name]}
    if told and (len(addresses) != 1 or len(models) != 1):
        raise InputError(
            "--id, --engine and --sha256 go with one web address",
            hint="what a catalogue lists has them already",
        )
    found: list[Wanted] = []
    for name in models:
        if name in addresses:
            found.append(wanted_address(name, **told))
        else:
            found += find_wanted(name, places, offers=offers)
    return found


def _pulled(result: PullResult) -> dict[str, Any]:
    return {
        "id": result.id,
        "path": str(result.path),
        "was_here": result.was_here,
        "n_bytes": result.n_bytes,
        "n_bytes_moved": result.n_bytes_moved,
        "unpublished_hashes": list(result.unpublished),
    }


def _pulled_text(result: PullResult) -> str:
    if result.was_here:
        return f"{result.id} is here already: {result.path}"
    kept = result.n_bytes - result.n_bytes_moved
    told = f", {size_text(kept)} of it were here" if kept > 0 else ""
    return f"{result.id}: {size_text(result.n_bytes)}{told}, verified\n{result.path}"


def _leftovers_text(found: tuple[Any, ...]) -> str:
    rows = [(size_text(one.n_bytes), one.about, str(one.path)) for one in found]
    return table(rows, ("size", "what", "where"))
