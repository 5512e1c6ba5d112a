"""What is uploaded: a file, or several files as one archive that is never written."""

import hashlib
import io
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lamella.client.archive import Member, TarSource
from lamella.core.errors import InputError, MissingPathError
from lamella.core.storage import storage_error

__all__ = ["Digest", "FileSource", "Identity", "Upload", "prepare_upload"]

_BLOCK_BYTES = 8 * 2**20
_ZARR_METADATA = ("zarr.json", ".zgroup", ".zattrs", ".zarray", ".zmetadata")


@dataclass(frozen=True, slots=True)
class Identity:
    """By which a file is taken to be the one that was there before.

    Attributes:
        path: absolute.
        size: bytes, of all files.
        state: SHA-256 over names, sizes and times of change (ns).
    """

    path: str
    size: int
    state: str


@dataclass(frozen=True, slots=True)
class Digest:
    """SHA-256 (hex) of what is sent, and of the volume that it becomes on the server."""

    sha256: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Upload:
    """Something to upload.

    Attributes:
        source: its bytes.
        name: of the volume on the server.
        identity: by which an interrupted upload is known again.
        unpack: how the server gets the files out; empty for a single file.
        inside: the input's path within the volume, where the volume is more than the input.
    """

    source: "FileSource | TarSource"
    name: str
    identity: Identity
    unpack: Literal["", "tar"] = ""
    inside: str = ""

    def digests(self) -> Iterator[int | Digest]:
        """Bytes read so far, again and again, and the digest at last."""
        if isinstance(self.source, TarSource):
            return _digests_of_archive(self.source)
        return _digests_of_file(self.source)


class FileSource:
    """A file's bytes; one that changes while it is read is refused.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stream: io.FileIO | None = None
        try:
            known = path.stat()
        except OSError as error:
            raise storage_error(error, path) from error
        self._state = (known.st_size, known.st_mtime_ns)
        self.size = known.st_size

    def read(self, start: int, count: int) -> bytes:
        """Bytes ``start`` to ``start + count``.

        Raises:
            InputError: when the file has changed since it was looked at.
            StorageError: when it cannot be read.
        """
        try:
            with self._lock:
                if self._stream is None:
                    self._stream = io.FileIO(self._path)
                self._stream.seek(start)
                data = _read_exactly(self._stream, count)
                known = os.fstat(self._stream.fileno())
        except OSError as error:
            raise storage_error(error, self._path) from error
        if len(data) != count or (known.st_size, known.st_mtime_ns) != self._state:
            raise changed(self._path)
        return data

    def close(self) -> None:
        """Close the file; reading opens it again."""
        with self._lock:
            if self._stream is not None:
                self._stream.close()
                self._stream = None


def prepare_upload(path: Path) -> Upload:
    """What of the disk has to be sent for an input.

    A folder, and a file that is nothing without its neighbours (``.hdr`` with ``.img``, a
    ``.nhdr`` with its data), goes as one archive.

    Raises:
        MissingPathError: when there is nothing at ``path``.
        InputError: for an empty folder.
    """
    path = path.expanduser().absolute()
    if not path.exists():
        raise MissingPathError(f"there is nothing at {path}", hint="check the path")
    if path.is_file() and path.name in _ZARR_METADATA:
        path = path.parent
    if path.is_dir():
        members = _folder_members(path)
        if not members:
            raise InputError(f"{path} holds no files", hint="name the folder of the images")
        return Upload(TarSource(members), path.name, _identity(path, members), "tar")
    partners = _partners(path)
    if not partners:
        identity = _identity(path, (Member(path.name, path),))
        return Upload(FileSource(path), path.name, identity)
    folder = path.name.split(".")[0] or "volume"
    files = sorted({path, *partners})
    members = tuple(Member(f"{folder}/{file.name}", file) for file in files)
    return Upload(TarSource(members), folder, _identity(path, members), "tar", path.name)


def changed(path: Path) -> InputError:
    """The error of a file that is not the one that was opened."""
    return InputError(
        f"{path} changed while it was uploaded",
        hint="wait until nothing writes to it, then run the same command again: it starts anew",
    )


def _folder_members(folder: Path) -> tuple[Member, ...]:
    """Files of a folder as its fingerprint counts them: hidden ones only where zarr needs them."""
    files = (
        file
        for file in folder.rglob("*")
        if file.is_file() and (not file.name.startswith(".") or file.name in _ZARR_METADATA)
    )
    # Sorted as paths, not as text: the order of the fingerprint.
    return tuple(
        Member(f"{folder.name}/{file.relative_to(folder).as_posix()}", file)
        for file in sorted(files)
    )


def _partners(path: Path) -> list[Path]:
    name = path.name.lower()
    for ours, theirs in ((".hdr", ".img"), (".img", ".hdr")):
        for packed in ("", ".gz"):
            if name.endswith(ours + packed):
                stem = path.name[: -len(ours + packed)]
                candidates = [path.with_name(stem + theirs + end) for end in ("", ".gz")]
                return [found for found in candidates if found.is_file()]
    return _detached(path) if name.endswith(".nhdr") else []


def _detached(header: Path) -> list[Path]:
    """Data files that a NRRD header names."""
    lines = header.read_bytes()[:65536].decode("latin-1").splitlines()
    found: list[Path] = []
    is_list = False
    for line in lines:
        key, _, value = line.partition(":")
        if is_list:
            found.append(header.parent / line.strip())
        elif key.strip().lower() in ("data file", "datafile"):
            is_list = value.strip().upper().startswith("LIST")
            if "%" in value:
                before, after = value.split()[0].split("%")[0], value.split()[0][-4:]
                found += header.parent.glob(f"{before}*{after}")
            elif not is_list:
                found.append(header.parent / value.strip())
    near = [file for file in found if file.is_file() and file.parent == header.parent]
    return sorted(set(near))


def _identity(path: Path, members: tuple[Member, ...]) -> Identity:
    state = hashlib.sha256()
    size = 0
    for member in members:
        known = member.path.stat()
        size += known.st_size
        state.update(f"{member.name}\n{known.st_size}\n{known.st_mtime_ns}\n".encode())
    return Identity(str(path), size, state.hexdigest())


def _digests_of_file(source: FileSource) -> Iterator[int | Digest]:
    digest = hashlib.sha256()
    for start in range(0, source.size, _BLOCK_BYTES):
        count = min(_BLOCK_BYTES, source.size - start)
        digest.update(source.read(start, count))
        yield start + count
    yield Digest(digest.hexdigest(), digest.hexdigest())


def _digests_of_archive(source: TarSource) -> Iterator[int | Digest]:
    """The archive's SHA-256 and the folder's fingerprint in one pass over the files."""
    whole, listing = hashlib.sha256(), hashlib.sha256()
    for member in source.members:
        whole.update(source.header(member))
        own = hashlib.sha256()
        start, end = source.extent(member)
        for place in range(start, end, _BLOCK_BYTES):
            block = source.read(place, min(_BLOCK_BYTES, end - place))
            whole.update(block)
            own.update(block)
            yield place + len(block)
        whole.update(bytes(-(end - start) % 512))
        # Names within the volume: below the one folder of the archive.
        name = member.name.partition("/")[2]
        listing.update(f"{name}\n{own.hexdigest()}\n".encode())
    whole.update(source.read(source.end, source.size - source.end))
    yield Digest(whole.hexdigest(), listing.hexdigest())


def _read_exactly(stream: io.FileIO, count: int) -> bytes:
    pieces: list[bytes] = []
    left = count
    while left:
        piece = stream.read(left)
        if not piece:
            break
        pieces.append(piece)
        left -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
