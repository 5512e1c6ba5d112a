"""A plain training loop for semantic networks, 2-D and 3-D, that the shipped recipes use.

Loss: cross-entropy plus soft Dice (Milletari et al. 2016; the sum as in Isensee et al. 2021).
Optimiser: AdamW (Loshchilov & Hutter 2019) under one cosine with a linear warm-up. The weights
returned are an exponential moving average, which on small data is worth a longer training.

Same seed, same machine, same number of threads: same weights.

Example:
    >>> import numpy as np, torch
    >>> def draw(rng, n):
    ...     images = rng.normal(size=(n, 1, 8, 8)).astype(np.float32)
    ...     return images, (images[:, 0] > 0).astype(np.int64)
    >>> log = train(torch.nn.Conv2d(1, 2, 1), draw, LoopOptions(n_steps=60, learning_rate=0.1))
    >>> log.n_steps, log.losses[-1] < log.losses[0]
    (60, True)
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from torch.nn import functional

from lamella.core.errors import InputError
from lamella.core.progress import Progress, SilentSink

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lamella.core.progress import ProgressSink

__all__ = ["DrawBatch", "LoopOptions", "TrainingLog", "segmentation_loss", "train"]


class DrawBatch(Protocol):
    """Draws a training batch.

    Contract:
        * all randomness comes from ``rng``, so that a seed fixes the whole training;
        * returns images, float32 (n, c, *spatial), and labels, integer (n, *spatial): class values
          0..k-1, or the ignore label.
    """

    def __call__(
        self, rng: np.random.Generator, n: int, /
    ) -> tuple[NDArray[np.float32], NDArray[np.integer]]:
        """Draw ``n`` patches."""
        ...


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """How to train.

    Attributes:
        n_steps: optimiser steps.
        batch_size: patches per step.
        learning_rate: its peak.
        weight_decay: of AdamW, on weights of two and more axes only.
        warmup_fraction: share of the steps in which the learning rate rises linearly.
        ema_decay: of the moving average; it starts lower and reaches this value as steps go by.
        class_weights: of the cross-entropy, one per class; None: all one.
        dice_weight: weight of the soft Dice term beside the cross-entropy.
        ignore_label: label value left out of the loss.
        precision: ``"bf16"`` runs the forward pass under autocast.
        max_gradient_norm: gradients are scaled down to this norm.
        seed: of weights' noise (dropout) and of the batches drawn.
    """

    n_steps: int
    batch_size: int = 2
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    warmup_fraction: float = 0.05
    ema_decay: float = 0.995
    class_weights: tuple[float, ...] | None = None
    dice_weight: float = 1.0
    ignore_label: int | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    max_gradient_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_steps < 1 or self.batch_size < 1:
            raise InputError(
                f"n_steps and batch_size must be at least 1, got {self.n_steps} and"
                f" {self.batch_size}"
            )
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"ema_decay must lie in 0..1 (1 excluded), got {self.ema_decay}")


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """What happened: the loss of every step."""

    losses: tuple[float, ...]

    @property
    def n_steps(self) -> int:
        """Steps made."""
        return len(self.losses)


def segmentation_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    class_weights: torch.Tensor | None = None,
    dice_weight: float = 1.0,
    ignore_label: int | None = None,
) -> torch.Tensor:
    """Cross-entropy plus soft Dice over the foreground classes.

    Args:
        logits: float, (n, k, *spatial).
        labels: int64, (n, *spatial), values 0..k-1 or ``ignore_label``.
        class_weights: float, (k,).
        dice_weight: weight of the Dice term; 0 leaves it out.
        ignore_label: voxels with this label count nowhere.

    Returns:
        Scalar loss; 0 where every voxel is ignored.
    """
    logits = logits.float()
    known = torch.ones_like(labels, dtype=torch.bool)
    if ignore_label is not None:
        known = labels != ignore_label
    safe = torch.where(known, labels, torch.zeros_like(labels))
    per_voxel = functional.cross_entropy(logits, safe, weight=class_weights, reduction="none")
    loss = (per_voxel * known).sum() / known.sum().clamp(min=1)
    if dice_weight == 0:
        return loss
    probabilities = logits.softmax(1)
    overlap, size = [], []
    for value in range(1, logits.shape[1]):
        reference = ((safe == value) & known).float()
        probability = probabilities[:, value] * known
        # Over the whole batch: a patch without a class would otherwise give a Dice of noise.
        overlap.append((probability * reference).sum())
        size.append(probability.sum() + reference.sum())
    dice = (2 * torch.stack(overlap) + 1.0) / (torch.stack(size) + 1.0)
    return loss + dice_weight * (1 - dice.mean())


def train(
    network: torch.nn.Module,
    draw: DrawBatch,
    options: LoopOptions,
    *,
    sink: ProgressSink | None = None,
    on_step: Callable[[int, float, torch.nn.Module], None] | None = None,
) -> TrainingLog:
    """Train ``network`` in place; it ends with the averaged weights, in evaluation mode.

    Args:
        network: input float32 (n, c, *spatial), output logits (n, k, *spatial).
        draw: gives batches.
        options: how to train.
        sink: hears of every step and may cancel between two.
        on_step: called after every step with the steps done, the loss and the averaged network (in
            evaluation mode), to score or keep it on the way.

    Raises:
        RunCancelledError: ``sink`` asked to stop.
        InputError: the loss became NaN or infinite.
    """
    sink = sink or SilentSink()
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    device = next(network.parameters()).device
    optimiser = _optimiser(network, options)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _cosine(step, options))
    weights = options.class_weights
    class_weights = None if weights is None else torch.tensor(weights, device=device)
    averaged = copy.deepcopy(network).eval().requires_grad_(False)
    network.train()
    losses: list[float] = []
    for step in range(options.n_steps):
        sink.check()
        images, labels = draw(rng, options.batch_size)
        batch = torch.from_numpy(images).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
            logits = network(batch)
        loss = segmentation_loss(
            logits,
            torch.from_numpy(labels.astype(np.int64)).to(device),
            class_weights=class_weights,
            dice_weight=options.dice_weight,
            ignore_label=options.ignore_label,
        )
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise InputError(
                f"the loss became {losses[-1]} at step {step + 1}",
                hint="lower the learning rate, and look for NaN in the images",
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), options.max_gradient_norm)
        optimiser.step()
        schedule.step()
        _average(averaged, network, min(options.ema_decay, (1 + step) / (10 + step)))
        sink.emit(Progress("training", step + 1, options.n_steps, "steps"))
        if on_step is not None:
            on_step(step + 1, losses[-1], averaged)
    network.load_state_dict(averaged.state_dict())
    network.eval()
    return TrainingLog(tuple(losses))


def _optimiser(network: torch.nn.Module, options: LoopOptions) -> torch.optim.Optimizer:
    decayed = [p for p in network.parameters() if p.requires_grad and p.ndim >= 2]
    free = [p for p in network.parameters() if p.requires_grad and p.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate)


def _cosine(step: int, options: LoopOptions) -> float:
    n_warmup = max(1, round(options.warmup_fraction * options.n_steps))
    if step < n_warmup:
        return (step + 1) / n_warmup
    done = (step - n_warmup) / max(1, options.n_steps - n_warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@torch.no_grad()
def _average(averaged: torch.nn.Module, network: torch.nn.Module, decay: float) -> None:
    # Buffers too: the running statistics of batch normalisation belong to the weights beside them.
    current = network.state_dict()
    for name, value in averaged.state_dict().items():
        if value.is_floating_point():
            value.lerp_(current[name], 1 - decay)
        else:
            value.copy_(current[name])
