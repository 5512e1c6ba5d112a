"""Archives that nobody vouches for, unpacked: bombs, escapes and tricks are refused whole.

Only plain files and folders come out. What an archive says about sizes is checked before and while
it is unpacked; the target folder is removed when anything is wrong.
"""

import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from lamella.core.errors import InputError, QuotaError, UnreadableFileError
from lamella.core.storage import storage_error
from lamella.server.volumes.entries import EntryNames, entry_path, is_junk

__all__ = ["ArchiveKind", "ArchiveLimits", "archive_stem", "content_root", "unpack"]

ArchiveKind = Literal["zip", "tar"]

_BLOCK_BYTES = 2**20
_SUFFIXES = (".tar.gz", ".tar.bz2", ".tar.xz", ".tgz", ".tbz2", ".txz", ".tar", ".zip")
_LOCAL_HEADER_BYTES = 30


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """What may come out of an archive.

    Attributes:
        max_bytes: of all files together.
        max_files: how many.
        max_ratio: unpacked bytes over packed ones. Deflate reaches 1030 on zeros, and empty
            label volumes are zeros; nested tricks reach millions.
        free_bytes: below this size the ratio does not matter.
    """

    max_bytes: int
    max_files: int = 500_000
    max_ratio: float = 1200.0
    free_bytes: int = 256 * 2**20


def unpack(archive: Path, kind: ArchiveKind, target: Path, limits: ArchiveLimits) -> int:
    """Unpack into ``target``, which must not exist yet.

    Args:
        archive: of the kind ``zip``, or ``tar`` (plain or compressed by gzip, bzip2 or xz).
        kind: which.
        target: folder to make; it is removed again when this raises.
        limits: what may come out.

    Returns:
        Bytes unpacked.

    Raises:
        UnreadableFileError: no such archive, or a damaged one.
        InputError: names or entries that lead elsewhere, links, devices, encryption, a bomb.
        QuotaError: more bytes than there is room for.
        StorageError: the disk is full.
    """
    target.mkdir(parents=True)
    sink = _Sink(target, limits, archive.stat().st_size)
    try:
        with _foreign_errors(archive, kind):
            (_unpack_zip if kind == "zip" else _unpack_tar)(archive, sink)
        sink.check_any()
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return sink.n_bytes


def archive_stem(name: str) -> str:
    """The name of an archive without what says that it is one.

    Examples:
        >>> archive_stem("scan.tar.gz"), archive_stem("scan.ome.zarr.zip"), archive_stem("scan")
        ('scan', 'scan.ome.zarr', 'scan')
    """
    for suffix in _SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def content_root(folder: Path) -> Path:
    """What an unpacked archive is: the only thing in it, or the folder of everything in it."""
    inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return inside[0] if len(inside) == 1 else folder


class _Sink:
    """Writes files below a folder and counts."""

    def __init__(self, target: Path, limits: ArchiveLimits, packed_bytes: int) -> None:
        self._target = target
        self._limits = limits
        self._packed_bytes = max(1, packed_bytes)
        self._made: set[PurePosixPath] = set()
        self.names = EntryNames()
        self.n_bytes = 0

    def announce(self, n_bytes: int) -> None:
        """Refuse what an archive says that it holds, before a byte of it is written."""
        self._check(n_bytes)

    def take(self, name: str, source: IO[bytes], n_bytes: int) -> None:
        """Write one file of an announced size."""
        path = self.names.add(name)
        if len(self.names) > self._limits.max_files:
            raise InputError(
                f"the archive holds more than {self._limits.max_files:,} files",
                hint="store the volume with larger chunks, or send several archives",
            )
        if is_junk(path):
            return
        whole = self._target / path
        if path.parent not in self._made:
            whole.parent.mkdir(parents=True, exist_ok=True)
            self._made.add(path.parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(whole, flags, 0o600), "wb") as file:
            written = 0
            while block := source.read(_BLOCK_BYTES):
                written += len(block)
                self._check(self.n_bytes + written)
                if written > n_bytes:
                    raise InputError(f"{name[:120]!r} is larger than the archive says: a bomb")
                file.write(block)
        if written != n_bytes:
            raise UnreadableFileError(f"{name[:120]!r} is cut off in the archive")
        self.n_bytes += written

    def check_any(self) -> None:
        """Refuse an archive of nothing."""
        if not self.names:
            raise UnreadableFileError("the archive holds no files", hint="pack the folder again")

    def _check(self, n_bytes: int) -> None:
        limits = self._limits
        if n_bytes > limits.max_bytes:
            raise QuotaError(
                f"unpacked, the archive has {n_bytes / 1e6:,.0f} MB or more;"
                f" there is room for {limits.max_bytes / 1e6:,.0f} MB",
                hint="delete volumes that you do not need, or send a smaller one",
            )
        if n_bytes > limits.free_bytes and n_bytes / self._packed_bytes > limits.max_ratio:
            raise InputError(
                f"the archive unpacks to more than {limits.max_ratio:,.0f} times its size: a bomb",
                hint="send the files themselves, without compression",
            )


def _unpack_zip(archive: Path, sink: _Sink) -> None:
    with zipfile.ZipFile(archive) as packed:
        entries = packed.infolist()
        sink.announce(sum(entry.file_size for entry in entries))
        _check_overlap(entries)
        for entry in entries:
            _check_zip_entry(entry)
            if entry.is_dir():
                entry_path(entry.orig_filename)
                continue
            with packed.open(entry) as source:
                sink.take(entry.orig_filename, source, entry.file_size)


def _check_zip_entry(entry: zipfile.ZipInfo) -> None:
    shown = repr(entry.filename[:120])
    if entry.flag_bits & 0x1:
        raise InputError(f"{shown} is encrypted", hint="pack the files without a password")
    # Unix keeps the file's type in the upper half of the external attributes.
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise InputError(
            f"{shown} is a link or a device, not a file", hint="pack the files themselves"
        )


def _check_overlap(entries: list[zipfile.ZipInfo]) -> None:
    """Files that share their bytes: how a small archive claims to be a large one."""
    end = 0
    for entry in sorted(entries, key=lambda one: one.header_offset):
        if entry.header_offset < end:
            raise InputError(f"{entry.filename[:120]!r} overlaps another file: a bomb")
        end = entry.header_offset + _LOCAL_HEADER_BYTES + entry.compress_size


def _unpack_tar(archive: Path, sink: _Sink) -> None:
    # As a stream: compressed archives are read once, and members are not collected.
    with tarfile.open(archive, "r|*") as packed:
        for member in packed:
            packed.members = []  # pyright: ignore[reportAttributeAccessIssue] - grows without end
            if member.isdir():
                if member.name.strip("./"):
                    entry_path(member.name)
                continue
            if not member.isreg() or member.issparse():
                raise InputError(
                    f"{member.name[:120]!r} is a link, a device or a sparse file, not a file",
                    hint="pack the files themselves: tar --dereference --hard-dereference",
                )
            sink.announce(sink.n_bytes + member.size)
            source = packed.extractfile(member)
            assert source is not None
            sink.take(member.name, source, member.size)


@contextmanager
def _foreign_errors(archive: Path, kind: ArchiveKind) -> Iterator[None]:
    try:
        yield
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        EOFError,
        NotImplementedError,
        ValueError,
        RuntimeError,
        LookupError,
    ) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UnreadableFileError(
            f"the {kind} archive cannot be read: {reason}",
            hint="it may be damaged, or of another kind; pack and send it again",
        ) from error
    except OSError as error:
        # bz2, lzma and gzip say so of damaged data, without a number.
        if error.errno is None:
            raise UnreadableFileError(
                f"the {kind} archive cannot be read: {error}", hint="pack and send it again"
            ) from error
        raise storage_error(error, archive.name) from error
