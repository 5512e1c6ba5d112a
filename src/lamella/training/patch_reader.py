"""Patches of zarr arrays, as fast as the chunks can be decoded.

:class:`PatchReader` opens one array (zarr 2 or 3, on a disk, in a zip archive, a bucket or on a
web server) and reads boxes of it. Chunks are decoded by tensorstore in a bounded number of
threads, and kept decoded in a cache of bounded bytes that all readers of a process share; together
with :mod:`lamella.training.chunk_order` most patches are then copied, not decoded.

* Opening reads one document, however large the array is, and starts no thread on local data.
* A reader can be pickled; the copy opens the array anew when it first reads.
* Chunks that are not stored read as the fill value; :meth:`PatchReader.missing` tells them.
* A box that reaches beyond the array is refused: what to put there is the caller's decision.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import posixpath
import threading
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lamella.core.errors import BoxOutOfBoundsError, InputError, LamellaError, UnreadableFileError
from lamella.training.patch_backend import Backend, ReadOptions, open_backend
from lamella.training.zarr_document import ArrayDocument
from lamella.training.zarr_location import Location, tensorstore_error
from lamella.volume.box import Box
from lamella.volume.source import FunctionArray

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.context import BaseContext
    from pathlib import Path

    from numpy.typing import DTypeLike, NDArray

__all__ = ["PatchReader", "ReadOptions", "open_level", "worker_context"]

_STORED_KNOWN = 2**20
"""Most chunks of which is remembered whether they are stored."""


class PatchReader:
    """Boxes of one zarr array.

    Args:
        address: folder of an array, or its path in a zip archive; ``s3://bucket/key`` (read
            anonymously unless the options say otherwise) or ``https://host/path``.
        options: cache and threads.
        keep: axes of the array in the order wanted; the others must have length 1 and are
            dropped. None = all as they are.

    Raises:
        MissingPathError: a path with nothing there.
        UnreadableFileError: there is no array, or its document is damaged.
        InputError: elements that are no integers or floats, chunks of unequal shapes, or ``keep``
            that drops a longer axis.

    Examples:
        >>> import tempfile, zarr
        >>> folder = tempfile.mkdtemp() + "/raw"
        >>> array = zarr.create_array(folder, shape=(8, 8), chunks=(4, 4), dtype="uint8")
        >>> array[:4, :4] = 7
        >>> reader = PatchReader(folder)
        >>> reader.read(Box((2, 2), (4, 5))).tolist()
        [[7, 7, 0], [7, 7, 0]]
        >>> reader.missing(Box((0, 0), (4, 8)))
        0.5
    """

    def __init__(
        self,
        address: str | Path,
        *,
        options: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
        keep: Sequence[int] | None = None,
    ) -> None:
        self.options = options
        self._location = Location.parse(
            address, endpoint=options.endpoint, is_anonymous=options.is_anonymous
        )
        self._document = ArrayDocument.read(self._location)
        n_axes = len(self._document.shape)
        self._keep = tuple(range(n_axes)) if keep is None else tuple(keep)
        if len(set(self._keep)) != len(self._keep) or not set(self._keep) <= set(range(n_axes)):
            raise InputError(f"axes {self._keep} of an array that has {n_axes}")
        for axis in set(range(n_axes)) - set(self._keep):
            if self._document.shape[axis] != 1:
                raise InputError(
                    f"axis {axis} of {self.address} has length {self._document.shape[axis]} and"
                    " cannot be dropped",
                    hint="keep it, and read one index of it at a time",
                )
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._opened: Backend | None = None
        self._stored: dict[tuple[int, ...], bool] = {}

    def __getstate__(self) -> dict[str, Any]:
        kept = ("options", "_location", "_document", "_keep")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __repr__(self) -> str:
        return f"PatchReader({self.address!r}, shape={self.shape}, dtype={self.dtype})"

    @property
    def address(self) -> str:
        """Where the array lies, as it was given."""
        return self._location.address

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent per axis."""
        return tuple(self._document.shape[axis] for axis in self._keep)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self._keep)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements, native-endian."""
        return self._document.dtype

    @property
    def chunks(self) -> tuple[int, ...]:
        """What is decoded at once: a chunk, also where many lie in one shard."""
        return tuple(self._document.chunks[axis] for axis in self._keep)

    @property
    def fill_value(self) -> Any:
        """What chunks that are not stored read as."""
        return self._backend.fill_value

    @property
    def backend(self) -> Literal["tensorstore", "zarr"]:
        """What decodes the chunks; opens the array."""
        return "tensorstore" if self._backend.name == "tensorstore" else "zarr"

    @property
    def backend_reason(self) -> str:
        """Why zarr-python reads this array, slower and without a cache; empty for tensorstore."""
        return self._backend.reason

    def read(self, box: Box, *, dtype: DTypeLike | None = None) -> NDArray[Any]:
        """The voxels of a box.

        Args:
            box: inside the array.
            dtype: to convert to while copying, as ``numpy.astype`` would; None = as stored.

        Returns:
            A contiguous array of the box's shape that belongs to the caller.

        Raises:
            BoxOutOfBoundsError: the box reaches beyond the array.
            UnreadableFileError: a chunk cannot be decoded; says which.
            DownloadError: a server does not answer.
            StorageError: the file system refuses.
        """
        return self.read_many((box,), dtype=dtype)[0]

    def read_many(
        self, boxes: Sequence[Box], *, dtype: DTypeLike | None = None
    ) -> list[NDArray[Any]]:
        """The voxels of several boxes, all read at once.

        Raises:
            BoxOutOfBoundsError: a box reaches beyond the array.
            UnreadableFileError: a chunk cannot be decoded; says which.
        """
        wanted = self.dtype if dtype is None else np.dtype(dtype)
        backend = self._backend
        started = [
            None if self._inside(box).is_empty else backend.start(box.slices(), wanted)
            for box in boxes
        ]
        found = []
        for box, wait in zip(boxes, started, strict=True):
            try:
                found.append(np.empty(box.shape, wanted) if wait is None else wait())
            except LamellaError:
                raise
            except MemoryError:
                raise
            except Exception as error:
                raise self._chunk_error(box, error) from error
        return found

    def missing(self, box: Box) -> float:
        """Share of a box's voxels that lie in chunks which are not stored, 0 to 1.

        No voxel is read: files are looked for (in shards, their indexes), and answers remembered.
        In raw data that was fetched in part these voxels are unknown; in labels they are 0.

        Raises:
            BoxOutOfBoundsError: the box reaches beyond the array.
        """
        gone = sum(box.intersect(chunk).size for chunk in self._missing_chunks(box))
        return gone / box.size if gone else 0.0

    def missing_mask(self, box: Box) -> NDArray[np.bool_]:
        """Which voxels of a box lie in chunks that are not stored: bool, the box's shape.

        Raises:
            BoxOutOfBoundsError: the box reaches beyond the array.
        """
        mask = np.zeros(box.shape, bool)
        for chunk in self._missing_chunks(box):
            mask[box.intersect(chunk).relative_to(box).slices()] = True
        return mask

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Slices and integers, as a :class:`lamella.volume.source.LazyArray` takes them."""

        def read(slices: tuple[slice, ...]) -> NDArray[Any]:
            return self.read(Box.from_slices(slices))

        return FunctionArray(self.shape, self.dtype, read)[index]

    @property
    def _backend(self) -> Backend:
        with self._lock:
            if self._opened is None:
                self._opened = open_backend(
                    self._location, self._document, self._keep, self.options
                )
            return self._opened

    def _inside(self, box: Box) -> Box:
        if box.ndim != self.ndim or not Box.from_shape(self.shape).contains(box):
            raise BoxOutOfBoundsError(
                f"{box} does not lie in {self.address} of shape {self.shape}",
                hint="clamp the box, and pad what is read",
            )
        return box

    def _chunks_of(self, box: Box) -> dict[tuple[int, ...], Box]:
        """Chunks that a box touches, by their place in the grid; clamped to the array."""
        places = itertools.product(
            *(
                range(start // chunk, -(-stop // chunk))
                for start, stop, chunk in zip(box.start, box.stop, self.chunks, strict=True)
            )
        )
        return {
            place: Box(
                tuple(p * c for p, c in zip(place, self.chunks, strict=True)),
                tuple((p + 1) * c for p, c in zip(place, self.chunks, strict=True)),
            ).clamp(self.shape)
            for place in places
        }

    def _missing_chunks(self, box: Box) -> list[Box]:
        if self._inside(box).is_empty:
            return []
        chunks = self._chunks_of(box)
        new = [place for place in chunks if place not in self._stored]
        if new:
            backend = self._backend
            try:
                answers = backend.are_stored([chunks[place].slices() for place in new])
            except (ValueError, OSError) as error:
                raise tensorstore_error(f"the chunks of {self.address}", error) from error
            if len(self._stored) > _STORED_KNOWN:
                self._stored = {}
            self._stored.update(zip(new, answers, strict=True))
        return [chunk for place, chunk in chunks.items() if not self._stored.get(place, True)]

    def _chunk_error(self, box: Box, error: Exception) -> Exception:
        """Which chunk of a box is at fault: each is read alone, which happens only here."""
        for place, chunk in self._chunks_of(box).items():
            try:
                self._backend.start(chunk.slices(), self.dtype)()
            except Exception as fault:  # noqa: BLE001 - named below, whatever it is
                name = ".".join(map(str, place))
                return tensorstore_error(
                    f"chunk {name} of {self.address} ({chunk})",
                    fault,
                    array=self.address,
                    chunk=list(place),
                )
        return tensorstore_error(f"{box} of {self.address}", error, array=self.address)


def open_level(
    path: Path | str,
    *,
    level: int = 0,
    dataset: str | None = None,
    options: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
) -> PatchReader:
    """The array of one level of a local OME-Zarr image or label group.

    Axes are those of the volume that ``lamella.open_volume`` gives for the same arguments, so
    that its geometry applies.

    Args:
        path: folder or zip archive, or a folder inside a hierarchy.
        level: 0 is the finest.
        dataset: group or array below the path.
        options: cache and threads.

    Raises:
        InputError: the level does not exist, or several images could be meant.
        UnreadableFileError: damaged documents.
    """
    from pathlib import Path

    from lamella.io.format import OpenOptions
    from lamella.io.ome_zarr_find import choose, locate
    from lamella.io.ome_zarr_layout import layout_of
    from lamella.io.ome_zarr_multiscale import dataset_paths, parse_multiscale

    tree, inner = locate(Path(path))
    node, _ = choose(tree, inner, OpenOptions(dataset=dataset))
    if node.kind == "array":
        return PatchReader(tree.address(node.path), options=options)
    listed = node.ome["multiscales"]
    names = dataset_paths(listed[0])
    found = [
        PatchReader(tree.address(posixpath.join(node.path, name)), options=options)
        for name in names
    ]
    if not found:
        raise UnreadableFileError(f"{tree.address(node.path)} lists no datasets")
    found.sort(key=lambda reader: -math.prod(reader.shape))
    if not 0 <= level < len(found):
        raise InputError(
            f"there is no level {level} in {tree.address(node.path)}",
            hint=f"it has levels 0 to {len(found) - 1}",
        )
    version = str(node.ome.get("version") or "")
    multiscale = parse_multiscale(listed[0], version, found[0].ndim)
    layout = layout_of(multiscale.axes, found[0].shape)
    return PatchReader(found[level].address, options=options, keep=layout.keep)


def worker_context(preload: Sequence[str] = ()) -> BaseContext:
    """How processes that read patches are started: from a fork server, never by forking this one.

    Args:
        preload: modules that the fork server imports once for all workers, such as ``torch``;
            none that starts threads or touches a GPU when it is imported.

    Returns:
        A context of ``multiprocessing``, as ``DataLoader(multiprocessing_context=…)`` takes it.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # Has an effect only before the server starts, with the first process.
    context.set_forkserver_preload(list(preload))
    return context
