"""Ends a training: when its steps are done, its time is over, or somebody asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback

from lamella.core.errors import RunCancelledError

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from lamella.training.session import Session

__all__ = ["Limit"]


class Limit(Callback):
    """Asked after every step.

    Args:
        session: of the training.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop where it is time; of several devices all stop at the same step.

        Raises:
            RunCancelledError: the sink asked to stop.
        """
        self._check_cancelled(trainer)
        session, steps = self._session, self._session.config.trainer.steps
        if (batch_idx + 1) % session.config.trainer.accumulate:
            return
        if session.state.step >= steps:
            self._stop(trainer, "steps")
        elif session.clock.minutes is not None and self._is_late(trainer):
            self._stop(trainer, "time")

    def _stop(self, trainer: pl.Trainer, reason: str) -> None:
        self._session.state.stop_reason = reason
        trainer.should_stop = True

    def _is_late(self, trainer: pl.Trainer) -> bool:
        session = self._session
        late = session.clock.share(session.state.step, session.config.trainer.steps) >= 1
        return late if trainer.world_size == 1 else bool(trainer.strategy.broadcast(late))

    def _check_cancelled(self, trainer: pl.Trainer) -> None:
        reason: RunCancelledError | None = None
        try:
            self._session.sink.check()
        except RunCancelledError as error:
            reason = error
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(reason is not None, all=False)
            if asked and reason is None:
                reason = RunCancelledError("cancelled")
        if reason is not None:
            raise reason
