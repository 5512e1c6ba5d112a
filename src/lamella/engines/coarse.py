"""Where the coarse labels of a preview go: a store that lies on the input, coarser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lamella.engines.engine import PREVIEW_NAME
from lamella.engines.leftovers import remove_left
from lamella.volume.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import DTypeLike

    from lamella.io.label_store import LabelStore
    from lamella.volume.labels import LabelClass

__all__ = ["create_preview"]


def create_preview(
    run_dir: Path,
    volume: Volume,
    shape: Sequence[int],
    factors: Sequence[float],
    *,
    dtype: DTypeLike,
    classes: Sequence[LabelClass],
    is_instance: bool = False,
) -> LabelStore:
    """Start the labels of a preview, in the place of an earlier one.

    Args:
        run_dir: folder of the run.
        volume: the input.
        shape: extent of the coarse labels, along the input's spatial axes.
        factors: voxels of the input per coarse voxel, along the same.
        dtype: of the labels.
        classes: of the labels.
        is_instance: whether they are ids of objects.
    """
    from lamella.io.label_store import create_labels

    path = run_dir / PREVIEW_NAME
    remove_left(path)
    like = Volume(
        data=np.broadcast_to(np.zeros((), np.uint8), tuple(shape)),
        axes=volume.axes.without("t", "c"),
        affine=volume.affine.downsampled(factors),
        unit=volume.unit,
    )
    return create_labels(path, like=like, dtype=dtype, classes=classes, is_instance=is_instance)
