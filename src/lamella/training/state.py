"""How far a training is: what a checkpoint keeps beside weights."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Clock", "LoopState"]

_RESERVE_FRACTION = 0.05
"""Of a time limit, left for the last validation and the result until they were measured."""
_MOST_RESERVE = 0.4


@dataclass(slots=True)
class LoopState:
    """Numbers that grow.

    Attributes:
        step: optimiser steps done.
        epoch: validations done.
        train_s: time spent in steps.
        waited_s: of that, waiting for data.
        best: (score, step) of the checkpoints that are kept, best first.
        n_worse: validations since the best one.
        stop_reason: why it ended: ``steps``, ``time``, ``patience``; empty while it goes on.
    """

    step: int = 0
    epoch: int = 0
    train_s: float = 0.0
    waited_s: float = 0.0
    best: list[tuple[float, int]] = field(default_factory=list)
    n_worse: int = 0
    stop_reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "best": [list(pair) for pair in self.best]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LoopState:
        """The state that :meth:`to_dict` gave."""
        best = [(float(score), int(step)) for score, step in values["best"]]
        return cls(**{**values, "best": best})

    @property
    def data_share(self) -> float:
        """Share of the time in steps that was waited for data; nan before the second step."""
        return self.waited_s / self.train_s if self.train_s > 0 else math.nan


@dataclass(slots=True)
class Clock:
    """Time since the start of a training, over all its sessions, and what a time limit leaves.

    Attributes:
        minutes: time limit; None for none.
        before_s: of earlier sessions, up to the checkpoint.
        validation_s: the last validation took.
        result_validations: what writing the result takes, in validations.
    """

    minutes: float | None = None
    before_s: float = 0.0
    validation_s: float | None = None
    result_validations: float = 4.0
    _began: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        """Since the start."""
        return self.before_s + time.monotonic() - self._began

    @property
    def budget_s(self) -> float | None:
        """Time for steps, so that the rest can still be done; None without a limit."""
        if self.minutes is None:
            return None
        limit = 60.0 * self.minutes
        reserve = _RESERVE_FRACTION * limit
        if self.validation_s is not None:
            reserve = self.validation_s * (1 + self.result_validations)
        return limit - min(reserve, _MOST_RESERVE * limit)

    def share(self, step: int, n_steps: int) -> float:
        """Share of the training that is done: by steps, or by time where that is further."""
        by_steps = step / n_steps
        budget = self.budget_s
        return by_steps if budget is None else max(by_steps, self.elapsed_s / max(1e-9, budget))
