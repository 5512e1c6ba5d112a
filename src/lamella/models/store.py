"""From what a person writes behind ``--model`` to a model folder.

A model is named by its id (``membrane-3d``) or by the path of its folder. The user's models come
before the shipped ones, so a retrained ``membrane-3d`` in the user's folder is the one that is
used; ``lamella models show`` says which folder an id means.

Examples:
    >>> find_model_path("no-such-model")
    Traceback (most recent call last):
    ...
    lamella.core.errors.UnknownModelError: there is no model 'no-such-model'
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lamella.core.errors import MissingPathError, ModelError, UnknownModelError
from lamella.core.registry import nearest_names
from lamella.models.catalogue import CARD_NAME, ModelEntry, list_models, read_entry

if TYPE_CHECKING:
    from lamella.models.folder import ModelFolder

__all__ = ["find_entry", "find_model", "find_model_path"]


def find_model(id_or_path: str, *, user_folder: Path | None = None) -> ModelFolder:
    """Open the model that is meant, its files verified.

    Args:
        id_or_path: id of a model, or path of a model folder.
        user_folder: where the user keeps models.

    Raises:
        UnknownModelError: no such id; the hint names the nearest ones and lists all.
        MissingPathError: a path where nothing is.
        ModelError: a folder that is no model, or a damaged one.
    """
    from lamella.models.folder import ModelFolder

    return ModelFolder.open(find_model_path(id_or_path, user_folder=user_folder))


def find_model_path(id_or_path: str, *, user_folder: Path | None = None) -> Path:
    """Return the folder of the model that is meant; the errors are those of :func:`find_model`."""
    return find_entry(id_or_path, user_folder=user_folder).path


def find_entry(id_or_path: str, *, user_folder: Path | None = None) -> ModelEntry:
    """Return the entry of the model that is meant, its card read but its files not verified.

    Raises:
        UnknownModelError: no such id.
        MissingPathError: a path where nothing is.
        ModelError: a folder that is no model, or whose card is broken.
    """
    entry = _by_path(id_or_path) or _by_id(id_or_path, user_folder)
    if entry.card is None:
        raise ModelError(
            f"the model folder {entry.path} is broken: {entry.problem}",
            hint="export or download it again",
        )
    return entry


def _by_id(model_id: str, user_folder: Path | None) -> ModelEntry:
    entries = list_models(user_folder)
    for entry in entries:
        if entry.id == model_id:
            return entry
    known = sorted({entry.id for entry in entries})
    near = nearest_names(model_id, known)
    raise UnknownModelError(
        f"there is no model {model_id!r}",
        hint=(f"did you mean {' or '.join(near)}? " if near else "")
        + (f"known: {', '.join(known)}; " if known else "")
        + "or give the path of a model folder, or classical:otsu, which needs no model",
        details={"id": model_id, "known": known},
    )


def _by_path(text: str) -> ModelEntry | None:
    """Return the entry of a path, None where the text is an id."""
    path = Path(text).expanduser()
    if (path / CARD_NAME).is_file():
        return read_entry(path, "path")
    looks_like_path = "/" in text or "\\" in text or text.startswith((".", "~"))
    if not looks_like_path:
        return None
    if path.name == CARD_NAME and path.is_file():
        return read_entry(path.parent, "path")
    if not path.exists():
        raise MissingPathError(
            f"there is no model folder at {path}",
            hint="`lamella models list` shows the models that can be named by their id",
        )
    raise ModelError(
        f"{path} is no model folder: it holds no {CARD_NAME}",
        hint="give the folder that holds model.json, weights.safetensors and network.xml",
    )
