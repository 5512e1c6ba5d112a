"""Which DICOM files belong together, and which of several series is meant."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from lamella.core.errors import InputError, LamellaError, UnreadableFileError
from lamella.io.dicom_header import (
    DicomFile,
    foreign_errors,
    has_magic,
    looks_bare,
    read_header,
)
from lamella.io.dicom_values import text
from lamella.io.format import ContentEntry
from lamella.volume import Note

__all__ = ["DicomSeries", "choose_series", "first_dicom_file", "is_directory_file", "scan"]

_MOST_PROBED = 2000
_HEAD_BYTES = 132
_DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class DicomSeries:
    """Files with one SeriesInstanceUID, in the order of their names."""

    uid: str
    files: tuple[DicomFile, ...]

    @property
    def images(self) -> tuple[DicomFile, ...]:
        """Those that hold pixels."""
        return tuple(file for file in self.files if file.is_image)

    @property
    def number(self) -> str:
        """Series number, empty where unknown."""
        return text(self.files[0].dataset, "SeriesNumber")

    @property
    def description(self) -> str:
        """Series description, empty where unknown."""
        return text(self.files[0].dataset, "SeriesDescription")

    @property
    def n_frames(self) -> int:
        """Planes in all files."""
        return sum(len(file.frames) for file in self.files)

    @property
    def title(self) -> str:
        """One line for people: number, modality, description, size."""
        first = (self.images or self.files)[0]
        if not self.images:
            size = f"{len(self.files)} files without pixels"
        else:
            rows, columns, _ = first.shape
            size = f"{self.n_frames} x {rows} x {columns}"
        number = f"#{self.number}" if self.number else ""
        return "  ".join(part for part in (number, first.modality, self.description, size) if part)

    @property
    def entry(self) -> ContentEntry:
        """As ``contents`` lists it."""
        first = (self.images or self.files)[0]
        rows, columns, samples = first.shape
        shape = (self.n_frames, rows, columns) + ((samples,) if samples > 1 else ())
        return ContentEntry(
            selector="series",
            id=self.uid,
            title=self.title,
            shape=shape if self.images else (),
            dtype=str(first.stored) if self.images else "",
            is_image=bool(self.images),
        )


def scan(path: Path) -> tuple[tuple[DicomSeries, ...], tuple[Note, ...]]:
    """Every series in a file, a folder (nested folders too) or a DICOMDIR.

    Args:
        path: file, folder or DICOMDIR file.

    Returns:
        Series in the order of number and UID, and notes on files passed over.

    Raises:
        UnreadableFileError: when nothing DICOM can be read.
    """
    notes: list[Note] = []
    if path.is_dir():
        files = _from_paths(list(_dicom_paths(path, notes)), notes)
    else:
        single = read_header(path)
        is_directory = "DirectoryRecordSequence" in single.dataset
        files = _from_directory(path, single.dataset, notes) if is_directory else [single]
    groups: dict[str, list[DicomFile]] = {}
    for file in files:
        groups.setdefault(file.series_uid, []).append(file)
    series = [DicomSeries(uid, tuple(members)) for uid, members in groups.items()]
    if not series:
        raise UnreadableFileError(
            f"{path} holds no DICOM file that can be read", hint=_skipped_hint(notes)
        )
    return tuple(sorted(series, key=_series_order)), tuple(notes)


def choose_series(path: Path, series: tuple[DicomSeries, ...], wanted: str | None) -> DicomSeries:
    """The series that is meant.

    Args:
        path: for messages.
        series: from :func:`scan`.
        wanted: UID, series number, or part of the description (any case); None when there is one.

    Raises:
        InputError: when none or several fit; the message lists what there is.
    """
    images = [known for known in series if known.images]
    if not images:
        kinds = sorted({known.files[0].modality or "unknown" for known in series})
        raise InputError(
            f"{path} holds DICOM objects without pixels ({', '.join(kinds)}), not an image",
            hint="open the images that they refer to",
        )
    if wanted is None:
        if len(images) == 1:
            return images[0]
        # A segmentation beside the images that it was drawn on is not what is meant.
        originals = [known for known in images if not known.images[0].is_segmentation]
        if len(originals) == 1:
            return originals[0]
        raise _listing(f"{path} holds {len(images)} series, and none was chosen", images)
    fitting = [known for known in images if known.uid == wanted]
    fitting = fitting or [known for known in images if known.number == wanted.lstrip("#")]
    fitting = fitting or [k for k in images if wanted.lower() in k.description.lower()]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise _listing(f"no series of {path} is {wanted!r}", images)
    raise _listing(f"{len(fitting)} series of {path} fit {wanted!r}", fitting)


def first_dicom_file(folder: Path) -> Path | None:
    """A file with DICOM's magic in a folder, among the first ones looked at."""
    for count, path in enumerate(_walk(folder)):
        if count >= _MOST_PROBED:
            return None
        if has_magic(_head(path)):
            return path
    return None


def is_directory_file(path: Path) -> bool:
    """Whether a file is called as the directory of a DICOM medium."""
    return path.name.upper().startswith("DICOMDIR")


def _listing(problem: str, series: list[DicomSeries]) -> InputError:
    shown = "; ".join(f"{known.title} (UID {known.uid})" for known in series[:_SHOWN])
    more = f"; and {len(series) - _SHOWN} more" if len(series) > _SHOWN else ""
    return InputError(
        f"{problem}: {shown}{more}",
        hint="choose one with --series: its number, UID or part of its description",
        details={"series": [{"uid": known.uid, "title": known.title} for known in series]},
    )


def _series_order(series: DicomSeries) -> tuple[Any, ...]:
    number = series.number
    return (int(number) if number.lstrip("-").isdigit() else 2**31, number, series.uid)


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder in the order of their names; hidden ones and links to folders not."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(root) / name


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(_HEAD_BYTES)
    except OSError:
        return b""


def _dicom_paths(folder: Path, notes: list[Note]) -> Iterator[Path]:
    other: list[str] = []
    for path in _walk(folder):
        head = _head(path)
        if is_directory_file(path):
            continue
        if has_magic(head) or (path.suffix.lower() in ("", ".dcm", ".ima") and looks_bare(head)):
            yield path
        else:
            other.append(path.name)
    if other:
        shown = ", ".join(other[:5]) + (" …" if len(other) > 5 else "")
        notes.append(
            Note("files_skipped", f"{len(other)} files are no DICOM and were skipped: {shown}")
        )


def _from_paths(paths: list[Path], notes: list[Note]) -> list[DicomFile]:
    files: list[DicomFile] = []
    broken: list[LamellaError] = []
    seen: set[tuple[str, str]] = set()
    doubled = 0
    for path in paths:
        try:
            file = read_header(path)
        except LamellaError as error:
            broken.append(error)
            continue
        identity = (file.series_uid, text(file.dataset, "SOPInstanceUID"))
        if identity[1] and identity in seen:
            doubled += 1
            continue
        seen.add(identity)
        files.append(file)
    if doubled:
        notes.append(
            Note("copies_skipped", f"{doubled} files are copies of others (same SOP instance UID)")
        )
    if broken:
        # A slice that cannot be read leaves a gap, which the geometry check would blame on the
        # scanner; the cause is said here.
        notes.append(
            Note("files_damaged", f"{len(broken)} DICOM files cannot be read: {broken[0].message}")
        )
    return files


def _from_directory(path: Path, dataset: Any, notes: list[Note]) -> list[DicomFile]:
    """Files that a DICOMDIR refers to, relative to its own folder."""
    with foreign_errors(path, "reading the DICOMDIR"):
        named = [
            record.ReferencedFileID
            for record in dataset.DirectoryRecordSequence
            if "ReferencedFileID" in record and record.ReferencedFileID
        ]
    paths: list[Path] = []
    missing: list[str] = []
    for name in named:
        parts = [name] if isinstance(name, str) else [str(part) for part in name]
        found = _inside(path.parent, parts)
        if found is None:
            missing.append("/".join(parts))
        else:
            paths.append(found)
    if missing:
        notes.append(
            Note(
                "files_missing",
                f"{len(missing)} of {len(named)} files of the DICOMDIR are not there:"
                f" {missing[0]} …",
            )
        )
    if not paths:
        raise UnreadableFileError(
            f"{path} is a DICOMDIR that refers to {len(named)} files, none of which is there",
            hint="copy the folders beside it too, or open the folder of the images",
        )
    return _from_paths(paths, notes)


def _inside(folder: Path, parts: list[str]) -> Path | None:
    """A file below the folder; media written on DOS differ in case."""
    current = folder
    for part in parts:
        if part in ("", ".", "..") or PureWindowsPath(part).name != part:
            return None
        candidates = (current / part, current / part.lower(), current / part.upper())
        following = next((known for known in candidates if known.exists()), None)
        if following is None:
            return None
        current = following
    return current if current.is_file() else None


def _skipped_hint(notes: list[Note]) -> str:
    said = "; ".join(note.message for note in notes)
    return said or "the folder is empty: copy the images into it"
