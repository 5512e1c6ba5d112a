"""OME-NGFF documents as Lamella writes them (0.5 and 0.4): pure dictionaries, no zarr.

NGFF places level k at ``translation + scale * index``, voxel centres, so a level that averages
blocks of f voxels is shifted by (f - 1) / 2 fine voxels. It has no direction and no frame: what
it cannot say (frame, direction, exact origin, the notes of the file the image came from) stands
beside it in the attribute ``lamella``, which other programs ignore. For an image that is not
aligned with its world axes the NGFF translation is the origin seen along the image's own axes,
``direction⁻¹ · origin``: images, labels and crops of one grid stay in register everywhere.

Examples:
    >>> import numpy as np
    >>> volume = Volume.from_array(np.zeros((8, 8), np.uint8), spacing=(2, 2), unit="um")
    >>> document = image_document(volume, ((1, 1), (2, 2)), version="0.5")
    >>> [level["path"] for level in document["multiscales"][0]["datasets"]]
    ['0', '1']
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from lamella.volume.affine import Affine
from lamella.volume.labels import LabelClass, Labels, label_color
from lamella.volume.volume import Note, Volume

__all__ = [
    "LAMELLA_KEY",
    "NgffVersion",
    "affine_from_lamella",
    "along_own_axes",
    "classes_from_lamella",
    "group_attributes",
    "image_document",
    "image_label_document",
    "lamella_document",
    "level_path",
    "notes_from_lamella",
    "omero_document",
]

NgffVersion = Literal["0.4", "0.5"]
LAMELLA_KEY = "lamella"
_AXIS_TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
_UNIT_NAMES = {"nm": "nanometer", "um": "micrometer", "mm": "millimeter"}
_CHANNEL_COLORS = ("FFFFFF", "00FF00", "FF00FF", "00FFFF", "FF0000", "0000FF", "FFFF00")


def level_path(level: int) -> str:
    """Name of a level's array inside the image group."""
    return str(level)


def group_attributes(
    volume: Volume,
    factors: Sequence[Sequence[int]],
    *,
    version: NgffVersion,
    label_values: Sequence[int] = (),
    windows: Sequence[tuple[float, float]] = (),
) -> dict[str, Any]:
    """All attributes of the image group.

    Args:
        volume: the image or labels; its geometry, names and notes are used, not its voxels.
        factors: of every level relative to level 0, per spatial axis; the first is all ones.
        version: NGFF version, which decides where things stand.
        label_values: values that get a stable colour when no classes name them.
        windows: intensities to show per channel, (low, high).
    """
    document = image_document(volume, factors, version=version)
    if isinstance(volume, Labels):
        document["image-label"] = image_label_document(volume, label_values)
        if version == "0.4":
            document["image-label"]["version"] = version
    elif windows:
        document["omero"] = omero_document(volume, windows)
    extras = {LAMELLA_KEY: lamella_document(volume)}
    if version == "0.5":
        return {"ome": {"version": "0.5", **document}, **extras}
    return {**document, **extras}


def image_document(
    volume: Volume, factors: Sequence[Sequence[int]], *, version: NgffVersion
) -> dict[str, Any]:
    """The ``multiscales`` of an image.

    Args:
        volume: its axes, affine, unit and name are used.
        factors: of every level relative to level 0, per spatial axis.
        version: 0.4 repeats it inside the multiscale.
    """
    axes: list[dict[str, str]] = []
    for name in volume.axes.names:
        axis = {"name": name, "type": _AXIS_TYPES[name]}
        if axis["type"] == "space" and volume.unit in _UNIT_NAMES:
            axis["unit"] = _UNIT_NAMES[volume.unit]
        axes.append(axis)
    local = along_own_axes(volume.affine)
    leading = volume.axes.n_leading
    datasets = [
        {
            "path": level_path(level),
            "coordinateTransformations": _transformations(local.downsampled(factor), leading),
        }
        for level, factor in enumerate(factors)
    ]
    multiscale: dict[str, Any] = {"name": volume.name or "image", "axes": axes}
    multiscale["datasets"] = datasets
    multiscale["type"] = "nearest" if isinstance(volume, Labels) else "mean"
    if version == "0.4":
        multiscale["version"] = version
    return {"multiscales": [multiscale]}


def image_label_document(labels: Labels, values: Sequence[int] = ()) -> dict[str, Any]:
    """The ``image-label`` of labels: a colour per value, a name per class.

    Args:
        labels: its classes are used, unless they are kinds of instances.
        values: values without a class that get their stable colour (instance ids, mostly).
    """
    classes = () if labels.is_instance else labels.classes
    known = {item.value: item.rgb for item in classes}
    known.update({int(value): label_color(int(value)) for value in values if value not in known})
    document: dict[str, Any] = {
        "colors": [
            {"label-value": value, "rgba": [*rgb, 0 if value == 0 else 255]}
            for value, rgb in sorted(known.items())
        ]
    }
    if classes:
        document["properties"] = [
            {"label-value": item.value, "class": item.name}
            for item in sorted(classes, key=lambda item: item.value)
        ]
    return {key: value for key, value in document.items() if value}


def omero_document(volume: Volume, windows: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Channel names, colours and intensity windows (``omero``, which viewers read).

    Args:
        volume: its channel names and dtype are used.
        windows: (low, high) to show, one per channel.
    """
    low, high = _dtype_range(volume.dtype)
    channels: list[dict[str, Any]] = []
    for index, (start, end) in enumerate(windows):
        named = index < len(volume.channel_names)
        channels.append(
            {
                "label": volume.channel_names[index] if named else f"channel {index}",
                "color": _CHANNEL_COLORS[index % len(_CHANNEL_COLORS)]
                if len(windows) == 1
                else _CHANNEL_COLORS[1 + index % (len(_CHANNEL_COLORS) - 1)],
                "active": True,
                "window": {
                    "start": start,
                    "end": end,
                    "min": start if low is None else low,
                    "max": end if high is None else high,
                },
            }
        )
    return {"channels": channels, "rdefs": {"model": "color" if len(windows) > 1 else "greyscale"}}


def lamella_document(volume: Volume) -> dict[str, Any]:
    """What NGFF cannot say, so that reading gives back exactly what was written."""
    affine = volume.affine
    document: dict[str, Any] = {
        "format_version": 1,
        "axes": str(volume.axes),
        "unit": volume.unit,
        "frame": affine.frame,
        "spacing": list(affine.spacing),
        "origin": list(affine.origin),
        "direction": [list(row) for row in affine.direction],
        "name": volume.name,
        "channel_names": list(volume.channel_names),
        "notes": [{"code": note.code, "message": note.message} for note in volume.notes],
    }
    if isinstance(volume, Labels):
        document["is_instance"] = volume.is_instance
        document["classes"] = [
            {
                "value": item.value,
                "name": item.name,
                "color": None if item.color is None else list(item.color),
            }
            for item in volume.classes
        ]
    return document


def affine_from_lamella(document: Mapping[str, Any]) -> Affine:
    """The exact affine of :func:`lamella_document`.

    Raises:
        GeometryError: when the numbers make no affine.
        KeyError, TypeError, ValueError: when the document is not one of ours.
    """
    return Affine(
        spacing=tuple(float(v) for v in document["spacing"]),
        origin=tuple(float(v) for v in document["origin"]),
        direction=tuple(tuple(float(v) for v in row) for row in document["direction"]),
        frame=document["frame"],
    )


def classes_from_lamella(document: Mapping[str, Any]) -> tuple[LabelClass, ...]:
    """The classes of :func:`lamella_document`."""
    return tuple(
        LabelClass(
            int(item["value"]),
            str(item["name"]),
            None if item.get("color") is None else tuple(int(v) for v in item["color"]),  # type: ignore[arg-type]
        )
        for item in document.get("classes", ())
    )


def notes_from_lamella(document: Mapping[str, Any]) -> tuple[Note, ...]:
    """The notes of :func:`lamella_document`: what was odd about the file the image came from."""
    return tuple(
        Note(str(item["code"]), str(item["message"])) for item in document.get("notes", ())
    )


def along_own_axes(affine: Affine) -> Affine:
    """The affine in a world turned so that the image lies along its axes."""
    n = affine.ndim
    identity = tuple(tuple(1.0 if i == j else 0.0 for j in range(n)) for i in range(n))
    if affine.direction == identity:
        return affine
    turned = np.linalg.solve(np.asarray(affine.direction), np.asarray(affine.origin)) + 0.0
    return Affine.diagonal(affine.spacing, tuple(float(v) for v in turned), affine.frame)


def _transformations(affine: Affine, n_leading: int) -> list[dict[str, Any]]:
    return [
        {"type": "scale", "scale": [1.0] * n_leading + list(affine.spacing)},
        {"type": "translation", "translation": [0.0] * n_leading + list(affine.origin)},
    ]


def _dtype_range(dtype: np.dtype[Any]) -> tuple[float | None, float | None]:
    if dtype.kind in "ui" and dtype.itemsize <= 2:
        info = np.iinfo(dtype)
        return float(info.min), float(info.max)
    return None, None
