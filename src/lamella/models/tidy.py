"""Verify, remove and move models, and clear away what no model needs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lamella.core.errors import (
    InputError,
    LamellaError,
    ModelError,
    OutputExistsError,
    StorageError,
)
from lamella.core.storage import storage_error
from lamella.models.folder import ModelFolder
from lamella.models.foreign import FILES_NAME, RECORD_NAME, read_record, verify_files
from lamella.models.lock import is_held
from lamella.models.meter import Meter
from lamella.models.offer import list_kept_catalogues
from lamella.models.store import ListedModel, find_listed, list_here, unknown_model
from lamella.models.stored import (
    check_space,
    discard,
    disk_free,
    lock_path,
    locked,
    models_folder,
    new_staging,
    pulls_folder,
)

if TYPE_CHECKING:
    from lamella.core.places import Places
    from lamella.wire.event import EventSink

__all__ = [
    "Leftover",
    "Verified",
    "find_leftovers",
    "move_store",
    "removable_path",
    "remove_leftovers",
    "remove_model",
    "verify_models",
]

LeftoverKind = Literal["unfinished", "lock", "catalogue", "staging"]


@dataclass(frozen=True, slots=True)
class Verified:
    """A model whose files were compared with their hashes.

    Attributes:
        model: as it is listed.
        problem: what is wrong with it; empty where nothing is.
    """

    model: ListedModel
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something in the models folder that no model needs.

    Attributes:
        kind: an unfinished pull or import, a lock nobody holds, a copy of a catalogue that is no
            longer named, or a folder that was being written.
        path: where it lies.
        n_bytes: its size.
        about: for people.
    """

    kind: LeftoverKind
    path: Path
    n_bytes: int
    about: str = ""


def verify_models(
    places: Places, sink: EventSink, *, model_id: str | None = None
) -> tuple[Verified, ...]:
    """Read every file of every model and compare its hash.

    Args:
        places: where models lie.
        sink: progress and cancellation.
        model_id: only this one; a path names a model folder, or the folder of a training.

    Raises:
        UnknownModelError: no such id.
        MissingPathError: a path where nothing is.
        ModelError: a folder that is no model.
    """
    chosen = [model for model in list_here(places) if model_id in (None, model.id)]
    if not chosen and model_id is not None:
        chosen = [find_listed(model_id, places)]
    meter = Meter(sink, "verifying", sum(model.n_bytes or 0 for model in chosen))
    results: list[Verified] = []
    for model in chosen:
        meter.start(model.id, 0)

        def told(done: int, total: int | None = model.n_bytes) -> None:
            sink.check()
            meter.tell(done, total)

        problem = model.problem
        try:
            assert model.path is not None, "what is here has a folder"
            if (model.path / RECORD_NAME).is_file():
                verify_files(model.path / FILES_NAME, read_record(model.path), on_bytes=told)
            else:
                ModelFolder.open(model.path)
                told(model.n_bytes or 0)
        except LamellaError as error:
            problem = error.message
        results.append(Verified(model, problem))
    return tuple(results)


def remove_model(model_id: str, places: Places, sink: EventSink) -> Path:
    """Remove a model of the user's; of a linked one only the link.

    Returns:
        The folder it had.

    Raises:
        UnknownModelError: no such id.
        InputError: a shipped model.
    """
    path = removable_path(model_id, places)
    models = models_folder(places)
    try:
        with locked(models, model_id, sink):
            trash = new_staging(models, model_id)
            path.rename(trash / "gone")
            discard(trash / "gone")
            discard(pulls_folder(models, model_id))
    except LamellaError:
        raise
    except OSError as error:
        raise storage_error(error, path) from error
    return path


def removable_path(model_id: str, places: Places) -> Path:
    """Return the folder that removing a model would take away.

    Raises:
        UnknownModelError: no such id.
        InputError: a shipped model, or no id.
    """
    if Path(model_id).name != model_id or model_id in (".", ".."):
        raise InputError(
            f"{model_id!r} is no id", hint="folders elsewhere are yours: remove them yourself"
        )
    known = [model for model in list_here(places) if model.id == model_id]
    if not known:
        raise unknown_model(model_id, places)
    path = known[0].path
    if known[0].origin == "starter" or path is None:
        raise InputError(
            f"{model_id!r} is shipped with the package and stays",
            hint="a model of your own with the same id would be used instead of it",
        )
    return path


# --- what is left over --------------------------------------------------------------------------


def find_leftovers(places: Places) -> tuple[Leftover, ...]:
    """Return what could be cleared away now; nothing that anybody is working on."""
    if places.models is None or not places.models.is_dir():
        return ()
    return tuple(
        leftover
        for find in (_unfinished, _stagings, _locks, _catalogues)
        for leftover in find(places, places.models)
    )


def remove_leftovers(leftovers: tuple[Leftover, ...], places: Places, sink: EventSink) -> int:
    """Clear away; what somebody took up meanwhile stays.

    Returns:
        Bytes that were freed.
    """
    models = models_folder(places)
    freed = 0
    for leftover in leftovers:
        name = leftover.path.stem if leftover.kind == "lock" else leftover.path.name
        if leftover.kind in ("lock", "unfinished") and is_held(lock_path(models, name)):
            continue
        try:
            if leftover.kind in ("lock", "unfinished"):
                with locked(models, name, sink):
                    discard(leftover.path)
                    lock_path(models, name).unlink(missing_ok=True)
            else:
                discard(leftover.path)
        except LamellaError:
            raise
        except OSError as error:
            raise storage_error(error, leftover.path) from error
        freed += leftover.n_bytes
    return freed


def _unfinished(_places: Places, models: Path) -> Iterator[Leftover]:
    for folder in _children(models / ".pulls"):
        if is_held(lock_path(models, folder.name)):
            continue
        is_import = folder.name.startswith("import-")
        about = "an unfinished import" if is_import else f"an unfinished pull of {folder.name}"
        yield Leftover("unfinished", folder, _size(folder), about)


def _stagings(_places: Places, models: Path) -> Iterator[Leftover]:
    known = {".pulls", ".locks", ".licences", ".first", ".catalogues"}
    for folder in _children(models):
        if folder.name.startswith(".") and folder.name not in known and folder.is_dir():
            yield Leftover("staging", folder, _size(folder), "a model that was being written")


def _locks(_places: Places, models: Path) -> Iterator[Leftover]:
    for path in _children(models / ".locks"):
        unfinished = pulls_folder(models, path.stem)
        if not unfinished.exists() and not is_held(path):
            yield Leftover("lock", path, _size(path), f"a lock of {path.stem} that nobody holds")


def _catalogues(places: Places, _models: Path) -> Iterator[Leftover]:
    for address, path in list_kept_catalogues(places):
        if address not in places.catalogues:
            about = f"a copy of {address}, which is no longer named"
            for file in (path, path.with_suffix(".note")):
                yield Leftover("catalogue", file, _size(file), about)


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _size(path: Path) -> int:
    if path.is_dir() and not path.is_symlink():
        return sum(_size(child) for child in path.iterdir())
    return path.lstat().st_size if path.exists() or path.is_symlink() else 0


# --- moving -------------------------------------------------------------------------------------


def move_store(places: Places, target: Path, sink: EventSink) -> Path:
    """Move the whole models folder; the old one goes when every model was verified at the new.

    Args:
        places: where models lie now.
        target: where they are to lie; not there yet, or an empty folder.
        sink: progress and cancellation.

    Returns:
        The new folder.

    Raises:
        InputError: a target inside the folder.
        OutputExistsError: there is something at the target.
        StorageError: it does not fit, or somebody is pulling.
    """
    models = models_folder(places).resolve()
    target = target.expanduser().absolute()
    if target.resolve().is_relative_to(models):
        raise InputError(f"{target} lies in the folder to be moved", hint="choose another folder")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputExistsError(f"{target} is not empty", hint="choose a folder that is not there")
    busy = [path.stem for path in _children(models / ".locks") if is_held(path)]
    if busy:
        raise StorageError(
            f"{', '.join(busy)} is being pulled, imported or removed", hint="wait until it is done"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            target.rmdir()
        try:
            models.rename(target)
        except OSError:
            _copy_store(models, target, sink)
    except LamellaError:
        raise
    except OSError as error:
        raise storage_error(error, target) from error
    return target


def _copy_store(models: Path, target: Path, sink: EventSink) -> None:
    """To another disk: copied, verified, then removed here."""
    from lamella.core.places import Places

    total = _size(models)
    check_space(target.parent, total, disk_free, what="moving the models")
    partial = target.with_name(f"{target.name}.part")
    discard(partial)
    meter = Meter(sink, "moving", total)
    done = 0

    def copied(source: str, goal: str) -> str:
        nonlocal done
        sink.check()
        shutil.copy2(source, goal)
        done += Path(goal).stat().st_size
        meter.tell(done, total)
        return goal

    try:
        shutil.copytree(models, partial, symlinks=True, copy_function=copied)
        moved = Places(models=partial)
        for result in verify_models(moved, sink):
            if result.problem and result.model.origin == "user":
                raise ModelError(
                    f"after copying, {result.model.id} is not what it was: {result.problem}",
                    hint=f"verify it where it is (`lamella models verify {result.model.id}`)",
                )
        partial.rename(target)
    finally:
        discard(partial)
    shutil.rmtree(models)
