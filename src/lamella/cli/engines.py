"""``lamella engines``: what can segment here, what it takes, and why it can't where it can't."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import table
from lamella.cli.parameters import answer_options, console_of

if TYPE_CHECKING:
    from lamella.engines.engine import Availability, EngineDescriptor
    from lamella.isolation.installation import Cost

__all__ = ["command"]

_TEXT_WIDTH = 96


@click.group(name="engines")
def command() -> None:
    """List engines, check that they run on this machine, and install those that live apart."""


@command.command(name="list")
@answer_options
def list_command(**words: Any) -> None:
    """List every engine with its options, without importing any."""
    from lamella.engines.registry import check_engine, list_engines

    console = console_of(words)
    pairs = [(engine, check_engine(engine)) for engine in list_engines()]
    documents = [_document(engine, availability) for engine, availability in pairs]
    console.answer({"engines": documents}, lambda: _listing(pairs))


@command.command(name="check")
@click.argument("engine", required=False)
@answer_options
@click.pass_context
def check_command(ctx: click.Context, engine: str | None, **words: Any) -> None:
    """Import ENGINE (every engine unless given) and say whether it can run; exit 3 if not."""
    from lamella.engines.registry import find_engine, list_engines

    console = console_of(words)
    chosen = [find_engine(engine)] if engine else list_engines()
    results = {entry.id: _problem(entry.id) for entry in chosen}
    documents = [{"id": name, "works": not text, "problem": text} for name, text in results.items()]
    lines = [f"{name}: {text or 'works'}" for name, text in results.items()]
    console.answer({"engines": documents}, "\n".join(lines))
    if any(results.values()):
        ctx.exit(3)


@command.command(name="install")
@click.argument("engines", metavar="[ENGINE]...", nargs=-1)
@click.option("--all-isolated", is_flag=True, help="Every engine with an environment of its own.")
@click.option("--fresh", is_flag=True, help="Make the environment anew even if it is there.")
@answer_options
def install_command(
    engines: tuple[str, ...], all_isolated: bool, fresh: bool, **words: Any
) -> None:
    """Install ENGINE into an environment of its own, with the packages its lock names.

    Needs uv. What uv has cached is linked, and no network is used when it has everything; an
    installation that is stopped leaves nothing behind.
    """
    from lamella.core.places import Places
    from lamella.isolation.environment import environment_path, is_ready
    from lamella.isolation.installation import estimate_cost, install

    console, places = console_of(words), Places.of_user()
    documents: list[dict[str, Any]] = []
    for name in _environments(engines, all_isolated=all_isolated):
        folder = environment_path(name, places)
        is_there = is_ready(name, places).is_ready and not fresh
        if not is_there:
            cost = estimate_cost(name, places)
            console.say(f"{name}: into {folder}, {_cost_text(cost)}")
            with console.running(on_stop="nothing half-installed is left") as sink:
                install(name, places, sink, fresh=fresh)
        documents.append({"id": name, "path": str(folder), "installed": not is_there})
    console.answer(
        {"environments": documents},
        "\n".join(
            f"{entry['id']}: {'ready' if entry['installed'] else 'was ready already'}"
            f" in {entry['path']}"
            for entry in documents
        ),
    )


@command.command(name="remove")
@click.argument("engines", metavar="ENGINE...", nargs=-1, required=True)
@answer_options
def remove_command(engines: tuple[str, ...], **words: Any) -> None:
    """Delete the environment of ENGINE; models and results stay."""
    from lamella.core.places import Places
    from lamella.isolation.environment import environment_path, remove

    console, places = console_of(words), Places.of_user()
    documents = [
        {
            "id": name,
            "path": str(environment_path(name, places)),
            "removed": remove(name, places),
        }
        for name in _environments(engines, all_isolated=False)
    ]
    lines = [
        f"{entry['id']}: {'removed' if entry['removed'] else 'was not installed'}"
        for entry in documents
    ]
    console.answer({"environments": documents}, "\n".join(lines))


def _environments(names: tuple[str, ...], *, all_isolated: bool) -> list[str]:
    """The environments of engines, each once; an environment's own name will do as well.

    Raises:
        UnknownEngineError: no such engine.
        InputError: none named, or one that has no environment of its own.
    """
    from lamella.core.errors import InputError
    from lamella.engines.registry import check_engine, find_engine, list_engines

    known = {engine.environment: engine for engine in list_engines() if engine.environment}
    if all_isolated:
        return list(known)
    if not names:
        raise InputError(
            "no engine is named", hint=f"name one of {', '.join(known)}, or give --all-isolated"
        )
    found: dict[str, None] = {}
    for name in names:
        environment = name if name in known else find_engine(name).environment
        if not environment:
            hint = check_engine(find_engine(name)).hint
            raise InputError(
                f"the engine {name!r} has no environment of its own",
                hint=f"install it with: {hint}" if hint else "it can run here as it is",
            )
        found[environment] = None
    return list(found)


def _cost_text(cost: Cost) -> str:
    if not cost.download_bytes and not cost.disk_bytes:
        return "everything linked out of uv's cache: no download, next to no disk"
    fetched = f"about {cost.download_bytes / 1e9:.1f} GB to download"
    if not cost.download_bytes:
        fetched = "no download"
    return f"{fetched}, about {cost.disk_bytes / 1e9:.1f} GB on disk"


def _problem(engine_id: str) -> str | None:
    """Return why an engine can't be loaded here, None when it can."""
    from importlib import import_module

    from lamella.core.errors import LamellaError
    from lamella.core.places import Places
    from lamella.engines.registry import find_engine, load_engine
    from lamella.isolation.environment import check

    engine, places = find_engine(engine_id), Places.of_user()
    try:
        load_engine(engine_id, places)
        for module in engine.needs:
            import_module(module)
        if engine.environment:
            check(engine.environment, places)
    except LamellaError as error:
        return f"{error.message} ({error.hint})" if error.hint else error.message
    except (ImportError, OSError) as error:
        # A package that is there but broken: a wheel for another CPU, a missing system library.
        return f"{type(error).__name__}: {error}"
    return None


def _document(engine: EngineDescriptor, availability: Availability) -> dict[str, Any]:
    return {
        "id": engine.id,
        "title": engine.title,
        "description": engine.description,
        "is_available": availability.is_available,
        "reason": availability.reason or None,
        "hint": availability.hint or None,
        "environment": engine.environment or None,
        "axes": engine.axes,
        "produces": engine.produces,
        "devices": engine.devices,
        "needs_model": engine.needs_model,
        "has_preview": engine.has_preview,
        "has_uncertainty": engine.has_uncertainty,
        "is_resumable": engine.is_resumable,
        "options": [
            {
                "name": option.name,
                "kind": option.kind,
                "default": option.default,
                "choices": option.choices,
                "minimum": option.minimum,
                "maximum": option.maximum,
                "description": option.description,
            }
            for option in engine.options
        ],
    }


def _listing(pairs: list[tuple[EngineDescriptor, Availability]]) -> str:
    rows = [
        (
            engine.id,
            "yes" if availability.is_available else "no",
            ", ".join("3-D" if axes == "zyx" else "2-D" for axes in engine.axes),
            "yes" if engine.needs_model else "no",
            engine.description if availability.is_available else availability.reason,
        )
        for engine, availability in pairs
    ]
    lines = [table(rows, ("engine", "runs here", "axes", "needs model", ""))]
    for engine, availability in pairs:
        if availability.hint:
            lines.append(f"\nto run {engine.id}: {availability.hint}")
        if engine.options:
            lines.append(_options_text(engine))
    return "\n".join(lines)


def _options_text(engine: EngineDescriptor) -> str:
    formatter = click.HelpFormatter(width=_TEXT_WIDTH)
    with formatter.section(f"\noptions of {engine.id} (--option name=value)"):
        formatter.write_dl(
            [
                (o.name if o.default is None else f"{o.name}={o.default}", o.description)
                for o in engine.options
            ]
        )
    return formatter.getvalue().rstrip()
