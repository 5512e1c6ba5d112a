"""Formats: declared without being imported, probed with reasons, opened and saved in one place.

A format is a descriptor in :data:`_DESCRIPTORS` and a module that offers:

* ``probe(path, head) -> Probe``: does this path hold the format? ``head`` is the file's first
  bytes, decompressed for ``.gz`` and ``.bz2`` (empty for folders). Never raises for bad bytes.
* ``read(path, options) -> Volume``: a lazy volume (:class:`lamella.volume.Labels` where the file
  says so). Raises ``UnreadableFileError`` or ``GeometryError``, never a foreign exception.
* ``write(volume, path, options) -> None`` (writers): stream the volume into ``path``, which does
  not exist yet; :func:`save_volume` renames it once it is complete.
* ``contents(path) -> tuple[ContentEntry, ...]`` (containers): what can be chosen inside.

Third-party libraries are imported inside these functions, so listing formats costs nothing and a
missing library is a reason, not a crash.
"""

import bz2
import gzip
import importlib
import shutil
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from lamella.core.errors import (
    InputError,
    LamellaError,
    MissingDependencyError,
    MissingPathError,
    OutputExistsError,
    UnknownFormatError,
    UnreadableFileError,
)
from lamella.core.optional import is_importable
from lamella.core.progress import ProgressSink, SilentSink
from lamella.core.storage import storage_error
from lamella.volume.labels import LabelClass, Labels
from lamella.volume.spacing import Spacing
from lamella.volume.volume import Note, Volume

__all__ = [
    "ContentEntry",
    "FormatDescriptor",
    "OpenOptions",
    "Probe",
    "SaveOptions",
    "descriptors",
    "find_reader",
    "find_writer",
    "list_contents",
    "open_labels",
    "open_volume",
    "save_volume",
    "storage_errors",
]

_HEAD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class FormatDescriptor:
    """A format as it is listed: no library is imported for it.

    Args:
        id: short name, as for ``--format``.
        title: name for people.
        suffixes: lower case, longest first where they overlap (``.nii.gz`` before ``.gz``).
        reads: whether Lamella reads it.
        writes: whether Lamella writes it.
        module: dotted name of the module that does it.
        needs: packages it imports.
        extra: Lamella's extra that installs them; empty for the base install.
        is_folder: whether such a volume is a folder.
    """

    id: str
    title: str
    suffixes: tuple[str, ...]
    reads: bool
    writes: bool
    module: str
    needs: tuple[str, ...] = ()
    extra: str = ""
    is_folder: bool = False

    @property
    def missing(self) -> tuple[str, ...]:
        """Packages that are not installed here."""
        return tuple(name for name in self.needs if not is_importable(name))

    @property
    def unavailable_reason(self) -> str | None:
        """Why it cannot be used here, or None."""
        if not self.missing:
            return None
        extra = f"[{self.extra}]" if self.extra else ""
        return f'needs {", ".join(self.missing)}: pip install "lamella{extra}"'

    def matches(self, path: Path) -> bool:
        """Whether the path's name ends with one of the suffixes."""
        return path.name.lower().endswith(self.suffixes)

    def load(self) -> ModuleType:
        """The module that does the work.

        Raises:
            MissingDependencyError: when one of its packages is not installed.
        """
        if self.missing:
            raise MissingDependencyError(
                f"{self.title} cannot be used here: it needs {', '.join(self.missing)}",
                hint=self.unavailable_reason,
            )
        return importlib.import_module(self.module)


@dataclass(frozen=True, slots=True)
class Probe:
    """What a format says about a path, always with the reason."""

    verdict: Literal["yes", "maybe", "no"]
    reason: str

    @classmethod
    def yes(cls, reason: str) -> "Probe":
        """It is this format."""
        return cls("yes", reason)

    @classmethod
    def maybe(cls, reason: str) -> "Probe":
        """It could be; used when nobody is sure."""
        return cls("maybe", reason)

    @classmethod
    def no(cls, reason: str) -> "Probe":
        """It is not, or it is broken."""
        return cls("no", reason)


@dataclass(frozen=True, slots=True)
class ContentEntry:
    """Something that can be chosen inside a container: a dataset, a series, a scene.

    ``selector`` is the option that chooses it (``dataset`` or ``series``), ``id`` its value.
    """

    selector: Literal["dataset", "series"]
    id: str
    title: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    is_image: bool = True


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """How to open a file that could be read in several ways.

    Args:
        dataset: name inside HDF5, OME-Zarr and the like.
        series: DICOM series (UID, number or a unique part of its description), OME-TIFF series.
        segment: of a DICOM segmentation, by number or label; the others are left out.
        level: pyramid level, 0 = full.
        channel: keep only this channel.
        time: keep only this time point.
        axes: what the axes mean, for files that do not say (``"czyx"``).
        spacing: replaces the header's spacing.
        resample_irregular: resample gantry tilt, uneven or missing slices instead of refusing.
        format: id of the format, when probing must not decide.
    """

    dataset: str | None = None
    series: str | None = None
    segment: str | None = None
    level: int = 0
    channel: int | None = None
    time: int | None = None
    axes: str | None = None
    spacing: Spacing | None = None
    resample_irregular: bool = False
    format: str | None = None


@dataclass(frozen=True, slots=True)
class SaveOptions:
    """How to write.

    Args:
        format: id of the format; from the suffix unless given.
        dtype: convert to this type, checked; as it is unless given.
        overwrite: replace what is there (only once the new file is complete).
        pyramid: write coarser levels where the format has them; None = when larger than 256.
        compress: compress losslessly where the format can.
        spacing: replaces the volume's spacing.
        source: DICOM series that labels were made on, for formats that refer to it; the one the
            labels remember unless given.
        source_series: which series in ``source``: UID, number or part of its description.
        sink: progress and cancellation.
    """

    format: str | None = None
    dtype: str | None = None
    overwrite: bool = False
    pyramid: bool | None = None
    compress: bool = True
    spacing: Spacing | None = None
    source: Path | None = None
    source_series: str | None = None
    sink: ProgressSink = field(default_factory=SilentSink)


_DESCRIPTORS: tuple[FormatDescriptor, ...] = (
    FormatDescriptor(
        "ome-zarr",
        "OME-Zarr 0.5",
        (".ome.zarr", ".zarr", ".ome.zarr.zip", ".zarr.zip", ".ozx"),
        True,
        True,
        "lamella.io.ome_zarr",
        ("zarr",),
        is_folder=True,
    ),
    FormatDescriptor(
        "ome-zarr-0.4",
        "OME-Zarr 0.4 (zarr 2)",
        (),
        False,
        True,
        "lamella.io.ome_zarr_v04",
        ("zarr",),
        is_folder=True,
    ),
    FormatDescriptor(
        "nifti",
        "NIfTI",
        (".nii.gz", ".nii", ".hdr", ".img"),
        True,
        True,
        "lamella.io.nifti",
        ("nibabel",),
    ),
    FormatDescriptor(
        "nrrd",
        "NRRD",
        (".nrrd", ".nhdr"),
        True,
        True,
        "lamella.io.nrrd",
    ),
    FormatDescriptor(
        "mrc",
        "MRC",
        tuple(
            stem + packed
            for stem in (".mrc", ".mrcs", ".map", ".rec", ".st", ".ali", ".ccp4", ".preali")
            for packed in ("", ".gz", ".bz2")
        ),
        True,
        True,
        "lamella.io.mrc",
    ),
    FormatDescriptor(
        "tiff",
        "TIFF, ImageJ TIFF, OME-TIFF",
        (".ome.tif", ".ome.tiff", ".tif", ".tiff", ".btf", ".tf8", ".lsm"),
        True,
        True,
        "lamella.io.tiff",
        ("tifffile", "imagecodecs"),
    ),
    FormatDescriptor(
        "dicom",
        "DICOM",
        (".dcm", ".ima", ".dicom"),
        True,
        False,
        "lamella.io.dicom",
        ("pydicom",),
    ),
    FormatDescriptor(
        "dicom-seg",
        "DICOM segmentation",
        (".dcm",),
        False,
        True,
        "lamella.io.dicom_seg_write",
        ("pydicom", "highdicom"),
        extra="dicom-seg",
    ),
    FormatDescriptor(
        "dicom-seg-labelmap",
        "DICOM segmentation (label map)",
        (),
        False,
        True,
        "lamella.io.dicom_labelmap_write",
        ("pydicom", "highdicom"),
        extra="dicom-seg",
    ),
    FormatDescriptor(
        "hdf5",
        "HDF5",
        (".h5", ".hdf5", ".hdf", ".he5"),
        True,
        True,
        "lamella.io.hdf5",
        ("h5py",),
    ),
    FormatDescriptor(
        "raster",
        "PNG, JPEG, BMP; folder of slices",
        (".png", ".jpg", ".jpeg", ".bmp"),
        True,
        True,
        "lamella.io.raster",
        ("PIL", "tifffile"),
    ),
    FormatDescriptor("npy", "NumPy array", (".npy",), True, True, "lamella.io.npy"),
)


def descriptors() -> tuple[FormatDescriptor, ...]:
    """Every format Lamella knows, those whose libraries are missing included."""
    return _DESCRIPTORS


def open_volume(path: str | Path, options: OpenOptions | None = None) -> Volume:
    """Open a volume lazily, whatever its format.

    Args:
        path: file or folder.
        options: choices inside the file and corrections.

    Raises:
        MissingPathError: when there is nothing at ``path``.
        UnknownFormatError: when no format recognises it; the details list every reason.
        UnreadableFileError: when a format recognises it but it is damaged.
        GeometryError: when it makes no regular grid.
        MissingDependencyError: when its format needs a package that is not installed.
    """
    path = Path(path)
    options = options or OpenOptions()
    module = _find_reader(path, options).load()
    with storage_errors(path):
        volume: Volume = module.read(path, options)
    if options.time is not None:
        volume = volume.select("t", options.time)
    if options.channel is not None:
        volume = volume.select("c", options.channel)
    if options.spacing is not None:
        volume = volume.with_spacing(options.spacing)
        volume = replace(
            volume,
            notes=(
                *(note for note in volume.notes if not note.code.startswith("spacing_")),
                Note("spacing_given", f"spacing set by the user: {volume.spacing}"),
            ),
        )
    return volume if volume.path is not None else replace(volume, path=path)


def open_labels(
    path: str | Path,
    options: OpenOptions | None = None,
    *,
    classes: tuple[LabelClass, ...] = (),
    is_instance: bool | None = None,
) -> Labels:
    """Open a file as labels; as :func:`open_volume`, but integers are required.

    Raises:
        InputError: when the values are not integers (or floats that a format widened).
    """
    volume = open_volume(path, options)
    for axis in ("t", "c"):
        if axis in volume.axes and volume.shape[volume.axes.index(axis)] == 1:
            volume = volume.select(axis, 0)
    if isinstance(volume, Labels):
        labels = volume
    else:
        shared = {name: getattr(volume, name) for name in Volume.__dataclass_fields__}
        labels = Labels(**shared)
    if classes:
        labels = replace(labels, classes=classes)
    return labels if is_instance is None else replace(labels, is_instance=is_instance)


def list_contents(path: str | Path) -> tuple[ContentEntry, ...]:
    """What can be chosen inside a file or folder; empty when there is just one thing."""
    path = Path(path)
    module = _find_reader(path, OpenOptions()).load()
    with storage_errors(path):
        return tuple(module.contents(path)) if hasattr(module, "contents") else ()


def save_volume(volume: Volume, path: str | Path, options: SaveOptions | None = None) -> Path:
    """Write a volume; nothing appears under ``path`` before it is complete.

    Args:
        volume: what to write; read slab by slab.
        path: file, or folder for formats that are folders.
        options: format, type, pyramid, overwriting.

    Returns:
        The path written.

    Raises:
        UnknownFormatError: when no writer has the suffix.
        OutputExistsError: when ``path`` is there and ``overwrite`` is off.
        NarrowingError: when values do not fit the type.
        StorageError: when the disk is full or the folder may not be written.
    """
    path = Path(path)
    options = options or SaveOptions()
    descriptor = find_writer(path, options.format)
    module = descriptor.load()
    if options.spacing is not None:
        volume = volume.with_spacing(options.spacing)
    if path.exists() and not options.overwrite:
        raise OutputExistsError(f"{path} is already there", hint="use --overwrite to replace it")
    if not path.parent.is_dir():
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
    # Same folder (same file system: the rename is atomic), same suffix (writers look at it).
    partial = path.with_name(f".{uuid.uuid4().hex[:8]}.partial-{path.name}")
    try:
        with storage_errors(path):
            module.write(volume, partial, options)
            _replace(partial, path)
    finally:
        _remove(partial)
    return path


def find_reader(path: str | Path, options: OpenOptions | None = None) -> FormatDescriptor:
    """The format that reads a path.

    Raises:
        MissingPathError: when there is nothing.
        UnknownFormatError: when no format recognises it.
        UnreadableFileError: when it is named like a format but damaged.
        MissingDependencyError: when its format needs a package that is not installed.
    """
    return _find_reader(Path(path), options or OpenOptions())


def find_writer(path: Path, format_id: str | None = None) -> FormatDescriptor:
    """The format that writes a path.

    Raises:
        UnknownFormatError: naming what can be written.
    """
    writers = [known for known in _DESCRIPTORS if known.writes]
    if format_id is not None:
        for known in writers:
            if known.id == format_id:
                return known
        raise UnknownFormatError(
            f"there is no writer {format_id!r}",
            hint=f"choose one of {', '.join(known.id for known in writers)}",
        )
    matching = [known for known in writers if known.suffixes and known.matches(path)]
    if not matching:
        known_suffixes = ", ".join(s for known in writers for s in known.suffixes[:2])
        raise UnknownFormatError(
            f"no format is written to {path.name!r}",
            hint=f"end the name with one of {known_suffixes}, or name the format with --format",
        )
    return max(
        matching,
        key=lambda known: max(len(s) for s in known.suffixes if path.name.lower().endswith(s)),
    )


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's errors into ours, with the path and a way out.

    Raises:
        StorageError: for a full disk, missing permission and other failures of the file system.
    """
    try:
        yield
    except LamellaError:
        raise
    except (MemoryError, OverflowError) as error:
        raise UnreadableFileError(
            f"{path} claims a size that cannot be handled here ({error})",
            hint="check the header with `lamella info`; the file may be damaged",
        ) from error
    except OSError as error:
        raise storage_error(error, path) from error


def _find_reader(path: Path, options: OpenOptions) -> FormatDescriptor:
    readers = [known for known in _DESCRIPTORS if known.reads]
    if options.format is not None:
        for known in readers:
            if known.id == options.format:
                return known
        raise UnknownFormatError(
            f"there is no reader {options.format!r}",
            hint=f"choose one of {', '.join(known.id for known in readers)}",
        )
    with storage_errors(path):
        is_there = path.exists()
    if not is_there:
        raise MissingPathError(f"there is nothing at {path}", hint="check the path")
    head = _read_head(path)
    if not path.is_dir() and not head:
        raise UnreadableFileError(
            f"{path} is empty (0 bytes)", hint="copy or download the file again"
        )
    return _probe_all(path, head, readers)


def _probe_all(path: Path, head: bytes, readers: list[FormatDescriptor]) -> FormatDescriptor:
    """The first reader that is sure (by suffix first), else the first that may be."""
    by_suffix = [known for known in readers if known.matches(path)]
    ordered = by_suffix + [known for known in readers if known not in by_suffix]
    verdicts: dict[str, Probe] = {}
    for known in ordered:
        if known.missing:
            verdicts[known.id] = Probe.no(known.unavailable_reason or "unavailable")
            continue
        with storage_errors(path):
            verdicts[known.id] = importlib.import_module(known.module).probe(path, head)
        if verdicts[known.id].verdict == "yes":
            return known
    for known in ordered:
        if verdicts[known.id].verdict == "maybe":
            return known
    raise _no_reader(path, by_suffix, verdicts)


def _no_reader(
    path: Path, by_suffix: list[FormatDescriptor], verdicts: dict[str, Probe]
) -> LamellaError:
    reasons = {name: verdict.reason for name, verdict in verdicts.items()}
    for known in by_suffix:
        if known.missing:
            return MissingDependencyError(
                f"{path} looks like {known.title}, which needs {', '.join(known.missing)}",
                hint=known.unavailable_reason,
            )
    if by_suffix:
        return UnreadableFileError(
            f"{path} is named like {by_suffix[0].title} but is not one: {reasons[by_suffix[0].id]}",
            hint="the file may be damaged or misnamed; copy or download it again",
            details={"reasons": reasons},
        )
    kind = "folder" if path.is_dir() else "file"
    packed = next((reason for reason in reasons.values() if reason.startswith("it is packed")), "")
    titles = ", ".join(known.title for known in _DESCRIPTORS if known.reads)
    return UnknownFormatError(
        f"no format recognises the {kind} {path}",
        hint=packed or f"formats read: {titles}",
        details={"reasons": reasons},
    )


def _read_head(path: Path) -> bytes:
    if path.is_dir():
        return b""
    with storage_errors(path), path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
        if head[:2] != b"\x1f\x8b" and head[:3] != b"BZh":
            return head
        stream.seek(0)
        opener: Any = gzip.open if head[:2] == b"\x1f\x8b" else bz2.open
        try:
            with opener(stream) as unpacked:
                return bytes(unpacked.read(_HEAD_BYTES))
        except (OSError, EOFError, zlib.error):
            return head


def _replace(partial: Path, path: Path) -> None:
    """Put the finished file or folder in place of what may be there."""
    if not partial.exists():
        raise InputError(f"the writer left nothing at {partial.name}")
    if path.is_dir() and not path.is_symlink():
        old = path.with_name(f".{uuid.uuid4().hex[:8]}.old-{path.name}")
        path.rename(old)
        partial.rename(path)
        shutil.rmtree(old)
    else:
        partial.replace(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
