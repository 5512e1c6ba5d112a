"""Volumes: prepared in the background, looked into by a child process, named by jobs."""

import logging
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import Connection

from lamella.core.errors import (
    ConflictError,
    InputError,
    LamellaError,
    MissingPathError,
    RunCancelledError,
)
from lamella.jobs.database import Database
from lamella.server.names import PathNames
from lamella.server.uploads.rows import no_upload
from lamella.server.volumes.archive import archive_stem
from lamella.server.volumes.children import Children
from lamella.server.volumes.copies import Copies
from lamella.server.volumes.entries import EntryNames, entry_path
from lamella.server.volumes.materialise import DATA_NAME, Materialiser
from lamella.server.volumes.paths import ServerRoots, is_s3, volume_of
from lamella.server.volumes.rows import (
    VolumeRecord,
    delete_volume,
    find_by_source,
    find_volume,
    insert_volume,
    list_volumes,
    no_volume,
    update_volume,
)
from lamella.wire.problem import Problem
from lamella.wire.upload import VolumeSpec

if TYPE_CHECKING:
    from lamella.server.storage import Storage
    from lamella.server.uploads.rows import UploadRecord
    from lamella.server.uploads.service import Uploads

__all__ = ["Removable", "Volumes"]

logger = logging.getLogger(__name__)

_N_THREADS = 2
_PROBE_S = 120.0
_SLOWEST_BYTES_PER_S = 20e6
_WAIT_STEP_S = 0.1


@dataclass(frozen=True, slots=True)
class Removable:
    """A volume that no active job uses, for whoever makes room.

    Attributes:
        id: of the volume.
        n_bytes: of its files.
        last_used: Unix time.
        is_copy: whether its files can go from here and stay in the storage.
    """

    id: str
    n_bytes: int
    last_used: float
    is_copy: bool = False


class Volumes:
    """All volumes of a server.

    Args:
        folder: holds one folder a volume.
        database: of the server.
        uploads: that volumes are made of.
        roots: what may be read without an upload.
        storage: keeps a second copy, where it is not this disk.
        is_used: whether an active job names a volume.
        on_ready: told the id of every volume that became ready.
        clock: Unix time.
    """

    def __init__(
        self,
        folder: Path,
        database: Database,
        uploads: "Uploads",
        roots: ServerRoots,
        *,
        storage: "Storage | None" = None,
        is_used: Callable[[str], bool] = lambda _: False,
        on_ready: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.roots = roots
        self._database = database
        self._uploads = uploads
        self._is_used = is_used
        self._on_ready = on_ready
        self._clock = clock
        self.copies = Copies(
            folder, storage if storage is not None and storage.is_remote else None, is_used
        )
        self._children = Children()
        self._materialiser = Materialiser(uploads, self._children, self._fetch)
        self._threads = ThreadPoolExecutor(_N_THREADS, thread_name_prefix="volume")

    # --- Making ------------------------------------------------------------------------------

    def adopt(self, connection: Connection, upload: "UploadRecord") -> str:
        """The row of a volume that is one finished upload, in the caller's transaction."""
        unpack = upload.metadata.get("unpack", "").lower() or None
        known = unpack in (None, "zip", "tar")
        record = self._new(
            upload.owner,
            archive_stem(upload.name) if unpack else upload.name,
            {"kind": "upload", "upload": upload.id, "unpack": unpack},
            upload.n_bytes or 0,
        )
        record = replace(record, sha256=None if unpack else upload.sha256)
        if not known:
            told = InputError(
                f"unpack says {unpack!r}; expected zip or tar", hint="upload it again"
            )
            record = replace(
                record, state="refused", problem=Problem.from_error(told).model_dump(mode="json")
            )
        insert_volume(connection, record)
        return record.id

    def begin(self, volume_id: str) -> None:
        """Prepare a volume in the background."""
        try:
            self._threads.submit(self._prepare, volume_id)
        except RuntimeError:
            # The server goes down: its next start goes on with it.
            logger.info("volume %s waits for the next start", volume_id)

    def create(self, owner: str, spec: VolumeSpec) -> VolumeRecord:
        """A volume of finished uploads, of a server path, or of an S3 address.

        Raises:
            InputError: none, or several, of the three; names that cannot be.
            ConflictError: an upload that is not finished, or is used up.
            ForbiddenError: a path or an address that this server does not read.
        """
        if sum((bool(spec.files), spec.path is not None, spec.url is not None)) != 1:
            raise InputError(
                "expected exactly one of files, path and url",
                hint="files names finished uploads, path a file of the server, url one in S3",
            )
        if spec.files:
            source, n_bytes, name = self._source_of_files(owner, spec)
        elif spec.path is not None:
            path = self.roots.resolve(spec.path)
            n_bytes = path.stat().st_size if path.is_file() else 0
            source, name = {"kind": "path", "path": str(path)}, path.name
        else:
            url = self.roots.check_url(spec.url or "")
            source, n_bytes, name = {"kind": "url", "url": url}, 0, url.rpartition("/")[2]
        record = self._new(owner, _name(spec.name) or name, source, n_bytes)
        self._database.run(lambda connection: insert_volume(connection, record))
        self.begin(record.id)
        return record

    def _source_of_files(self, owner: str, spec: VolumeSpec) -> tuple[dict[str, Any], int, str]:
        names = EntryNames()
        n_bytes = 0
        for file in spec.files:
            names.add(file.path)
            upload = self._uploads.get(file.upload)
            if upload.owner != owner:
                raise no_upload(file.upload)
            if upload.state != "finished" or not upload.has_data:
                what = "is used by another volume" if upload.volume else f"is {upload.state}"
                raise ConflictError(
                    f"upload {file.upload} {what}",
                    hint="send it to the end, with the metadata volume=0, which keeps it for this",
                )
            n_bytes += upload.n_bytes or 0
        files = [{"path": file.path, "upload": file.upload} for file in spec.files]
        return {"kind": "files", "files": files}, n_bytes, "volume"

    def _new(self, owner: str, name: str, source: Mapping[str, Any], n_bytes: int) -> VolumeRecord:
        now = self._clock()
        return VolumeRecord(
            id=uuid.uuid4().hex,
            owner=owner,
            name=name,
            state="preparing",
            source=source,
            n_bytes=n_bytes,
            created=now,
            last_used=now,
        )

    # --- Asking ------------------------------------------------------------------------------

    def get(self, volume_id: str) -> VolumeRecord:
        """One volume.

        Raises:
            MissingPathError: there is none.
        """
        with self._database.read() as connection:
            record = find_volume(connection, volume_id)
        if record is None:
            raise no_volume(volume_id)
        return record

    def list(
        self, owner: str | None = None, *, sha256: str | None = None, limit: int | None = None
    ) -> list[VolumeRecord]:
        """Volumes, newest first."""
        with self._database.read() as connection:
            return list_volumes(connection, owner=owner, sha256=sha256, limit=limit)

    def path_of(self, volume_id: str) -> Path:
        """Where a ready volume lies, brought back from the storage if it had to go.

        Raises:
            ConflictError: it is not ready.
            MissingPathError: it, or what it names, is gone.
            ProtocolError: 503, its files are on their way from the storage.
        """
        record = self.get(volume_id)
        if record.state == "preparing":
            raise ConflictError(f"volume {volume_id} is being prepared", hint="ask again shortly")
        if record.state == "refused" or record.location is None:
            problem = Problem.model_validate(record.problem) if record.problem else None
            told = problem.message if problem else "it is no volume"
            raise ConflictError(f"volume {volume_id} was refused: {told}")
        if record.location.startswith("/"):
            return self.roots.resolve(record.location)
        path = self.folder / record.id / record.location
        self.copies.bring(record.id, path)
        if not path.exists():
            raise MissingPathError(f"the files of volume {volume_id} are gone")
        return path

    def resolve(self, text: str, owner: str | None) -> Path:
        """The real path of a job's input.

        Args:
            text: ``volume:ID``, ``volume:ID/file within``, a server path, or an S3 address (which
                is fetched, and waited for).
            owner: whose volumes count; None = everybody's.

        Raises:
            LamellaError: of the kind that fits what is wrong.
        """
        if is_s3(text):
            return self.path_of(self._fetched(text, owner or ""))
        known = volume_of(text)
        if known is None:
            return self.roots.resolve(text)
        volume_id, inside = known
        record = self.get(volume_id)
        if owner is not None and record.owner != owner:
            raise no_volume(volume_id)
        path = self.path_of(volume_id)
        self.touch(volume_id)
        if not inside:
            return path
        found = path / entry_path(inside)
        if not found.exists():
            raise MissingPathError(f"volume {volume_id} holds no {inside[:120]!r}")
        return found

    def touch(self, volume_id: str) -> bool:
        """Note that a volume is used now; whether it is there.

        One that is being removed just now is waited for: after this, it is there or it is not.
        """
        now = self._clock()
        return self._database.run(
            lambda connection: update_volume(connection, volume_id, last_used=now)
        )

    def wait(self, volume_id: str, timeout_s: float) -> VolumeRecord:
        """The volume once it is no longer being prepared, or as it is when time is up."""
        until = time.monotonic() + timeout_s
        while (record := self.get(volume_id)).state == "preparing" and time.monotonic() < until:
            time.sleep(_WAIT_STEP_S)
        return record

    def _fetched(self, url: str, owner: str) -> str:
        source = {"kind": "url", "url": self.roots.check_url(url)}
        with self._database.read() as connection:
            record = find_by_source(connection, owner, source)
        if record is None:
            record = self.create(owner, VolumeSpec(url=url))
        return self.wait(record.id, 3600.0).id

    # --- Removing ----------------------------------------------------------------------------

    def remove(self, volume_id: str) -> None:
        """Delete a volume and its files; a server path's file stays.

        Raises:
            MissingPathError: there is none.
            ConflictError: an active job uses it.
        """
        record = self.get(volume_id)

        def delete(connection: Connection) -> None:
            # First taken, then looked whether it may be: a job that is added meanwhile is either
            # seen here, or finds the volume gone when it touches it.
            delete_volume(connection, volume_id)
            if self._is_used(volume_id):
                raise ConflictError(
                    f"volume {volume_id} is the input of a job that has not ended",
                    hint="cancel the job, or wait for it",
                )

        self._database.run(delete)
        self._drop(record)

    def removable(self) -> tuple[Removable, ...]:
        """Volumes with files of their own that no active job uses, the longest unused first."""
        found = [
            Removable(one.id, one.n_bytes, one.last_used, self.copies.is_here(one.id))
            for one in self.list()
            if one.state == "ready" and not (one.location or "/").startswith("/")
        ]
        unused = (one for one in found if not self._is_used(one.id))
        return tuple(sorted(unused, key=lambda one: one.last_used))

    # --- Life of the service -----------------------------------------------------------------

    def start(self) -> None:
        """Go on with volumes that a crash or a stop left unprepared; sweep folders of none."""
        with self._database.read() as connection:
            known = {one.id for one in list_volumes(connection)}
            waiting = list_volumes(connection, state="preparing")
        for path in self.folder.iterdir():
            if path.name not in known:
                shutil.rmtree(path, ignore_errors=True)
        for record in waiting:
            self.begin(record.id)

    def stop(self) -> None:
        """End what is being prepared; the next start goes on with it."""
        self._children.close()
        self.copies.stop()
        self._threads.shutdown(cancel_futures=True)

    # --- Steps, in threads -------------------------------------------------------------------

    def _prepare(self, volume_id: str) -> None:
        try:
            record = self.get(volume_id)
            if record.state == "preparing":
                self._make_ready(record)
                self._on_ready(volume_id)
        except (RunCancelledError, MissingPathError) as error:
            logger.info("volume %s: %s", volume_id, error)
            self._refuse_unless_stopped(volume_id, error)
        except LamellaError as error:
            logger.info("volume %s refused: %s", volume_id, error)
            self._refuse(volume_id, error)
        except Exception as error:
            # A thread's exception is seen by nobody: the volume's owner must see it.
            logger.exception("volume %s could not be prepared", volume_id)
            self._refuse(volume_id, error)

    def _make_ready(self, record: VolumeRecord) -> None:
        folder = self.folder / record.id
        path = self._materialiser.place(record, folder)
        is_own = record.source["kind"] != "path"
        n_bytes = _size(path)
        facts = self._children.run(
            {
                "action": "inspect",
                "path": str(path),
                # What lies on the server's own disks may change; jobs hash it when they read it.
                "needs_fingerprint": is_own and record.sha256 is None,
            },
            _PROBE_S + n_bytes / _SLOWEST_BYTES_PER_S,
        )
        if is_own:
            self.copies.keep(record.id)
        names = self._names(record, path)
        changes = {
            "state": "ready",
            "location": str(path.relative_to(folder)) if is_own else str(path),
            "n_bytes": n_bytes,
            "sha256": facts.pop("sha256", record.sha256),
            "facts": names.hide({key: facts[key] for key in ("geometry", "dtype", "notes")}),
        }
        self._database.run(lambda connection: update_volume(connection, record.id, **changes))
        self._materialiser.release(record)

    def _refuse_unless_stopped(self, volume_id: str, error: LamellaError) -> None:
        if not isinstance(error, RunCancelledError):
            self._refuse(volume_id, error)

    def _refuse(self, volume_id: str, error: Exception) -> None:
        with self._database.read() as connection:
            record = find_volume(connection, volume_id)
        if record is None:
            shutil.rmtree(self.folder / volume_id, ignore_errors=True)
            return
        problem = self._names(record, None).hide(Problem.from_error(error).model_dump(mode="json"))
        self._database.run(
            lambda connection: update_volume(
                connection, volume_id, state="refused", problem=problem, n_bytes=0
            )
        )
        shutil.rmtree(self.folder / volume_id, ignore_errors=True)
        if record.source["kind"] == "upload":
            self._materialiser.release(record)

    def _drop(self, record: VolumeRecord) -> None:
        if record.state == "ready":
            self.copies.remove(record.id)
        else:
            shutil.rmtree(self.folder / record.id, ignore_errors=True)

    def _names(self, record: VolumeRecord, path: Path | None) -> PathNames:
        """What to call the server's paths in what users read."""
        folder = self.folder / record.id
        hidden = {str(folder / part): "" for part in (DATA_NAME, "staging")}
        if path is not None:
            hidden[str(path)] = record.name
        upload = record.source.get("upload")
        if upload is not None:
            hidden[str(self._uploads.folder / upload / "data")] = record.name
        return PathNames(hidden | {str(self.folder): "(server)"})

    def _fetch(self, url: str, target: Path, owner: str) -> None:
        from lamella.server.storage import fetch_url, url_bytes

        n_bytes = url_bytes(url)
        self._database.run(lambda connection: self._uploads.space.check(connection, owner, n_bytes))
        fetch_url(url, target)


def _name(told: str) -> str:
    """What a client calls a volume, as one safe file name; empty for none."""
    return str(entry_path(told).name) if told.strip() else ""


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
