"""Files of a folder: listed, copied with their hashes, linked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from lamella.core.errors import InputError, ModelError
from lamella.wire.record import FileDoc

__all__ = [
    "check_below",
    "copy_file",
    "few_names",
    "iter_files",
    "make_link",
    "only_folder",
    "wanted_files",
]

_BUFFER_BYTES = 1 << 20


def wanted_files(path: Path, facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Paths of the files to be stored, below a recognised folder."""
    if facts.get("files"):
        names = tuple(sorted(str(name) for name in facts["files"]))
        check_below(names, path)
        return names
    return tuple(sorted(iter_files(path)))


def iter_files(folder: Path) -> Iterator[str]:
    """Yield the paths of all files, links followed, a folder seen twice not entered again.

    Raises:
        ModelError: for what is neither a file nor a folder.
    """
    seen: set[tuple[int, int]] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        facts = Path(root).stat()
        if (facts.st_dev, facts.st_ino) in seen:
            folders.clear()
            continue
        seen.add((facts.st_dev, facts.st_ino))
        for name in names:
            path = Path(root) / name
            if not path.is_file():
                raise ModelError(
                    f"{path} is no plain file", hint="take it out of the folder, then import it"
                )
            yield path.relative_to(folder).as_posix()


def check_below(names: Sequence[str], folder: Path) -> None:
    """Refuse names that lead out of a folder, or to nothing.

    Raises:
        ModelError: naming the first of them.
    """
    for name in names:
        parts = PurePosixPath(name).parts
        if PurePosixPath(name).is_absolute() or ".." in parts or not (folder / name).is_file():
            raise ModelError(f"{name!r} is listed, but there is no such file in {folder}")


def only_folder(path: Path) -> tuple[Path, ...]:
    """Return the one folder that a folder holds, besides files that systems leave everywhere."""
    if not path.is_dir():
        return ()
    inside = [one for one in path.iterdir() if not one.name.startswith((".", "__MACOSX"))]
    return (inside[0],) if len(inside) == 1 and inside[0].is_dir() else ()


def few_names(path: Path) -> list[str]:
    """Return the first names in a folder, for messages."""
    names = sorted(one.name + "/" * one.is_dir() for one in path.iterdir())
    return [*names[:6], *(["..."] if len(names) > 6 else [])]


def copy_file(source: Path, target: Path, on_bytes: Callable[[int], None]) -> FileDoc:
    """Copy a file and hash it on the way.

    Args:
        source: what to copy.
        target: a file that is not there yet.
        on_bytes: called with the bytes written so far; may raise.
    """
    digest, done = hashlib.sha256(), 0
    with source.open("rb") as reader, target.open("xb") as writer:
        while piece := reader.read(_BUFFER_BYTES):
            writer.write(piece)
            digest.update(piece)
            done += len(piece)
            on_bytes(done)
    return FileDoc(sha256=digest.hexdigest(), n_bytes=done)


def make_link(link: Path, target: Path) -> None:
    """Make a symbolic link.

    Raises:
        InputError: where the system allows none.
    """
    try:
        link.symlink_to(target, target_is_directory=target.is_dir())
    except OSError as error:
        raise InputError(
            f"no link to {target} can be made here ({error.strerror})",
            hint="leave out --link: the files are copied then",
        ) from error
