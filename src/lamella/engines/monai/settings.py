"""A request and a bundle become one complete set of settings; nothing is left open after this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lamella.core.errors import InputError
from lamella.engines.monai.descriptor import MONAI
from lamella.engines.options import resolve_options
from lamella.inference.confidence import measures_of
from lamella.inference.device import choose_machine

if TYPE_CHECKING:
    from lamella.engines.monai.grid import Layout
    from lamella.engines.monai.output import Inferer
    from lamella.inference.runtime import Precision
    from lamella.wire.request import SegmentRequest

__all__ = ["Settings", "resolve"]

BATCH_PIXELS = 1 << 18


@dataclass(frozen=True, slots=True)
class Settings:
    """How a job is run.

    Attributes:
        tile: extent of a tile in the input's order, (z, y, x); z is 1 for a 2-D network.
        divisor: what every extent of a tile must be a multiple of, (z, y, x).
        overlap_fraction: share of a tile in common with its neighbour.
        is_gaussian: weights fall off from the centre of a tile; equal otherwise.
        sigma: of the Gaussian, as a share of the tile.
        batch: tiles per pass of the network.
        mirror_axes: axes of the batch that are mirrored; empty without augmentation.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        runtime: ``openvino`` or ``torch``.
        precision: what is computed with.
        check: whether OpenVINO is compared with PyTorch: ``auto`` or ``never``.
        replaces_not_finite: replace NaN and infinite voxels.
        n_threads: threads on the CPU, None = the runtime's choice.
        band_bytes: memory for the band.
        is_deterministic: bit-identity on CUDA too.
        has_preview: coarse pass first.
        leaves_confidence: leave maps of confidence.
    """

    tile: tuple[int, int, int]
    divisor: tuple[int, int, int]
    overlap_fraction: float
    is_gaussian: bool
    sigma: float
    batch: int
    mirror_axes: tuple[int, ...]
    device: str
    runtime: str
    precision: Precision
    check: str
    replaces_not_finite: bool
    n_threads: int | None
    band_bytes: int
    is_deterministic: bool
    has_preview: bool
    leaves_confidence: bool

    @property
    def has_spread(self) -> bool:
        """Whether mirrored copies are compared with each other."""
        return self.leaves_confidence and bool(self.mirror_axes)

    @property
    def measures(self) -> tuple[str, ...]:
        """Maps of confidence."""
        return measures_of(is_asked=self.leaves_confidence, has_spread=self.has_spread)

    def as_options(self) -> dict[str, Any]:
        """Names and values for the manifest."""
        return {
            "tile": list(self.tile),
            "overlap_fraction": self.overlap_fraction,
            "blend": "gaussian" if self.is_gaussian else "constant",
            "sigma": self.sigma if self.is_gaussian else None,
            "batch": self.batch,
            "tta": bool(self.mirror_axes),
            "runtime": self.runtime,
            "check": self.check,
            "replace_not_finite": self.replaces_not_finite,
            "threads": self.n_threads,
            "band_mb": self.band_bytes >> 20,
            "deterministic": self.is_deterministic,
            "preview": self.has_preview,
            "measures": list(self.measures),
        }


def resolve(
    request: SegmentRequest, layout: Layout, inferer: Inferer, divisor: tuple[int, ...]
) -> Settings:
    """Decide everything a request leaves open.

    Args:
        request: as the caller wrote it.
        layout: the network's grid and the order of its axes.
        inferer: as the bundle moves its network.
        divisor: of the image, in the network's order; shorter = 1.

    Raises:
        InputError: for options or tiles that cannot be used.
    """
    options = resolve_options(MONAI.id, MONAI.options, request.options)
    n_axes = len(layout.order)
    wanted = (*divisor, *(1,) * n_axes)[:n_axes]
    units = layout.in_order(wanted)
    tile = _tile(request, layout, inferer, units)
    machine = choose_machine(
        request.device, str(options["runtime"]), request.precision, may_lack_openvino=True
    )
    batch, threads = options["batch"], options["threads"]
    if batch is None:
        batch = 1 if n_axes == 3 else max(1, min(16, BATCH_PIXELS // (tile[1] * tile[2])))
    given = request.overlap_fraction
    return Settings(
        tile=tile,
        divisor=units,
        overlap_fraction=inferer.overlap if given is None else given,
        is_gaussian=inferer.is_gaussian,
        sigma=inferer.sigma,
        batch=int(batch),
        mirror_axes=tuple(range(2, 2 + n_axes)) if request.tta else (),
        device=machine.device,
        runtime=machine.runtime,
        precision=machine.precision,
        check=str(options["check"]),
        replaces_not_finite=bool(options["replace_not_finite"]),
        n_threads=None if threads is None else int(threads),
        band_bytes=int(options["band_mb"] or 1) << 20,
        is_deterministic=request.deterministic,
        has_preview=request.preview,
        leaves_confidence=request.confidence,
    )


def _tile(
    request: SegmentRequest, layout: Layout, inferer: Inferer, units: tuple[int, int, int]
) -> tuple[int, int, int]:
    n_axes = len(layout.order)
    if request.tile is None:
        roi = layout.in_order(inferer.roi)
        whole = tuple(-(-n // unit) * unit for n, unit in zip(layout.shape, units, strict=True))
        z, y, x = (size or all_of_it for size, all_of_it in zip(roi, whole, strict=True))
        return z, y, x
    given = request.tile
    if n_axes == 2 and len(given) == 3 and given[0] == 1:
        given = given[1:]
    if len(given) != n_axes:
        raise InputError(
            f"tile {tuple(request.tile)} does not fit the bundle's {n_axes} axes",
            hint=f"give {n_axes} numbers, such as --tile {','.join(['96'] * n_axes)}",
        )
    z, y, x = (1,) * (3 - n_axes) + tuple(given)
    if any(size < 1 or size % unit for size, unit in zip((z, y, x), units, strict=True)):
        nearest = [
            max(1, round(size / unit)) * unit for size, unit in zip((z, y, x), units, strict=True)
        ][3 - n_axes :]
        raise InputError(
            f"every extent of the tile {tuple(given)} must be a multiple of"
            f" {units[3 - n_axes :]}, as the bundle's metadata says",
            hint=f"the nearest that is: --tile {','.join(map(str, nearest))}",
        )
    return z, y, x
