"""``lamella models``: what can be used as ``--model``, and all that its card says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import table
from lamella.cli.parameters import answer_options, console_of

if TYPE_CHECKING:
    from lamella.models.catalogue import ModelEntry
    from lamella.wire.card import MetricDoc, ModelCard

__all__ = ["command"]

_TEXT_WIDTH = 96


@click.group(name="models")
def command() -> None:
    """List models, show their cards, say where they lie.

    The shipped models come with the package; others are looked for in the user's folder
    (LAMELLA_MODELS, or lamella/models in the data folder), or named by their path.
    """


@command.command(name="list")
@answer_options
def list_command(**words: Any) -> None:
    """List every model that --model can name."""
    from lamella.cli.places import models_folder
    from lamella.models.catalogue import list_models

    console = console_of(words)
    entries = list_models(models_folder())
    documents = [_document(entry) for entry in entries]
    console.answer({"models": documents}, lambda: _listing(entries))
    for entry in entries:
        if entry.problem:
            console.warn(f"{entry.path}: {entry.problem}")


@command.command(name="show")
@click.argument("model")
@answer_options
def show_command(model: str, **words: Any) -> None:
    """Show the card of MODEL (an id or a folder): classes, data, licence, scores."""
    from lamella.cli.places import models_folder
    from lamella.models.store import find_entry

    console = console_of(words)
    entry = find_entry(model, user_folder=models_folder())
    assert entry.card is not None, "find_entry refuses broken cards"
    card = entry.card
    document = {
        "path": str(entry.path),
        "origin": entry.origin,
        "card": card.model_dump(mode="json"),
    }
    console.answer(document, lambda: _card_text(entry, card))


@command.command(name="path")
@click.argument("model")
@answer_options
def path_command(model: str, **words: Any) -> None:
    """Print the folder of MODEL, its files verified against their checksums."""
    from lamella.cli.places import models_folder
    from lamella.models.store import find_model

    console = console_of(words)
    folder = find_model(model, user_folder=models_folder())
    console.answer({"model": folder.card.id, "path": str(folder.path)}, str(folder.path))


def _document(entry: ModelEntry) -> dict[str, Any]:
    card = entry.card
    return {
        "id": entry.id,
        "title": card.title if card else None,
        "task": card.task if card else None,
        "axes": card.axes if card else None,
        "licence": card.licence if card else None,
        "origin": entry.origin,
        "path": str(entry.path),
        "n_bytes": entry.n_bytes,
        "problem": entry.problem or None,
    }


def _listing(entries: tuple[ModelEntry, ...]) -> str:
    usable = [(entry, entry.card) for entry in entries if entry.card is not None]
    if not usable:
        return "no models; `lamella engines list` shows what works without one"
    rows = [
        (
            card.id,
            "3-D" if card.axes == "zyx" else "2-D",
            card.task,
            f"{entry.n_bytes / 1e6:.1f} MB",
            entry.origin,
            card.title,
        )
        for entry, card in usable
    ]
    return table(rows, ("model", "axes", "gives", "size", "from", "title"))


def _card_text(entry: ModelEntry, card: ModelCard) -> str:
    spacing = str(card.spacing.to_spacing()) if card.spacing else "any (runs on native voxels)"
    names = ", ".join(f"{known.value} {known.name}" for known in card.classes if known.value)
    rows = [
        ("model", f"{card.id}, version {card.version}"),
        ("folder", f"{entry.path} ({entry.origin}, {entry.n_bytes / 1e6:.1f} MB)"),
        ("gives", f"{card.task} labels: {names}"),
        ("input", f"{card.axes}, {card.n_channels} channel{'s' * (card.n_channels > 1)}"),
        ("spacing", spacing),
        ("network", f"{card.network.id}, {card.network.n_parameters or 0:,} parameters"),
        ("tile", " x ".join(map(str, card.tile)) + f", overlap {card.overlap_fraction:.0%}"),
        ("licence", card.licence),
        ("trained on", f"{card.training.data} ({card.training.data_licence})"),
        ("recipe", card.training.recipe),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [card.title, "", click.wrap_text(card.description, _TEXT_WIDTH), ""]
    lines += [f"{name:<{width}}  {value}" for name, value in rows]
    if card.metrics:
        scores = [(m.name, m.value, m.n, _conditions(m)) for m in card.metrics]
        lines += ["", table(scores, ("score", "value", "n", "measured on"))]
    if card.training.notes:
        lines += ["", click.wrap_text(card.training.notes, _TEXT_WIDTH)]
    return "\n".join(lines)


def _conditions(metric: MetricDoc) -> str:
    told = ", ".join(f"{name} {value}" for name, value in metric.conditions.items())
    return f"{metric.data} ({told})" if told else metric.data
