"""One body that is to be appended: whether it fits, and what is kept of it."""

from dataclasses import dataclass
from typing import Any

from lamella.core.errors import ChecksumError
from lamella.server.body import SocketBody, TakenBody
from lamella.server.uploads.file import UploadFile
from lamella.server.uploads.protocol import Checksum, TusError
from lamella.server.uploads.receive import Receive, Reception
from lamella.server.uploads.rows import UploadRecord

__all__ = ["Chunk", "check_at_end", "check_chunk", "settle"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A body that is to be appended.

    Attributes:
        offset: where the client thinks that it belongs.
        receive: its messages.
        waiting: the same body, where a thread may read it from the socket instead.
        content_length: announced size; None = not known.
        checksum: what it must hash to.
        upload_length: whole size of an upload that had deferred it.
    """

    offset: int
    receive: Receive
    waiting: SocketBody | None
    content_length: int | None = None
    checksum: Checksum | None = None
    upload_length: int | None = None

    def take(self) -> Receive | TakenBody:
        """The body, by the shortest way there is."""
        taken = None if self.waiting is None else self.waiting.take()
        return self.receive if taken is None else taken


def check_chunk(chunk: Chunk, offset: int, end: int) -> None:
    """Refuse a body that does not continue the upload, or says that it is too long.

    Args:
        chunk: the body.
        offset: safe bytes of the upload.
        end: bytes that the upload may have.

    Raises:
        TusError: 409 for another offset, 413 for too many bytes.
    """
    if chunk.offset != offset:
        raise TusError(
            f"Upload-Offset is {chunk.offset}, but the upload has {offset} bytes",
            status=409,
            hint="ask for the offset with HEAD",
            headers={"Upload-Offset": str(offset)},
        )
    if chunk.content_length is not None and offset + chunk.content_length > end:
        raise TusError(
            f"{chunk.content_length} bytes from {offset} on reach beyond the {end}"
            " that the upload may have",
            status=413,
            hint="send no more than Upload-Length; without one, there is no more room",
        )


def settle(file: UploadFile, got: Reception, checksum: Checksum | None, check: Any) -> int:
    """Keep what came, or not; the offset afterwards.

    Bytes of a cut body are kept unless they were to be checked as a whole.
    """
    if checksum is None:
        return file.commit()
    if got.end != "whole":
        file.discard()
        return file.offset
    if check.digest() != checksum.digest:
        file.discard()
        raise ChecksumError(
            f"the chunk's {checksum.algorithm} is not the one announced; it was discarded",
            hint=f"send it again from offset {file.offset}",
            details={"offset": file.offset},
        )
    return file.commit()


def check_at_end(record: UploadRecord, chunk: Chunk) -> None:
    """Let a client send its empty last chunk to a finished upload again, and nothing else."""
    size = record.n_bytes or 0
    if chunk.offset != size or chunk.content_length not in (0, None):
        raise TusError(
            f"the upload is finished with {size} bytes",
            status=409,
            hint="nothing is left to send",
            headers={"Upload-Offset": str(size)},
        )
