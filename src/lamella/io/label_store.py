"""Labels on disk while a run writes them: an OME-Zarr 0.5 image that is valid once it is finished.

The array of level 0 is there from the start and takes boxes in any order; the coarser levels and
the metadata that make the folder an OME-Zarr image come last, in :meth:`LabelStore.finish`. Until
then readers see no image, and ``pending.json`` holds what a later process needs to go on::

    labels.ome.zarr/
      0/zarr.json, 0/c/…   level 0 from the first moment
      pending.json         until finish: geometry, classes, the metadata to be
      1/ 2/ …, zarr.json   from finish on

Chunk files appear under their names only when complete (written beside and renamed), so a killed
run leaves whole chunks or none.

Examples:
    >>> import tempfile, numpy as np
    >>> from lamella.core.progress import SilentSink
    >>> like = Volume.from_array(np.zeros((8, 16, 16), np.float32), spacing=(2, 1, 1), unit="nm")
    >>> path = Path(tempfile.mkdtemp()) / "labels.ome.zarr"
    >>> store = create_labels(path, like=like, dtype="uint16", classes=(LabelClass(1, "mito"),))
    >>> store.write(Box((0, 0, 0), (8, 8, 16)), np.ones((8, 8, 16), np.uint16))
    >>> labels = store.finish(SilentSink())
    >>> labels.shape, str(labels.spacing), int(labels.load().sum())
    ((8, 16, 16), '2 x 1 x 1 nm', 1024)
"""

import itertools
import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lamella.core.errors import (
    BoxOutOfBoundsError,
    InputError,
    MissingPathError,
    OutputExistsError,
    UnreadableFileError,
)
from lamella.core.progress import ProgressSink
from lamella.io.format import storage_errors
from lamella.io.ome_zarr_arrays import (
    LevelFormat,
    build_label_levels,
    chunk_shape,
    create_level,
    level_factors,
    level_shape,
    shard_shape,
    storage_unit,
)
from lamella.io.ome_zarr_metadata import (
    affine_from_lamella,
    classes_from_lamella,
    group_attributes,
    lamella_document,
    level_path,
    notes_from_lamella,
)
from lamella.volume.axes import Axes
from lamella.volume.box import Box
from lamella.volume.labels import LabelClass, Labels
from lamella.volume.volume import Volume

__all__ = ["LabelStore", "create_labels", "sync_tree"]

_PENDING = "pending.json"
_LABEL_DTYPES = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is known of the labels before a voxel is: kept in ``pending.json``."""

    template: Labels
    pyramid: bool | None


def create_labels(
    path: str | Path,
    *,
    like: Volume,
    dtype: DTypeLike,
    classes: Sequence[LabelClass] = (),
    is_instance: bool = False,
    chunks: Sequence[int] | None = None,
    band_axis: int = 0,
    pyramid: bool | None = None,
) -> "LabelStore":
    """Start labels that lie exactly on a volume; every voxel is 0 until it is written.

    Args:
        path: folder that does not exist yet.
        like: what is segmented: spatial shape, affine and unit are taken over.
        dtype: integer.
        classes: names and colours; for instances, what the instances are of.
        is_instance: whether values are instance ids.
        chunks: spatial chunk shape; boxes should be made of whole chunks. About 2¹⁸ voxels unless
            given.
        band_axis: spatial axis along which the run proceeds in bands; very large arrays (from
            8192 chunks on) get shards that are one chunk thick along it, so a band of whole chunks
            writes every shard once.
        pyramid: whether to add coarser levels in the end; None = when an axis is longer than 256.

    Raises:
        OutputExistsError: when there is something at ``path``.
        InputError: when ``dtype`` is no integer type.
        StorageError: when it cannot be written.
    """
    path = Path(path)
    wanted = np.dtype(dtype)
    if wanted.name not in _LABEL_DTYPES:
        raise InputError(
            f"labels cannot be stored as {wanted}", hint=f"use one of {', '.join(_LABEL_DTYPES)}"
        )
    if path.exists():
        raise OutputExistsError(
            f"{path} is already there", hint="resume the run, or choose another folder"
        )
    shape = like.spatial_shape
    if min(shape) < 1:
        raise InputError(f"labels of shape {shape} would be empty")
    plan = _Plan(_template(like, wanted, tuple(classes), is_instance), pyramid)
    known_chunks = chunk_shape(shape) if chunks is None else tuple(int(c) for c in chunks)
    shards = shard_shape(shape, known_chunks, wanted.itemsize, band_axis=band_axis)
    with storage_errors(path):
        path.mkdir(parents=True)
        array = create_level(
            path / level_path(0),
            shape,
            wanted,
            LevelFormat(plan.template.axes, known_chunks, shards, is_labels=True),
        )
        _write_text(path / _PENDING, json.dumps(_pending_document(plan), indent=1))
    return LabelStore(path, array, plan)


class LabelStore:
    """Labels that are being written; made by :func:`create_labels` or :meth:`reopen`.

    Contract:
        * :meth:`write` may be called from several threads. Boxes made of whole storage units
          (:attr:`unit`) never touch the same file; others are written one after the other.
        * After :meth:`sync` returns, everything written before it survives a power cut.
        * The folder is a readable OME-Zarr image only after :meth:`finish`.
    """

    def __init__(self, path: Path, array: Any, plan: _Plan) -> None:
        self._path = path
        self._array = array
        self._plan = plan
        self._unit = storage_unit(array)
        self._lock = threading.Lock()
        self._unaligned = threading.RLock()
        self._unsynced: set[tuple[int, ...]] = set()

    @classmethod
    def reopen(cls, path: str | Path, *, is_shared: bool = False) -> "LabelStore":
        """Go on with labels that an interrupted run left behind; finished ones can be read only.

        Args:
            path: the folder.
            is_shared: whether other processes write other units of it right now; what looks like
                half of a file is theirs then, and stays.

        Raises:
            MissingPathError: when there is nothing.
            UnreadableFileError: when what is there was not left by a run.
        """
        path = Path(path)
        if not path.exists():
            raise MissingPathError(f"there are no labels at {path}", hint="start the run again")
        import zarr

        with storage_errors(path):
            try:
                document = json.loads((path / _PENDING).read_text("utf-8"))
                array = zarr.open_array(str(path / level_path(0)), mode="r+")
                plan = _plan_from_document(document, array)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UnreadableFileError(
                    f"{path} holds no unfinished labels ({error})",
                    hint="open finished labels with lamella.open; delete the folder to start anew",
                ) from error
            for leftover in () if is_shared else (path / level_path(0)).rglob("*.partial"):
                leftover.unlink(missing_ok=True)
        return cls(path, array, plan)

    @property
    def path(self) -> Path:
        """The folder."""
        return self._path

    @property
    def array(self) -> Any:
        """The zarr array of level 0, for reading back."""
        return self._array

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape, (z, y, x) or (y, x)."""
        return tuple(self._array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return np.dtype(self._array.dtype)

    @property
    def chunks(self) -> tuple[int, ...]:
        """Shape of a chunk."""
        return tuple(self._array.chunks)

    @property
    def unit(self) -> tuple[int, ...]:
        """Shape of what one file holds: a chunk, or a shard. Write whole ones."""
        return self._unit

    @property
    def is_finished(self) -> bool:
        """Whether the folder is a complete image."""
        return not (self._path / _PENDING).exists()

    def write(self, box: Box, values: NDArray[Any]) -> None:
        """Write a box.

        Args:
            box: where, in voxels.
            values: integers of the box's shape that fit the dtype.

        Raises:
            BoxOutOfBoundsError: when the box reaches outside.
            InputError: when shape or type do not fit.
            StorageError: when the disk is full.
        """
        if box.ndim != len(self.shape) or not Box.from_shape(self.shape).contains(box):
            raise BoxOutOfBoundsError(f"{box} reaches outside labels of shape {self.shape}")
        if tuple(values.shape) != box.shape:
            raise InputError(f"values of shape {values.shape} do not fill {box}")
        if not np.can_cast(values.dtype, self.dtype, "safe"):
            raise InputError(
                f"values of type {values.dtype} do not fit labels of type {self.dtype}",
                hint=f"cast them to {self.dtype} after checking their range",
            )
        if box.is_empty:
            return
        with storage_errors(self._path):
            if self._is_aligned(box):
                self._array[box.slices()] = values
            else:
                with self._unaligned:
                    self._array[box.slices()] = values
        with self._lock:
            self._unsynced.update(self._units_of(box))

    def read(self, box: Box) -> NDArray[Any]:
        """Read a box back.

        Raises:
            BoxOutOfBoundsError: when the box reaches outside.
        """
        if not Box.from_shape(self.shape).contains(box):
            raise BoxOutOfBoundsError(f"{box} reaches outside labels of shape {self.shape}")
        with storage_errors(self._path):
            return np.asarray(self._array[box.slices()])

    def sync(self) -> None:
        """Wait until all that was written so far is safely on disk (fsync of files and folders).

        Raises:
            StorageError: when the disk fails.
        """
        with self._lock:
            pending, self._unsynced = self._unsynced, set()
        folder = self._path / level_path(0)
        try:
            with storage_errors(self._path):
                folders: set[Path] = set()
                for index in sorted(pending):
                    file = folder.joinpath("c", *map(str, index))
                    # Chunks of nothing but zeros are not stored: their absence is what must last.
                    _fsync(file)
                    folders.update(p for p in file.parents if p.is_relative_to(folder))
                for parent in sorted(folders, key=lambda p: len(p.parts), reverse=True):
                    _fsync(parent)
        except BaseException:
            with self._lock:
                self._unsynced |= pending
            raise

    def finish(self, sink: ProgressSink, stage: str = "finishing labels") -> Labels:
        """Build the coarser levels and write the metadata: from here on it is an image.

        Safe to repeat after an interruption.

        Args:
            sink: progress and cancellation; cancelling leaves the labels resumable.
            stage: name of this step for ``sink``.

        Returns:
            The labels, lazy, on disk.

        Raises:
            StorageError: when the disk is full.
            RunCancelledError: when cancelled.
        """
        template = self._plan.template
        if not self.is_finished:
            with storage_errors(self._path):
                self._finish(template, sink, stage)
        from lamella.io.format import OpenOptions
        from lamella.io.ome_zarr import read

        labels = read(self._path, OpenOptions())
        assert isinstance(labels, Labels), labels
        return labels

    def _finish(self, template: Labels, sink: ProgressSink, stage: str) -> None:
        import shutil

        factors = level_factors(self.shape, template.affine.spacing, self._plan.pyramid)
        coarser: list[tuple[Sequence[int], Any]] = []
        for level, factor in enumerate(factors[1:], start=1):
            folder = self._path / level_path(level)
            shutil.rmtree(folder, ignore_errors=True)
            shape = level_shape(self.shape, factor)
            array = create_level(
                folder, shape, self.dtype, LevelFormat(template.axes, self.chunks, is_labels=True)
            )
            coarser.append((factor, array))
        has_names = bool(template.classes) and not template.is_instance
        values: tuple[int, ...] = ()
        if coarser or not has_names:
            values = build_label_levels(self._array, coarser, sink, stage)
        attributes = group_attributes(
            template, factors, version="0.5", label_values=() if has_names else values
        )
        document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        self.sync()
        _write_text(self._path / "zarr.json", json.dumps(document, indent=2))
        (self._path / _PENDING).unlink(missing_ok=True)
        _fsync(self._path)

    def _is_aligned(self, box: Box) -> bool:
        return all(
            start % unit == 0 and (stop % unit == 0 or stop == length)
            for start, stop, unit, length in zip(
                box.start, box.stop, self._unit, self.shape, strict=True
            )
        )

    def _units_of(self, box: Box) -> Iterator[tuple[int, ...]]:
        return itertools.product(
            *(
                range(start // unit, -(-stop // unit))
                for start, stop, unit in zip(box.start, box.stop, self._unit, strict=True)
            )
        )


def _template(
    like: Volume, dtype: np.dtype[Any], classes: tuple[LabelClass, ...], is_instance: bool
) -> Labels:
    """Labels that carry the geometry and the names, and no voxels."""
    return Labels(
        data=np.broadcast_to(np.zeros((), dtype), like.spatial_shape),
        axes=like.axes.without("t", "c"),
        affine=like.affine,
        unit=like.unit,
        name="labels",
        classes=classes,
        is_instance=is_instance,
    )


def _pending_document(plan: _Plan) -> dict[str, Any]:
    return {"lamella": lamella_document(plan.template), "pyramid": plan.pyramid}


def _plan_from_document(document: dict[str, Any], array: Any) -> _Plan:
    known = document["lamella"]
    template = Labels(
        data=np.broadcast_to(np.zeros((), array.dtype), array.shape),
        axes=Axes.parse(known["axes"]),
        affine=affine_from_lamella(known),
        unit=known["unit"],
        name=known["name"],
        notes=notes_from_lamella(known),
        classes=classes_from_lamella(known),
        is_instance=bool(known["is_instance"]),
    )
    return _Plan(template, document["pyramid"])


def sync_tree(path: Path) -> None:
    """Make a folder durable with everything in it: fsync of all files and folders."""
    for item in (*path.rglob("*"), path):
        _fsync(item)


def _write_text(path: Path, text: str) -> None:
    """Write a small file so that it is there whole or not at all, and stays."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    except PermissionError:
        # Folders cannot be opened on Windows; there the file's own fsync must do.
        if path.is_dir():
            return
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
