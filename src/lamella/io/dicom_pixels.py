"""DICOM pixels: decoded frame by frame when they are read, the last ones kept.

Every transfer syntax that pydicom decodes with pylibjpeg is read: uncompressed (both byte orders,
deflated), RLE, JPEG (baseline, extended, lossless), JPEG-LS, JPEG 2000 and HTJ2K. Colour comes out
as RGB, palettes included.
"""

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import UnreadableFileError
from lamella.io.dicom_header import DicomFile, DicomFrame, foreign_errors
from lamella.io.format import storage_errors
from lamella.io.rescale import Rescale

__all__ = ["FrameStore", "check_sizes", "values_dtype"]

_CACHE_BYTES = 128 * 2**20
_FEWEST_CACHED = 4
_DEFLATED = "1.2.840.10008.1.2.1.99"


class FrameStore:
    """Frames as values, decoded when asked for. Thread-safe.

    Args:
        files: of one series, all of one shape.
        dtype: of the values.
    """

    def __init__(self, files: tuple[DicomFile, ...], dtype: np.dtype[Any]) -> None:
        self._files = {file.path: file for file in files}
        self._dtype = dtype
        rows, columns, samples = files[0].shape
        plane = rows * columns * samples * dtype.itemsize
        self._capacity = max(_FEWEST_CACHED, _CACHE_BYTES // max(1, plane))
        self._kept: OrderedDict[tuple[Path, int], NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return self._dtype

    def get(self, frame: DicomFrame) -> NDArray[Any]:
        """One frame, (rows, columns, samples).

        Raises:
            UnreadableFileError: when its pixels are damaged or cannot be decoded.
        """
        key = (frame.path, frame.index)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        values = self._decode(frame)
        with self._lock:
            self._kept[key] = values
            while len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
        return values

    def _decode(self, frame: DicomFrame) -> NDArray[Any]:
        file = self._files[frame.path]
        doing = f"decoding the pixels of frame {frame.index + 1}"
        with storage_errors(frame.path), foreign_errors(frame.path, doing):
            stored = _stored_frame(file, frame.index)
        rows, columns, samples = file.shape
        if stored.shape not in ((rows, columns, samples), (rows, columns)):
            raise UnreadableFileError(
                f"{frame.path}: frame {frame.index + 1} decodes to {stored.shape}, its header says"
                f" {(rows, columns, samples)}",
                hint="the file is damaged; copy it again",
            )
        stored = stored.reshape(rows, columns, samples)
        _check_range(file, frame, stored, self._dtype)
        values = frame.rescale.apply(stored, self._dtype)
        values.flags.writeable = False
        return values


def values_dtype(files: tuple[DicomFile, ...]) -> np.dtype[Any]:
    """The type that holds the values of every frame.

    The stored type, int16 or int32 where slopes and intercepts are whole numbers, else float32.
    """
    kinds = {
        (file.stored, file.bits_stored, frame.rescale) for file in files for frame in file.frames
    }
    found = {rescale.dtype_of(stored, _bounds(stored, bits)) for stored, bits, rescale in kinds}
    if any(dtype.kind == "f" for dtype in found):
        narrow = all(dtype.itemsize <= 4 and dtype != np.dtype("f8") for dtype in found)
        return np.dtype(np.float32 if narrow else np.float64)
    return np.dtype(np.result_type(*found))


def check_sizes(files: tuple[DicomFile, ...]) -> None:
    """Refuse uncompressed files that are too short for their pixels, before anything is decoded.

    Raises:
        UnreadableFileError: naming the first one.
    """
    for file in files:
        syntax = getattr(getattr(file.dataset, "file_meta", None), "TransferSyntaxUID", None)
        try:
            is_plain = syntax is None or not (syntax.is_compressed or syntax.is_deflated)
        except ValueError:
            continue
        allocated = file.dataset.get("BitsAllocated") or 8
        if not is_plain or file.photometric == "YBR_FULL_422":
            continue
        rows, columns, samples = file.shape
        if file.photometric == "PALETTE COLOR":
            samples = 1
        expected = rows * columns * samples * len(file.frames) * int(allocated) // 8
        there = file.path.stat().st_size
        if there < expected:
            raise UnreadableFileError(
                f"{file.path} is truncated: {there} bytes, its pixels alone take {expected}",
                hint="copy or download the file again",
            )


def _bounds(stored: np.dtype[Any], bits: int) -> tuple[int, int]:
    if stored.kind == "i":
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return 0, 2**bits - 1


def _stored_frame(file: DicomFile, index: int) -> NDArray[Any]:
    """The stored numbers of one frame, colours as RGB."""
    import pydicom
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array

    meta = getattr(file.dataset, "file_meta", None)
    syntax = meta.get("TransferSyntaxUID") if meta is not None else None
    # pydicom reads just one frame from a path, but only of files that say how they are written
    # and are not deflated as a whole.
    source: Any = file.path
    if not syntax:
        source = _with_syntax(pydicom.dcmread(file.path, force=True))
    elif syntax == _DEFLATED:
        source = pydicom.dcmread(file.path, force=True)
    try:
        decoded = np.asarray(pixel_array(source, index=index))
    except Exception:
        # Reading the whole data set is slower but forgives headers whose encoding changes midway.
        if source is not file.path or len(file.frames) > 1:
            raise
        decoded = np.asarray(pixel_array(pydicom.dcmread(file.path, force=True), index=index))
    if file.photometric != "PALETTE COLOR":
        return decoded
    table = pydicom.dcmread(file.path, stop_before_pixels=True, force=True)
    return np.asarray(apply_color_lut(decoded, table))


def _with_syntax(dataset: Any) -> Any:
    """A data set without file meta, told how it was found to be written."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    is_implicit, is_little = dataset.original_encoding
    if is_implicit:
        syntax = ImplicitVRLittleEndian
    else:
        syntax = ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
    if getattr(dataset, "file_meta", None) is None:
        dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def _check_range(
    file: DicomFile, frame: DicomFrame, stored: NDArray[Any], dtype: np.dtype[Any]
) -> None:
    """Numbers beyond the bits that the header names would wrap in the narrower type."""
    if dtype.kind not in "iu" or stored.dtype.kind not in "iu" or stored.size == 0:
        return
    low, high = Rescale(frame.rescale.slope, frame.rescale.intercept).bounds(
        int(stored.min()), int(stored.max())
    )
    info = np.iinfo(dtype)
    if low < info.min or high > info.max:
        raise UnreadableFileError(
            f"{frame.path}: pixels reach {low:g} to {high:g}, beyond what {file.bits_stored} stored"
            " bits can hold",
            hint="the header is wrong about its bits, or the file is damaged",
        )
