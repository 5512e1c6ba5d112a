"""Numbers of an input that its normalisation needs: one look at every voxel, in flat memory.

Means and standard deviations are merged in float64; percentiles are true order statistics, found
by counting the upper and then the lower 16 bits of a number (radix selection on float32 in an
order-preserving integer form).

Examples:
    >>> from lamella.inference.slab import VolumeSlabs
    >>> from lamella.volume import Volume
    >>> from lamella.wire.card import NormalisationDoc
    >>> slabs = VolumeSlabs(Volume.from_array(np.arange(24).reshape(2, 3, 4)))
    >>> finding = measure(slabs, NormalisationDoc(kind="percentile", low=0, high=50))
    >>> finding.statistics.high.item(), finding.is_constant
    (11.5, False)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

from lamella.core.errors import InputError, ModelError
from lamella.inference.slab import Slabs
from lamella.volume.box import Box
from lamella.wire.card import NormalisationDoc

__all__ = ["Finding", "Statistics", "measure"]

SLAB_VOXELS = 1 << 22
Report = Callable[[int, int], None]
"""Called with layers done and layers in all; may raise to stop."""


class Digest(Protocol):
    """A running checksum, such as ``hashlib.sha256()``."""

    def update(self, data: Buffer, /) -> None:
        """Add bytes."""
        ...


@dataclass(frozen=True, slots=True)
class Statistics:
    """Numbers a normalisation needs, float64, (c, z); z is 1 where they hold for all layers."""

    mean: NDArray[np.float64] | None
    std: NDArray[np.float64] | None
    low: NDArray[np.float64] | None
    high: NDArray[np.float64] | None


@dataclass(frozen=True, slots=True)
class Finding:
    """What a look at all voxels found.

    Attributes:
        statistics: what the normalisation needs.
        n_not_finite: voxels that are NaN or infinite; they count nowhere else.
        minimum: smallest finite value, float64, (c,).
        maximum: largest finite value, float64, (c,).
        fill: what stands in for values that are not finite: the mean of the others, (c,).
    """

    statistics: Statistics
    n_not_finite: int
    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]
    fill: NDArray[np.float64]

    @property
    def is_constant(self) -> bool:
        """Whether no channel has two different values."""
        return bool(np.all(self.minimum >= self.maximum))


def measure(
    source: Slabs,
    doc: NormalisationDoc,
    *,
    report: Report | None = None,
    digest: Digest | None = None,
) -> Finding:
    """Look at every voxel once (three times where percentiles are wanted).

    Args:
        source: intensities as stored.
        doc: says which statistics the normalisation needs.
        report: progress and cancellation.
        digest: fed with every voxel, in an order that depends on the shape alone.

    Raises:
        ModelError: for a percentile normalisation without sensible percentiles.
        InputError: when no voxel is finite.
    """
    moments = _Moments(source.n_channels, source.shape[0])
    wants_percentiles = doc.kind == "percentile"
    is_per_slice = doc.scope == "slice"
    fractions = _percentile_fractions(doc) if wants_percentiles else ()
    per_slice: list[NDArray[np.float64]] = []
    select = _Select(source.n_channels) if wants_percentiles and not is_per_slice else None
    for start, slab in _iter_slabs(source, report):
        if digest is not None:
            digest.update(np.ascontiguousarray(slab).data)
        moments.add(slab, start)
        if select is not None:
            select.count_upper(slab)
        elif wants_percentiles:
            per_slice.extend(_slice_percentiles(slab, fractions))
    if moments.n.sum() == 0:
        raise InputError(
            "no voxel of the input is a finite number", hint="check how the file was written"
        )
    low = high = None
    if select is not None:
        low, high = select.finish(source, fractions)
    elif wants_percentiles:
        both = np.stack(per_slice, axis=1)  # (2, z, c)
        low, high = both[0].T, both[1].T
    mean, std = moments.result(per_slice=is_per_slice)
    whole_mean, _ = moments.result(per_slice=False)
    return Finding(
        statistics=Statistics(mean, std, low, high),
        n_not_finite=moments.n_not_finite,
        minimum=moments.minimum,
        maximum=moments.maximum,
        fill=whole_mean[:, 0],
    )


def _iter_slabs(
    source: Slabs, report: Report | None = None
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    depth, height, width = source.shape
    step = max(1, SLAB_VOXELS // max(1, height * width * source.n_channels))
    for start in range(0, depth, step):
        stop = min(depth, start + step)
        if report is not None:
            report(start, depth)
        yield start, source.read(Box((start, 0, 0), (stop, height, width)))
    if report is not None:
        report(depth, depth)


class _Moments:
    """Count, mean and sum of squared deviations per channel and layer, merged at the end."""

    def __init__(self, n_channels: int, n_layers: int) -> None:
        self.n = np.zeros((n_channels, n_layers))
        self.mean = np.zeros((n_channels, n_layers))
        self.square = np.zeros((n_channels, n_layers))
        self.minimum = np.full(n_channels, np.inf)
        self.maximum = np.full(n_channels, -np.inf)
        self.n_not_finite = 0

    def add(self, slab: NDArray[np.float32], start: int) -> None:
        for channel, layers in enumerate(slab):
            for offset, layer in enumerate(layers):
                with np.errstate(invalid="ignore", over="ignore"):
                    is_finite = bool(np.isfinite(layer.sum(dtype=np.float64)))
                values = layer.ravel() if is_finite else layer[np.isfinite(layer)]
                self.n_not_finite += layer.size - values.size
                if values.size == 0:
                    continue
                mean = values.mean(dtype=np.float64)
                # Differences in float32 halve the time; their squares are summed in float64.
                deviation = values - np.float32(mean)
                shift = float(np.float32(mean)) - mean
                square = float(np.square(deviation, out=deviation).sum(dtype=np.float64))
                at = (channel, start + offset)
                self.n[at] = values.size
                self.mean[at] = mean
                self.square[at] = max(0.0, square - values.size * shift * shift)
                self.minimum[channel] = min(self.minimum[channel], float(values.min()))
                self.maximum[channel] = max(self.maximum[channel], float(values.max()))

    def result(self, *, per_slice: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation, (c, z) or (c, 1)."""
        if per_slice:
            return self.mean, np.sqrt(self.square / np.maximum(self.n, 1))
        n = np.maximum(self.n.sum(axis=1, keepdims=True), 1)
        mean = (self.mean * self.n).sum(axis=1, keepdims=True) / n
        between = (self.n * (self.mean - mean) ** 2).sum(axis=1, keepdims=True)
        square = self.square.sum(axis=1, keepdims=True) + between
        return mean, np.sqrt(square / n)


def _percentile_fractions(doc: NormalisationDoc) -> tuple[float, float]:
    low = 1.0 if doc.low is None else doc.low
    high = 99.0 if doc.high is None else doc.high
    if not 0.0 <= low < high <= 100.0:
        raise ModelError(
            f"the card's percentiles {low} and {high} must rise and lie between 0 and 100"
        )
    return low / 100.0, high / 100.0


def _slice_percentiles(
    slab: NDArray[np.float32], fractions: Sequence[float]
) -> list[NDArray[np.float64]]:
    """One (2, c) array per layer."""
    found: list[NDArray[np.float64]] = []
    for offset in range(slab.shape[1]):
        pair = np.zeros((len(fractions), slab.shape[0]))
        for channel in range(slab.shape[0]):
            layer = slab[channel, offset]
            values = layer[np.isfinite(layer)]
            if values.size:
                pair[:, channel] = np.quantile(values.astype(np.float64), fractions)
        found.append(pair)
    return found


def _sortable(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Integers in the order of the floats: negative numbers have all bits flipped."""
    bits = values.view(np.uint32)
    mask = (bits.view(np.int32) >> 31).view(np.uint32) | np.uint32(0x80000000)
    return bits ^ mask


def _unsortable(keys: NDArray[np.uint32]) -> NDArray[np.float32]:
    mask = np.where(keys & np.uint32(0x80000000), np.uint32(0x80000000), np.uint32(0xFFFFFFFF))
    return (keys ^ mask).astype(np.uint32).view(np.float32)


class _Select:
    """Order statistics of all voxels of a channel, in two passes over the data."""

    def __init__(self, n_channels: int) -> None:
        self._upper = np.zeros((n_channels, 1 << 16), np.int64)

    def count_upper(self, slab: NDArray[np.float32]) -> None:
        for channel, values in enumerate(slab):
            keys = _sortable(_finite(values)) >> np.uint32(16)
            self._upper[channel] += np.bincount(keys, minlength=1 << 16)

    def finish(
        self, source: Slabs, fractions: Sequence[float]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The percentiles, (c, 1) each, interpolated linearly between neighbours like numpy."""
        positions = [
            [fraction * max(0, int(counts.sum()) - 1) for fraction in fractions]
            for counts in self._upper
        ]
        ranks = [
            sorted({r for p in per for r in (int(np.floor(p)), int(np.ceil(p)))})
            for per in positions
        ]
        cumulated = self._upper.cumsum(axis=1)
        buckets = [
            [int(np.searchsorted(cumulated[c], r, side="right")) for r in ranks[c]]
            for c in range(len(ranks))
        ]
        lower = [{bucket: np.zeros(1 << 16, np.int64) for bucket in set(per)} for per in buckets]
        for _, slab in _iter_slabs(source):
            for channel, values in enumerate(slab):
                keys = _sortable(_finite(values))
                upper = keys >> np.uint32(16)
                for bucket, counts in lower[channel].items():
                    inside = (keys[upper == bucket] & np.uint32(0xFFFF)).astype(np.int64)
                    counts += np.bincount(inside, minlength=1 << 16)
        result = np.zeros((2, len(ranks), 1))
        for c, per in enumerate(positions):
            at = {
                rank: _value_at(rank, bucket, cumulated[c], lower[c][bucket])
                for rank, bucket in zip(ranks[c], buckets[c], strict=True)
            }
            for i, p in enumerate(per):
                a, b = at[int(np.floor(p))], at[int(np.ceil(p))]
                result[i, c, 0] = a + (b - a) * (p - np.floor(p))
        return result[0], result[1]


def _value_at(
    rank: int, bucket: int, cumulated: NDArray[np.int64], lower: NDArray[np.int64]
) -> float:
    before = int(cumulated[bucket - 1]) if bucket > 0 else 0
    low = int(np.searchsorted(lower.cumsum(), rank - before, side="right"))
    key = np.array([(bucket << 16) | low], np.uint32)
    return float(_unsortable(key)[0])


def _finite(values: NDArray[np.float32]) -> NDArray[np.float32]:
    flat = np.ascontiguousarray(values).ravel()
    mask = np.isfinite(flat)
    return flat if mask.all() else flat[mask]
