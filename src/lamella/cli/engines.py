"""``lamella engines``: what can segment here, what it takes, and why it can't where it can't."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import table
from lamella.cli.parameters import answer_options, console_of

if TYPE_CHECKING:
    from lamella.engines.engine import Availability, EngineDescriptor

__all__ = ["command"]

_TEXT_WIDTH = 96


@click.group(name="engines")
def command() -> None:
    """List engines, and check that they run on this machine."""


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


def _problem(engine_id: str) -> str | None:
    """Return why an engine can't be loaded here, None when it can."""
    from lamella.core.errors import LamellaError
    from lamella.engines.registry import load_engine

    try:
        load_engine(engine_id)
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
