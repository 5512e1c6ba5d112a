"""The models that are there: those shipped with the package and those in the user's folder.

Reading the list opens only the cards; a folder whose card is broken stays listed, with the
reason, because a model that vanishes in silence is looked for in vain.

Examples:
    >>> from lamella.models.catalogue import list_models
    >>> {entry.origin for entry in list_models()} <= {"starter"}
    True
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lamella.wire.card import ModelCard

__all__ = ["CARD_NAME", "ModelEntry", "Origin", "list_models", "read_entry", "starter_folder"]

CARD_NAME = "model.json"

Origin = Literal["starter", "user", "path"]


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model folder as it is listed.

    Attributes:
        id: the card's id; the folder's name where the card can't be read.
        path: the folder.
        origin: shipped with the package, in the user's folder, or given by its path.
        card: the card; None where it can't be read.
        problem: why not; empty when the card is fine.
        n_bytes: size of the folder's files.
    """

    id: str
    path: Path
    origin: Origin
    card: ModelCard | None
    problem: str = ""
    n_bytes: int = 0


def starter_folder() -> Path:
    """Return the folder of the models shipped with the package."""
    return Path(__file__).parent / "starter"


def list_models(user_folder: Path | None = None) -> tuple[ModelEntry, ...]:
    """List every model folder, the user's first, each group by id.

    Args:
        user_folder: where the user keeps models; a folder that does not exist is empty.
    """
    entries: list[ModelEntry] = []
    if user_folder is not None:
        entries.extend(_entries(user_folder, "user"))
    entries.extend(_entries(starter_folder(), "starter"))
    return tuple(entries)


def read_entry(path: Path, origin: Origin) -> ModelEntry:
    """Read the card of one model folder; a broken card becomes the entry's ``problem``.

    Args:
        path: the folder.
        origin: where it was found.
    """
    from pydantic import ValidationError

    from lamella.wire.card import ModelCard

    try:
        card = ModelCard.model_validate_json((path / CARD_NAME).read_bytes())
    except ValidationError as invalid:
        first = invalid.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or CARD_NAME
        problem = f"{CARD_NAME} is not a valid model card: {where}: {first['msg']}"
        return ModelEntry(path.name, path, origin, None, problem)
    except OSError as error:
        problem = f"{CARD_NAME} can't be read: {error.strerror or error}"
        return ModelEntry(path.name, path, origin, None, problem)
    n_bytes = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    return ModelEntry(card.id, path, origin, card, n_bytes=n_bytes)


def _entries(folder: Path, origin: Origin) -> list[ModelEntry]:
    try:
        paths = sorted(
            path
            for path in folder.iterdir()
            # Hidden folders are models that are still being written.
            if not path.name.startswith(".") and (path / CARD_NAME).is_file()
        )
    except OSError:
        return []
    return sorted((read_entry(path, origin) for path in paths), key=lambda entry: entry.id)
