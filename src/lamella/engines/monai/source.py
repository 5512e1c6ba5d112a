"""The input as a bundle's network wants it: its steps carried out box by box, never whole.

Steps that need a number of the whole image (its mean, its percentiles, the box around what is not
empty) look at it once, slab by slab, through all steps before them, in the order of the bundle.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from lamella.core.errors import InputError
from lamella.engines.monai.grid import Layout
from lamella.engines.monai.recipe import (
    Crop,
    Linear,
    MinMax,
    Orient,
    Percentiles,
    Space,
    Zscore,
)
from lamella.engines.monai.resolver import needs_trust
from lamella.inference.normalise import NormalisedSlabs, Normaliser
from lamella.inference.resample import ResampledSlabs
from lamella.inference.slab import Slabs, VolumeSlabs
from lamella.inference.statistics import Finding, measure
from lamella.volume.box import Box
from lamella.volume.volume import Note
from lamella.wire.card import NormalisationDoc
from lamella.wire.event import ProgressEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from lamella.engines.monai.recipe import Step
    from lamella.volume.volume import Volume
    from lamella.wire.event import EventSink

__all__ = ["Prepared", "prepare"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A source of tiles.

    Attributes:
        source: intensities on the network's grid, axes and directions of the input.
        layout: between the input and that grid.
        shape: extent of the input, (z, y, x) voxels.
        sha256: of the input's voxels as float32.
        notes: what the user must know.
    """

    source: Slabs
    layout: Layout
    shape: tuple[int, int, int]
    sha256: str
    notes: tuple[Note, ...]


def prepare(
    volume: Volume,
    steps: Sequence[Step],
    *,
    n_axes: int,
    replaces_not_finite: bool,
    sink: EventSink,
) -> Prepared:
    """Stack a bundle's steps on top of a volume.

    Args:
        volume: with the channels the network takes.
        steps: of the bundle.
        n_axes: spatial axes of the network.
        replaces_not_finite: put the mean in place of NaN and infinite voxels.
        sink: progress and cancellation.

    Raises:
        InputError: for a constant volume, voxels that are not finite, an impossible spacing, or
            nothing above 0 to crop to.
        ModelError: for steps that a 2-D network cannot have here.
    """
    builder = _Builder(volume, n_axes, sink)
    builder.look(replaces_not_finite=replaces_not_finite)
    for step in steps:
        builder.add(step)
    return Prepared(
        builder.source, builder.layout, builder.shape, builder.sha256, tuple(builder.notes)
    )


class _Builder:
    """The stack while it grows."""

    def __init__(self, volume: Volume, n_axes: int, sink: EventSink) -> None:
        self._volume = volume
        self._n_axes = n_axes
        self._sink = sink
        self.notes: list[Note] = []
        raw = VolumeSlabs(volume)
        self.source: Slabs = raw
        self.shape = raw.shape
        self._has_spacing = volume.spacing.is_calibrated
        spacing = volume.spacing.to("mm").values if self._has_spacing else (1.0,) * 3
        z, y, x = (1.0,) * (3 - len(spacing)) + tuple(spacing)
        self.layout = Layout.of_input(raw.shape, (z, y, x), n_axes=n_axes)
        self.sha256 = ""

    @property
    def _scope(self) -> Literal["volume", "slice"]:
        # A 2-D bundle's steps are about single images: so they are here, slice by slice.
        return "volume" if self._n_axes == 3 else "slice"

    def _report(self, done: int, total: int) -> None:
        self._sink.check()
        self._sink.emit(ProgressEvent(stage="statistics", done=done, total=total, unit="layers"))

    def look(self, *, replaces_not_finite: bool) -> None:
        """Look at the voxels as they are, once."""
        shape = (self.source.n_channels, self.shape)
        digest = hashlib.sha256(repr(shape).encode())
        finding = measure(
            self.source, NormalisationDoc(kind="none"), report=self._report, digest=digest
        )
        self.sha256 = digest.hexdigest()
        if finding.is_constant:
            raise InputError(
                f"every voxel of the input is {finding.minimum.tolist()[0]:g}: there is nothing to"
                " segment",
                hint="check that the right data set, channel and level were opened",
            )
        if finding.n_not_finite and not replaces_not_finite:
            raise InputError(
                f"{finding.n_not_finite} voxel(s) of the input are NaN or infinite",
                hint="replace them by the mean of the others with --option replace_not_finite=true",
            )
        if finding.n_not_finite:
            text = f"{finding.n_not_finite} voxel(s) were NaN or infinite and set to the mean"
            self.notes.append(Note("not_finite_replaced", text))
            fill = finding.fill.astype(np.float32)[:, None, None, None]
            self.source = _Mapped(
                self.source, lambda values, _: np.where(np.isfinite(values), values, fill)
            )

    def add(self, step: Step) -> None:
        """Put one step on top."""
        if isinstance(step, Orient):
            self._orient(step)
        elif isinstance(step, Space):
            self._space(step)
        elif isinstance(step, Crop):
            self._crop()
        elif isinstance(step, Linear):
            self.source = _linear(self.source, step)
        elif isinstance(step, Zscore):
            self._zscore(step)
        else:
            self._stretch(step)

    # -- grids

    def _orient(self, step: Orient) -> None:
        if self._n_axes == 2:
            return
        if self._volume.affine.frame != "RAS":
            text = (
                f"the input says nothing of anatomy; the bundle's orientation {step.axcodes} was"
                " taken to be that of its axes x, y, z"
            )
            self.notes.append(Note("orientation_unknown", text))
            return
        self.layout = self.layout.oriented(self._volume.affine, step.axcodes)

    def _space(self, step: Space) -> None:
        wanted = " x ".join(f"{mm:g}" for mm in step.pixdim)
        if not self._has_spacing:
            text = (
                f"the input has no known spacing; it was taken to be the bundle's ({wanted} mm)."
                " Set it with --spacing z,y,x --unit U"
            )
            self.notes.append(Note("spacing_unknown", text))
            return
        before, self.layout = self.layout, self.layout.respaced(step.pixdim)
        if self.layout is before:
            return
        positions: list[NDArray[np.float64] | None] = [
            None if new is old else old.of_input(new.offset + new.scale * np.arange(float(new.n)))
            for old, new in zip(before.lines, self.layout.lines, strict=True)
        ]
        self.source = ResampledSlabs.at_positions(
            self.source, self.layout.shape, positions, is_nearest=step.is_nearest
        )
        was, now = (" x ".join(map(str, layout.shape)) for layout in (before, self.layout))
        text = (
            f"the input ({self._volume.spacing}) was resampled to the bundle's spacing ({wanted}"
            f" mm): {was} -> {now} voxels; labels lie on the input's own grid"
        )
        self.notes.append(Note("resampled", text))

    def _crop(self) -> None:
        if self._n_axes == 2:
            raise needs_trust("the bundle crops every image on its own (CropForeground in 2-D)")
        start, stop = _foreground_box(self.source, self._report)
        if any(a >= b for a, b in zip(start, stop, strict=True)):
            raise InputError(
                "the bundle crops the image to what is above 0, and nothing is",
                hint="is this the kind of image (and its unit) that the bundle was made for?",
            )
        self.layout = self.layout.cropped(start, stop)
        if (start, stop) != ((0, 0, 0), self.source.shape):
            self.source = _Cropped(self.source, Box(start, stop))

    # -- intensities

    def _measure(self, doc: NormalisationDoc, *, joint: bool, nonzero: bool = False) -> Finding:
        source: Slabs = _Nonzero(self.source) if nonzero else self.source
        if joint and source.n_channels > 1:
            source = _Joined(source)
        return measure(source, doc, report=self._report)

    def _zscore(self, step: Zscore) -> None:
        doc = NormalisationDoc(kind="zscore", scope=self._scope)
        offset = _column(step.subtrahend)
        scale = _column(step.divisor)
        if offset is None or scale is None:
            found = self._measure(doc, joint=not step.is_per_channel, nonzero=step.nonzero)
            mean, std = found.statistics.mean, found.statistics.std
            assert mean is not None, "a z-score was asked for"
            assert std is not None, "a z-score was asked for"
            offset = mean if offset is None else offset
            scale = std if scale is None else scale
        scale = np.where(scale == 0, 1.0, scale)
        low, high = offset.astype(np.float32), scale.astype(np.float32)

        def apply(values: NDArray[np.float32], start: int) -> NDArray[np.float32]:
            rows = slice(None) if low.shape[1] == 1 else slice(start, start + values.shape[1])
            wide = high if high.shape[1] == 1 else high[:, rows]
            result = (values - low[:, rows, None, None]) / wide[:, :, None, None]
            return np.where(values != 0, result, values) if step.nonzero else result

        self.source = _Mapped(self.source, apply)

    def _stretch(self, step: MinMax | Percentiles) -> None:
        """Two order statistics become two numbers."""
        is_percentile = isinstance(step, Percentiles)
        low_at, high_at = (step.lower, step.upper) if is_percentile else (0.0, 100.0)
        if is_percentile or self._scope == "slice":
            doc = NormalisationDoc(kind="percentile", scope=self._scope, low=low_at, high=high_at)
            found = self._measure(doc, joint=not step.is_per_channel)
            low, high = found.statistics.low, found.statistics.high
        else:
            found = self._measure(NormalisationDoc(kind="none"), joint=not step.is_per_channel)
            low, high = found.minimum[:, None], found.maximum[:, None]
        assert low is not None, "percentiles were asked for"
        assert high is not None, "percentiles were asked for"
        self.source = _Mapped(self.source, _Stretch(step, low, high))


class _Stretch:
    """``low`` .. ``high`` of every channel (and slice) to what a step asks for."""

    def __init__(
        self,
        step: MinMax | Percentiles,
        low: NDArray[np.float64],
        high: NDArray[np.float64],
    ) -> None:
        self._step = step
        self._low, self._high = low, high

    def __call__(self, values: NDArray[np.float32], start: int) -> NDArray[np.float32]:
        low, high = self._low, self._high
        rows = slice(None) if low.shape[1] == 1 else slice(start, start + values.shape[1])
        step = self._step
        is_percentile = isinstance(step, Percentiles)
        to_low, to_high = (step.b_min, step.b_max) if is_percentile else (step.low, step.high)
        has_target = to_low is not None and to_high is not None
        base = 0.0 if not has_target or to_low is None else to_low
        span = 1.0 if not has_target or to_high is None else to_high - base
        offset = low[:, rows, None, None].astype(np.float32)
        width = (high - low)[:, rows, None, None].astype(np.float32)
        is_flat = width == 0
        result = (values - offset) / np.where(is_flat, 1.0, width).astype(np.float32)
        result = result * np.float32(span) + np.float32(base)
        if is_flat.any():
            # MONAI's own ways with an image that is all one value.
            flat = values - offset + base if is_percentile else values * base
            result = np.where(is_flat, flat, result)
        if is_percentile and step.clips:
            result = np.clip(result, to_low, to_high)
        return result.astype(np.float32, copy=False)


def _column(value: float | None) -> NDArray[np.float64] | None:
    return None if value is None else np.array([[value]], np.float64)


def _linear(source: Slabs, step: Linear) -> Slabs:
    if step.shift == 0.0:
        after = None if step.low is None or step.high is None else (step.low, step.high)
        offset, scale = (np.array([[v]], np.float32) for v in (step.offset, step.scale))
        return NormalisedSlabs(source, Normaliser(offset, scale, clip_after=after))
    offset, scale, shift = (np.float32(v) for v in (step.offset, step.scale, step.shift))

    def apply(values: NDArray[np.float32], _: int) -> NDArray[np.float32]:
        result = (values - offset) * scale + shift
        return result if step.low is None else np.clip(result, step.low, step.high)

    return _Mapped(source, apply)


def _foreground_box(
    source: Slabs, report: Callable[[int, int], None]
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """The box around all voxels above 0, found slab by slab."""
    depth, height, width = source.shape
    found = [np.zeros(n, bool) for n in source.shape]
    step = max(1, (1 << 22) // max(1, height * width * source.n_channels))
    for first in range(0, depth, step):
        report(first, depth)
        last = min(depth, first + step)
        mask = (source.read(Box((first, 0, 0), (last, height, width))) > 0).any(axis=0)
        rows = mask.any(axis=-1)
        found[0][first:last] = rows.any(axis=-1)
        found[1] |= rows.any(axis=0)
        found[2] |= mask.any(axis=0).any(axis=0)
    report(depth, depth)
    ends = [np.flatnonzero(axis) for axis in found]
    start = tuple(int(e[0]) if len(e) else 0 for e in ends)
    stop = tuple(int(e[-1]) + 1 if len(e) else 0 for e in ends)
    return (start[0], start[1], start[2]), (stop[0], stop[1], stop[2])


# --- Sources ------------------------------------------------------------------------------------


class _Mapped:
    """Every value through a function of it and of its layer."""

    def __init__(
        self,
        inner: Slabs,
        function: Callable[[NDArray[np.float32], int], NDArray[np.float32]],
    ) -> None:
        self._inner, self._function = inner, function
        self.shape, self.n_channels = inner.shape, inner.n_channels

    def read(self, box: Box) -> NDArray[np.float32]:
        """Read a box, (c, z, y, x)."""
        values = self._function(self._inner.read(box), box.start[0])
        return values.astype(np.float32, copy=False)


class _Cropped:
    """A box of a source."""

    def __init__(self, inner: Slabs, box: Box) -> None:
        self._inner, self._start = inner, box.start
        z, y, x = box.shape
        self.shape: tuple[int, int, int] = (z, y, x)
        self.n_channels = inner.n_channels

    def read(self, box: Box) -> NDArray[np.float32]:
        """Read a box, (c, z, y, x)."""
        return self._inner.read(box.shift(self._start))


class _Nonzero:
    """Zeros as NaN, which statistics pass over."""

    def __init__(self, inner: Slabs) -> None:
        self._inner = inner
        self.shape, self.n_channels = inner.shape, inner.n_channels

    def read(self, box: Box) -> NDArray[np.float32]:
        """Read a box, (c, z, y, x)."""
        values = self._inner.read(box)
        return np.where(values == 0, np.float32(np.nan), values)


class _Joined:
    """All channels as one, side by side along y; read whole layers only."""

    n_channels = 1

    def __init__(self, inner: Slabs) -> None:
        self._inner = inner
        z, y, x = inner.shape
        self.shape = (z, y * inner.n_channels, x)

    def read(self, box: Box) -> NDArray[np.float32]:
        """Read layers, (1, z, c * y, x)."""
        _, y, x = self._inner.shape
        assert box.shape[1:] == self.shape[1:], "statistics read whole layers"
        values = self._inner.read(Box((box.start[0], 0, 0), (box.stop[0], y, x)))
        joined = values.transpose(1, 0, 2, 3).reshape(box.shape[0], -1, x)
        return np.ascontiguousarray(joined)[None]
