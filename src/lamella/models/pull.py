"""Bring a model of a catalogue into the user's folder.

In this order: is it here already; is its licence accepted; does it fit on the disk; then its files,
each by :func:`lamella.models.download.fetch_file`; then it is unpacked, looked at by its engine and
gets its name in one step. Whoever asks for the same model meanwhile, in this process or another,
waits and shares what came.

A file without a published hash is believed the first time; its hash is kept in
``.first/<id>.json``, and another file under the same version is refused later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.core.errors import DownloadError, LamellaError, OutputExistsError
from lamella.core.storage import storage_error
from lamella.models.assemble import Assembly
from lamella.models.download import Fetched, TransferSettings, Watcher, fetch_file
from lamella.models.first import FirstHashes
from lamella.models.folder import ModelFolder
from lamella.models.foreign import FILES_NAME, RECORD_NAME, read_record, verify_files
from lamella.models.licence import Terms, accept, check_accepted
from lamella.models.meter import Meter
from lamella.models.record import id_from_name
from lamella.models.stored import (
    PULLED_NAME,
    appear,
    check_space,
    discard,
    disk_free,
    locked,
    models_folder,
    new_staging,
    pulls_folder,
)
from lamella.wire.event import LogEvent, WarningEvent

if TYPE_CHECKING:
    from lamella.core.places import Places
    from lamella.models.recogniser import Recogniser
    from lamella.wire.catalogue import CatalogueEntry, DownloadDoc
    from lamella.wire.event import EventSink

__all__ = ["PullOptions", "PullResult", "pull"]

_UNPACKED_OVER_ZIP = 1.15
"""Weights hardly shrink: what a zip of them unpacks to, until it can be read."""


@dataclass(frozen=True, slots=True)
class PullOptions:
    """How a model is brought.

    Attributes:
        mirrors: addresses or folders asked first, for ``ID/NAME`` and for ``NAME``.
        source: a file, or a folder with the files: nothing else is asked.
        accepts_licence: the user accepts the licence, now.
        trusts_change: take a file although another came under this version before.
        transfer: patience with servers.
        free: bytes free below a folder.
    """

    mirrors: tuple[str, ...] = ()
    source: Path | None = None
    accepts_licence: bool = False
    trusts_change: bool = False
    transfer: TransferSettings = field(default_factory=TransferSettings)
    free: Callable[[Path], int] = disk_free


@dataclass(frozen=True, slots=True)
class PullResult:
    """A model that is here.

    Attributes:
        id: of the model.
        path: its folder.
        was_here: nothing had to be done, or another process did it meanwhile.
        n_bytes: of its files as they came; 0 where nothing had to be done.
        n_bytes_moved: what was transferred this time.
        unpublished: files whose hash nobody published, believed as they came.
    """

    id: str
    path: Path
    was_here: bool
    n_bytes: int = 0
    n_bytes_moved: int = 0
    unpublished: tuple[str, ...] = ()


def pull(
    entry: CatalogueEntry,
    places: Places,
    sink: EventSink,
    options: PullOptions | None = None,
    *,
    recognisers: Sequence[Recogniser] = (),
    catalogue: str = "",
) -> PullResult:
    """Bring a model; what is here already, whole or in part, is not fetched again.

    Args:
        entry: what the catalogue says of it.
        places: the models folder, and whether the network may be asked.
        sink: progress, warnings, cancellation.
        options: how.
        recognisers: engines that can look at the files.
        catalogue: where the entry stands, for the record.

    Raises:
        LicenceError: its licence has to be accepted first.
        DownloadError: a file could not be had, or not rightly.
        OfflineError: the network is needed and forbidden.
        StorageError: it does not fit on the disk.
        ModelError: the files are not the model they should be.
        OutputExistsError: the user has another model of this id.
        RunCancelledError: told to stop; what came is kept.
    """
    options = options or PullOptions()
    models = models_folder(places)
    terms = Terms.of(entry)
    if options.accepts_licence and terms.must_accept:
        accept(terms, places)
    check_accepted(terms, places)
    task = _Pull(entry, places, sink, options, tuple(recognisers), catalogue)
    if (here := task.present()) is not None:
        return here
    waiting = Meter(sink, f"waiting for {entry.id}", entry.n_bytes)
    with locked(models, entry.id, sink, lambda: waiting.tell(task.n_there(), entry.n_bytes)):
        if (here := task.present()) is not None:
            return here
        try:
            return task.run()
        except LamellaError:
            raise
        except OSError as error:
            raise storage_error(error, models) from error


class _Pull:
    def __init__(
        self,
        entry: CatalogueEntry,
        places: Places,
        sink: EventSink,
        options: PullOptions,
        recognisers: tuple[Recogniser, ...],
        catalogue: str,
    ) -> None:
        self._entry = entry
        self._places = places
        self._sink = sink
        self._options = options
        self._recognisers = recognisers
        self._catalogue = catalogue
        self._models = models_folder(places)
        self._target = self._models / entry.id
        self._folder = pulls_folder(self._models, entry.id)

    def present(self) -> PullResult | None:
        """Return the model that is here, whole and of this version."""
        target = self._target
        if not target.exists():
            return None
        is_ours = (target / PULLED_NAME).is_file()
        try:
            version = _verified_version(target)
        except LamellaError as error:
            if not is_ours:
                raise
            self._sink.emit(LogEvent(message=f"{error.message}: fetched again"))
            return None
        if not is_ours and self._entry.version not in ("", version):
            raise OutputExistsError(
                f"another model {self._entry.id!r} is here, which did not come from a catalogue",
                hint=f"remove it (`lamella models remove {self._entry.id}`), or rename its folder",
            )
        if self._entry.version not in ("", version):
            told = f"version {version or '?'} is here, {self._entry.version} is fetched"
            self._sink.emit(LogEvent(message=f"{self._entry.id}: {told}"))
            return None
        return PullResult(self._entry.id, target, was_here=True)

    def run(self) -> PullResult:
        """Fetch, unpack, check and name."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for killed in self._folder.glob("staging-*"):
            discard(killed)
        first = FirstHashes(self._models, self._entry.id, self._entry.version)
        files = self._entry.files
        if not self._options.trusts_change:
            files = tuple(first.hold(file) for file in files)
        parts = {file.name: self._part_of(file) for file in files}
        self._check_space(files, parts)
        fetched = self._fetch(files, parts)
        unpublished = tuple(file.name for file in self._entry.files if file.sha256 is None)
        assembly = Assembly(
            self._entry, self._recognisers, self._catalogue, self._sink, self._options.free
        )
        staging = new_staging(self._models, self._entry.id)
        try:
            assembly.put_together(staging, parts, fetched)
            appear(staging, self._target)
        finally:
            discard(staging)
        first.remember({name: fetched[name] for name in unpublished})
        discard(self._folder)
        return PullResult(
            self._entry.id,
            self._target,
            was_here=False,
            n_bytes=sum(file.n_bytes for file in fetched.values()),
            n_bytes_moved=sum(file.n_bytes_moved for file in fetched.values()),
            unpublished=unpublished,
        )

    def n_there(self) -> int:
        """Return the bytes that came so far."""
        total = 0
        for path in self._folder.glob("*.part"):
            with suppress(OSError):  # it may be done any moment
                total += path.stat().st_size
        return total

    # --- files --------------------------------------------------------------------------------

    def _part_of(self, file: DownloadDoc) -> Path:
        # By its hash: what came of another version is not gone on with.
        mark = file.sha256[:12] if file.sha256 else id_from_name(f"v{self._entry.version}")
        return self._folder / f"{file.name}.{mark}.part"

    def _check_space(self, files: Sequence[DownloadDoc], parts: Mapping[str, Path]) -> None:
        needed, packed = 0, 0
        for file in files:
            there = parts[file.name].stat().st_size if parts[file.name].is_file() else 0
            needed += max(0, (file.n_bytes or 0) - there)
            packed += (file.n_bytes or 0) if file.unpack == "zip" else 0
        installed = self._entry.n_bytes_installed
        needed += installed if packed and installed else round(packed * _UNPACKED_OVER_ZIP)
        check_space(self._models, needed, self._options.free, what=self._entry.id)

    def _fetch(self, files: Sequence[DownloadDoc], parts: Mapping[str, Path]) -> dict[str, Fetched]:
        meter = Meter(self._sink, f"pulling {self._entry.id}", self._entry.n_bytes)
        fetched: dict[str, Fetched] = {}
        for file in files:
            part = parts[file.name]
            there = part.stat().st_size if part.is_file() else 0
            meter.start(file.name, there)

            def has_space(total: int, part: Path = part) -> None:
                left = max(0, total - part.stat().st_size)
                check_space(self._models, left, self._options.free, what=part.name)

            watcher = Watcher(
                check=self._sink.check,
                on_bytes=meter.tell,
                on_total=has_space,
                on_trouble=lambda reason: self._sink.emit(LogEvent(message=reason)),
            )
            fetched[file.name] = self._fetch_one(file, part, watcher)
            if file.sha256 is None:
                self._sink.emit(_unpublished(file.name, fetched[file.name]))
        return fetched

    def _fetch_one(self, file: DownloadDoc, part: Path, watcher: Watcher) -> Fetched:
        try:
            return fetch_file(
                file,
                part,
                self._addresses(file),
                watcher,
                settings=self._options.transfer,
                is_offline=self._places.is_offline,
            )
        except DownloadError as error:
            published = {known.name: known.sha256 for known in self._entry.files}
            if file.sha256 is not None and published[file.name] is None:
                error.hint = (
                    f"{file.name} is held to the hash it had when it first came; if you know that"
                    f" it was changed rightly, use --trust-changed. Else {error.hint}"
                )
            raise

    def _addresses(self, file: DownloadDoc) -> tuple[str, ...]:
        source = self._options.source
        if source is not None:
            if source.is_dir():
                candidates = (source / self._entry.id / file.name, source / file.name)
                return tuple(str(path) for path in candidates if path.is_file()) or (
                    str(source / file.name),
                )
            if len(self._entry.files) == 1 or source.name == file.name:
                return (str(source),)
            names = ", ".join(known.name for known in self._entry.files)
            raise DownloadError(
                f"{self._entry.id} has several files, and {source.name} is none of them",
                hint=f"give --from a folder that holds {names}",
            )
        mirrored: list[str] = []
        for mirror in self._options.mirrors:
            base = mirror.rstrip("/")
            mirrored += [f"{base}/{self._entry.id}/{file.name}", f"{base}/{file.name}"]
        return (*mirrored, *file.urls)


def _unpublished(name: str, fetched: Fetched) -> WarningEvent:
    is_open = fetched.address.startswith("http://")
    how = "over a connection without encryption, " if is_open else ""
    return WarningEvent(
        code="hash_unpublished",
        message=f"nobody published the SHA-256 of {name}: it is believed as it came, {how}"
        f"({fetched.sha256[:12]}...) and held to that from now on",
    )


def _verified_version(folder: Path) -> str:
    if (folder / RECORD_NAME).is_file():
        record = read_record(folder)
        verify_files(folder / FILES_NAME, record)
        return record.version
    return ModelFolder.open(folder).card.version
