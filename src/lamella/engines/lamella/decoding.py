"""Objects of a 3-D network, found block by block where the volume is too large to decode whole.

Whether it is depends on the volume and on the request alone, never on the machine or on who runs
it: the same request gives the same objects everywhere. What a block gave lies below the run folder
until all are there, so finding goes on after a stop, and any number of processes can share it::

    objects.blocks/identity    what the objects depend on
    objects.blocks/7/          labels of block 7 and its halo, zarr, uint32
"""

from __future__ import annotations

import shutil
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.engines.lamella.blocks import LamellaBlocks, identity_of
from lamella.engines.lamella.object_grid import object_grid
from lamella.engines.lamella.objects import decoder_options
from lamella.engines.lamella.target import PROBABILITIES_NAME
from lamella.inference.instance_maps import decode_maps
from lamella.inference.journal import digest
from lamella.instances.stitch import BlockGrid, Stitched, stitch_blocks
from lamella.io.format import storage_errors
from lamella.io.label_store import sync_tree
from lamella.volume.box import Box
from lamella.wire.card import DecoderDoc
from lamella.wire.event import ProgressEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from lamella.engines.engine import EngineJob, EngineResult
    from lamella.engines.lamella.settings import Settings
    from lamella.engines.lamella.target import Target
    from lamella.inference.layers import LabelLayers
    from lamella.wire.event import EventSink

__all__ = [
    "FOLDER_NAME",
    "ObjectBlocks",
    "open_objects",
    "plan_objects",
    "scale_of",
]

FOLDER_NAME = "objects.blocks"
_CHUNK = 64


def scale_of(target: Target) -> tuple[float, ...]:
    """Voxels of the labels per voxel of the network, (z, y, x)."""
    return tuple(a / b for a, b in zip(target.grid.shape, target.plan.shape, strict=True))


def open_objects(
    job: EngineJob, decoder: DecoderDoc, settings: Settings, target: Target
) -> ObjectBlocks | None:
    """Where a job's objects are found block by block; None where they are found at once."""
    if settings.strategy != "volumetric":
        return None
    shape = job.volume.spatial_shape
    grid = object_grid(shape, settings.as_options(), target.layers.unit)
    if grid is None:
        return None
    spacing = tuple(job.volume.spacing.values)
    identity = identity_of(target)
    return ObjectBlocks(job.run_dir, grid, identity, decoder, spacing, scale_of(target))


def plan_objects(objects: ObjectBlocks, finish: Callable[[], EngineResult]) -> LamellaBlocks:
    """The blocks in which objects are found, once the network has run everywhere."""
    objects.open()
    boxes = objects.grid.boxes
    return LamellaBlocks(
        document={"identity": objects.identity, "objects": objects.to_document()},
        boxes=boxes,
        counts=(1,) * len(boxes),
        labels=None,
        finish=finish,
        stage="instances",
    )


@dataclass(frozen=True, slots=True)
class ObjectBlocks:
    """What blocks gave, below a run folder.

    Attributes:
        run_dir: the run folder, with the network's maps.
        grid: the blocks.
        identity: the same only where all maps would be.
        decoder: kind and parameters from the card.
        spacing: of the maps, (z, y, x).
        scale: voxels of the maps per voxel of the network, (z, y, x), for flows.
    """

    run_dir: Path
    grid: BlockGrid
    identity: str
    decoder: DecoderDoc
    spacing: tuple[float, ...]
    scale: tuple[float, ...]

    def to_document(self) -> dict[str, Any]:
        """What another process needs to know, as JSON."""
        return {
            "identity": self.identity,
            "shape": list(self.grid.shape),
            "block": list(self.grid.extent),
            "halo": self.grid.halo,
            "decoder": self.decoder.model_dump(mode="json"),
            "spacing": list(self.spacing),
            "scale": list(self.scale),
        }

    @classmethod
    def from_document(cls, run_dir: Path, document: Mapping[str, Any]) -> ObjectBlocks:
        """The same in another process."""
        z, y, x = document["shape"]
        dz, dy, dx = document["block"]
        return cls(
            run_dir=run_dir,
            grid=BlockGrid((z, y, x), (dz, dy, dx), document["halo"]),
            identity=document["identity"],
            decoder=DecoderDoc.model_validate(document["decoder"]),
            spacing=tuple(document["spacing"]),
            scale=tuple(document["scale"]),
        )

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self.run_dir / FOLDER_NAME

    def open(self) -> None:
        """Keep what an equal job left, remove all else."""
        known = self.folder / "identity"
        identity = digest(sorted(self.to_document().items()))
        with storage_errors(self.folder):
            if known.exists() and known.read_text() == identity:
                return
            self.remove()
            self.folder.mkdir(parents=True)
            known.write_text(identity)

    def remove(self) -> None:
        """Remove everything."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def missing(self) -> list[int]:
        """Numbers of the blocks that are not there."""
        return [n for n in range(len(self.grid.boxes)) if not (self.folder / str(n)).exists()]

    def number_of(self, box: Box) -> int:
        """Number of the block that writes a box."""
        return self.grid.boxes.index(box)

    def find(self, number: int) -> None:
        """Find the objects of a block; once it returns, they survive a crash."""
        import zarr

        place = self.folder / str(number)
        if place.exists():
            return
        box = self.grid.read_box(self.grid.boxes[number])
        maps: Any = zarr.open_array(str(self.run_dir / PROBABILITIES_NAME), mode="r")
        seen = np.asarray(maps[(slice(None), *box.slices())])
        options = decoder_options(self.decoder)
        found = decode_maps(seen, self.decoder.kind, self.spacing, options, self.scale)
        # Two workers may find the same, where one was taken for dead.
        partial = self.folder / f"{number}.{uuid.uuid4().hex}.partial"
        with storage_errors(partial):
            array = zarr.create_array(
                str(partial),
                shape=found.shape,
                chunks=tuple(min(_CHUNK, n) for n in found.shape),
                dtype=found.dtype,
                fill_value=0,
            )
            array[...] = found
            sync_tree(partial)
            try:
                partial.rename(place)
            except OSError:
                if not place.exists():
                    raise
                shutil.rmtree(partial)

    def find_missing(self, sink: EventSink) -> None:
        """Find the objects of all blocks that are not there yet."""
        total = len(self.grid.boxes)
        missing = self.missing()
        for done, number in enumerate(missing, start=total - len(missing)):
            sink.check()
            sink.emit(ProgressEvent(stage="instances", done=done, total=total, unit="blocks"))
            self.find(number)
        sink.emit(ProgressEvent(stage="instances", done=total, total=total, unit="blocks"))

    def stitch(self, sink: EventSink) -> Stitched:
        """Merge across faces; all blocks must be there."""
        return stitch_blocks(self.grid, self._read, sink=sink)

    def write(self, stitched: Stitched, store: LabelLayers, sink: EventSink) -> None:
        """Write the labels of the whole volume, block by block."""
        boxes = self.grid.boxes
        for number, box in enumerate(boxes):
            sink.check()
            store.write(box, stitched.tables[number][self._read(number, box)])
            done = ProgressEvent(stage="stitched", done=number + 1, total=len(boxes), unit="blocks")
            sink.emit(done)

    def _read(self, number: int, box: Box) -> NDArray[Any]:
        import zarr

        start = self.grid.read_box(self.grid.boxes[number]).start
        with storage_errors(self.folder):
            array: Any = zarr.open_array(str(self.folder / str(number)), mode="r")
            inside = zip(box.start, box.stop, start, strict=True)
            return np.asarray(array[tuple(slice(a - s, b - s) for a, b, s in inside)])
