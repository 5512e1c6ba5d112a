"""The artifacts of jobs: which there are, where their bytes are, and how those not made yet arise.

==========================  =====================================================================
``run.tar``                 the whole run folder, once the job has finished
``manifest.json`` ...       documents of the run folder, as far as the run came
``labels.mrc`` ...          labels in a format that was asked for with the job, or is asked for now
==========================  =====================================================================
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.core.errors import LamellaError, MissingPathError
from lamella.server.artifacts.make import TAR_NAME, check_suffix, read_fact, read_index
from lamella.server.artifacts.ranges import ByteSource, FileSource
from lamella.server.artifacts.tar import TarArchive, TarIndex
from lamella.server.jobs.folder import artifacts_folder, job_folder, run_folder
from lamella.server.jobs.prepare import prepare_job
from lamella.wire.job import JobSpec

if TYPE_CHECKING:
    from lamella.jobs.machine import JobRecord
    from lamella.server.services import Services
    from lamella.server.storage import Storage

__all__ = ["Artifact", "Artifacts", "Preparing"]

logger = logging.getLogger(__name__)

_DOCUMENTS = {
    "manifest.json": "application/json",
    "objects.csv": "text/csv; charset=utf-8",
    "report.html": "text/html; charset=utf-8",
    "report.json": "application/json",
    "events.jsonl": "application/jsonl",
}
_LABELS = "labels"
_OFFERED = (".ome.zarr.zip",)
"""Exports that are listed though nobody asked for them yet."""
_MEDIA_TYPES = {".zip": "application/zip", ".gz": "application/gzip", ".tif": "image/tiff"}
_N_HASHES = 4096


@dataclass(frozen=True, slots=True)
class Artifact:
    """Something that can be fetched.

    Attributes:
        name: of it.
        media_type: of its bytes.
        source: its bytes.
        sha256: of them, hexadecimal.
        is_lasting: whether it stays as it is: what a job that runs has written does not.
    """

    name: str
    media_type: str
    source: ByteSource
    sha256: str
    is_lasting: bool


@dataclass(frozen=True, slots=True)
class Preparing:
    """An export that is being made."""

    name: str
    media_type: str


class Artifacts:
    """What jobs left; safe to use from several threads.

    Args:
        services: of the server.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._data_dir = services.settings.data_dir
        # Of another machine, where there is one.
        self._storage: Storage | None = services.storage if services.storage.is_remote else None
        self._lock = threading.Lock()
        self._hashes: OrderedDict[tuple[str, int, int], str] = OrderedDict()
        self._indices: OrderedDict[str, TarIndex] = OrderedDict()
        self._to_keep: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._keeper: threading.Thread | None = None

    def start(self) -> None:
        """Begin to put what jobs leave into the storage, where that is another machine's."""
        if self._storage is not None:
            self._keeper = threading.Thread(target=self._keep_all, name="artifacts", daemon=True)
            self._keeper.start()

    def stop(self) -> None:
        """End with what is being put; the rest is given by the server itself."""
        if self._keeper is not None:
            self._to_keep.put(None)
            self._keeper.join(timeout=10)

    def job_changed(self, job_id: str) -> None:
        """A job's state is another; returns at once."""
        if self._keeper is not None:
            self._to_keep.put(job_id)

    def list(self, record: JobRecord) -> list[Artifact | Preparing]:
        """What a job left, and what could be made of it."""
        found: list[Artifact | Preparing] = []
        names = [*_DOCUMENTS]
        if record.state == "finished":
            asked = JobSpec.model_validate(record.spec).exports
            made = sorted(self._made(record.id))
            wanted = [f"{_LABELS}{suffix}" for suffix in (*asked, *_OFFERED)]
            names = [TAR_NAME, *names, *dict.fromkeys((*wanted, *made))]
        for name in names:
            artifact = self._find(record, name)
            if artifact is not None:
                found.append(artifact)
            elif name.startswith(_LABELS):
                found.append(Preparing(name, _media_type(name)))
        return found

    def get(self, record: JobRecord, name: str) -> Artifact | Preparing:
        """An artifact; an export that is not there yet is begun.

        Raises:
            MissingPathError: when the job has left no such thing.
            LamellaError: when the labels cannot be exported so.
        """
        artifact = self._find(record, name)
        if artifact is not None:
            return artifact
        if record.state != "finished" or not name.startswith(f"{_LABELS}."):
            raise MissingPathError(
                f"job {record.id} has no artifact {name[:80]!r}",
                hint=f"it is {record.state}; GET /api/v1/jobs/{record.id}/artifacts lists them",
            )
        self._export(record, name.removeprefix(_LABELS))
        return Preparing(name, _media_type(name))

    def address(self, job_id: str, name: str) -> str | None:
        """Where the storage itself gives an artifact; None where this server does."""
        services, storage = self._services, self._storage
        if storage is None or not services.settings.presign:
            return None
        key = _key(job_id, name)
        if storage.size(key) is None:
            return None
        return storage.url(key, services.settings.url_lifetime_s, name=name)

    def keep(self, job_id: str) -> None:
        """Put what a finished job left into the storage, where that is another machine's."""
        storage = self._storage
        if storage is None:
            return
        record = self._services.jobs.get(job_id)
        if record.state != "finished":
            return
        for name in (TAR_NAME, "manifest.json", "objects.csv", "report.html", *self._made(job_id)):
            artifact = self._find(record, name)
            if artifact is None or storage.size(_key(job_id, name)) == artifact.source.n_bytes:
                continue
            if isinstance(artifact.source, FileSource):
                storage.put(artifact.source.path, _key(job_id, name))
            else:
                self._keep_archive(storage, job_id, artifact.source)

    def forget(self, job_id: str) -> None:
        """Let go of a job that is removed."""
        with self._lock:
            self._indices.pop(job_id, None)
        if self._storage is not None:
            try:
                self._storage.delete_folder(f"jobs/{job_id}")
            except LamellaError:
                logger.exception("the artifacts of job %s stay in the storage", job_id)

    # --- Within -------------------------------------------------------------------------------

    def _keep_all(self) -> None:
        while (job_id := self._to_keep.get()) is not None:
            try:
                self.keep(job_id)
            except Exception:
                # What is not in the storage is given by this server.
                logger.exception("the artifacts of job %s are not in the storage", job_id)

    def _find(self, record: JobRecord, name: str) -> Artifact | None:
        is_lasting = record.state == "finished"
        if name == TAR_NAME:
            return self._archive(record.id) if is_lasting else None
        if name in _DOCUMENTS:
            path = run_folder(self._data_dir, record.id) / name
            return self._document(path, is_lasting=is_lasting)
        if not name.startswith(f"{_LABELS}.") or "/" in name or "\\" in name:
            return None
        path = artifacts_folder(self._data_dir, record.id) / name
        fact = read_fact(path)
        if fact is None:
            return None
        source = FileSource(path, fact.n_bytes)
        return Artifact(name, _media_type(name), source, fact.sha256, is_lasting=True)

    def _archive(self, job_id: str) -> Artifact | None:
        with self._lock:
            index = self._indices.get(job_id)
        if index is None:
            index = read_index(artifacts_folder(self._data_dir, job_id))
            if index is None:
                return None
            with self._lock:
                self._indices[job_id] = index
                while len(self._indices) > 64:
                    self._indices.popitem(last=False)
        source = TarArchive(run_folder(self._data_dir, job_id), index)
        return Artifact(TAR_NAME, "application/x-tar", source, index.sha256, is_lasting=True)

    def _document(self, path: Path, *, is_lasting: bool) -> Artifact | None:
        try:
            known = path.stat()
        except OSError:
            return None
        key = (str(path), known.st_mtime_ns, known.st_size)
        with self._lock:
            sha256 = self._hashes.get(key)
        if sha256 is None:
            with path.open("rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            with self._lock:
                self._hashes[key] = sha256
                while len(self._hashes) > _N_HASHES:
                    self._hashes.popitem(last=False)
        media_type = _DOCUMENTS[path.name]
        source = FileSource(path, known.st_size)
        return Artifact(path.name, media_type, source, sha256, is_lasting=is_lasting)

    def _made(self, job_id: str) -> list[str]:
        folder = artifacts_folder(self._data_dir, job_id)
        facts = (path for path in folder.glob(f"{_LABELS}.*.json") if path.is_file())
        return [path.name.removesuffix(".json") for path in facts]

    def _export(self, record: JobRecord, suffix: str) -> None:
        check_suffix(suffix)
        work = prepare_job(self._services, record) if suffix.lower() == ".dcm" else None
        state = self._services.background.submit(
            f"export:{record.id}:{suffix}",
            "lamella.server.artifacts.make:make_export",
            {
                "run": str(run_folder(self._data_dir, record.id)),
                "artifacts": str(artifacts_folder(self._data_dir, record.id)),
                "source": "" if work is None else work["input"]["path"],
                "suffix": suffix,
                "hidden": {
                    str(job_folder(self._data_dir, record.id)): "",
                    str(self._data_dir): "(server)",
                },
            },
            done=lambda: self.keep(record.id),
        )
        if state.problem is not None:
            raise state.problem.to_error()

    def _keep_archive(self, storage: Storage, job_id: str, source: ByteSource) -> None:
        partial = artifacts_folder(self._data_dir, job_id) / f".{TAR_NAME}.partial"
        try:
            with partial.open("wb") as stream:
                for piece in source.read(0, source.n_bytes):
                    stream.write(piece)
            storage.put(partial, _key(job_id, TAR_NAME))
        finally:
            partial.unlink(missing_ok=True)


def _key(job_id: str, name: str) -> str:
    return f"jobs/{job_id}/{name}"


def _media_type(name: str) -> str:
    return next(
        (kind for suffix, kind in _MEDIA_TYPES.items() if name.lower().endswith(suffix)),
        "application/octet-stream",
    )
