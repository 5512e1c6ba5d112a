"""A trained model on crops: raw data around each, block by block, on to the crop's own voxels.

Crops are the annotated ones of a root, or those of a manifest (the challenge's test crops, of
which there are no labels). Each class of a crop is an array of its own
(:mod:`lamella.training.cellmap.written`), as ``lamella cellmap score`` and ``pack`` read it: 0 and
1 for semantic classes, ids for classes of objects. One that is finished is not predicted again.
"""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import DeviceMemoryError
from lamella.core.progress import Progress, SilentSink
from lamella.inference.normalise import Normaliser
from lamella.inference.runtime import release_device_memory
from lamella.inference.statistics import Statistics, measure
from lamella.io.format import storage_errors
from lamella.training.cellmap.classes import ClassTable
from lamella.training.cellmap.crops import (
    OBJECT_DECODERS,
    CropWish,
    find_wishes,
    predicted_classes,
)
from lamella.training.cellmap.machine import NetworkOptions, OpenedNetwork
from lamella.training.cellmap.objects import ObjectOptions, decode_objects, split_objects
from lamella.training.cellmap.passes import (
    CropPass,
    Planes,
    RawSlabs,
    TileProgress,
    class_planes,
    map_planes,
    plan_pass,
)
from lamella.training.cellmap.tree import Tree
from lamella.training.cellmap.written import PredictionFolder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lamella.core.progress import ProgressSink
    from lamella.models.folder import ModelFolder
    from lamella.training.cellmap.manifest import WantedLabel

__all__ = ["CellmapPrediction", "PredictOptions", "PredictedLabel", "predict_cellmap"]

_COMPRESSION = 8
"""Voxels of a class that take a byte on disk, or less."""


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """How crops are predicted.

    Attributes:
        network: tile, device, precision.
        objects: how single objects are made.
        crops: patterns of crops; empty: all.
        classes: only these of the model's; empty: all.
        overwrite: replace what was predicted otherwise.
    """

    network: NetworkOptions = field(default_factory=NetworkOptions)
    objects: ObjectOptions = field(default_factory=ObjectOptions)
    crops: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class PredictedLabel:
    """A class of a crop that is written.

    Attributes:
        label: which, on which voxels.
        path: of the array.
        was_there: whether an earlier prediction had finished it.
        n_objects: how many, of classes of objects that were made now; None for others.
    """

    label: WantedLabel
    path: Path
    was_there: bool
    n_objects: int | None = None


@dataclass(frozen=True, slots=True)
class CellmapPrediction:
    """What a prediction left.

    Attributes:
        path: the folder.
        labels: every class of every crop.
        warnings: what a person should hear.
        device: that the network ran on; empty where nothing was left to do.
        wall_s: seconds taken.
    """

    path: Path
    labels: tuple[PredictedLabel, ...]
    warnings: tuple[str, ...]
    device: str
    wall_s: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "path": str(self.path),
            "device": self.device,
            "wall_s": round(self.wall_s, 3),
            "labels": [
                {
                    "data_set": one.label.data_set,
                    "crop": one.label.crop,
                    "class": one.label.name,
                    "path": str(one.path),
                    "was_there": one.was_there,
                    "n_objects": one.n_objects,
                }
                for one in self.labels
            ],
            "warnings": list(self.warnings),
        }


def predict_cellmap(
    model: ModelFolder,
    root: str,
    out: Path,
    *,
    wanted: Sequence[WantedLabel] | None = None,
    options: PredictOptions | None = None,
    sink: ProgressSink | None = None,
) -> CellmapPrediction:
    """Predict crops.

    Args:
        model: whose classes are classes of the challenge.
        root: folder or address with the raw data.
        out: folder for the predictions; what is finished there is kept.
        wanted: classes of crops and their voxels, from a manifest; None = the annotated crops of
            the root, on the voxels of their finest labels.
        options: how.
        sink: progress and cancellation.

    Raises:
        InputError: nothing to predict, raw data that were not fetched, a crop beside them.
        OutputExistsError: a class was predicted with another model or options.
        RunCancelledError: the sink asked to stop; finished classes stay.
        StorageError: the disk is full.
    """
    began = time.monotonic()
    job = _Job(model, root, out, options or PredictOptions(), sink or SilentSink())
    labels = job.run(wanted)
    return CellmapPrediction(
        out, tuple(labels), tuple(job.warnings), job.device, time.monotonic() - began
    )


class _Job:
    """A prediction from beginning to end."""

    def __init__(
        self, model: ModelFolder, root: str, out: Path, options: PredictOptions, sink: ProgressSink
    ) -> None:
        self.warnings: list[str] = []
        self._model = model
        self._card = model.card
        self._root = root
        self._options = options
        self._sink = sink
        self._names = predicted_classes(model.card, options.classes)
        self._tree = Tree.open(root)
        self._folder = PredictionFolder(out, overwrite=options.overwrite)
        self._network = OpenedNetwork(model, options.network)
        self._asked = self._network.settings  # a device with little memory may get smaller tiles

    @property
    def device(self) -> str:
        return self._network.device

    @property
    def _makes_objects(self) -> bool:
        """Whether the network itself gives maps of single objects."""
        return self._card.decoder.kind in OBJECT_DECODERS

    def run(self, wanted: Sequence[WantedLabel] | None) -> list[PredictedLabel]:
        sink = self._sink
        sink.emit(Progress("looking at crops", 0, 1))
        wishes = find_wishes(
            self._tree,
            self._card,
            names=self._names,
            crops=self._options.crops,
            wanted=wanted,
            network=self._network.settings,
            warnings=self.warnings,
        )
        sink.emit(Progress("looking at crops", 1, 1))
        done: list[PredictedLabel] = []
        todo: list[CropWish] = []
        for wish in wishes:
            left = []
            for label in wish.labels:
                if self._folder.is_there(label, self._made_with(wish, label)):
                    done.append(PredictedLabel(label, self._folder.place(label), True))
                else:
                    left.append(label)
            if left:
                todo.append(wish.only(left))
        self._folder.check_room(sum(_bytes_of(wish) for wish in todo))
        passes = [self._plan(wish) for wish in todo]
        progress = TileProgress(sink, sum(one.plan.n_tiles for one in passes))
        for wish in todo:
            sink.check()
            done += self._predict(wish, progress)
        order = {(w.label_key(label)): i for i, (w, label) in enumerate(_flat(wishes))}
        return sorted(done, key=lambda one: order[CropWish.label_key(one.label)])

    def _made_with(self, wish: CropWish, label: WantedLabel) -> dict[str, Any]:
        """Everything a prediction depends on, and that another one may differ in."""
        objects = self._options.objects
        made: dict[str, Any] = {
            "model": self._model.sha256,
            "raw": wish.view.raw.path,
            "network_nm": list(wish.view.grid.spacing),
            "tile": list(self._asked.tile),
            "overlap_fraction": self._asked.overlap_fraction,
            "voxels": [list(label.grid.shape), list(label.grid.spacing), list(label.grid.origin)],
        }
        if self._is_of_objects(label.name):
            made |= {
                "instances": self._method(label.name),
                "min_size": str(objects.min_size),
                "seed_distance_nm": objects.seed_distance_nm,
            }
        return made

    def _is_of_objects(self, name: str) -> bool:
        return self._method(name) != "none"

    def _method(self, name: str) -> str:
        """How objects of a class are made: ``none`` where it stays a mask."""
        asked = self._options.objects.method
        if self._makes_objects:
            return "decoder" if asked == "auto" else asked
        table = ClassTable.read()
        if name not in table or not table[name].is_instance:
            return "none"
        return "components" if asked == "auto" else asked

    # -- one crop

    def _plan(self, wish: CropWish) -> CropPass:
        settings = self._network.settings
        return plan_pass(
            wish.view,
            wish.map_grid if self._is_decoded else wish.grid,
            tile=settings.tile,
            overlap_fraction=settings.overlap_fraction,
            n_values=self._card.n_outputs + self._card.n_channels,
        )

    @property
    def _is_decoded(self) -> bool:
        """Whether maps are kept on the network's voxels, to be decoded there."""
        return self._makes_objects and self._options.objects.method == "auto"

    def _predict(self, wish: CropWish, progress: TileProgress) -> list[PredictedLabel]:
        try:
            return self._predict_with(wish, progress)
        except DeviceMemoryError as error:
            if not self._network.shrink():
                raise
            reason = error.message
        # Outside of the handler: what it holds on to would fill the device's memory still.
        release_device_memory()
        tile = " x ".join(map(str, self._network.settings.tile))
        self.warnings.append(f"tiles of {tile} are used: {reason}")
        return self._predict_with(wish, progress)

    def _predict_with(self, wish: CropWish, progress: TileProgress) -> list[PredictedLabel]:
        if self._is_decoded:
            return [self._decoded(wish, progress)]
        folder = self._folder
        scratch = {
            label.name: folder.scratch(label, "mask")
            for label in wish.labels
            if self._is_of_objects(label.name)
        }
        try:
            arrays = {
                label.name: folder.create_mask(label, scratch[label.name])
                if label.name in scratch
                else folder.create(label, np.dtype(np.uint8))
                for label in wish.labels
            }
            if self._makes_objects:
                self._run(
                    wish, map_planes(self._card, list(arrays.values()), is_mask=True), progress
                )
            else:
                self._run(wish, class_planes(self._card, arrays), progress)
            return [
                self._finished(wish, label, arrays[label.name], scratch.get(label.name))
                for label in wish.labels
            ]
        finally:
            for place in scratch.values():
                shutil.rmtree(place, ignore_errors=True)

    def _run(self, wish: CropWish, output: tuple[Any, Planes], progress: TileProgress) -> None:
        activate, planes = output
        with storage_errors(self._folder.path):
            self._plan(wish).run(
                self._source(wish), self._network.runtime, activate, planes, progress
            )

    def _finished(
        self, wish: CropWish, label: WantedLabel, array: Any, scratch: Path | None
    ) -> PredictedLabel:
        n_objects = None
        if scratch is not None:
            objects = self._options.objects
            method: Any = self._method(label.name)
            with storage_errors(scratch):
                n_objects = split_objects(
                    array,
                    label.grid,
                    lambda dtype: self._folder.create(label, dtype),
                    options=ObjectOptions(method, objects.min_size, objects.seed_distance_nm),
                    scratch=scratch,
                    sink=self._sink,
                )
        self._folder.finish(label, self._made_with(wish, label))
        return PredictedLabel(label, self._folder.place(label), False, n_objects)

    def _decoded(self, wish: CropWish, progress: TileProgress) -> PredictedLabel:
        """Objects of the network's own maps."""
        card, grid = self._card, wish.map_grid
        (label,) = wish.labels
        maps = np.zeros((card.n_outputs, *grid.shape), np.uint8)
        self._run(wish, map_planes(card, list(maps)), progress)
        self._sink.check()
        self._sink.emit(Progress("objects", 0, 1))
        with storage_errors(self._folder.path):
            n_objects = decode_objects(
                maps,
                grid,
                label.grid,
                card.decoder,
                lambda dtype: self._folder.create(label, dtype),
                options=self._options.objects,
            )
        self._sink.emit(Progress("objects", 1, 1))
        self._folder.finish(label, self._made_with(wish, label))
        return PredictedLabel(label, self._folder.place(label), False, n_objects)

    def _source(self, wish: CropWish) -> RawSlabs:
        """Raw data of a crop's reach, normalised as the card says."""
        view, doc = wish.view, self._card.normalisation
        array = self._tree.open_lazy(view.raw.path)
        if doc.kind in ("fixed", "none"):
            numbers = Statistics(None, None, None, None)
            return RawSlabs(view, array, Normaliser.resolve(doc, numbers))
        note = f"the model wants {doc.kind} of a volume: here, of each crop and its surroundings"
        if note not in self.warnings:
            self.warnings.append(note)
        found = measure(RawSlabs(view, array), doc)
        return RawSlabs(view, array, Normaliser.resolve(doc, found.statistics))


def _bytes_of(wish: CropWish) -> int:
    """Roughly what a crop takes: masks and ids are mostly one value, and compress well."""
    return len(wish.labels) * math.prod(wish.grid.shape) // _COMPRESSION


def _flat(wishes: Sequence[CropWish]) -> list[tuple[CropWish, WantedLabel]]:
    return [(wish, label) for wish in wishes for label in wish.labels]
