"""The voxels of a TIFF series, read strip by strip and tile by tile.

A series is a stack of pages of one shape. Where the file keeps them uncompressed in one piece they
are mapped; otherwise the strips or tiles that a region touches are read and decoded, and the last
ones are kept for the neighbouring region. Nothing stays open between reads: threads need no lock.
"""

import itertools
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import UnreadableFileError
from lamella.io.damage import damage_named
from lamella.volume import FunctionArray, LazyArray

__all__ = ["kept_axes", "series_array"]

_CACHE_BYTES = 64 * 2**20
_JPEG_COMPRESSIONS = frozenset({6, 7, 33007, 34892})


def kept_axes(series: Any) -> tuple[tuple[str, int], ...]:
    """Letter and length of the axes of a series that are longer than 1 (one at least)."""
    axes, shape = series.get_axes(squeeze=False), series.get_shape(squeeze=False)
    pairs = [(letter, int(n)) for letter, n in zip(axes, shape, strict=True)]
    return tuple(pair for pair in pairs if pair[1] != 1) or (("X", 1),)


def series_array(series: Any, path: Path) -> LazyArray:
    """The array of a ``tifffile.TiffPageSeries`` (or of a level of it), of its kept axes.

    Everything needed is taken from the open file; it may be closed afterwards.

    Args:
        series: of an open ``tifffile.TiffFile``.
        path: of that file.

    Raises:
        UnreadableFileError: when the file is shorter than its pages.
    """
    shape = tuple(n for _, n in kept_axes(series))
    dtype = np.dtype(series.dtype)
    contiguous = _contiguous_offset(series, shape)
    if contiguous is not None:
        return _mapped(path, contiguous, shape, dtype, series.keyframe)
    keyframe = series.keyframe
    page_shape = tuple(n for n in keyframe.shape if n != 1)
    n_lead = len(shape) - len(page_shape)
    if n_lead < 0 or shape[n_lead:] != page_shape:
        raise UnreadableFileError(
            f"{path.name}: pages of shape {page_shape} do not make up a series of shape {shape}",
            hint="the file may be truncated; copy or download it again",
        )
    pages = tuple(_page(page, path) for page in series)
    if len(pages) != math.prod(shape[:n_lead]):
        raise UnreadableFileError(
            f"{path.name}: {len(pages)} pages, where a series of shape {shape} needs"
            f" {math.prod(shape[:n_lead])}",
            hint="the file may be truncated; copy or download it again",
        )
    reader = _PageReader(_Layout.of(keyframe), pages, shape[:n_lead], page_shape, dtype)
    return FunctionArray(shape, dtype, reader.read)


@dataclass(frozen=True, slots=True)
class _Page:
    """Where a page's segments lie."""

    path: Path
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    decode_options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a page is cut: normalised shape (separate samples, depth, length, width, samples)."""

    shape: tuple[int, int, int, int, int]
    segment: tuple[int, int, int, int]
    decode: Callable[..., Any]
    fill: Any
    axes: str

    @classmethod
    def of(cls, keyframe: Any) -> "_Layout":
        separate, depth, length, width, samples = (int(n) for n in keyframe.shaped)
        if keyframe.is_tiled:
            segment = (
                int(keyframe.tiledepth),
                int(keyframe.tilelength),
                int(keyframe.tilewidth),
                samples,
            )
        else:
            segment = (1, min(length, int(keyframe.rowsperstrip)), width, samples)
        shape = (separate, depth, length, width, samples)
        if min(shape) < 1 or min(segment) < 1:
            raise ValueError(f"pages of shape {shape} in segments of {segment}")
        axes = "".join(a for a, n in zip(keyframe.axes, keyframe.shape, strict=True) if int(n) != 1)
        return cls(shape, segment, keyframe.decode, keyframe.nodata, axes)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Segments along depth, length, width."""
        depth, length, width = (
            math.ceil(n / s) for n, s in zip(self.shape[1:4], self.segment[:3], strict=True)
        )
        return depth, length, width


@dataclass
class _PageReader:
    layout: _Layout
    pages: tuple[_Page, ...]
    lead: tuple[int, ...]
    page_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    _cache: "OrderedDict[tuple[int, int], NDArray[Any] | None]" = field(default_factory=OrderedDict)
    _cached_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, slices: tuple[slice, ...]) -> NDArray[Any]:
        lead, inner = slices[: len(self.lead)], slices[len(self.lead) :]
        region = self._normalised(inner)
        extent = tuple(s.stop - s.start for s in region)
        out_lead = tuple(s.stop - s.start for s in lead)
        out = np.empty((math.prod(out_lead), *extent), self.dtype.newbyteorder("="))
        places = itertools.product(*(range(s.start, s.stop) for s in lead))
        for at, place in enumerate(places):
            index = int(np.ravel_multi_index(place, self.lead)) if self.lead else 0
            self._read_page(index, region, out[at])
        return out.reshape(out_lead + tuple(s.stop - s.start for s in inner))

    def _normalised(self, inner: tuple[slice, ...]) -> tuple[slice, ...]:
        """Slices of a page's own axes as slices of (separate, depth, length, width, samples)."""
        region = [slice(0, n) for n in self.layout.shape]
        is_separate = self.layout.shape[0] > 1
        places = {"S": 0 if is_separate else 4, "Z": 1, "Y": 2, "X": 3}
        for letter, wanted in zip(self.layout.axes, inner, strict=True):
            region[places[letter]] = wanted
        return tuple(region)

    def _read_page(self, index: int, region: tuple[slice, ...], out: NDArray[Any]) -> None:
        for number, start in self._touched(region):
            segment = self._segment(index, number)
            extents = self.layout.segment
            from_, to = [], []
            for axis in range(4):
                wanted, first = region[axis + 1], start[axis + 1]
                low = max(wanted.start, first)
                high = min(wanted.stop, first + extents[axis], self.layout.shape[axis + 1])
                from_.append(slice(low - first, high - first))
                to.append(slice(low - wanted.start, high - wanted.start))
            place = (start[0] - region[0].start, *to)
            out[place] = self.layout.fill if segment is None else segment[tuple(from_)]

    def _touched(self, region: tuple[slice, ...]) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Number of each segment that a region touches, and where it starts."""
        depth, length, width = self.layout.grid
        ranges = [
            range(wanted.start // size, (wanted.stop - 1) // size + 1)
            for wanted, size in zip(region[1:4], self.layout.segment[:3], strict=True)
        ]
        for sample in range(region[0].start, region[0].stop):
            for d, l, w in itertools.product(*ranges):  # noqa: E741 - depth, length, width
                number = ((sample * depth + d) * length + l) * width + w
                size = self.layout.segment
                yield number, (sample, d * size[0], l * size[1], w * size[2], 0)

    def _segment(self, index: int, number: int) -> NDArray[Any] | None:
        key = (index, number)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        page = self.pages[index]
        segment = self._decode(page, number)
        with self._lock:
            if key not in self._cache:
                self._cache[key] = segment
                self._cached_bytes += 0 if segment is None else segment.nbytes
            while self._cached_bytes > _CACHE_BYTES and len(self._cache) > 1:
                _, old = self._cache.popitem(last=False)
                self._cached_bytes -= 0 if old is None else old.nbytes
        return segment

    def _decode(self, page: _Page, number: int) -> NDArray[Any] | None:
        if not page.offsets:
            return None  # OME-TIFF may name images that no file holds
        if number >= len(page.offsets) or number >= len(page.counts):
            raise UnreadableFileError(
                f"{page.path.name} is damaged: a page lacks strip or tile {number}",
                hint="copy or download the file again",
            )
        offset, count = page.offsets[number], page.counts[number]
        if offset == 0 or count == 0:
            return None
        with page.path.open("rb") as stream:
            stream.seek(offset)
            encoded = stream.read(count)
        if len(encoded) < count:
            raise UnreadableFileError(
                f"{page.path.name} is truncated: {count - len(encoded)} bytes of an image are"
                " missing",
                hint="copy or download the file again",
            )
        with damage_named(page.path, "TIFF"):
            decoded = self.layout.decode(encoded, number, **page.decode_options)[0]
            return None if decoded is None else np.asarray(decoded)


def _page(page: Any, path: Path) -> _Page:
    if page is None:
        return _Page(path, (), (), {})
    keyframe = page.keyframe
    options: dict[str, Any] = {"_fullsize": False}
    if keyframe.compression in _JPEG_COMPRESSIONS:
        options |= {"jpegtables": page.jpegtables, "jpegheader": keyframe.jpegheader}
    own = Path(page.parent.filehandle.path)
    offsets = tuple(int(n) for n in page.dataoffsets)
    counts = tuple(int(n) for n in page.databytecounts)
    return _Page(own, offsets, counts, options)


def _contiguous_offset(series: Any, shape: tuple[int, ...]) -> int | None:
    """Where the whole series lies in one piece, or None."""
    keyframe = series.keyframe
    if series.is_multifile or not keyframe.is_memmappable or math.prod(shape) == 0:
        return None
    offset = series.dataoffset
    return None if offset is None else int(offset)


def _mapped(
    path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], keyframe: Any
) -> LazyArray:
    stored = dtype.newbyteorder(keyframe.parent.byteorder)
    needed = offset + math.prod(shape) * dtype.itemsize
    actual = path.stat().st_size
    if actual < needed:
        raise UnreadableFileError(
            f"{path.name} is truncated: its images need {needed} bytes, the file has {actual}",
            hint="copy or download the file again",
        )
    mapped = np.memmap(path, stored, "r", offset, shape)
    return FunctionArray(shape, stored, lambda s: np.array(mapped[s]))
