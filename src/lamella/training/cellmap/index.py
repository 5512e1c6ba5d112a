"""What a folder of CellMap data holds: data sets, crops, classes, levels, and what is odd.

::

    ROOT/DATASET/DATASET.zarr/recon-1/em/fibsem-uint8/sN            raw data
                                      labels/groundtruth/cropN/CLASS/sM

A class of a crop is *present* (annotated, some voxels), *absent* (annotated, none) or *unknown* (no
array: nobody looked). Numbers of levels mean nothing across arrays; everything is in nanometres.
Source: the challenge's layout, see :mod:`lamella.training.cellmap.classes`.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lamella.core.errors import InputError, LamellaError
from lamella.core.progress import Progress, SilentSink
from lamella.training.cellmap.classes import ClassTable
from lamella.training.cellmap.grid import choose_level
from lamella.training.cellmap.tree import Level, Tree
from lamella.training.cellmap.view import Chunks

if TYPE_CHECKING:
    from lamella.core.progress import ProgressSink
    from lamella.training.cellmap.grid import Triple

__all__ = [
    "CellmapIndex",
    "ClassOfCrop",
    "Crop",
    "DataSet",
    "Finding",
    "crop_order",
    "find_data_sets",
    "find_raw",
    "finest_first",
    "index_cellmap",
]

Status = Literal["present", "absent"]
RAW = "em"
GROUND_TRUTH = "labels/groundtruth"
MERGED = "all"
"""An array beside the classes of a crop that holds them all as one label image."""
MASK_SUFFIX = "_mask"
"""Ends the name of an array that says where a class was annotated well enough to be scored."""
_PREFERRED_RAW = "fibsem-uint8"
_N_THREADS = 16


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a user should know: a stable code, where, and a sentence."""

    code: str
    path: str
    message: str


@dataclass(frozen=True, slots=True)
class ClassOfCrop:
    """An annotated class of a crop.

    Attributes:
        name: of the class.
        status: ``present`` or ``absent``.
        levels: finest first.
    """

    name: str
    status: Status
    levels: tuple[Level, ...]


@dataclass(frozen=True, slots=True)
class Crop:
    """An annotated block.

    Attributes:
        name: such as ``"crop234"``.
        classes: annotated ones, by name.
        low: lower border of the finest labels, nm, (z, y, x).
        high: upper border, nm.
        raw_missing: for each raw level, chunks the crop touches that were not fetched.
        raw_chunks: for each raw level, chunks the crop touches.
    """

    name: str
    classes: tuple[ClassOfCrop, ...]
    low: Triple
    high: Triple
    raw_missing: tuple[int, ...]
    raw_chunks: tuple[int, ...]

    def status(self, name: str) -> str:
        """``present``, ``absent`` or ``unknown``."""
        for known in self.classes:
            if known.name == name:
                return known.status
        return "unknown"


@dataclass(frozen=True, slots=True)
class DataSet:
    """One volume with its crops.

    Attributes:
        name: of the specimen's data set.
        path: of ``recon-1``, from the root.
        raw: levels of the raw data, finest first; none where they were not fetched.
        crops: by number.
    """

    name: str
    path: str
    raw: tuple[Level, ...]
    crops: tuple[Crop, ...]


@dataclass(frozen=True, slots=True)
class CellmapIndex:
    """Everything below one root."""

    root: str
    data_sets: tuple[DataSet, ...]
    findings: tuple[Finding, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes that are annotated somewhere, in the order of the table, others behind."""
        found = {c.name for d in self.data_sets for crop in d.crops for c in crop.classes}
        table = ClassTable.read()
        return (*(name for name in table if name in found), *sorted(found - set(table)))

    def to_dict(self, *, spacing: Triple | None = None) -> dict[str, Any]:
        """JSON values.

        Args:
            spacing: nm; adds which level of raw data and labels is nearest to it.
        """
        names = self.class_names
        return {
            "root": self.root,
            "unit": "nm",
            "classes": list(names),
            "data_sets": [
                {
                    "name": known.name,
                    "path": known.path,
                    "raw": [_level_dict(level) for level in known.raw],
                    "raw_choice": _choice(known.raw, spacing),
                    "crops": [_crop_dict(crop, names, spacing) for crop in known.crops],
                }
                for known in self.data_sets
            ],
            "findings": [asdict(finding) for finding in self.findings],
        }


def index_cellmap(root: str, *, sink: ProgressSink | None = None) -> CellmapIndex:
    """Look at everything below a root.

    Of labels only chunks that are stored are read, and only until a voxel is found.

    Args:
        root: folder or address with one folder a data set; or one data set's folder or zarr.
        sink: progress and cancellation.

    Raises:
        MissingPathError: nothing there.
        InputError: no CellMap data there.
    """
    listener = sink or SilentSink()
    tree = Tree.open(root)
    places = find_data_sets(tree)
    if not places:
        raise InputError(
            f"{root} holds no CellMap data",
            hint="give the folder that holds DATASET/DATASET.zarr/recon-1/labels/groundtruth",
        )
    findings: list[Finding] = []
    crops = [
        (name, path, crop)
        for name, path in places
        for crop in sorted(tree.folders(f"{path}/{GROUND_TRUTH}"), key=crop_order)
    ]
    made: dict[str, list[Crop]] = {path: [] for _, path in places}
    raws = {path: find_raw(tree, path, findings) for _, path in places}
    chunks = Chunks(tree)
    for done, (_, path, name) in enumerate(crops):
        listener.check()
        listener.emit(Progress("looking at crops", done, len(crops), "crops"))
        crop = _crop(tree, f"{path}/{GROUND_TRUTH}/{name}", raws[path], chunks, findings)
        if crop is not None:
            made[path].append(crop)
    listener.emit(Progress("looking at crops", len(crops), len(crops), "crops"))
    data_sets = tuple(DataSet(n, path, raws[path], tuple(made[path])) for n, path in places)
    return CellmapIndex(root, data_sets, tuple(findings))


def find_data_sets(tree: Tree) -> list[tuple[str, str]]:
    """Name and path of ``recon-1`` of every data set."""
    base = tree.base.rsplit("/", 1)[-1]
    candidates = [(base.removesuffix(".zarr"), "recon-1")]
    for name in tree.folders():
        if name.endswith(".zarr"):
            candidates.append((name.removesuffix(".zarr"), f"{name}/recon-1"))
        else:
            candidates.append((name, f"{name}/{name}.zarr/recon-1"))

    def has_data(candidate: tuple[str, str]) -> bool:
        path = candidate[1]
        return bool(tree.folders(f"{path}/{GROUND_TRUTH}") or tree.folders(f"{path}/{RAW}"))

    # In a bucket every look is a journey; there are a hundred data sets.
    with ThreadPoolExecutor(_N_THREADS) as pool:
        found = list(pool.map(has_data, candidates))
    return [known for known, is_there in zip(candidates, found, strict=True) if is_there]


def find_raw(tree: Tree, path: str, findings: list[Finding]) -> tuple[Level, ...]:
    """Levels of a data set's raw data, finest first; a finding says why there are none."""
    names = tree.folders(f"{path}/{RAW}")
    names.sort(key=lambda name: name != _PREFERRED_RAW)
    for name in names:
        try:
            levels = tree.levels(f"{path}/{RAW}/{name}")
        except LamellaError as error:
            findings.append(Finding("raw_unreadable", f"{path}/{RAW}/{name}", error.message))
            continue
        if levels:
            return finest_first(levels)
    findings.append(Finding("no_raw", path, "no raw data were fetched: its crops cannot be used"))
    return ()


def _crop(
    tree: Tree,
    path: str,
    raw: tuple[Level, ...],
    chunks: Chunks,
    findings: list[Finding],
) -> Crop | None:
    table = ClassTable.read()
    classes: list[ClassOfCrop] = []
    for name in tree.folders(path):
        if name == MERGED or name.endswith(MASK_SUFFIX):
            continue
        if name not in table:
            findings.append(
                Finding("unknown_class", f"{path}/{name}", f"{name!r} is no class of the challenge")
            )
        known = _class(tree, f"{path}/{name}", name, findings)
        if known is not None:
            classes.append(known)
    if not classes:
        findings.append(Finding("empty_crop", path, "no class of this crop can be read"))
        return None
    finest = min((c.levels[0].grid for c in classes), key=lambda grid: grid.spacing)
    spacings = {c.levels[0].grid.spacing for c in classes}
    if len(spacings) > 1:
        findings.append(
            Finding("mixed_voxel_sizes", path, f"classes have voxels of {sorted(spacings)} nm")
        )
    boxes = [level.grid.box_around(finest).clamp(level.grid.shape) for level in raw]
    if raw and not raw[0].grid.holds(finest):
        findings.append(
            Finding(
                "crop_outside_raw",
                path,
                f"the crop spans {_span(finest.low, finest.high)}, the raw data"
                f" {_span(raw[0].grid.low, raw[0].grid.high)}",
            )
        )
    return Crop(
        path.rsplit("/", 1)[-1],
        tuple(classes),
        finest.low,
        finest.high,
        tuple(len(chunks.missing(level, box)) for level, box in zip(raw, boxes, strict=True)),
        tuple(chunks.count(level, box) for level, box in zip(raw, boxes, strict=True)),
    )


def _class(tree: Tree, path: str, name: str, findings: list[Finding]) -> ClassOfCrop | None:
    try:
        levels = tree.levels(path)
        if not levels:
            findings.append(Finding("no_levels", path, "no level of this class was fetched"))
            return None
        levels = finest_first(levels)
        status: Status = "present" if _has_voxels(tree, levels[0]) else "absent"
    except LamellaError as error:
        findings.append(Finding("class_unreadable", path, error.message))
        return None
    return ClassOfCrop(name, status, levels)


def _has_voxels(tree: Tree, level: Level) -> bool:
    array = tree.open_array(level.path)
    stored = _all_chunks(level) - tree.missing_chunks(level)
    if array.fill_value and len(stored) < len(_all_chunks(level)):
        return True
    for chunk in sorted(stored):
        slices = tuple(
            slice(i * c, min((i + 1) * c, n))
            for i, c, n in zip(chunk, level.chunks, level.grid.shape, strict=True)
        )
        try:
            if np.any(array[slices]):
                return True
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(
                f"chunk {'.'.join(map(str, chunk))} of {level.path} cannot be decoded: {error}",
                hint="fetch it again",
            ) from None
    return False


def _all_chunks(level: Level) -> set[tuple[int, ...]]:
    counts = [-(-n // c) for n, c in zip(level.grid.shape, level.chunks, strict=True)]
    return set(itertools.product(*(range(count) for count in counts)))


def finest_first(levels: tuple[Level, ...]) -> tuple[Level, ...]:
    """Levels by the volume of their voxels."""
    return tuple(sorted(levels, key=lambda level: float(np.prod(level.grid.spacing))))


def crop_order(name: str) -> tuple[int, str]:
    """A key that sorts crops by number."""
    number = name.removeprefix("crop")
    return (int(number) if number.isdigit() else 10**9, name)


def _span(low: Triple, high: Triple) -> str:
    return " x ".join(f"{a:.6g}..{b:.6g}" for a, b in zip(low, high, strict=True)) + " nm"


def _level_dict(level: Level) -> dict[str, Any]:
    return {
        "path": level.path,
        "shape": list(level.grid.shape),
        "spacing": list(level.grid.spacing),
        "origin": list(level.grid.origin),
        "dtype": level.dtype,
        "chunks": list(level.chunks),
    }


def _choice(levels: tuple[Level, ...], spacing: Triple | None) -> dict[str, Any] | None:
    if spacing is None or not levels:
        return None
    choice = choose_level([level.grid.spacing for level in levels], spacing)
    return {
        "path": levels[choice.index].path,
        "ratio": list(choice.ratio),
        "is_resampled_far": choice.is_far,
    }


def _crop_dict(crop: Crop, names: tuple[str, ...], spacing: Triple | None) -> dict[str, Any]:
    return {
        "name": crop.name,
        "low": list(crop.low),
        "high": list(crop.high),
        "classes": {
            known.name: {
                "status": known.status,
                "levels": [_level_dict(level) for level in known.levels],
                "choice": _choice(known.levels, spacing),
            }
            for known in crop.classes
        },
        "present": [c.name for c in crop.classes if c.status == "present"],
        "absent": [c.name for c in crop.classes if c.status == "absent"],
        "unknown": [name for name in names if crop.status(name) == "unknown"],
        "raw_chunks": list(crop.raw_chunks),
        "raw_chunks_missing": list(crop.raw_missing),
    }
