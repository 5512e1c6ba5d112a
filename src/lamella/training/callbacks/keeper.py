"""Checkpoints: the last one, and those with the best scores; early stopping; and how to go on.

Everything that decides about the next step is in a checkpoint, and the noise of an epoch is seeded
by its number, so a training that was killed goes on as if nothing had happened.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback

from lamella.training.callbacks.averaging import averaged_copy
from lamella.training.checkpoint import LAST, same_file, write_checkpoint
from lamella.training.state import LoopState

if TYPE_CHECKING:
    from pathlib import Path

    import lightning.pytorch as pl

    from lamella.training.module import TrainingModule
    from lamella.training.session import Session

__all__ = ["Keeper", "Noise", "best_path", "restore_state"]


def best_path(folder: Path, step: int) -> Path:
    """Name of a checkpoint with one of the best scores."""
    return folder / f"best-{step:06d}.ckpt"


def restore_state(session: Session, document: dict[str, Any]) -> None:
    """Take over from a checkpoint all but weights and optimiser."""
    restored = LoopState.from_dict(document["state"])
    for name in LoopState.__slots__:
        setattr(session.state, name, getattr(restored, name))
    session.kept_step = session.state.step
    session.clock.before_s = document["elapsed_s"]
    session.numbers.first_epoch = session.state.epoch


class Noise(Callback):
    """Seeds the network's own noise (dropout) anew in every epoch.

    Args:
        session: of the training.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed by training, epoch and device."""
        epoch = self._session.state.epoch
        sequence = np.random.SeedSequence(
            [self._session.config.seed, epoch, trainer.global_rank], spawn_key=(2,)
        )
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))


class Keeper(Callback):
    """Writes checkpoints, and begins where one left off.

    Args:
        session: of the training.
        document: of the checkpoint to go on from; None to begin.
    """

    def __init__(self, session: Session, document: dict[str, Any] | None = None) -> None:
        self._session = session
        self._document = document

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Load weights, optimiser and the scale of gradients."""
        document, self._document = self._document, None
        if document is None:
            return
        module: TrainingModule = pl_module  # pyright: ignore[reportAssignmentType]
        module.network.load_state_dict(document["network"])
        self._session.averaged = averaged_copy(module.network)
        self._session.averaged.load_state_dict(document["averaged"])
        trainer.optimizers[0].load_state_dict(document["optimiser"])
        if document["scaler"]:
            trainer.precision_plugin.load_state_dict(document["scaler"])

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Rank this epoch's score, write the checkpoint, and stop where nothing gets better."""
        module: TrainingModule = pl_module  # pyright: ignore[reportAssignmentType]
        is_best = self._rank()
        session, state = self._session, self._session.state
        patience = session.config.trainer.patience
        if patience and state.n_worse >= patience and not state.stop_reason:
            state.stop_reason = "patience"
            trainer.should_stop = True
        if trainer.is_global_zero:
            last = session.checkpoints / LAST
            write_checkpoint(last, self._to_document(trainer, module))
            session.kept_step = state.step
            if is_best:
                same_file(last, best_path(session.checkpoints, state.step))
            kept = {best_path(session.checkpoints, step) for _, step in state.best}
            for old in set(session.checkpoints.glob("best-*.ckpt")) - kept:
                old.unlink(missing_ok=True)
        if trainer.world_size > 1:
            trainer.strategy.barrier()

    def _rank(self) -> bool:
        """Sort this epoch's score in; whether its checkpoint is kept."""
        session, state = self._session, self._session.state
        row = session.history.rows[-1]
        if row.score is None or math.isnan(row.score):
            return False
        ranked = sorted([*state.best, (row.score, state.step)], key=lambda pair: -pair[0])
        state.best = ranked[: session.config.trainer.keep_best]
        is_first = ranked[0][1] == state.step
        state.n_worse = 0 if is_first else state.n_worse + 1
        return (row.score, state.step) in state.best

    def _to_document(self, trainer: pl.Trainer, module: TrainingModule) -> dict[str, Any]:
        session = self._session
        assert session.averaged is not None
        return {
            "state": session.state.to_dict(),
            "elapsed_s": session.clock.elapsed_s,
            "network": module.network.state_dict(),
            "averaged": session.averaged.state_dict(),
            "optimiser": trainer.optimizers[0].state_dict(),
            "scaler": dict(trainer.precision_plugin.state_dict()),
        }
