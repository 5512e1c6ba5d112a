"""Measuring what a run found: each object, or each class where objects are not told apart."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.progress import ProgressSink
from lamella.volume.volume import Volume
from lamella.workflows.objects import ObjectSet

if TYPE_CHECKING:
    from lamella.measurement import ObjectTable

__all__ = ["intensities_of", "measure_objects_of", "shown_image"]


def measure_objects_of(objects: ObjectSet, image: Volume, sink: ProgressSink) -> "ObjectTable":
    """One row an object, with the class its engine gave it.

    Args:
        objects: labels and ids of a run.
        image: what was segmented; intensities are measured where it has one channel.
        sink: progress and cancellation.
    """
    from lamella.measurement import measure_labels

    intensities = intensities_of(image)
    if objects.ids is None:
        return measure_labels(objects.labels, intensities, sink=sink)
    table = measure_labels(objects.ids, intensities, sink=sink)
    further = {name: _by_id(values, table.ids) for name, values in objects.columns.items()}
    if objects.class_of is not None:
        classes = objects.class_of.astype(np.int64)[table.ids.astype(np.int64)]
    else:
        known = objects.labels.classes
        # Instances of a model with one class are of that class; with several, nobody said.
        value = known[0].value if len(known) == 1 else 0
        classes = np.full(len(table), value, np.int64)
    names = {known.value: known.name for known in objects.labels.classes}
    return replace(table, classes=classes, class_names=names, further=further)


def _by_id(values: NDArray[Any], ids: NDArray[Any]) -> NDArray[np.float64]:
    """One number an object, nan where there is none."""
    result = np.full(len(ids), np.nan)
    known = ids < len(values)
    result[known] = values[ids[known].astype(np.int64)]
    return result


def intensities_of(image: Volume) -> Volume | None:
    """The image with its spatial axes alone; None where it has several channels."""
    for axis in ("t", "c"):
        if axis in image.axes:
            if image.shape[image.axes.index(axis)] != 1:
                return None
            image = image.select(axis, 0)
    return image if image.dtype.kind in "uifb" else None


def shown_image(image: Volume) -> Volume | None:
    """What is drawn below labels: the image, or its first channel where there are several."""
    single = intensities_of(image)
    if single is not None:
        return single
    return image.select("c", 0) if "c" in image.axes else None
