"""What Lamella adds to files of formats that cannot say it: frame, unit, exact numbers, classes.

NIfTI headers hold 32-bit floats in mm and no class names, NRRD headers no frame but the
anatomical ones. A small JSON record beside the format's own fields keeps what they would lose.
Other programs ignore it, so it may grow old: geometry is taken from it only while it describes
the very grid that the header describes.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lamella.core.errors import LamellaError
from lamella.io.frames import affine_in_unit
from lamella.volume import Affine, Axes, LabelClass, Labels, Note, Volume
from lamella.volume.spacing import UNITS, Unit

__all__ = ["RECORD_KEY", "make_record", "parse_record", "with_record"]

RECORD_KEY = "lamella"

_RELATIVE = 2e-5
"""Float32 headers and text headers keep at least this much of a number."""


def make_record(volume: Volume) -> str:
    """The record of a volume, one line of ASCII JSON."""
    document: dict[str, Any] = {
        RECORD_KEY: 1,
        "axes": str(volume.axes),
        "unit": volume.unit,
        "frame": volume.affine.frame,
        "spacing": volume.affine.spacing,
        "origin": volume.affine.origin,
        "direction": volume.affine.direction,
        "name": volume.name,
        "channel_names": volume.channel_names,
    }
    if isinstance(volume, Labels):
        document["labels"] = {
            "is_instance": volume.is_instance,
            "classes": [
                {"value": known.value, "name": known.name, "color": known.color}
                for known in volume.classes
            ],
        }
    return json.dumps(document, separators=(",", ":"))


def parse_record(text: str | bytes) -> dict[str, Any] | None:
    """The record in a text, or None where there is none (or a damaged one)."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) and document.get(RECORD_KEY) == 1 else None


def with_record(volume: Volume, record: Mapping[str, Any] | None) -> Volume:
    """A volume read from a header, completed by its record.

    Args:
        volume: as the format's own header describes it.
        record: from :func:`parse_record`.

    Returns:
        The volume (:class:`lamella.volume.Labels` where the record says so) in the recorded unit
        and frame; with a note and the header's geometry where the record describes another grid.
    """
    if record is None:
        return volume
    try:
        unit, recorded = _geometry(record)
        is_same = _describes(recorded, unit, volume)
        volume = _with_names(volume, record)
    except (LamellaError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        note = Note("record_damaged", "Lamella's own record in this file is damaged and ignored")
        return replace(volume, notes=(*volume.notes, note))
    if not is_same:
        note = Note(
            "record_stale",
            "another program changed the geometry after Lamella wrote this file: the header counts",
        )
        return replace(volume, notes=(*volume.notes, note))
    kept = tuple(note for note in volume.notes if not note.code.startswith(("unit_", "frame_")))
    return replace(volume, affine=recorded, unit=unit, notes=kept)


def _geometry(record: Mapping[str, Any]) -> tuple[Unit, Affine]:
    unit = record["unit"]
    if unit not in UNITS:
        raise ValueError(unit)
    affine = Affine(
        tuple(float(value) for value in record["spacing"]),
        tuple(float(value) for value in record["origin"]),
        tuple(tuple(float(value) for value in row) for row in record["direction"]),
        record["frame"] if record["frame"] in ("stage", "RAS") else "stage",
    )
    return unit, affine


def _describes(recorded: Affine, unit: Unit, volume: Volume) -> bool:
    """Whether a recorded grid and the header's are one, but for the header's rounding."""
    header = volume.affine
    if recorded.ndim != header.ndim:
        return False
    if "voxel" in (unit, volume.unit):
        shown = recorded
    else:
        shown = affine_in_unit(recorded, unit, volume.unit)
    reach = max((abs(value) for value in (*shown.origin, *header.origin)), default=0.0)
    far = 1e-3 * min(header.spacing) + _RELATIVE * reach
    return (
        all(
            math.isclose(a, b, rel_tol=_RELATIVE)
            for a, b in zip(shown.spacing, header.spacing, strict=True)
        )
        and all(abs(a - b) <= far for a, b in zip(shown.origin, header.origin, strict=True))
        and all(
            abs(a - b) <= 1e-4
            for row, other in zip(shown.direction, header.direction, strict=True)
            for a, b in zip(row, other, strict=True)
        )
    )


def _with_names(volume: Volume, record: Mapping[str, Any]) -> Volume:
    axes = Axes.parse(str(record["axes"]))
    if axes == volume.axes:
        names = tuple(str(name) for name in record["channel_names"])
        if len(names) == volume.n_channels and "c" in axes:
            volume = replace(volume, channel_names=names)
    volume = replace(volume, name=str(record["name"]))
    labels = record.get("labels")
    if labels is None or volume.dtype.kind not in "uib":
        return volume
    shared = {name: getattr(volume, name) for name in Volume.__dataclass_fields__}
    classes = tuple(
        LabelClass(
            int(known["value"]),
            str(known["name"]),
            None if known["color"] is None else _color(known["color"]),
        )
        for known in labels["classes"]
    )
    return Labels(**shared, classes=classes, is_instance=bool(labels["is_instance"]))


def _color(values: Any) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, int(value))) for value in values)
    return red, green, blue
