"""The crops of a root as a training sees them: names and grids at once, voxels when needed.

An index (:mod:`lamella.training.cellmap.index`) reads labels to say what is present; for hundreds
of crops and tens of classes that takes minutes. A training needs to know only which classes have
an array and where the crops lie, which a few small files of each crop tell.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from lamella.core.errors import InputError, LamellaError
from lamella.training.cellmap.classes import ClassTable
from lamella.training.cellmap.index import (
    GROUND_TRUTH,
    MASK_SUFFIX,
    MERGED,
    crop_order,
    find_data_sets,
    find_raw,
    finest_first,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lamella.training.cellmap.grid import Grid
    from lamella.training.cellmap.index import Finding
    from lamella.training.cellmap.tree import Level, Tree

__all__ = ["CropPlace", "Survey", "survey_crops"]

_N_THREADS = 16
"""Files are tiny and, in a bucket, far away."""


@dataclass(frozen=True, slots=True)
class CropPlace:
    """Where a crop lies and what was annotated in it.

    Attributes:
        data_set: its name.
        name: such as ``"crop234"``.
        path: of the crop's folder, from the root.
        raw: levels of the data set's raw data, finest first.
        annotated: names of the classes that have an array, of the table alone.
        levels: of the classes that were looked at, finest first.
    """

    data_set: str
    name: str
    path: str
    raw: tuple[Level, ...]
    annotated: tuple[str, ...]
    levels: Mapping[str, tuple[Level, ...]]

    @property
    def key(self) -> str:
        """Name that no other crop of the root has."""
        return f"{self.data_set}/{self.name}"

    @property
    def extent(self) -> Grid:
        """The finest grid among the labels that were looked at."""
        grids = (levels[0].grid for levels in self.levels.values())
        return min(grids, key=lambda grid: grid.spacing)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of geometry and classes, hex."""
        text = repr((self.annotated, sorted(self.levels.items()), self.raw))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found, and what was left out and why."""

    crops: tuple[CropPlace, ...]
    warnings: tuple[str, ...]


def survey_crops(
    tree: Tree,
    *,
    wanted: Sequence[str],
    data_sets: Sequence[str] = (),
    crops: Sequence[str] = (),
) -> Survey:
    """Find crops in which anything of the wanted classes may be known.

    Args:
        tree: of the root.
        wanted: classes that are learnt; the geometry of these is read.
        data_sets: patterns of data sets; empty: all.
        crops: patterns of crops (``crop234``, or ``DATASET/crop234``); empty: all.

    Raises:
        InputError: nothing is left.
    """
    table = ClassTable.read()
    for name in wanted:
        _ = table[name]  # says which names there are
    found = [(name, path) for name, path in find_data_sets(tree) if _matches(data_sets, name)]
    findings: list[Finding] = []
    warnings: list[str] = []
    places: list[tuple[str, str, tuple[Level, ...]]] = []
    with ThreadPoolExecutor(_N_THREADS) as pool:
        listed = pool.map(lambda known: _list_crops(tree, known[1]), found)
        for (name, path), names in zip(found, listed, strict=True):
            chosen = [n for n in names if _matches(crops, n, f"{name}/{n}")]
            raw = find_raw(tree, path, findings) if chosen else ()
            if raw:
                places += [(name, f"{path}/{GROUND_TRUTH}/{crop}", raw) for crop in chosen]
        warnings += [f"{finding.path}: {finding.message}" for finding in findings]
        looked = pool.map(lambda at: _look(tree, at[0], at[1], at[2], wanted), places)
        results = list(looked)
    kept = []
    for place, complaints in results:
        warnings += complaints
        if place is not None:
            kept.append(place)
    if not kept:
        raise _nothing_left(tree, found, places, warnings)
    return Survey(tuple(kept), tuple(warnings))


def _list_crops(tree: Tree, path: str) -> list[str]:
    return sorted(tree.folders(f"{path}/{GROUND_TRUTH}"), key=crop_order)


def _look(
    tree: Tree, data_set: str, path: str, raw: tuple[Level, ...], wanted: Sequence[str]
) -> tuple[CropPlace | None, list[str]]:
    """The crop, None where nothing of it can be used, and what is wrong with it."""
    table = ClassTable.read()
    names = [
        name
        for name in tree.folders(path)
        if name != MERGED and not name.endswith(MASK_SUFFIX) and name in table
    ]
    complaints: list[str] = []
    levels: dict[str, tuple[Level, ...]] = {}
    bad: set[str] = set()
    for name in [n for n in names if n in wanted]:
        _read_levels(tree, path, name, levels, bad, complaints)
    for name in names:
        if levels:
            break
        _read_levels(tree, path, name, levels, bad, complaints)
    annotated = tuple(name for name in names if name not in bad)
    if not levels:
        if not complaints:
            complaints.append(f"{path}: no class of this crop can be read; it is left out")
        return None, complaints
    place = CropPlace(data_set, path.rsplit("/", 1)[-1], path, raw, annotated, levels)
    return place, complaints


def _read_levels(
    tree: Tree,
    path: str,
    name: str,
    levels: dict[str, tuple[Level, ...]],
    bad: set[str],
    complaints: list[str],
) -> None:
    if name in levels or name in bad:
        return
    try:
        found = tree.levels(f"{path}/{name}")
    except LamellaError as error:
        bad.add(name)
        complaints.append(f"{error.message}; this class of the crop is left out")
        return
    if found:
        levels[name] = finest_first(found)
    else:
        bad.add(name)
        complaints.append(f"{path}/{name}: no level was fetched; this class is left out")


def _matches(patterns: Sequence[str], *names: str) -> bool:
    return not patterns or any(fnmatchcase(n, p) for p in patterns for n in names)


def _nothing_left(
    tree: Tree, found: Sequence[object], places: Sequence[object], warnings: Sequence[str]
) -> InputError:
    details = {"warnings": list(warnings)}
    if not found:
        return InputError(
            f"{tree.address} holds no CellMap data that are wanted",
            hint="data.root is the folder that holds DATASET/DATASET.zarr/recon-1; data.data_sets"
            " are patterns of the names of data sets",
            details=details,
        )
    reason = f": {warnings[0]}" if warnings else ""
    if not places:
        return InputError(
            f"no crop below {tree.address} is left{reason}",
            hint="fetch raw data and labels, and look at data.crops: patterns such as crop234",
            details=details,
        )
    return InputError(
        f"none of {len(places)} crops below {tree.address} can be used{reason}",
        hint="`lamella cellmap index` lists what is wrong with each",
        details=details,
    )
