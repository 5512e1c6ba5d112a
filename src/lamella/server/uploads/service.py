"""Uploads: created, appended to, joined, finished, removed; every step survives a crash.

The order on disk decides what is true. Bytes come first, then the journal's offset, then the
answer; when all are there, their SHA-256 is compared, and one transaction marks the upload
finished and makes its volume. An upload whose last byte is on disk while the transaction is
missing (a crash between the two) is finished by whoever asks for it next, or at the next start.
"""

import asyncio
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.engine import Connection

from lamella.core.errors import ChecksumError, ConflictError, GoneError
from lamella.jobs.database import Database
from lamella.server.uploads.append import Chunk, check_at_end, check_chunk, settle
from lamella.server.uploads.file import (
    DATA_NAME,
    UploadFile,
    committed_offset,
    create_folder,
)
from lamella.server.uploads.finish import Finisher, Hashes
from lamella.server.uploads.join import check_parts, copy_parts
from lamella.server.uploads.locks import UploadLocks
from lamella.server.uploads.protocol import Checksum, TusError, parse_sha256
from lamella.server.uploads.receive import BodyReceiver, Reception
from lamella.server.uploads.rows import (
    UploadRecord,
    delete_upload,
    find_by_key,
    find_upload,
    insert_upload,
    list_uploads,
    no_upload,
    update_upload,
)
from lamella.server.uploads.space import Space, SpaceLimits
from lamella.server.uploads.threads import make_threads, outlast

__all__ = ["NewUpload", "Uploads"]

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_MAX_OWNERS = 100_000
_RENEW_SHARE = 0.9
"""The expiry is written anew when less than this share of it is left."""
_ORPHAN_S = 3600.0


@dataclass(frozen=True, slots=True)
class NewUpload:
    """What a client wants to send.

    Attributes:
        owner: user.
        n_bytes: whole size; None = told later.
        metadata: decoded.
        is_partial: whether it will be joined with others.
        parts: what it is joined from.
        idempotency_key: the same key finds the same upload.
    """

    owner: str
    n_bytes: int | None
    metadata: Mapping[str, str]
    is_partial: bool = False
    parts: tuple[str, ...] | None = None
    idempotency_key: str | None = None


class Uploads:
    """All uploads of a server.

    Args:
        folder: holds one folder an upload.
        database: of the server.
        limits: of space.
        expiry_s: an upload that nobody touches is removed after this.
        clock: Unix time.
    """

    def __init__(
        self,
        folder: Path,
        database: Database,
        limits: SpaceLimits,
        *,
        expiry_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.space = Space(folder, database, limits)
        self._database = database
        self._expiry_s = expiry_s
        self._clock = clock
        n_cores = os.cpu_count() or 1
        self._threads = make_threads(min(32, 4 * n_cores), "upload")
        self._readers = make_threads(min(16, 2 * n_cores), "upload-read")
        self._receiver = BodyReceiver(self._threads, self._readers)
        self._locks = UploadLocks()
        self._hashes = Hashes()
        self.finisher = Finisher(folder, database, self._hashes, expiry_s=expiry_s, clock=clock)
        self._owners: dict[str, str] = {}
        self._joining: dict[tuple[str, ...], asyncio.Task[UploadRecord]] = {}

    # --- What routes ask for -----------------------------------------------------------------

    def create(self, new: NewUpload, *, n_replaced: int = 0) -> UploadRecord:
        """A new, empty upload, on disk; the one that the idempotency key made before, if any.

        Args:
            new: what is to be sent.
            n_replaced: bytes of the same owner that go once it is finished.

        Raises:
            TusError: larger than the server takes, or a SHA-256 that is none.
            QuotaError: more than the user may hold.
            StorageError: more than the disk has.
        """
        if new.n_bytes is not None:
            self.space.check_size(new.n_bytes)
        if "sha256" in new.metadata:
            parse_sha256(new.metadata["sha256"])
        now = self._clock()
        record = UploadRecord(
            id=uuid.uuid4().hex,
            owner=new.owner,
            state="open",
            n_bytes=new.n_bytes,
            metadata=new.metadata,
            is_partial=new.is_partial,
            parts=new.parts,
            created=now,
            expires=now + self._expiry_s,
            idempotency_key=new.idempotency_key,
        )
        folder = self.folder / record.id
        create_folder(folder)
        try:
            kept = self._database.run(
                lambda connection: self._insert(connection, record, n_replaced)
            )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if kept.id != record.id:
            shutil.rmtree(folder, ignore_errors=True)
        return kept

    async def finish_empty(self, record: UploadRecord) -> UploadRecord:
        """Finish an upload of no bytes, which no PATCH will ever end."""
        if record.n_bytes != 0 or record.state != "open":
            return record
        return await self._run(self.finisher.finish, record)

    def known_owner(self, upload_id: str) -> str | None:
        """Whose an upload is, if that was asked before."""
        return self._owners.get(upload_id)

    def owner_of(self, upload_id: str) -> str:
        """Whose an upload is.

        Raises:
            MissingPathError: there is none.
        """
        owner = self._owners.get(upload_id)
        if owner is None:
            owner = self.get(upload_id).owner
            if len(self._owners) >= _MAX_OWNERS:
                self._owners.clear()
            self._owners[upload_id] = owner
        return owner

    async def ask(self, upload_id: str) -> tuple[UploadRecord, int]:
        """An upload and its offset; a request that still writes to it is ended first.

        Raises:
            MissingPathError: there is no such upload.
            GoneError: it was rejected or has expired.
        """
        async with self._locks.hold(upload_id):
            record = await self._run(self._usable, upload_id)
            offset = await self._run(self.offset_of, record)
            if record.state == "open" and offset == record.n_bytes:
                record = await self._run(self.finisher.finish, record)
            return record, offset

    async def append(self, upload_id: str, chunk: Chunk) -> tuple[UploadRecord, int]:
        """Take a body; the upload and its offset afterwards, which is on disk.

        Raises:
            MissingPathError: there is no such upload.
            GoneError: it was rejected or has expired.
            TusError: 403 for a concatenation, 409 for another offset, 413 for too many bytes.
            ChecksumError: the body, or the whole file, has another checksum.
        """
        async with self._locks.hold(upload_id) as hold:
            # Few, long steps in threads: each way there and back costs a busy server milliseconds.
            with ExitStack() as opened:
                record, file, limit = await self._run(self._begin, upload_id, chunk, opened)
                if file is None:
                    return record, record.n_bytes or 0
                check = None if chunk.checksum is None else chunk.checksum.start()
                try:
                    got = await self._receiver.receive(chunk.take(), file, hold, limit, check)
                except BaseException:
                    # Whatever went wrong: only acknowledged bytes stay.
                    await self._run(file.discard)
                    raise
                return await self._run(self._end, record, file, got, chunk.checksum, check)

    async def join(self, new: NewUpload, parts: tuple[str, ...]) -> UploadRecord:
        """Join finished parts to one upload; asking again for the same finds it.

        Raises:
            MissingPathError: a part is not there, or somebody else's.
            ConflictError: a part is not finished, or belongs to another upload.
            ChecksumError: the whole has another SHA-256 than was announced.
        """
        key = (new.owner, *parts)
        task = self._joining.get(key)
        if task is None:
            task = self._joining[key] = asyncio.create_task(self._run(self._join, new, parts))
            task.add_done_callback(lambda _: self._joining.pop(key, None))
        # Shielded: a client that gives up and asks again finds the work going on.
        return await asyncio.shield(task)

    async def remove(self, upload_id: str) -> None:
        """End an upload and forget it; a volume that was made of it stays.

        Raises:
            MissingPathError: there is no such upload.
        """
        async with self._locks.hold(upload_id):
            await self._run(self._remove, upload_id)

    def get(self, upload_id: str) -> UploadRecord:
        """An upload, whatever its state.

        Raises:
            MissingPathError: there is none.
        """
        with self._database.read() as connection:
            record = find_upload(connection, upload_id)
        if record is None:
            raise no_upload(upload_id)
        return record

    def list(self, owner: str | None = None, limit: int | None = None) -> list[UploadRecord]:
        """Uploads, newest first."""
        with self._database.read() as connection:
            return list_uploads(connection, owner=owner, limit=limit)

    def offset_of(self, record: UploadRecord) -> int:
        """Bytes of an upload that are safe."""
        if record.state in ("finished", "joined"):
            return record.n_bytes or 0
        return 0 if record.state == "rejected" else committed_offset(self.folder / record.id)

    def data_path(self, record: UploadRecord) -> Path:
        """The file of a finished upload that nothing has taken yet."""
        return self.folder / record.id / DATA_NAME

    # --- Life of the service -----------------------------------------------------------------

    def start(self) -> None:
        """Finish what a crash left between its last byte and its transaction; sweep orphans."""
        self._threads.submit(self._recover)

    def stop(self) -> None:
        """Wait for what is being written."""
        self._readers.shutdown()
        self._threads.shutdown()

    def expire(self) -> tuple[str, ...]:
        """Remove what has expired, unless someone works on it, and folders without an upload."""
        with self._database.read() as connection:
            found = list_uploads(connection, expired_by=self._clock())
        gone = tuple(one.id for one in found if not self._locks.is_held(one.id))
        for upload_id in gone:
            self._database.run(lambda connection, one=upload_id: delete_upload(connection, one))
            self._drop(upload_id)
        self._sweep()
        return gone

    def release(self, upload_id: str, volume: str) -> None:
        """Drop the bytes of an upload that a volume has taken over."""
        self._database.run(lambda connection: update_upload(connection, upload_id, volume=volume))
        self._drop(upload_id)

    # --- Steps, in threads -------------------------------------------------------------------

    async def _run(self, work: Callable[..., Result], *args: Any) -> Result:
        # What has begun on the disk ends there before the upload's lock is given back.
        return await outlast(asyncio.get_running_loop().run_in_executor(self._threads, work, *args))

    def _insert(
        self, connection: Connection, record: UploadRecord, n_replaced: int
    ) -> UploadRecord:
        key = record.idempotency_key
        if key is not None and (old := find_by_key(connection, record.owner, key)) is not None:
            if (old.n_bytes, dict(old.metadata)) != (record.n_bytes, dict(record.metadata)):
                raise ConflictError(
                    "this Idempotency-Key made another upload before",
                    hint="use a new key for another file",
                )
            return old
        self.space.check(connection, record.owner, record.n_bytes or 0, n_replaced=n_replaced)
        insert_upload(connection, record)
        return record

    def _usable(self, upload_id: str) -> UploadRecord:
        record = self.get(upload_id)
        if record.state == "rejected":
            told = (record.problem or {}).get("message", "its bytes were not the announced ones")
            raise GoneError(f"upload {upload_id} was rejected: {told}", hint="upload it again")
        if record.state == "open" and record.expires < self._clock():
            raise GoneError(f"upload {upload_id} has expired", hint="upload the file again")
        return record

    def _prepare(self, record: UploadRecord, chunk: Chunk) -> UploadRecord:
        """Write down a length told only now, and that the upload is alive."""
        changes: dict[str, Any] = {}
        if chunk.upload_length is not None and chunk.upload_length != record.n_bytes:
            if record.n_bytes is not None:
                raise TusError(
                    f"Upload-Length was {record.n_bytes} and cannot become {chunk.upload_length}",
                    hint="leave the header out, or begin another upload",
                )
            if chunk.upload_length < committed_offset(self.folder / record.id):
                raise TusError(
                    "Upload-Length is less than the bytes that are already there",
                    hint="end this upload with DELETE and begin anew",
                )
            self.space.check_size(chunk.upload_length)
            changes["n_bytes"] = chunk.upload_length
        expires = self._clock() + self._expiry_s
        if record.expires < expires - (1 - _RENEW_SHARE) * self._expiry_s:
            changes["expires"] = expires
        if not changes:
            return record

        def write(connection: Connection) -> None:
            if "n_bytes" in changes:
                here = committed_offset(self.folder / record.id)
                self.space.check(connection, record.owner, changes["n_bytes"] - here)
            update_upload(connection, record.id, **changes)

        self._database.run(write)
        return replace(record, **changes)

    def _begin(
        self, upload_id: str, chunk: Chunk, opened: ExitStack
    ) -> tuple[UploadRecord, UploadFile | None, int]:
        """Open an upload for a body that fits; its file is None where nothing is left to come."""
        record = self._usable(upload_id)
        if record.parts is not None:
            raise TusError(
                "a concatenation takes no further bytes",
                status=403,
                hint="join other parts instead",
            )
        if record.state != "open":
            check_at_end(record, chunk)
            return record, None, 0
        record = self._prepare(record, chunk)
        file = opened.enter_context(self._open(record))
        end = record.n_bytes
        if end is None:
            # Nothing was set aside for it: what is free now is what it may take.
            room = self.space.room(record.owner)
            end = min(self.space.limits.max_upload, file.offset + room)
        check_chunk(chunk, file.offset, end)
        return record, file, end - file.offset

    def _end(
        self,
        record: UploadRecord,
        file: UploadFile,
        got: Reception,
        checksum: Checksum | None,
        check: Any,
    ) -> tuple[UploadRecord, int]:
        """Make safe what came, and finish the upload that is whole."""
        offset = settle(file, got, checksum, check)
        return (self.finisher.finish(record) if offset == record.n_bytes else record), offset

    def _open(self, record: UploadRecord) -> UploadFile:
        return UploadFile(self.folder / record.id, self._hashes.of(record))

    def _join(self, new: NewUpload, parts: tuple[str, ...]) -> UploadRecord:
        found = [self.get(part) for part in dict.fromkeys(parts)]
        if (before := check_parts(found, new.owner, parts)) is not None:
            return self._same_whole(before, parts)
        sizes = {one.id: one.n_bytes or 0 for one in found}
        n_bytes = sum(sizes[part] for part in parts)
        whole = replace(new, n_bytes=n_bytes, parts=parts)
        record = self.create(whole, n_replaced=sum(sizes.values()))
        try:
            with self._open(record) as file:
                copy_parts(file, [self.folder / part / DATA_NAME for part in parts])
        except BaseException:
            self._remove(record.id)
            raise
        done = self.finisher.finish(record)
        for part in sizes:
            self._drop(part)
        return done

    def _same_whole(self, upload_id: str, parts: tuple[str, ...]) -> UploadRecord:
        whole = self.get(upload_id)
        if whole.parts != parts:
            raise ConflictError("these parts have gone into another upload", hint="send them again")
        return whole

    def _remove(self, upload_id: str) -> None:
        if not self._database.run(lambda connection: delete_upload(connection, upload_id)):
            raise no_upload(upload_id)
        self._drop(upload_id)

    def _drop(self, upload_id: str) -> None:
        self._hashes.drop(upload_id)
        shutil.rmtree(self.folder / upload_id, ignore_errors=True)

    def _recover(self) -> None:
        with self._database.read() as connection:
            found = list_uploads(connection, state="open")
        for record in found:
            try:
                if self.offset_of(record) == record.n_bytes:
                    self.finisher.finish(record)
                elif record.parts is not None:
                    # Joining was cut: nobody knows this id, and the parts are still there.
                    self._remove(record.id)
            except ChecksumError as error:
                logger.warning("upload %s: %s", record.id, error)
            except OSError:
                logger.exception("upload %s could not be finished", record.id)
        self._sweep()

    def _sweep(self) -> None:
        """Remove folders whose upload is not in the database, a while after they were made."""
        with self._database.read() as connection:
            known = {one.id for one in list_uploads(connection) if one.has_data or one.volume}
        for path in self.folder.iterdir():
            if path.name not in known and self._clock() - path.stat().st_mtime > _ORPHAN_S:
                self._drop(path.name)
