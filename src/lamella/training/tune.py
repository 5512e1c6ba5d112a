"""Two short trials before a long training: which learning rate, and whether anything is learnt.

* :func:`find_learning_rate` raises the rate from step to step until the loss grows, and suggests
  the one at which it fell fastest (Smith 2017, "Cyclical learning rates for training neural
  networks").
* :func:`overfit_one_batch` learns one batch by heart. A network that cannot do that has a wrong
  loss, a wrong target or a wrong learning rate, and would not learn a data set either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lamella.core.errors import InputError
from lamella.core.progress import Progress, SilentSink
from lamella.training.build import build_optimiser, build_training_loss, build_training_network
from lamella.training.checking import augment_options
from lamella.training.chunk_order import PatchOrder
from lamella.training.metrics import ConfusionCounts
from lamella.training.norms import unfold_start
from lamella.training.patches import PatchDataset, PatchNumbers, make_loader
from lamella.training.trainer import choose_devices, quiet, settled
from lamella.training.validation import autocast_of, to_device

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lamella.training.configuration import TrainConfig
    from lamella.training.source import PatchSource
    from lamella.training.task import Task
    from lamella.wire.event import EventSink

__all__ = [
    "LearningRates",
    "Overfitting",
    "draw_learning_rates",
    "find_learning_rate",
    "overfit_one_batch",
    "suggest_rate",
]

_LOWEST, _HIGHEST = 1e-6, 1.0
_DIVERGED = 4.0
"""A smoothed loss this many times its smallest ends the search."""
_SMOOTHING = 0.9
_LEARNT_FRACTION = 0.1
_LEARNT_SCORE = 0.9
_TRIED_BATCHES = 8


@dataclass(frozen=True, slots=True)
class LearningRates:
    """Losses over learning rates.

    Attributes:
        rates: tried, rising.
        losses: at each.
        suggestion: None where the loss never fell.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float | None


@dataclass(frozen=True, slots=True)
class Overfitting:
    """How a batch was learnt by heart.

    Attributes:
        losses: of every step.
        scores: IoU of each class in that batch at the end; nan for one that is not in it.
        can_learn: whether it worked.
    """

    losses: tuple[float, ...]
    scores: dict[str, float]
    can_learn: bool


class _Trial:
    """Network, loss, optimiser and batches of a short trial, on one device."""

    def __init__(
        self, config: TrainConfig, source: PatchSource, task: Task, *, augments: bool
    ) -> None:
        self.config, self.task = config, task
        self.device = torch.device(choose_devices(config).kind)
        network = build_training_network(config, source, task)
        self.loss = build_training_loss(config, task)
        spacing = source.info.spacing
        n_axes = len(source.info.axes)
        self.dataset = PatchDataset(
            source,
            task,
            PatchOrder(seed=config.seed, batch=config.trainer.batch_size),
            tuple(config.trainer.patch),
            augment_options(config) if augments and config.augmentation.enabled else None,
            None if spacing is None else tuple(spacing.values[-n_axes:]),
        )
        unfold_start(network, config, self.dataset)
        self.network = network.to(self.device).train()
        self.optimiser = build_optimiser(self.network, config.optimiser)

    def batches(self, n: int) -> Iterator[dict[str, Any]]:
        trainer = self.config.trainer
        numbers = PatchNumbers(n * trainer.batch_size)
        yield from make_loader(
            self.dataset, numbers, batch_size=trainer.batch_size, workers=trainer.workers
        )

    def outputs(self, batch: dict[str, Any]) -> Any:
        # Half precision would need its gradients scaled; for a trial full precision will do.
        precision = self.config.trainer.precision
        with autocast_of(self.device, "fp32" if precision == "fp16" else precision):
            outputs = self.network(to_device(batch["image"], self.device))
        return outputs if isinstance(outputs, torch.Tensor) else list(outputs)

    def target(self, batch: dict[str, Any]) -> Any:
        return self.task.target(batch["values"].to(self.device), batch["valid"].to(self.device))

    def step(self, batch: dict[str, Any], rate: float) -> float:
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        loss = self.loss(self.outputs(batch), self.target(batch))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        most = self.config.optimiser.max_gradient_norm or float("inf")
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), most)
        self.optimiser.step()
        return float(loss.detach())


def find_learning_rate(
    config: TrainConfig,
    source: PatchSource,
    task: Task,
    *,
    n_steps: int = 100,
    sink: EventSink | None = None,
) -> LearningRates:
    """Raise the learning rate over some steps and suggest one.

    Args:
        config: of the training; nothing of it is changed.
        source: of patches.
        task: what is learnt.
        n_steps: rates that are tried, evenly spaced in their logarithm.
        sink: progress and cancellation.
    """
    sink = sink or SilentSink()
    if n_steps < 10:
        raise InputError(f"{n_steps} steps are too few to find a learning rate", hint="use 100")
    rates = [float(rate) for rate in np.geomspace(_LOWEST, _HIGHEST, n_steps)]
    losses: list[float] = []
    with quiet(), settled(config, choose_devices(config)):
        torch.manual_seed(config.seed)
        trial = _Trial(config, source, task, augments=True)
        for rate, batch in zip(rates, trial.batches(n_steps), strict=True):
            sink.check()
            losses.append(trial.step(batch, rate))
            sink.emit(Progress("learning rates", len(losses), n_steps, "steps"))
            if _has_diverged(losses):
                break
    tried = tuple(rates[: len(losses)])
    return LearningRates(tried, tuple(losses), suggest_rate(tried, losses))


def suggest_rate(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """The rate at which the smoothed loss fell fastest, at most a third of the best one.

    Examples:
        >>> rates = [10.0 ** (-6 + 0.1 * i) for i in range(60)]
        >>> losses = [1 / (1 + (1000 * r) ** 2) + (10 * r) ** 2 for r in rates]
        >>> 1e-4 < suggest_rate(rates, losses) < 1e-2
        True
        >>> suggest_rate(rates, [1.0] * 60) is None
        True
    """
    smooth = _smoothed([loss for loss in losses if math.isfinite(loss)])
    lowest = int(np.argmin(smooth))
    first = len(smooth) // 20
    if lowest <= first + 2 or smooth[lowest] > 0.98 * smooth[first]:
        return None
    # The slope over several steps: single batches are noise.
    width = max(2, len(smooth) // 20)
    slopes = [smooth[i + width] - smooth[i] for i in range(first, max(first + 1, lowest - width))]
    steepest = first + int(np.argmin(slopes)) + width // 2
    return float(min(rates[steepest], rates[lowest] / 3))


def draw_learning_rates(found: LearningRates) -> bytes:
    """A picture of losses over rates, PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(found.rates, found.losses, color="#8C8C8C", alpha=0.45, linewidth=1)
    smooth = _smoothed(found.losses)
    axes.plot(found.rates[: len(smooth)], smooth, color="#0072B2", linewidth=2.2)
    if found.suggestion is not None:
        axes.axvline(found.suggestion, color="#D55E00", linewidth=2, linestyle="--")
        axes.annotate(
            f" suggested: {found.suggestion:.1e}",
            (found.suggestion, 0.97), xycoords=("data", "axes fraction"), va="top",
            color="#D55E00", fontsize=12, fontweight="bold",
        )  # fmt: skip
    low, high = float(np.min(smooth)), float(smooth[0])
    axes.set_ylim(low - 0.1 * abs(high - low), high + 0.6 * abs(high - low) + 1e-6)
    axes.set_xscale("log")
    axes.set(xlabel="learning rate", ylabel="loss")
    axes.set_title("loss while the learning rate rises", loc="left", fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E3E3E3", linewidth=0.8)
    import io

    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110, facecolor="white")
    return picture.getvalue()


def overfit_one_batch(
    config: TrainConfig,
    source: PatchSource,
    task: Task,
    *,
    n_steps: int = 200,
    sink: EventSink | None = None,
) -> Overfitting:
    """Learn one batch by heart, not augmented.

    Args:
        config: of the training; nothing of it is changed.
        source: of patches; of the first batches, one with as many classes as possible is taken.
        task: what is learnt.
        n_steps: most steps; it ends earlier once the batch is learnt.
        sink: progress and cancellation.
    """
    sink = sink or SilentSink()
    losses: list[float] = []
    with quiet(), settled(config, choose_devices(config)):
        torch.manual_seed(config.seed)
        trial = _Trial(config, source, task, augments=False)
        batch = _richest(trial)
        for n_done in range(1, n_steps + 1):
            sink.check()
            losses.append(trial.step(batch, config.optimiser.learning_rate))
            sink.emit(Progress("one batch", n_done, n_steps, "steps"))
            if not math.isfinite(losses[-1]) or losses[-1] < 0.02 * losses[0]:
                break
        scores = _scores(trial, batch)
    end = float(np.mean(losses[-3:]))
    known = [value for value in scores.values() if not math.isnan(value)]
    is_learnt = end < _LEARNT_FRACTION * losses[0]
    is_right = bool(known) and min(known) >= _LEARNT_SCORE
    return Overfitting(tuple(losses), scores, math.isfinite(end) and (is_learnt or is_right))


def _richest(trial: _Trial) -> dict[str, Any]:
    """The batch with most of what is scored."""
    best: dict[str, Any] = {}
    most = -1
    for batch in trial.batches(_TRIED_BATCHES):
        counts = ConfusionCounts.zeros(len(trial.task.score_names))
        target = trial.task.scored(trial.task.target(batch["values"], batch["valid"]))
        values = target.values if target.is_classes else target.values > 0.5
        counts.add(values, target)
        n_present = sum(score.n_reference > 0 for score in counts.scores())
        if n_present > most:
            best, most = batch, n_present
        if n_present == len(trial.task.score_names):
            break
    return best


@torch.no_grad()
def _scores(trial: _Trial, batch: dict[str, Any]) -> dict[str, float]:
    outputs = trial.outputs(batch)
    logits = (outputs if isinstance(outputs, torch.Tensor) else outputs[0]).float()
    counts = ConfusionCounts.zeros(len(trial.task.score_names), trial.device)
    counts.add(trial.task.decide(logits), trial.task.scored(trial.target(batch)))
    scores = dict(zip(trial.task.score_names, counts.scores(), strict=True))
    return {
        name: score.iou if score.n_reference else math.nan
        for name, score in scores.items()
        if name != "background"
    }


def _has_diverged(losses: Sequence[float]) -> bool:
    if not math.isfinite(losses[-1]):
        return True
    smooth = _smoothed(losses)
    return len(losses) > 10 and bool(smooth[-1] > _DIVERGED * smooth.min())


def _smoothed(losses: Sequence[float]) -> NDArray[np.float64]:
    """Exponential mean, corrected for its start; ends before the first that is no number."""
    smooth, mean = [], 0.0
    for n, loss in enumerate(losses, start=1):
        if not math.isfinite(loss):
            break
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        smooth.append(mean / (1 - _SMOOTHING**n))
    return np.array(smooth or [math.nan])
