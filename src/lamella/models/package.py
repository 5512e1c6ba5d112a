"""A stored model as one zip that can be carried elsewhere and imported there, bit by bit the same.

::

    <id>/model.json, weights.safetensors, ...      a Lamella model folder
    <id>/record.json, <id>/files/...               a model of another engine

Equal models give equal archives: names are sorted, dates are not kept, nothing is compressed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.core.errors import InputError, LamellaError, OutputExistsError
from lamella.core.storage import storage_error
from lamella.models.archive import write_zip
from lamella.models.catalogue import CARD_NAME
from lamella.models.folder import ModelFolder
from lamella.models.foreign import FILES_NAME, RECORD_NAME, read_record, verify_files
from lamella.models.meter import Meter
from lamella.models.store import find_model_path
from lamella.models.stored import check_space, disk_free

if TYPE_CHECKING:
    from lamella.core.places import Places
    from lamella.wire.event import EventSink

__all__ = ["export_model"]


def export_model(
    reference: str,
    target: Path,
    places: Places,
    sink: EventSink,
    *,
    overwrite: bool = False,
    free: Callable[[Path], int] = disk_free,
) -> Path:
    """Write a model as a zip; it is verified first, and appears when all of it is written.

    Args:
        reference: id or folder of the model.
        target: the zip, or a folder to put ``<id>.zip`` into.
        places: where models lie.
        sink: progress and cancellation.
        overwrite: replace a file that is there.
        free: bytes free below a folder.

    Returns:
        The zip.

    Raises:
        UnknownModelError: no such model.
        ModelError: a model that is not as it was stored.
        OutputExistsError: the zip exists.
        StorageError: it does not fit on the disk.
    """
    folder = find_model_path(reference, places)
    model_id, members, total = _members(folder, sink)
    path = target / f"{model_id}.zip" if target.is_dir() else target
    if path.suffix.lower() != ".zip":
        raise InputError(f"{path} is no name of a zip", hint=f"write {path.name}.zip, or a folder")
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} exists", hint="choose another name, or use --overwrite")
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    meter = Meter(sink, f"writing {path.name}", total)

    def told(done: int) -> None:
        sink.check()
        meter.tell(done, total)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_space(path.parent, total, free, what=path.name)
        write_zip(partial, members, on_bytes=told)
        partial.replace(path)
    except LamellaError:
        raise
    except OSError as error:
        raise storage_error(error, path) from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def _members(folder: Path, sink: EventSink) -> tuple[str, list[tuple[str, Path | bytes]], int]:
    """Return id, members and size, every file verified."""
    members: list[tuple[str, Path | bytes]]
    if (folder / CARD_NAME).is_file():
        opened = ModelFolder.open(folder)
        names = (CARD_NAME, *opened.card.files)
        members = [(f"{opened.card.id}/{name}", folder / name) for name in names]
        return opened.card.id, members, opened.n_bytes
    record = read_record(folder)
    meter = Meter(sink, f"verifying {record.id}", record.n_bytes)

    def told(done: int) -> None:
        sink.check()
        meter.tell(done, record.n_bytes)

    verify_files(folder / FILES_NAME, record, on_bytes=told)
    members = [
        (f"{record.id}/{FILES_NAME}/{name}", folder / FILES_NAME / name) for name in record.files
    ]
    members.append((f"{record.id}/{RECORD_NAME}", record.to_json().encode()))
    return record.id, members, record.n_bytes
