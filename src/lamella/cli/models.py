"""``lamella models``: what can be used as ``--model``, what can be pulled, what is known of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import table
from lamella.cli.models_export import export_command
from lamella.cli.models_keep import (
    gc_command,
    import_command,
    move_command,
    pull_command,
    remove_command,
    size_text,
)
from lamella.cli.parameters import answer_options, console_of

if TYPE_CHECKING:
    from lamella.core.places import Places
    from lamella.models.store import ListedModel
    from lamella.wire.card import MetricDoc, ModelCard
    from lamella.wire.catalogue import CatalogueEntry
    from lamella.wire.record import ModelRecord

__all__ = ["command"]

_TEXT_WIDTH = 96
_AXES = {"zyx": "3-D", "yx": "2-D", None: ""}


@click.group(name="models")
def command() -> None:
    """List, pull, import and verify models, show their cards, say where they lie.

    The shipped models come with the package; others are kept in the user's folder (LAMELLA_MODELS,
    or lamella/models in the data folder), or named by their path. What can be pulled stands in
    catalogues: one comes with the package, LAMELLA_CATALOGUES names more (files, folders, http
    addresses, separated by spaces). LAMELLA_OFFLINE=1 forbids the network.
    """


@command.command(name="list")
@click.option("--here", "only_here", is_flag=True, help="Leave out what has to be pulled first.")
@click.option("--engine", help="Only models of this engine.")
@click.option("--offline", is_flag=True, help="Ask no server for its catalogue.")
@answer_options
def list_command(only_here: bool, engine: str | None, offline: bool, **words: Any) -> None:
    """List every model that --model can name, and every one that can be pulled."""
    from lamella.models.offer import Offers, read_offers
    from lamella.models.store import list_all

    console = console_of(words)
    places = _places(offline=offline)
    offers = Offers(()) if only_here else read_offers(places)
    listed = [model for model in list_all(places, offers) if engine in (None, model.engine)]
    document = {
        "models": [_document(model) for model in listed],
        "problems": list(offers.problems),
    }
    console.answer(document, lambda: _listing(listed))
    for model in listed:
        if model.problem:
            console.warn(f"{model.path}: {model.problem}")
    for problem in offers.problems:
        console.warn(problem)


@command.command(name="show")
@click.argument("model")
@answer_options
def show_command(model: str, **words: Any) -> None:
    """Show all that is known of MODEL (an id or a folder): classes, data, licence, scores."""
    from lamella.core.errors import UnknownModelError
    from lamella.models.foreign import RECORD_NAME, read_record
    from lamella.models.licence import Terms, is_accepted
    from lamella.models.store import find_entry, find_model_path
    from lamella.workflows.model_store import show_reference

    console = console_of(words)
    places = _places()
    try:
        path = find_model_path(model, places)
    except UnknownModelError:
        told = show_reference(model, places)
        if told is not None:
            console.answer(told[0], lambda: told[1])
            return
        entry, catalogue = _offered(model, places)
        document = {
            "origin": "catalogue",
            "catalogue": catalogue,
            "entry": entry.model_dump(mode="json"),
        }
        console.answer(document, lambda: _entry_text(entry, catalogue))
        return
    if (path / RECORD_NAME).is_file():
        record = read_record(path)
        accepted = is_accepted(Terms.of(record), places)
        document = {
            "path": str(path),
            "origin": "user",
            "is_accepted": accepted,
            "record": record.model_dump(mode="json"),
        }
        console.answer(document, lambda: _record_text(record, str(path), accepted=accepted))
        return
    found = find_entry(str(path) if "/" in model else model, places)
    assert found.card is not None, "find_entry refuses broken cards"
    card = found.card
    document = {
        "path": str(found.path),
        "origin": found.origin,
        "card": card.model_dump(mode="json"),
    }
    console.answer(
        document, lambda: _card_text(card, f"{found.path} ({found.origin}", found.n_bytes)
    )


@command.command(name="path")
@click.argument("model")
@answer_options
def path_command(model: str, **words: Any) -> None:
    """Print the folder of MODEL, its files verified against their checksums."""
    from lamella.models.folder import ModelFolder
    from lamella.models.foreign import FILES_NAME, RECORD_NAME, read_record, verify_files
    from lamella.models.store import find_model_path

    console = console_of(words)
    path = find_model_path(model, _places())
    if (path / RECORD_NAME).is_file():
        record = read_record(path)
        verify_files(path / FILES_NAME, record)
        model_id = record.id
    else:
        model_id = ModelFolder.open(path).card.id
    console.answer({"model": model_id, "path": str(path)}, str(path))


@command.command(name="verify")
@click.argument("model", required=False)
@click.option("--run", "runs", is_flag=True, help="Try trained models on their examples too.")
@answer_options
@click.pass_context
def verify_command(ctx: click.Context, model: str | None, runs: bool, **words: Any) -> None:
    """Read every file of MODEL (of every model unless given); exit 3 where one was changed."""
    from lamella.models.tidy import verify_models
    from lamella.workflows.model_trial import Trial, try_example

    console = console_of(words)
    places = _places()
    with console.running() as sink:
        results = verify_models(places, sink, model_id=model)
        trials: dict[int, Trial | None] = {}
        for number, one in enumerate(results):
            path = one.model.path
            if runs and not one.problem and path is not None and one.model.engine == "lamella":
                trials[number] = try_example(path, places, sink)
    documents, lines = [], []
    for number, one in enumerate(results):
        trial = trials.get(number)
        problem = one.problem or (trial.problem if trial else "")
        document = {"id": one.model.id, "path": str(one.model.path), "problem": problem or None}
        if runs:
            document["example_agreement"] = None if trial is None else round(trial.agreement, 6)
        documents.append(document)
        told = (
            "whole" if trial is None else f"whole, and right on its example ({trial.agreement:.1%})"
        )
        lines.append(f"{one.model.id}: {problem or told}")
    console.answer({"models": documents}, "\n".join(lines) or "no models")
    if any(document["problem"] for document in documents):
        ctx.exit(3)


for _command in (
    pull_command,
    import_command,
    export_command,
    remove_command,
    gc_command,
    move_command,
):
    command.add_command(_command)


def _places(*, offline: bool = False) -> Places:
    from lamella.core.places import Places

    places = Places.of_user()
    return replace(places, is_offline=True) if offline else places


def _offered(model: str, places: Places) -> tuple[CatalogueEntry, str]:
    from lamella.workflows.model_store import find_wanted

    wanted = find_wanted(model, places)[0]
    assert wanted.entry is not None, "what is here was found before"
    return wanted.entry, wanted.catalogue


def _document(model: ListedModel) -> dict[str, Any]:
    return {
        "id": model.id,
        "engine": model.engine,
        "version": model.version or None,
        "title": model.title or None,
        "task": model.task,
        "axes": model.axes,
        "licence": model.licence or None,
        "must_accept": model.must_accept,
        "is_accepted": model.is_accepted,
        "origin": model.origin,
        "is_here": model.is_here,
        "path": None if model.path is None else str(model.path),
        "n_bytes": model.n_bytes,
        "is_hash_published": model.is_pinned,
        "is_link": model.is_link,
        "catalogue": model.catalogue or None,
        "problem": model.problem or None,
    }


def _listing(listed: list[ListedModel]) -> str:
    here = [model for model in listed if model.is_here and not model.problem]
    offered = [model for model in listed if not model.is_here]
    if not here and not offered:
        return "no models; `lamella engines list` shows what works without one"
    parts = []
    if here:
        own = {model.id for model in here if model.origin == "user"}
        rows = [(*_row(model), _origin(model, own), _title(model)) for model in here]
        parts.append(table(rows, ("model", "engine", "axes", "gives", "size", "from", "title")))
    if offered:
        rows = [(*_row(model), _hash(model), _title(model)) for model in offered]
        heads = ("to be pulled", "engine", "axes", "gives", "size", "hash", "title")
        parts.append(table(rows, heads))
        parts.append(
            "`lamella models pull MODEL` fetches one. Where no hash was published, the first that"
            " comes\nis believed and recorded."
        )
    return "\n\n".join(parts)


def _row(model: ListedModel) -> tuple[str, str, str, str, str]:
    size = size_text(model.n_bytes) if model.n_bytes is not None else "?"
    return (model.id, model.engine, _AXES.get(model.axes, ""), model.task or "", size)


def _origin(model: ListedModel, own: set[str]) -> str:
    if model.origin == "starter" and model.id in own:
        return "starter, hidden by yours"
    if not model.is_accepted:
        return "licence not accepted"
    return f"{model.origin}, linked" if model.is_link else model.origin


def _hash(model: ListedModel) -> str:
    return "published" if model.is_pinned else "not published"


def _title(model: ListedModel) -> str:
    return model.title if model.is_accepted else f"{model.title} [licence to be accepted]"


def _entry_text(entry: CatalogueEntry, catalogue: str) -> str:
    rows = [
        ("model", f"{entry.id}, version {entry.version or '?'}"),
        ("engine", entry.engine),
        ("here", f"no: lamella models pull {entry.id}"),
        ("gives", _given(entry.task, entry.axes)),
        ("licence", _licence(entry)),
        ("catalogue", catalogue),
        ("homepage", entry.homepage),
    ]
    for file in entry.files:
        known = size_text(file.n_bytes) if file.n_bytes is not None else "size not published"
        digest = f"SHA-256 {file.sha256}" if file.sha256 else "SHA-256 not published"
        rows.append(("file", f"{file.name}, {known}, {digest}"))
        rows += [("", url) for url in file.urls]
    return _text(entry.title, entry.description, rows) + _licence_words(entry)


def _record_text(record: ModelRecord, path: str, *, accepted: bool) -> str:
    names = ", ".join(f"{known.value} {known.name}" for known in record.classes if known.value)
    licence = _licence(record)
    if record.must_accept:
        licence += "; accepted here" if accepted else "; not accepted here"
    rows = [
        ("model", f"{record.id}, version {record.version or '?'}"),
        ("engine", record.engine),
        ("folder", f"{path} ({size_text(record.n_bytes)}, {_count(len(record.files))})"),
        ("gives", _given(record.task, record.axes)),
        ("classes", click.wrap_text(names, _TEXT_WIDTH - 11, "", " " * 11)),
        ("licence", licence),
        ("source", record.source),
        ("citation", record.citation),
    ]
    return _text(record.title or record.id, record.description, rows) + _licence_words(record)


def _count(n_files: int) -> str:
    return "1 file" if n_files == 1 else f"{n_files} files"


def _given(task: str | None, axes: str | None) -> str:
    return ", ".join(part for part in (f"{task} labels" if task else "", _AXES.get(axes)) if part)


def _licence(terms: CatalogueEntry | ModelRecord) -> str:
    return " ".join(part for part in (terms.licence, terms.licence_url) if part)


def _licence_words(terms: CatalogueEntry | ModelRecord) -> str:
    return f"\n\n{terms.licence_text.strip()}" if terms.licence_text else ""


def _text(title: str, description: str, rows: list[tuple[str, str]]) -> str:
    told = [(name, value) for name, value in rows if value]
    width = max(len(name) for name, _ in told)
    lines = [title, ""]
    if description:
        lines += [click.wrap_text(description, _TEXT_WIDTH), ""]
    return "\n".join([*lines, *(f"{name:<{width}}  {value}" for name, value in told)])


def _card_text(card: ModelCard, where: str, n_bytes: int) -> str:
    spacing = str(card.spacing.to_spacing()) if card.spacing else "any (runs on native voxels)"
    names = ", ".join(f"{known.value} {known.name}" for known in card.classes if known.value)
    rows = [
        ("model", f"{card.id}, version {card.version}"),
        ("folder", f"{where}, {size_text(n_bytes)})"),
        ("gives", f"{card.task} labels: {names}"),
        ("input", f"{card.axes}, {card.n_channels} channel{'s' * (card.n_channels > 1)}"),
        ("spacing", spacing),
        ("network", f"{card.network.id}, {card.network.n_parameters or 0:,} parameters"),
        ("tile", " x ".join(map(str, card.tile)) + f", overlap {card.overlap_fraction:.0%}"),
        *([("mirrored", "averaged over mirrored copies unless --no-tta")] if card.tta else []),
        ("licence", card.licence),
        ("trained on", f"{card.training.data} ({card.training.data_licence})"),
        ("recipe", card.training.recipe),
    ]
    lines = [_text(card.title, card.description, rows)]
    if card.metrics:
        scores = [(m.name, m.value, m.n, _conditions(m)) for m in card.metrics]
        lines += ["", table(scores, ("score", "value", "n", "measured on"))]
    if card.training.notes:
        lines += ["", click.wrap_text(card.training.notes, _TEXT_WIDTH)]
    return "\n".join(lines)


def _conditions(metric: MetricDoc) -> str:
    told = ", ".join(f"{name} {value}" for name, value in metric.conditions.items())
    return f"{metric.data} ({told})" if told else metric.data
