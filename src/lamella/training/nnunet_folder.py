"""A training data set as nnU-Net v2 wants it, from images and labels of any format.

::

    Dataset101_Name/
      dataset.json                       channels, labels 0..n without gaps, ignore label last
      imagesTr/CASE_0000.nii.gz          one file a channel
      labelsTr/CASE.nii.gz

nnU-Net knows no units and reads spacing as plain numbers. Spacing in mm is written as it is. Files
of microscopes are in nm or µm, which NIfTI would turn into millionths; there the number itself is
written, and ``dataset.json`` says in which unit it is (``lamella_spacing_unit``), so that Lamella
compares like with like when it runs the trained model.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import GeometryError, InputError, MissingPathError, OutputExistsError
from lamella.core.progress import Progress, ProgressSink, SilentSink
from lamella.io.format import (
    OpenOptions,
    SaveOptions,
    find_reader,
    open_labels,
    open_volume,
    save_volume,
    storage_errors,
)
from lamella.volume.labels import Labels
from lamella.volume.source import FunctionArray, iter_slabs
from lamella.volume.spacing import Spacing, Unit
from lamella.volume.volume import Volume

__all__ = ["Case", "ExportOptions", "Exported", "export_nnunet", "find_cases"]

SPACING_UNIT_KEY = "lamella_spacing_unit"
_FOLDER_NAME = re.compile(r"Dataset\d{3}_[A-Za-z0-9_-]+")
_LABEL_ENDINGS = re.compile(r"[._-](seg|label|labels|mask|masks|segmentation|annotation)$", re.I)
_CHANNEL_ENDING = re.compile(r"_0000$")


@dataclass(frozen=True, slots=True)
class Case:
    """An image and its labels; ``name`` is what nnU-Net will call them."""

    name: str
    image: Path
    labels: Path


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How a data set is written.

    Attributes:
        channels: names of the channels; nnU-Net chooses the normalisation by them (``CT``,
            ``noNorm``, ``rescale_to_0_1``, ``rgb_to_0_1``, any other = z-score).
        classes: names of the labels by the value they have in the files; from the files unless
            given.
        ignore: label value of voxels that nobody annotated.
        spacing: replaces that of the files.
        overwrite: replace what is there.
    """

    channels: tuple[str, ...] = ()
    classes: Mapping[int, str] | None = None
    ignore: int | None = None
    spacing: Spacing | None = None
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        folder: the data set.
        n_cases: how many.
        labels: value by name, as in ``dataset.json``.
        values: value in the data set by value in the files.
        unit: of the spacing.
    """

    folder: Path
    n_cases: int
    labels: Mapping[str, int]
    values: Mapping[int, int]
    unit: Unit


def find_cases(images: Path, labels: Path) -> tuple[Case, ...]:
    """Pair images and labels by their names, or two single files.

    Args:
        images: a file, or a folder of files.
        labels: the same; names may end in ``_seg``, ``_labels``, ``_mask``.

    Raises:
        MissingPathError: nothing there.
        InputError: an image without labels, or the reverse.
    """
    pictures, drawn = _files(images), _files(labels)
    if len(pictures) == len(drawn) == 1:
        (name, image), (_, label) = *pictures.items(), *drawn.items()
        return (Case(name, image, label),)
    alone = sorted({*pictures} ^ {*drawn})
    if alone:
        raise InputError(
            f"{len(alone)} of {len({*pictures, *drawn})} names have no partner: "
            + ", ".join(alone[:5]),
            hint="an image and its labels have the same name; labels may end in _seg, _labels or"
            " _mask",
        )
    return tuple(Case(name, pictures[name], drawn[name]) for name in sorted(pictures))


def export_nnunet(
    cases: Sequence[Case],
    folder: Path,
    options: ExportOptions | None = None,
    sink: ProgressSink | None = None,
) -> Exported:
    """Write a data set.

    Args:
        cases: images and labels.
        folder: ``.../nnUNet_raw/DatasetXXX_Name``.
        options: names, ignore label, spacing.
        sink: progress and cancellation; a cancelled export leaves nothing.

    Raises:
        InputError: a folder of another name, labels or channels that do not fit.
        GeometryError: labels that do not lie on their image.
        OutputExistsError: something is there already.
        StorageError: it cannot be written.
    """
    options, sink = options or ExportOptions(), sink or SilentSink()
    if not _FOLDER_NAME.fullmatch(folder.name):
        raise InputError(
            f"{folder.name!r} is no name of an nnU-Net data set",
            hint="call it DatasetXXX_Name, with three digits, such as Dataset101_Membranes",
        )
    if folder.exists() and not options.overwrite:
        raise OutputExistsError(f"{folder} is already there", hint="use --overwrite to replace it")
    opened = [_open(case, options) for case in cases]
    channels = _channels(opened[0][0], options)
    unit = opened[0][0].spacing.unit
    values, names = _values(cases, opened, options, sink)
    partial = folder.with_name(f".{folder.name}.partial")
    with storage_errors(folder):
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "imagesTr").mkdir(parents=True)
        (partial / "labelsTr").mkdir()
    try:
        for number, (case, (image, labels)) in enumerate(zip(cases, opened, strict=True)):
            sink.check()
            _check_channels(case, image, channels)
            _write(partial, case, _in_unit(image, unit, case), labels, values)
            sink.emit(Progress("writing cases", number + 1, len(cases), "cases"))
        document = _document(channels, names, len(cases), unit)
        with storage_errors(folder):
            (partial / "dataset.json").write_text(json.dumps(document, indent=2), "utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Exported(folder, len(cases), names, values, unit)


# --- Finding ------------------------------------------------------------------------------------


def _files(path: Path) -> dict[str, Path]:
    if not path.exists():
        raise MissingPathError(f"there is nothing at {path}")
    if path.is_file() or _is_image(path):
        return {_name(path): path}
    found: dict[str, Path] = {}
    for child in sorted(path.iterdir()):
        if child.name.startswith(".") or not _is_image(child):
            continue
        name = _name(child)
        if name in found:
            raise InputError(f"{found[name]} and {child} would both be the case {name!r}")
        found[name] = child
    if not found:
        raise InputError(f"{path} holds no file that can be read", hint="see `lamella info`")
    return found


def _is_image(path: Path) -> bool:
    if path.is_dir() and not path.name.endswith((".zarr", ".n5")):
        return False
    try:
        find_reader(path, OpenOptions())
    except InputError:
        return False
    return True


def _name(path: Path) -> str:
    stem = path.name
    while "." in stem:
        stem = stem.rpartition(".")[0]
    stem = _LABEL_ENDINGS.sub("", _CHANNEL_ENDING.sub("", stem))
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem) or "case"


# --- Checking -----------------------------------------------------------------------------------


def _open(case: Case, options: ExportOptions) -> tuple[Volume, Labels]:
    given = OpenOptions(spacing=options.spacing)
    image, labels = open_volume(case.image, given), open_labels(case.labels, given)
    if "t" in image.axes and image.shape[image.axes.index("t")] == 1:
        image = image.select("t", 0)
    if "t" in image.axes:
        raise InputError(
            f"{case.image} has several time points", hint="convert each one with --time first"
        )
    if image.spatial_shape != labels.spatial_shape:
        raise GeometryError(
            f"{case.labels} has the shape {labels.spatial_shape}, its image {case.image}"
            f" {image.spatial_shape}",
            hint="labels must be drawn on the very image they belong to",
        )
    if labels.spacing.is_calibrated and not _same_spacing(image, labels):
        raise GeometryError(
            f"{case.labels} has the spacing {labels.spacing}, its image {case.image}"
            f" {image.spacing}",
            hint="set the true one for all with --spacing z,y,x --unit U",
        )
    return image, labels


def _same_spacing(image: Volume, labels: Volume) -> bool:
    if not image.spacing.is_calibrated:
        return False
    return bool(
        np.allclose(labels.spacing.to(image.spacing.unit).values, image.spacing.values, rtol=1e-3)
    )


def _channels(image: Volume, options: ExportOptions) -> tuple[str, ...]:
    n = image.n_channels
    if not options.channels:
        return tuple(f"channel {i}" for i in range(n)) if n > 1 else ("image",)
    if len(options.channels) != n:
        raise InputError(
            f"{len(options.channels)} channel name(s) for images of {n} channel(s)",
            hint="give one --channel-name for each, in order",
        )
    return options.channels


def _check_channels(case: Case, image: Volume, channels: tuple[str, ...]) -> None:
    if image.n_channels != len(channels):
        raise InputError(
            f"{case.image} has {image.n_channels} channel(s), the first image {len(channels)}",
            hint="all images of a data set have the same channels",
        )


def _values(
    cases: Sequence[Case],
    opened: Sequence[tuple[Volume, Labels]],
    options: ExportOptions,
    sink: ProgressSink,
) -> tuple[dict[int, int], dict[str, int]]:
    """Value in the data set by value in the files, and by name."""
    found: set[int] = {0}
    for number, (case, (_, labels)) in enumerate(zip(cases, opened, strict=True)):
        sink.check()
        if labels.is_instance:
            raise InputError(
                f"{case.labels} holds objects, not classes",
                hint="nnU-Net learns classes: export the semantic labels",
            )
        for _, slab in iter_slabs(labels.data):
            found.update(int(value) for value in np.unique(slab))
        sink.emit(Progress("looking at labels", number + 1, len(cases), "cases"))
    if min(found) < 0:
        raise InputError(f"labels go down to {min(found)}", hint="map negative labels first")
    known = {one.value: one.name for _, labels in opened for one in labels.classes}
    known |= dict(options.classes or {})
    classes = sorted(({*known} | found) - {0, options.ignore})
    if not classes:
        raise InputError("the labels hold background only", hint="check LABELS with `lamella info`")
    values = {0: 0} | {value: index + 1 for index, value in enumerate(classes)}
    names = {"background": 0}
    for value in classes:
        name = known.get(value, f"class {value}")
        if name in names or name == "ignore":
            raise InputError(f"two labels are called {name!r}", hint="name them with --class")
        names[name] = values[value]
    if options.ignore is not None:
        values[options.ignore] = names["ignore"] = len(classes) + 1
    return values, names


def _in_unit(image: Volume, unit: Unit, case: Case) -> Volume:
    """The image with its spacing in the unit of the data set."""
    if image.spacing.unit == unit:
        return image
    if unit == "voxel" or not image.spacing.is_calibrated:
        raise InputError(
            f"{case.image} has the spacing {image.spacing}, the first image one in {unit}",
            hint="set it for all with --spacing z,y,x --unit U",
        )
    affine = image.affine.with_spacing(image.spacing.to(unit).values)
    return replace(image, affine=affine, unit=unit, levels=())


# --- Writing ------------------------------------------------------------------------------------


def _write(
    folder: Path, case: Case, image: Volume, labels: Labels, values: Mapping[int, int]
) -> None:
    for channel in range(image.n_channels):
        one = image.select("c", channel) if "c" in image.axes else image
        _check_finite(one, case)
        # The number itself, whatever its unit: that is what nnU-Net compares.
        plain = replace(one, unit="mm", levels=(), notes=())
        if plain.dtype == np.bool_ or plain.dtype.itemsize == 8 or plain.dtype == np.float16:
            plain = replace(plain, data=_converted(plain.data, np.float32))
        name = f"{case.name}_{channel:04d}.nii.gz"
        save_volume(plain, folder / "imagesTr" / name, SaveOptions())
    kind: Any = np.uint8 if max(values.values()) <= 255 else np.uint16
    drawn = Labels(
        data=_mapped(labels.data, values, kind),
        axes=labels.axes,
        affine=image.affine,
        unit="mm",
        name="labels",
    )
    save_volume(drawn, folder / "labelsTr" / f"{case.name}.nii.gz", SaveOptions())


def _check_finite(image: Volume, case: Case) -> None:
    if image.dtype.kind != "f":
        return
    for _, slab in iter_slabs(image.data):
        if not np.isfinite(slab).all():
            raise InputError(
                f"{case.image} holds NaN or infinite voxels, which nnU-Net refuses",
                hint="replace them by the mean of the others first",
            )


def _converted(source: Any, kind: Any) -> FunctionArray:
    return FunctionArray(
        source.shape, np.dtype(kind), lambda slices: np.asarray(source[slices]).astype(kind)
    )


def _mapped(source: Any, values: Mapping[int, int], kind: Any) -> FunctionArray:
    before = np.array(sorted(values))
    after = np.array([values[int(value)] for value in before], kind)

    def read(slices: tuple[slice, ...]) -> NDArray[Any]:
        return after[np.searchsorted(before, np.asarray(source[slices]))]

    return FunctionArray(source.shape, np.dtype(kind), read)


def _document(
    channels: tuple[str, ...], names: Mapping[str, int], n_cases: int, unit: Unit
) -> dict[str, Any]:
    return {
        "channel_names": {str(i): name for i, name in enumerate(channels)},
        "labels": dict(names),
        "numTraining": n_cases,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
        SPACING_UNIT_KEY: unit,
    }
