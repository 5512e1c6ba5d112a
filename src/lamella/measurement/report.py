"""The report of a segmentation: ``report.html`` for people, ``report.json`` for programs.

Both say the same: what was found, class by class and object by object, where to look, and what to
be careful about. Pictures are drawn from a few planes and a coarse copy, so a report of a volume
larger than memory costs little memory.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.measurement.report_chart import Histogram, short_number, size_histogram
from lamella.measurement.report_confidence import (
    class_confidence,
    least_certain,
    object_confidence,
)
from lamella.measurement.report_html import Column, LegendEntry, Page, Picture, render_page
from lamella.measurement.report_projection import draw_projection
from lamella.measurement.report_slices import OrthoView, Palette, draw_ortho, encode_png
from lamella.measurement.table import ObjectTable
from lamella.volume.labels import Labels, label_color
from lamella.volume.volume import Volume

__all__ = ["Fact", "ReportFiles", "ReportSource", "make_report", "overview_png"]

_ROWS = 200
"""Objects listed in the report; all are in the table beside it."""


@dataclass(frozen=True, slots=True)
class Fact:
    """Something to know at a glance: ``detail`` is written smaller below."""

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ReportSource:
    """What a report is made of.

    Attributes:
        title: what was segmented with what.
        lead: one line below.
        labels: the result.
        table: its objects, or its classes where ``is_per_class``.
        image: intensities on the same grid; None when there are none to show.
        ids: ids of the objects on the same grid, for pictures of single ones; None for none.
        is_per_class: whether a row of ``table`` is a whole class.
        facts: shown on top.
        warnings: shown before everything else.
        manifest: shown folded.
        csv_name: file of the whole table, beside the report.
        footer: last line.
    """

    title: str
    lead: str
    labels: Labels
    table: ObjectTable
    image: Volume | None = None
    ids: Labels | None = None
    is_per_class: bool = False
    facts: Sequence[Fact] = ()
    warnings: Sequence[str] = ()
    manifest: Mapping[str, Any] = field(default_factory=dict[str, Any])
    csv_name: str = "objects.csv"
    footer: str = ""


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """Text of both files."""

    html: str
    json: str


def make_report(source: ReportSource) -> ReportFiles:
    """Draw and write a report.

    Args:
        source: what it is made of.
    """
    view = draw_ortho(source.image, source.labels)
    projection = draw_projection(source.labels)
    histogram = None if source.is_per_class else size_histogram(source.table.volume)
    classes = _class_columns(source)
    order = _largest_first(source.table)
    objects = () if source.is_per_class else _object_columns(source, order)
    gallery = least_certain(table=source.table, ids=source.ids, image=source.image)
    page = Page(
        title=source.title,
        lead=source.lead,
        facts=[(fact.name, fact.value, fact.detail) for fact in source.facts],
        warnings=source.warnings,
        slices=_slices(source, view),
        slices_note=_slices_note(source, view),
        legend=_legend(source),
        projection=None if projection is None else _space(projection),
        histogram=None if histogram is None else (histogram, _size_label(source.table)),
        gallery=gallery.cards,
        gallery_title=gallery.title,
        gallery_note=gallery.note,
        classes=classes,
        objects=objects,
        objects_note=_objects_note(source, len(order)),
        manifest=source.manifest,
        footer=source.footer,
    )
    text = _as_json(source, view, histogram, classes, objects, least=gallery.ids)
    return ReportFiles(render_page(page), text)


def overview_png(image: Volume | None, labels: Labels) -> bytes:
    """Image and overlay side by side as one PNG picture.

    Args:
        image: intensities on the labels' grid or a finer one, or None.
        labels: what is drawn over it.
    """
    view = draw_ortho(image, labels)
    gap = np.zeros((view.image.shape[0], 16, 4), np.uint8)
    return encode_png(np.concatenate([view.image, gap, view.overlay], axis=1))


# --- Pictures -----------------------------------------------------------------------------------


def _slices(source: ReportSource, view: OrthoView) -> list[Picture]:
    place = _place(source.labels, view.position)
    overlay = Picture(encode_png(view.overlay), f"Labels over the image, {place}.", "labels")
    if source.image is None:
        return [overlay]
    return [Picture(encode_png(view.image), f"Image, {place}.", "image"), overlay]


def _slices_note(source: ReportSource, view: OrthoView) -> str:
    if len(view.position) == 2 or source.labels.spatial_shape[0] == 1:
        return ""
    return (
        "The planes pass through the position that shows most of what was found; ticks at their"
        " edges mark where they cut each other."
    )


def _place(labels: Labels, position: tuple[int, ...]) -> str:
    if len(position) == 2:
        return "whole image"
    return "at " + ", ".join(f"{axis} {index}" for axis, index in zip("zyx", position, strict=True))


def _legend(source: ReportSource) -> list[LegendEntry]:
    labels = source.labels
    if labels.is_instance:
        what = ", ".join(known.name for known in labels.classes) or "object"
        return [LegendEntry(label_color(1), f"{what}: each has a colour of its own")]
    palette = Palette.of(labels)
    present = [int(value) for value in np.unique(source.table.classes) if value != 0]
    listed = sorted({*present, *(known.value for known in labels.classes)} - {0})
    return [
        LegendEntry(
            palette.color(value),
            labels.class_name(value),
            "" if value in present else "(not found)",
        )
        for value in listed
    ]


def _space(projection: NDArray[np.uint8]) -> Picture:
    caption = "What was found, seen from the front, above and to the right; z points upwards."
    return Picture(encode_png(projection), caption, "labels in space")


# --- Tables -------------------------------------------------------------------------------------


def _class_columns(source: ReportSource) -> tuple[Column, ...]:
    table, labels = source.table, source.labels
    values = [int(value) for value in np.unique(table.classes)]
    if not values:
        return ()
    total = math.prod(labels.spatial_shape)
    rows = [np.flatnonzero(table.classes == value) for value in values]
    voxels = [int(table.voxels[own].sum()) for own in rows]
    palette = Palette.of(labels)
    names = [_class_name(source, value) for value in values]
    colors = None if labels.is_instance else [palette.color(value) for value in values]
    unit = _cubic(table)
    columns = [
        Column("class", names, colors=colors),
        Column("value", values),
        Column("voxels", voxels),
        Column("share of volume" if table.ndim == 3 else "share of image",
               [100.0 * n / total for n in voxels], "%"),
        Column(_size_name(table), [float(table.volume[own].sum()) for own in rows], unit),
    ]  # fmt: skip
    if not source.is_per_class:
        columns += [
            Column("objects", [len(own) for own in rows]),
            Column("median size", [float(np.median(table.volume[own])) for own in rows], unit),
            Column("at the border", [int(table.touches_border[own].sum()) for own in rows]),
        ]
    return (*columns, *class_confidence(table, values))


def _object_columns(source: ReportSource, order: NDArray[np.intp]) -> tuple[Column, ...]:
    table = source.table
    unit = "voxel" if table.unit == "voxel" else _written(table.unit)
    is_image = table.ndim == 2
    ids = [int(value) for value in table.ids[order]]
    palette = Palette.of(source.labels)
    names = [_class_name(source, int(value)) for value in table.classes[order]]
    colors = [
        palette.color(number if source.labels.is_instance else int(value))
        for number, value in zip(ids, table.classes[order], strict=True)
    ]
    axes = "yx" if is_image else "zyx"
    calibrated = table.unit != "voxel"
    centroid = table.centroid if calibrated else table.centroid_voxel
    columns = [
        Column("id", ids, colors=colors),
        Column("class", names),
        Column("voxels", [int(value) for value in table.voxels[order]]),
        Column(_size_name(table), _floats(table.volume, order), _cubic(table)),
        Column(
            "perimeter" if is_image else "surface",
            _floats(table.surface, order),
            unit if is_image else f"{unit}²",
        ),
        Column("diameter", _floats(table.equivalent_diameter, order), f"{unit}, equivalent"),
        Column("circularity" if is_image else "sphericity", _floats(table.sphericity, order)),
        *(
            Column(f"centre {axis}", _floats(centroid[:, k], order), unit)
            for k, axis in enumerate(axes)
        ),
        Column("at border", [bool(value) for value in table.touches_border[order]]),
    ]
    if table.intensity_mean is not None:
        columns.append(Column("intensity", _floats(table.intensity_mean, order), "mean"))
    return (*columns, *object_confidence(table, order))


def _class_name(source: ReportSource, value: int) -> str:
    return source.table.class_names.get(value) or ("object" if value == 0 else f"class {value}")


def _floats(values: NDArray[Any], order: NDArray[np.intp]) -> list[float]:
    return [float(value) for value in values[order]]


def _largest_first(table: ObjectTable) -> NDArray[np.intp]:
    return np.lexsort((table.ids, -table.voxels))[:_ROWS]


def _objects_note(source: ReportSource, n_listed: int) -> str:
    n = len(source.table)
    if n == 0 or source.is_per_class:
        return ""
    shown = f"All {n:,} objects" if n_listed == n else f"The {n_listed} largest of {n:,} objects"
    return f"{shown}, largest first; a click on a head sorts. The whole table: {source.csv_name}."


def _size_name(table: ObjectTable) -> str:
    return "area" if table.ndim == 2 else "volume"


def _size_label(table: ObjectTable) -> str:
    return f"{_size_name(table)} ({_cubic(table)})"


def _cubic(table: ObjectTable) -> str:
    if table.unit == "voxel":
        return "voxels"
    return _written(table.unit) + ("²" if table.ndim == 2 else "³")


def _written(unit: str) -> str:
    return "µm" if unit == "um" else unit


# --- JSON ---------------------------------------------------------------------------------------


def _as_json(
    source: ReportSource,
    view: OrthoView,
    histogram: Histogram | None,
    classes: Sequence[Column],
    objects: Sequence[Column],
    *,
    least: Sequence[int],
) -> str:
    document: dict[str, Any] = {
        "format_version": 1,
        "title": source.title,
        "facts": {fact.name: " ".join((fact.value, fact.detail)).strip() for fact in source.facts},
        "warnings": list(source.warnings),
        "n_objects": 0 if source.is_per_class else len(source.table),
        "position_voxel": list(view.position),
        "classes": _rows(classes),
        "size_histogram": None
        if histogram is None
        else {
            "unit": _cubic(source.table),
            "edges": list(histogram.edges),
            "counts": list(histogram.counts),
            "is_log": histogram.is_log,
        },
        "largest_objects": _rows(objects),
        "objects_csv": source.csv_name,
    }
    if source.table.confidence:
        document["confidence"] = {
            "measures": list(source.table.confidence),
            "is_calibrated": bool(source.table.is_calibrated),
            "least_certain_ids": list(least),
        }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _rows(columns: Sequence[Column]) -> list[dict[str, Any]]:
    if not columns:
        return []
    names = [f"{c.title} ({c.unit})" if c.unit else c.title for c in columns]
    return [
        {name: _finite(column.values[row]) for name, column in zip(names, columns, strict=True)}
        for row in range(len(columns[0].values))
    ]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def percent(share: float) -> str:
    """A share for people.

    Examples:
        >>> percent(0.12345), percent(0.00001)
        ('12.35 %', '0.001 %')
    """
    return f"{short_number(100 * share)} %"
