"""How sure the engine was: from its maps to the table of objects, the manifest and a sentence.

Numbers are means over voxels, for each object and for each class. They are honest probabilities
only where the model was calibrated on data held out from its training; everywhere else they rank
objects, and every place that shows them says so.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import EngineError, GeometryError, InputError
from lamella.core.progress import ProgressSink
from lamella.evaluation.calibration import Reliability
from lamella.io.format import storage_errors
from lamella.measurement.report_confidence import DOUBTS
from lamella.volume.labels import Labels
from lamella.volume.source import iter_slabs
from lamella.wire.document import JsonValue
from lamella.workflows.engine_result import ConfidenceFact
from lamella.workflows.run import Run

if TYPE_CHECKING:
    from lamella.measurement import ObjectTable

__all__ = [
    "add_confidence",
    "confidence_fact",
    "confidence_sentence",
    "middle_of",
    "open_maps",
    "reliability_of",
]

CALIBRATED = "calibrated on held-out data"
UNCALIBRATED = "uncalibrated: it ranks objects, it is no probability of being right"


def open_maps(folder: Path, fact: ConfidenceFact) -> Any:
    """The maps of a run, lazy uint8, (m, [z,] y, x).

    Raises:
        EngineError: when the engine did not leave what it said.
    """
    import zarr

    path = folder / fact.name
    if not path.exists():
        raise EngineError(
            f"the confidence maps {path} are gone", hint="run again with --fresh to make them"
        )
    with storage_errors(path):
        maps = zarr.open_array(str(path), mode="r")
    if maps.shape[0] != len(fact.measures):
        raise EngineError(
            f"{path} holds {maps.shape[0]} maps, but the engine named {len(fact.measures)}:"
            f" {', '.join(fact.measures)}",
            hint="an engine names its maps in the order in which they lie in the array",
        )
    return maps


def add_confidence(
    table: "ObjectTable", labels: Labels, folder: Path, fact: ConfidenceFact, sink: ProgressSink
) -> "ObjectTable":
    """The table with the mean of every map over every object, in one pass over both.

    Args:
        table: one row per object of ``labels``.
        labels: the objects (or classes) that were measured.
        folder: the run.
        fact: which maps there are.
        sink: progress and cancellation.

    Raises:
        EngineError: when the maps are gone or others than named.
        InputError: when they are not uint8 on the labels' grid.
    """
    from lamella.measurement import mean_by_object

    maps = open_maps(folder, fact)
    means = mean_by_object(labels.data, maps, table.ids, voxels=table.voxels, sink=sink)
    columns = {name: means[:, k] for k, name in enumerate(fact.measures)}
    return replace(table, confidence=columns, is_calibrated=fact.is_calibrated)


def confidence_fact(table: "ObjectTable", fact: ConfidenceFact) -> dict[str, JsonValue]:
    """What the manifest says: per measure the mean of every class, and the spread over objects.

    Args:
        table: with confidence.
        fact: which maps there are.
    """
    from lamella.measurement import mean_by_class

    classes: dict[str, dict[str, JsonValue]] = {}
    objects: dict[str, JsonValue] = {}
    for name, values in table.confidence.items():
        for value, mean in mean_by_class(values, table.voxels, table.classes).items():
            known = table.class_names.get(value) or ("object" if value == 0 else f"class {value}")
            classes.setdefault(known, {})[name] = round(mean, 4)
        known_values = values[np.isfinite(values)]
        if len(known_values):
            low, middle, high = np.quantile(known_values, (0.0, 0.5, 1.0))
            objects[name] = {
                "lowest": round(float(low), 4),
                "median": round(float(middle), 4),
                "highest": round(float(high), 4),
            }
    return {
        "maps": fact.name,
        "measures": list(fact.measures),
        "is_calibrated": fact.is_calibrated,
        "note": CALIBRATED if fact.is_calibrated else UNCALIBRATED,
        "classes": dict(classes.items()),
        "objects": objects,
    }


def reliability_of(run: Run, reference: Labels, *, ignore_label: int | None) -> Reliability:
    """The reliability curve of a finished run, slab by slab.

    Args:
        run: made with confidence.
        reference: true labels on the same grid.
        ignore_label: value of the reference where nobody knows.

    Raises:
        InputError: for a run without the map ``probability``.
        GeometryError: for a reference of another shape.
    """
    found = run.manifest.confidence
    measures = tuple(str(name) for name in _list(found, "measures"))
    if found is None or "probability" not in measures:
        raise InputError(
            f"the run {run.folder} left no map of probabilities",
            hint="run it again with confidence=True (--confidence)",
        )
    labels = run.labels
    if reference.spatial_shape != labels.spatial_shape:
        raise GeometryError(
            f"the labels have shape {labels.spatial_shape}, the reference"
            f" {reference.spatial_shape}",
            hint="compare on the grid that was segmented",
        )
    is_calibrated = bool(found.get("is_calibrated"))
    fact = ConfidenceFact(name=str(found["maps"]), measures=measures, is_calibrated=is_calibrated)
    maps = open_maps(run.folder, fact)
    curve = Reliability()
    at = measures.index("probability")
    for extent, truth in iter_slabs(reference.data):
        own = np.asarray(labels.data[extent])
        right = (own > 0) == (truth > 0) if labels.is_instance else own == truth
        ignored = None if ignore_label is None else truth == ignore_label
        curve.add(np.asarray(maps[at, extent]), right, ignore=ignored)
    return curve


def _list(document: dict[str, JsonValue] | None, name: str) -> list[JsonValue]:
    value = (document or {}).get(name)
    return value if isinstance(value, list) else []


def confidence_sentence(document: dict[str, JsonValue]) -> str:
    """One line for people.

    Examples:
        >>> confidence_sentence({"note": "uncalibrated: x", "is_calibrated": False,
        ...     "objects": {"margin": {"lowest": 0.21, "median": 0.9, "highest": 1.0}}})
        'margin 0.90 in the middle, 0.21 for the least sure object (uncalibrated)'
    """
    name, middle = middle_of(document)
    objects = document.get("objects")
    if middle is None or not isinstance(objects, dict):
        return "no objects to tell of"
    values = objects[name]
    assert isinstance(values, dict), "written by confidence_fact"
    worst = values["highest" if name in DOUBTS else "lowest"]
    word = "calibrated" if document.get("is_calibrated") else "uncalibrated"
    return (
        f"{name} {middle:.2f} in the middle, {float(str(worst)):.2f} for the least sure object"
        f" ({word})"
    )


def middle_of(document: dict[str, JsonValue]) -> tuple[str, float | None]:
    """The measure people are told first, and its median over all objects; None without objects."""
    objects = document.get("objects")
    if not isinstance(objects, dict) or not objects:
        return "", None
    name = "margin" if "margin" in objects else next(iter(objects))
    values = objects[name]
    assert isinstance(values, dict), "written by confidence_fact"
    return name, float(str(values["median"]))
