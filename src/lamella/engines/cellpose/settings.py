"""What a Cellpose run does, decided from the request and the input before anything starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lamella.core.errors import AxesError, GeometryError, InputError
from lamella.core.memory import available_bytes
from lamella.engines.options import resolve_options
from lamella.volume.spacing import convert_length

if TYPE_CHECKING:
    from lamella.engines.engine import EngineDescriptor
    from lamella.volume.volume import Volume
    from lamella.wire.request import SegmentRequest

__all__ = ["Settings", "resolve"]

_MAX_CHANNELS = {"cellpose3": 2, "cellpose4": 3}
_TILE = {"cellpose3": 224, "cellpose4": 256}
# Below these a volume is seen as slices: too thin, or too coarse along z, for planes across z.
_MIN_SLICES = 8
_MAX_ANISOTROPY = 5.0
# Flows and probability of the sum, their smoothed copy, points and histograms of the dynamics.
_ORTHO_BYTES_PER_VOXEL = 110
_MEMORY_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Settings:
    """A run, resolved.

    Attributes:
        engine: ``"cellpose3"`` or ``"cellpose4"``.
        options: the engine's own options with the value used; ``diameter`` in pixels or None.
        strategy: ``"slices"``, ``"hybrid"`` (slices that the workflow links) or ``"ortho"``.
        reason: why that strategy, in one sentence.
        channels: indices of the input's channels that the network sees, in order.
        tile: edge of the network's tiles in pixels.
        overlap_fraction: share of a tile that its neighbour overlaps.
        has_mirrors: average over mirrored tiles.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        precision: ``"auto"``, ``"fp32"`` or ``"bf16"``.
        has_confidence: leave maps of probability and flow error.
        seed: for what is random, which on one device is nothing.
    """

    engine: str
    options: dict[str, Any]
    strategy: str
    reason: str
    channels: tuple[int, ...]
    tile: int
    overlap_fraction: float
    has_mirrors: bool
    device: str
    precision: str
    has_confidence: bool
    seed: int

    @property
    def normalises_volume(self) -> bool:
        """Whether percentiles are those of the whole volume."""
        return self.options["normalise"] == "volume"

    def as_options(self) -> dict[str, object]:
        """Everything decided, for the manifest."""
        return {
            **self.options,
            "channels": ",".join(map(str, self.channels)),
            "instances": self.strategy,
            "instances_reason": self.reason,
            "tile": self.tile,
            "overlap_fraction": self.overlap_fraction,
            "tta": self.has_mirrors,
        }


def resolve(descriptor: EngineDescriptor, volume: Volume, request: SegmentRequest) -> Settings:
    """Decide what is run.

    Args:
        descriptor: of the engine.
        volume: the input.
        request: as the caller wrote it.

    Raises:
        InputError: options that do not fit together, or an ortho run larger than memory.
        AxesError: channels that are not said, or not there.
        GeometryError: a diameter as a length where nobody knows the spacing.
    """
    options: dict[str, Any] = dict(
        resolve_options(descriptor.id, descriptor.options, request.options)
    )
    if options["percentile_low"] >= options["percentile_high"]:
        raise InputError(
            f"percentile_low {options['percentile_low']:g} is not below percentile_high"
            f" {options['percentile_high']:g}",
            hint="leave both out for 1 and 99",
        )
    if request.precision not in _precisions(descriptor.id):
        raise InputError(
            f"{descriptor.title} does not run in {request.precision}",
            hint=f"use --precision {' or '.join(_precisions(descriptor.id))}",
        )
    channels = _channels(descriptor.id, volume, options["channels"])
    options["diameter"] = _diameter_pixels(volume, options)
    options["diameter_unit"] = "pixel"
    options["anisotropy"] = _anisotropy(volume, options["anisotropy"])
    strategy, reason = _strategy(volume, request, options)
    if options["normalise"] == "auto":
        options["normalise"] = "volume" if _n_slices(volume) > 1 else "slice"
    return Settings(
        engine=descriptor.id,
        options=options,
        strategy=strategy,
        reason=reason,
        channels=channels,
        tile=_tile(descriptor.id, request),
        overlap_fraction=0.1 if request.overlap_fraction is None else request.overlap_fraction,
        has_mirrors=bool(request.tta),
        device=request.device,
        precision=request.precision,
        has_confidence=request.confidence,
        seed=request.seed,
    )


def _precisions(engine: str) -> tuple[str, ...]:
    return ("auto", "fp32") if engine == "cellpose3" else ("auto", "fp32", "bf16")


def _n_slices(volume: Volume) -> int:
    return volume.spatial_shape[0] if "z" in volume.axes else 1


def _channels(engine: str, volume: Volume, text: str | None) -> tuple[int, ...]:
    if "t" in volume.axes:
        raise AxesError("the input has a time axis", hint="choose a time point with --time N")
    n_channels = volume.n_channels
    if text is None:
        if n_channels == 1:
            return (0,)
        raise AxesError(
            f"the input has {n_channels} channels, and nobody said which one to segment",
            hint="--option channels=1 (index from 0), channels=1,0 to add a channel of nuclei, or"
            f" --channel 0 to {n_channels - 1}",
        )
    try:
        chosen = tuple(int(part) for part in str(text).split(","))
    except ValueError:
        chosen = ()
    most = _MAX_CHANNELS[engine]
    if not 1 <= len(chosen) <= most or any(not 0 <= one < n_channels for one in chosen):
        raise InputError(
            f"option channels is {text!r}; expected 1 to {most} indices from 0 to"
            f" {n_channels - 1}, separated by commas",
            hint="channels=0 is the first channel; the one to segment comes first",
        )
    return chosen


def _diameter_pixels(volume: Volume, options: dict[str, Any]) -> float | None:
    diameter, unit = options["diameter"], options["diameter_unit"]
    if diameter is None or unit == "pixel":
        return diameter
    spacing = volume.spacing
    if not spacing.is_calibrated:
        raise GeometryError(
            f"diameter is {diameter:g} {unit}, but the input does not say how large its pixels are",
            hint="give --spacing z,y,x --unit um, or the diameter in pixels",
        )
    in_plane = math.sqrt(spacing.values[-1] * spacing.values[-2])
    pixels = convert_length(diameter, unit, spacing.unit) / in_plane
    if not 1 <= pixels <= 10000:
        raise InputError(
            f"a diameter of {diameter:g} {unit} is {pixels:.3g} pixels of this input",
            hint="check the spacing with `lamella info`, and the unit of the diameter",
        )
    return pixels


def _anisotropy(volume: Volume, given: float | None) -> float:
    if given is not None:
        return float(given)
    if _n_slices(volume) == 1 or not volume.spacing.is_calibrated:
        return 1.0
    z, y, x = volume.spacing.values
    return z / math.sqrt(y * x)


def _tile(engine: str, request: SegmentRequest) -> int:
    own = _TILE[engine]
    if request.tile is None:
        return own
    edge = max(request.tile[-2:])
    if engine == "cellpose4" and edge != own:
        raise InputError(
            f"Cellpose-SAM works on tiles of {own} x {own} pixels, {edge} were asked for",
            hint="leave out --tile; --option batch=1 needs less memory",
        )
    if not 32 <= edge <= 4096:
        raise InputError(f"tiles of {edge} pixels; expected 32 to 4096", hint="leave out --tile")
    return edge


def _strategy(volume: Volume, request: SegmentRequest, options: dict[str, Any]) -> tuple[str, str]:
    n_slices = _n_slices(volume)
    if n_slices == 1:
        return "slices", "the input is a single image"
    needed = _ortho_bytes(volume, options["anisotropy"])
    there = available_bytes()
    is_too_large = there is not None and needed > _MEMORY_SHARE * there
    if request.instances == "ortho" and is_too_large:
        raise InputError(
            f"ortho flows of {' x '.join(map(str, volume.spatial_shape))} voxels need about"
            f" {needed / 2**30:.1f} GiB of memory; {(there or 0) / 2**30:.1f} are free",
            hint="use --instances hybrid, which holds one slice at a time, or a crop",
        )
    if request.instances in ("slices", "hybrid", "ortho"):
        return request.instances, "asked for"
    if n_slices < _MIN_SLICES:
        return "hybrid", f"{n_slices} slices are too few for planes across z"
    if not 1 / _MAX_ANISOTROPY <= options["anisotropy"] <= _MAX_ANISOTROPY:
        return "hybrid", f"slices are {options['anisotropy']:.3g} times as far apart as pixels"
    if is_too_large:
        return "hybrid", "flows of the whole volume would not fit into memory"
    return "ortho", "flows of all three planes tell objects apart in 3-D"


def _ortho_bytes(volume: Volume, anisotropy: float) -> float:
    return _ORTHO_BYTES_PER_VOXEL * math.prod(volume.spatial_shape) * max(1.0, anisotropy)
