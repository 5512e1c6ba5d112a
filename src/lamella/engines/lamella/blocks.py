"""A run of the engine cut into blocks: planned here, run anywhere, finished here.

Blocks are cut along the files of the labels. Each runs the tiles of the *whole* volume's plan that
reach it, with the statistics of the whole volume, so that no seam shows and the labels are those of
a run in one piece, bit for bit. Tiles at a seam are run by both neighbours: that is the halo.

::

    z   0        64       128      192      256
        |== block 0 ======|== block 1 ======|
        |--tile--|
            |--tile--|
                |--tile--|                        run for block 0 and for block 1
                    |--tile--|
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lamella.core.errors import EngineError
from lamella.engines.lamella.opening import Opened
from lamella.inference.journal import digest
from lamella.volume.box import Box

if TYPE_CHECKING:
    from lamella.engines.engine import BlockCut, EngineResult
    from lamella.engines.lamella.target import Target

__all__ = [
    "LamellaBlocks",
    "check_same",
    "cut_blocks",
    "identity_of",
    "opened_once",
    "runtime_text",
]


@dataclass(frozen=True, slots=True)
class LamellaBlocks:
    """A planned run; see :class:`lamella.engines.engine.BlockRun`."""

    document: Mapping[str, Any]
    boxes: tuple[Box, ...]
    counts: tuple[int, ...]
    labels: str | None
    finish: Callable[[], EngineResult]
    stage: str = "tiles"
    then: Callable[[], LamellaBlocks] | None = None


def cut_blocks(target: Target, cut: BlockCut, tile: tuple[int, int, int]) -> tuple[Box, ...]:
    """Blocks along the files of the labels, z slowest, within the columns of the plan.

    Args:
        target: where the labels go; its columns fit into memory.
        cut: what is wanted; rounded to whole files.
        tile: of the network; blocks are no thinner, where the volume is not.
    """
    unit = target.layers.unit
    extent = cut.extent or _usual_extent(target, cut.n_blocks, tile)
    depth, height, width = (
        max(1, round(wanted / one)) * one for wanted, one in zip(extent, unit, strict=True)
    )
    depth = max(depth, -(-tile[0] // unit[0]) * unit[0])
    n_layers = target.grid.shape[0]
    return tuple(
        Box((z, y, x), (min(z + depth, n_layers), min(y + height, bottom), min(x + width, right)))
        for z in range(0, n_layers, depth)
        for column in target.plan.columns
        for (top, left), (bottom, right) in [(column.output.start, column.output.stop)]
        for y in range(top, bottom, height)
        for x in range(left, right, width)
    )


def _usual_extent(
    target: Target, n_blocks: int, tile: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Slabs along z while they are two tiles deep (a seam costs a row of tiles), then y, x."""
    extent: list[int] = []
    for n, size, unit in zip(target.grid.shape, tile, target.layers.unit, strict=True):
        # A network that sees single layers loses nothing at a seam between them.
        least = unit if size == 1 else max(2 * size, unit)
        n_parts = max(1, min(n_blocks, n // least))
        extent.append(math.ceil(math.ceil(n / n_parts) / unit) * unit)
        n_blocks = math.ceil(n_blocks / n_parts)
    return extent[0], extent[1], extent[2]


def identity_of(target: Target) -> str:
    """The same only where all labels would be: a digest of what they depend on."""
    return digest(sorted(target.fingerprint.items()))


def check_same(document: Mapping[str, Any], opened: Opened) -> None:
    """Refuse to run a block with another network library than the rest of the volume.

    Raises:
        EngineError: when the labels might differ.
    """
    here, there = runtime_text(opened), document["runtime"]
    if here != there:
        raise EngineError(
            f"this worker would run the network with {here}, the others with {there}",
            hint="install the same versions on all workers, or name --runtime and --device",
        )


def runtime_text(opened: Opened) -> str:
    """What decides the bits of a network's output, beside the network."""
    runtime = opened.runtime
    device = runtime.device.partition(":")[0]
    return f"{runtime.name} {opened.version} {device} {runtime.precision}"


# A worker runs block after block of one run: its network stays open until another run comes.
_KEPT: dict[str, Opened] = {}


def opened_once(identity: str, open_: Callable[[], Opened]) -> Opened:
    """The network of a run, opened for the first block that this process runs."""
    if identity not in _KEPT:
        _KEPT.clear()
        _KEPT[identity] = open_()
    return _KEPT[identity]
