"""Borders that nothing is learnt of, because those who annotated them drew them unlike.

Whether the border between an axon and its sheath lies where the image is half bright, or a pixel
or two to either side, is a matter of habit. A network that sees two habits tells them apart by the
look of the images, and takes either one, or neither, on the next. What lies near the borders of
one annotator is therefore left out, and those of the other are learnt.

::

    1 1 1 1 2 2 2 2 0      classes
    1 1 ? ? ? ? 2 2 0      unsure between 1 and 2, width 2
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import InputError
from lamella.core.registry import nearest_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lamella.training.configuration import UnsureConfig

__all__ = ["UnsureBorder"]

_BACKGROUND = "background"


@dataclass(frozen=True, slots=True)
class UnsureBorder:
    """Where two classes meet.

    Attributes:
        classes: numbers of the two; 0 is background.
        width: voxels on either side that are unknown.

    Examples:
        >>> classes = np.array([1, 1, 1, 1, 2, 2, 2, 2, 0]).reshape(1, 1, 1, 9)
        >>> UnsureBorder((1, 2), 2.0).known(classes, None).astype(int).ravel().tolist()
        [1, 1, 0, 0, 0, 0, 1, 1, 1]
    """

    classes: tuple[int, int]
    width: float

    @classmethod
    def of(cls, config: UnsureConfig, names: Sequence[str]) -> UnsureBorder:
        """The border that a configuration names.

        Args:
            config: two classes by name.
            names: of the task's classes, without background.

        Raises:
            InputError: for a class that the task does not have, or one class twice.
        """
        known = (_BACKGROUND, *names)
        for name in config.between:
            if name not in known:
                raise InputError(
                    f"data.unsure.between names {name!r}, which is no class of the task",
                    hint="take one of: " + ", ".join(nearest_names(name, known) or known),
                )
        one, other = (known.index(name) for name in config.between)
        if one == other:
            raise InputError(
                f"data.unsure.between names {config.between[0]!r} twice, a border has two sides",
                hint="name two classes; 'background' is one",
            )
        return cls((one, other), config.width)

    @property
    def margin(self) -> int:
        """Voxels around a box that decide what is known in it."""
        return math.ceil(self.width)

    def known(
        self, labels: NDArray[Any], valid: NDArray[np.bool_] | None
    ) -> NDArray[np.bool_] | None:
        """What is left to be learnt from.

        Args:
            labels: classes, (1, z, y, x).
            valid: where they were known before, the same shape; None = everywhere.

        Returns:
            bool, the same shape; None = everywhere.
        """
        from scipy.ndimage import distance_transform_edt

        one, other = (labels[0] == number for number in self.classes)
        if valid is not None:
            one, other = one & valid[0], other & valid[0]
        if not (one.any() and other.any()):
            return valid
        is_near = np.zeros(labels.shape, bool)
        for here, there in ((one, other), (other, one)):
            is_near[0] |= here & (np.asarray(distance_transform_edt(~there)) <= self.width)
        return ~is_near if valid is None else valid & ~is_near
