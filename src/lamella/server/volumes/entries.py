"""Names of files within a volume, as clients and archives give them: trusted for nothing.

Examples:
    >>> names = EntryNames()
    >>> str(names.add("scan/slice 1.dcm"))
    'scan/slice 1.dcm'
    >>> names.add("scan/SLICE 1.dcm")
    Traceback (most recent call last):
    ...
    lamella.core.errors.InputError: two files have names that differ in case or accents only: ...
"""

import unicodedata
from pathlib import PurePosixPath

from lamella.core.errors import InputError

__all__ = ["EntryNames", "entry_path", "is_junk"]

_MAX_PART_BYTES = 255
_MAX_PATH_BYTES = 1024
_MAX_DEPTH = 64
_HINT = "pack the folder again with a plain zip or tar program, from within its parent folder"
_JUNK_FOLDERS = ("__MACOSX",)
_JUNK_FILES = (".DS_Store", "Thumbs.db", "desktop.ini")


def entry_path(name: str) -> PurePosixPath:
    """A relative path that stays where it is put.

    Raises:
        InputError: absolute paths, ``..``, drive letters, backslashes, control characters, and
            names that a disk could not take.
    """
    shown = repr(name[:120])
    if not name or "\0" in name or any(unicodedata.category(char) == "Cc" for char in name):
        raise InputError(f"the file name {shown} is empty or has control characters", hint=_HINT)
    try:
        n_bytes = len(name.encode())
    except UnicodeEncodeError:
        raise InputError(f"the file name {shown} is no valid text", hint=_HINT) from None
    if "\\" in name:
        raise InputError(f"the file name {shown} has backslashes", hint=_HINT)
    path = PurePosixPath(name)
    if name.startswith("/") or (len(name) > 1 and name[1] == ":" and name[0].isalpha()):
        raise InputError(f"the file name {shown} is absolute", hint=_HINT)
    if ".." in path.parts:
        raise InputError(f"the file name {shown} leads out of the folder", hint=_HINT)
    if not path.parts:
        raise InputError(f"the file name {shown} names no file", hint=_HINT)
    too_long = any(len(part.encode()) > _MAX_PART_BYTES for part in path.parts)
    if too_long or n_bytes > _MAX_PATH_BYTES or len(path.parts) > _MAX_DEPTH:
        raise InputError(f"the file name {shown} is too long or too deep", hint=_HINT)
    return path


def is_junk(path: PurePosixPath) -> bool:
    """Whether a desktop put it there by itself."""
    return path.parts[0] in _JUNK_FOLDERS or path.name in _JUNK_FILES


class EntryNames:
    """Files seen so far: refuses two that would be one on some disk."""

    def __init__(self) -> None:
        self._files: dict[str, str] = {}
        self._folders: dict[str, str] = {}

    def add(self, name: str) -> PurePosixPath:
        """The path of one more file.

        Raises:
            InputError: see :func:`entry_path`; also when it is another file's, in another case or
                other code points for the same letters, or a folder's.
        """
        path = entry_path(name)
        key = _folded(str(path))
        if key in self._files:
            raise InputError(
                "two files have names that differ in case or accents only:"
                f" {self._files[key]!r} and {name[:120]!r}"
                if self._files[key] != str(path)
                else f"the file name {name[:120]!r} comes twice",
                hint=_HINT,
            )
        if key in self._folders:
            raise InputError(f"{name[:120]!r} is a file and a folder", hint=_HINT)
        self._add_folders(path)
        self._files[key] = str(path)
        return path

    def _add_folders(self, path: PurePosixPath) -> None:
        for parent in path.parents:
            if not parent.parts:
                return
            key = _folded(str(parent))
            if key in self._files:
                raise InputError(f"{str(parent)[:120]!r} is a file and a folder", hint=_HINT)
            if self._folders.setdefault(key, str(parent)) != str(parent):
                raise InputError(
                    "two folders have names that differ in case or accents only:"
                    f" {self._folders[key]!r} and {str(parent)[:120]!r}",
                    hint=_HINT,
                )

    def __len__(self) -> int:
        return len(self._files)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFKC", text).casefold())
