"""Moving average of weights: what is validated and kept.

The decay starts low and reaches its value as steps go by, so that the first weights are soon
forgotten. Running statistics of normalisations belong to the weights beside them and are averaged
too. Source: Polyak & Juditsky (1992); the warm-up as in TensorFlow's ExponentialMovingAverage.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from lamella.training.module import TrainingModule
    from lamella.training.session import Session

__all__ = ["Averaging", "averaged_copy"]

_lerp: Any = torch._foreach_lerp_  # pyright: ignore[reportPrivateImportUsage]


def averaged_copy(network: torch.nn.Module) -> torch.nn.Module:
    """A copy that learns nothing by itself, in evaluation mode."""
    return copy.deepcopy(network).eval().requires_grad_(False)


class Averaging(Callback):
    """Moves the average along after every optimiser step.

    Args:
        session: holds the average.
        decay: share of the old average that stays in each step.
    """

    def __init__(self, session: Session, decay: float) -> None:
        self._session = session
        self._decay = decay
        self._seen = session.state.step
        self._pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with the network as it is, unless a checkpoint brought an average."""
        network = _network(pl_module)
        if self._session.averaged is None:
            self._session.averaged = averaged_copy(network)
        self._seen = self._session.state.step
        own = dict(_numbers(self._session.averaged))
        self._pairs = [(own[name], value) for name, value in _numbers(network)]

    @torch.no_grad()
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Move the average, where the batch ended a step."""
        step = self._session.state.step
        if step == self._seen:
            return
        self._seen = step
        decay = min(self._decay, step / (9 + step))
        floats = [pair for pair in self._pairs if pair[0].is_floating_point()]
        # One kernel for all tensors instead of one each.
        _lerp([a for a, _ in floats], [b for _, b in floats], 1 - decay)
        for average, value in self._pairs:
            if not average.is_floating_point():
                average.copy_(value)


def _network(pl_module: pl.LightningModule) -> torch.nn.Module:
    module: TrainingModule = pl_module  # pyright: ignore[reportAssignmentType]
    return module.network


def _numbers(network: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*network.named_parameters(), *network.named_buffers()]
