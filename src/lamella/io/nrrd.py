"""NRRD: attached (.nrrd) and detached (.nhdr), raw, gzip, bzip2, ascii and hex.

Raw data in one file is mapped: a slice costs a slice. Packed, text and multi-file data is
unpacked once. Data files must lie in or below the header's folder, so that a header from
elsewhere cannot name any file of this machine.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import InputError, LamellaError, UnreadableFileError
from lamella.io.format import OpenOptions, Probe, SaveOptions
from lamella.io.layout import in_plane, lazy_array
from lamella.io.narrow import checked
from lamella.io.nrrd_header import NrrdFields, parse_fields, parse_geometry, stored_dtype
from lamella.io.record import RECORD_KEY, parse_record, with_record
from lamella.io.rescale import Rescale
from lamella.io.unpacked import Packing, UnpackedBytes, check_claim, open_packed
from lamella.volume import Note, Volume

__all__ = ["probe", "read", "write"]

_MOST_HEADER_BYTES = 2**20
_MOST_FILES = 100_000
_ENCODINGS: dict[str, str] = {
    "raw": "raw",
    "txt": "ascii",
    "text": "ascii",
    "ascii": "ascii",
    "hex": "hex",
    "gz": "gzip",
    "gzip": "gzip",
    "bz2": "bzip2",
    "bzip2": "bzip2",
}


def probe(path: Path, head: bytes) -> Probe:
    """By the magic ``NRRD000``."""
    if path.is_dir():
        return Probe.no("a folder")
    if head[:7] == b"NRRD000":
        return Probe.yes("the magic NRRD000")
    return Probe.no("no NRRD magic at the start")


def read(path: Path, options: OpenOptions) -> Volume:
    """Open lazily.

    Raises:
        UnreadableFileError: for damaged or truncated files.
        GeometryError: for directions that make no grid.
        AxesError: for files that are no image.
    """
    with path.open("rb") as stream:
        head = stream.read(_MOST_HEADER_BYTES)
    header = parse_fields(path, head)
    with _named(path):
        stored = stored_dtype(header)
        geometry = parse_geometry(header, axes=options.axes)
    axes = geometry.layout.axes
    notes = list(geometry.notes)
    source = _source(path, header, stored, geometry.layout.lengths, notes)
    dtype = stored.newbyteorder("=")
    is_plane = "z" not in axes and geometry.affine.ndim == 3
    volume = Volume(
        data=lazy_array(geometry.layout, source, dtype, Rescale().apply),
        axes=axes,
        affine=in_plane(geometry.affine) if is_plane else geometry.affine,
        unit=geometry.unit,
        name=path.stem,
        notes=tuple(notes),
        metadata=_metadata(header),
        path=path,
    )
    record = parse_record(header.pairs.get(RECORD_KEY, ""))
    return with_record(volume, record)


def write(volume: Volume, path: Path, options: SaveOptions) -> None:
    """Write one attached file, gzip-packed unless ``options.compress`` is off.

    Raises:
        InputError: for detached headers, and types that NRRD does not hold.
    """
    from lamella.io.nrrd_write import write_nrrd

    write_nrrd(volume, path, options)


@dataclass(frozen=True, slots=True)
class _Part:
    """A file with (a part of) the data."""

    path: Path
    offset: int


def _source(
    path: Path,
    header: NrrdFields,
    stored: np.dtype[Any],
    lengths: tuple[int, ...],
    notes: list[Note],
) -> Callable[[], NDArray[Any]]:
    """The function that gives the stored array, and every check that costs no unpacking."""
    word = header.fields["encoding"].strip().lower()
    if word not in _ENCODINGS:
        raise InputError(
            f"{path} has the NRRD encoding {word!r}, which cannot be read",
            hint=f"encodings read: {', '.join(sorted(set(_ENCODINGS.values())))}",
        )
    encoding = _ENCODINGS[word]
    n_bytes = int(np.prod(lengths, dtype=object)) * stored.itemsize
    parts = _parts(path, header)
    if encoding == "raw" and len(parts) == 1:
        return _mapped(parts[0], header, stored, lengths, notes)
    opener = _opener(parts, encoding, header, stored, n_bytes // len(parts))
    is_packed = encoding in ("gzip", "bzip2")
    skip = header.integer("byte skip", 0) if is_packed and len(parts) == 1 else 0
    if skip < -1:
        raise _bad_skip(path, "byte skip", skip)
    unpacked = UnpackedBytes(parts[0].path, opener, n_bytes, skip=skip, is_exact=True)
    return lambda: unpacked.get().view(stored).reshape(lengths)


def _mapped(
    part: _Part,
    header: NrrdFields,
    stored: np.dtype[Any],
    lengths: tuple[int, ...],
    notes: list[Note],
) -> Callable[[], NDArray[Any]]:
    n_bytes = int(np.prod(lengths, dtype=object)) * stored.itemsize
    size = part.path.stat().st_size
    skip = header.integer("byte skip", 0)
    if skip < -1:
        raise _bad_skip(part.path, "byte skip", skip)
    first = _after_lines(part, header)
    offset = size - n_bytes if skip == -1 else first + skip
    check_claim(part.path, n_bytes, None, offset=max(offset, first))
    left = size - offset - n_bytes
    if left > 0 and part.offset == 0:
        raise UnreadableFileError(
            f"{part.path} holds {left} bytes more than the header describes ({n_bytes})",
            hint="the header's sizes or type are wrong, or a byte skip is missing",
        )
    if left > 0:
        notes.append(Note("trailing_bytes", f"{left} bytes after the data are ignored"))
    mapped = np.memmap(part.path, stored, "r", offset, lengths)
    return lambda: mapped


def _after_lines(part: _Part, header: NrrdFields) -> int:
    """Where the data begins once ``line skip`` lines are passed."""
    count = header.integer("line skip", 0)
    if count < 0:
        raise _bad_skip(part.path, "line skip", count)
    if count == 0:
        return part.offset
    with part.path.open("rb") as stream:
        stream.seek(part.offset)
        for _ in range(count):
            if not stream.readline(_MOST_HEADER_BYTES).endswith(b"\n"):
                raise UnreadableFileError(
                    f"{part.path} has fewer than the {count} lines to be skipped",
                    hint="the header's line skip is wrong or the file is cut off",
                )
        return stream.tell()


def _opener(
    parts: list[_Part], encoding: str, header: NrrdFields, stored: np.dtype[Any], n_bytes: int
) -> Callable[[], IO[bytes]]:
    """Opens the stream of all stored bytes, ``n_bytes`` of each part."""
    packing: Packing | None = encoding if encoding in ("gzip", "bzip2") else None
    starts = [_after_lines(part, header) for part in parts]
    is_text = encoding in ("ascii", "hex")
    for part, start in zip(parts, starts, strict=True):
        # A character per value at least; for packed bytes as much as the packing can shrink.
        least = n_bytes // stored.itemsize if is_text else n_bytes
        check_claim(part.path, least, packing, offset=start)

    def open_part(part: _Part, start: int) -> IO[bytes]:
        if packing is not None:
            return open_packed(part.path, packing, offset=start)()
        if is_text:
            return _TextStream(part.path, start, encoding, stored)  # type: ignore[return-value]
        stream = part.path.open("rb")
        skip = header.integer("byte skip", 0)
        stream.seek(part.path.stat().st_size - n_bytes if skip == -1 else start + skip)
        return stream

    if len(parts) == 1:
        return lambda: open_part(parts[0], starts[0])
    skip = header.integer("byte skip", 0) if packing else 0
    if skip < 0 and packing:
        raise _bad_skip(parts[0].path, "byte skip", skip)
    return lambda: _Joined(
        [(open_part, part, start) for part, start in zip(parts, starts, strict=True)],
        n_bytes,
        skip,
    )  # type: ignore[return-value]


class _TextStream:
    """Numbers written as text (or bytes as hex), given out as bytes."""

    def __init__(self, path: Path, start: int, encoding: str, stored: np.dtype[Any]) -> None:
        content = path.read_bytes()[start:]
        try:
            if encoding == "hex":
                self._bytes = bytes.fromhex(content.decode("ascii"))
            else:
                self._bytes = _parse_numbers(content.decode("ascii"), stored).tobytes()
        except (ValueError, OverflowError) as error:
            raise UnreadableFileError(
                f"{path}: the {encoding} data is damaged ({error})",
                hint="copy or download the file again",
            ) from error
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        end = len(self._bytes) if size < 0 else self._at + size
        part = self._bytes[self._at : end]
        self._at += len(part)
        return part

    def __enter__(self) -> "_TextStream":
        return self

    def __exit__(self, *_: object) -> None:
        self._bytes = b""


def _parse_numbers(text: str, stored: np.dtype[Any]) -> NDArray[Any]:
    words = text.replace(",", " ").split()
    if stored.kind == "f":
        return np.array([float(word) for word in words], np.float64).astype(stored)
    wide = np.array([int(word) for word in words], np.uint64 if stored.itemsize == 8 else np.int64)
    return checked(wide, stored.newbyteorder("=")).astype(stored)


class _Joined:
    """Several files one after the other, a fixed number of bytes of each."""

    def __init__(self, parts: list[Any], n_bytes: int, skip: int) -> None:
        self._parts = iter(parts)
        self._n_bytes = n_bytes
        self._skip = skip
        self._stream: Any = None
        self._left = 0

    def read(self, size: int = -1) -> bytes:
        if self._left == 0:
            self._close()
            following = next(self._parts, None)
            if following is None:
                return b""
            open_part, part, start = following
            self._stream = open_part(part, start)
            self._stream.read(self._skip)
            self._left = self._n_bytes
        chunk = self._stream.read(self._left if size < 0 else min(size, self._left))
        if not chunk:
            raise UnreadableFileError(
                f"a data file of a detached NRRD is truncated: {self._left} bytes lack",
                hint="copy or download the data files again",
            )
        self._left -= len(chunk)
        return bytes(chunk)

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.__exit__(None, None, None)
            self._stream = None

    def __enter__(self) -> "_Joined":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()


def _parts(path: Path, header: NrrdFields) -> list[_Part]:
    named = header.fields.get("data file")
    if named is None:
        return [_Part(path, header.n_bytes)]
    words = named.split()
    if words and words[0].upper() == "LIST":
        names = list(header.data_files)
    elif len(words) >= 4 and re.search(r"%0?\d*d", named):
        names = _pattern_names(path, words)
    else:
        names = [named]
    if not names:
        raise UnreadableFileError(
            f"{path} names no data files after 'data file: LIST'", hint="the header is cut off"
        )
    sizes = header.fields["sizes"].split()
    if len(names) > 1 and len(names) != int(sizes[-1]):
        raise UnreadableFileError(
            f"{path} names {len(names)} data files for a slowest axis of {sizes[-1]}",
            hint="only one file per plane of the slowest axis is supported",
        )
    return [_Part(_inside(path, name), 0) for name in names]


def _pattern_names(path: Path, words: list[str]) -> list[str]:
    """``name%03d.raw first last step``."""
    pattern = re.sub(
        r"%(0?\d*)d", r"{:\1d}", words[0].replace("{", "{{").replace("}", "}}"), count=1
    )
    try:
        first, last, step = (int(word) for word in words[1:4])
        steps = range(first, last + (1 if step > 0 else -1), step)
        return [pattern.format(number) for number in steps[:_MOST_FILES]]
    except (ValueError, IndexError) as error:
        raise UnreadableFileError(
            f"{path} has a data file pattern that cannot be followed: {' '.join(words)} ({error})",
            hint="expected name%03d.raw first last step",
        ) from error


def _inside(path: Path, name: str) -> Path:
    """A data file's path, in or below the header's folder."""
    plain = name.replace("\\", "/")
    if PurePosixPath(plain).is_absolute() or ".." in PurePosixPath(plain).parts or ":" in plain[:2]:
        raise InputError(
            f"{path} names a data file outside its own folder: {name!r}",
            hint="put the data file beside the header and name it without a folder",
        )
    found = path.parent / plain
    if not found.is_file():
        raise UnreadableFileError(
            f"{path} describes {name!r}, which is not there",
            hint="copy the data file into the header's folder",
        )
    return found


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the path in front of messages about header fields."""
    try:
        yield
    except LamellaError as error:
        raise type(error)(
            f"{path}: {error.message}", hint=error.hint, details=error.details
        ) from error


def _bad_skip(path: Path, name: str, value: int) -> UnreadableFileError:
    return UnreadableFileError(
        f"{path}: {name} is {value}; only counts and, for bytes, -1 (from the end) have a meaning",
        hint="correct the header",
    )


def _metadata(header: NrrdFields) -> dict[str, Any]:
    """Facts for people; key/value pairs may hold patients' data and stay in the file."""
    known = {"space": "space", "content": "content", "encoding": "encoding"}
    return {name: header.fields[field] for name, field in known.items() if field in header.fields}
