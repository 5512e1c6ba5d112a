"""Slices as Cellpose's networks want them: channels last, percentiles at 0 and 1, float32.

The percentiles are those of ``cellpose.transforms.normalize99`` (which also samples large volumes),
taken here, so that a volume is read once and never held; only what Cellpose does to images of small
range is not copied: it turns any image whose percentiles lie within 0.001 into zeros.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import InputError
from lamella.wire.event import ProgressEvent

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.engines.cellpose.settings import Settings
    from lamella.volume.volume import Volume
    from lamella.wire.event import EventSink

__all__ = ["Image", "open_image"]

_SAMPLED_EDGE = 224
_SAMPLED_SLICES = 50


@dataclass(frozen=True, slots=True)
class Image:
    """The input as slices.

    Attributes:
        volume: the input.
        settings: which channels, how they are normalised.
        limits: per channel the intensities that become 0 and 1; None = of each slice.
        sha256: of all voxels of the chosen channels.
    """

    volume: Volume
    settings: Settings
    limits: tuple[tuple[float, float], ...] | None
    sha256: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows, columns."""
        return _shape(self.volume)

    def plane(self, z: int) -> NDArray[np.float32]:
        """Return a slice, normalised, float32, (y, x, c).

        Raises:
            InputError: for values that are not finite.
        """
        raw = _raw_plane(self.volume, self.settings, z)
        if not np.isfinite(raw).all():
            raise InputError(
                f"slice {z} holds values that are not finite (NaN or infinity)",
                hint="replace them first; `lamella info` counts them",
            )
        if self.settings.options["normalise"] == "none":
            return raw
        limits = self.limits or _limits(raw[None], self.settings)
        for channel, (low, high) in enumerate(limits):
            values = raw[..., channel]
            values -= np.float32(low)
            if high > low:
                values /= np.float32(high - low)
            else:
                values[:] = 0
            if self.settings.options["invert"] and high > low:
                np.subtract(np.float32(1), values, out=values)
        return raw


def open_image(volume: Volume, settings: Settings, sink: EventSink) -> Image:
    """Read the volume once: its fingerprint, and its percentiles where they are of the whole.

    Args:
        volume: the input.
        settings: channels and normalisation.
        sink: progress and cancellation.
    """
    n_slices, n_rows, n_columns = _shape(volume)
    digest = hashlib.sha256(repr((volume.shape, str(volume.dtype))).encode())
    sample: list[NDArray[np.float32]] = []
    steps = _steps((n_slices, n_rows, n_columns))
    for z in range(n_slices):
        sink.check()
        plane = _raw_plane(volume, settings, z)
        digest.update(plane.tobytes())
        if settings.normalises_volume and z % steps[0] == 0:
            sample.append(plane[:: steps[1], :: steps[2]].copy())
        if n_slices > 1:
            sink.emit(ProgressEvent(stage="reading", done=z + 1, total=n_slices, unit="slices"))
    limits = _limits(np.stack(sample), settings) if settings.normalises_volume else None
    return Image(volume, settings, limits, digest.hexdigest())


def _limits(sample: NDArray[np.float32], settings: Settings) -> tuple[tuple[float, float], ...]:
    wanted = (settings.options["percentile_low"], settings.options["percentile_high"])
    found: list[tuple[float, float]] = []
    for channel in range(sample.shape[-1]):
        values = sample[..., channel]
        values = values[np.isfinite(values)]
        low, high = np.percentile(values, wanted) if values.size else (0.0, 0.0)
        if low == high and values.size:
            # Sparse images: more than the percentile's share has one value.
            low, high = float(values.min()), float(values.max())
        found.append((float(low), float(high)))
    return tuple(found)


def _steps(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Which voxels percentiles of a large volume are taken from, as Cellpose does it."""
    if np.prod(shape, dtype=np.int64) <= _SAMPLED_EDGE**3:
        return 1, 1, 1
    y, x = (max(1, n // _SAMPLED_EDGE) for n in shape[1:])
    return max(1, shape[0] // _SAMPLED_SLICES), y, x


def _shape(volume: Volume) -> tuple[int, int, int]:
    spatial = volume.spatial_shape
    return (1, *spatial) if len(spatial) == 2 else spatial  # type: ignore[return-value]


def _raw_plane(volume: Volume, settings: Settings, z: int) -> NDArray[np.float32]:
    """A slice of the chosen channels, float32, (y, x, c)."""
    shape = volume.spatial_shape[-2:]
    planes: list[Any] = []
    for channel in settings.channels:
        index = {"z": z, "c": channel}
        at = tuple(index.get(axis, slice(None)) for axis in volume.axes.names)
        planes.append(np.asarray(volume.data[at]).reshape(shape).astype(np.float32))
    return np.stack(planes, axis=-1)
