"""What the installed TotalSegmentator can do, read from the package itself.

The worker describes the package once (a few seconds); the answer is kept beside the environment,
under the version and the lock it was made from, and read from there afterwards.

Examples:
    >>> stage = Stage(datasets=(291, 292), spacing_xyz=(1.5, 1.5, 1.5), trainer="T", model="3d")
    >>> stage.only((292,)).datasets
    (292,)
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamella.core.errors import EngineError, InputError, UnknownModelError
from lamella.core.progress import SilentSink
from lamella.core.registry import nearest_names

if TYPE_CHECKING:
    from collections.abc import Collection

    from lamella.core.places import Places
    from lamella.core.progress import ProgressSink

__all__ = ["ENVIRONMENT", "WORKER", "Package", "Stage", "Task", "describe_package", "kept_package"]

ENVIRONMENT = "totalsegmentator"
WORKER = Path(__file__).with_name("worker.py")
FORMAT_VERSION = 1
"""Of the kept description; raised when the worker's answer changes its shape."""

Variants = Mapping[str, tuple["Stage", ...]]


@dataclass(frozen=True, slots=True)
class Stage:
    """One call of the package's predictor.

    Attributes:
        datasets: ids of the models it runs, one after the other.
        spacing_xyz: what the image is resampled to, (x, y, z) in mm; None = as it comes.
        trainer: class that trained them; part of the folder's name, as ``model`` and ``plans``.
        model: configuration, such as ``3d_fullres``.
        plans: identifier of the plans.
        folds: networks that are averaged; None = all that are there.
        step: distance of tiles as a share of the tile.
    """

    datasets: tuple[int, ...]
    spacing_xyz: tuple[float, float, float] | None
    trainer: str
    model: str
    plans: str = "nnUNetPlans"
    folds: tuple[int, ...] | None = (0,)
    step: float = 0.5

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Stage:
        """Read a stage of the worker's answer."""
        spacing = raw["spacing_xyz"]
        return cls(
            datasets=tuple(int(value) for value in raw["datasets"]),
            spacing_xyz=None if spacing is None else (spacing[0], spacing[1], spacing[2]),
            trainer=str(raw["trainer"]),
            model=str(raw["model"]),
            plans=str(raw["plans"]),
            folds=None if raw["folds"] is None else tuple(raw["folds"]),
            step=float(raw["step"]),
        )

    def only(self, datasets: Collection[int]) -> Stage:
        """The stage with some of its models."""
        return replace(self, datasets=tuple(one for one in self.datasets if one in datasets))

    def as_document(self) -> dict[str, Any]:
        """Plain values for the worker."""
        return {
            "datasets": list(self.datasets),
            "spacing_xyz": self.spacing_xyz and list(self.spacing_xyz),
            "trainer": self.trainer,
            "model": self.model,
            "plans": self.plans,
            "folds": self.folds and list(self.folds),
            "step": self.step,
        }


@dataclass(frozen=True, slots=True)
class Task:
    """One of the package's tasks.

    Attributes:
        name: as the package calls it.
        modality: ``CT`` or ``MR``.
        is_licensed: whether it runs with a licence number only.
        classes: names by label value.
        modes: ``default`` and, where there are models for them, ``fast`` and ``fastest``; for
            each the stages by variant (``plain``, ``roi_subset``, ``robust_crop``, ...).
    """

    name: str
    modality: str
    is_licensed: bool
    classes: Mapping[int, str]
    modes: Mapping[str, Variants]

    def stages(self, mode: str, variant: str = "plain") -> tuple[Stage, ...]:
        """The calls of one way of running it."""
        return self.modes[mode].get(variant, self.modes[mode]["plain"])

    @property
    def spacing_mm(self) -> tuple[float, float, float] | None:
        """(z, y, x) of the default mode's images; None = as they come."""
        xyz = self.stages("default")[-1].spacing_xyz
        return None if xyz is None else (xyz[2], xyz[1], xyz[0])


@dataclass(frozen=True, slots=True)
class Package:
    """The installed version.

    Attributes:
        version: of TotalSegmentator.
        versions: of it and what it computes with.
        arguments: names its main function takes.
        tasks: by name.
        folders: of weights, by dataset id.
        releases: from which a dataset's zip can be fetched; those of licensed ones are not there.
        parts: class names of each dataset of a task of several.
        base_url: of the releases.
        document: the worker's answer, plain values.
    """

    version: str
    versions: Mapping[str, str]
    arguments: frozenset[str]
    tasks: Mapping[str, Task]
    folders: Mapping[int, str]
    releases: Mapping[int, str]
    parts: Mapping[int, tuple[str, ...]]
    base_url: str
    document: Mapping[str, Any] = field(repr=False, compare=False)

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Package:
        """Read the worker's answer.

        Raises:
            EngineError: an answer of another shape.
        """
        try:
            # Names instead of numbers are models of other tools in the package.
            weights = {int(k): v for k, v in raw["weights"].items() if k.isdecimal()}
            return cls(
                version=str(raw["version"]),
                versions=dict(raw["versions"]),
                arguments=frozenset(raw["arguments"]),
                tasks={name: _task(name, facts) for name, facts in raw["tasks"].items()},
                folders={k: str(v["folder"]) for k, v in weights.items()},
                releases={k: str(v["release"]) for k, v in weights.items() if v["release"]},
                parts={int(k): tuple(v) for k, v in raw["parts"].items()},
                base_url=str(raw["base_url"]),
                document=dict(raw),
            )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise EngineError(
                f"the installed TotalSegmentator describes itself in an unknown way: {error!r}",
                hint="make its environment anew: lamella engines install totalsegmentator --fresh",
            ) from error

    def find_task(self, name: str) -> Task:
        """Return a task.

        Raises:
            UnknownModelError: no such task in this version, with the nearest names.
        """
        if name in self.tasks:
            return self.tasks[name]
        near = nearest_names(name, self.tasks)
        raise UnknownModelError(
            f"TotalSegmentator {self.version} has no task {name!r}",
            hint=(f"did you mean {' or '.join(near)}? " if near else "")
            + f"its tasks: {', '.join(sorted(self.tasks))}",
            details={"task": name, "known": sorted(self.tasks)},
        )

    def url(self, dataset: int) -> str | None:
        """Where the zip of a dataset's weights lies; None for licensed and unpublished ones."""
        release = self.releases.get(dataset)
        if release is None:
            return None
        return f"{self.base_url}/{release}/{self.folders[dataset]}.zip"


def _task(name: str, raw: Mapping[str, Any]) -> Task:
    modes = {
        mode: {key: tuple(Stage.parse(one) for one in stages) for key, stages in variants.items()}
        for mode, variants in raw["modes"].items()
    }
    return Task(
        name=name,
        modality=str(raw["modality"]),
        is_licensed=bool(raw["is_licensed"]),
        classes={int(k): str(v) for k, v in raw["classes"].items()},
        modes=modes,
    )


def describe_package(places: Places, sink: ProgressSink | None = None) -> Package:
    """Tell what the installed version can do.

    Args:
        places: where environments lie.
        sink: asked for cancellation while the package is asked for the first time.

    Raises:
        MissingDependencyError: the environment is not ready, with the command that makes it.
        EngineError: the package cannot be asked.
    """
    from lamella.isolation.environment import python_of
    from lamella.isolation.process import run_worker

    python = python_of(ENVIRONMENT, places)
    known = kept_package(places)
    if known is not None:
        return known
    with tempfile.TemporaryDirectory(prefix="lamella-") as folder:
        answer = run_worker(
            python,
            WORKER,
            {"kind": "describe"},
            sink=sink or SilentSink(),
            on_message=lambda _: None,
            exchange=Path(folder),
        )
    package = Package.parse(answer)
    _keep(places, answer)
    return package


def kept_package(places: Places) -> Package | None:
    """What was kept of the installed version's description; None where it was never asked."""
    path, key = _cache(places)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(document, dict) or document.get("key") != key or not key:
        return None
    try:
        return Package.parse(document["package"])
    except (EngineError, KeyError):
        return None


def _keep(places: Places, answer: Mapping[str, Any]) -> None:
    path, key = _cache(places)
    document = {"key": key, "package": {k: v for k, v in answer.items() if k != "type"}}
    partial = path.with_name(f"{path.name}.part")
    try:
        partial.write_text(json.dumps(document), encoding="utf-8")
        partial.replace(path)
    except OSError:
        # A folder of the administrator's: the package is asked again each time.
        partial.unlink(missing_ok=True)


def _cache(places: Places) -> tuple[Path, str]:
    """The file, and what tells whether it is about the environment that is there now."""
    from lamella.isolation.environment import STAMP_NAME, environment_path

    folder = environment_path(ENVIRONMENT, places)
    pattern = "[Tt]otal[Ss]egmentator-*.dist-info"
    found = sorted(
        path.name
        for place in ("lib/python3*/site-packages", "Lib/site-packages")
        for path in folder.glob(f"{place}/{pattern}")
    )
    try:
        stamp = (folder / STAMP_NAME).read_text(encoding="utf-8")
    except OSError:
        stamp = ""
    key = f"{FORMAT_VERSION} {' '.join(found)} {stamp.strip()}" if found and stamp else ""
    return folder.with_name(f"{ENVIRONMENT}.tasks.json"), key


def classes_of(package: Package, task: Task, names: Collection[str]) -> tuple[str, ...]:
    """Check class names against a task.

    Raises:
        InputError: a name the task does not know, with the nearest ones.
    """
    known = list(task.classes.values())
    for name in names:
        if name not in known:
            near = nearest_names(name, known)
            raise InputError(
                f"the task {task.name!r} of TotalSegmentator {package.version} has no class"
                f" {name!r}",
                hint=(f"did you mean {' or '.join(near)}? " if near else "")
                + f"`lamella models show totalsegmentator:{task.name}` lists its"
                f" {len(known)} classes",
                details={"class": name, "near": near},
            )
    return tuple(name for name in known if name in set(names))
