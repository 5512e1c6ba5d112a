"""Restoring an image or a volume: judged, decided, prepared, and streamed channel by channel.

The result goes to a file of plain float32 voxels as it arises, so memory does not grow with the
volume; :class:`Restored` opens it as a lazy volume with the geometry of the input. Restored images
are for finding things. Intensities are measured on the image as it came.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import InputError
from lamella.core.places import Places
from lamella.core.progress import Progress, ProgressSink, SilentSink
from lamella.core.storage import storage_error
from lamella.restoration.blind_spot import BlindSpotOptions, train_blind_spot
from lamella.restoration.decision import (
    METHOD_TITLES,
    Decision,
    RestoreOptions,
    decide,
    sigma_in_voxels,
)
from lamella.restoration.non_local_means import NonLocalMeans
from lamella.restoration.psf import GaussianPsf, PointSpread, estimate_psf, read_psf
from lamella.restoration.quality import Quality, measure_quality
from lamella.restoration.richardson_lucy import RichardsonLucy, tune_iterations
from lamella.restoration.source import ChannelSource, check_restorable, iter_channels
from lamella.restoration.tiles import Restorer, iter_restored
from lamella.restoration.variance import Stabiliser
from lamella.volume.box import Box
from lamella.volume.source import FunctionArray
from lamella.volume.volume import Volume

__all__ = ["ChannelRestoration", "Restored", "restore_volume"]

Write = Callable[[Box, NDArray[np.float32]], None]
_BLACK_PERCENT = 0.1


@dataclass(frozen=True, slots=True)
class ChannelRestoration:
    """What happened to one channel.

    Attributes:
        channel: its name; empty for an image without channels.
        decision: action, method and why.
        parameters: everything that decided the result.
        before: quality of the channel as it came.
        after: quality of the result; that of ``before`` where nothing was done.
    """

    channel: str
    decision: Decision
    parameters: dict[str, Any]
    before: Quality
    after: Quality

    @property
    def summary(self) -> str:
        """What was seen and done, in one sentence."""
        head = f"{self.channel}: " if self.channel else ""
        if self.decision.action == "none":
            return head + self.decision.why
        done = f"{self.decision.action}d" if self.decision.action == "denoise" else "deblurred"
        return (
            f"{head}{self.decision.why}; {done} by {METHOD_TITLES[self.decision.method]}:"
            f" noise {self.before.noise_sigma:.3g} -> {self.after.noise_sigma:.3g},"
            f" contrast to noise {self.before.contrast_to_noise:.3g} ->"
            f" {self.after.contrast_to_noise:.3g},"
            f" sharpness {self.before.sharpness:.3g} -> {self.after.sharpness:.3g}"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "channel": self.channel,
            **asdict(self.decision),
            "summary": self.summary,
            "parameters": _plain(self.parameters),
            "quality_before": self.before.to_dict(has_slices=False),
            "quality_after": self.after.to_dict(has_slices=False),
        }


@dataclass(frozen=True, slots=True)
class Restored:
    """A restored volume and its record.

    Attributes:
        volume: float32 on the input's grid, lazily read from the scratch file; the input itself
            where nothing was done.
        channels: what happened to each channel.
        options: what was asked for.
    """

    volume: Volume
    channels: tuple[ChannelRestoration, ...]
    options: RestoreOptions

    @property
    def is_changed(self) -> bool:
        """Whether anything was done."""
        return any(entry.decision.action != "none" for entry in self.channels)

    def to_dict(self) -> dict[str, Any]:
        """The record: what was asked for, seen and done; JSON values."""
        asked = asdict(self.options)
        sigma = self.options.psf_sigma
        asked["psf_sigma"] = None if sigma is None else str(sigma)
        asked["psf"] = None if self.options.psf is None else str(self.options.psf)
        return {
            "mode": self.options.mode,
            "method": self.options.method,
            "is_changed": self.is_changed,
            "options": asked,
            "channels": [entry.to_dict() for entry in self.channels],
        }


def restore_volume(
    volume: Volume,
    options: RestoreOptions,
    *,
    scratch: Path,
    sink: ProgressSink | None = None,
    places: Places | None = None,
) -> Restored:
    """Restore every channel of an image or a volume.

    Args:
        volume: real intensities; one time point.
        options: what to do.
        scratch: file that receives the voxels, float32 in the order of the volume's axes; it must
            outlive the result.
        sink: progress and cancellation.
        places: where engines' environments and models lie, for cellpose3.

    Raises:
        InputError: for labels, constant or tiny images, values that are not finite, and options
            that do not fit.
        MissingDependencyError: when the method's package or environment is not there.
        RunCancelledError: when the sink says so.
    """
    check_restorable(volume)
    sink = sink or SilentSink()
    channels = iter_channels(volume)
    work = [_Work.begin(name, channel, options, sink) for name, channel in channels]
    if all(item.decision.action == "none" for item in work):
        done = tuple(item.finished(item.quality, {}) for item in work)
        return Restored(volume, done, options)
    shape = (len(channels), *ChannelSource(channels[0][1]).shape)
    store = _Scratch(scratch, shape)
    done_list: list[ChannelRestoration] = []
    for number, item in enumerate(work):
        parameters = item.restore(
            lambda box, values, at=number: store.write(at, box, values), places or Places(), sink
        )
        # A single channel is judged as it lies in the scratch file.
        after = measure_quality(
            replace(item.source.volume, data=store.channel(number, item.source), levels=()),
            sink=sink,
        )
        done_list.append(item.finished(after, parameters))
    result = replace(volume, data=store.like(volume), levels=(), notes=())
    return Restored(result, tuple(done_list), options)


@dataclass(frozen=True, slots=True)
class _Work:
    """A channel between judgement and result."""

    name: str
    source: ChannelSource
    quality: Quality
    decision: Decision
    options: RestoreOptions

    @classmethod
    def begin(cls, name: str, volume: Volume, options: RestoreOptions, sink: ProgressSink) -> _Work:
        source = ChannelSource(volume)
        quality = measure_quality(volume, sink=sink)
        return cls(name, source, quality, decide(quality, source, options), options)

    def finished(self, after: Quality, parameters: dict[str, Any]) -> ChannelRestoration:
        return ChannelRestoration(self.name, self.decision, parameters, self.quality, after)

    def restore(self, write: Write, places: Places, sink: ProgressSink) -> dict[str, Any]:
        """Write the channel restored; returns what decided the result."""
        if self.decision.action == "none":
            for box, slab in _copied(self.source, sink):
                write(box, slab)
            return {}
        if self.decision.method == "cellpose3":
            from lamella.restoration.cellpose3 import restore_with_cellpose3

            return restore_with_cellpose3(
                self.source, self.quality, self.decision.action, self.options, write, places, sink
            )
        restorer = self._restorer(sink)
        for box, slab in iter_restored(self.source, restorer, sink, stage=self.decision.action):
            write(box, slab)
        return restorer.parameters

    def _restorer(self, sink: ProgressSink) -> Restorer:
        stabiliser = Stabiliser.of(self.quality.noise)
        strength = 1.0 if self.options.strength is None else self.options.strength
        if self.decision.method == "blind_spot":
            chosen = BlindSpotOptions(
                is_volumetric=self.decision.is_volumetric,
                strength=strength,
                n_steps=self.options.n_steps,
                seed=self.options.seed,
                device=self.options.device,
            )
            return train_blind_spot(self.source, stabiliser, chosen, sink)
        if self.decision.method == "non_local_means":
            return NonLocalMeans.fitting(
                stabiliser, is_volumetric=self.decision.is_volumetric, strength=strength
            )
        return self._deblurrer(strength, sink)

    def _deblurrer(self, strength: float, sink: ProgressSink) -> RichardsonLucy:
        restorer = RichardsonLucy(
            psf=self._psf(),
            black=_black_level(self.source, sink),
            scale=max(self.quality.signal, 1e-6 * abs(self.quality.bright), 1e-30),
            n_iterations=1,
            strength=strength,
        )
        found = tune_iterations(self.source, restorer, self.quality.noise, sink)
        return replace(restorer, n_iterations=found)

    def _psf(self) -> PointSpread:
        if self.options.psf is not None:
            measured = read_psf(self.options.psf)
            if measured.kernel.shape[0] > 1 and not self.decision.is_volumetric:
                raise InputError(
                    f"{self.options.psf} is a 3-D point spread function, but the image is restored"
                    " slice by slice",
                    hint="add --dimensions 3, or give a 2-D point spread function",
                )
            return measured
        if self.options.psf_sigma is not None:
            z, y, x = sigma_in_voxels(self.options.psf_sigma, self.source)
            return GaussianPsf((z if self.decision.is_volumetric else 0.0, y, x))
        found = estimate_psf(self.quality)
        z, y, x = found.sigma_zyx
        return replace(found, sigma_zyx=(z if self.decision.is_volumetric else 0.0, y, x))


def _copied(source: ChannelSource, sink: ProgressSink) -> Any:
    """The channel as it is, slab by slab."""
    depth, height, width = source.shape
    step = max(1, 2**22 // max(1, height * width))
    for z in range(0, depth, step):
        sink.check()
        box = Box((z, 0, 0), (min(depth, z + step), height, width))
        yield box, source.read(box)
        sink.emit(Progress("copy", box.stop[0], depth, "slices"))


def _black_level(source: ChannelSource, sink: ProgressSink) -> float:
    """Intensity of no light: the lowest of the 0.1 % quantiles of the slices.

    A quantile, so that one dead pixel does not decide for all.
    """
    lowest = math.inf
    for z in range(source.shape[0]):
        sink.check()
        plane = source.read(Box((z, 0, 0), (z + 1, *source.shape[1:])))
        lowest = min(lowest, float(np.percentile(plane, _BLACK_PERCENT)))
        sink.emit(Progress("black level", z + 1, source.shape[0], "slices"))
    return lowest


class _Scratch:
    """A file of float32 voxels, (c, z, y, x): written slab by slab, read lazily.

    Plain reads and writes, no memory map: mapped pages would count as memory of this process.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path, self.shape = path, shape
        try:
            with path.open("wb") as stream:
                stream.truncate(math.prod(shape) * 4)
        except OSError as error:
            raise storage_error(error, path) from error

    def write(self, channel: int, box: Box, values: NDArray[np.float32]) -> None:
        """Write full planes of a channel."""
        plane = math.prod(self.shape[2:]) * 4
        try:
            with self.path.open("r+b") as stream:
                stream.seek((channel * self.shape[1] + box.start[0]) * plane)
                stream.write(np.ascontiguousarray(values, np.float32).data.cast("B"))
        except OSError as error:
            raise storage_error(error, self.path) from error

    def read(self, slices: tuple[slice, ...]) -> NDArray[np.float32]:
        """Read a region of (c, z, y, x)."""
        channels, layers, rows, columns = slices
        _, depth, height, width = self.shape
        n_rows = rows.stop - rows.start
        found = np.empty(tuple(s.stop - s.start for s in slices), np.float32)
        with self.path.open("rb") as stream:
            for c in range(channels.start, channels.stop):
                for z in range(layers.start, layers.stop):
                    stream.seek((((c * depth + z) * height) + rows.start) * width * 4)
                    block = np.fromfile(stream, np.float32, n_rows * width)
                    found[c - channels.start, z - layers.start] = block.reshape(n_rows, width)[
                        :, columns
                    ]
        return found

    def channel(self, number: int, source: ChannelSource) -> FunctionArray:
        """One channel with the axes (z) y x."""
        has_z = "z" in source.volume.axes

        def read(slices: tuple[slice, ...]) -> NDArray[np.float32]:
            full = slices if has_z else (slice(0, 1), *slices)
            block = self.read((slice(number, number + 1), *full))[0]
            return block if has_z else block[0]

        return FunctionArray(source.volume.spatial_shape, np.float32, read)

    def like(self, volume: Volume) -> FunctionArray:
        """All of it, with the axes of the input."""
        names = tuple(volume.axes.names)

        def read(slices: tuple[slice, ...]) -> NDArray[np.float32]:
            by_name = dict(zip(names, slices, strict=True))
            first = slice(0, 1)
            full = (
                by_name.get("c", first), by_name.get("z", first), by_name["y"], by_name["x"],
            )  # fmt: skip
            return self.read(full).reshape(tuple(s.stop - s.start for s in slices))

        return FunctionArray(volume.shape, np.float32, read)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return _plain(asdict(value))
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
