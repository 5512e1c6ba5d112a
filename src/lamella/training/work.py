"""The steps of a training and its result, with Lightning's trainer and our callbacks."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from lamella.core.errors import RunCancelledError
from lamella.training.checkpoint import read_checkpoint
from lamella.training.norms import unfold_start
from lamella.training.trainer import Devices, make_trainer, n_devices
from lamella.training.validation import autocast_of, n_tiles, to_device

if TYPE_CHECKING:
    from torch import nn

    from lamella.training.result import Result
    from lamella.training.session import Session
    from lamella.training.source import PatchSource, Region

__all__ = ["Work"]

_RESULT_FACTOR = 1.5
"""Time of a tile in the result, in tiles of a validation."""


class Work:
    """Network, data and session together."""

    def __init__(
        self,
        session: Session,
        source: PatchSource,
        network: nn.Module,
        devices: Devices,
        document: dict[str, Any] | None,
        tile: tuple[int, ...],
    ) -> None:
        self.tile = tile
        self.session = session
        self.source = source
        self.network = network
        self.devices = devices
        self.document = document

    def fit(self) -> None:
        """Make the steps that are left."""
        from lamella.training.callbacks import (
            averaging,
            boards,
            guard,
            judge,
            keeper,
            limit,
            pictures,
            recorder,
            reporter,
        )
        from lamella.training.module import TrainingModule

        session, config = self.session, self.session.config
        regions = self.source.regions("validation")
        if self.is_done:
            return
        callbacks = [
            keeper.Noise(session),
            guard.Guard(session),
            averaging.Averaging(session, config.trainer.ema_decay),
            limit.Limit(session),
            recorder.Rows(session),
            judge.Judge(session, regions, self.tile),
            recorder.Table(session),
            keeper.Keeper(session, self.document),
            pictures.Pictures(session),
            boards.Boards(session),
            reporter.Reporter(session),
        ]
        module = TrainingModule(
            self.network, session.loss, session.task, config, session.state, session.clock
        )
        is_several = n_devices(config, self.devices) > 1
        trainer = make_trainer(
            config,
            self.devices,
            callbacks,
            has_unused=is_several and _has_unused(self.network, session),
        )
        session.numbers.rank, session.numbers.world = trainer.global_rank, trainer.world_size
        if config.trainer.minutes is not None:
            self._foresee(regions)
        if self.document is None:
            unfold_start(self.network, config, session.dataset)
        self.network.train()
        try:
            trainer.fit(module, train_dataloaders=session.loader)
        except SystemExit as error:  # Lightning's answer to SIGTERM, and to a second Ctrl-C
            raise RunCancelledError("stopped") from error
        _leave_group()

    def _foresee(self, regions: Sequence[Region]) -> None:
        """Measure a tile, so that the time of validations and of the result is known before."""
        clock, overlap = self.session.clock, self.session.config.model.overlap_fraction

        def tiles(of: Sequence[Region]) -> int:
            return sum(n_tiles(region.shape, self.tile, overlap) for region in of)

        n_validation = tiles(regions)
        if not n_validation:
            return
        # The result scores validation and test regions in full precision, and writes files.
        n_result = n_validation + tiles(self.source.regions("test"))
        clock.result_validations = _RESULT_FACTOR * n_result / n_validation
        if clock.validation_s is None:
            shape = (1, self.source.info.n_channels, *self.tile)
            device = torch.device(self.devices.kind)
            trial = copy.deepcopy(self.network).eval().to(device)
            batch = to_device(torch.zeros(shape), device)
            took = 0.0
            for _ in range(2):  # the first run of a shape prepares
                began = time.monotonic()
                with torch.no_grad(), autocast_of(device, self.session.config.trainer.precision):
                    trial(batch)
                    took = time.monotonic() - began
            clock.validation_s = n_validation * took

    @property
    def is_done(self) -> bool:
        """Whether the checkpoint is that of a training that has ended."""
        state, trainer = self.session.state, self.session.config.trainer
        if state.stop_reason == "time":
            return self.session.clock.share(state.step, trainer.steps) >= 1
        if state.stop_reason == "patience":
            return bool(trainer.patience) and state.n_worse >= trainer.patience
        return state.step >= trainer.steps

    def write(self) -> Result:
        """Score the best weights and write the model folder."""
        from lamella.training.callbacks.keeper import best_path
        from lamella.training.result import write_result

        session = self.session
        step, network = session.state.step, copy.deepcopy(self.network).cpu()
        if session.state.best:
            step = session.state.best[0][1]
            weights = read_checkpoint(best_path(session.checkpoints, step))["averaged"]
        else:
            weights = read_checkpoint(session.checkpoints / "last.ckpt")["averaged"]
        network.load_state_dict(weights)
        return write_result(
            session.config,
            network.eval().requires_grad_(False),
            self.source,
            session.task,
            run_dir=session.run_dir,
            steps_done=step,
            device=self.devices.kind,
            sink=session.sink,
        )


def _has_unused(network: nn.Module, session: Session) -> bool:
    """Whether some weights get no gradient: DDP has to be told."""
    trial = copy.deepcopy(network).train()
    items = [session.dataset[number] for number in range(2)]
    batch = {
        name: torch.stack([item[name] for item in items]) for name in items[0] if name != "number"
    }
    outputs: Any = trial(batch["image"])
    target = session.task.target(batch["values"], batch["valid"])
    if not isinstance(outputs, torch.Tensor):
        outputs = list(outputs)
    session.loss(outputs, target).backward()
    return any(p.requires_grad and p.grad is None for p in trial.parameters())


def _leave_group() -> None:
    """Part from the other devices: what follows is done by the first alone."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
