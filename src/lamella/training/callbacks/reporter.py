"""Tells whoever waits: progress with the time that is left, and a line after each validation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback

from lamella.training.sparkline import sparkline
from lamella.wire.event import LogEvent, ProgressEvent

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from lamella.training.session import Session

__all__ = ["Reporter", "validation_line"]

_MOST_CLASSES = 4


class Reporter(Callback):
    """Emits progress after every step, and a line after every validation.

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
        """Say how far it is."""
        session = self._session
        steps, done = session.config.trainer.steps, session.state.step
        session.sink.emit(
            ProgressEvent(
                stage="training",
                done=done,
                total=session.expected_steps,
                unit="steps",
                eta_s=self._left_s(steps),
            )
        )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say how good it is."""
        session = self._session
        best = session.state.best[0][1] if session.state.best else None
        session.sink.emit(
            LogEvent(message=validation_line(session.history, session.state.step, best))
        )

    def _left_s(self, steps: int) -> float | None:
        """Time that is left, validations included."""
        session = self._session
        state, trainer = session.state, session.config.trainer
        if state.train_s <= 0:
            return None
        rows = session.history.rows[-20:]
        pace = state.train_s / max(1, state.step)
        if len(rows) > 1 and rows[0].step < rows[-1].step:
            # What validations took lies between the rows too.
            pace = (rows[-1].time_s - rows[0].time_s) / (rows[-1].step - rows[0].step)
        elif session.clock.validation_s:
            pace += session.clock.validation_s / trainer.validate_every
        left = pace * (steps - state.step)
        budget = session.clock.budget_s
        return left if budget is None else max(0.0, min(left, budget - session.clock.elapsed_s))


def validation_line(history: Any, step: int, best_step: int | None) -> str:
    """One line: step, losses, scores and how they went so far.

    Args:
        history: of the training.
        step: of this line.
        best_step: of the best validation so far.

    Examples:
        >>> from lamella.training.history import History, Row
        >>> history = History(("mito",))
        >>> for step, score in ((10, 0.2), (20, 0.6)):
        ...     history.add(Row(step, 1.0, 0.5, 1e-3))
        ...     history.complete(validation_loss=0.4, score=score, classes={"mito": score})
        >>> validation_line(history, 20, 20)
        'step    20  loss ▁▁ 0.5000, validation 0.4000  IoU ▁█ 0.600  best so far'
    """
    losses = [row.loss for row in history.rows]
    text = f"step {step:5d}  loss {sparkline(losses, 12)} {losses[-1]:.4f}"
    validations = history.validations
    if not validations:
        return text
    last = validations[-1]
    scores = [row.score for row in validations]
    text += f", validation {last.validation_loss:.4f}"
    if last.score is None or math.isnan(last.score):
        return f"{text}  no class occurs in the validation data"
    name = "mean IoU" if len(history.classes) > 1 else "IoU"
    text += f"  {name} {sparkline(scores, 12)} {last.score:.3f}"
    if len(history.classes) > 1:
        known = [(name, value) for name, value in last.classes.items() if not math.isnan(value)]
        shown = sorted(known, key=lambda pair: pair[1])[:_MOST_CLASSES]
        lowest = "lowest: " if len(known) > _MOST_CLASSES else ""
        text += f"  ({lowest}{', '.join(f'{name} {value:.3f}' for name, value in shown)})"
    return text + ("  best so far" if best_step == step else "")
