"""A run folder: what lies in it, written so that a crash never leaves half a file.

::

    NAME.run/
      labels.ome.zarr     the result, on the input's grid
      objects.csv         one row an object
      objects.ome.zarr    ids as in objects.csv, where the labels themselves are classes
      engine.ome.zarr     the engine's own labels, where they were cleaned or split afterwards
      preview.ome.zarr    the coarse labels of the first seconds
      report.html, report.json
      events.jsonl        everything the run said
      parts/              what an engine of several networks has finished, until it is done
      statistics.json     volume and mean intensity of every class, where the engine gives them
      manifest.json       what the run was; its status says whether it is finished

Two processes never work in one folder: the lock is the operating system's, so it vanishes with
the process that held it, even after kill -9.
"""

import contextlib
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lamella.core.errors import InputError, MissingPathError, RunError
from lamella.core.storage import replace_file
from lamella.engines.engine import CONFIDENCE_NAME, LABELS_NAME, PREVIEW_NAME
from lamella.io.format import storage_errors
from lamella.wire.manifest import RunManifest

__all__ = ["DOWNLOADS", "REMOTE", "RunFolder", "write_bytes", "write_text"]

REMOTE = "remote.json"
"""Remembers the job of a run folder whose run is not here yet."""
DOWNLOADS = ".download"
"""Folder of what is coming."""
_LOCK = ".lock"
_MANIFEST = "manifest.json"
# Engines keep their journals and maps in the folder too; what people put there is left alone.
_OURS = (
    "*.ome.zarr",
    ".*.ome.zarr",
    "probabilities.zarr",
    "confidence.zarr",
    "journal.jsonl",
    "blocks.*",
    "objects.blocks",
    "engine.json",
    "engine.npz",
    "parts",
    ".exchange",
    "statistics.json",
    "restoration.json",
    "events.jsonl",
    "objects.csv",
    "report.html",
    "report.json",
    "vertebrae.*",
    "preview.png",
    ".*.partial",
    DOWNLOADS,
    REMOTE,
    _MANIFEST,
)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths and documents of one run."""

    path: Path

    @property
    def labels(self) -> Path:
        """The result."""
        return self.path / LABELS_NAME

    @property
    def engine_labels(self) -> Path:
        """The engine's own labels, where they were cleaned or split into instances after it."""
        return self.path / "engine.ome.zarr"

    @property
    def engine_result(self) -> Path:
        """What the engine said when it had finished; there only once it has."""
        return self.path / "engine.json"

    @property
    def engine_columns(self) -> Path:
        """Further numbers of the engine's instances, where it gave any."""
        return self.path / "engine.npz"

    @property
    def confidence(self) -> Path:
        """Maps of how sure the engine was, where they were asked for."""
        return self.path / CONFIDENCE_NAME

    @property
    def preview(self) -> Path:
        """The coarse labels of the first seconds."""
        return self.path / PREVIEW_NAME

    @property
    def report(self) -> Path:
        """The report for people."""
        return self.path / "report.html"

    @property
    def object_labels(self) -> Path:
        """Ids of the objects, where the labels are classes."""
        return self.path / "objects.ome.zarr"

    @property
    def statistics(self) -> Path:
        """Volume and intensity of every class, where the engine gives them."""
        return self.path / "statistics.json"

    @property
    def objects(self) -> Path:
        """The table of objects."""
        return self.path / "objects.csv"

    @property
    def events(self) -> Path:
        """Everything the run said, a JSON document a line."""
        return self.path / "events.jsonl"

    @property
    def manifest(self) -> Path:
        """What the run was."""
        return self.path / _MANIFEST

    @classmethod
    def existing(cls, path: str | Path) -> "RunFolder":
        """The folder of a run that was started.

        Raises:
            MissingPathError: when there is no run at ``path``.
        """
        folder = cls(Path(path))
        if not folder.manifest.is_file():
            raise MissingPathError(
                f"{path} is not a run folder: it holds no {_MANIFEST}",
                hint="name the folder that `lamella segment` made, such as tomo.membrane-3d.run",
            )
        return folder

    @property
    def has_work(self) -> bool:
        """Whether an engine left labels here, whole or in part."""
        journal = self.path / "journal.jsonl"
        has_parts = any(self.path.glob("parts/*/part.json"))
        return self.labels.exists() or self.engine_labels.exists() or journal.exists() or has_parts

    def read_manifest(self) -> RunManifest | None:
        """The manifest, or None in a folder where no run was started.

        Raises:
            RunError: when it is damaged or of another version.
        """
        if not self.manifest.is_file():
            return None
        return RunManifest.read(self.manifest, error=RunError)

    def write_manifest(self, manifest: RunManifest) -> None:
        """Replace the manifest; readers see the old one or the new one, never a part."""
        write_text(self.manifest, manifest.to_json())

    def clear(self) -> None:
        """Remove what a run leaves, and nothing else: a new run starts from nothing."""
        with storage_errors(self.path):
            for pattern in _OURS:
                for path in self.path.glob(pattern):
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path)
                    else:
                        path.unlink()

    def remove_if_empty(self) -> None:
        """Take the folder away again when nothing lies in it."""
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def check_ours(self) -> None:
        """Refuse a folder that exists and holds anything but a run.

        Raises:
            InputError: naming what lies there.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(
                f"the run folder {self.path} is a file", hint="choose another with --run-dir"
            )
        if not self.path.is_dir() or self.manifest.exists():
            return
        if (self.path / REMOTE).exists():
            raise InputError(
                f"{self.path} waits for a run of a server",
                hint="the same command with --server goes on; --run-dir chooses another folder",
            )
        if (self.path / DOWNLOADS).exists():
            # A run was on its way here; the next one takes its place.
            return
        # What a process leaves that is killed before its first document is whole.
        killed = (_LOCK, *(_partial(self.path / name).name for name in (_MANIFEST, REMOTE)))
        strangers = sorted(path.name for path in self.path.iterdir() if path.name not in killed)
        if strangers:
            raise InputError(
                f"{self.path} holds no run but {', '.join(strangers[:3])}"
                + (" and more" if len(strangers) > 3 else ""),
                hint="choose an empty or new folder with --run-dir",
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; made if it is not there.

        Raises:
            RunError: when another process works in it.
            StorageError: when it cannot be made.
        """
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        lock = self._acquire()
        try:
            yield
        finally:
            # Removed while still held: whoever waits finds the name gone and makes its own.
            with contextlib.suppress(OSError):
                (self.path / _LOCK).unlink()
            lock.close()

    def _acquire(self) -> IO[str]:
        path = self.path / _LOCK
        while True:
            with storage_errors(path):
                stream = path.open("a+")
            if not _try_lock(stream):
                stream.seek(0)
                holder = stream.read().strip() or "another process"
                stream.close()
                raise RunError(
                    f"{self.path} is in use by {holder}",
                    hint="wait for that run to end, or choose another folder with --run-dir",
                )
            # The holder before us may have removed the name between our open and our lock.
            if path.exists() and os.path.samestat(path.stat(), os.fstat(stream.fileno())):
                break
            stream.close()
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {platform.node()}\n")
        stream.flush()
        return stream


def _try_lock(stream: IO[str]) -> bool:
    """Take the operating system's lock of an open file without waiting."""
    try:
        if os.name == "posix":
            import fcntl

            fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError:
        return False
    return True


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        StorageError: when the disk is full.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        StorageError: when the disk is full.
    """
    with storage_errors(path):
        replace_file(path, _partial(path), content)


def _partial(path: Path) -> Path:
    """Where a file is written before it is whole."""
    return path.with_name(f".{path.name}.partial")
