"""Models as the server tells of them: without the paths of its disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lamella.core.errors import LamellaError, MissingPathError
from lamella.wire.model import ModelDoc

if TYPE_CHECKING:
    from lamella.core.places import Places
    from lamella.models.store import ListedModel

__all__ = ["find_model_doc", "list_model_docs"]


def list_model_docs(places: Places, *, only_here: bool) -> list[ModelDoc]:
    """Every model that jobs can name, then those that can be pulled."""
    from lamella.models.store import list_all, list_here

    listed = list_here(places) if only_here else list_all(places)
    return [_document(model) for model in listed]


def find_model_doc(model_id: str, places: Places) -> ModelDoc:
    """All that is known of a model.

    Raises:
        MissingPathError: no such id.
    """
    from lamella.models.store import list_all

    for model in list_all(places):
        if model.id == model_id:
            return _document(model, **_details(model, places))
    raise MissingPathError(
        f"there is no model {model_id!r}", hint="GET /api/v1/models lists what there is"
    )


def _document(model: ListedModel, **more: Any) -> ModelDoc:
    alike = (
        "id", "engine", "version", "title", "task", "axes", "licence", "must_accept",
        "is_accepted", "origin", "n_bytes",
    )  # fmt: skip
    return ModelDoc.model_validate(
        {name: getattr(model, name) for name in alike}
        | {"is_here": model.is_here and not model.problem, "problem": model.problem or None}
        | more
    )


def _details(model: ListedModel, places: Places) -> dict[str, Any]:
    """Return what the card, the record or the catalogue says besides."""
    from lamella.models.foreign import RECORD_NAME, read_record
    from lamella.models.store import find_entry
    from lamella.workflows.model_store import find_wanted

    try:
        if not model.is_here:
            entry: Any = find_wanted(model.id, places)[0].entry
        elif model.path is not None and (model.path / RECORD_NAME).is_file():
            entry = read_record(model.path)
        else:
            entry = find_entry(model.id, places).card
    except LamellaError:
        # A broken one is listed with its problem; there is nothing else to tell.
        return {}
    names = ("description", "classes", "licence_url", "licence_text", "citation")
    return {name: value for name in names if (value := getattr(entry, name, None))}
