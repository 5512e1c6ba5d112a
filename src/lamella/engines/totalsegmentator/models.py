"""TotalSegmentator's tasks as models, and its weights as the store sees them.

``totalsegmentator:TASK`` names a task of the installed version; ``totalsegmentator:TASK:fast`` and
``...:fastest`` its coarser models.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from lamella.core.errors import InputError, LicenceError
from lamella.core.places import Places
from lamella.engines.totalsegmentator.licence import LICENSED, OPEN_LICENCE, WHERE
from lamella.engines.totalsegmentator.listing import show
from lamella.engines.totalsegmentator.package import Package, Task, describe_package, kept_package
from lamella.engines.totalsegmentator.weights import (
    Weights,
    dataset_folders,
    dataset_id,
    find_weights,
    is_dataset_folder,
)
from lamella.models.foreign import ForeignModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lamella.volume.volume import Volume
    from lamella.wire.catalogue import CatalogueEntry
    from lamella.wire.request import SegmentRequest

__all__ = [
    "EXPECTED",
    "check_fit",
    "describe",
    "downloads",
    "find_model",
    "places_of",
    "recognise",
    "show",
    "task_of",
]

EXPECTED = "Dataset297_.../TRAINER__nnUNetPlans__CONFIGURATION/plans.json, a folder or zip of such"
HOMEPAGE = "https://github.com/wasserth/TotalSegmentator"
CITATION = (
    "Wasserthal, J., Breit, H.-C., Meyer, M. T., et al. (2023). TotalSegmentator: Robust"
    " Segmentation of 104 Anatomic Structures in CT Images. Radiology: Artificial Intelligence"
    " 5(5), e230024."
)
_ENGINE = "totalsegmentator"
_MODES = ("fast", "fastest")
# How its makers name most of their datasets; the rest is known from the installed version.
_LIKELY = re.compile(r"TotalSeg|_\d+subj")


def find_model(reference: str, places: Places) -> ForeignModel:
    """Return the task that is meant.

    Args:
        reference: a task, perhaps followed by ``:fast`` or ``:fastest``.
        places: where the environment, weights and the licence lie.

    Raises:
        UnknownModelError: no such task in the installed version, with the nearest names.
        InputError: weights instead of a task.
        MissingDependencyError: the environment is not ready.
    """
    package = describe_package(places)
    name, _, mode = reference.partition(":")
    _refuse_weights(name, package)
    task = package.find_task(name)
    if mode and mode not in _MODES:
        raise InputError(
            f"{mode!r} is no variant of a task", hint=f"write {name}:fast or {name}:fastest"
        )
    return ForeignModel(
        engine=_ENGINE,
        id=f"{_ENGINE}:{reference}",
        version=package.version,
        sha256=_digest(task, mode, find_weights(places)),
        licence=LICENSED if task.is_licensed else OPEN_LICENCE,
        title=f"TotalSegmentator {task.name}",
        details={
            "task": task.name,
            "mode": mode,
            "models": str(places.models or ""),
            "environments": str(places.environments or ""),
            "home": str(places.totalsegmentator_home or ""),
        },
    )


def places_of(model: ForeignModel) -> Places:
    """Where :func:`find_model` looked."""

    def path(name: str) -> Path | None:
        text = str(model.details.get(name) or "")
        return Path(text) if text else None

    return Places(
        models=path("models"),
        environments=path("environments"),
        totalsegmentator_home=path("home"),
    )


def task_of(model: ForeignModel, package: Package) -> tuple[Task, str | None]:
    """The task of a model, and the coarser variant its name asks for."""
    mode = str(model.details.get("mode") or "")
    return package.find_task(str(model.details["task"])), mode or None


def check_fit(volume: Volume, request: SegmentRequest, model: ForeignModel) -> None:
    """Say early all that speaks against a request.

    Raises:
        InputError: another kind of image, or options that the task does not take.
        LicenceError: a licensed task without a licence number.
        UnknownModelError: weights that are not here.
        GeometryError: unknown voxel size, or axes that are not at right angles.
    """
    from lamella.engines.totalsegmentator.settings import check_split, check_volume, resolve

    places = places_of(model)
    package = describe_package(places)
    task, mode = task_of(model, package)
    check_volume(volume, request, task)
    check_split(volume, resolve(request, task, mode, package, places))


def recognise(path: Path) -> bool:
    """Whether a folder or zip holds weights of TotalSegmentator.

    Args:
        path: a dataset's folder, a folder of such, or a zip of either.
    """
    names = _names(path)
    if not names:
        return False
    known = _known_folders()
    return all(name in known or _LIKELY.search(name) for name in names)


def describe(path: Path) -> Mapping[str, Any]:
    """Facts about weights, for the record of the store.

    Args:
        path: something that :func:`recognise` knows.
    """
    names = sorted(_names(path))
    numbers = [dataset_id(name) for name in names]
    package = _kept()
    tasks = [] if package is None else _tasks_with(package, {n for n in numbers if n is not None})
    is_licensed = package is not None and any(package.tasks[name].is_licensed for name in tasks)
    first = names[0]
    return {
        "id": first.lower() if len(names) == 1 else "totalsegmentator-weights",
        "title": f"TotalSegmentator weights {first}"
        + (f" and {len(names) - 1} more" * (len(names) > 1)),
        "description": f"used by {', '.join(tasks)}" if tasks else "",
        "task": "semantic",
        "axes": "zyx",
        "licence": LICENSED if is_licensed else OPEN_LICENCE,
        "licence_url": WHERE if is_licensed else HOMEPAGE,
        "citation": CITATION,
        "details": {"datasets": numbers, "folder": first, "tasks": tasks},
        "usage": f"{_ENGINE}:{tasks[0] if tasks else 'TASK'}",
    }


def downloads(reference: str, places: Places | None = None) -> Sequence[CatalogueEntry]:
    """What has to be pulled so that ``totalsegmentator:reference`` runs, with a preview.

    Args:
        reference: a task, perhaps followed by ``:fast`` or ``:fastest``.
        places: where the environment lies; the user's unless given.

    Raises:
        UnknownModelError: no such task.
        LicenceError: a licensed task, whose weights are not given away.
        MissingDependencyError: the environment is not ready: only it knows what a task needs.
    """
    from lamella.wire.catalogue import CatalogueEntry, DownloadDoc

    package = describe_package(places or Places.of_user())
    name, _, mode = reference.partition(":")
    task = package.find_task(name)
    entries: list[CatalogueEntry] = []
    for number in _needed(task, mode):
        url = package.url(number)
        folder = package.folders[number]
        if url is None:
            raise LicenceError(
                f"the weights of the task {task.name!r} ({folder}) are not given away: they come"
                " from TotalSegmentator's licence server",
                hint=f"get a licence at {WHERE}, fetch them with totalseg_download_weights -t"
                f" {task.name}, then: lamella models import FOLDER",
            )
        entries.append(
            CatalogueEntry(
                id=folder.lower(),
                engine=_ENGINE,
                version=package.releases[number],
                title=f"TotalSegmentator weights {folder}",
                description=f"for {', '.join(_tasks_with(package, {number}))}",
                task="semantic",
                axes="zyx",
                licence=OPEN_LICENCE,
                licence_url=HOMEPAGE,
                citation=CITATION,
                homepage=HOMEPAGE,
                files=(DownloadDoc(name=f"{folder}.zip", urls=(url,), unpack="zip"),),
            )
        )
    return tuple(entries)


def _needed(task: Task, mode: str) -> tuple[int, ...]:
    """Datasets of a task's own way, and of the coarsest one, which previews and crops use."""
    own = mode or "default"
    if own not in task.modes:
        raise InputError(
            f"the task {task.name!r} has no {own} model", hint=f"it has: {', '.join(task.modes)}"
        )
    stages = [*task.stages(own)]
    if "fastest" in task.modes:
        stages += task.stages("fastest")
    return tuple(dict.fromkeys(number for stage in stages for number in stage.datasets))


def _digest(task: Task, mode: str, weights: Mapping[int, Weights]) -> str | None:
    """Identity of the weights that are in the store; None where none of them is."""
    modes = [mode] if mode in task.modes else list(task.modes)
    numbers = {number for one in modes for stage in task.stages(one) for number in stage.datasets}
    known = [(n, weights[n].sha256) for n in sorted(numbers) if n in weights and weights[n].sha256]
    return hashlib.sha256(repr(known).encode()).hexdigest() if known else None


def _tasks_with(package: Package, numbers: set[int]) -> list[str]:
    """Tasks whose own classes come out of one of some datasets."""
    return sorted(
        name
        for name, task in package.tasks.items()
        if any(numbers & set(task.stages(mode)[-1].datasets) for mode in task.modes)
    )


def _refuse_weights(name: str, package: Package) -> None:
    """Weights are stored dataset by dataset, and several tasks may use one: a task is needed."""
    known = {folder.lower(): number for number, folder in package.folders.items()}
    number = dataset_id(Path(name).name) or known.get(Path(name).name.lower())
    if number is None:
        return
    uses = [
        f"{_ENGINE}:{task.name}" + ("" if mode == "default" else f":{mode}")
        for _, task in sorted(package.tasks.items())
        for mode in task.modes
        if number in task.stages(mode)[-1].datasets
    ]
    raise InputError(
        f"{name} is a set of weights, not a task",
        hint=f"use it with --model {' or '.join(uses)}" if uses else "name a task",
    )


def _names(path: Path) -> set[str]:
    """Names of the dataset folders that a folder or zip is made of; empty for anything else."""
    try:
        if path.is_dir():
            return {one.name for one in dataset_folders(path) if is_dataset_folder(one)}
        if path.is_file() and zipfile.is_zipfile(path):
            return _zipped_names(path)
    except (OSError, zipfile.BadZipFile):
        pass
    return set()


def _zipped_names(path: Path) -> set[str]:
    found: set[str] = set()
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            parts = PurePosixPath(name).parts
            if parts[-1:] != ("plans.json",) or len(parts) < 2 or parts[-2].count("__") != 2:
                continue
            folder = parts[-3] if len(parts) > 2 else path.name.removesuffix(".zip")
            if dataset_id(folder) is not None:
                found.add(folder)
    return found


def _kept() -> Package | None:
    """The installed version, where it was asked before: recognising starts nothing."""
    places = Places.of_user()
    return None if places.environments is None else kept_package(places)


def _known_folders() -> frozenset[str]:
    package = _kept()
    return frozenset() if package is None else frozenset(package.folders.values())
