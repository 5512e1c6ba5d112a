"""A request and a card become one complete set of settings; nothing is left open after this.

Examples:
    >>> nearest_multiple(100, 16)
    96
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from lamella.core.errors import AxesError, InputError, ModelError
from lamella.engines.lamella.descriptor import LAMELLA
from lamella.engines.lamella.strategy import (
    DIRECTED_DECODERS,
    INSTANCE_DECODERS,
    Strategy,
    resolve_strategy,
)
from lamella.engines.options import resolve_options
from lamella.inference.confidence import measures_of
from lamella.inference.device import choose_machine

if TYPE_CHECKING:
    from lamella.inference.plan import Blend
    from lamella.inference.runtime import Precision
    from lamella.volume.volume import Volume
    from lamella.wire.card import ModelCard
    from lamella.wire.request import SegmentRequest

__all__ = ["Settings", "check_axes", "nearest_multiple", "resolve"]

BATCH_PIXELS = 1 << 18


@dataclass(frozen=True, slots=True)
class Settings:
    """How a job is run.

    Attributes:
        tile: extent of a tile, (z, y, x); z is 1 for a 2-D network.
        overlap_fraction: share of a tile in common with its neighbour.
        blend: how overlapping tiles become one value.
        batch: tiles per pass of the network.
        mirror_axes: axes of the batch that are mirrored; empty without augmentation.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        runtime: ``openvino`` or ``torch``.
        precision: what is computed with.
        check: whether to compare OpenVINO with PyTorch: ``auto``, ``always``, ``never``.
        has_confidence: leave the chosen class's probability as ``probabilities.zarr``.
        leaves_confidence: leave every measure as ``confidence.zarr``.
        replaces_not_finite: replace NaN and infinite voxels.
        n_threads: threads on the CPU, None = the runtime's choice.
        band_bytes: memory for the band.
        compiles: use ``torch.compile``.
        is_deterministic: bit-identity on CUDA too.
        has_preview: coarse pass first.
        strategy: how instances are made from the network's maps; ``none`` where they are not.
        is_instance_model: whether the network gives maps that instances are made from.
        object_block: edge of the blocks in which objects in 3-D are found, voxels; None = decided
            by the size of the volume.
        object_halo: what such a block sees beyond its faces, voxels.
    """

    tile: tuple[int, int, int]
    overlap_fraction: float
    blend: Blend
    batch: int
    mirror_axes: tuple[int, ...]
    device: str
    runtime: str
    precision: Precision
    check: str
    has_confidence: bool
    leaves_confidence: bool
    replaces_not_finite: bool
    n_threads: int | None
    band_bytes: int
    compiles: bool
    is_deterministic: bool
    has_preview: bool
    strategy: Strategy
    is_instance_model: bool
    object_block: int | None
    object_halo: int

    @property
    def makes_instances(self) -> bool:
        """Whether instances are decoded from the network's maps."""
        return self.strategy != "none"

    @property
    def has_spread(self) -> bool:
        """Whether mirrored copies are compared with each other."""
        return self.leaves_confidence and bool(self.mirror_axes)

    @property
    def measures(self) -> tuple[str, ...]:
        """What decoders leave of how sure the network was."""
        if self.leaves_confidence:
            return measures_of(is_asked=True, has_spread=self.has_spread)
        return ("probability",) if self.has_confidence and not self.is_instance_model else ()

    def as_options(self) -> dict[str, Any]:
        """Names and values for the manifest."""
        return {
            "tile": list(self.tile),
            "overlap_fraction": self.overlap_fraction,
            "blend": self.blend,
            "batch": self.batch,
            "tta": bool(self.mirror_axes),
            "runtime": self.runtime,
            "check": self.check,
            "confidence": self.has_confidence or self.leaves_confidence,
            "measures": list(self.measures),
            "replace_not_finite": self.replaces_not_finite,
            "threads": self.n_threads,
            "band_mb": self.band_bytes >> 20,
            "compile": self.compiles,
            "deterministic": self.is_deterministic,
            "preview": self.has_preview,
            "instances": self.makes_instances,
            "strategy": self.strategy,
            "object_block": self.object_block,
            "object_halo": self.object_halo,
        }


def resolve(request: SegmentRequest, card: ModelCard) -> Settings:
    """Decide everything a request leaves open.

    Args:
        request: as the caller wrote it.
        card: of the model.

    Raises:
        InputError: for options or tiles that cannot be used.
    """
    options = resolve_options(LAMELLA.id, LAMELLA.options, request.options)
    tile = _tile(request, card)
    machine = choose_machine(request.device, str(options["runtime"]), request.precision)
    batch = options["batch"]
    if batch is None:
        per_tile = tile[1] * tile[2]
        batch = 1 if tile[0] > 1 else max(1, min(16, BATCH_PIXELS // per_tile))
    threads, object_block = options["threads"], options["object_block"]
    return Settings(
        tile=tile,
        overlap_fraction=(
            card.overlap_fraction if request.overlap_fraction is None else request.overlap_fraction
        ),
        blend=cast("Blend", options["blend"]),
        batch=int(batch),
        mirror_axes=_mirror_axes(card) if _is_mirrored(request, card) else (),
        device=machine.device,
        runtime=machine.runtime,
        precision=machine.precision,
        check=str(options["check"]),
        has_confidence=bool(options["confidence"]),
        leaves_confidence=request.confidence,
        replaces_not_finite=bool(options["replace_not_finite"]),
        n_threads=None if threads is None else int(threads),
        band_bytes=int(options["band_mb"] or 1) << 20,
        compiles=bool(options["compile"]),
        is_deterministic=request.deterministic,
        has_preview=request.preview,
        is_instance_model=card.decoder.kind in INSTANCE_DECODERS,
        strategy=resolve_strategy(request, card),
        object_block=None if object_block is None else int(object_block),
        object_halo=int(options["object_halo"] or 1),
    )


def check_axes(volume: Volume, card: ModelCard) -> None:
    """Refuse a volume that the model cannot be run on.

    Raises:
        AxesError: a 3-D model and an image, or another number of channels.
    """
    if card.axes == "zyx" and "z" not in volume.axes:
        raise AxesError(
            f"the model {card.id!r} segments volumes (z, y, x); the input is an image with the"
            f" axes {volume.axes}",
            hint="choose a 2-D model, or open the slices as one volume (a folder of slices)",
        )
    if volume.n_channels != card.n_channels:
        hint = (
            f"choose one with --channel 0 to {volume.n_channels - 1}"
            if card.n_channels == 1
            else "choose a model that was trained on these channels"
        )
        raise AxesError(
            f"the model {card.id!r} takes {card.n_channels} channel(s); the input has"
            f" {volume.n_channels}",
            hint=hint,
        )


def nearest_multiple(size: int, divisor: int) -> int:
    """The multiple of ``divisor`` nearest to ``size``, at least one."""
    return max(1, round(size / divisor)) * divisor


def _tile(request: SegmentRequest, card: ModelCard) -> tuple[int, int, int]:
    n = len(card.axes)
    given = card.tile if request.tile is None else request.tile
    if n == 2 and len(given) == 3 and given[0] == 1:
        given = given[1:]
    if len(given) != n:
        raise InputError(
            f"tile {tuple(given)} does not fit the model's axes {card.axes!r}",
            hint=f"give {n} numbers, for example --tile {','.join(map(str, card.tile))}",
        )
    divisor = card.divisor or (1,) * n
    if any(size < 1 or size % d for size, d in zip(given, divisor, strict=True)):
        nearest = [nearest_multiple(size, d) for size, d in zip(given, divisor, strict=True)]
        raise InputError(
            f"every extent of the tile {tuple(given)} must be a multiple of {tuple(divisor)}",
            hint=f"the nearest that is: --tile {','.join(map(str, nearest))}",
        )
    z, y, x = (1,) * (3 - n) + tuple(given)
    return z, y, x


def _is_mirrored(request: SegmentRequest, card: ModelCard) -> bool:
    return card.tta if request.tta is None else request.tta


def _mirror_axes(card: ModelCard) -> tuple[int, ...]:
    if card.decoder.kind in DIRECTED_DECODERS:
        raise InputError(
            f"the model {card.id!r} gives {card.decoder.kind}, which a mirror turns around: they"
            " cannot be averaged over mirrored copies",
            hint="leave out --tta",
        )
    allowed = card.mirror_axes or tuple(card.axes)
    unknown = [name for name in allowed if name not in card.axes]
    if unknown:
        raise ModelError(f"the card of {card.id!r} mirrors axes it does not have: {unknown}")
    return tuple(2 + card.axes.index(name) for name in card.axes if name in allowed)
