"""What ``summary.json`` says about a training."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from lamella.core.errors import LamellaError
    from lamella.training.result import Result
    from lamella.training.session import Session

__all__ = ["summarise"]


def summarise(
    session: Session,
    state: str,
    *,
    device: str,
    warnings: Sequence[str] = (),
    result: Result | None = None,
    problem: LamellaError | None = None,
) -> dict[str, Any]:
    """The document.

    Args:
        session: of the training.
        state: ``running``, ``writing``, ``finished``, ``stopped`` or ``failed``.
        device: it ran on.
        warnings: what a person should hear.
        result: the model, once there is one.
        problem: why it did not finish.
    """
    config, loop, history = session.config, session.state, session.history
    best = loop.best[0] if loop.best else None
    at_best = next((row for row in history.validations if best and row.step == best[1]), None)
    document: dict[str, Any] = {
        "format_version": 1,
        "state": state,
        "model": config.model.id,
        "steps": loop.step,
        "steps_planned": config.trainer.steps,
        "ended_by": loop.stop_reason or None,
        "best_score": best and best[0],
        "best_step": best and best[1],
        "score_name": "mean IoU on the validation data",
        "class_scores": {} if at_best is None else dict(at_best.classes),
        "last_validation": {name: asdict(one) for name, one in session.scores.items()},
        "training_loss": history.rows[-1].loss if history.rows else None,
        "validation_loss": at_best.validation_loss if at_best else None,
        "time_s": round(session.clock.elapsed_s, 2),
        "step_s": loop.train_s / loop.step if loop.step and loop.train_s else None,
        "data_time_share": loop.data_share,
        "device": device,
        "precision": config.trainer.precision,
        "n_threads": torch.get_num_threads(),
        "peak_memory_bytes": _peak_memory(),
        "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
        # With a time limit the number of steps depends on the machine.
        "is_reproducible": config.trainer.minutes is None and device == "cpu",
        "warnings": list(warnings),
    }
    if result is not None:
        document["model_folder"] = str(result.folder.path)
        document["result_scores"] = result.scores
    if problem is not None:
        document["problem"] = {
            "code": problem.code, "message": problem.message, "hint": problem.hint,
        }  # fmt: skip
    return _finite(document)


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Bytes on macOS, kilobytes elsewhere.
    return peak if sys.platform == "darwin" else peak * 1024


def _finite(value: Any) -> Any:
    """Numbers as JSON has them: what is none becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if hasattr(value, "items"):
        return {str(key): _finite(each) for key, each in value.items()}
    return value
