"""Reading DICOM segmentations: segments become classes, frames fall into place.

A segmentation stores one frame a segment and plane, and leaves empty ones out; a label map stores
all segments in one frame a plane::

    plane 3   segment 1 ▣        (segment 2 is empty there)
    plane 2   segment 1 ▣  segment 2 ▣
    plane 0   segment 2 ▣        plane 1 is empty, and must be put back

Planes that were left out between others are put back; where Lamella wrote the file, those above
and below too, from the record that it leaves. Segments that overlap make no labels: they are
refused, unless one is chosen.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import GeometryError, InputError, LamellaError, UnreadableFileError
from lamella.core.registry import nearest_names
from lamella.io.dicom_geometry import grid_of_planes
from lamella.io.dicom_header import DicomFile, foreign_errors
from lamella.io.dicom_values import header_thickness, text, whole
from lamella.io.frames import affine_in_unit
from lamella.io.record import parse_record
from lamella.volume import Affine, Axes, FunctionArray, LabelClass, Labels, Note, Volume

__all__ = [
    "PRIVATE_CREATOR",
    "PRIVATE_GROUP",
    "RECORD_ELEMENT",
    "VALUE_ELEMENT",
    "read_segmentation",
]

PRIVATE_CREATOR = "LAMELLA"
PRIVATE_GROUP = 0x0071
RECORD_ELEMENT = 0x01
"""The whole grid and the classes, as text; beside the data set's other elements."""
VALUE_ELEMENT = 0x02
"""The class value of a segment; inside its item."""

_TAGS = (
    "SOPClassUID", "Modality", "Manufacturer", "ManufacturerModelName", "SeriesDescription",
    "SegmentationType", "SegmentsOverlap", "SegmentSequence", "MaximumFractionalValue",
    "TotalPixelMatrixOriginSequence",
)  # fmt: skip
_PIXEL_TAGS = (
    "SOPClassUID", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration",
    "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData",
)  # fmt: skip

_SAME_PLACE = 0.02
"""Largest distance of a frame from its place in the recorded grid, in voxels."""
_NAMED = 3


@dataclass(frozen=True, slots=True)
class _Segment:
    """A segment: its number in the file, its value as a class, its label, its colour."""

    number: int
    value: int
    label: str
    color: tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class _Grid:
    """Where the frames lie: ``plane_of`` each frame, in their order."""

    affine: Affine
    n_planes: int
    plane_of: tuple[int, ...]
    record: dict[str, Any] | None
    notes: tuple[Note, ...]


def read_segmentation(
    path: Path,
    files: Sequence[DicomFile],
    wanted: str | None,
    *,
    notes: tuple[Note, ...] = (),
) -> Volume:
    """Open a segmentation lazily.

    Args:
        path: for messages.
        files: the images of the chosen series.
        wanted: number or label of the only segment to keep.
        notes: odd things found so far.

    Returns:
        Labels; a volume of probabilities, (c, z, y, x), for fractional segmentations.

    Raises:
        InputError: for overlapping segments of which none was chosen, for a segment that is not
            there, and for several segmentations in one series.
        GeometryError: for frames that lie on no grid, or on a microscope's slide.
        UnreadableFileError: for damaged files.
    """
    if len(files) > 1:
        names = ", ".join(file.path.name for file in files[:_NAMED])
        raise InputError(
            f"{path}: the series holds {len(files)} segmentations ({names}"
            f"{' …' if len(files) > _NAMED else ''})",
            hint="open one of the files",
        )
    file = files[0]
    dataset = _whole_header(file)
    segments = _segments(dataset)
    grid = _grid(path, file, dataset)
    chosen = segments if wanted is None else (_chosen(path, segments, wanted),)
    frames = _Frames(file, text(dataset, "SegmentationType").upper() or "BINARY")
    shape = (grid.n_planes, *file.shape[:2])
    known = {
        "axes": Axes.parse("zyx"),
        "affine": grid.affine,
        "unit": "mm",
        "name": file.path.stem,
        "notes": (*notes, *grid.notes),
        "metadata": _metadata(dataset, segments),
        "path": path,
    }
    if frames.kind == "FRACTIONAL":
        return _fractional(file, dataset, frames, grid, chosen, shape, known)
    stack = _LabelStack(path, file, frames, grid, chosen, shape)
    if wanted is None and frames.kind == "BINARY" and text(dataset, "SegmentsOverlap") != "NO":
        stack.check_overlap()
    unit = "mm" if grid.record is None else grid.record["unit"]
    known |= {"unit": unit}
    return Labels(
        data=FunctionArray(shape, stack.dtype, stack.read),
        classes=_classes(chosen, grid.record if wanted is None else None),
        is_instance=bool(grid.record and grid.record.get("labels", {}).get("is_instance")),
        **known,
    )


def _whole_header(file: DicomFile) -> Any:
    """What of the header was not read yet: segments' items and Lamella's own elements."""
    import pydicom

    # Tens of thousands of frames have an item each; they were read once, and are skipped here.
    private = PRIVATE_GROUP << 16
    tags: list[Any] = [*_TAGS, private + 0x0010, private + 0x1000 + RECORD_ELEMENT]
    with foreign_errors(file.path, "reading the segments"):
        return pydicom.dcmread(file.path, stop_before_pixels=True, specific_tags=tags)


# --- Segments -----------------------------------------------------------------------------------


def _segments(dataset: Any) -> tuple[_Segment, ...]:
    items = list(dataset.get("SegmentSequence") or ())
    numbers = [whole(item, "SegmentNumber", k + 1) for k, item in enumerate(items)]
    values = [_own_value(item) for item in items]
    is_ours = None not in values and len(set(values)) == len(values)
    return tuple(
        _Segment(
            number,
            int(value) if is_ours and value is not None else number,
            text(item, "SegmentLabel") or f"segment {number}",
            _color(item),
        )
        for item, number, value in zip(items, numbers, values, strict=True)
        if number > 0
    )


def _own_value(item: Any) -> int | None:
    """The class value that Lamella left in a segment, or None."""
    try:
        return int(item.private_block(PRIVATE_GROUP, PRIVATE_CREATOR)[VALUE_ELEMENT].value)
    except (KeyError, TypeError, ValueError):
        return None


def _color(item: Any) -> tuple[int, int, int] | None:
    stored = item.get("RecommendedDisplayCIELabValue")
    try:
        light, a, b = (int(value) for value in stored)
    except (TypeError, ValueError):
        return None
    return _lab_to_rgb(light / 65535 * 100, a / 65535 * 255 - 128, b / 65535 * 255 - 128)


def _lab_to_rgb(light: float, a: float, b: float) -> tuple[int, int, int]:
    """CIE L*a*b* of white point D65 → sRGB, 0..255. Source: IEC 61966-2-1, CIE 15:2004."""
    fy = (light + 16) / 116
    cubed = np.array([fy + a / 500, fy, fy - b / 200])
    linear = np.where(cubed > 6 / 29, cubed**3, 3 * (6 / 29) ** 2 * (cubed - 4 / 29))
    xyz = linear * np.array([0.95047, 1.0, 1.08883])
    matrix = np.array(
        [
            [3.2404542, -1.5371385, -0.4985314],
            [-0.9692660, 1.8760108, 0.0415560],
            [0.0556434, -0.2040259, 1.0572252],
        ]
    )
    rgb = np.clip(matrix @ xyz, 0, 1)
    encoded = np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1 / 2.4) - 0.055)
    red, green, blue = (int(value) for value in np.rint(encoded * 255))
    return red, green, blue


def _chosen(path: Path, segments: tuple[_Segment, ...], wanted: str) -> _Segment:
    fitting = [known for known in segments if str(known.number) == wanted.lstrip("#")]
    fitting = fitting or [known for known in segments if known.label.lower() == wanted.lower()]
    if len(fitting) == 1:
        return fitting[0]
    labels = [known.label for known in segments]
    near = nearest_names(wanted, labels)
    shown = ", ".join(f"{known.number} {known.label}" for known in segments[:20])
    raise InputError(
        f"{path} has {len(fitting) or 'no'} segment{'s' if len(fitting) > 1 else ''} {wanted!r}",
        hint=(f"did you mean {' or '.join(near)}? " if near else "")
        + f"segments: {shown}{' …' if len(segments) > 20 else ''}",
    )


def _classes(
    segments: tuple[_Segment, ...], record: dict[str, Any] | None
) -> tuple[LabelClass, ...]:
    """Classes of the segments; of the record where it names the very same ones, and more."""
    found = tuple(LabelClass(known.value, known.label, known.color) for known in segments)
    if record is None:
        return found
    try:
        recorded = tuple(
            LabelClass(
                int(known["value"]),
                str(known["name"]),
                None if known["color"] is None else tuple(int(v) for v in known["color"]),  # type: ignore[arg-type]
            )
            for known in record["labels"]["classes"]
        )
    except (KeyError, TypeError, ValueError):
        return found
    names = {known.value: known.name for known in recorded}
    is_same = all(names.get(known.value, "")[:64] == known.label for known in segments)
    return recorded if is_same else found


# --- The grid -----------------------------------------------------------------------------------


def _grid(path: Path, file: DicomFile, dataset: Any) -> _Grid:
    if any(frame.position is None for frame in file.frames):
        is_slide = "TotalPixelMatrixOriginSequence" in dataset
        raise GeometryError(
            f"{path}: the frames of this segmentation have no position in the patient"
            + (" (it lies on a microscope's slide)" if is_slide else ""),
            hint="segmentations of CT, MR and other volumes are read",
        )
    thickness, _ = header_thickness(file.dataset)
    record = _record(dataset)
    if record is not None:
        recorded = _recorded_grid(file, record)
        if recorded is not None:
            return recorded
    found = grid_of_planes(file.frames, thickness=thickness)
    notes = []
    if record is not None:
        notes.append(
            Note(
                "record_stale",
                "another program changed the geometry after Lamella wrote this file: the header"
                " counts",
            )
        )
    empty = found.n_planes - len(set(found.plane_of))
    if empty:
        notes.append(
            Note("planes_filled", f"{empty} planes without any segment were left out: background")
        )
    return _Grid(found.affine, found.n_planes, found.plane_of, None, tuple(notes))


def _record(dataset: Any) -> dict[str, Any] | None:
    try:
        block = dataset.private_block(PRIVATE_GROUP, PRIVATE_CREATOR)
        value = block[RECORD_ELEMENT].value
    except KeyError:
        return None
    return parse_record(value) if isinstance(value, str | bytes) else None


def _recorded_grid(file: DicomFile, record: dict[str, Any]) -> _Grid | None:
    """The grid that Lamella recorded, if every frame still lies on it; else None."""
    try:
        affine = Affine(
            tuple(float(value) for value in record["spacing"]),
            tuple(float(value) for value in record["origin"]),
            tuple(tuple(float(value) for value in row) for row in record["direction"]),
            record["frame"],
        )
        shape = tuple(int(value) for value in record["shape"])
        in_mm = affine_in_unit(affine, record["unit"], "mm")
        places = np.array([frame.position for frame in file.frames], dtype=np.float64)
        # LPS (x, y, z) → RAS (z, y, x)
        index = in_mm.inverse_apply((places * (-1.0, -1.0, 1.0))[:, ::-1])
    except (LamellaError, KeyError, TypeError, ValueError):
        return None
    planes = np.rint(index[:, 0])
    off = np.abs(index - np.stack([planes, 0 * planes, 0 * planes], axis=1)).max()
    lies_on = (
        affine.frame == "RAS"
        and shape[1:] == file.shape[:2]
        and off <= _SAME_PLACE
        and planes.min() >= 0
        and planes.max() < shape[0]
    )
    if not lies_on:
        return None
    return _Grid(affine, shape[0], tuple(int(p) for p in planes), record, ())


# --- Pixels -------------------------------------------------------------------------------------


class _Frames:
    """Frames of a segmentation, decoded when asked for. Thread-safe.

    Args:
        file: the object.
        kind: BINARY, FRACTIONAL or LABELMAP.
    """

    def __init__(self, file: DicomFile, kind: str) -> None:
        self.kind = kind
        self._file = file
        self._lock = threading.Lock()

    def get(self, index: int) -> NDArray[Any]:
        """One frame as it is stored, (rows, columns).

        Raises:
            UnreadableFileError: when it is damaged or too short.
        """
        rows, columns, _ = self._file.shape
        n = rows * columns
        bits = self._bits
        if bits is not None:
            # Frames follow each other bit by bit: one may begin in the middle of a byte.
            first = index * n
            part = bits[first // 8 : (first + n + 7) // 8]
            unpacked = np.unpackbits(part, bitorder="little")[first % 8 : first % 8 + n]
            return unpacked.reshape(rows, columns)
        with self._lock, foreign_errors(self._file.path, f"decoding frame {index + 1}"):
            from pydicom.pixels.utils import pixel_array

            return np.asarray(pixel_array(self._dataset, index=index)).reshape(rows, columns)

    @cached_property
    def _dataset(self) -> Any:
        import pydicom

        return pydicom.dcmread(self._file.path, specific_tags=list(_PIXEL_TAGS))

    @cached_property
    def _bits(self) -> NDArray[np.uint8] | None:
        """All pixels, eight a byte; None where they are stored otherwise."""
        with self._lock, foreign_errors(self._file.path, "reading the pixels"):
            dataset = self._dataset
            syntax = dataset.file_meta.TransferSyntaxUID
            is_packed = whole(dataset, "BitsAllocated", 1) == 1
            if not is_packed or syntax.is_compressed or not syntax.is_little_endian:
                return None
            packed = np.frombuffer(dataset.PixelData, np.uint8)
        needed = (self._file.shape[0] * self._file.shape[1] * len(self._file.frames) + 7) // 8
        if len(packed) < needed:
            raise UnreadableFileError(
                f"{self._file.path} is truncated: {len(packed)} bytes of pixels, its frames take"
                f" {needed}",
                hint="copy or download the file again",
            )
        return packed


class _LabelStack:
    """Frames put together to labels."""

    def __init__(
        self,
        path: Path,
        file: DicomFile,
        frames: _Frames,
        grid: _Grid,
        segments: tuple[_Segment, ...],
        shape: tuple[int, int, int],
    ) -> None:
        self._path, self._frames, self._shape = path, frames, shape
        self._by_number = {known.number: known for known in segments}
        top = max((known.value for known in segments), default=1)
        self.dtype = np.dtype(np.min_scalar_type(top))
        self._at: dict[int, list[tuple[int, int]]] = {}
        for index, (frame, plane) in enumerate(zip(file.frames, grid.plane_of, strict=True)):
            number = frame.channel or 0
            if frames.kind == "LABELMAP" or number in self._by_number:
                self._at.setdefault(plane, []).append((index, number))

    def read(self, slices: tuple[slice, ...]) -> NDArray[Any]:
        """A block of labels, (z, y, x)."""
        z, y, x = slices
        shape = tuple(part.stop - part.start for part in slices)
        block = np.zeros(shape, self.dtype)
        for k, plane in enumerate(range(z.start, z.stop)):
            for index, number in self._at.get(plane, ()):
                frame = self._frames.get(index)[y, x]
                if self._frames.kind == "LABELMAP":
                    np.copyto(block[k], self._lookup(frame), where=block[k] == 0)
                    continue
                inside = frame != 0
                taken = block[k][inside]
                if taken.any():
                    raise self._overlap(plane, number, int(taken[taken != 0][0]))
                block[k][inside] = self._by_number[number].value
        return block

    def check_overlap(self) -> None:
        """Look at every plane with several segments.

        Raises:
            InputError: naming two that overlap.
        """
        _, rows, columns = self._shape
        for plane, entries in sorted(self._at.items()):
            if len(entries) > 1:
                self.read((slice(plane, plane + 1), slice(0, rows), slice(0, columns)))

    def _lookup(self, frame: NDArray[Any]) -> NDArray[Any]:
        table = np.zeros(int(frame.max(initial=0)) + 1, self.dtype)
        for number, known in self._by_number.items():
            if number < len(table):
                table[number] = known.value
        return table[frame]

    def _overlap(self, plane: int, number: int, value: int) -> InputError:
        one = self._by_number[number]
        other = next(known for known in self._by_number.values() if known.value == value)
        return InputError(
            f"{self._path}: the segments {other.number} {other.label!r} and {one.number}"
            f" {one.label!r} overlap in plane {plane}: a voxel of labels belongs to one class",
            hint="open one segment at a time with --segment N",
        )


def _fractional(
    file: DicomFile,
    dataset: Any,
    frames: _Frames,
    grid: _Grid,
    segments: tuple[_Segment, ...],
    shape: tuple[int, int, int],
    known: dict[str, Any],
) -> Volume:
    """Probabilities or occupancies, one channel a segment, 0..1."""
    top = float(whole(dataset, "MaximumFractionalValue", 255) or 255)
    at: dict[tuple[int, int], int] = {}
    for index, (frame, plane) in enumerate(zip(file.frames, grid.plane_of, strict=True)):
        at[frame.channel or 1, plane] = index

    def read(slices: tuple[slice, ...]) -> NDArray[Any]:
        c, z, y, x = slices
        block = np.zeros(tuple(part.stop - part.start for part in slices), np.float32)
        for i, segment in enumerate(segments[c]):
            for k, plane in enumerate(range(z.start, z.stop)):
                index = at.get((segment.number, plane))
                if index is not None:
                    block[i, k] = frames.get(index)[y, x] / top
        return block

    volume = Volume(
        data=FunctionArray((len(segments), *shape), np.dtype(np.float32), read),
        channel_names=tuple(segment.label for segment in segments),
        **{**known, "axes": Axes.parse("czyx")},
    )
    return replace(volume.select("c", 0), name=segments[0].label) if len(segments) == 1 else volume


def _metadata(dataset: Any, segments: tuple[_Segment, ...]) -> dict[str, Any]:
    """How it was made, never of whom."""
    found = {
        "modality": text(dataset, "Modality"),
        "sop_class": str(dataset.SOPClassUID.name),
        "segmentation_type": text(dataset, "SegmentationType"),
        "manufacturer": text(dataset, "Manufacturer"),
        "model": text(dataset, "ManufacturerModelName"),
        "series_description": text(dataset, "SeriesDescription"),
        "n_segments": len(segments),
    }
    algorithms = {
        text(item, "SegmentAlgorithmName") or text(item, "SegmentAlgorithmType")
        for item in dataset.get("SegmentSequence") or ()
    }
    found["algorithm"] = ", ".join(sorted(algorithms - {""}))
    return {name: value for name, value in found.items() if value != ""}
