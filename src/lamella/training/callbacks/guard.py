"""Stops a training whose loss is no number any more, and says which patches did it.

On the CPU a loss is looked at at once. On CUDA it is looked at one batch later, when it is there
anyway: asking at once would make the device wait after every batch.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from lightning.pytorch import Callback

from lamella.core.errors import RunError
from lamella.training.checkpoint import LAST

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from lamella.training.module import TrainingModule
    from lamella.training.patches import PatchDataset
    from lamella.training.session import Session

__all__ = ["Guard", "Locating", "describe_patch"]


@runtime_checkable
class Locating(Protocol):
    """A source that can say where a patch comes from; optional.

    Contract:
        * with a generator in the state that ``draw`` was given, names the file or region, and the
          place in it.
    """

    def locate(self, rng: np.random.Generator, shape: tuple[int, ...]) -> str:
        """Where the patch that ``draw`` gives comes from."""
        ...


class Guard(Callback):
    """Looks at every loss.

    Args:
        session: of the training.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._waiting: deque[tuple[torch.Tensor, list[int], int]] = deque()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Look at this loss, or at the one before."""
        module: TrainingModule = pl_module  # pyright: ignore[reportAssignmentType]
        numbers = [int(n) for n in batch["number"]]
        self._waiting.append((module.last_loss, numbers, self._session.state.step))
        lag = 0 if module.device.type == "cpu" else 1
        self._look(lag)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at all that is left, and at the weights: what is kept must be numbers."""
        self._look(0)
        network = self._session.averaged
        if network is None or _is_finite(network):
            return
        raise RunError(
            f"the weights are no numbers any more at step {self._session.state.step}",
            hint=f"{self._kept()}; lower optimiser.learning_rate"
            + (", or use bf16 instead of fp16" if self._is_half else ""),
        )

    @property
    def _is_half(self) -> bool:
        return self._session.config.trainer.precision == "fp16"

    def _look(self, lag: int) -> None:
        while len(self._waiting) > lag:
            loss, numbers, step = self._waiting.popleft()
            value = float(loss)
            if not math.isfinite(value):
                self._stop(value, numbers, step)

    def _stop(self, value: float, numbers: list[int], step: int) -> None:
        patches = [describe_patch(self._session.dataset, number) for number in numbers]
        is_odd = any("NaN" in text or "infinite" in text for text in patches)
        advice = (
            "mend or leave out the file with values that are no numbers"
            if is_odd
            else "lower optimiser.learning_rate"
            + (", or use bf16 instead of fp16" if self._is_half else "")
        )
        raise RunError(
            f"the loss became {value} at step {step}, in the batch of patches"
            f" {', '.join(map(str, numbers))}: {'; '.join(patches)}",
            hint=f"{advice}; {self._kept()}",
            details={"step": step, "patches": numbers, "found": patches},
        )

    def _kept(self) -> str:
        path = self._session.checkpoints / LAST
        return f"the last good checkpoint is {path}" if path.is_file() else "no step is kept"


def describe_patch(dataset: PatchDataset, number: int) -> str:
    """What is in a patch, in words: it is drawn once more.

    Args:
        dataset: of the training.
        number: of the patch.
    """
    image = dataset.sample(number).image
    finite = np.isfinite(image)
    what = f"{number} has intensities {image.min():.3g} to {image.max():.3g}"
    if not finite.all():
        name = "NaN" if np.isnan(image).any() else "infinite values"
        what = f"{number} has {name} in {(~finite).sum():,} of {image.size:,} voxels"
    if isinstance(dataset.source, Locating):
        _, own = dataset.order.generators(number)
        what += f" ({dataset.source.locate(own, dataset.shape)})"
    return what


def _is_finite(network: torch.nn.Module) -> bool:
    return all(
        bool(torch.isfinite(value).all())
        for value in network.state_dict().values()
        if value.is_floating_point()
    )
