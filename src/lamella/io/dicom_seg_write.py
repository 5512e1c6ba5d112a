"""Writing DICOM segmentations: one segment a class, referring to the series' own images.

``dicom-seg`` writes binary segments, which every viewer reads; ``dicom-seg-labelmap`` (DICOM 2024)
stores all classes in one frame a plane, compressed, up to a hundred times smaller, for the viewers
that know it. Both are made by highdicom. Frames lie where the series' images lie; planes on which
a segment has no voxel are left out, and the whole grid is recorded beside them.

The pixels of one object are held in memory and cannot exceed 4 GB in a file: how large it becomes
is counted before anything is made.
"""

from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import InputError, NarrowingError
from lamella.core.progress import Progress
from lamella.io.dicom_codes import PRIVATE, AnatomyCode, code_of
from lamella.io.dicom_header import PYDICOM_LOCK
from lamella.io.dicom_seg import (
    PRIVATE_CREATOR,
    PRIVATE_GROUP,
    RECORD_ELEMENT,
    VALUE_ELEMENT,
)
from lamella.io.dicom_source import SourceSeries, find_source
from lamella.io.format import SaveOptions
from lamella.io.record import make_record
from lamella.volume import LabelClass, Labels, Volume
from lamella.volume.source import iter_slabs
from lamella.wire.event import WarningEvent

__all__ = ["write", "write_segmentation"]

Kind = Literal["BINARY", "LABELMAP"]

_MOST_BYTES = 2**31
"""Largest pixel data: 4 GB is DICOM's limit, half of it what viewers bear."""
_MOST_SEGMENTS = 1000
"""More binary segments than that take minutes to write and to open."""
_SLAB_BYTES = 2**26
_SERIES_NUMBER = 900
"""Far above what scanners count to; viewers list segmentations last."""


def write(volume: Volume, path: Path, options: SaveOptions) -> None:
    """Write binary segments, uncompressed: a bit a voxel, which every viewer reads.

    Raises:
        InputError: for intensities, for labels without a source series, and for more segments or
            larger pixels than an object can hold.
        GeometryError: for labels that do not lie on the source series.
    """
    write_segmentation(volume, path, options, kind="BINARY")


def write_segmentation(volume: Volume, path: Path, options: SaveOptions, *, kind: Kind) -> None:
    """Write labels as a segmentation object.

    Args:
        volume: labels; classes or instances.
        path: the new file.
        options: ``source`` names the series; ``compress`` a label map losslessly.
        kind: binary segments, or a label map.

    Raises:
        InputError: as for :func:`write`.
        GeometryError: for labels that do not lie on the source series.
        NarrowingError: for ids that a label map cannot hold.
    """
    labels = _checked(volume, options)
    source = find_source(labels, options.source, options.source_series)
    listener: Any = options.sink
    for note in source.notes:
        listener.emit(WarningEvent(code=note.code, message=note.message))
    placed = _place(labels, source, options, kind)
    _check_bytes(placed, source, kind)
    with PYDICOM_LOCK:
        import warnings

        with warnings.catch_warnings():
            # highdicom and pydicom comment on values that the source series brings along.
            warnings.simplefilter("ignore")
            made = _made(labels, source, placed, kind, is_compressed=options.compress)
            options.sink.check()
            made.save_as(path, enforce_file_format=True)
    options.sink.emit(Progress("writing", source.shape[0], source.shape[0], "slices"))


# --- Labels in the order of the series ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Placed:
    """Labels on the series' grid.

    Args:
        pixels: segment numbers, uint8 or uint16, (z, y, x) of the series.
        values: class value of every segment, in the order of their numbers.
        numbers: segment numbers; 1, 2, 3 … in binary segmentations, the values in label maps.
        n_frames: frames with at least one voxel.
    """

    pixels: NDArray[Any]
    values: tuple[int, ...]
    numbers: tuple[int, ...]
    n_frames: int
    classes: dict[int, LabelClass] = field(default_factory=dict[int, LabelClass])


def _checked(volume: Volume, options: SaveOptions) -> Labels:
    if not isinstance(volume, Labels):
        if volume.dtype.kind not in "uib":
            raise InputError(
                f"a DICOM segmentation holds labels, not intensities of type {volume.dtype}",
                hint="open the file as labels (--labels), or write NIfTI or NRRD",
            )
        volume = Labels(**{name: getattr(volume, name) for name in Volume.__dataclass_fields__})
    for axis in ("t", "c"):
        if axis in volume.axes:
            raise InputError(
                f"a DICOM segmentation holds one volume; these labels have the axes {volume.axes}",
                hint="choose one with --channel or --time",
            )
    if options.dtype is not None:
        raise InputError(
            "a DICOM segmentation has no type to choose",
            hint="leave --dtype out",
        )
    return volume


def _present(labels: Labels, options: SaveOptions) -> tuple[int, ...]:
    """Values that occur, ascending; all classes where none does."""
    seen: set[int] = set()
    n = labels.shape[0]
    for where, slab in iter_slabs(labels.data, max_bytes=_SLAB_BYTES):
        options.sink.check()
        seen.update(int(value) for value in np.unique(slab))
        options.sink.emit(Progress("looking for segments", where.stop, n, "slices"))
    if seen and min(seen) < 0:
        raise InputError(
            f"labels of a DICOM segmentation are positive; {min(seen)} is not",
            hint="these look like intensities: convert labels, or renumber them first",
        )
    found = tuple(sorted(seen - {0})) or tuple(c.value for c in labels.classes if c.value > 0)
    if not found:
        raise InputError(
            "no voxel is labelled and no class is known: a DICOM segmentation needs a segment",
            hint="write NIfTI or NRRD to keep an empty result",
        )
    return found


def _place(labels: Labels, source: SourceSeries, options: SaveOptions, kind: Kind) -> _Placed:
    values = _present(labels, options)
    if kind == "BINARY" and len(values) > _MOST_SEGMENTS:
        raise InputError(
            f"{len(values)} objects are too many for binary segments (at most {_MOST_SEGMENTS})",
            hint="write a label map with --format dicom-seg-labelmap, or fewer classes",
        )
    if kind == "BINARY" and source.shape[1] * source.shape[2] < 8:
        # highdicom pads such frames to whole bytes, where the standard packs them bit by bit.
        raise InputError(
            f"images of {source.shape[1]} x {source.shape[2]} pixels are too small for segments",
            hint="write a label map with --format dicom-seg-labelmap",
        )
    if kind == "LABELMAP" and values[-1] > 2**16 - 1:
        raise NarrowingError(
            f"a DICOM label map holds values up to 65535; {values[-1]} does not fit",
            hint="renumber the labels first",
        )
    numbers = tuple(range(1, len(values) + 1)) if kind == "BINARY" else values
    pixels = np.zeros(source.shape, np.min_scalar_type(numbers[-1]))
    known = source.placement
    keys, targets = np.array(values), np.array(numbers, pixels.dtype)
    has = np.zeros((source.shape[0], numbers[-1] + 1), bool)
    for sheet, slab in iter_slabs(labels.data, max_bytes=_SLAB_BYTES):
        options.sink.check()
        index = np.minimum(np.searchsorted(keys, slab), len(keys) - 1)
        numbered = np.where(slab == 0, pixels.dtype.type(0), targets[index])
        ranges = (sheet, slice(0, slab.shape[1]), slice(0, slab.shape[2]))
        at = tuple(
            _range(known.offset[k], known.steps[k], ranges[axis])
            for k, axis in enumerate(known.axes)
        )
        pixels[at] = np.flip(
            numbered.transpose(known.axes), tuple(k for k in range(3) if known.steps[k] < 0)
        )
        options.sink.emit(Progress("placing labels", sheet.stop, labels.shape[0], "slices"))
    for plane, own in zip(has, pixels, strict=True):
        plane[np.unique(own)] = True
    n_frames = int(has[:, 1:].sum()) if kind == "BINARY" else int(has[:, 1:].any(axis=1).sum())
    return _Placed(pixels, values, numbers, n_frames, {c.value: c for c in labels.classes})


def _range(offset: int, step: int, part: slice) -> slice:
    """Where a range of label indices lies along an axis of the series, ascending."""
    first, last = offset + step * part.start, offset + step * (part.stop - 1)
    return slice(min(first, last), max(first, last) + 1)


def _check_bytes(placed: _Placed, source: SourceSeries, kind: Kind) -> None:
    plane = source.shape[1] * source.shape[2]
    n_bytes = placed.n_frames * plane
    n_bytes = n_bytes // 8 if kind == "BINARY" else n_bytes * placed.pixels.itemsize
    if n_bytes > _MOST_BYTES:
        raise InputError(
            f"{len(placed.values)} segments on {source.shape[0]} slices of {source.shape[1]} x"
            f" {source.shape[2]} take {n_bytes / 1e9:.1f} GB of pixels in one DICOM object, more"
            f" than {_MOST_BYTES / 1e9:.1f} GB",
            hint="write a label map with --format dicom-seg-labelmap, fewer classes, or NIfTI",
        )


# --- The object ---------------------------------------------------------------------------------


def _made(
    labels: Labels,
    source: SourceSeries,
    placed: _Placed,
    kind: Kind,
    *,
    is_compressed: bool,
) -> Any:
    """The segmentation as a pydicom data set."""
    import highdicom as hd
    from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

    images, pixels = _images(source, placed.pixels)
    is_packed = kind == "LABELMAP" and is_compressed
    made = hd.seg.Segmentation(
        source_images=images,
        pixel_array=pixels,
        segmentation_type=kind,
        segment_descriptions=[
            _description(number, value, labels, placed)
            for number, value in zip(placed.numbers, placed.values, strict=True)
        ],
        series_instance_uid=str(generate_uid()),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=str(generate_uid()),
        instance_number=1,
        manufacturer="Lamella",
        manufacturer_model_name="Lamella",
        software_versions=_version(),
        device_serial_number=_version(),
        content_label="SEGMENTATION",
        content_description=_described(labels)[:64],
        transfer_syntax_uid=RLELossless if is_packed else ExplicitVRLittleEndian,
        series_description=f"Segmentation {_described(labels)}"[:64],
    )
    _add_record(made, labels, source, placed, kind)
    return made


def _images(source: SourceSeries, pixels: NDArray[Any]) -> tuple[list[Any], NDArray[Any]]:
    """Headers of the source images, and the pixels in their order."""
    import pydicom

    paths = list(dict.fromkeys(frame.path for frame in source.frames))
    datasets = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
    _complete(datasets, source)
    if len(paths) == 1 and len(source.frames) > 1:
        # One file with many frames: highdicom wants them in the order of the file.
        order = np.argsort([frame.index for frame in source.frames])
        return datasets, pixels[order]
    return datasets, pixels


_BLANKED = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
    "StudyDate", "StudyTime",
)  # fmt: skip
"""Elements that must be there, even without a value."""


def _complete(datasets: list[Any], source: SourceSeries) -> None:
    """Give back what anonymisers blanked, so that references mean something.

    The identity of an image is kept beside its data set as well; study, series and frame of
    reference have only one place, and get UIDs made of the images' own, the same ones every time.
    """
    from pydicom.uid import generate_uid

    for dataset in datasets:
        _identify(dataset, source)
    own = sorted(str(dataset.SOPInstanceUID) for dataset in datasets)
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        given = next((str(d.get(name)) for d in datasets if d.get(name)), None)
        uid = given or str(generate_uid(entropy_srcs=[name, *own]))
        for dataset in datasets:
            if not dataset.get(name):
                setattr(dataset, name, uid)


def _identify(dataset: Any, source: SourceSeries) -> None:
    for name in ("SOPInstanceUID", "SOPClassUID"):
        if not dataset.get(name):
            setattr(dataset, name, getattr(dataset.file_meta, f"MediaStorage{name}", ""))
        if not dataset.get(name):
            raise InputError(
                f"{source.path}: the images have no {name}, so nothing can refer to them",
                hint="export the series again without removing its UIDs, or write NIfTI or NRRD",
            )
    for name in _BLANKED:
        if name not in dataset:
            setattr(dataset, name, "")


def _description(number: int, value: int, labels: Labels, placed: _Placed) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    known = _class_of(value, labels, placed)
    code = code_of(known.name) if not labels.is_instance else _instance_code(labels)
    category = codes.SCT.AnatomicalStructure if code.is_anatomy else codes.SCT.Tissue
    described = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=known.name[:64],
        segmented_property_category=category,
        segmented_property_type=Code(code.value, code.scheme, code.meaning[:64]),
        **_algorithm(labels),
        display_color=hd.color.CIELabColor.from_rgb(*known.rgb),
    )
    if code.side is not None:
        side = codes.SCT.Left if code.side == "left" else codes.SCT.Right
        described.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
            hd.sr.CodedConcept.from_code(side)
        ]
    described.private_block(PRIVATE_GROUP, PRIVATE_CREATOR, create=True).add_new(
        VALUE_ELEMENT, "UL", value
    )
    return described


def _class_of(value: int, labels: Labels, placed: _Placed) -> LabelClass:
    if labels.is_instance:
        name = labels.classes[0].name if len(labels.classes) == 1 else "object"
        return LabelClass(value, f"{name} {value}")
    return placed.classes.get(value, LabelClass(value, f"class {value}"))


def _instance_code(labels: Labels) -> AnatomyCode:
    if len(labels.classes) == 1:
        return code_of(labels.classes[0].name)
    return AnatomyCode("object", PRIVATE, "object")


def _algorithm(labels: Labels) -> dict[str, Any]:
    """Who made the segments: engine, model and version where the labels remember them."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    engine, model = (str(labels.metadata.get(name) or "") for name in ("engine", "model"))
    is_run = bool(engine and labels.metadata.get("source_path"))
    name = " ".join(dict.fromkeys(part for part in (engine, model) if part)) if is_run else ""
    return {
        "algorithm_type": "AUTOMATIC" if is_run else "SEMIAUTOMATIC",
        "algorithm_identification": hd.AlgorithmIdentificationSequence(
            name=(name or "unknown, written by Lamella")[:64],
            family=codes.DCM.ArtificialIntelligence,
            version=(str(labels.metadata.get("model_version") or "") if is_run else "")[:64]
            or _version(),
            source="Lamella",
        ),
    }


def _described(labels: Labels) -> str:
    model = labels.metadata.get("model") if labels.metadata.get("source_path") else None
    return str(model or labels.name or "labels")


def _add_record(
    made: Any, labels: Labels, source: SourceSeries, placed: _Placed, kind: Kind
) -> None:
    """Leave what the object cannot say: the whole grid, the classes that have no voxel."""
    import json

    grid = Labels(
        data=placed.pixels,
        axes=labels.axes,
        affine=source.affine,
        unit="mm",
        name=labels.name,
        classes=labels.classes,
        is_instance=labels.is_instance,
    )
    record = json.loads(make_record(grid)) | {"shape": list(source.shape)}
    block = made.private_block(PRIVATE_GROUP, PRIVATE_CREATOR, create=True)
    block.add_new(RECORD_ELEMENT, "UT", json.dumps(record, separators=(",", ":")))


def _version() -> str:
    return version("lamella")
