"""Environments of their own, for engines whose dependencies fight with everyone else's.

An environment is a folder with an interpreter and exactly the packages of a lock file that ships
with Lamella, hash by hash. It is ready only once its *stamp* is written, which is the last thing an
installation does; a stamp for another lock means that Lamella has moved on since.

::

    <places.environments>/cellpose3/
    ├── bin/python           (Scripts/python.exe on Windows)
    └── lamella.json         the stamp: SHA-256 of the lock it was made from

Another package brings an environment as an entry point of the group ``lamella.environments`` that
names an :class:`EnvironmentSpec`.

Examples:
    >>> from lamella.core.places import Places
    >>> is_ready("cellpose3", Places()).is_ready
    False
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.core.errors import EngineError, MissingDependencyError, UnknownIdError
from lamella.core.registry import nearest_names
from lamella.core.storage import storage_error

if TYPE_CHECKING:
    from lamella.core.places import Places

__all__ = [
    "ENTRY_POINTS",
    "STAMP_NAME",
    "EnvironmentSpec",
    "Readiness",
    "check",
    "environment_path",
    "find_environment",
    "is_ready",
    "list_environments",
    "python_of",
    "remove",
    "write_stamp",
]

ENTRY_POINTS = "lamella.environments"
"""Group of the entry points by which other packages add environments."""
STAMP_NAME = "lamella.json"
"""The file that marks an environment as complete, written last."""
STAMP_VERSION = 1
_LOCKS = Path(__file__).parent / "locks"
_CHECK_S = 300.0


@dataclass(frozen=True, slots=True)
class EnvironmentSpec:
    """What an environment is made of.

    Attributes:
        name: of its folder, and in ``EngineDescriptor.environment``.
        title: for people.
        requirements: lock file, every package pinned with its hashes, as
            ``uv pip compile --universal --generate-hashes`` writes it.
        imports: modules that must import in it, for :func:`check`.
        python: versions of Python it can be made with.
        download_bytes: roughly what a first installation fetches, on Linux with CUDA libraries.
        disk_bytes: roughly what it takes on disk, likewise.
    """

    name: str
    title: str
    requirements: Path
    imports: tuple[str, ...]
    python: str = ">=3.11,<3.13"
    download_bytes: int = 3_000_000_000
    disk_bytes: int = 6_000_000_000

    @property
    def sha256(self) -> str:
        """SHA-256 of the lock, by which an outdated environment is told."""
        # Line ends are not content: the same lock is the same on every system.
        text = self.requirements.read_text(encoding="utf-8")
        return hashlib.sha256(text.encode()).hexdigest()


_OWN = (
    EnvironmentSpec(
        name="cellpose3",
        title="Cellpose 3, with its restoration models",
        requirements=_LOCKS / "cellpose3.txt",
        imports=("cellpose.models", "cellpose.denoise"),
    ),
    EnvironmentSpec(
        name="cellpose4",
        title="Cellpose 4 (Cellpose-SAM)",
        requirements=_LOCKS / "cellpose4.txt",
        imports=("cellpose.models", "segment_anything"),
    ),
    EnvironmentSpec(
        name="totalsegmentator",
        title="TotalSegmentator",
        requirements=_LOCKS / "totalsegmentator.txt",
        imports=("totalsegmentator.python_api", "nnunetv2"),
        disk_bytes=7_000_000_000,
    ),
)


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether an environment can be used, and why not."""

    is_ready: bool
    reason: str = ""


def list_environments() -> tuple[EnvironmentSpec, ...]:
    """Return every environment known, own ones first.

    An entry point that cannot be loaded is left out; the engine that needs it then says so.
    """
    known = {spec.name: spec for spec in _OWN}
    for point in entry_points(group=ENTRY_POINTS):
        try:
            spec = point.load()
        except Exception:  # noqa: BLE001 - somebody else's code; it must not hide the others
            continue
        if isinstance(spec, EnvironmentSpec):
            known.setdefault(spec.name, spec)
    return tuple(known.values())


def find_environment(name: str) -> EnvironmentSpec:
    """Return an environment by its name.

    Raises:
        UnknownIdError: no such environment, with the nearest names.
    """
    for spec in _OWN:
        if spec.name == name:
            return spec
    known = {spec.name: spec for spec in list_environments()}
    if name in known:
        return known[name]
    near = nearest_names(name, known)
    raise UnknownIdError(
        f"unknown environment {name!r}; known: {', '.join(known)}",
        hint=f"did you mean {' or '.join(near)}?" if near else None,
    )


def environment_path(name: str, places: Places) -> Path:
    """Return the folder of an environment, whether or not it is there.

    Raises:
        MissingDependencyError: no folder for environments is set.
    """
    if places.environments is None:
        raise MissingDependencyError(
            f"the environment {name!r} has no place: no folder for environments is set",
            hint="name one with LAMELLA_ENVIRONMENTS, or pass Places(environments=...)",
        )
    return places.environments.absolute() / name


def python_of(name: str, places: Places) -> Path:
    """Return the interpreter of an environment that is ready.

    Raises:
        MissingDependencyError: it is not ready, with the reason and the command that mends it.
        UnknownIdError: no such environment.
    """
    readiness = is_ready(name, places)
    if not readiness.is_ready:
        raise MissingDependencyError(readiness.reason, hint=f"lamella engines install {name}")
    return interpreter(environment_path(name, places))


def interpreter(folder: Path) -> Path:
    """Return where an environment keeps its interpreter."""
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def is_ready(name: str, places: Places) -> Readiness:
    """Tell whether an environment is complete and of this version; starts nothing.

    Raises:
        UnknownIdError: no such environment.
    """
    spec = find_environment(name)
    if places.environments is None:
        return Readiness(False, "no folder for environments is set")
    folder = environment_path(name, places)
    if not folder.is_dir():
        return Readiness(False, f"its environment {name!r} is not installed")
    try:
        stamp = json.loads((folder / STAMP_NAME).read_text(encoding="utf-8"))
        made_from = stamp["lock_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return Readiness(False, f"its environment {folder} is incomplete")
    if made_from != spec.sha256:
        return Readiness(False, f"its environment {folder} was made for another version of Lamella")
    if not interpreter(folder).exists():
        return Readiness(False, f"the Python that its environment {folder} was made with is gone")
    return Readiness(True)


def write_stamp(spec: EnvironmentSpec, folder: Path) -> None:
    """Mark a folder as a complete environment."""
    document = {"format_version": STAMP_VERSION, "name": spec.name, "lock_sha256": spec.sha256}
    partial = folder / f"{STAMP_NAME}.part"
    partial.write_text(json.dumps(document) + "\n", encoding="utf-8")
    partial.replace(folder / STAMP_NAME)


def check(name: str, places: Places) -> None:
    """Start an environment's interpreter and import its engine.

    Raises:
        MissingDependencyError: the environment is not ready.
        EngineError: the engine cannot be imported there, with what it said.
        UnknownIdError: no such environment.
    """
    spec = find_environment(name)
    python = python_of(name, places)
    program = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    try:
        done = subprocess.run(
            [str(python), "-I", "-c", program, *spec.imports],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_CHECK_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(
            f"the environment {name!r} can't be started: {error}", hint=_again(name)
        ) from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise EngineError(
            f"the environment {name!r} is installed, but {spec.imports[0]} can't be imported in it:"
            f" {said[0]}",
            hint=_again(name),
            details={"stderr": done.stderr[-4000:]},
        )


def remove(name: str, places: Places) -> bool:
    """Delete an environment and what interrupted installations left of it.

    Returns:
        Whether there was anything to delete.

    Raises:
        StorageError: it may not be deleted.
        UnknownIdError: no such environment.
    """
    find_environment(name)
    folder = environment_path(name, places)
    leftovers = [
        folder,
        *folder.parent.glob(f"{name}.part-*"),
        *folder.parent.glob(f"{name}.old-*"),
    ]
    there = [path for path in leftovers if path.exists()]
    for path in there:
        discard(path)
    return bool(there)


def discard(folder: Path) -> None:
    """Delete a folder such that an interruption never leaves half of it under its name.

    Raises:
        StorageError: it may not be deleted.
    """
    doomed = folder
    try:
        if ".old-" not in folder.name:
            doomed = folder.with_name(f"{folder.name}.old-{os.getpid()}")
            folder.rename(doomed)
        shutil.rmtree(doomed)
    except OSError as error:
        raise storage_error(error, doomed) from error


def _again(name: str) -> str:
    return f"make it anew: lamella engines install {name} --fresh"
