"""GeoJSON as QuPath writes it: areas with holes, named by their classification.

Coordinates are pixels of the full image, the corner of the first pixel at (0, 0). Classes that
QuPath marks as ignored (``Ignore*``, and any name that ends with an asterisk) become
``__ignore__``. Source: RFC 7946, and https://qupath.readthedocs.io (exporting annotations).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import InputError, MissingPathError, UnreadableFileError
from lamella.training.annotations.classes import IGNORE
from lamella.training.annotations.fill import Patch, filled, joined

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.training.annotations.shape import Shape

__all__ = ["read_geojson"]

_KEYS = ("name", "label", "class", "type")


def read_geojson(
    path: Path, image_shape: tuple[int, int], *, unclassified: str = "object"
) -> tuple[Shape, ...]:
    """Read the areas of an image.

    Args:
        path: of the file: a collection of features, a list of them, or one.
        image_shape: (y, x) of the image.
        unclassified: class of areas without one.

    Raises:
        UnreadableFileError: no GeoJSON.
        InputError: points or lines, which cover no pixels, or broken coordinates.
        MissingPathError: no such file.
    """
    shapes = []
    for number, feature in enumerate(_features(path), start=1):
        geometry = feature.get("geometry") or {}
        pixels = _pixels(f"feature {number} of {path}", geometry, image_shape)
        found = pixels.to_shape(_label(feature, unclassified))
        if found is not None:
            shapes.append(found)
    return tuple(shapes)


def _features(path: Path) -> Sequence[Mapping[str, Any]]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise MissingPathError(f"there is nothing at {path}", hint="check the path") from None
    except (ValueError, OSError) as error:
        raise UnreadableFileError(
            f"{path} is no JSON file: {error}", hint="export it again"
        ) from None
    found = document.get("features") if isinstance(document, dict) else document
    if found is None and isinstance(document, dict) and "geometry" in document:
        found = [document]
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise UnreadableFileError(
            f"{path} is no GeoJSON: it has no features",
            hint="export annotations as GeoJSON, for example from QuPath",
        )
    return found


def _label(feature: Mapping[str, Any], unclassified: str) -> str:
    properties = feature.get("properties") or {}
    found = properties.get("classification")
    if isinstance(found, dict):
        names = found.get("names")
        found = found.get("name") or (": ".join(names) if names else None)
    if not found:
        found = next((properties[key] for key in _KEYS if properties.get(key)), None)
        # QuPath's own words for kinds of objects are no classes.
        found = None if found in ("annotation", "detection", "cell", "tile") else found
    name = str(found or unclassified)
    return IGNORE if name.endswith("*") or name == IGNORE else name


def _pixels(what: str, geometry: Mapping[str, Any], image_shape: tuple[int, int]) -> Patch:
    kind, coordinates = geometry.get("type"), geometry.get("coordinates")
    if kind == "GeometryCollection":
        parts = geometry.get("geometries") or []
        return joined([_pixels(what, part, image_shape) for part in parts])
    if kind not in ("Polygon", "MultiPolygon"):
        raise InputError(
            f"{what} is a {kind}, which covers no pixels",
            hint="draw areas, or remove it before exporting",
        )
    try:
        polygons: Any = [coordinates] if kind == "Polygon" else coordinates
        rings = [[_ring(ring) for ring in polygon] for polygon in polygons]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{what} has broken coordinates: {error}", hint="export it again"
        ) from None
    if not all(np.isfinite(ring).all() for polygon in rings for ring in polygon):
        raise InputError(f"{what} has a point that is no number", hint="export it again")
    # Holes belong to one polygon; the polygons of an object are joined.
    return joined([filled(polygon, image_shape) for polygon in rings])


def _ring(points: Any) -> NDArray[np.float64]:
    """Corners (x, y); a third coordinate is left out."""
    ring = np.asarray(points, np.float64)
    if ring.ndim != 2 or ring.shape[1] < 2:
        raise ValueError(f"a ring is a list of points, got shape {ring.shape}")
    return ring[:, :2]
