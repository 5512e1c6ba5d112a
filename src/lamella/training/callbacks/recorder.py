"""Writes down what happens: rows of ``metrics.csv``, time in steps, time waited for data."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback

from lamella.training.callbacks.judge import add_up
from lamella.training.checkpoint import write_text
from lamella.training.history import Row

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from lamella.training.module import TrainingModule
    from lamella.training.session import Session

__all__ = ["METRICS", "Rows", "Table"]

METRICS = "metrics.csv"
_ROWS_PER_EPOCH = 10


class Rows(Callback):
    """Adds a row ten times in an epoch, and after its last step.

    Args:
        session: of the training.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._every = max(1, session.config.trainer.validate_every // _ROWS_PER_EPOCH)
        self._sums = torch.zeros(2, dtype=torch.float64)
        self._mark: float | None = None
        self._row_s = 0.0
        self._row_waited_s = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Time in validation is no time in steps; the very first batch waits for workers."""
        if self._mark is not None:
            self._mark = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count the batch, and write a row where one is due."""
        module: TrainingModule = pl_module  # pyright: ignore[reportAssignmentType]
        session, trained = self._session, self._session.config.trainer
        self._count_time()
        self._sums = self._sums.to(module.device)
        self._sums += torch.stack([module.last_loss.double(), torch.ones_like(self._sums[0])])
        if (batch_idx + 1) % trained.accumulate:
            return
        step = session.state.step
        if trainer.should_stop or step % trained.validate_every == 0 or step % self._every == 0:
            self._add_row(trainer, module)

    def _count_time(self) -> None:
        state, now = self._session.state, time.perf_counter()
        if self._mark is not None:
            waited = self._session.loader.take_waited()
            state.train_s += now - self._mark
            state.waited_s += waited
            self._row_s += now - self._mark
            self._row_waited_s += waited
        self._mark = now

    def _add_row(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        session = self._session
        add_up(trainer, self._sums)
        loss, count = self._sums.tolist()
        session.history.add(
            Row(
                step=session.state.step,
                time_s=round(session.clock.elapsed_s, 2),
                loss=loss / count,
                learning_rate=module.last_rate,
                gradient_norm=float(module.last_norm),
                data_share=self._row_waited_s / self._row_s if self._row_s else float("nan"),
            )
        )
        self._sums = torch.zeros_like(self._sums)
        self._row_s = self._row_waited_s = 0.0


class Table(Callback):
    """Writes ``metrics.csv`` at the end of an epoch.

    Args:
        session: of the training.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write it anew: what a killed session had written behind its checkpoint goes away."""
        if trainer.is_global_zero:
            write_text(self._session.run_dir / METRICS, self._session.history.csv())
