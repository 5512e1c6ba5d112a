"""What an installation can do and what it lacks, found out without running anything heavy."""

import importlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lamella.core.errors import LamellaError
from lamella.core.optional import is_importable
from lamella.core.places import Places
from lamella.engines.registry import check_engine, list_engines
from lamella.io.format import descriptors
from lamella.workflows.objects import available_bytes
from lamella.workflows.versions import package_versions

__all__ = ["Check", "diagnose"]

State = Literal["ok", "absent", "broken"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at.

    Attributes:
        area: what it belongs to.
        name: what was looked at.
        state: ``absent`` is a thing that an extra would add; ``broken`` should work and does not.
        detail: what was found.
        hint: what to do.
    """

    area: str
    name: str
    state: State
    detail: str
    hint: str = ""


def diagnose(places: Places | None = None) -> tuple[Check, ...]:
    """Look at everything once.

    Args:
        places: where models and environments lie; the user's own unless given.
    """
    return (
        *_machine(),
        *_formats(),
        *_engines(),
        *_models(places or Places.of_user()),
        *_devices(),
    )


def _machine() -> Iterator[Check]:
    versions = package_versions()
    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    yield Check("Machine", "lamella", "ok", versions["lamella"])
    yield Check("Machine", "python", "ok", f"{versions['python']} on {system}")
    n_cores = os.cpu_count() or 1
    memory = available_bytes()
    free = "memory unknown" if memory is None else f"{memory / 1e9:.1f} GB of memory free"
    yield Check("Machine", "processor", "ok", f"{n_cores} cores, {free}")
    disk = shutil.disk_usage(Path.cwd()).free / 1e9
    state: State = "ok" if disk > 1 else "broken"
    hint = "" if disk > 1 else "free some space: runs write their labels here"
    yield Check("Machine", "disk", state, f"{disk:.1f} GB free in this folder", hint)


def _formats() -> Iterator[Check]:
    for known in descriptors():
        does = " and ".join(
            word for word, is_done in (("reads", known.reads), ("writes", known.writes)) if is_done
        )
        if known.missing:
            state: State = "absent" if known.extra else "broken"
            yield Check("Formats", known.id, state, "missing", known.unavailable_reason or "")
        else:
            problem = _problem_of_import(known.module)
            yield Check("Formats", known.id, "broken" if problem else "ok", problem or does)


def _engines() -> Iterator[Check]:
    for engine in list_engines():
        availability = check_engine(engine)
        if availability.is_available:
            yield Check("Engines", engine.id, "ok", engine.title)
        else:
            state: State = "absent" if engine.extra else "broken"
            yield Check("Engines", engine.id, state, availability.reason, availability.hint)


def _models(places: Places) -> Iterator[Check]:
    from lamella.models.catalogue import list_models
    from lamella.models.folder import ModelFolder

    entries = list_models(places.models)
    if not entries:
        yield Check("Models", "none", "absent", "no model is there", "give --model a model folder")
    for entry in entries:
        problem = entry.problem or _problem_of(lambda path=entry.path: ModelFolder.open(path))
        detail = problem or f"{entry.n_bytes / 1e6:.1f} MB, files as in its card"
        yield Check("Models", entry.id, "broken" if problem else "ok", detail)


def _devices() -> Iterator[Check]:
    problem = _problem_of_import("openvino")
    versions = package_versions()
    found = f"OpenVINO {versions.get('openvino', '')}".strip()
    yield Check("Devices", "cpu", "broken" if problem else "ok", problem or found)
    if not is_importable("torch"):
        install = 'pip install "lamella[torch]"'
        yield Check("Devices", "cuda", "absent", "PyTorch is not installed", install)
        return
    problem, name = _cuda()
    yield Check("Devices", "cuda", "ok" if name else "absent", name or problem)


def _cuda() -> tuple[str, str]:
    """Why there is no CUDA device, or the name of the first."""
    try:
        torch = importlib.import_module("torch")
        if torch.cuda.is_available():
            return "", str(torch.cuda.get_device_name(0))
    except (ImportError, OSError, RuntimeError) as error:
        return f"PyTorch cannot be used: {error}", ""
    return "no CUDA device is visible", ""


def _problem_of_import(module: str) -> str:
    return _problem_of(lambda: importlib.import_module(module))


def _problem_of(work: Callable[[], object]) -> str:
    """What went wrong; empty when nothing did."""
    try:
        work()
    except LamellaError as error:
        return error.message
    except (ImportError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
