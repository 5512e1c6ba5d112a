"""The two libraries that read chunks: tensorstore, and zarr-python for codecs it does not know.

tensorstore decodes in threads of its own and keeps decoded chunks in a pool of bounded bytes that
all readers of a process share. Those threads do not survive a fork: it aborts any child that is
forked after its first read (its rule, signal 6), so workers must be spawned or come from a fork
server.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from lamella.core.errors import InputError, LamellaError, UnreadableFileError
from lamella.core.optional import require
from lamella.training.zarr_location import RETRY_CONTEXT, tensorstore_error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from lamella.training.zarr_document import ArrayDocument
    from lamella.training.zarr_location import Location

__all__ = ["Backend", "ReadOptions", "open_backend"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How much of a machine a process may use for reading.

    Readers with equal options share one cache and one set of threads per process; both go when
    the last of these readers does.

    Attributes:
        cache_bytes: most bytes of decoded chunks that are kept; 0 keeps none.
        threads: that decode and copy; 0 = one a core, at most four.
        endpoint: server that speaks S3, where it is not Amazon's.
        is_anonymous: read buckets without signing in; else with the credentials that Amazon's own
            tools would find.
    """

    cache_bytes: int = 512 * 2**20
    threads: int = 0
    endpoint: str = ""
    is_anonymous: bool = True

    def __post_init__(self) -> None:
        if self.cache_bytes < 0 or self.threads < 0:
            raise InputError(
                f"a cache of {self.cache_bytes} bytes and {self.threads} threads",
                hint="give numbers that are not negative",
            )

    @property
    def n_threads(self) -> int:
        """Threads, decided."""
        if hasattr(os, "sched_getaffinity"):
            n_cores = len(os.sched_getaffinity(0))
        else:
            n_cores = os.cpu_count() or 1
        return self.threads or min(4, n_cores)


class Backend(Protocol):
    """An opened array.

    Contract: slices lie inside the array and have both ends; safe for threads.
    """

    name: str
    reason: str
    fill_value: Any

    def start(self, slices: tuple[slice, ...], dtype: np.dtype[Any]) -> Callable[[], NDArray[Any]]:
        """Begin to read; calling what is returned waits for the array."""
        ...

    def are_stored(self, regions: Sequence[tuple[slice, ...]]) -> list[bool]:
        """Whether each region, a chunk, holds anything that is stored."""
        ...


def open_backend(
    location: Location, document: ArrayDocument, keep: tuple[int, ...], options: ReadOptions
) -> Backend:
    """Open an array with tensorstore, or with zarr-python where tensorstore cannot.

    Args:
        location: of the array.
        document: of the array.
        keep: axes of the array in the order wanted; the others have length 1 and are dropped.
        options: of reading.

    Raises:
        UnreadableFileError: when neither can open it.
        DownloadError: when a server does not answer.
    """
    try:
        return _Tensorstore(location, document, keep, options)
    except ValueError as error:
        reason = tensorstore_error(location.address, error)
    if not isinstance(reason, UnreadableFileError):
        raise reason
    logger.info("%s; zarr-python reads it", reason)
    return _ZarrPython(location, document, keep, str(reason))


class _Pool:
    """Threads and cache of one process."""

    _known: ClassVar[weakref.WeakValueDictionary[ReadOptions, _Pool]] = (
        weakref.WeakValueDictionary()
    )
    _lock = threading.Lock()
    _is_hooked = False

    def __init__(self, tensorstore: Any, options: ReadOptions) -> None:
        self.context = tensorstore.Context(
            {
                "cache_pool": {"total_bytes_limit": options.cache_bytes},
                "data_copy_concurrency": {"limit": options.n_threads},
                "file_io_concurrency": {"limit": max(2, options.n_threads)},
                **RETRY_CONTEXT,
            }
        )

    @classmethod
    def of(cls, tensorstore: Any, options: ReadOptions) -> _Pool:
        with cls._lock:
            if not cls._is_hooked and hasattr(os, "register_at_fork"):
                os.register_at_fork(before=_warn_of_fork)
                cls._is_hooked = True
            pool = cls._known.get(options)
            if pool is None:
                pool = cls._known[options] = cls(tensorstore, options)
            return pool


def _warn_of_fork() -> None:
    logger.warning(
        "this process has read patches and is now forked: tensorstore aborts such a child when"
        " it begins; start workers with the method 'forkserver' or 'spawn'"
    )


class _Tensorstore:
    name = "tensorstore"
    reason = ""

    def __init__(
        self,
        location: Location,
        document: ArrayDocument,
        keep: tuple[int, ...],
        options: ReadOptions,
    ) -> None:
        tensorstore = require("tensorstore", extra="train", purpose="reading patches")
        self._cast = tensorstore.cast
        self._pool = _Pool.of(tensorstore, options)
        specification = {
            "driver": "zarr3" if document.zarr_format == 3 else "zarr",
            "kvstore": location.kvstore(),
            # Data sets do not change while they are learnt from: no look at the file per read.
            "recheck_cached_data": False,
        }
        store = tensorstore.open(
            specification, context=self._pool.context, read=True, open=True
        ).result()
        self.fill_value = None if store.fill_value is None else np.asarray(store.fill_value)[()]
        dropped = tuple(axis for axis in range(len(document.shape)) if axis not in keep)
        if keep != tuple(range(len(document.shape))):
            store = store.transpose(keep + dropped)
            for _ in dropped:
                store = store[..., 0]
        self._views = {document.dtype: store}

    def start(self, slices: tuple[slice, ...], dtype: np.dtype[Any]) -> Callable[[], NDArray[Any]]:
        view = self._views.get(dtype)
        if view is None:
            view = self._cast(next(iter(self._views.values())), dtype)
            self._views[dtype] = view
        return view[slices].read().result

    def are_stored(self, regions: Sequence[tuple[slice, ...]]) -> list[bool]:
        store = next(iter(self._views.values()))
        asked = [store[r].storage_statistics(query_not_stored=True) for r in regions]
        return [not answer.result().not_stored for answer in asked]


class _ZarrPython:
    name = "zarr"

    def __init__(
        self, location: Location, document: ArrayDocument, keep: tuple[int, ...], reason: str
    ) -> None:
        import zarr

        self.reason = reason
        store, path = location.zarr_store()
        try:
            self._array = zarr.open_array(
                store, path=path, mode="r", zarr_format=document.zarr_format
            )
            fill = self._array.fill_value
        except LamellaError:
            raise
        except Exception as error:
            raise UnreadableFileError(
                f"neither tensorstore nor zarr-python opens {location.address}: {reason};"
                f" {' '.join(str(error).split())[:200]}",
                hint="write the array again with a codec of the zarr core, such as zstd",
            ) from error
        self.fill_value = np.zeros((), document.dtype)[()] if fill is None else fill
        self._keep = keep
        self._unit = document.shards or document.chunks

    def start(self, slices: tuple[slice, ...], dtype: np.dtype[Any]) -> Callable[[], NDArray[Any]]:
        def read() -> NDArray[Any]:
            found = np.asarray(self._array[self._full(slices)])
            dropped = tuple(axis for axis in range(found.ndim) if axis not in self._keep)
            shape = tuple(part.stop - part.start for part in slices)
            found = found.transpose(self._keep + dropped).reshape(shape)
            return np.ascontiguousarray(found, dtype=dtype)

        return read

    def are_stored(self, regions: Sequence[tuple[slice, ...]]) -> list[bool]:
        from zarr.core.sync import sync

        answers = []
        for region in regions:
            place = tuple(
                part.start // unit
                for part, unit in zip(self._full(region), self._unit, strict=True)
            )
            key = self._array.metadata.encode_chunk_key(place)
            answers.append(sync((self._array.store_path / key).exists()))
        return answers

    def _full(self, slices: tuple[slice, ...]) -> tuple[slice, ...]:
        full = [slice(0, 1)] * self._array.ndim
        for axis, part in zip(self._keep, slices, strict=True):
            full[axis] = part
        return tuple(full)
