"""The training step as Lightning runs it: network, loss, learning rate, gradients.

The learning rate of a step follows from the share of the training that is done
(:mod:`lamella.training.schedule`), which the clock tells: a training with a time limit comes down
in time. Nothing here depends on the session: a resumed training is told its step and goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch

from lamella.training.build import build_optimiser
from lamella.training.schedule import factor_at
from lamella.training.validation import to_device

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from lamella.training.configuration import TrainConfig
    from lamella.training.losses import Loss
    from lamella.training.state import Clock, LoopState
    from lamella.training.task import Task

__all__ = ["TrainingModule"]


class TrainingModule(pl.LightningModule):
    """A network that learns.

    Args:
        network: input float32 (n, c, *spatial), output logits (n, k, *spatial) or several of them,
            finest first.
        loss: of logits and target.
        task: makes targets of encoded patches.
        config: of the training.
        state: is moved on by every step.
        clock: says how much is done.

    Attributes:
        last_loss: of the last batch, on its device.
        last_norm: of the gradient before clipping, on its device.
        last_rate: learning rate of the last step.
        share: of the training that was done before the last step.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Loss,
        task: Task,
        config: TrainConfig,
        state: LoopState,
        clock: Clock,
    ) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.state = state
        self.clock = clock
        self.last_loss = torch.zeros(())
        self.last_norm = torch.zeros(())
        self.last_rate = 0.0
        self.share = 0.0
        self._loss = loss
        self._task = task

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        """The loss of a batch."""
        outputs = self.network(to_device(batch["image"], self.device))
        target = self._task.target(batch["values"], batch["valid"])
        loss = self._loss(_as_scales(outputs), target)
        self.last_loss = loss.detach()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser alone: the learning rate is set before every step."""
        return build_optimiser(self.network, self.config.optimiser)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Scale gradients down to the largest norm that is allowed, and remember what it was."""
        most = self.config.optimiser.max_gradient_norm or float("inf")
        self.last_norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), most).detach()

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """A step at the learning rate of the moment."""
        n_steps = self.config.trainer.steps
        self.share = self._agreed_share(n_steps)
        factor = factor_at(self.config.schedule, self.share, 1 / n_steps)
        self.last_rate = self.config.optimiser.learning_rate * factor
        for group in optimizer.param_groups:
            group["lr"] = self.last_rate
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.state.step += 1

    def _agreed_share(self, n_steps: int) -> float:
        """How much is done; of several devices the first one's clock counts."""
        share = self.clock.share(self.state.step, n_steps)
        if self.clock.minutes is None or self.trainer.world_size == 1:
            return share
        return float(self.trainer.strategy.broadcast(share))


def _as_scales(outputs: Any) -> Any:
    """Outputs at several scales as a list; a single output as it is."""
    return outputs if isinstance(outputs, torch.Tensor) else list(outputs)
