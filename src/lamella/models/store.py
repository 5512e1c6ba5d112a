"""From what a person writes behind ``--model`` to a model, and the list of all there are.

A model is named by its id (``membrane-3d``), by the path of its folder, or by the folder of the
training that made it. The user's models come before the shipped ones, so a retrained
``membrane-3d`` in the user's folder is the one that is used; ``lamella models show`` says which
folder an id means.

Examples:
    >>> find_model_path("no-such-model")
    Traceback (most recent call last):
    ...
    lamella.core.errors.UnknownModelError: there is no model 'no-such-model'
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lamella.core.errors import LamellaError, MissingPathError, ModelError, UnknownModelError
from lamella.core.places import Places
from lamella.core.registry import nearest_names
from lamella.models.catalogue import CARD_NAME, ModelEntry, list_models, read_entry
from lamella.models.foreign import RECORD_NAME, find_foreign, read_record
from lamella.models.licence import Terms, check_accepted, is_accepted
from lamella.models.stored import PULLED_NAME
from lamella.models.training_run import model_in_run, unfinished_run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lamella.models.folder import ModelFolder
    from lamella.models.offer import Offers
    from lamella.wire.catalogue import CatalogueEntry
    from lamella.wire.record import ModelRecord, PulledDoc

__all__ = [
    "ListedModel",
    "find_entry",
    "find_foreign",
    "find_listed",
    "find_model",
    "find_model_path",
    "list_all",
    "list_here",
    "unknown_model",
]

Origin = Literal["starter", "user", "path", "catalogue"]


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model as it is listed: here, or to be pulled.

    Attributes:
        id: what it is called.
        engine: id of the engine that runs it.
        version: of the model.
        title: for people.
        task: semantic or instance; None where nobody said.
        axes: zyx or yx; None where nobody said.
        licence: of the weights.
        must_accept: whether the licence has to be accepted.
        is_accepted: whether it may be used here.
        origin: shipped, in the user's folder, or in a catalogue only.
        is_here: whether it can be used without pulling it.
        path: its folder; None where it is not here.
        n_bytes: on the disk, or to be fetched; None where nobody published it.
        is_pinned: whether the hash of every file is known before it comes; True where it is here.
        is_link: whether the files lie elsewhere.
        catalogue: where it can be pulled from; empty where nowhere.
        problem: why it cannot be used; empty where it can.
    """

    id: str
    engine: str
    version: str = ""
    title: str = ""
    task: str | None = None
    axes: str | None = None
    licence: str = ""
    must_accept: bool = False
    is_accepted: bool = True
    origin: Origin = "user"
    is_here: bool = True
    path: Path | None = None
    n_bytes: int | None = None
    is_pinned: bool = True
    is_link: bool = False
    catalogue: str = ""
    problem: str = ""


def find_model(id_or_path: str, places: Places | None = None) -> ModelFolder:
    """Open the Lamella model that is meant, its files verified.

    Args:
        id_or_path: id of a model, or path of a model folder.
        places: where the user keeps models; only the shipped ones unless given.

    Raises:
        UnknownModelError: no such id; the hint names the nearest ones and lists all.
        MissingPathError: a path where nothing is.
        ModelError: a folder that is no model, or a damaged one.
        LicenceError: its licence has to be accepted first.
    """
    from lamella.models.folder import ModelFolder

    entry = find_entry(id_or_path, places)
    pulled = _pulled(entry.path)
    if pulled is not None and places is not None:
        check_accepted(Terms.of(pulled), places)
    return ModelFolder.open(entry.path)


def find_model_path(id_or_path: str, places: Places | None = None) -> Path:
    """Return the folder of the model that is meant, whosever it is; its files are not verified.

    Raises:
        UnknownModelError: no such id.
        MissingPathError: a path where nothing is.
        ModelError: a folder that is no model, or whose card or record is broken.
    """
    places = places or Places()
    folder = None if places.models is None else places.models / id_or_path
    is_id = Path(id_or_path).name == id_or_path
    if folder is not None and is_id and (folder / RECORD_NAME).is_file():
        read_record(folder)
        return folder
    path = Path(id_or_path).expanduser()
    if (path / RECORD_NAME).is_file() and not is_id:
        read_record(path)
        return path
    return find_entry(id_or_path, places).path


def find_entry(id_or_path: str, places: Places | None = None) -> ModelEntry:
    """Return the entry of the Lamella model that is meant, its files not verified.

    Raises:
        UnknownModelError: no such id.
        MissingPathError: a path where nothing is.
        ModelError: a folder that is no model, or whose card is broken.
    """
    entry = _by_path(id_or_path) or _by_id(id_or_path, places or Places())
    if entry.card is None:
        raise ModelError(
            f"the model folder {entry.path} is broken: {entry.problem}",
            hint="export or download it again",
        )
    return entry


def find_listed(id_or_path: str, places: Places) -> ListedModel:
    """Return a Lamella model as it is listed, also one that is named by a path.

    Raises:
        UnknownModelError: no such id.
        MissingPathError: a path where nothing is.
        ModelError: a folder that is no model, or whose card is broken.
    """
    return _of_folder(find_entry(id_or_path, places), places)


def list_here(places: Places) -> tuple[ListedModel, ...]:
    """List every model that can be named now: the user's, then the shipped ones.

    What is broken stays listed, with the reason, because a model that vanishes in silence is looked
    for in vain.
    """
    listed = [_of_folder(entry, places) for entry in list_models(places.models)]
    listed += list(_foreign(places))
    order = {"user": 0, "starter": 1}
    return tuple(sorted(listed, key=lambda model: (order[model.origin], model.id)))


def list_all(places: Places, offers: Offers | None = None) -> tuple[ListedModel, ...]:
    """List what is here, then what could be pulled.

    Args:
        places: where models and catalogues are.
        offers: of the catalogues; those that can be read without a network unless given.
    """
    if offers is None:
        from lamella.models.offer import read_offers

        offers = read_offers(places, asks_servers=False)
    here = list_here(places)
    taken = {model.id for model in here}
    offered = (
        _of_offer(offer.entry, offer.catalogue, places)
        for offer in offers.offers
        if offer.entry.id not in taken
    )
    return (*here, *offered)


def unknown_model(model_id: str, places: Places) -> UnknownModelError:
    """Return the error for an id that is not here: how to pull it, or what it may have meant."""
    listed = list_all(places)
    here = sorted({model.id for model in listed if model.is_here})
    offered = {model.id: model for model in listed if not model.is_here}
    if model_id in offered:
        return UnknownModelError(
            f"the model {model_id!r} is not here yet",
            hint=f"`lamella models pull {model_id}` fetches it{_size_of(offered[model_id])}",
            details={"id": model_id, "can_pull": True, "n_bytes": offered[model_id].n_bytes},
        )
    near = nearest_names(model_id, [*here, *offered])
    told = [f"{name} (to be pulled)" if name in offered else name for name in near]
    return UnknownModelError(
        f"there is no model {model_id!r}",
        hint=(f"did you mean {' or '.join(told)}? " if told else "")
        + (f"known: {', '.join(here)}; " if here else "")
        + "or give the path of a model folder, or classical:otsu, which needs no model",
        details={"id": model_id, "known": here, "nearest": near},
    )


def _by_id(model_id: str, places: Places) -> ModelEntry:
    for entry in list_models(places.models):
        if entry.id == model_id:
            return entry
    foreign = find_foreign(model_id, places, verify=False)
    if foreign is not None:
        raise ModelError(
            f"{model_id!r} is a model of the engine {foreign.engine!r}, not a Lamella model folder",
            hint=f"leave out --engine, or write --model {foreign.engine}:{model_id}",
        )
    raise unknown_model(model_id, places)


def _by_path(text: str) -> ModelEntry | None:
    """Return the entry of a path, None where the text is an id."""
    path = Path(text).expanduser()
    if (path / CARD_NAME).is_file():
        return read_entry(path, "path")
    trained = model_in_run(path)
    if trained is not None:
        return read_entry(trained, "path")
    unfinished = unfinished_run(path)
    if unfinished is not None:
        raise unfinished
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
        hint="give the folder that holds model.json, weights.safetensors and network.xml; models of"
        " other engines are named ENGINE:PATH, or taken in with `lamella models import`",
    )


def _of_folder(entry: ModelEntry, places: Places) -> ListedModel:
    card, pulled = entry.card, _pulled(entry.path)
    return ListedModel(
        id=entry.id,
        engine="lamella",
        version=card.version if card else "",
        title=card.title if card else "",
        task=card.task if card else None,
        axes=card.axes if card else None,
        licence=card.licence if card else "",
        origin=entry.origin,
        path=entry.path,
        n_bytes=entry.n_bytes,
        is_link=entry.path.is_symlink(),
        must_accept=pulled is not None and pulled.must_accept,
        is_accepted=pulled is None or is_accepted(Terms.of(pulled), places),
        catalogue=pulled.catalogue if pulled is not None else "",
        problem=entry.problem,
    )


def _foreign(places: Places) -> Iterator[ListedModel]:
    if places.models is None or not places.models.is_dir():
        return
    for path in sorted(places.models.glob(f"*/{RECORD_NAME}")):
        folder = path.parent
        if folder.name.startswith("."):
            continue
        try:
            record = read_record(folder)
        except (LamellaError, OSError) as error:
            yield ListedModel(id=folder.name, engine="", path=folder, problem=str(error))
            continue
        yield _of_record(record, folder, places)


def _of_record(record: ModelRecord, folder: Path, places: Places) -> ListedModel:
    from lamella.models.foreign import FILES_NAME

    pulled = _pulled(folder)
    problem = ""
    if record.id != folder.name:
        problem = f"its folder is called {folder.name!r}, its record {record.id!r}"
    lacking = [name for name in record.files if not (folder / FILES_NAME / name).is_file()]
    if lacking:
        problem = f"{lacking[0]} is missing"
    return ListedModel(
        id=record.id,
        engine=record.engine,
        version=record.version,
        title=record.title,
        task=record.task,
        axes=record.axes,
        licence=record.licence,
        must_accept=record.must_accept,
        is_accepted=is_accepted(Terms.of(record), places),
        path=folder,
        n_bytes=record.n_bytes,
        is_link=(folder / FILES_NAME).is_symlink()
        or any((folder / FILES_NAME / name).is_symlink() for name in record.files),
        catalogue=pulled.catalogue if pulled is not None else "",
        problem=problem,
    )


def _of_offer(entry: CatalogueEntry, catalogue: str, places: Places) -> ListedModel:
    return ListedModel(
        id=entry.id,
        engine=entry.engine,
        version=entry.version,
        title=entry.title,
        task=entry.task,
        axes=entry.axes,
        licence=entry.licence,
        must_accept=entry.must_accept,
        is_accepted=is_accepted(Terms.of(entry), places),
        origin="catalogue",
        is_here=False,
        n_bytes=entry.n_bytes,
        is_pinned=entry.is_pinned,
        catalogue=catalogue,
    )


def _pulled(folder: Path) -> PulledDoc | None:
    """Return where a model came from; None where it does not say."""
    from lamella.wire.record import PulledDoc

    path = folder / PULLED_NAME
    try:
        return PulledDoc.read(path) if path.is_file() else None
    except (LamellaError, OSError):
        return None


def _size_of(model: ListedModel) -> str:
    return f", {model.n_bytes / 1e6:,.0f} MB" if model.n_bytes else ""
