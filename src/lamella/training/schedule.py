"""How the learning rate changes over a training.

The rate is a function of the share of the training that is done, not of what happened before: a
resumed training needs no memory of it, and one with a time limit comes down in time.

Examples:
    >>> config = ScheduleConfig(kind="cosine", warmup_fraction=0.1)
    >>> [round(factor_at(config, share, 0.01), 2) for share in (0.0, 0.05, 0.1, 0.55, 1.0)]
    [0.1, 0.6, 1.0, 0.5, 0.0]
"""

from __future__ import annotations

import math

from lamella.training.configuration import ScheduleConfig

__all__ = ["factor_at"]


def factor_at(config: ScheduleConfig, share: float, step_share: float = 0.0) -> float:
    """Learning rate as a fraction of its peak.

    Args:
        config: kind of schedule.
        share: of the training that is done, 0..1.
        step_share: what one step adds to it; the first step already moves.
    """
    warmup = config.warmup_fraction
    if share < warmup:
        return min(1.0, (share + step_share) / warmup)
    done = min(1.0, (share - warmup) / max(1e-9, 1.0 - warmup))
    if config.kind == "constant":
        return 1.0
    low = config.final_fraction
    if config.kind == "poly":
        return low + (1 - low) * (1 - done) ** config.power
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done))
