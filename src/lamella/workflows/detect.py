"""Finding vertebrae: from a CT, or from labels, to a report that a reader can check.

::

    CT ──modality──▶ segment (TotalSegmentator, a run folder) ─┐
                                                               ├▶ measure ─▶ order ─▶ report
    CT + labels that somebody made ────────────────────────────┘

What the labels cannot tell is not made up: without the model's probabilities there is no
confidence, and a level that is doubtful keeps its label and gets a warning.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import InputError
from lamella.core.places import Places
from lamella.core.progress import SilentSink
from lamella.io.format import open_labels
from lamella.io.modality import check_ct_or_mr
from lamella.io.reorient import covered_box, onto_grid
from lamella.measurement.spine import check_spine
from lamella.measurement.spine_levels import CLASS_MAPS, levels_of
from lamella.measurement.vertebrae import Vertebra, find_vertebrae
from lamella.volume.labels import LabelClass, Labels
from lamella.volume.volume import Volume
from lamella.wire.event import EventSink, WarningEvent
from lamella.wire.request import InputDoc
from lamella.wire.vertebrae import SpineLabelsFact
from lamella.workflows.prepare import open_input
from lamella.workflows.run import origin_of
from lamella.workflows.spine_classes import GivenClasses, find_classes
from lamella.workflows.spine_detection import REPORTS, SpineDetection
from lamella.workflows.spine_report import FoundLabels, build_report

__all__ = ["DEFAULT_MODEL", "DetectOptions", "detect_vertebrae"]

DEFAULT_MODEL = "totalsegmentator:total"

_SCANNERS: Mapping[str, tuple[Literal["CT", "MR"], ...]] = {
    "CT": ("CT",),
    "MR": ("MR",),
    "": ("CT", "MR"),
}
"""What a task was trained on; models of which nobody says it may be run on both."""


@dataclass(frozen=True, slots=True)
class DetectOptions:
    """How vertebrae are found.

    Attributes:
        labels: a segmentation to be used instead of running a model; its path, or labels.
        class_map: which value is which level: a known map, or a JSON file; as the labels' file
            says unless given.
        model: what is run where no labels are given.
        engine_options: options of the engine, such as ``{"fast": True}``.
        modality: what the user says the image is.
        margin_mm: a vertebra nearer to the border counts as incomplete.
        device: where the model runs.
        run_dir: folder of the model's run.
        fresh: start the run anew.
        places: where models and environments lie; the user's own unless given.
    """

    labels: Path | Labels | None = None
    class_map: str | None = None
    model: str = DEFAULT_MODEL
    engine_options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    modality: Literal["auto", "CT", "MR"] = "auto"
    margin_mm: float = 2.0
    device: str = "auto"
    run_dir: Path | None = None
    fresh: bool = False
    places: Places | None = None


def detect_vertebrae(
    source: Volume | InputDoc | None,
    options: DetectOptions | None = None,
    *,
    sink: EventSink | None = None,
) -> SpineDetection:
    """Find the vertebrae of an image, or of labels.

    Args:
        source: the image; with labels it is only drawn, and may lack.
        options: labels or model, and how to judge.
        sink: progress, warnings, cancellation.

    Raises:
        InputError: for images that are no CT (or MR, where the model is for MR), and for labels
            of which nobody knows what they mean.
        GeometryError: for labels that do not lie on the image, or nowhere in a patient.
        LamellaError: whatever stops the model's run.
    """
    options = options or DetectOptions()
    listener: Any = sink or SilentSink()
    image = _image(source)
    if options.labels is None:
        found = _segmented(source, image, options, listener)
    else:
        found = _given(image, options, listener)
    levels = levels_of(found.classes.classes)
    if not levels:
        raise InputError(
            f"no class of {found.fact.class_map} is a vertebra",
            hint="name the map with --class-map: " + ", ".join(CLASS_MAPS) + ", or a JSON file",
        )
    vertebrae = find_vertebrae(
        found.labels, levels, margin_mm=options.margin_mm, within=found.covered, sink=listener
    )
    spine = check_spine(vertebrae)
    ordered = tuple(vertebrae[k] for k in spine.order)
    report = build_report(found, image, source, options.margin_mm, ordered, spine)
    for note in report.warnings:
        listener.emit(WarningEvent(code=note.code, message=note.message))
    labels = _vertebrae_only(found, ordered, image, source)
    detection = SpineDetection(report, labels, image, found.run, ordered)
    return _kept_in_run(detection) if found.run is not None else detection


# --- Labels, of a model or of a file ------------------------------------------------------------


def _image(source: Volume | InputDoc | None) -> Volume | None:
    if source is None or isinstance(source, Volume):
        return source
    return open_input(source)


def _segmented(
    source: Volume | InputDoc | None, image: Volume | None, options: DetectOptions, sink: Any
) -> FoundLabels:
    """Run the model; the same call again takes what is there."""
    from lamella.workflows.api import make_request, run_folder_name
    from lamella.workflows.segment import RunOptions
    from lamella.workflows.segment import segment as run_request

    if source is None or image is None:
        raise InputError(
            "there is neither an image nor a segmentation to find vertebrae in",
            hint="lamella detect vertebrae CT, or lamella detect vertebrae --labels SEGMENTATION",
        )
    engine, _, rest = options.model.partition(":")
    task = rest.partition(":")[0] if engine == "totalsegmentator" else ""
    allowed = _SCANNERS["" if not task else "MR" if "_mr" in task else "CT"]
    # The engine asks again; asked here, an X-ray is refused before anything is installed.
    purpose = f"the task {task}" if task else f"the model {Path(options.model).name}"
    check_ct_or_mr(image, options.modality, allowed=allowed, purpose=purpose)
    names = list(CLASS_MAPS[task].values()) if task in ("total", "total_v3") else []
    engine_options: dict[str, Any] = {"roi_subset": ",".join(names)} if names else {}
    request = make_request(
        source if isinstance(source, Volume) else source.path,
        options.model,
        {
            **({} if isinstance(source, Volume) else _selectors(source)),
            "options": {**engine_options, **options.engine_options},
            "modality": options.modality,
            "device": options.device,
            "confidence": True,
        },
    )
    name = run_folder_name(source if isinstance(source, Volume) else source.path, options.model)
    folder = options.run_dir or Path(name.removesuffix(".run") + ".vertebrae.run")
    run = run_request(
        request,
        RunOptions(folder, fresh=options.fresh, places=options.places),
        volume=source if isinstance(source, Volume) else None,
        sink=sink,
    )
    model = run.manifest.model
    fact = SpineLabelsFact(
        path=str(run.folder / "labels.ome.zarr"),
        class_map="the model",
        engine=model.engine,
        model=model.id,
        model_version=model.version,
        run=str(run.folder),
    )
    classes = GivenClasses(run.labels.classes, "the model", is_assumed=False)
    return FoundLabels(run.labels, classes, fact, run, run.manifest.confidence)


def _selectors(source: InputDoc) -> dict[str, Any]:
    names = [name for name in InputDoc.model_fields if name != "path"]
    return {name: getattr(source, name) for name in names}


def _given(image: Volume | None, options: DetectOptions, sink: Any) -> FoundLabels:
    given = options.labels
    assert given is not None, "asked for by the caller"
    labels = given if isinstance(given, Labels) else open_labels(given)
    for note in labels.notes:
        sink.emit(WarningEvent(code=note.code, message=f"{labels.name}: {note.message}"))
    known = find_classes(labels, options.class_map)
    path = str(labels.path or "") if isinstance(given, Labels) else str(given)
    fact = SpineLabelsFact(path=path, class_map=known.source)
    covered = None if image is None else covered_box(labels, image)
    if image is None or covered is None:
        return FoundLabels(labels, known, fact)
    labels = onto_grid(labels, image)
    if covered.shape == labels.spatial_shape:
        return FoundLabels(labels, known, fact)
    ends = {"covered_start_zyx": covered.start, "covered_stop_zyx": covered.stop}
    return FoundLabels(labels, known, fact.model_copy(update=ends), covered=covered)


def _vertebrae_only(
    found: FoundLabels,
    vertebrae: tuple[Vertebra, ...],
    image: Volume | None,
    source: Volume | InputDoc | None,
) -> Labels:
    """The labels less everything that is no vertebra, lazy, with names and their origin."""
    from lamella.measurement.spine_picture import vertebra_color
    from lamella.volume.source import FunctionArray

    keep = np.array(sorted(known.value for known in vertebrae), dtype=np.int64)
    data = found.labels.data
    dtype = np.dtype(np.min_scalar_type(int(keep.max(initial=1))))

    def read(slices: tuple[slice, ...]) -> NDArray[Any]:
        values = np.asarray(data[slices])
        return np.where(np.isin(values, keep), values, 0).astype(dtype)

    told: dict[str, str] = {} if found.run is None else origin_of(found.run.manifest)
    if image is not None and image.path is not None and "source_path" not in told:
        told["source_path"] = str(image.path)
    if isinstance(source, InputDoc) and source.series is not None:
        told["source_series"] = source.series
    return replace(
        found.labels,
        data=FunctionArray(found.labels.shape, dtype, read),
        levels=(),
        name="vertebrae",
        is_instance=False,
        classes=tuple(
            LabelClass(known.value, f"vertebrae_{known.level}", vertebra_color(known.level))
            for known in sorted(vertebrae, key=lambda known: known.value)
        ),
        metadata={**found.labels.metadata, **told},
    )


def _kept_in_run(detection: SpineDetection) -> SpineDetection:
    """Leave report, table and overview in the run's folder."""
    assert detection.run is not None
    outputs: dict[str, str] = {}
    for suffix, kind in REPORTS.items():
        if kind == "png" and not detection.vertebrae:
            continue
        outputs[kind] = str(detection.run.folder / f"vertebrae{suffix}")
    report = detection.report.model_copy(update={"outputs": outputs})
    detection = replace(detection, report=report)
    for path in outputs.values():
        detection.save(path, overwrite=True)
    return detection
