"""What a simulated sample is cut from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.wire.card import NormalisationDoc

__all__ = ["Scene", "normalised", "window"]


class Scene(Protocol):
    """A simulated sample in memory.

    Contract:
        * ``cut`` draws all that is random from ``rng`` and gives an image that is normalised,
          float32, and its values or ids, both of exactly ``shape``, in memory of their own;
        * ``image`` and ``labels`` are the whole sample as a microscope would give it, the same
          every time; ``image`` is not normalised.
    """

    @property
    def image(self) -> NDArray[np.float32]:
        """The whole sample."""
        ...

    @property
    def labels(self) -> NDArray[Any]:
        """Class values or ids of the whole sample."""
        ...

    def cut(
        self, rng: np.random.Generator, shape: tuple[int, ...]
    ) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """A patch and its labels."""
        ...


def normalised(image: NDArray[Any], normalisation: NormalisationDoc) -> NDArray[np.float32]:
    """A whole image as inference would normalise it.

    Args:
        image: (z, y, x) or (y, x).
        normalisation: of the model.
    """
    from lamella.inference.normalise import Normaliser
    from lamella.inference.slab import VolumeSlabs
    from lamella.inference.statistics import measure
    from lamella.volume.volume import Volume

    as_volume = image.reshape((1,) * (3 - image.ndim) + image.shape).astype(np.float32)
    statistics = measure(VolumeSlabs(Volume.from_array(as_volume)), normalisation).statistics
    result = Normaliser.resolve(normalisation, statistics).apply(as_volume[None].copy(), 0)
    return result[0].reshape(image.shape)


def window(
    rng: np.random.Generator, whole: tuple[int, ...], part: tuple[int, ...]
) -> tuple[slice, ...]:
    """Draw where a part lies in a whole that is no smaller."""
    starts = [int(rng.integers(0, n - m + 1)) for n, m in zip(whole, part, strict=True)]
    return tuple(slice(start, start + m) for start, m in zip(starts, part, strict=True))
