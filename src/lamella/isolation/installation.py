"""Make an environment with uv: what is in uv's cache is linked, the rest is fetched and verified.

Nothing is named but the lock: which index uv asks, and with which credentials, is the user's own
configuration. The environment is built beside its place and moved there complete, so that an
interrupted installation is never taken for a ready one.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.core.errors import (
    DownloadError,
    EngineError,
    LamellaError,
    MissingDependencyError,
    OfflineError,
    StorageError,
)
from lamella.core.optional import is_importable
from lamella.core.progress import Progress
from lamella.core.storage import storage_error
from lamella.isolation.environment import (
    EnvironmentSpec,
    discard,
    environment_path,
    find_environment,
    interpreter,
    is_ready,
    write_stamp,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import IO

    from lamella.core.places import Places
    from lamella.core.progress import ProgressSink

__all__ = ["Cost", "estimate_cost", "find_uv", "install"]

_POLL_S = 0.2
_RESERVE_BYTES = 200_000_000
_SIZE = re.compile(r"^\s*Downloading (\S+) \(([\d.]+)\s*([KMG]?)i?B\)")
_FETCHED = re.compile(r"^\s*(?:Downloaded|Built) (\S+)")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True, slots=True)
class Cost:
    """What an installation takes, roughly.

    Attributes:
        download_bytes: to be fetched; 0 when uv's cache holds everything.
        disk_bytes: to be written; next to nothing where cached packages can be linked.
    """

    download_bytes: int
    disk_bytes: int


def find_uv() -> list[str]:
    """Return the command that starts uv.

    Raises:
        MissingDependencyError: there is no uv here.
    """
    found = shutil.which("uv")
    if found:
        return [found]
    if is_importable("uv"):
        return [sys.executable, "-m", "uv"]
    raise MissingDependencyError(
        "environments for engines are made with uv, and there is no uv here",
        hint="pip install uv",
    )


def install(
    name: str, places: Places, sink: ProgressSink, *, fresh: bool = False
) -> EnvironmentSpec:
    """Make an environment, unless it is there already.

    Args:
        name: of the environment.
        places: where environments lie; ``is_offline`` keeps uv to its cache.
        sink: hears of progress; cancelling leaves nothing behind.
        fresh: make it anew even where it is ready.

    Raises:
        MissingDependencyError: no uv, or no fitting Python.
        StorageError: the disk has too little space, or the folder cannot be written.
        OfflineError: packages are missing in uv's cache, and the network may not be asked.
        DownloadError: the network failed, or a package is not what the lock says.
        EngineError: uv failed otherwise, with its last words.
        RunCancelledError: the caller cancelled.
        UnknownIdError: no such environment.
    """
    spec = find_environment(name)
    folder = environment_path(name, places)
    if not fresh and is_ready(name, places).is_ready:
        return spec
    uv = find_uv()
    part = folder.with_name(f"{name}.part-{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        _build(_Uv(uv, folder.parent, sink), spec, part, is_offline=places.is_offline)
        write_stamp(spec, part)
        if folder.exists():
            discard(folder)
        part.rename(folder)
    except OSError as error:
        if isinstance(error, LamellaError):
            raise
        raise storage_error(error, folder) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return spec


def estimate_cost(name: str, places: Places) -> Cost:
    """Tell what :func:`install` would fetch and write, without doing it.

    Raises:
        MissingDependencyError: no uv.
        UnknownIdError: no such environment.
    """
    spec = find_environment(name)
    folder = environment_path(name, places)
    uv = _Uv(find_uv(), Path.cwd(), None)
    if not uv.has_cached(spec, Path(sys.executable)):
        return Cost(spec.download_bytes, spec.disk_bytes)
    return Cost(0, 0 if uv.can_link(folder) else spec.disk_bytes)


def _build(uv: _Uv, spec: EnvironmentSpec, part: Path, *, is_offline: bool) -> None:
    uv.sink_check()
    shutil.rmtree(part, ignore_errors=True)
    uv.run("venv", "--relocatable", "--python", _python_wish(spec), str(part), spec=spec)
    python = interpreter(part)
    is_cached = uv.has_cached(spec, python)
    is_linked = is_cached and uv.can_link(part)
    _check_disk(spec, part.parent, 0 if is_linked else spec.disk_bytes)
    # From the cache alone wherever it suffices: uv would otherwise ask the index all the same.
    offline = ("--offline",) if is_offline or is_cached else ()
    lock = str(spec.requirements)
    uv.run(*("pip", "sync", "--python", str(python), "--require-hashes", *offline, lock), spec=spec)


def _python_wish(spec: EnvironmentSpec) -> str:
    """This interpreter where it fits, else any that uv finds."""
    low, high = (tuple(map(int, part.split("."))) for part in re.findall(r"[\d.]+", spec.python))
    return sys.executable if low <= sys.version_info[:2] < high else spec.python


def _check_disk(spec: EnvironmentSpec, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + _RESERVE_BYTES:
        raise StorageError(
            f"the disk of {folder} has {free / 1e9:.1f} GB free; {spec.title} needs about"
            f" {(needed + _RESERVE_BYTES) / 1e9:.1f} GB",
            hint="free some space, or name a folder on another disk with LAMELLA_ENVIRONMENTS",
        )


def _sweep(folder: Path) -> None:
    """Delete what installations left that were killed."""
    for kind in ("part", "old"):
        for path in folder.parent.glob(f"{folder.name}.{kind}-*"):
            if not _is_alive(path.name.rpartition("-")[2]):
                shutil.rmtree(path, ignore_errors=True)


def _is_alive(text: str) -> bool:
    if not text.isdigit() or int(text) == os.getpid():
        return False
    if os.name == "nt":
        return True
    try:
        os.kill(int(text), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@dataclass(slots=True)
class _Fetching:
    """Sizes that uv announced, and what of them has come."""

    expected_bytes: int
    sizes: dict[str, int] = field(default_factory=dict)
    fetched: set[str] = field(default_factory=set)

    def take(self, line: str) -> Progress | None:
        """The progress a line of uv's tells of, if any."""
        announced = _SIZE.match(line)
        if announced:
            size = float(announced[2]) * _UNITS[announced[3]]
            self.sizes[announced[1]] = int(size)
        else:
            fetched = _FETCHED.match(line)
            if not fetched or not self.sizes:
                return None
            self.fetched.add(fetched[1])
        done = sum(size for name, size in self.sizes.items() if name in self.fetched)
        total = max(self.expected_bytes, sum(self.sizes.values()))
        return Progress("downloading", round(done / 1e6), round(total / 1e6), "MB")


class _Uv:
    """uv, as it is called here: quiet about bars, without a project's settings."""

    def __init__(self, command: Sequence[str], folder: Path, sink: ProgressSink | None) -> None:
        self._command = list(command)
        self._folder = folder
        self._sink = sink

    def sink_check(self) -> None:
        """Stop here if the caller cancelled."""
        if self._sink is not None:
            self._sink.check()

    def has_cached(self, spec: EnvironmentSpec, python: Path) -> bool:
        """Whether uv's cache holds every package of a lock."""
        # Into an empty folder: what is installed already must not count.
        arguments = ("pip", "sync", "--dry-run", "--offline", "--require-hashes")
        with tempfile.TemporaryDirectory() as empty:
            target = ("--python", str(python), "--target", empty)
            return self._ask(*arguments, *target, str(spec.requirements)) is not None

    def can_link(self, folder: Path) -> bool:
        """Whether packages can be linked out of uv's cache instead of copied."""
        said = self._ask("cache", "dir")
        cache = Path(said.strip()) if said else None
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        return cache is not None and cache.is_dir() and _device(cache) == _device(existing)

    def run(self, *arguments: str, spec: EnvironmentSpec) -> None:
        """Run uv to its end, telling of its progress.

        Raises:
            LamellaError: of the kind that fits what uv said.
            RunCancelledError: the caller cancelled; uv is stopped.
        """
        process = subprocess.Popen(
            [*self._command, "--no-progress", "--no-python-downloads", *arguments],
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        assert process.stderr is not None
        lines: queue.Queue[str] = queue.Queue()
        reader = threading.Thread(target=_pour, args=(process.stderr, lines), daemon=True)
        reader.start()
        said: list[str] = []
        fetching = _Fetching(spec.download_bytes)
        try:
            while reader.is_alive() or not lines.empty():
                self.sink_check()
                with contextlib.suppress(queue.Empty):
                    said.append(lines.get(timeout=_POLL_S))
                    self._tell(fetching.take(said[-1]))
            code = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            reader.join()
            process.stderr.close()
        if code != 0:
            raise _failure(spec, "".join(said).strip(), code)

    def _tell(self, progress: Progress | None) -> None:
        if progress is not None and self._sink is not None:
            self._sink.emit(progress)

    def _ask(self, *arguments: str) -> str | None:
        done = subprocess.run(
            [*self._command, "--no-progress", *arguments],
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        return done.stdout if done.returncode == 0 else None


def _pour(stream: IO[str], lines: queue.Queue[str]) -> None:
    for line in stream:
        lines.put(line)


def _device(path: Path) -> int:
    return path.stat().st_dev


_NETWORK = ("error sending request", "dns error", "failed to fetch", "connection", "timed out")
_CACHE_ONLY = ("network connectivity is disabled", "--offline", "was disabled")


def _failure(spec: EnvironmentSpec, said: str, code: int) -> LamellaError:
    """What uv said, in our words."""
    low = said.lower()
    details = {"uv": said[-4000:], "exit_code": code}
    if "no space left" in low or "disk quota" in low:
        return StorageError(
            f"the disk became full while {spec.title} was installed",
            hint="free some space and run the same command again; nothing half-done is left",
            details=details,
        )
    if "no interpreter found" in low or "no python" in low:
        return MissingDependencyError(
            f"{spec.title} needs a Python {spec.python}, and none is installed here",
            hint="install Python 3.11 or 3.12 (for instance `uv python install 3.12`)",
            details=details,
        )
    if any(word in low for word in _CACHE_ONLY):
        return OfflineError(
            f"packages of {spec.title} are not in uv's cache, and the network may not be used",
            hint="allow it once (LAMELLA_OFFLINE=0), or fill the cache where there is a network",
            details=details,
        )
    if "hash mismatch" in low:
        return DownloadError(
            f"a package of {spec.title} is not the one its lock names (its hash differs)",
            hint="check the package index and proxy that uv is configured for",
            details=details,
        )
    last = "\n".join(said.splitlines()[-6:])
    if any(word in low for word in _NETWORK):
        return DownloadError(
            f"packages of {spec.title} could not be fetched:\n{last}",
            hint="check the network and uv's settings (index, proxy), then run the command again",
            details=details,
        )
    return EngineError(
        f"uv could not make the environment of {spec.title}:\n{last or f'exit code {code}'}",
        hint="the packages may not exist for this system or Python; see the last lines of uv",
        details=details,
    )
