"""What the callbacks of a training share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.training.state import Clock, LoopState

if TYPE_CHECKING:
    from torch import nn

    from lamella.training.configuration import TrainConfig
    from lamella.training.history import History
    from lamella.training.losses import Loss
    from lamella.training.metrics import ClassScores
    from lamella.training.patches import PatchDataset, PatchLoader, PatchNumbers
    from lamella.training.task import Task
    from lamella.wire.event import EventSink

__all__ = ["CHECKPOINTS", "Session", "scored_classes"]

CHECKPOINTS = "checkpoints"
"""Name of the folder of checkpoints within a run folder."""


@dataclass(slots=True)
class Session:
    """One session of a training: from its start, or from a checkpoint, to its end.

    Attributes:
        config: as resolved.
        run_dir: folder of the training.
        task: what is learnt.
        loss: of logits and target.
        dataset: of training patches.
        numbers: of the patches of an epoch.
        loader: of batches.
        history: rows so far.
        sink: progress and cancellation.
        state: how far it is.
        clock: how long it took.
        averaged: moving average of the network; None where there is none.
        scores: of the last validation, by class.
        kept_step: of the last checkpoint; 0 before the first.
    """

    config: TrainConfig
    run_dir: Path
    task: Task
    loss: Loss
    dataset: PatchDataset
    numbers: PatchNumbers
    loader: PatchLoader
    history: History
    sink: EventSink
    state: LoopState = field(default_factory=LoopState)
    clock: Clock = field(default_factory=Clock)
    averaged: nn.Module | None = None
    scores: dict[str, ClassScores] = field(default_factory=dict)
    kept_step: int = 0

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.run_dir / CHECKPOINTS

    @property
    def expected_steps(self) -> int:
        """Steps at its end: with a time limit those that fit into it, as things go."""
        steps, done = self.config.trainer.steps, self.state.step
        share = self.clock.share(done, steps)
        return max(done, min(steps, round(done / share))) if share and done else steps


def scored_classes(task: Task) -> tuple[str, ...]:
    """Names of what is scored, without background."""
    return tuple(name for name in task.score_names if name != "background")
