"""The report on a spine, put together from measured vertebrae, their order and the run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lamella.measurement.spine import Finding, Spine
from lamella.measurement.spine_levels import level_of
from lamella.measurement.vertebrae import Vertebra, sides_of
from lamella.volume.box import Box
from lamella.volume.labels import Labels
from lamella.volume.spacing import convert_length
from lamella.volume.volume import Volume
from lamella.wire.request import InputDoc
from lamella.wire.vertebrae import (
    LevelNoteDoc,
    SpineLabelsFact,
    VertebraConfidenceDoc,
    VertebraDoc,
    VertebraReport,
)
from lamella.workflows.run import Run
from lamella.workflows.spine_classes import GivenClasses
from lamella.workflows.versions import package_versions

__all__ = ["FoundLabels", "build_report"]

_NO_PROBABILITIES = "no probabilities: the labels were given, or the model left none"


@dataclass(frozen=True, slots=True)
class FoundLabels:
    """Labels with their meaning, from a file or a run.

    Attributes:
        labels: on the image's grid, where there is an image.
        classes: what their values mean.
        fact: where they came from.
        run: that made them.
        confidence: of the run.
        covered: the part of the image that they tell of; None where that is all of it.
    """

    labels: Labels
    classes: GivenClasses
    fact: SpineLabelsFact
    run: Run | None = None
    confidence: Mapping[str, Any] | None = None
    covered: Box | None = None


def build_report(
    found: FoundLabels,
    image: Volume | None,
    source: Volume | InputDoc | None,
    margin_mm: float,
    ordered: tuple[Vertebra, ...],
    spine: Spine,
) -> VertebraReport:
    """The report.

    Args:
        found: the labels, what their values mean, and how sure their model was.
        image: the image, where one was given.
        source: how it was named.
        margin_mm: the margin that makes a vertebra incomplete.
        ordered: vertebrae from the head down.
        spine: their places along the curve, and the doubts.
    """
    labels = found.labels
    by_name = _confidences(found)
    notes = [_note(finding) for finding in spine.findings if not finding.is_hint]
    if not ordered:
        notes.append(LevelNoteDoc(code="no_vertebrae", message="no vertebra was found"))
    if found.classes.is_assumed:
        text = (
            "the labels do not name their classes: those of TotalSegmentator's task total (v2) are"
            " assumed; say --class-map if they are others, or every level is wrong"
        )
        notes.insert(0, LevelNoteDoc(code="class_map_assumed", message=text))
    if found.covered is not None:
        notes.insert(0, _cover_note(labels, found.covered))
    has_any = any(by_name.values())
    return VertebraReport(
        image=_image_name(image, source),
        labels=found.fact,
        shape_zyx=_whole(labels.spatial_shape),
        spacing_mm_zyx=_triple(
            [convert_length(value, labels.unit, "mm") for value in labels.affine.spacing]
        ),
        margin_mm=margin_mm,
        vertebrae=tuple(
            _vertebra(known, position, by_name.get(known.level))
            for known, position in zip(ordered, spine.position_mm, strict=True)
        ),
        warnings=tuple(notes),
        hints=tuple(_note(finding) for finding in spine.findings if finding.is_hint),
        confidence_note=str((found.confidence or {}).get("note")) if has_any else _NO_PROBABILITIES,
        versions=package_versions(),
    )


def _cover_note(labels: Labels, covered: Box) -> LevelNoteDoc:
    """Which part of the image given labels tell of, and what of it they do not."""
    ranges: list[str] = []
    missing: list[str] = []
    for axis, sides in enumerate(sides_of(labels.affine)):
        length = labels.spatial_shape[axis]
        start, stop = covered.start[axis], covered.stop[axis]
        if stop - start < length:
            ranges.append(f"{'zyx'[axis]} {start} to {stop - 1} of 0 to {length - 1}")
        for side, n in zip(sides, (start, length - stop), strict=True):
            extent_mm = convert_length(n * labels.affine.spacing[axis], labels.unit, "mm")
            missing += [f"{extent_mm:.0f} mm {side}"] if n else []
    share = covered.size / math.prod(labels.spatial_shape)
    return LevelNoteDoc(
        code="labels_cover_part",
        message=f"the labels cover {100 * share:.0f} % of the image (voxels {', '.join(ranges)}):"
        f" vertebrae in the rest ({', '.join(missing)}) are not found, and those that reach its"
        " border count as cut off",
    )


def _image_name(image: Volume | None, source: Volume | InputDoc | None) -> str:
    if isinstance(source, InputDoc):
        return source.path
    return "" if image is None else str(image.path or image.name)


def _vertebra(
    known: Vertebra, position_mm: float, confidence: VertebraConfidenceDoc | None
) -> VertebraDoc:
    z, y, x = known.centroid_mm
    return VertebraDoc(
        level=known.level,
        value=known.value,
        centroid_ras_mm=(x, y, z),
        # Adding 0.0 keeps -0.0 out of documents.
        centroid_lps_mm=(-x + 0.0, -y + 0.0, z),
        centroid_voxel_zyx=known.centroid_voxel,
        box_start_zyx=_whole(known.box.start),
        box_stop_zyx=_whole(known.box.stop),
        n_voxels=known.n_voxels,
        volume_mm3=known.volume_mm3,
        position_mm=position_mm,
        is_incomplete=known.is_incomplete,
        borders=known.borders,
        n_components=len(known.pieces),
        confidence=confidence,
    )


def _confidences(found: FoundLabels) -> dict[str, VertebraConfidenceDoc]:
    """Means by level, out of what the run's manifest says of its classes."""
    told = found.confidence
    classes = told.get("classes") if told else None
    if not told or not isinstance(classes, Mapping):
        return {}
    result: dict[str, VertebraConfidenceDoc] = {}
    for name, measures in classes.items():
        level = level_of(str(name))
        if level is not None and isinstance(measures, Mapping):
            result[level] = VertebraConfidenceDoc(
                measures={str(k): float(v) for k, v in measures.items()},
                is_calibrated=bool(told.get("is_calibrated")),
                note=str(told.get("note") or ""),
            )
    return result


def _note(finding: Finding) -> LevelNoteDoc:
    return LevelNoteDoc(code=finding.code, message=finding.message, levels=finding.levels)


def _triple(values: Any) -> tuple[float, float, float]:
    z, y, x = (float(value) for value in values)
    return z, y, x


def _whole(values: Any) -> tuple[int, int, int]:
    z, y, x = (int(value) for value in values)
    return z, y, x
