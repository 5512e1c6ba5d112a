"""Keeps ``curves.png`` and ``curves.html`` up to date."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from lightning.pytorch import Callback

from lamella.core.storage import storage_error
from lamella.training.checkpoint import write_text
from lamella.training.curves import Heading, curves_html, draw_curves
from lamella.training.duration import in_words

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from lamella.training.session import Session

__all__ = ["CURVES_PAGE", "CURVES_PICTURE", "Pictures", "write_curves"]

CURVES_PICTURE = "curves.png"
CURVES_PAGE = "curves.html"
_MOST_SHARE = 0.05
"""Of the time that drawing may take; a training of milliseconds is seldom drawn."""

_REASONS = {"time": "ended by its time limit", "patience": "ended early: nothing got better"}


class Pictures(Callback):
    """Draws at the end of an epoch.

    Args:
        session: of the training.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._next = 0.0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw, unless drawing would take more time than training."""
        began = time.monotonic()
        if trainer.is_global_zero and began >= self._next:
            write_curves(self._session, "running")
            took = time.monotonic() - began
            self._next = time.monotonic() + took * (1 / _MOST_SHARE - 1)


def write_curves(session: Session, state: str) -> None:
    """Draw the curves into the run folder.

    Args:
        session: of the training.
        state: ``running``, ``finished``, ``stopped`` or ``failed``.

    Raises:
        StorageError: they cannot be written.
    """
    if not session.history.rows:
        return
    config, best = session.config, session.state.best
    heading = Heading(
        title=config.model.id,
        steps=session.expected_steps if state == "running" else config.trainer.steps,
        state=state,
        best_step=best[0][1] if best else None,
        elapsed=in_words(session.clock.elapsed_s),
        notes=_REASONS.get(session.state.stop_reason, ""),
    )
    picture = session.run_dir / CURVES_PICTURE
    staging = picture.with_name(f".{CURVES_PICTURE}.part")
    try:
        staging.write_bytes(draw_curves(session.history, heading))
        staging.replace(picture)
    except OSError as error:
        staging.unlink(missing_ok=True)
        raise storage_error(error, picture) from error
    write_text(session.run_dir / CURVES_PAGE, curves_html(session.history, heading))
