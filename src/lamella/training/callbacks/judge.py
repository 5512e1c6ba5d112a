"""Validation: the averaged network on whole regions, counted voxel by voxel over all of them.

Scores of several devices are made of the sum of their counts; a mean of batch scores depends on
how batches were drawn (and a batch without a class has no score at all).
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Callback

from lamella.core.progress import Progress
from lamella.training.metrics import ConfusionCounts
from lamella.training.validation import iterate_logits, n_tiles

if TYPE_CHECKING:
    from collections.abc import Sequence

    import lightning.pytorch as pl

    from lamella.training.session import Session
    from lamella.training.source import Region

__all__ = ["Judge", "add_up"]


class Judge(Callback):
    """Judges the network at the end of an epoch, and records what it found.

    Args:
        session: of the training.
        regions: of the validation split; of several devices each takes its share.
        tile: extent of what the network sees at once.
    """

    def __init__(self, session: Session, regions: Sequence[Region], tile: tuple[int, ...]) -> None:
        self._session = session
        self._regions = regions
        self._tile = tile
        self._overlap = session.config.model.overlap_fraction

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge, and complete the row of this step."""
        session = self._session
        session.state.epoch += 1
        if not self._regions:
            return
        began = time.monotonic()
        network = session.averaged
        assert network is not None
        _agree(trainer, network)
        own = self._regions[trainer.global_rank :: trainer.world_size]
        names = session.task.score_names
        counts = ConfusionCounts.zeros(len(names))
        sums = torch.zeros(2, dtype=torch.float64)
        total = sum(n_tiles(region.shape, self._tile, self._overlap) for region in own)
        done = 0
        for region in own:
            for logits, values, valid in self._outputs(network, region, pl_module.device):
                target = session.task.target(values, valid)
                n_valid = int(valid.sum())
                sums += torch.tensor([float(session.loss(logits, target)) * n_valid, n_valid])
                counts.add(session.task.decide(logits), session.task.scored(target))
                done += 1
                session.sink.emit(Progress("validating", done, total, "tiles"))
                if trainer.world_size == 1:
                    session.sink.check()
        add_up(trainer, counts.counts, sums)
        scores = dict(zip(names, counts.scores(), strict=True))
        scores.pop("background", None)
        session.scores = scores
        known = [one.iou for one in scores.values() if not math.isnan(one.iou)]
        session.history.complete(
            validation_loss=float(sums[0] / sums[1]) if sums[1] else math.nan,
            score=sum(known) / len(known) if known else math.nan,
            classes={name: one.iou for name, one in scores.items()},
        )
        session.clock.validation_s = time.monotonic() - began

    def _outputs(self, network: torch.nn.Module, region: Region, device: torch.device):
        """Logits and encoded labels of the region's cores, as batches of one."""
        for _, logits, sample in iterate_logits(
            network,
            region,
            tile=self._tile,
            overlap_fraction=self._overlap,
            device=device,
            precision=self._session.config.trainer.precision,
        ):
            encoded = self._session.task.encode(sample)
            yield (
                logits,
                torch.from_numpy(encoded.values)[None].to(device),
                torch.from_numpy(encoded.valid)[None].to(device),
            )


def _agree(trainer: pl.Trainer, network: torch.nn.Module) -> None:
    """Running statistics differ between devices, each sees other patches: the first's count."""
    if trainer.world_size > 1:
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, 0)


def add_up(trainer: pl.Trainer, *numbers: torch.Tensor) -> None:
    """Sum tensors over all devices, in place."""
    if trainer.world_size == 1:
        return
    for tensor in numbers:
        there = tensor.to(trainer.strategy.root_device)
        tensor.copy_(trainer.strategy.reduce(there, reduce_op="sum").to(tensor.device))
