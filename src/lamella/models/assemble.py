"""Files that came, made into a model: unpacked, looked at by its engine, recorded."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.core.errors import ModelError
from lamella.models.archive import check_zip, unpack_zip
from lamella.models.catalogue import CARD_NAME
from lamella.models.folder import ModelFolder
from lamella.models.foreign import FILES_NAME, RECORD_NAME
from lamella.models.meter import Meter
from lamella.models.record import record_of_entry
from lamella.models.stored import PULLED_NAME, check_space, discard
from lamella.wire.record import FileDoc, PulledDoc, PulledFileDoc

if TYPE_CHECKING:
    from lamella.models.download import Fetched
    from lamella.models.recogniser import Recogniser
    from lamella.wire.catalogue import CatalogueEntry
    from lamella.wire.event import EventSink

__all__ = ["Assembly"]


@dataclass(frozen=True, slots=True)
class Assembly:
    """What a model is made by.

    Attributes:
        entry: what the catalogue says of it.
        recognisers: engines that can look at the files.
        catalogue: where the entry stands, for the record.
        sink: progress and cancellation.
        free: bytes free below a folder.
    """

    entry: CatalogueEntry
    recognisers: tuple[Recogniser, ...]
    catalogue: str
    sink: EventSink
    free: Callable[[Path], int]

    def put_together(
        self, staging: Path, parts: Mapping[str, Path], fetched: Mapping[str, Fetched]
    ) -> None:
        """Make a model of files that came.

        Args:
            staging: an empty folder.
            parts: the files, by name; they stay.
            fetched: what is known of them.

        Raises:
            ModelError: they are not the model they should be, or an archive is not to be unpacked.
            StorageError: it does not fit.
        """
        files = staging / FILES_NAME
        files.mkdir()
        documents: dict[str, FileDoc] = {}
        for file in self.entry.files:
            goal = files / file.folder if file.folder else files
            goal.mkdir(parents=True, exist_ok=True)
            prefix = f"{file.folder}/" if file.folder else ""
            if file.unpack == "zip":
                needed = check_zip(parts[file.name])
                check_space(staging, needed, self.free, what=file.name)
                meter = Meter(self.sink, f"unpacking {file.name}", needed)

                def told(done: int, total: int, meter: Meter = meter) -> None:
                    self.sink.check()
                    meter.tell(done, total)

                unpacked = unpack_zip(parts[file.name], goal, on_bytes=told)
                documents |= {prefix + name: document for name, document in unpacked.items()}
            else:
                # A second name for the same bytes where the file system has that: nothing to copy,
                # and the part stays until the model has appeared.
                _link_or_copy(parts[file.name], goal / file.name)
                known = fetched[file.name]
                documents[prefix + file.name] = FileDoc(sha256=known.sha256, n_bytes=known.n_bytes)
        engine = self.entry.engine
        if engine == "lamella" or (not engine and _card_folders(files)):
            self._as_model_folder(staging, files)
        else:
            self._as_foreign(staging, files, documents)
        pulled = PulledDoc(
            id=self.entry.id,
            version=self.entry.version,
            catalogue=self.catalogue,
            licence=self.entry.licence,
            licence_url=self.entry.licence_url,
            licence_text=self.entry.licence_text,
            must_accept=self.entry.must_accept,
            pulled_at=datetime.now(UTC).isoformat(timespec="seconds"),
            files={
                name: PulledFileDoc(sha256=one.sha256, n_bytes=one.n_bytes, address=one.address)
                for name, one in fetched.items()
            },
        )
        (staging / PULLED_NAME).write_text(pulled.to_json(), encoding="utf-8")

    def _as_model_folder(self, staging: Path, files: Path) -> None:
        folders = _card_folders(files)
        if len(folders) != 1:
            raise ModelError(
                f"what was pulled for {self.entry.id!r} holds no model folder with its {CARD_NAME}",
                hint="tell whoever keeps the catalogue",
            )
        card = ModelFolder.open(folders[0]).card
        if card.id != self.entry.id:
            raise ModelError(
                f"what was pulled as {self.entry.id!r} is a model called {card.id!r}",
                hint=f"tell whoever keeps the catalogue; an address is pulled with --id {card.id}",
            )
        for path in list(folders[0].iterdir()):
            path.rename(staging / path.name)
        discard(files)

    def _as_foreign(self, staging: Path, files: Path, documents: Mapping[str, FileDoc]) -> None:
        entry, facts, root = self._recognised(files)
        if root.is_dir() and root != files and len(list(files.iterdir())) == 1:
            # A zip packs a model as one folder: for its engine, that folder is the model.
            documents = _hoisted(files, root, documents)
        urls = [url for file in self.entry.files for url in file.urls[:1]]
        record = record_of_entry(entry, facts, documents, source=" ".join(urls))
        (staging / RECORD_NAME).write_text(record.to_json(), encoding="utf-8")

    def _recognised(self, files: Path) -> tuple[CatalogueEntry, Mapping[str, object], Path]:
        """Return the entry with its engine, what that says of the model, and where that lies."""
        entry = self.entry
        asked = [one for one in self.recognisers if entry.engine in ("", one.engine)]
        for one in asked:
            for root in _roots(files):
                if one.recognise(root):
                    named = entry.model_copy(update={"engine": one.engine})
                    return named, one.describe(root), root
        if asked or not entry.engine:
            raise ModelError(
                f"what was pulled for {entry.id!r} is no model of {entry.engine or 'any engine'}",
                hint=f"expected {'; '.join(f'{one.engine}: {one.expected}' for one in asked)}",
            )
        return entry, {}, files


def _hoisted(files: Path, root: Path, documents: Mapping[str, FileDoc]) -> dict[str, FileDoc]:
    """Make the one folder in ``files`` be ``files``; return the documents by their new paths."""
    name = root.name
    aside = files.with_name("hoisted")
    root.rename(aside)
    files.rmdir()
    aside.rename(files)
    return {path.removeprefix(f"{name}/"): document for path, document in documents.items()}


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _card_folders(files: Path) -> list[Path]:
    return [path for path in _roots(files) if (path / CARD_NAME).is_file()]


def _roots(files: Path) -> list[Path]:
    """Return what an engine may call its model: the folder, or a file or folder in it."""
    return [files, *sorted(files.iterdir())]
