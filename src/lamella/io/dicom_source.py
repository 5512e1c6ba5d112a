"""The series that labels were made on: what a DICOM segmentation must refer to.

A segmentation belongs to a study, lies in the series' frame of reference and names, for every
plane, the image below it. So the series is needed to write one, and the labels must lie on its
grid: along the same axes, or along flipped and swapped ones, as other programs store them (the
voxels are then put into the series' order, none is resampled).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lamella.core.errors import GeometryError, InputError, LamellaError
from lamella.io.dicom_geometry import stack_frames
from lamella.io.dicom_header import DicomFrame, foreign_errors
from lamella.io.dicom_series import DicomSeries, choose_series, scan
from lamella.io.dicom_values import header_thickness
from lamella.io.frames import affine_in_unit
from lamella.io.reorient import Placement, placement
from lamella.volume import Affine, Labels, Note

__all__ = ["SourceSeries", "check_source", "find_source"]


@dataclass(frozen=True, slots=True)
class SourceSeries:
    """A series whose slices make a grid.

    Args:
        path: where it is.
        series: its files.
        frames: its planes, in the order of z.
        affine: of the grid, RAS, in mm.
        shape: (z, y, x).
        placement: where the labels lie in it.
        notes: what is odd about it.
    """

    path: Path
    series: DicomSeries
    frames: tuple[DicomFrame, ...]
    affine: Affine
    shape: tuple[int, int, int]
    placement: Placement
    notes: tuple[Note, ...] = ()


def find_source(labels: Labels, path: Path | None, series: str | None = None) -> SourceSeries:
    """The series that labels belong to.

    Args:
        labels: what is to be written; they may remember their source.
        path: file or folder with the series; where the labels say unless given.
        series: which one: UID, number or part of its description; the one with the labels' grid
            unless given.

    Raises:
        InputError: when nobody says which series, when it is no DICOM, or when several fit.
        GeometryError: when the labels do not lie on the series' grid.
    """
    where = path if path is not None else _remembered(labels)
    if series is None and path is None:
        told = labels.metadata.get("source_series")
        series = str(told) if told else None
    if where is None:
        raise InputError(
            "a DICOM segmentation must refer to the DICOM series it was made on, and nothing says"
            " which",
            hint="name its folder with --source FOLDER (Python: save(..., source=FOLDER)), or write"
            " NIfTI or NRRD, which need none",
        )
    where = Path(where)
    found, notes = _scanned(where)
    if series is not None:
        candidates: Sequence[DicomSeries] = [choose_series(where, found, series)]
    else:
        candidates = [k for k in found if k.images and not k.images[0].is_segmentation]
    if not candidates:
        raise InputError(
            f"{where} holds no DICOM images to refer to",
            hint="name the folder of the series with --source FOLDER",
        )
    fitting: list[SourceSeries] = []
    problems: list[LamellaError] = []
    for candidate in candidates:
        try:
            fitting.append(_fitted(where, candidate, labels, notes))
        except LamellaError as error:
            problems.append(error)
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise problems[0]
    shown = "; ".join(f"{k.series.title} (UID {k.series.uid})" for k in fitting[:10])
    raise InputError(
        f"the labels lie on the grid of {len(fitting)} series of {where}: {shown}",
        hint="choose one with --source-series: its number, UID or part of its description",
    )


def check_source(path: Path | None, what: Path) -> None:
    """Say at once that a segmentation cannot be written, before hours of work.

    Args:
        path: the input of a run; None where it lies in memory.
        what: the file to be written, for the message.

    Raises:
        InputError: when the input is no DICOM series.
    """
    if path is None:
        raise InputError(
            f"{what.name} must refer to a DICOM series, and the input lies in memory",
            hint="write NIfTI or NRRD instead",
        )
    _scanned(path, hint="write NIfTI or NRRD instead; a segmentation of DICOM images needs them")


def _remembered(labels: Labels) -> Path | None:
    told = labels.metadata.get("source_path")
    return Path(str(told)) if told else labels.path


def _scanned(
    path: Path,
    hint: str = "name the folder of the series with --source FOLDER, or write NIfTI or NRRD",
) -> tuple[tuple[DicomSeries, ...], tuple[Note, ...]]:
    """Every series at a path; one clear error for anything that is no DICOM."""
    from lamella.io.format import OpenOptions, find_reader

    found = find_reader(path, OpenOptions())
    if found.id != "dicom":
        raise InputError(
            f"a DICOM segmentation must refer to a DICOM series, but {path} is {found.title}",
            hint=hint,
        )
    with foreign_errors(path, "reading the DICOM headers"):
        return scan(path)


def _fitted(
    path: Path, series: DicomSeries, labels: Labels, notes: tuple[Note, ...]
) -> SourceSeries:
    images = series.images
    frames = [frame for file in images for frame in file.frames]
    if any(frame.position is None for frame in frames):
        raise GeometryError(
            f"{path}: {series.title} has frames without a place in the patient",
            hint="projections and films carry no volume segmentation",
        )
    thickness, name = header_thickness(images[0].dataset)
    stack = stack_frames(frames, thickness=thickness, thickness_name=name)
    if stack.problem is not None or stack.extra is not None:
        raise GeometryError(
            f"{path}: {series.title}: {stack.problem or 'several images share each position'}",
            hint="a segmentation can refer to evenly spaced slices only; write NIfTI or NRRD"
            " instead",
        )
    if "z" not in labels.axes:
        raise GeometryError(
            f"labels of a single image ({labels.shape}) do not lie on a series of slices",
            hint="write them as NIfTI, or as PNG",
        )
    rows, columns, _ = images[0].shape
    shape = (len(stack.frames[0]), rows, columns)
    in_mm = affine_in_unit(labels.affine, labels.unit, "mm")
    return SourceSeries(
        path,
        series,
        stack.frames[0],
        stack.affine,
        shape,
        placement(in_mm, labels.spatial_shape, stack.affine, shape),
        (*notes, *_identity_notes(path, series)),
    )


def _identity_notes(path: Path, series: DicomSeries) -> tuple[Note, ...]:
    """Whether a segmentation can be filed where its series is."""
    import pydicom

    names = ["StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"]
    first = series.images[0].path
    with foreign_errors(first, "reading the header"):
        dataset = pydicom.dcmread(
            first, stop_before_pixels=True, force=True, specific_tags=list(names)
        )
        missing = [name for name in names if not dataset.get(name)]
    if not missing:
        return ()
    return (
        Note(
            "source_uids_missing",
            f"the images in {path} have no {', '.join(missing)} (anonymised?): made-up ones are"
            " used, so an archive will not file the segmentation beside them",
        ),
    )
