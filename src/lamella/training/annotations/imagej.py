"""Regions of interest as ImageJ saves them: ``.roi`` files and zips of them.

ImageJ has no classes. A region's class is the beginning of its name, as far as it is words
(``axon-12`` → ``axon``; names that ImageJ gave itself, ``0012-0345``, have none), else its group
(``group 2``), else a name that the caller gives. Coordinates are pixels, the corner of the first at
(0, 0). Source: the file format as `roifile <https://github.com/cgohlke/roifile>`_ reads it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import InputError, MissingPathError, UnreadableFileError
from lamella.training.annotations.classes import IGNORE
from lamella.training.annotations.fill import Patch, ellipse, filled

if TYPE_CHECKING:
    from lamella.training.annotations.shape import Shape

__all__ = ["read_rois"]

_WORDS = re.compile(r"^([^\W\d_]+(?:[ ][^\W\d_]+)*)")


def read_rois(
    path: Path, image_shape: tuple[int, int], *, unclassified: str = "object"
) -> tuple[Shape, ...]:
    """Read the regions of an image.

    Args:
        path: a ``.roi`` file, or a zip of them.
        image_shape: (y, x) of the image.
        unclassified: class of regions whose name says none.

    Raises:
        UnreadableFileError: no such file format, or damaged.
        InputError: lines, points and texts, which cover no pixels; regions on several slices.
        MissingPathError: no such file.
    """
    shapes = []
    for roi in _read(path):
        what = f"region {roi.name!r} of {path}"
        planes = {int(n) for n in (roi.position, roi.z_position, roi.t_position)}
        if max(planes) > 1:
            raise InputError(
                f"{what} lies on slice {max(planes)} of a stack",
                hint="drawings are converted for 2-D images; save slices and their regions apart",
            )
        found = _pixels(what, roi, image_shape).to_shape(_label(roi, unclassified))
        if found is not None:
            shapes.append(found)
    return tuple(shapes)


def _read(path: Path) -> list[Any]:
    import struct
    import zipfile

    from roifile import roiread

    try:
        found = roiread(path)
    except FileNotFoundError:
        raise MissingPathError(f"there is nothing at {path}", hint="check the path") from None
    except (ValueError, OSError, KeyError, IndexError, struct.error, zipfile.BadZipFile) as error:
        raise UnreadableFileError(
            f"{path} holds no ImageJ regions: {error}",
            hint="save them again: ROI Manager, More, Save",
        ) from None
    return list(found) if isinstance(found, list) else [found]


def _label(roi: Any, unclassified: str) -> str:
    name = str(roi.name or "")
    if name.startswith(IGNORE):
        return IGNORE
    words = _WORDS.match(name)
    if words is not None:
        return words.group(1)
    return f"group {roi.group}" if roi.group else unclassified


def _pixels(what: str, roi: Any, image_shape: tuple[int, int]) -> Patch:
    from roifile import ROI_SUBTYPE, ROI_TYPE

    kinds = (ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED, ROI_TYPE.RECT, ROI_TYPE.OVAL)
    if roi.roitype not in kinds or roi.subtype in (ROI_SUBTYPE.TEXT, ROI_SUBTYPE.ARROW):
        raise InputError(
            f"{what} is a {roi.roitype.name.lower()}, which covers no pixels",
            hint="draw areas, or turn lines into areas (Edit, Selection, Line to Area)",
        )
    if roi.roitype == ROI_TYPE.OVAL:
        box = (float(roi.left), float(roi.top), float(roi.right), float(roi.bottom))
        return ellipse(box, image_shape)
    coordinates: Any = roi.coordinates(multi=True)
    rings = [np.asarray(ring, np.float64) for ring in coordinates]
    if not all(np.isfinite(ring).all() for ring in rings):
        raise InputError(f"{what} has a point that is no number", hint="draw it again")
    # Paths of a composite region: one inside another is a hole.
    return filled(rings, image_shape)
