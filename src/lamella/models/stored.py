"""The user's models folder: what lies where, and how a model appears in it.

::

    <models>/
    ├── <id>/                 a Lamella model folder, or record.json + files/ of another engine's
    │   └── pulled.json       where it came from and with which hashes, when it was pulled
    ├── .pulls/<id>/          what is still coming; nothing here is a model
    ├── .locks/               one file a model, locked while it is pulled, imported or removed
    ├── .licences/            acceptances
    ├── .first/               hashes of files that came without a published one
    └── .catalogues/          copies of servers' catalogues

No file holds an absolute path into the folder, so that it can be moved as a whole. A model is made
below ``.pulls`` and gets its name by one rename, when all of it is there and checked.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.core.errors import InputError, StorageError
from lamella.core.storage import storage_error, sync_folder
from lamella.models.lock import hold, owner_of

if TYPE_CHECKING:
    from lamella.core.places import Places
    from lamella.wire.event import EventSink

__all__ = [
    "PULLED_NAME",
    "appear",
    "check_space",
    "discard",
    "disk_free",
    "lock_path",
    "locked",
    "models_folder",
    "new_staging",
    "pulls_folder",
]

PULLED_NAME = "pulled.json"


def models_folder(places: Places) -> Path:
    """Return the user's models folder, made where it is not.

    Raises:
        InputError: the user has none.
        StorageError: it cannot be made.
    """
    if places.models is None:
        raise InputError(
            "there is no folder to keep models in", hint="set LAMELLA_MODELS to a folder"
        )
    try:
        places.models.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, places.models) from error
    return places.models


def pulls_folder(models: Path, model_id: str) -> Path:
    """Return where the files of a model grow."""
    return models / ".pulls" / model_id


def lock_path(models: Path, model_id: str) -> Path:
    """Return the lock of a model."""
    return models / ".locks" / f"{model_id}.lock"


@contextmanager
def locked(
    models: Path, model_id: str, sink: EventSink, on_wait: Callable[[], None] | None = None
) -> Iterator[None]:
    """Hold the lock of a model; whoever waits says so once and can be cancelled.

    Args:
        models: the models folder.
        model_id: of the model.
        sink: told who has the lock; asked whether to go on waiting.
        on_wait: called while waiting.
    """
    from lamella.wire.event import LogEvent

    has_told = False

    def wait() -> None:
        nonlocal has_told
        if not has_told:
            owner = owner_of(lock_path(models, model_id)) or "another process"
            sink.emit(LogEvent(message=f"{owner} is at work on {model_id}; waiting for it"))
            has_told = True
        sink.check()
        if on_wait is not None:
            on_wait()

    with hold(lock_path(models, model_id), on_wait=wait):
        yield


def disk_free(folder: Path) -> int:
    """Return the bytes that may still be written below a folder that exists."""
    return shutil.disk_usage(folder).free


def check_space(folder: Path, n_needed: int, free: Callable[[Path], int], *, what: str) -> None:
    """Refuse what would not fit.

    Raises:
        StorageError: with both sizes.
    """
    n_free = free(folder)
    if n_needed > n_free:
        raise StorageError(
            f"{what} needs {_size(n_needed)}, {folder} has {_size(n_free)} free",
            hint="free some space (`lamella models gc` shows what can go), or keep models on"
            " another disk: LAMELLA_MODELS",
            details={"n_bytes_needed": n_needed, "n_bytes_free": n_free},
        )


def new_staging(models: Path, model_id: str) -> Path:
    """Return a fresh folder in which a model can be put together."""
    parent = pulls_folder(models, model_id)
    parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="staging-", dir=parent))


def appear(staging: Path, target: Path) -> None:
    """Give a folder its final name; one that has it leaves in the same moment.

    Raises:
        StorageError: the rename failed; the old model is still there.
    """
    old: Path | None = None
    try:
        if not staging.is_symlink():
            # Temporary folders are private; a model is for everyone here.
            staging.chmod(0o755)
            _sync(staging)
        if target.exists() or target.is_symlink():
            old = staging.with_name(f"old-{staging.name}")
            target.rename(old)
        try:
            staging.rename(target)
        except OSError:
            if old is not None:
                old.rename(target)
            raise
    except OSError as error:
        raise storage_error(error, target) from error
    sync_folder(target.parent)
    if old is not None:
        discard(old)


def discard(path: Path) -> None:
    """Remove a folder or file, a link itself rather than what it points to."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Bring every file to the disk, so that a name never stands for bytes that a crash took."""
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root) / name
            if path.is_symlink() or not path.is_file():
                continue
            # Writable, as Windows asks for.
            with path.open("r+b") as stream:
                os.fsync(stream.fileno())


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 10**9 else f"{n_bytes / 1e6:,.1f} MB"
