"""From an engine's labels to the run's labels and its numbered objects, on disk all the way.

What an engine found is cleaned (holes, small objects, all but the largest) and its objects are
numbered. Components, holes, sizes, filters and linking go slab by slab in flat memory; only the
watershed needs the whole volume at once, and is refused beforehand where it does not fit.

The engine's own labels are kept as ``engine.ome.zarr`` whenever the result differs from them, so a
run that stops here goes on here.
"""

import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import InputError
from lamella.core.memory import available_bytes
from lamella.core.progress import Progress, ProgressSink
from lamella.io.format import open_labels, storage_errors
from lamella.volume.box import Box
from lamella.volume.labels import LabelClass, Labels
from lamella.volume.source import LazyArray
from lamella.volume.spacing import Size
from lamella.volume.volume import Volume
from lamella.wire.request import SegmentRequest
from lamella.workflows.linking import length_in, link_labels, wants_linking
from lamella.workflows.run_folder import RunFolder

__all__ = [
    "ObjectSet",
    "available_bytes",
    "check_memory",
    "check_sizes",
    "make_objects",
    "restore_engine_labels",
]

_SLAB_VOXELS = 2**24
_DENSE_IDS = 2**26
"""Ids below this are looked up in a table of their own size."""
_WHOLE_BYTES_PER_VOXEL = 24
"""What a watershed holds per voxel, all temporary arrays together."""


@dataclass(frozen=True, slots=True)
class ObjectSet:
    """Labels of a run and the objects in them.

    Attributes:
        labels: the result, on disk.
        ids: instance ids of the objects that are measured, on disk; the labels themselves for
            instances, None where every class is one object.
        class_of: class value by id, (max id + 1,); None where ids have no class of their own.
        n_objects: how many objects; classes present, where every class is one object.
        max_id: the largest value in ``labels``.
        n_foreground: voxels that are not background in ``labels``.
        columns: further numbers of the objects, by name, each indexed by the id in ``ids``.
        linking: how slices were linked and what came out; None where they were not.
    """

    labels: Labels
    ids: Labels | None
    class_of: NDArray[Any] | None
    n_objects: int
    max_id: int
    n_foreground: int
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict[str, NDArray[Any]])
    linking: Mapping[str, Any] | None = None


def check_memory(request: SegmentRequest, volume: Volume) -> None:
    """Refuse whole-volume steps that do not fit into memory, before anything runs.

    Raises:
        InputError: with the numbers and a way out.
    """
    if request.instances != "watershed":
        return
    n_bytes = _WHOLE_BYTES_PER_VOXEL * math.prod(volume.spatial_shape)
    available = available_bytes()
    if available is not None and n_bytes > available:
        raise InputError(
            f"--instances watershed on {math.prod(volume.spatial_shape):.3g} voxels needs about"
            f" {n_bytes / 1e9:.0f} GB of memory; {available / 1e9:.0f} GB are free",
            hint="use --instances components, which needs little memory, or a cropped input",
        )


def check_sizes(request: SegmentRequest, volume: Volume) -> None:
    """Refuse sizes in a physical unit where nobody knows the spacing, before anything runs.

    Raises:
        GeometryError: with a way out.
    """
    if request.min_size is not None:
        Size(request.min_size.value, request.min_size.unit).to_voxels(volume.spacing)
    for length in (request.seed_distance, request.linking.max_centroid_distance):
        if length is not None:
            length_in(length.value, length.unit, volume)


def restore_engine_labels(folder: RunFolder) -> None:
    """Undo what an interrupted :func:`make_objects` left: the engine's labels are back in place."""
    with storage_errors(folder.path):
        _remove(folder.path / _STAGED)
        for leftover in folder.path.glob(".holes-*.partial"):
            _remove(leftover)
        _remove(folder.object_labels)
        if folder.engine_labels.exists():
            _remove(folder.labels)
            folder.engine_labels.rename(folder.labels)


def make_objects(
    folder: RunFolder,
    request: SegmentRequest,
    found: Labels,
    sink: ProgressSink,
    *,
    columns: Mapping[str, NDArray[Any]] | None = None,
    is_per_slice: bool = False,
) -> ObjectSet:
    """Clean labels, number their objects, and leave both on disk.

    Args:
        folder: holds the engine's labels as ``labels.ome.zarr``.
        request: which objects, which cleaning.
        found: the engine's labels.
        sink: progress and cancellation.
        columns: further numbers of the engine's instances, by the ids it gave.
        is_per_slice: whether the engine told objects apart within slices only; they are linked
            where the request asks for it.

    Raises:
        RunCancelledError: when cancelled; the engine's labels stay.
        StorageError: when the disk is full.
    """
    linked = None
    if wants_linking(request, found, is_per_slice=is_per_slice):
        _remove(folder.path / _STAGED)
        linked = link_labels(folder.path / _STAGED, found, request.linking, sink)
    with ExitStack() as stack:
        data: LazyArray = found.data if linked is None else linked.store.array
        if request.fill_holes:
            data = stack.enter_context(_without_holes(folder, data, sink))
        numbered = _number(folder, request, found, data, sink)
        if linked is not None and not request.fill_holes:
            numbered = replace(numbered, staged=linked.store)
        objects, old = _finished(folder, request, found, data, numbered, sink)
    if linked is not None:
        objects, columns = replace(objects, linking=linked.facts), linked.columns
    if not found.is_instance or not columns:
        return objects
    if old is None:
        return replace(objects, columns=dict(columns))
    return replace(objects, columns={name: _renumbered(v, old) for name, v in columns.items()})


@contextmanager
def _without_holes(folder: RunFolder, data: LazyArray, sink: ProgressSink) -> Iterator[LazyArray]:
    """Labels with their holes filled, lazy, in flat memory; scratch files beside the labels."""
    from lamella.instances import CleanOptions, clean_labels

    with tempfile.TemporaryDirectory(dir=folder.path, prefix=".holes-", suffix=".partial") as made:
        yield clean_labels(data, CleanOptions(fill_holes=True), scratch=made, sink=sink)


def _finished(
    folder: RunFolder,
    request: SegmentRequest,
    found: Labels,
    data: LazyArray,
    numbered: "_Numbered",
    sink: ProgressSink,
) -> tuple[ObjectSet, NDArray[Any] | None]:
    """Objects on disk, and the ids that they had before; None where those stay."""
    kept = _kept_ids(request, numbered, found, sink)
    is_changed = request.fill_holes or numbered.is_split or not kept.keeps_all
    if not is_changed and numbered.ids is None:
        total = _count_voxels(found.data, sink)
        return ObjectSet(found, None, None, len(total.ids), total.max_id, total.n_voxels), None
    if not is_changed and numbered.staged is None:
        # The engine's own instances, untouched.
        counts = kept.counts
        return ObjectSet(found, found, None, kept.n_kept, counts.max_id, counts.n_voxels), None
    objects = _store(folder, found, data, numbered, kept, sink)
    return objects, kept.counts.ids[kept.is_kept]


def _renumbered(values: NDArray[Any], old: NDArray[Any]) -> NDArray[np.float64]:
    """Numbers by new id (1..n), of numbers by old id; nan where the engine gave none."""
    result = np.full(len(old) + 1, np.nan)
    known = old < len(values)
    result[1:][known] = values[old[known]]
    return result


# --- Numbering ----------------------------------------------------------------------------------


_STAGED = ".staged.ome.zarr"


@dataclass(frozen=True, slots=True)
class _Numbered:
    """Provisional ids: None where every class is one object; in ``staged`` where on disk."""

    ids: LazyArray | None
    class_of: NDArray[Any] | None
    is_split: bool
    staged: Any = None


@dataclass(frozen=True, slots=True)
class _Counts:
    ids: NDArray[Any]
    sizes: NDArray[np.int64]

    @property
    def max_id(self) -> int:
        return int(self.ids[-1]) if len(self.ids) else 0

    @property
    def n_voxels(self) -> int:
        return int(self.sizes.sum())


@dataclass(frozen=True, slots=True)
class _Kept:
    counts: _Counts
    is_kept: NDArray[np.bool_]

    @property
    def keeps_all(self) -> bool:
        return bool(self.is_kept.all())

    @property
    def n_kept(self) -> int:
        return int(self.is_kept.sum())


def _number(
    folder: RunFolder, request: SegmentRequest, found: Labels, data: LazyArray, sink: ProgressSink
) -> _Numbered:
    is_filtered = request.min_size is not None or request.keep_largest
    if found.is_instance:
        return _Numbered(data, None, is_split=False)
    if request.instances == "none" and not is_filtered:
        return _Numbered(None, None, is_split=False)
    if request.instances == "watershed":
        ids, class_of = _watershed(request, found, np.asarray(data[...]), sink)
        return _Numbered(ids, class_of, is_split=True)
    from lamella.instances import label_components_blockwise

    staged: list[Any] = []

    def create(dtype: np.dtype[Any]) -> "_StoreWriter":
        from lamella.io.label_store import create_labels

        _remove(folder.path / _STAGED)
        store = create_labels(
            folder.path / _STAGED, like=found, dtype=dtype, classes=found.classes, is_instance=True
        )
        staged.append(store)
        return _StoreWriter(store)

    plane = max(1, math.prod(found.spatial_shape[1:]))
    count = label_components_blockwise(
        data, create, slab_depth=max(1, _SLAB_VOXELS // plane), sink=sink
    )
    is_split = request.instances == "components"
    return _Numbered(staged[0].array, count.classes, is_split=is_split, staged=staged[0])


def _watershed(
    request: SegmentRequest, found: Labels, classes: NDArray[Any], sink: ProgressSink
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Instances of every class by distance-transform watershed, numbered class after class."""
    from lamella.instances import WatershedOptions, watershed_instances

    distance = request.seed_distance
    options = WatershedOptions(
        min_seed_distance=None
        if distance is None
        else length_in(distance.value, distance.unit, found)
    )
    ids = np.zeros(classes.shape, np.uint32)
    class_of = [0]
    values = [int(value) for value in np.unique(classes) if value != 0]
    for done, value in enumerate(values):
        sink.check()
        sink.emit(Progress("watershed", done, len(values), "classes"))
        own = watershed_instances(classes == value, spacing=found.spacing.values, options=options)
        n = int(own.max(initial=0))
        ids = np.where(own > 0, own + np.uint32(len(class_of) - 1), ids)
        class_of.extend([value] * n)
    sink.emit(Progress("watershed", len(values), len(values), "classes"))
    return ids, np.array(class_of, classes.dtype)


# --- Filtering ----------------------------------------------------------------------------------


def _kept_ids(
    request: SegmentRequest, numbered: _Numbered, found: Labels, sink: ProgressSink
) -> _Kept:
    if numbered.ids is None:
        none = _Counts(np.zeros(0, np.int64), np.zeros(0, np.int64))
        return _Kept(none, np.zeros(0, bool))
    counts = _count_voxels(numbered.ids, sink)
    kept = np.ones(len(counts.ids), bool)
    if request.min_size is not None:
        size = Size(request.min_size.value, request.min_size.unit)
        kept &= counts.sizes >= size.to_voxels(found.spacing)
    if request.keep_largest:
        kept &= _is_largest(counts, numbered.class_of)
    return _Kept(counts, kept)


def _is_largest(counts: _Counts, class_of: NDArray[Any] | None) -> NDArray[np.bool_]:
    """The largest object of every class; the lower id where two are equal."""
    groups = np.zeros(len(counts.ids), np.int64) if class_of is None else class_of[counts.ids]
    order = np.lexsort((counts.ids, -counts.sizes, groups))
    is_first = np.ones(len(order), bool)
    is_first[1:] = groups[order][1:] != groups[order][:-1]
    result = np.zeros(len(order), bool)
    result[order[is_first]] = True
    return result


def _count_voxels(data: LazyArray, sink: ProgressSink) -> _Counts:
    """Voxels of every value but 0, slab by slab."""
    ids, sizes = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for start, stop in _slabs(data.shape, 1):
        sink.check()
        found, counts = _unique_counts(np.asarray(data[start:stop]))
        ids, inverse = np.unique(np.concatenate([ids, found]), return_inverse=True)
        sizes = np.bincount(
            inverse.ravel(), weights=np.concatenate([sizes, counts]), minlength=len(ids)
        ).astype(np.int64)
        sink.emit(Progress("counting", stop, data.shape[0], "slices"))
    return _Counts(ids, sizes)


def _unique_counts(block: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positive values of a block and how often they occur; counted where they are dense."""
    if block.size and int(block.max()) < _DENSE_IDS:
        counts = np.bincount(block.ravel())
        counts[0] = 0
        found = np.flatnonzero(counts)
        return found.astype(np.int64), counts[found].astype(np.int64)
    found, counts = np.unique(block, return_counts=True)
    is_object = found != 0
    return found[is_object].astype(np.int64), counts[is_object].astype(np.int64)


# --- Storing ------------------------------------------------------------------------------------


def _store(
    folder: RunFolder,
    found: Labels,
    data: LazyArray,
    numbered: _Numbered,
    kept: _Kept,
    sink: ProgressSink,
) -> ObjectSet:
    """Write the final labels (where they changed) and ids, then put them in place."""
    is_semantic = not (found.is_instance or numbered.is_split)
    is_changed = numbered.is_split or not kept.keeps_all or data is not found.data
    final = folder.path / ".final.ome.zarr"
    objects = folder.path / ".objects.ome.zarr"
    _remove(final)
    _remove(objects)
    old = kept.counts.ids[kept.is_kept]
    table = _Renumber(old, kept.counts.max_id)
    class_of = None if numbered.class_of is None else _classes_of(numbered.class_of, old)
    target = objects if is_semantic else final
    if numbered.staged is not None and kept.keeps_all:
        # Components are numbered 1..n as they stand.
        numbered.staged.finish(sink)
        numbered.staged.path.rename(target)
    elif numbered.ids is not None:
        provisional = numbered.ids
        _write(
            target, found, sink, "objects", dtype=table.dtype, is_instance=True,
            blocks=(table.apply(np.asarray(provisional[a:b])) for a, b in _unit_slabs(found)),
        )  # fmt: skip
    if is_semantic and is_changed:
        _write(
            final, found, sink, "labels", dtype=found.dtype, is_instance=False,
            blocks=_cleaned(data, None if kept.keeps_all else numbered.ids, table, found),
        )  # fmt: skip
    _put_in_place(folder, final, objects)
    labels = open_labels(folder.labels)
    ids = labels
    if is_semantic:
        ids = open_labels(folder.object_labels) if folder.object_labels.exists() else None
    if numbered.ids is None:
        totals = _count_voxels(labels.data, sink)
        return ObjectSet(labels, ids, None, len(totals.ids), totals.max_id, totals.n_voxels)
    n_foreground = int(kept.counts.sizes[kept.is_kept].sum())
    max_id = len(old) if class_of is None or not is_semantic else int(class_of.max(initial=0))
    return ObjectSet(labels, ids, class_of, len(old), max_id, n_foreground)


def _cleaned(
    data: LazyArray, ids: LazyArray | None, table: "_Renumber", found: Labels
) -> Iterator[NDArray[Any]]:
    """Classes with the dropped objects taken out; as they are without ids."""
    for start, stop in _unit_slabs(found):
        block = np.asarray(data[start:stop]).astype(found.dtype, copy=False)
        if ids is not None:
            block = np.where(table.apply(np.asarray(ids[start:stop])) > 0, block, 0)
        yield block.astype(found.dtype, copy=False)


class _Renumber:
    """Old ids, ascending, become 1..n; all others 0."""

    def __init__(self, old: NDArray[Any], max_id: int) -> None:
        from lamella.instances import id_dtype

        self._old = old
        self.dtype = id_dtype(len(old))
        self._table: NDArray[Any] | None = None
        if max_id < _DENSE_IDS:
            self._table = np.zeros(max_id + 1, self.dtype)
            self._table[old] = np.arange(1, len(old) + 1)

    def apply(self, ids: NDArray[Any]) -> NDArray[Any]:
        """New ids of an array of old ones."""
        if self._table is not None:
            return self._table[ids]
        if len(self._old) == 0:
            return np.zeros(ids.shape, self.dtype)
        wide = ids.astype(np.int64, copy=False)
        at = np.minimum(np.searchsorted(self._old, wide), len(self._old) - 1)
        return np.where(self._old[at] == wide, at + 1, 0).astype(self.dtype)


def _classes_of(class_of: NDArray[Any], old: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([np.zeros(1, class_of.dtype), class_of[old]])


def _write(
    path: Path,
    like: Labels,
    sink: ProgressSink,
    stage: str,
    *,
    dtype: np.dtype[Any],
    is_instance: bool,
    blocks: Iterator[NDArray[Any]],
) -> None:
    from lamella.io.label_store import create_labels

    classes: tuple[LabelClass, ...] = like.classes
    store = create_labels(path, like=like, dtype=dtype, classes=classes, is_instance=is_instance)
    for (start, stop), block in zip(_unit_slabs(like), blocks, strict=True):
        sink.check()
        rest = like.spatial_shape[1:]
        store.write(Box((start, *(0,) * len(rest)), (stop, *rest)), block)
        sink.emit(Progress(stage, stop, like.spatial_shape[0], "slices"))
    store.finish(sink)


def _put_in_place(folder: RunFolder, final: Path, objects: Path) -> None:
    """Rename what is finished; :func:`restore_engine_labels` undoes a part of it."""
    with storage_errors(folder.path):
        _remove(folder.path / _STAGED)
        if objects.exists():
            _remove(folder.object_labels)
            objects.rename(folder.object_labels)
        if final.exists():
            folder.labels.rename(folder.engine_labels)
            final.rename(folder.labels)


class _StoreWriter:
    """Lets the components be written into a label store as into an array."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __setitem__(self, index: slice, value: NDArray[Any]) -> None:
        rest = self._store.shape[1:]
        box = Box((index.start, *(0,) * len(rest)), (index.stop, *rest))
        self._store.write(box, value)


def _unit_slabs(labels: Labels) -> Iterator[tuple[int, int]]:
    """Slabs that are whole storage units along the first axis."""
    from lamella.io.ome_zarr_arrays import chunk_shape

    return _slabs(labels.spatial_shape, chunk_shape(labels.spatial_shape)[0])


def _slabs(shape: tuple[int, ...], unit: int) -> Iterator[tuple[int, int]]:
    plane = max(1, math.prod(shape[1:]))
    depth = unit * max(1, _SLAB_VOXELS // (plane * unit))
    for start in range(0, shape[0], depth):
        yield start, min(start + depth, shape[0])


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
