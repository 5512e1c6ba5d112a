"""Intensities as the network was trained on them: one linear map, clipped before or after.

Examples:
    >>> from lamella.wire.card import NormalisationDoc
    >>> stats = Statistics(mean=np.array([[10.0]]), std=np.array([[2.0]]), low=None, high=None)
    >>> normaliser = Normaliser.resolve(NormalisationDoc(kind="zscore"), stats)
    >>> normaliser.apply(np.full((1, 1, 1, 1), 14, np.float32), 0).item()
    2.0
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import ModelError
from lamella.inference.slab import Slabs
from lamella.inference.statistics import Statistics
from lamella.volume.box import Box
from lamella.wire.card import NormalisationDoc

__all__ = ["NormalisedSlabs", "Normaliser"]


@dataclass(frozen=True, slots=True)
class Normaliser:
    """``(v - offset) * scale``, clipped before or after.

    Attributes:
        offset: float32, (c, z) with z = 1 for one value for all layers.
        scale: float32, like ``offset``.
        clip_before: limits in intensities, or None.
        clip_after: limits of the result, or None.
        fill: replaces values that are not finite, float32, (c,); None leaves them.
    """

    offset: NDArray[np.float32]
    scale: NDArray[np.float32]
    clip_before: tuple[float, float] | None = None
    clip_after: tuple[float, float] | None = None
    fill: NDArray[np.float32] | None = None

    @classmethod
    def resolve(
        cls,
        doc: NormalisationDoc,
        statistics: Statistics,
        *,
        fill: NDArray[np.float64] | None = None,
    ) -> Normaliser:
        """The normalisation of a card for one input.

        Args:
            doc: from the model's card.
            statistics: of this input, as :func:`measure` gives them for ``doc``.
            fill: replaces values that are not finite, (c,).

        Raises:
            ModelError: when the card's numbers cannot be used.
        """
        filling = None if fill is None else fill.astype(np.float32)
        if doc.kind == "zscore":
            assert statistics.mean is not None
            assert statistics.std is not None
            return cls._linear(statistics.mean, statistics.std, fill=filling)
        if doc.kind == "percentile":
            assert statistics.low is not None
            assert statistics.high is not None
            limits = (0.0, 1.0) if doc.clip else None
            span = statistics.high - statistics.low
            return cls._linear(statistics.low, span, clip_after=limits, fill=filling)
        if doc.kind == "fixed":
            mean = np.array([[0.0 if doc.mean is None else doc.mean]])
            std = np.array([[1.0 if doc.std is None else doc.std]])
            if std.item() <= 0:
                raise ModelError(f"the card's standard deviation {std.item()} must be positive")
            low = -np.inf if doc.low is None else doc.low
            high = np.inf if doc.high is None else doc.high
            before = None if doc.low is None and doc.high is None else (low, high)
            return cls._linear(mean, std, clip_before=before, fill=filling)
        return cls._linear(np.zeros((1, 1)), np.ones((1, 1)), fill=filling)

    @classmethod
    def _linear(
        cls,
        offset: NDArray[np.float64],
        span: NDArray[np.float64],
        *,
        clip_before: tuple[float, float] | None = None,
        clip_after: tuple[float, float] | None = None,
        fill: NDArray[np.float32] | None = None,
    ) -> Normaliser:
        # A layer without contrast (padding slices) becomes 0 instead of infinite.
        scale = np.divide(1.0, span, out=np.zeros_like(span), where=span > 0)
        return cls(
            offset.astype(np.float32), scale.astype(np.float32), clip_before, clip_after, fill
        )

    def apply(self, slab: NDArray[np.float32], start: int) -> NDArray[np.float32]:
        """Normalise, in place where the array allows.

        Args:
            slab: intensities, float32, (c, z, y, x).
            start: z of its first layer in the input.
        """
        result = slab if slab.flags.writeable else slab.copy()
        if self.fill is not None:
            bad = ~np.isfinite(result)
            if bad.any():
                np.copyto(result, self.fill[:, None, None, None], where=bad)
        if self.clip_before is not None:
            np.clip(result, *self.clip_before, out=result)
        rows = slice(None) if self.offset.shape[1] == 1 else slice(start, start + slab.shape[1])
        result -= self.offset[:, rows, None, None]
        result *= self.scale[:, rows, None, None]
        if self.clip_after is not None:
            np.clip(result, *self.clip_after, out=result)
        return result


class NormalisedSlabs:
    """Intensities brought to what the network was trained on.

    Args:
        inner: intensities of the file.
        normaliser: resolved for this input.
    """

    def __init__(self, inner: Slabs, normaliser: Normaliser) -> None:
        self._inner = inner
        self._normaliser = normaliser
        self.shape = inner.shape
        self.n_channels = inner.n_channels

    def read(self, box: Box) -> NDArray[np.float32]:
        """Read a box, (c, z, y, x)."""
        return self._normaliser.apply(self._inner.read(box), box.start[0])
