"""The post-processing that nnU-Net found best in cross-validation, applied to finished labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import EngineError
from lamella.engines.nnunet.checkpoint import KeepLargest
from lamella.volume.box import Box

if TYPE_CHECKING:
    from lamella.io.label_store import LabelStore

__all__ = ["keep_largest", "postprocess"]


def keep_largest(labels: NDArray[Any], step: KeepLargest) -> NDArray[Any]:
    """Of the union of some labels, keep the largest connected component.

    Equally large ones all stay; voxels that touch at a corner are connected. Source: nnU-Net
    ``remove_all_but_largest_component_from_segmentation`` (Apache-2.0).

    Args:
        labels: integers, (z, y, x) or (y, x).
        step: which labels.

    Returns:
        New labels.

    Examples:
        >>> keep_largest(np.array([[1, 1, 0, 2]], np.uint8), KeepLargest((1, 2))).tolist()
        [[1, 1, 0, 0]]
    """
    from lamella.instances.components import label_components

    mask = np.isin(labels, step.groups)
    pieces = label_components(mask, connectivity=26 if labels.ndim == 3 else 8)
    sizes = np.bincount(pieces.labels.ravel(), minlength=pieces.count + 1)
    sizes[0] = 0
    is_kept = sizes == sizes.max()
    is_kept[0] = True
    result = labels.copy()
    result[~is_kept[pieces.labels]] = step.background
    return result


def postprocess(
    store: LabelStore, steps: Sequence[KeepLargest | Callable[..., Any]], check: Callable[[], None]
) -> int:
    """Apply steps to stored labels, in place.

    Labels are read whole: which component is the largest shows only in the end. An interruption
    is harmless, as steps leave what they have done before as it is.

    Args:
        store: the labels, not finished yet.
        steps: what to do, in order.
        check: raises once the run is cancelled.

    Returns:
        How many voxels changed.

    Raises:
        EngineError: a trusted function that fails.
    """
    labels = store.read(Box.from_shape(store.shape))
    before = labels
    for step in steps:
        check()
        if isinstance(step, KeepLargest):
            labels = keep_largest(labels, step)
            continue
        try:
            labels = np.asarray(step(labels)).astype(labels.dtype)
        except Exception as error:  # somebody else's function
            raise EngineError(
                f"the model's own post-processing failed: {type(error).__name__}: {error}",
                hint="run without --option postprocess=true",
            ) from error
    depth = store.unit[0]
    for start in range(0, store.shape[0], depth):
        check()
        stop = min(store.shape[0], start + depth)
        if not np.array_equal(before[start:stop], labels[start:stop]):
            box = Box((start,) + (0,) * (len(store.shape) - 1), (stop, *store.shape[1:]))
            store.write(box, np.ascontiguousarray(labels[start:stop]))
    store.sync()
    return int(np.count_nonzero(before != labels))
