"""An image, a part of it, or one of its slices, that a network is judged on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from lamella.training.pairs.patch import as_sample
from lamella.volume.box import Box

if TYPE_CHECKING:
    from lamella.training.augment import Sample
    from lamella.training.pairs.store import PairStore

__all__ = ["PairRegion"]


class PairRegion:
    """A :class:`lamella.training.source.Region` of a pair.

    Args:
        store: reads images and labels.
        number: of the pair.
        box: where the region lies in the image, (z, y, x).
        axes: of what is read: ``yx`` where z is 1.
        z: slice of a volume, for its name.
        is_part: whether the image holds more than the region.
    """

    def __init__(
        self,
        store: PairStore,
        number: int,
        box: Box,
        axes: Literal["zyx", "yx"],
        *,
        z: int | None = None,
        is_part: bool = False,
    ) -> None:
        pair = store.pairs[number]
        self._store = store
        self._number = number
        self._box = box
        self._axes = axes
        self.specimen = pair.specimen
        self.name = pair.image
        if z is not None:
            self.name += f" z={z}"
        elif is_part:
            self.name += f" {box}"
        self.shape = box.shape[-len(axes) :]

    def read(self, box: Box) -> Sample:
        """Image, labels and validity of a box, in voxels of the region."""
        at = Box((0, *box.start)[-3:], (1, *box.stop)[-3:]).shift(self._box.start)
        image = self._store.image(self._number, at)
        labels, valid = self._store.labels(self._number, at)
        return as_sample(image, labels, valid, self._store.codec.kind, self._axes)
