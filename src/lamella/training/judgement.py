"""A trained network on the regions that judge: scores per class, objects, and logits to calibrate.

Regions are gone through tile by tile, as at inference; every voxel is counted once. A class that
does not occur in the reference has no score: neither 0 nor 1 would say anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from lamella.core.progress import Progress
from lamella.training.honesty import LogitSample
from lamella.training.metrics import ClassScores, ConfusionCounts, mean_score
from lamella.training.objects import ObjectMaps, ObjectScores
from lamella.wire.card import MetricDoc

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from lamella.core.progress import ProgressSink
    from lamella.training.source import Region
    from lamella.training.task import Task
    from lamella.wire.document import JsonValue

__all__ = ["JudgeOptions", "Judgement", "judge"]

Split = Literal["validation", "test"]

_NAMES = (("iou", "IoU"), ("dice", "Dice"), ("precision", "precision"), ("recall", "recall"))
_BACKGROUND = "background"
_MAX_NAMES = 3


@dataclass(frozen=True, slots=True)
class JudgeOptions:
    """How regions are gone through.

    Attributes:
        tile: extents of a tile.
        overlap_fraction: share of a tile in common with its neighbour.
        spacing: of the regions' voxels, for the decoder of objects.
        device: of the network.
    """

    tile: tuple[int, ...]
    overlap_fraction: float
    spacing: tuple[float, ...]
    device: torch.device


@dataclass(frozen=True, slots=True)
class Judgement:
    """What came of one split.

    Attributes:
        split: which.
        names: of what was counted, as the task calls it.
        scores: one per name.
        regions: names of the regions.
        specimens: they come from.
        objects: None for tasks that make none.
        sample: logits for calibration.
    """

    split: Split
    names: tuple[str, ...]
    scores: tuple[ClassScores, ...]
    regions: tuple[str, ...]
    specimens: tuple[str, ...]
    objects: ObjectScores | None = None
    sample: LogitSample | None = field(default=None, repr=False)

    @property
    def absent(self) -> tuple[str, ...]:
        """What never occurs in the reference."""
        pairs = zip(self.names, self.scores, strict=True)
        return tuple(name for name, score in pairs if score.n_reference == 0)

    @property
    def data(self) -> str:
        """The data, in words, for the card."""
        count = len(self.regions)
        what = "1 region" if count == 1 else f"{count} regions"
        shown = ", ".join(self.specimens[:_MAX_NAMES])
        rest = len(self.specimens) - _MAX_NAMES
        return f"{self.split} split, {what} of {shown}{f' and {rest} more' if rest > 0 else ''}"

    def as_values(self) -> dict[str, dict[str, float | None]]:
        """Scores by name, None where there is none; JSON values."""
        values: dict[str, dict[str, float | None]] = {}
        for name, score in zip(self.names, self.scores, strict=True):
            is_known = score.n_reference > 0
            values[name] = {
                field_name: _rounded(getattr(score, field_name)) if is_known else None
                for field_name, _ in (*_NAMES, ("accuracy", ""))
            }
        if self.objects is not None:
            values["objects"] = {
                "average_precision": _rounded(self.objects.average_precision),
                "voi_split": _rounded(self._voi("voi_split")),
                "voi_merge": _rounded(self._voi("voi_merge")),
            }
        return values

    def metrics(self) -> tuple[MetricDoc, ...]:
        """Entries of the card; what has no score is left out."""
        found: list[MetricDoc] = []
        if self.objects is not None:
            found += self._object_metrics(self.objects)
        shown = [
            (name, score)
            for name, score in zip(self.names, self.scores, strict=True)
            if name != _BACKGROUND and score.n_reference > 0
        ]
        if len(shown) > 1:
            mean = mean_score(tuple(score for _, score in shown), "iou", skip_background=False)
            found += self._metric("mean IoU", mean, {"classes": len(shown)})
        for name, score in shown:
            for field_name, title in _NAMES:
                found += self._metric(title, getattr(score, field_name), {"class": name})
        return tuple(found)

    def _object_metrics(self, objects: ObjectScores) -> list[MetricDoc]:
        if objects.n_reference == 0:
            return []
        conditions: dict[str, JsonValue] = {"objects": objects.n_reference}
        if objects.is_cut:
            conditions["part"] = "middle of the largest regions"
        return [
            *self._metric("AP at IoU 0.5", objects.average_precision, conditions),
            *(
                self._metric(title, self._voi(name), {**conditions, "background": "left out"})[0]
                for name, title in (("voi_split", "VOI split"), ("voi_merge", "VOI merge"))
            ),
        ]

    def _voi(self, name: str) -> float:
        assert self.objects is not None
        n = self.objects.n_voxels
        return getattr(self.objects, name) / n if n else math.nan

    def _metric(
        self, title: str, value: float, conditions: Mapping[str, JsonValue]
    ) -> list[MetricDoc]:
        if math.isnan(value):
            return []
        return [
            MetricDoc(
                name=title,
                value=round(value, 4),
                data=self.data,
                n=len(self.regions),
                conditions=dict(conditions),
            )
        ]


def judge(
    network: nn.Module,
    regions: Sequence[Region],
    task: Task,
    options: JudgeOptions,
    *,
    split: Split,
    sink: ProgressSink,
    sigmoid_outputs: tuple[int, ...] = (),
) -> Judgement:
    """Go through the regions of a split.

    Args:
        network: in evaluation mode, on the device of the options.
        regions: at least one.
        task: encodes, decides and says what is counted.
        options: tiles.
        split: which split this is; logits are kept for ``validation`` only.
        sink: progress and cancellation.
        sigmoid_outputs: outputs whose sigmoid is calibrated; empty for softmax.

    Raises:
        RunCancelledError: the sink asked to stop.
    """
    from lamella.training.validation import iterate_logits

    counts = ConfusionCounts.zeros(len(task.score_names))
    total = sum(math.prod(region.shape) for region in regions)
    sample = LogitSample(total, channels=sigmoid_outputs) if split == "validation" else None
    objects = ObjectScores() if task.card_task == "instance" else None
    done = 0
    for region in regions:
        maps = None
        if objects is not None:
            maps = ObjectMaps(region.shape, task.n_outputs, task.decoder, options.spacing)
        for box, logits, patch in iterate_logits(
            network,
            region,
            tile=options.tile,
            overlap_fraction=options.overlap_fraction,
            device=options.device,
        ):
            sink.check()
            encoded = task.encode(patch)
            target = task.target(
                torch.from_numpy(encoded.values)[None], torch.from_numpy(encoded.valid)[None]
            )
            outputs = logits.float().cpu()
            counts.add(task.decide(outputs), task.scored(target))
            if sample is not None:
                sample.add(outputs, target)
            if maps is not None:
                maps.put(box, outputs[0].numpy(), patch)
            done += box.size
            sink.emit(Progress(f"scoring {split}", done, total, "voxels"))
        if maps is not None and objects is not None:
            objects = objects + maps.scores()
    return Judgement(
        split,
        tuple(task.score_names),
        counts.scores(),
        tuple(region.name for region in regions),
        tuple(dict.fromkeys(region.specimen for region in regions)),
        objects,
        sample,
    )


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)
