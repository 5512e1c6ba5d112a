"""Zip archives: unpacked only where they can do no harm, written so that equals are equal.

Refused before anything is written: names that lead out of the folder, absolute names, drives,
names that meet on a file system without case, links and devices, encryption, archives that unpack
to more than the limits allow. The sizes the archive declares are held to while it is unpacked.
"""

from __future__ import annotations

import hashlib
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from lamella.core.errors import ModelError
from lamella.core.storage import storage_error
from lamella.wire.record import FileDoc

__all__ = ["ZipLimits", "check_zip", "unpack_zip", "write_zip"]

_BUFFER_BYTES = 1 << 20
_DATE = (1980, 1, 1, 0, 0, 0)
_WINDOWS_FORBIDDEN = frozenset('\\:*?"<>|')
_FINDER = ".DS_Store"
_MAC_EXTRAS = "__MACOSX/"
"""What the Finder adds to archives: no part of what was packed."""
_RESERVED = frozenset({"con", "prn", "aux", "nul"})
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


@dataclass(frozen=True, slots=True)
class ZipLimits:
    """What an archive may become.

    Attributes:
        n_bytes: size of everything in it, unpacked.
        n_files: entries.
        ratio: unpacked size over the archive's, beyond ``n_bytes_free_of_ratio``.
        n_bytes_free_of_ratio: small archives may be as dense as they like.
    """

    n_bytes: int = 64 * 10**9
    n_files: int = 100_000
    ratio: float = 100.0
    n_bytes_free_of_ratio: int = 200 * 10**6


def check_zip(path: Path, limits: ZipLimits | None = None) -> int:
    """Check an archive without unpacking it.

    Returns:
        Size of its content, unpacked.

    Raises:
        ModelError: no zip, or one that must not be unpacked, with the entry that is the reason.
    """
    limits = limits or ZipLimits()
    try:
        with zipfile.ZipFile(path) as archive:
            return _check(path, archive, limits)
    except _DAMAGED as error:
        raise _damaged(path, error) from error


def unpack_zip(
    path: Path,
    target: Path,
    *,
    limits: ZipLimits | None = None,
    on_bytes: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, FileDoc]:
    """Unpack an archive into a folder.

    Args:
        path: the archive.
        target: a folder; made where it is not.
        limits: of size.
        on_bytes: called with bytes written and all bytes; may raise.

    Returns:
        Size and SHA-256 of every file, by its path below ``target``.

    Raises:
        ModelError: an archive that is damaged or must not be unpacked.
        StorageError: the disk is full.
    """
    limits = limits or ZipLimits()
    written: dict[str, FileDoc] = {}
    done = 0
    try:
        with zipfile.ZipFile(path) as archive:
            total = _check(path, archive, limits)
            for entry in archive.infolist():
                if _is_mac_extra(entry.filename):
                    continue
                goal = target.joinpath(*PurePosixPath(entry.filename).parts)
                if entry.is_dir():
                    goal.mkdir(parents=True, exist_ok=True)
                    continue
                goal.parent.mkdir(parents=True, exist_ok=True)
                before = done

                def told(n_bytes: int, before: int = before) -> None:
                    on_bytes(before + n_bytes, total)

                with archive.open(entry) as source, goal.open("xb") as sink:
                    file = _copy(source, sink, told)
                done += file.n_bytes
                written[entry.filename] = file
    except _DAMAGED as error:
        raise _damaged(path, error) from error
    except OSError as error:
        raise storage_error(error, target) from error
    return written


def write_zip(
    target: Path,
    members: Iterable[tuple[str, Path | bytes]],
    *,
    on_bytes: Callable[[int], None] = lambda _done: None,
) -> None:
    """Write an archive: entries in the order of their names, no dates, stored as they are.

    Weights do not shrink, and what is stored does not depend on a compressor's version.

    Args:
        target: file to write; it is replaced.
        members: name in the archive, and the file or its content.
        on_bytes: called with bytes written; may raise.
    """
    done = 0
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, content in sorted(members, key=lambda member: member[0]):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.create_system = 3
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            if isinstance(content, bytes):
                archive.writestr(entry, content)
                done += len(content)
                continue
            entry.file_size = content.stat().st_size
            with content.open("rb") as source, archive.open(entry, "w") as sink:
                while piece := source.read(_BUFFER_BYTES):
                    sink.write(piece)
                    done += len(piece)
                    on_bytes(done)


def _copy(source: IO[bytes], sink: IO[bytes], on_bytes: Callable[[int], None]) -> FileDoc:
    digest, done = hashlib.sha256(), 0
    while piece := source.read(_BUFFER_BYTES):
        sink.write(piece)
        digest.update(piece)
        done += len(piece)
        on_bytes(done)
    return FileDoc(sha256=digest.hexdigest(), n_bytes=done)


def _check(path: Path, archive: zipfile.ZipFile, limits: ZipLimits) -> int:
    entries = archive.infolist()
    if not entries:
        raise _refused(path, "it is empty")
    if len(entries) > limits.n_files:
        raise _refused(path, f"it has {len(entries):,} entries, more than {limits.n_files:,}")
    seen: dict[str, bool] = {}
    for entry in entries:
        if reason := _fault(entry, seen):
            raise _refused(path, f"its entry {entry.filename!r} {reason}", entry.filename)
    total = sum(entry.file_size for entry in entries)
    if total > limits.n_bytes:
        raise _refused(path, f"it unpacks to {total / 1e9:,.1f} GB, over {limits.n_bytes / 1e9:g}")
    packed = max(1, path.stat().st_size)
    if total > limits.n_bytes_free_of_ratio and total / packed > limits.ratio:
        raise _refused(
            path, f"it unpacks to {total / packed:,.0f} times its size: an archive made to do harm"
        )
    return total


def _fault(entry: zipfile.ZipInfo, seen: dict[str, bool]) -> str:
    """Why an entry must not be unpacked; empty where it may. ``seen``: folded path → is a file."""
    name = entry.filename
    if entry.flag_bits & 1:
        return "is encrypted"
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    # zipfile turns backslashes into slashes on Windows only; nobody's archive needs them.
    original = getattr(entry, "orig_filename", name)
    parts = original.removesuffix("/").split("/")
    if original.startswith("/") or ".." in parts or "." in parts or "" in parts:
        return "leads out of the folder"
    if not original.isprintable() or any(_WINDOWS_FORBIDDEN & set(part) for part in parts):
        return "has a name that not every system can write"
    if any(part.split(".")[0].lower() in _RESERVED or part != part.rstrip(" .") for part in parts):
        return "has a name that not every system can write"
    folded = [part.casefold() for part in parts]
    for length in range(1, len(folded)):
        if seen.setdefault("/".join(folded[:length]), False):
            return "lies below a file"
    whole = "/".join(folded)
    if whole in seen and (seen[whole] or not entry.is_dir()):
        return "is there twice"
    seen[whole] = not entry.is_dir()
    return ""


def _is_mac_extra(name: str) -> bool:
    last = PurePosixPath(name).name
    return name.startswith(_MAC_EXTRAS) or last == _FINDER or last.startswith("._")


def _refused(path: Path, reason: str, entry: str | None = None) -> ModelError:
    return ModelError(
        f"the archive {path.name} is not unpacked: {reason}",
        hint="get the archive from its source again; nothing was written",
        details={"archive": str(path), "entry": entry},
    )


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(
        f"the archive {path.name} is damaged or no zip archive ({error})",
        hint="get it again; a download that broke off can be gone on with by `lamella models pull`",
    )
