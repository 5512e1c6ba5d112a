"""The end of an upload: its bytes are compared, and one transaction makes its volume."""

import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from sqlalchemy.engine import Connection

from lamella.core.errors import ChecksumError
from lamella.jobs.database import Database
from lamella.server.uploads.file import DATA_NAME, RunningHash
from lamella.server.uploads.protocol import parse_sha256
from lamella.server.uploads.rows import UploadRecord, update_upload
from lamella.wire.problem import Problem

__all__ = ["Finisher", "Hashes", "VolumeMaker"]

_MAX_HASHES = 4096


class VolumeMaker(Protocol):
    """Makes volumes of finished uploads."""

    def adopt(self, connection: Connection, upload: UploadRecord) -> str:
        """Write the row of the volume, within the transaction that finishes the upload."""
        ...

    def begin(self, volume_id: str) -> None:
        """Prepare it, in the background."""
        ...


class Hashes:
    """The hashes of uploads that go on; the least recently used are forgotten, and made anew."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hashes: OrderedDict[str, RunningHash] = OrderedDict()

    def of(self, record: UploadRecord) -> RunningHash | None:
        """The hash of an upload; None for a part whose SHA-256 nobody wants."""
        if record.is_partial and "sha256" not in record.metadata:
            return None
        with self._lock:
            running = self._hashes.setdefault(record.id, RunningHash())
            self._hashes.move_to_end(record.id)
            while len(self._hashes) > _MAX_HASHES:
                self._hashes.popitem(last=False)
        return running

    def drop(self, upload_id: str) -> None:
        """Forget one that has ended."""
        with self._lock:
            self._hashes.pop(upload_id, None)


class Finisher:
    """Finishes uploads.

    Args:
        folder: holds one folder an upload.
        database: of the server.
        hashes: of the uploads.
        expiry_s: a finished upload that nothing takes is removed after this.
        clock: Unix time.
    """

    def __init__(
        self,
        folder: Path,
        database: Database,
        hashes: Hashes,
        *,
        expiry_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.maker: VolumeMaker | None = None
        self._folder = folder
        self._database = database
        self._hashes = hashes
        self._expiry_s = expiry_s
        self._clock = clock

    def finish(self, record: UploadRecord) -> UploadRecord:
        """Compare, and write down what became of it; the upload's lock is held."""
        assert record.n_bytes is not None
        running = self._hashes.of(record)
        digest = None
        if running is not None:
            n_bytes = record.n_bytes
            running.catch_up(self._folder / record.id / DATA_NAME, lambda: n_bytes)
            digest = running.hexdigest()
        self._hashes.drop(record.id)
        self._check_whole(record, digest)
        done = self._database.run(
            lambda connection: self._mark_finished(
                connection, replace(record, state="finished", sha256=digest)
            )
        )
        if done.volume is not None and self.maker is not None:
            self.maker.begin(done.volume)
        return done

    def _check_whole(self, record: UploadRecord, digest: str | None) -> None:
        told = record.metadata.get("sha256")
        if told is None or digest == parse_sha256(told):
            return
        error = ChecksumError(
            f"the whole file's SHA-256 is {digest}, announced was {parse_sha256(told)}",
            hint="the file changed while it was sent, or was damaged on the way: upload it again",
        )
        problem = Problem.from_error(error).model_dump(mode="json")
        self._database.run(
            lambda connection: update_upload(
                connection, record.id, state="rejected", problem=problem, idempotency_key=None
            )
        )
        shutil.rmtree(self._folder / record.id, ignore_errors=True)
        raise error

    def _mark_finished(self, connection: Connection, record: UploadRecord) -> UploadRecord:
        record = replace(record, expires=self._clock() + self._expiry_s)
        has_volume = not record.is_partial and record.metadata.get("volume") != "0"
        if self.maker is not None and has_volume and record.n_bytes:
            record = replace(record, volume=self.maker.adopt(connection, record))
        update_upload(
            connection,
            record.id,
            state=record.state,
            sha256=record.sha256,
            expires=record.expires,
            volume=record.volume,
        )
        for part in record.parts or ():
            update_upload(connection, part, state="joined", joined=record.id)
        return record
