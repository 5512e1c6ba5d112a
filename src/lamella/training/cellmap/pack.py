"""A submission: every wanted class of every crop in one zipped zarr v2 group.

::

    submission.zarr.zip
    └── submission.zarr/cropN/CLASS     zarr v2, attributes voxel_size and translation (z, y, x, nm)

Labels are brought to the wanted grid, so that what is sent is what is scored. Ids keep 32 bits (or
64) where they need them: eight wrap at 256. Everything is checked, and every problem told at once,
before anything is written.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import InputError, LamellaError, OutputExistsError
from lamella.core.progress import Progress, SilentSink
from lamella.io.format import storage_errors
from lamella.training.cellmap.aligned import align
from lamella.training.cellmap.classes import ClassTable
from lamella.training.cellmap.predictions import PredictedLabels, find_prediction
from lamella.training.cellmap.tree import Tree

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.core.progress import ProgressSink
    from lamella.training.cellmap.manifest import WantedLabel

__all__ = ["Submission", "pack_submission"]

GROUP = "submission.zarr"
CHUNK = 128


@dataclass(frozen=True, slots=True)
class Submission:
    """What was packed.

    Attributes:
        path: the zip file.
        n_labels: classes of crops in it.
        missing: wanted ones that were not predicted, as ``cropN/CLASS``; each will score 0.
        empty: those without a single voxel.
        n_bytes: size of the file.
    """

    path: Path
    n_labels: int
    missing: tuple[str, ...]
    empty: tuple[str, ...]
    n_bytes: int


def pack_submission(
    predictions: str,
    wanted: Sequence[WantedLabel],
    target: Path,
    *,
    allow_missing: bool = False,
    overwrite: bool = False,
    sink: ProgressSink | None = None,
) -> Submission:
    """Pack predictions.

    Args:
        predictions: folder or address, see :mod:`lamella.training.cellmap.predictions`.
        wanted: what the challenge asks for, from its manifest of test crops.
        target: zip file to write; it appears when it is complete.
        allow_missing: leave out what was not predicted instead of refusing.
        overwrite: replace the target.
        sink: progress and cancellation.

    Raises:
        InputError: with everything that is missing or does not fit.
        OutputExistsError: the target is there.
        StorageError: the disk is full.
    """
    listener = sink or SilentSink()
    if target.exists() and not overwrite:
        raise OutputExistsError(f"{target} is there already", hint="use --overwrite to replace it")
    found, missing = _find_all(Tree.open(predictions), wanted, listener)
    names = tuple(f"{label.crop}/{label.name}" for label in missing)
    if not found or (missing and not allow_missing):
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise InputError(
            f"{len(names)} of {len(wanted)} classes of crops were not predicted: {shown}",
            hint="predict them, or pack without them by --allow-missing: each scores 0"
            if found
            else "expected DATASET.zarr/cropN/CLASS or cropN/CLASS",
            details={"missing": list(names)},
        )
    empty = []
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            prefix=f".{target.name}-", dir=target.parent, delete=False
        ) as stream:
            part = Path(stream.name)
        try:
            with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
                _write_text(archive, f"{GROUP}/.zgroup", {"zarr_format": 2})
                for crop in sorted({label.crop for label, _ in found}):
                    _write_text(archive, f"{GROUP}/{crop}/.zgroup", {"zarr_format": 2})
                for done, (label, known) in enumerate(found):
                    listener.check()
                    listener.emit(Progress("packing", done, len(found), "classes of crops"))
                    if not _write(archive, label, known):
                        empty.append(f"{label.crop}/{label.name}")
            part.chmod(0o644)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    listener.emit(Progress("packing", len(found), len(found), "classes of crops"))
    return Submission(target, len(found), names, tuple(empty), target.stat().st_size)


def _find_all(
    tree: Tree, wanted: Sequence[WantedLabel], sink: ProgressSink
) -> tuple[list[tuple[WantedLabel, PredictedLabels]], list[WantedLabel]]:
    found: list[tuple[WantedLabel, PredictedLabels]] = []
    missing: list[WantedLabel] = []
    problems: list[str] = []
    for label in wanted:
        sink.check()
        try:
            known = find_prediction(tree, label)
        except LamellaError as error:
            problems.append(error.message)
            continue
        if known is None:
            missing.append(label)
            continue
        problems.extend(_misfits(label, known))
        found.append((label, known))
    if problems:
        raise InputError(
            f"{len(problems)} predictions cannot be packed: " + "; ".join(problems[:3]),
            hint="correct them; nothing was written",
            details={"problems": problems},
        )
    return found, missing


def _misfits(label: WantedLabel, known: PredictedLabels) -> list[str]:
    is_instance = label.name in (table := ClassTable.read()) and table[label.name].is_instance
    if is_instance and np.dtype(known.array.dtype).kind == "f":
        return [f"{known.path} holds {known.array.dtype}, expected the ids of instances"]
    overlaps = all(
        a < d and c < b
        for a, b, c, d in zip(
            label.grid.low, label.grid.high, known.grid.low, known.grid.high, strict=True
        )
    )
    if not overlaps:
        return [f"{known.path} lies beside {label.crop}: check its translation (nm)"]
    return []


def _write(archive: zipfile.ZipFile, label: WantedLabel, known: PredictedLabels) -> bool:
    """Write one class, a layer of chunks at a time; False when it has no voxels."""
    from numcodecs import Zlib

    table = ClassTable.read()
    is_instance = label.name in table and table[label.name].is_instance
    dtype = _id_dtype(label, known) if is_instance else np.dtype(np.uint8)
    base = f"{GROUP}/{label.crop}/{label.name}"
    codec = Zlib(level=5)
    shape = label.grid.shape
    chunks = tuple(min(CHUNK, n) for n in shape)
    document = {
        "zarr_format": 2, "shape": list(shape), "chunks": list(chunks), "dtype": dtype.str,
        "compressor": codec.get_config(), "fill_value": 0, "order": "C", "filters": None,
        "dimension_separator": ".",
    }  # fmt: skip
    attributes = {
        "voxel_size": list(label.grid.spacing),
        "translation": list(label.grid.origin),
        "shape": list(shape),
    }
    _write_text(archive, f"{base}/.zarray", document)
    _write_text(archive, f"{base}/.zattrs", attributes)
    has_voxels = False
    for z, slab in enumerate(_slabs(label, known, chunks[0], is_instance=is_instance)):
        for y, x in np.ndindex(*(-(-n // c) for n, c in zip(shape[1:], chunks[1:], strict=True))):
            block = slab[
                :, y * chunks[1] : (y + 1) * chunks[1], x * chunks[2] : (x + 1) * chunks[2]
            ]
            if not block.any():
                continue
            has_voxels = True
            full = np.zeros(chunks, dtype)
            full[tuple(slice(0, n) for n in block.shape)] = block
            archive.writestr(_entry(f"{base}/{z}.{y}.{x}"), bytes(codec.encode(full)))
    return has_voxels


def _slabs(
    label: WantedLabel, known: PredictedLabels, depth: int, *, is_instance: bool
) -> Iterator[NDArray[Any]]:
    """The labels on the wanted grid, ``depth`` layers at a time."""
    for start in range(0, label.grid.shape[0], depth):
        part = label.grid.slab(start, min(start + depth, label.grid.shape[0]))
        yield align(known.array, known.grid, part, is_instance=is_instance)


def _id_dtype(label: WantedLabel, known: PredictedLabels) -> np.dtype[Any]:
    """The smallest type that holds every id, never below 16 bits."""
    slabs = _slabs(label, known, CHUNK, is_instance=True)
    largest = max(int(slab.max(initial=0)) for slab in slabs)
    fits = (t for t in (np.uint16, np.uint32, np.uint64) if largest <= np.iinfo(t).max)
    return np.dtype(next(fits))


def _write_text(archive: zipfile.ZipFile, name: str, document: dict[str, Any]) -> None:
    archive.writestr(_entry(name), json.dumps(document))


def _entry(name: str) -> zipfile.ZipInfo:
    # One date for all: the same predictions give the same file.
    return zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
