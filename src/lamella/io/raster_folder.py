"""A folder of slices as one volume: pictures or single-page TIFF files, in natural order of names.

All slices must have one shape and type. Missing numbers are noted, not filled: a stack that lost a
slice still opens, and says so.
"""

import itertools
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import InputError, UnreadableFileError
from lamella.io.raster_image import Picture, decode, look_at
from lamella.io.tiff_spacing import Calibration
from lamella.volume import FunctionArray, LazyArray, Note

__all__ = ["SLICE_SUFFIXES", "SliceStack", "natural_key", "open_slices", "slice_paths"]

SLICE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_SIDECARS = (".json", ".txt", ".xml", ".csv", ".tsv", ".md", ".db")
_CACHE_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class SliceStack:
    """Slices as an array.

    Args:
        data: (z, y, x), or (z, y, x, samples).
        calibration: spacing within the slices, from the first one.
        notes: odd things found.
    """

    data: LazyArray
    calibration: Calibration
    notes: tuple[Note, ...]


def natural_key(name: str) -> tuple[Any, ...]:
    """Sort key by which ``a2`` comes before ``a10``.

    Examples:
        >>> sorted(["a10.png", "a2.png", "a1.png"], key=natural_key)
        ['a1.png', 'a2.png', 'a10.png']
    """
    parts = re.split(r"(\d+)", name.lower())
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts)


def slice_paths(folder: Path) -> list[Path]:
    """The files in a folder that can be slices, in natural order."""
    found = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SLICE_SUFFIXES and not path.name.startswith(".")
    ]
    return sorted(found, key=lambda path: natural_key(path.name))


def open_slices(folder: Path) -> SliceStack:
    """Open a folder's slices.

    Raises:
        InputError: when the files are of several kinds, or of several shapes.
        UnreadableFileError: when one is damaged.
    """
    paths = slice_paths(folder)
    kinds = Counter(_kind(path) for path in paths)
    if not paths:
        raise UnreadableFileError(
            f"{folder} holds no slices", hint=f"slices end with {', '.join(SLICE_SUFFIXES)}"
        )
    if len(kinds) > 1:
        counted = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
        raise InputError(
            f"{folder} holds files of several kinds: {counted}",
            hint="keep the slices of one volume in a folder of their own",
        )
    is_tiff = _kind(paths[0]) == "TIFF"
    slices = [_tiff_slice(path) if is_tiff else _picture_slice(path) for path in paths]
    _check_alike(slices)
    first = slices[0]
    reader = _SliceReader(tuple(one.read for one in slices))
    data = FunctionArray((len(slices), *first.shape), first.dtype, reader.read)
    notes = (*first.notes, *_gap_notes(paths), *_leftover_notes(folder, paths))
    return SliceStack(data, first.calibration, notes)


def _leftover_notes(folder: Path, paths: list[Path]) -> tuple[Note, ...]:
    """A note when the folder holds other files: perhaps the slices are not what was meant."""
    others = sum(
        1
        for path in folder.iterdir()
        if path.suffix.lower() not in (*SLICE_SUFFIXES, *_SIDECARS)
        and not path.name.startswith(".")
        and path.is_file()
    )
    if not others:
        return ()
    message = f"{others} other files in the folder are left out; only its {len(paths)} slices count"
    return (Note("files_skipped", message),)


@dataclass(frozen=True, slots=True)
class _Slice:
    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], NDArray[Any]]
    calibration: Calibration
    notes: tuple[Note, ...]


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    names = {".tif": "TIFF", ".tiff": "TIFF", ".jpg": "JPEG", ".jpeg": "JPEG"}
    return names.get(suffix, suffix[1:].upper())


def _picture_slice(path: Path) -> _Slice:
    picture: Picture = look_at(path)
    return _Slice(
        path,
        picture.shape,
        picture.dtype,
        lambda: decode(picture),
        picture.calibration,
        picture.notes,
    )


def _tiff_slice(path: Path) -> _Slice:
    import tifffile

    from lamella.io.damage import damage_named
    from lamella.io.tiff_chain import check_chain
    from lamella.io.tiff_pages import series_array
    from lamella.io.tiff_spacing import read_calibration

    with damage_named(path, "TIFF"):
        check_chain(path)
        with tifffile.TiffFile(path) as tiff:
            if len(tiff.pages) != 1:
                raise InputError(
                    f"{path.name} holds {len(tiff.pages)} images, where a slice is one",
                    hint="open the file itself, or keep single images in the folder",
                )
            series = tiff.series[0]
            page = series.keyframe
            shape = tuple(int(n) for n in page.shape)
            if page.axes not in ("YX", "YXS"):
                raise InputError(
                    f"{path.name} has the axes {page.axes}, where a slice has YX or YXS",
                    hint="save the slices as plain grey or RGB images",
                )
            array = series_array(series, path)
            dtype = np.dtype(array.dtype)
            calibration = read_calibration(tiff, page)

    def read_whole() -> NDArray[Any]:
        return np.asarray(array[...]).reshape(shape)

    return _Slice(path, shape, dtype, read_whole, calibration, ())


def _check_alike(slices: list[_Slice]) -> None:
    first = slices[0]
    for one in slices[1:]:
        if one.shape != first.shape or one.dtype != first.dtype:
            raise InputError(
                f"{one.path.name} is {one.shape} {one.dtype}, but {first.path.name} is"
                f" {first.shape} {first.dtype}: they are no slices of one volume",
                hint="keep the slices of one volume in a folder of their own",
                details={"files": [first.path.name, one.path.name]},
            )


def _gap_notes(paths: list[Path]) -> tuple[Note, ...]:
    """Missing numbers, where every name holds one that counts up."""
    found = [re.findall(r"\d+", path.stem) for path in paths]
    if len(paths) < 3 or not all(found) or len({len(numbers) for numbers in found}) != 1:
        return ()
    columns = list(zip(*found, strict=True))
    counting = [column for column in columns if len(set(column)) == len(paths)]
    if not counting:
        return ()
    numbers = sorted(int(text) for text in counting[-1])
    steps = Counter(b - a for a, b in itertools.pairwise(numbers))
    step = steps.most_common(1)[0][0]
    if len(steps) == 1 or step <= 0:
        return ()
    expected = range(numbers[0], numbers[-1] + 1, step)
    if len(expected) > 10 * len(numbers):
        return ()
    missing = [n for n in expected if n not in set(numbers)]
    if not missing:
        return ()
    listed = ", ".join(str(n) for n in missing[:10]) + (" …" if len(missing) > 10 else "")
    message = f"the numbering of the slices lacks {listed}: z distances are wrong there"
    return (Note("slice_gaps", message),)


@dataclass
class _SliceReader:
    """Slices decoded when needed; the last ones are kept for neighbouring regions."""

    readers: tuple[Callable[[], NDArray[Any]], ...]
    _cache: "OrderedDict[int, NDArray[Any]]" = field(default_factory=OrderedDict)
    _cached_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, slices: tuple[slice, ...]) -> NDArray[Any]:
        inside = slices[1:]
        return np.stack([self._slice(at)[inside] for at in range(slices[0].start, slices[0].stop)])

    def _slice(self, at: int) -> NDArray[Any]:
        with self._lock:
            if at in self._cache:
                self._cache.move_to_end(at)
                return self._cache[at]
        pixels = self.readers[at]()
        with self._lock:
            if at not in self._cache:
                self._cache[at] = pixels
                self._cached_bytes += pixels.nbytes
            while self._cached_bytes > _CACHE_BYTES and len(self._cache) > 1:
                _, old = self._cache.popitem(last=False)
                self._cached_bytes -= old.nbytes
        return pixels
