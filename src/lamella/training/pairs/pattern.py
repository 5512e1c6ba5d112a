"""Patterns of files: what a person writes for "all images of this data set".

As in a shell, with three things more: ``**`` stands for any folders in between, a slash at the end
means folders (of slices), and ``FILE::NAME`` a data set inside each file. An OME-Zarr counts as a
file. A file that no reader of Lamella knows by its suffix is left out of what ``*`` stands for.

Examples:
    >>> split_location("sample.h5::volumes/raw")
    ('sample.h5', 'volumes/raw')
    >>> compiled = Pattern.parse("sub-*/micr/*_SEM.png")
    >>> compiled.captured("sub-rat1/micr/data1_SEM.png")
    ('rat1', 'data1')
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lamella.core.errors import InputError, MissingPathError
from lamella.io.format import descriptors

__all__ = ["Found", "Pattern", "find_files", "split_location", "without_suffix"]

_SEPARATOR = "::"
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Found:
    """A file that a pattern found.

    Attributes:
        location: path below the root with ``/``, and ``::NAME`` where a data set is meant.
        captured: what each wildcard stood for, without the suffix of the file.
    """

    location: str
    captured: tuple[str, ...]

    @property
    def stem(self) -> str:
        """Path below the root without suffix and data set."""
        return without_suffix(split_location(self.location)[0])


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern, understood.

    Attributes:
        text: without the data set.
        dataset: name inside the file; empty for none.
        fixed: folder before the first wildcard.
        expression: of paths below the root.
        wants_folders: it ends with a slash.
    """

    text: str
    dataset: str
    fixed: str
    expression: re.Pattern[str]
    wants_folders: bool

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Understand a pattern.

        Raises:
            InputError: for an empty one, or a bracket that is not closed.
        """
        path, dataset = split_location(text.strip().replace("\\", "/"))
        wants_folders = path.endswith("/")
        path = path.removeprefix("./").rstrip("/")
        if not path:
            raise InputError("a pattern is empty", hint="write one such as images/*.tif")
        parts = path.split("/")
        wild = next((i for i, part in enumerate(parts) if _WILD.search(part)), len(parts) - 1)
        return cls(
            text=path,
            dataset=dataset,
            fixed="/".join(parts[:wild]),
            expression=re.compile(_expression(path)),
            wants_folders=wants_folders,
        )

    @property
    def is_wild(self) -> bool:
        """Whether it can find more than one file."""
        return bool(_WILD.search(self.text))

    def captured(self, path: str) -> tuple[str, ...] | None:
        """What the wildcards stand for in a path; None where it does not fit."""
        match = self.expression.fullmatch(path)
        if match is None:
            return None
        groups = [group or "" for group in match.groups()]
        if groups and match.end(len(groups)) == len(path):
            groups[-1] = without_suffix(groups[-1])
        return tuple(groups)


def split_location(location: str) -> tuple[str, str]:
    """Path and name of the data set inside it (empty for none)."""
    path, _, dataset = location.partition(_SEPARATOR)
    return path, dataset


def without_suffix(path: str) -> str:
    """A path without the suffix of its format: all of ``.ome.tif``, ``.nii.gz``, ``.lzf.h5``."""
    lower = path.lower()
    longest = max((len(s) for s in _suffixes() if lower.endswith(s)), default=0)
    stem = path[: len(path) - longest]
    return stem.removesuffix(".lzf")


def find_files(root: Path, text: str) -> tuple[Found, ...]:
    """Find the files of a pattern, by path.

    Args:
        root: folder that the pattern starts from; an absolute pattern ignores it.
        text: the pattern.

    Raises:
        MissingPathError: when nothing fits, or the folder is not there.
        InputError: for a pattern that is none.
    """
    pattern = Pattern.parse(text)
    suffix = f"{_SEPARATOR}{pattern.dataset}" if pattern.dataset else ""
    start = root / pattern.fixed
    if not pattern.is_wild:
        path = root / pattern.text
        if not path.exists():
            raise MissingPathError(f"there is nothing at {path}", hint="check the path")
        if path.is_dir() and not (pattern.wants_folders or _is_volume_folder(path.name)):
            return find_files(root, f"{pattern.text}/**/*{suffix}")
        return (Found(pattern.text + suffix, ()),)
    if not start.is_dir():
        raise MissingPathError(
            f"there is no folder {start}", hint=f"correct the pattern {text!r} or the root"
        )
    found = []
    for path in _walk(start, pattern.fixed, wants_folders=pattern.wants_folders):
        captured = pattern.captured(path)
        if captured is not None and (pattern.wants_folders or _is_readable(path)):
            found.append(Found(path + suffix, captured))
    if not found:
        raise MissingPathError(
            f"no file below {root} fits the pattern {text!r}",
            hint="** stands for any folders; files need a suffix that `lamella info` reads",
        )
    return tuple(sorted(found, key=lambda entry: entry.location))


def _walk(start: Path, below: str, *, wants_folders: bool) -> list[str]:
    """Paths below the root of files (and volumes that are folders), hidden ones left out."""
    found: list[str] = []
    for folder, names, files in os.walk(start, followlinks=True):
        relative = Path(folder).relative_to(start).as_posix()
        head = "/".join(part for part in (below, relative) if part not in ("", "."))
        volumes = [name for name in names if _is_volume_folder(name)]
        names[:] = sorted(n for n in names if n not in volumes and not n.startswith("."))
        entries = names if wants_folders else [*volumes, *files]
        found += [f"{head}/{name}" if head else name for name in entries if name[0] != "."]
    return found


@cache
def _suffixes() -> tuple[str, ...]:
    return tuple(suffix for known in descriptors() if known.reads for suffix in known.suffixes)


def _is_readable(path: str) -> bool:
    return path.lower().endswith(_suffixes())


def _is_volume_folder(name: str) -> bool:
    return name.lower().endswith((".zarr", ".n5"))


def _expression(path: str) -> str:
    """The regular expression of a pattern; every wildcard is a group."""
    result, i = "", 0
    while i < len(path):
        if path.startswith("**/", i):
            result += "(?:(.*)/)?"
            i += 3
        elif path.startswith("**", i):
            result += "(.*)"
            i += 2
        elif path[i] == "*":
            result += "([^/]*)"
            i += 1
        elif path[i] == "?":
            result += "([^/])"
            i += 1
        elif path[i] == "[":
            end = path.find("]", i + 2)
            if end < 0:
                raise InputError(
                    f"the pattern {path!r} has a bracket that is not closed",
                    hint="write sets such as [0-9], and [[] for a bracket",
                )
            inner = path[i + 1 : end].replace("\\", r"\\")
            inner = "^" + inner[1:] if inner[0] == "!" else inner
            result += f"([{inner}])"
            i = end + 1
        else:
            result += re.escape(path[i])
            i += 1
    return result
