"""DICOM headers: what of each file and frame decides about its place and its values.

A *frame* is one plane of pixels. A classic CT or MR file holds one; enhanced CT, MR and
segmentations hold many, each with its own position in the functional groups; cine files hold many
without any position.

Source: DICOM PS3.3 (C.7.6.2 Image Plane, C.7.6.16 functional groups, C.8.8.3.2 grid frame offsets).
"""

import math
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lamella.core.errors import InputError, LamellaError, UnreadableFileError
from lamella.io.dicom_values import (
    first_item,
    group_item,
    grouped_numbers,
    number,
    numbers,
    sortable,
    text,
    whole,
)
from lamella.io.rescale import Rescale

__all__ = [
    "PYDICOM_LOCK",
    "DicomFile",
    "DicomFrame",
    "foreign_errors",
    "has_magic",
    "looks_bare",
    "read_header",
]

PYDICOM_LOCK = threading.RLock()
"""pydicom warns through process-wide filters and caches lazily: one thread at a time."""

_MOST_FRAMES = 1_000_000
_SEGMENTATION_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_TAGS = [
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "AcquisitionTime",
    "ContentTime", "Modality", "Manufacturer", "ManufacturerModelName", "SeriesDescription",
    "SeriesInstanceUID", "SeriesNumber", "AcquisitionNumber", "InstanceNumber", "BodyPartExamined",
    "SliceThickness", "SpacingBetweenSlices", "KVP", "XRayTubeCurrent", "ConvolutionKernel",
    "ReconstructionDiameter", "GantryDetectorTilt", "MagneticFieldStrength", "RepetitionTime",
    "EchoTime", "EchoNumbers", "FlipAngle", "DiffusionBValue", "TriggerTime", "ProtocolName",
    "ImagePositionPatient", "ImageOrientationPatient", "TemporalPositionIdentifier",
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames",
    "Rows", "Columns", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue",
    "RescaleIntercept", "RescaleSlope", "RescaleType", "Units", "ModalityLUTSequence",
    "SequenceOfUltrasoundRegions", "DetectorInformationSequence", "GridFrameOffsetVector",
    "DoseGridScaling", "SliceVector", "FrameTime", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", "SegmentSequence", "SegmentationType",
    "RedPaletteColorLookupTableDescriptor", "DirectoryRecordSequence",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class DicomFrame:
    """One plane of pixels and its place.

    Args:
        path: its file.
        index: which frame of the file.
        position: ImagePositionPatient in mm, LPS (x, y, z): centre of the first pixel.
        orientation: ImageOrientationPatient: direction of a row's pixels, then of a column's.
        spacing: distance between rows (y), then between columns (x), in mm.
        rescale: stored numbers → values.
        order: sorts frames at one position (time, echo, b-value …), without what only numbers them.
        number: instance number, then frame: the last resort of sorting.
        channel: segment number of a segmentation's frame.
        uid: SOP instance UID.
    """

    path: Path
    index: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    rescale: Rescale
    order: tuple[Any, ...]
    number: tuple[int, int]
    channel: int | None
    uid: str


@dataclass(frozen=True, slots=True)
class DicomFile:
    """A DICOM file's header, less what identifies a patient.

    Args:
        path: the file.
        series_uid: SeriesInstanceUID, or what stands for it where it lacks.
        dataset: the pydicom dataset, for facts needed once per series.
        modality: CT, MR …
        shape: rows, columns, samples per pixel.
        stored: type of the stored numbers.
        bits_stored: how many of their bits are used.
        photometric: MONOCHROME2, RGB …
        frames: its planes; empty where the file holds no image.
    """

    path: Path
    series_uid: str
    dataset: Any
    modality: str
    shape: tuple[int, int, int]
    stored: np.dtype[Any]
    bits_stored: int
    photometric: str
    frames: tuple[DicomFrame, ...]

    @property
    def is_image(self) -> bool:
        """Whether there are pixels."""
        return bool(self.frames)

    @property
    def is_segmentation(self) -> bool:
        """Whether the pixels are segments: a (label map) segmentation object."""
        return str(self.dataset.get("SOPClassUID") or "") in _SEGMENTATION_CLASSES


@contextmanager
def foreign_errors(path: Path, doing: str) -> Iterator[None]:
    """Silence pydicom's warnings and turn whatever it or a decoder raises into one error.

    Raises:
        UnreadableFileError: with the cause in one line.
    """
    with PYDICOM_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except LamellaError as error:
            if str(path) in error.message:
                raise
            raise type(error)(
                f"{path}: {error.message}", hint=error.hint, details=error.details
            ) from error
        except MemoryError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            cause = " ".join(lines or [type(error).__name__])[:300]
            raise UnreadableFileError(
                f"{path}: {doing} failed: {cause}",
                hint="the file is damaged, or of a kind that cannot be read; copy it again",
            ) from error


def has_magic(head: bytes) -> bool:
    """Whether a file begins as DICOM files do: 128 bytes of anything, then ``DICM``."""
    return head[128:132] == b"DICM"


def looks_bare(head: bytes) -> bool:
    """Whether a file could be a DICOM data set without preamble: its first tag is of group 2 or 8.

    Explicit VR shows two capitals after the tag; implicit VR a short even length.
    """
    if len(head) < 16:
        return False
    for order in ("little", "big"):
        group = int.from_bytes(head[:2], order)
        element = int.from_bytes(head[2:4], order)
        length = int.from_bytes(head[4:8], order)
        is_first = (group == 2 and element <= 0x16) or (group == 8 and element <= 0x18)
        if not is_first:
            continue
        is_explicit = head[4:6].isalpha() and head[4:6].isupper()
        if is_explicit or (length % 2 == 0 and length <= 256):
            return True
    return False


def read_header(path: Path) -> DicomFile:
    """Read a file's header (never its pixels).

    Raises:
        UnreadableFileError: when the file is damaged or no DICOM.
        InputError: for pixels of a type that does not exist.
    """
    import pydicom

    with foreign_errors(path, "reading the DICOM header"):
        dataset = pydicom.dcmread(
            path, stop_before_pixels=True, force=True, specific_tags=list(_TAGS)
        )
        if not any(name in dataset for name in ("SOPClassUID", "Rows", "DirectoryRecordSequence")):
            raise UnreadableFileError(
                f"{path} has no DICOM elements that name an object or an image",
                hint="the file is damaged or no DICOM",
            )
        _convert(dataset)
        return _translate(path, dataset)


def _convert(dataset: Any) -> None:
    """Turn raw elements into values now, and drop the few that cannot be.

    pydicom converts an element when it is first asked for; a damaged description must not make an
    image unreadable later.
    """
    for tag in list(dataset.keys()):
        try:
            dataset[tag]
        except Exception:  # noqa: BLE001 - conversion raises anything; what matters is missed below
            del dataset[tag]


def _translate(path: Path, dataset: Any) -> DicomFile:
    uid = text(dataset, "SeriesInstanceUID") or _stand_in(path, dataset)
    modality = text(dataset, "Modality")
    rows, columns = whole(dataset, "Rows", 0), whole(dataset, "Columns", 0)
    empty = DicomFile(path, uid, dataset, modality, (rows, columns, 1), np.dtype("u1"), 8, "", ())
    if rows <= 0 or columns <= 0:
        return empty
    photometric = str(dataset.get("PhotometricInterpretation") or "MONOCHROME2").strip().upper()
    samples = 3 if photometric == "PALETTE COLOR" else whole(dataset, "SamplesPerPixel", 1)
    if samples not in (1, 3, 4):
        raise InputError(
            f"{path} has {samples} samples per pixel; 1, 3 and 4 are known",
            hint="the file is damaged or of an unknown kind",
        )
    stored, bits = _stored(path, dataset, photometric)
    return DicomFile(
        path,
        uid,
        dataset,
        modality,
        (rows, columns, samples),
        stored,
        bits,
        photometric,
        _frames(path, dataset),
    )


def _stand_in(path: Path, dataset: Any) -> str:
    """What keeps series apart whose UID was removed: folder, modality, number, description."""
    parts = [path.parent.name]
    parts += [text(dataset, n) for n in ("Modality", "SeriesNumber", "SeriesDescription")]
    return "no-uid/" + "/".join(parts)


def _stored(path: Path, dataset: Any, photometric: str) -> tuple[np.dtype[Any], int]:
    allocated = whole(dataset, "BitsAllocated", 0)
    if photometric == "PALETTE COLOR":
        descriptor = numbers(dataset, "RedPaletteColorLookupTableDescriptor", 3) or (0, 0, 8)
        bits = 8 if descriptor[2] <= 8 else 16
        return np.dtype(f"u{bits // 8}"), bits
    if allocated not in (1, 8, 16, 32, 64):
        raise InputError(
            f"{path} has {allocated} bits per sample; 1, 8, 16, 32 and 64 are known",
            hint="the file is damaged or of an unknown kind",
        )
    is_signed = whole(dataset, "PixelRepresentation", 0) == 1
    stored = np.dtype(("i" if is_signed else "u") + str(max(1, allocated // 8)))
    bits = whole(dataset, "BitsStored", allocated)
    return stored, bits if 1 <= bits <= allocated else allocated


def _frames(path: Path, dataset: Any) -> tuple[DicomFrame, ...]:
    count = whole(dataset, "NumberOfFrames", 1)
    if not 1 <= count <= _MOST_FRAMES:
        raise UnreadableFileError(
            f"{path} claims {count} frames", hint="the header is damaged; copy the file again"
        )
    shared = first_item(dataset, "SharedFunctionalGroupsSequence")
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    positions = _plain_positions(dataset, count)
    frames = []
    for index in range(count):
        own = per_frame[index] if index < len(per_frame) else None
        groups = [group for group in (own, shared) if group is not None]
        frames.append(_frame(path, dataset, groups, index, positions))
    return tuple(frames)


def _frame(
    path: Path,
    dataset: Any,
    groups: list[Any],
    index: int,
    positions: list[tuple[float, ...]] | None,
) -> DicomFrame:
    position = positions[index] if positions else None
    position = (
        grouped_numbers(groups, "PlanePositionSequence", "ImagePositionPatient", 3) or position
    )
    orientation = grouped_numbers(
        groups, "PlaneOrientationSequence", "ImageOrientationPatient", 6
    ) or _orientation(dataset)
    spacing = grouped_numbers(groups, "PixelMeasuresSequence", "PixelSpacing", 2)
    content = group_item(groups, "FrameContentSequence") or {}
    segment = group_item(groups, "SegmentIdentificationSequence")
    echo = group_item(groups, "MREchoSequence") or dataset
    diffusion = group_item(groups, "MRDiffusionSequence") or dataset
    order = (
        sortable(dataset, "AcquisitionNumber"),
        sortable(dataset, "TemporalPositionIdentifier"),
        sortable(content, "TemporalPositionIndex"),
        sortable(echo, "EffectiveEchoTime"),
        sortable(echo, "EchoTime"),
        sortable(diffusion, "DiffusionBValue"),
        sortable(dataset, "TriggerTime"),
        sortable(dataset, "AcquisitionTime"),
        "\\".join(str(part) for part in dataset.get("ImageType") or ()),
    )
    return DicomFrame(
        path,
        index,
        position,
        orientation,
        spacing or numbers(dataset, "PixelSpacing", 2),
        _rescale(dataset, groups),
        order,
        (whole(dataset, "InstanceNumber", 0), index),
        None if segment is None else whole(segment, "ReferencedSegmentNumber", 0),
        str(dataset.get("SOPInstanceUID") or path),
    )


def _plain_positions(dataset: Any, count: int) -> list[tuple[float, ...]] | None:
    """Positions of the frames of a file without functional groups.

    One frame: its own. Dose grids and reconstructed nuclear medicine: steps along the normal.
    Everything else with several frames (ultrasound, angiography, fluoroscopy) is a film.
    """
    detector = first_item(dataset, "DetectorInformationSequence")
    first = numbers(dataset, "ImagePositionPatient", 3)
    if first is None and detector is not None:
        first = numbers(detector, "ImagePositionPatient", 3)
    if first is None:
        return None
    if count == 1:
        return [first]
    offsets = _offsets(dataset, count, first)
    orientation = _orientation(dataset)
    if offsets is None or orientation is None:
        return None
    normal = np.cross(orientation[:3], orientation[3:])
    return [tuple(float(v) for v in np.asarray(first) + normal * offset) for offset in offsets]


def _offsets(dataset: Any, count: int, first: tuple[float, ...]) -> list[float] | None:
    grid = numbers(dataset, "GridFrameOffsetVector", count)
    if grid is not None:
        # Relative offsets begin with 0; absolute ones with the first plane's own z.
        start = first[2] if math.isclose(grid[0], first[2], abs_tol=1e-6) else grid[0]
        return [value - start for value in grid]
    step = number(dataset, "SpacingBetweenSlices")
    kinds = [str(part).upper() for part in dataset.get("ImageType") or ()]
    if step is None or "TOMO" not in " ".join(kinds) or not math.isfinite(step):
        return None
    slices = numbers(dataset, "SliceVector", count) or tuple(range(1, count + 1))
    return [(value - 1) * step for value in slices]


def _orientation(dataset: Any) -> tuple[float, ...] | None:
    own = numbers(dataset, "ImageOrientationPatient", 6)
    detector = first_item(dataset, "DetectorInformationSequence")
    if own is None and detector is not None:
        own = numbers(detector, "ImageOrientationPatient", 6)
    return own


def _rescale(dataset: Any, groups: list[Any]) -> Rescale:
    holder = group_item(groups, "PixelValueTransformationSequence") or dataset
    slope, intercept = number(holder, "RescaleSlope"), number(holder, "RescaleIntercept")
    if slope is None:
        slope = number(dataset, "DoseGridScaling")
    if slope is None or not math.isfinite(slope) or slope == 0:
        slope = 1.0
    if intercept is None or not math.isfinite(intercept):
        intercept = 0.0
    return Rescale(slope, intercept)
