"""Rows of the history for TensorBoard and Weights & Biases."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback

from lamella.core.errors import MissingDependencyError
from lamella.core.optional import is_importable
from lamella.core.storage import storage_error

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from lamella.training.history import Row
    from lamella.training.session import Session

__all__ = ["BOARD_FOLDER", "Boards", "check_loggers"]

BOARD_FOLDER = "tensorboard"

_PURPOSES = {
    "tensorboard": ("tensorboard", 'pip install "lamella[train]"'),
    "wandb": ("wandb", "pip install wandb, and log in with `wandb login`"),
}


def check_loggers(names: Sequence[str]) -> None:
    """Refuse loggers that are not installed, before anything is trained.

    Raises:
        MissingDependencyError: naming the one that lacks.
    """
    for name in names:
        package, advice = _PURPOSES[name]
        if not is_importable(package):
            raise MissingDependencyError(
                f"trainer.loggers asks for {name}, which is not installed here",
                hint=f"{advice}; or leave it out: trainer.loggers=[]",
                details={"module": package},
            )


class Boards(Callback):
    """Hands on every new row at the end of an epoch.

    Args:
        session: of the training.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._n_sent = len(session.history.rows)
        self._send: list[Callable[[int, dict[str, float]], None]] = []
        self._close: list[Callable[[], Any]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open what was asked for; what a killed session had sent too much is taken back."""
        if not trainer.is_global_zero:
            return
        loggers = self._session.config.trainer.loggers
        if "tensorboard" in loggers:
            self._open_tensorboard()
        if "wandb" in loggers:
            self._open_wandb()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Send the rows of this epoch."""
        rows = self._session.history.rows
        try:
            for row in rows[self._n_sent :] if self._send else ():
                for send in self._send:
                    send(row.step, _values(row))
        except OSError as error:
            raise storage_error(error, self._session.run_dir / BOARD_FOLDER) from error
        self._n_sent = len(rows)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close everything."""
        for close in self._close:
            close()
        self._send, self._close = [], []

    def _open_tensorboard(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder: Path = self._session.run_dir / BOARD_FOLDER
        step = self._session.state.step
        writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

        def send(step: int, values: dict[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        self._send.append(send)
        self._close.append(writer.close)

    def _open_wandb(self) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        config = self._session.config
        run = wandb.init(
            project="lamella",
            name=self._session.run_dir.name,
            dir=str(self._session.run_dir),
            config=config.model_dump(mode="json"),
            resume="allow",
        )
        self._send.append(lambda step, values: run.log(values, step=step))
        self._close.append(run.finish)


def _values(row: Row) -> dict[str, float]:
    named = {
        "loss/training": row.loss,
        "loss/validation": row.validation_loss,
        "score/mean IoU": row.score,
        "learning rate": row.learning_rate,
        "gradient norm": row.gradient_norm,
        "share waited for data": row.data_share,
        **{f"IoU/{name}": value for name, value in row.classes.items()},
    }
    return {name: v for name, v in named.items() if v is not None and math.isfinite(v)}
