"""Volumes whose files the storage of another machine holds too: dropped here and brought back."""

import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.server.problems import ProtocolError
from lamella.server.volumes.materialise import DATA_NAME

if TYPE_CHECKING:
    from lamella.server.storage import Storage

__all__ = ["Copies"]


_N_THREADS = 2
_WAIT_S = 20.0
"""How long somebody waits for files that come back; then they have to ask again."""
_RETRY_S = 5


@dataclass(eq=False, slots=True)
class _Copy:
    lock: threading.Lock = field(default_factory=threading.Lock)
    given: float = float("-inf")
    """When somebody was last told where it lies, on the clock."""
    coming: "Future[None] | None" = None


class Copies:
    """Local copies of volumes; safe to use from several threads.

    Args:
        folder: holds one folder a volume.
        storage: of another machine; None where there is none, and nothing is ever dropped.
        is_used: whether an active job names a volume.
        clock: seconds.
    """

    def __init__(
        self,
        folder: Path,
        storage: "Storage | None",
        is_used: Callable[[str], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._storage = storage
        self._is_used = is_used
        self._clock = clock
        self._copies: dict[str, _Copy] = {}
        self._threads = ThreadPoolExecutor(_N_THREADS, thread_name_prefix="copy")

    def stop(self) -> None:
        """Begin nothing more."""
        self._threads.shutdown(cancel_futures=True)

    def is_here(self, volume_id: str) -> bool:
        """Whether there are files here that could be brought back if they went."""
        return self._storage is not None and self._data(volume_id).is_dir()

    def bring(self, volume_id: str, path: Path) -> None:
        """See that the files are here; they come once for all who ask at the same time.

        Args:
            volume_id: whose.
            path: of them; it is missing where they had to go.

        Raises:
            ProtocolError: 503, they are on their way.
            MissingPathError: the storage does not hold them.
        """
        with (copy := self._of(volume_id)).lock:
            copy.given = self._clock()
            if self._storage is None or path.exists():
                return
            if copy.coming is None or copy.coming.done():
                copy.coming = self._threads.submit(
                    self._storage.fetch_folder, _key(volume_id), self._data(volume_id)
                )
            coming = copy.coming
        try:
            coming.result(timeout=_WAIT_S)
        except TimeoutError:
            raise ProtocolError(
                503,
                f"the files of volume {volume_id} are on their way from the storage",
                code="preparing",
                hint="ask again shortly",
                details={"retry_after_s": _RETRY_S},
            ) from None

    def keep(self, volume_id: str) -> None:
        """Put the files of a volume into the storage."""
        if self._storage is not None:
            self._storage.put_folder(self._data(volume_id), _key(volume_id))

    def evict(self, volume_id: str, *, idle_s: float = 0.0) -> bool:
        """Drop the files here that the storage holds; whether that was done.

        A job that needs them is either seen here, or comes after and brings them back.

        Args:
            volume_id: whose.
            idle_s: not when somebody asked for them within so many seconds, and may read them yet.
        """
        with (copy := self._of(volume_id)).lock:
            if (
                self._clock() - copy.given < idle_s
                or self._is_used(volume_id)
                or not self._is_stored(volume_id)
            ):
                return False
            # Out of the way at once; the next start sweeps what a crash leaves of it.
            gone = self._folder / f".evicted-{volume_id}-{time.monotonic_ns()}"
            self._data(volume_id).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        return True

    def remove(self, volume_id: str) -> None:
        """Remove the files here and in the storage."""
        self._copies.pop(volume_id, None)
        shutil.rmtree(self._folder / volume_id, ignore_errors=True)
        if self._storage is not None:
            self._storage.delete_folder(_key(volume_id))

    def _is_stored(self, volume_id: str) -> bool:
        """Whether the storage holds every file; a server may have had another one before."""
        data = self._data(volume_id)
        if self._storage is None or not data.is_dir():
            return False
        kept = self._storage.sizes(_key(volume_id))
        return all(
            kept.get(path.relative_to(data).as_posix()) == path.stat().st_size
            for path in data.rglob("*")
            if path.is_file()
        )

    def _data(self, volume_id: str) -> Path:
        return self._folder / volume_id / DATA_NAME

    def _of(self, volume_id: str) -> _Copy:
        return self._copies.setdefault(volume_id, _Copy())


def _key(volume_id: str) -> str:
    return f"volumes/{volume_id}"
