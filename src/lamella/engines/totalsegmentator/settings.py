"""A request becomes one complete set of settings, and all that speaks against it is said at once.

Examples:
    >>> roi_names("spleen, liver")
    ('spleen', 'liver')
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from lamella.core.errors import AxesError, GeometryError, InputError
from lamella.engines.options import resolve_options
from lamella.engines.totalsegmentator.descriptor import OPTIONS, TOTALSEGMENTATOR
from lamella.engines.totalsegmentator.licence import find_licence
from lamella.engines.totalsegmentator.package import Package, Stage, Task, classes_of
from lamella.engines.totalsegmentator.weights import Weights, check_present, find_weights
from lamella.io.frames import affine_in_unit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lamella.core.places import Places
    from lamella.engines.options import OptionValue
    from lamella.volume.volume import Note, Volume
    from lamella.wire.request import SegmentRequest

__all__ = [
    "PreviewPlan",
    "Settings",
    "check_split",
    "check_volume",
    "resolve",
    "roi_names",
    "single_image",
]

_PASSED_ON = (
    "fast",
    "fastest",
    "body_seg",
    "robust_crop",
    "remove_small_blobs",
    "higher_order_resampling",
    "force_split",
)
"""Options that are arguments of the package's main function under the same name."""
_SPLIT_PLANES = 60


@dataclass(frozen=True, slots=True)
class PreviewPlan:
    """How the coarse labels of the first pass are made.

    Attributes:
        stages: what is run.
        arguments: of the package's main function.
        is_coarse: the task's own model, on every second voxel.
        spacing_mm: of the labels it leaves, as far as the input is finer.
        how: in words.
    """

    stages: tuple[Stage, ...]
    arguments: Mapping[str, Any]
    is_coarse: bool
    spacing_mm: float
    how: str


@dataclass(frozen=True, slots=True)
class Settings:
    """How a job is run.

    Attributes:
        package: the installed version.
        task: what is segmented.
        roi: names of the classes wanted; empty = all.
        stages: calls of the predictor, the task's own one last, with the models that are run.
        arguments: of the package's main function.
        weights: where the models lie, by dataset id.
        licence: the licence number; empty for tasks that need none.
        device: ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:N``.
        measures: confidence maps to leave.
        preview: the coarse pass; None for none.
        options: every option with its value, for the manifest; never the licence number.
    """

    package: Package
    task: Task
    roi: tuple[str, ...]
    stages: tuple[Stage, ...]
    arguments: Mapping[str, Any]
    weights: Mapping[int, Weights]
    licence: str
    device: str
    measures: tuple[str, ...]
    preview: PreviewPlan | None
    options: Mapping[str, OptionValue]

    @property
    def classes(self) -> dict[int, str]:
        """Names by label value of what may be found."""
        wanted = set(self.roi)
        return {k: v for k, v in self.task.classes.items() if not wanted or v in wanted}

    @property
    def datasets(self) -> tuple[int, ...]:
        """Ids of all models of the main pass, each once."""
        return tuple(dict.fromkeys(one for stage in self.stages for one in stage.datasets))


def resolve(
    request: SegmentRequest, task: Task, mode: str | None, package: Package, places: Places
) -> Settings:
    """Check a request against the installed version and what lies here.

    Args:
        request: what is asked for.
        task: of the model's name.
        mode: ``fast`` or ``fastest`` where the model's name says it.
        package: the installed version.
        places: where weights and the licence are looked for.

    Raises:
        InputError: options that the task or the version does not take.
        LicenceError: a licensed task without a licence number.
        UnknownModelError: weights that are not here.
    """
    options = resolve_options(TOTALSEGMENTATOR.id, OPTIONS, _as_text(request.options))
    _check_request(request)
    options = _with_mode(options, task, mode)
    roi = _roi(options, task, package)
    _check_options(options, task, package)
    # The licence comes before the weights: it is what these cannot be fetched without.
    number = find_licence(task, cast("str | None", options["licence"]), places)
    weights = find_weights(places, cast("str | None", options["weights"]))
    stages = _stages(options, task, roi, package)
    check_present(package, task, [one for stage in stages for one in stage.datasets], weights)
    arguments: dict[str, Any] = {"task": task.name}
    arguments |= {name: options[name] for name in _PASSED_ON if options[name]}
    if roi:
        arguments["roi_subset"] = list(roi)
    is_sure = request.confidence
    return Settings(
        package=package,
        task=task,
        roi=roi,
        stages=stages,
        arguments=arguments,
        weights=weights,
        licence=number,
        device=request.device,
        measures=TOTALSEGMENTATOR.confidence if is_sure else (),
        preview=_preview(task, stages, arguments, weights) if request.preview else None,
        options={
            **options,
            "roi_subset": ",".join(roi) or None,
            "licence": "given" if number else None,
        },
    )


def roi_names(text: str) -> tuple[str, ...]:
    """Class names out of a list separated by commas."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def single_image(volume: Volume) -> Volume:
    """The volume without a channel axis of length one."""
    if "c" in volume.axes and volume.n_channels == 1:
        return volume.select("c", 0)
    return volume


def check_volume(volume: Volume, request: SegmentRequest, task: Task) -> tuple[Note, ...]:
    """Refuse what is not the kind of scan the task was trained on.

    Returns:
        What the user must be warned of.

    Raises:
        InputError: another kind of image, or none that anybody stated.
        AxesError: not a single volume.
        GeometryError: unknown voxel size, or axes that are not at right angles.
    """
    from lamella.io.modality import check_ct_or_mr

    volume = single_image(volume)
    wanted = cast('Literal["CT", "MR"]', task.modality)
    found = check_ct_or_mr(
        volume,
        request.modality,
        allowed=(wanted,),
        purpose=f"TotalSegmentator's task {task.name!r}",
    )
    if min(volume.spatial_shape) == 1:
        raise AxesError(
            f"TotalSegmentator works on volumes; the input of shape {volume.spatial_shape} is a"
            " single plane",
            hint="open the whole series",
        )
    if not volume.affine.is_orthogonal:
        raise GeometryError(
            "the axes of the input are not at right angles (gantry tilt?), which TotalSegmentator"
            " would take them to be",
            hint="open the DICOM series with --resample-irregular",
        )
    return found.notes


def check_split(volume: Volume, settings: Settings) -> None:
    """Refuse to cut a short image into thirds: the package's pieces overlap by 20 planes.

    Raises:
        InputError: with the length it takes.
    """
    if not settings.options["force_split"]:
        return
    affine = affine_in_unit(volume.affine, volume.unit, "mm")
    # The index axis that runs along the body, as the closest canonical orientation has it.
    axis = int(np.argmax(np.abs(np.asarray(affine.direction)[0])))
    spacing = settings.stages[-1].spacing_xyz
    fine = affine.spacing[axis] if spacing is None else spacing[2]
    n_planes = round(volume.spatial_shape[axis] * affine.spacing[axis] / fine)
    if n_planes < _SPLIT_PLANES:
        raise InputError(
            f"force_split cuts the image into three along the body, which takes {_SPLIT_PLANES}"
            f" planes of {fine:g} mm; this one has {n_planes}",
            hint="leave force_split out: an image of this size needs no splitting",
        )


# --- parts of resolve -----------------------------------------------------------------------------


def _as_text(options: Mapping[str, Any]) -> dict[str, Any]:
    """A list of class names is as good as names separated by commas."""
    wanted = dict(options)
    roi = wanted.get("roi_subset")
    if isinstance(roi, list | tuple):
        wanted["roi_subset"] = ",".join(str(name) for name in cast("list[object]", roi))
    return wanted


def _check_request(request: SegmentRequest) -> None:
    if request.tta:
        raise InputError(
            "TotalSegmentator takes no --tta: its networks tell left from right, and mirrored"
            " copies would mix them up",
            hint="leave --tta out",
        )
    if request.tile is not None or request.overlap_fraction is not None:
        raise InputError(
            "the tiles of TotalSegmentator's networks are fixed by their plans",
            hint="leave --tile and --overlap-fraction out; --option fast=true or roi_subset=... are"
            " its ways to less time and memory",
        )
    if request.precision not in ("auto", "fp32"):
        raise InputError(
            f"TotalSegmentator chooses its precision itself (fp32 on the CPU, mixed on CUDA), not"
            f" {request.precision}",
            hint="leave --precision out",
        )


def _with_mode(
    options: dict[str, OptionValue], task: Task, mode: str | None
) -> dict[str, OptionValue]:
    asked = [name for name in ("fast", "fastest") if options[name]]
    if mode is not None and mode not in asked:
        asked.append(mode)
    if len(asked) > 1:
        raise InputError("fast and fastest are two different models", hint="ask for one of the two")
    if asked and asked[0] not in task.modes:
        others = [name for name in task.modes if name != "default"]
        raise InputError(
            f"the task {task.name!r} has no {asked[0]} model",
            hint=f"it has: {', '.join(others)}" if others else f"leave {asked[0]} out",
        )
    return {**options, "fast": asked == ["fast"], "fastest": asked == ["fastest"]}


def _roi(options: Mapping[str, OptionValue], task: Task, package: Package) -> tuple[str, ...]:
    names = roi_names(str(options["roi_subset"] or ""))
    if options["roi_subset"] is not None and not names:
        raise InputError("roi_subset names no class", hint="roi_subset=spleen,liver")
    if not names:
        return ()
    if "roi_subset" not in task.modes["default"]:
        takers = [
            name
            for name, one in package.tasks.items()
            if "roi_subset" in one.modes.get("default", {})
        ]
        raise InputError(
            f"the task {task.name!r} takes no roi_subset, only {', '.join(takers)}",
            hint="leave it out; unwanted classes can be dropped from the labels",
        )
    return classes_of(package, task, names)


def _check_options(options: Mapping[str, OptionValue], task: Task, package: Package) -> None:
    for name in _PASSED_ON:
        if options[name] and name not in package.arguments:
            raise InputError(
                f"TotalSegmentator {package.version} has no option {name}",
                hint="leave it out, or install a newer version of Lamella",
            )
    if options["body_seg"] and task.modality == "MR":
        raise InputError(
            "body_seg is for CT: TotalSegmentator has no such crop for MR", hint="leave it out"
        )


def _stages(
    options: Mapping[str, OptionValue], task: Task, roi: tuple[str, ...], package: Package
) -> tuple[Stage, ...]:
    """The calls of the package, as it told them itself, with the models that are needed."""
    mode = "fastest" if options["fastest"] else "fast" if options["fast"] else "default"
    variant = "plain"
    if roi:
        variant = "roi_subset+robust_crop" if options["robust_crop"] else "roi_subset"
    elif options["body_seg"]:
        variant = "body_seg"
    elif options["robust_crop"]:
        variant = "robust_crop"
    stages = task.stages(mode, variant)
    last = stages[-1]
    if roi and len(last.datasets) > 1:
        wanted = set(roi)
        known = [one for one in last.datasets if wanted & set(package.parts.get(one, roi))]
        stages = (*stages[:-1], last.only(known))
    return stages


def _preview(
    task: Task,
    stages: tuple[Stage, ...],
    arguments: Mapping[str, Any],
    weights: Mapping[int, Weights],
) -> PreviewPlan:
    """A coarser model of the task where its weights are here; else the same one, coarsely."""
    own = "fastest" if arguments.get("fastest") else "fast" if arguments.get("fast") else "default"
    order = ("default", "fast", "fastest")
    for mode in reversed(order[order.index(own) + 1 :]):
        if mode not in task.modes:
            continue
        coarser = task.stages(mode)
        spacing = coarser[-1].spacing_xyz
        if spacing and all(one in weights for stage in coarser for one in stage.datasets):
            return PreviewPlan(
                stages=coarser,
                arguments={"task": task.name, mode: True},
                is_coarse=False,
                spacing_mm=max(spacing),
                how=f"by TotalSegmentator's own model for {max(spacing):g} mm ({mode})",
            )
    spacing = stages[-1].spacing_xyz
    return PreviewPlan(
        stages=stages,
        arguments=arguments,
        is_coarse=True,
        spacing_mm=2 * max(spacing) if spacing else math.nan,
        how="by the same model on every second voxel: expect missing and mistaken parts",
    )
