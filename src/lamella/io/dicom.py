"""DICOM: a series in a folder (nested, without suffixes, DICOMDIR), or a single file.

Slices are ordered by their position, never by name or number; values are rescaled (Hounsfield
units come out as integers); pixels are decoded slice by slice when they are read. Series that make
no even grid are refused with the numbers, or resampled when asked. Nothing that identifies a
patient is copied into the metadata.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import AxesError, GeometryError, InputError
from lamella.io.dicom_geometry import Stack, stack_frames
from lamella.io.dicom_header import (
    DicomFile,
    DicomFrame,
    foreign_errors,
    has_magic,
    looks_bare,
)
from lamella.io.dicom_pixels import FrameStore, check_sizes, values_dtype
from lamella.io.dicom_resample import resampled
from lamella.io.dicom_series import (
    DicomSeries,
    choose_series,
    first_dicom_file,
    scan,
)
from lamella.io.dicom_values import header_thickness, numbers, positive, text, whole
from lamella.io.format import ContentEntry, OpenOptions, Probe
from lamella.volume import Affine, Axes, FunctionArray, Note, Volume
from lamella.volume.source import LazyArray
from lamella.volume.spacing import Unit

__all__ = ["contents", "probe", "read"]

_FACTS = {
    "modality": "Modality",
    "manufacturer": "Manufacturer",
    "model": "ManufacturerModelName",
    "series_number": "SeriesNumber",
    "series_description": "SeriesDescription",
    "protocol": "ProtocolName",
    "body_part": "BodyPartExamined",
    "slice_thickness_mm": "SliceThickness",
    "kvp": "KVP",
    "tube_current_ma": "XRayTubeCurrent",
    "kernel": "ConvolutionKernel",
    "field_strength_t": "MagneticFieldStrength",
    "repetition_time_ms": "RepetitionTime",
    "echo_time_ms": "EchoTime",
    "flip_angle_deg": "FlipAngle",
    "frame_time_ms": "FrameTime",
    "photometric": "PhotometricInterpretation",
    "units": "Units",
}
"""What is copied from the header: how the image was made, never of whom or when."""

_CENTIMETRES = 3
_AIR_HU = -1024.0


def probe(path: Path, head: bytes) -> Probe:
    """By the magic ``DICM`` after 128 bytes; folders by the first such file in them."""
    if path.is_dir():
        found = first_dicom_file(path)
        if found is None:
            return Probe.no("a folder without DICOM files among its first ones")
        return Probe.yes(f"a folder with DICOM files ({found.name})")
    with path.open("rb") as stream:
        raw = stream.read(2)
    if raw in (b"\x1f\x8b", b"BZ") and raw != head[:2]:
        return Probe.no("compressed: unpack DICOM files first")
    if has_magic(head):
        return Probe.yes("the magic DICM at byte 128")
    if looks_bare(head):
        return Probe.maybe("perhaps DICOM without its preamble")
    return Probe.no("no magic DICM at byte 128")


def contents(path: Path) -> tuple[ContentEntry, ...]:
    """The series that ``--series`` can choose; empty when there is just one."""
    with foreign_errors(path, "listing the DICOM series"):
        series, _ = scan(path)
        return tuple(known.entry for known in series) if len(series) > 1 else ()


def read(path: Path, options: OpenOptions) -> Volume:
    """Open a series lazily.

    Raises:
        InputError: when several series are there and none (or no single one) is chosen, or when
            there are no pixels.
        GeometryError: for slices that make no even grid; the message has the numbers.
        UnreadableFileError: for damaged files.
    """
    with foreign_errors(path, "reading the DICOM headers"):
        return _open(path, options)


def _open(path: Path, options: OpenOptions) -> Volume:
    found, notes = scan(path)
    series = choose_series(path, found, options.series)
    images = series.images
    if images[0].is_segmentation:
        from lamella.io.dicom_seg import read_segmentation

        return read_segmentation(path, images, options.segment, notes=notes)
    if options.segment is not None:
        raise InputError(
            f"{path} is no DICOM segmentation: --segment {options.segment} chooses nothing",
            hint="leave --segment out",
        )
    _check_shapes(path, images)
    check_sizes(images)
    notes = (*notes, *_value_notes(series))
    store = FrameStore(images, values_dtype(images))
    frames = [frame for file in images for frame in file.frames]
    placed = [frame for frame in frames if frame.position is not None]
    if len(frames) == 1 and (frames[0].orientation is None or frames[0].spacing is None):
        placed = []
    built = (
        _placed(path, series, placed, len(frames), store, options)
        if placed
        else _unplaced(path, images, frames, store, options)
    )
    samples = images[0].shape[2]
    return Volume(
        data=built.data,
        axes=built.axes,
        affine=built.affine,
        unit=built.unit,
        name=series.description or path.stem,
        channel_names=tuple("RGBA"[:samples]) if samples > 1 else built.channel_names,
        notes=(*notes, *built.notes),
        metadata=_metadata(series),
        path=path,
    )


@dataclass(frozen=True, slots=True)
class _Built:
    """What becomes the volume."""

    data: LazyArray
    axes: Axes
    affine: Affine
    unit: Unit
    notes: tuple[Note, ...] = ()
    channel_names: tuple[str, ...] = ()


def _placed(
    path: Path,
    series: DicomSeries,
    placed: list[DicomFrame],
    n_frames: int,
    store: FrameStore,
    options: OpenOptions,
) -> _Built:
    """Frames with positions: a volume, perhaps with time or segments."""
    if len(placed) != n_frames:
        raise GeometryError(
            f"{path}: {n_frames - len(placed)} of {n_frames} frames have no position",
            hint="localizers or derived images were mixed in: sort the files into folders",
        )
    dataset = series.images[0].dataset
    thickness, name = header_thickness(dataset)
    try:
        stack = stack_frames(placed, thickness=thickness, thickness_name=name)
    except GeometryError as error:
        raise GeometryError(f"{path}: {error.message}", hint=error.hint) from error
    has_samples = series.images[0].shape[2] > 1
    if stack.extra == "c" and has_samples:
        raise AxesError(f"{path} has both segments and colours", hint="open one segment at a time")
    data, axes = _stacked(stack.frames, stack.extra, store, series.images[0].shape)
    affine, notes = stack.affine, list(stack.notes)
    if stack.problem is not None:
        if not options.resample_irregular:
            raise GeometryError(
                f"{path}: {stack.problem}",
                hint="resample them onto an even grid with --resample-irregular, or repair the"
                " series",
                details={"heights_mm": [float(h) for h in stack.heights]},
            )
        data, affine = resampled(data, stack, fill=_fill(dataset, stack, store.dtype))
        notes.append(Note("resampled", f"{stack.problem}; resampled linearly onto an even grid"))
    if options.axes is not None and options.axes.lower() != str(axes):
        raise AxesError(
            f"{path} has the axes {axes}, which its headers give; --axes {options.axes} does not"
            " fit",
            hint="leave --axes out",
        )
    segments = stack.extra == "c"
    names = tuple(f"segment {own[0].channel}" for own in stack.frames) if segments else ()
    return _Built(data, axes, affine, "mm", tuple(notes), names)


def _unplaced(
    path: Path,
    images: tuple[DicomFile, ...],
    frames: list[DicomFrame],
    store: FrameStore,
    options: OpenOptions,
) -> _Built:
    """Frames without positions: an image, or a film."""
    if len(images) != 1:
        raise GeometryError(
            f"{path} holds {len(images)} images without positions in space; they make no volume",
            hint="open one file at a time",
        )
    spacing, unit, notes = _plane_spacing(images[0])
    extra = "t" if len(frames) > 1 else None
    wanted = (options.axes or "").lower()
    if wanted and extra == "t" and "z" in wanted and "t" not in wanted:
        data, axes = _stacked((tuple(frames),), None, store, images[0].shape)
        notes.append(Note("spacing_missing", "frames without positions read as z: 1 is taken"))
        affine = Affine.diagonal((1.0, *spacing))
    else:
        data, axes = _stacked(
            tuple((frame,) for frame in frames), extra, store, images[0].shape, is_plane=True
        )
        affine = Affine.diagonal(spacing)
    if wanted and wanted != str(axes):
        raise AxesError(
            f"{path} has the axes {axes}; --axes {options.axes} does not fit",
            hint="leave --axes out, or name z instead of t",
        )
    return _Built(data, axes, affine, unit, tuple(notes))


def _stacked(
    frames: tuple[tuple[DicomFrame, ...], ...],
    extra: str | None,
    store: FrameStore,
    shape: tuple[int, int, int],
    *,
    is_plane: bool = False,
) -> tuple[FunctionArray, Axes]:
    """A lazy array over frames: (t, c, z, y, x), less what there is not.

    Args:
        frames: ``frames[k][m]``, k along the extra axis, m along z.
        extra: name of the extra axis, or None.
        store: gives the pixels.
        shape: rows, columns, samples.
        is_plane: whether there is no z axis.
    """
    rows, columns, samples = shape
    has_samples = samples > 1
    lengths = {"t": len(frames) if extra == "t" else 1, "z": len(frames[0])}
    lengths |= {"c": samples if has_samples else len(frames), "y": rows, "x": columns}
    names = [
        name
        for name in ("t", "c", "z", "y", "x")
        if name in ("y", "x")
        or name == extra
        or (name == "c" and has_samples)
        or (name == "z" and not is_plane)
    ]
    axes = Axes(tuple(names))
    every = {name: slice(0, length) for name, length in lengths.items()}
    at_extra: Callable[[dict[str, slice], int, int], int] = (
        (lambda at, t, c: c) if extra == "c" else (lambda at, t, c: t)
    )

    def read(slices: tuple[slice, ...]) -> NDArray[Any]:
        at = every | dict(zip(names, slices, strict=True))
        n = {name: part.stop - part.start for name, part in at.items()}
        n_c = n["c"] if "c" in names else 1
        block = np.empty((n["t"], n_c, n["z"], n["y"], n["x"]), store.dtype)
        channels = [None] if has_samples or "c" not in names else range(at["c"].start, at["c"].stop)
        for i, t in enumerate(range(at["t"].start, at["t"].stop)):
            for j, c in enumerate(channels):
                own = frames[at_extra(at, t, c or 0)]
                for k, z in enumerate(range(at["z"].start, at["z"].stop)):
                    part = store.get(own[z])[at["y"], at["x"]]
                    if has_samples:
                        block[i, :, k] = np.moveaxis(part[..., at["c"]], -1, 0)
                    else:
                        block[i, j, k] = part[..., 0]
        return block.reshape(tuple(n[name] for name in names))

    return FunctionArray(tuple(lengths[name] for name in names), store.dtype, read), axes


def _check_shapes(path: Path, images: tuple[DicomFile, ...]) -> None:
    shapes = [file.shape for file in images]
    if len(set(shapes)) == 1:
        return
    counted = ", ".join(
        f"{shapes.count(shape)} of {shape[0]} x {shape[1]}"
        + (f" x {shape[2]} samples" if shape[2] > 1 else "")
        for shape in sorted(set(shapes), key=shapes.count, reverse=True)
    )
    raise GeometryError(
        f"{path}: the series mixes image sizes: {counted}",
        hint="localizers often do; choose another series with --series, or sort the files",
    )


def _value_notes(series: DicomSeries) -> tuple[Note, ...]:
    notes = []
    images = series.images
    without = len(series.files) - len(images)
    if without:
        notes.append(Note("objects_skipped", f"{without} objects of the series have no pixels"))
    if any(file.photometric == "MONOCHROME1" for file in images):
        notes.append(
            Note("monochrome1", "low values are bright (MONOCHROME1); values are kept as stored")
        )
    if any(file.dataset.get("ModalityLUTSequence") for file in images):
        notes.append(
            Note("modality_lut_ignored", "the modality lookup table is not applied: stored values")
        )
    return tuple(notes)


def _plane_spacing(file: DicomFile) -> tuple[tuple[float, float], Unit, list[Note]]:
    """Pixel spacing (y, x) of an image without position, with the doubts about it."""
    dataset = file.dataset
    for name, doubt in (
        ("PixelSpacing", ""),
        ("ImagerPixelSpacing", "measured at the detector, not corrected for magnification"),
        ("NominalScannedPixelSpacing", "the spacing of the film scanner"),
    ):
        found = file.frames[0].spacing if name == "PixelSpacing" else numbers(dataset, name, 2)
        if found is not None and min(found) > 0:
            notes = [Note("spacing_at_detector", f"{name} is {doubt}")] if doubt else []
            return (found[0], found[1]), "mm", notes
    ultrasound = _ultrasound_spacing(dataset)
    if ultrasound is not None:
        note = Note("spacing_from_region", "spacing of the only calibrated ultrasound region")
        return ultrasound, "mm", [note]
    note = Note("spacing_missing", "the header has no pixel spacing: the image is not calibrated")
    return (1.0, 1.0), "voxel", [note]


def _ultrasound_spacing(dataset: Any) -> tuple[float, float] | None:
    found = set()
    for region in dataset.get("SequenceOfUltrasoundRegions") or ():
        units = (
            whole(region, "PhysicalUnitsXDirection", 0),
            whole(region, "PhysicalUnitsYDirection", 0),
        )
        if units == (_CENTIMETRES, _CENTIMETRES):
            y, x = positive(region, "PhysicalDeltaY"), positive(region, "PhysicalDeltaX")
            if y is not None and x is not None:
                found.add((y * 10.0, x * 10.0))
    return found.pop() if len(found) == 1 else None


def _fill(dataset: Any, stack: Stack, dtype: np.dtype[Any]) -> float:
    """What lies outside a tilted stack: the scanner's padding value, air in CT, else 0."""
    padding = dataset.get("PixelPaddingValue")
    if isinstance(padding, int):
        rescale = stack.frames[0][0].rescale
        value = rescale.slope * padding + rescale.intercept
    else:
        value = _AIR_HU if text(dataset, "Modality") == "CT" else 0.0
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        value = float(min(max(value, info.min), info.max))
    return float(value)


def _metadata(series: DicomSeries) -> dict[str, Any]:
    first = series.images[0]
    known: dict[str, Any] = {}
    for name, element in _FACTS.items():
        value = first.dataset.get(element)
        told = text(first.dataset, element)
        if told:
            known[name] = float(value) if isinstance(value, float) else told
    meta = getattr(first.dataset, "file_meta", None)
    # Anonymisers blank identifiers of the data set and forget the same ones before it.
    sop_class = first.dataset.get("SOPClassUID") or getattr(meta, "MediaStorageSOPClassUID", None)
    if sop_class:
        known["sop_class"] = str(sop_class.name)
    image_type = text(first.dataset, "ImageType")
    if image_type:
        known["image_type"] = image_type
    syntax = getattr(meta, "TransferSyntaxUID", None)
    if syntax is not None:
        known["transfer_syntax"] = str(syntax.name)
    known["n_files"] = len(series.images)
    return known
