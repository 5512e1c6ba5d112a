"""A folder as a tar archive that nobody writes: headers are computed, contents stay in their files.

The archive is always the same bytes for the same files: sorted names, no owners, no times. What it
holds is listed once, in a :class:`TarIndex` beside the folder, together with its SHA-256; any range
of it can then be read without the rest.

::

    header a | a … | padding | header b | b … | padding | end
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lamella.core.errors import ConflictError
from lamella.core.progress import Progress, ProgressSink, SilentSink
from lamella.wire.document import Document

__all__ = ["TarArchive", "TarIndex", "TarMember", "make_index"]

_BLOCK = 512
_RECORD = 20 * _BLOCK
_READ_BYTES = 2**20


class TarMember(Document):
    """A file of the archive."""

    name: str
    """Relative to the folder."""
    n_bytes: int
    offset: int
    """Where its header begins in the archive."""


class TarIndex(Document):
    """What an archive of a folder holds."""

    format_version: int = 1
    prefix: str
    """Name of the folder within the archive."""
    members: tuple[TarMember, ...]
    n_bytes: int
    """Of the whole archive."""
    sha256: str


def make_index(
    folder: Path, prefix: str, *, exclude: tuple[str, ...] = (), sink: ProgressSink | None = None
) -> TarIndex:
    """List and hash the archive of a folder.

    Args:
        folder: its regular files are taken, links are not.
        prefix: name of the folder within the archive.
        exclude: names of files or folders at its top that are left out.
        sink: progress and cancellation.
    """
    sink = sink or SilentSink()
    members: list[TarMember] = []
    offset = 0
    for name, n_bytes in sorted(_files(folder, exclude)):
        members.append(TarMember(name=name, n_bytes=n_bytes, offset=offset))
        offset += len(_header(f"{prefix}/{name}", n_bytes)) + _padded(n_bytes, _BLOCK)
    total = _padded(offset + 2 * _BLOCK, _RECORD)
    index = TarIndex(prefix=prefix, members=tuple(members), n_bytes=total, sha256="")
    digest = hashlib.sha256()
    done = 0
    for piece in TarArchive(folder, index).read(0, total):
        sink.check()
        digest.update(piece)
        done += len(piece)
        sink.emit(Progress("packing", done / 1e6, total / 1e6, "MB"))
    return index.model_copy(update={"sha256": digest.hexdigest()})


@dataclass(frozen=True, slots=True)
class TarArchive:
    """The archive of a folder as bytes.

    Attributes:
        folder: whose files it holds.
        index: what it holds.
    """

    folder: Path
    index: TarIndex

    @property
    def n_bytes(self) -> int:
        """Of the whole archive."""
        return self.index.n_bytes

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Bytes of a range of the archive, in pieces of at most 1 MiB.

        Raises:
            ConflictError: when a file is not what it was when the archive was listed.
        """
        members = self.index.members
        first = max(0, bisect_right(members, start, key=lambda member: member.offset) - 1)
        at = start
        for member in members[first:]:
            if member.offset >= stop:
                break
            for piece in self._member(member, at, stop):
                at += len(piece)
                yield piece
        while at < stop:
            piece = bytes(min(stop - at, _READ_BYTES))
            at += len(piece)
            yield piece

    def _member(self, member: TarMember, start: int, stop: int) -> Iterator[bytes]:
        """What of a member lies between ``start`` and ``stop`` of the archive."""
        header = _header(f"{self.index.prefix}/{member.name}", member.n_bytes)
        content = member.offset + len(header)
        end = content + member.n_bytes
        if start < content:
            yield header[start - member.offset : stop - member.offset]
        if start < end and stop > content:
            yield from self._content(member, max(0, start - content), min(stop, end) - content)
        tail = (max(start, end), min(stop, end + -member.n_bytes % _BLOCK))
        if tail[1] > tail[0]:
            yield bytes(tail[1] - tail[0])

    def _content(self, member: TarMember, start: int, stop: int) -> Iterator[bytes]:
        path = self.folder / member.name
        try:
            stream = path.open("rb")
        except FileNotFoundError:
            raise _changed(member) from None
        with stream:
            if os.fstat(stream.fileno()).st_size != member.n_bytes:
                raise _changed(member)
            stream.seek(start)
            while start < stop:
                piece = stream.read(min(_READ_BYTES, stop - start))
                if not piece:
                    raise _changed(member)
                start += len(piece)
                yield piece


def _changed(member: TarMember) -> ConflictError:
    return ConflictError(
        f"{member.name} of the run changed while it was read", hint="ask for the archive again"
    )


def _files(folder: Path, exclude: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    stack = [folder]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                name = Path(entry.path).relative_to(folder).as_posix()
                if name in exclude:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    stack.append(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    yield name, entry.stat(follow_symlinks=False).st_size


def _header(name: str, n_bytes: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = n_bytes
    info.mode = 0o644
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _padded(n_bytes: int, unit: int) -> int:
    return -(-n_bytes // unit) * unit
