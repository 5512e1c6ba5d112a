"""Losses, every one of which leaves voxels alone that nobody annotated.

A loss maps logits (n, k, *spatial) and a :class:`~lamella.training.target.Target` to a scalar. What
holds for all of them (and is tested for all of them):

* the value does not depend on logits where the target is not valid, and the gradient there is
  exactly zero;
* with nothing valid the value is zero, not NaN;
* half-precision logits are computed in float32.

=================  ================================================================
cross_entropy      softmax, optionally weighted by class and label-smoothed
bce                sigmoid, one channel a class; ``positive_weight`` for rare ones
focal              sigmoid or softmax focal loss (Lin et al. 2017)
dice               1 - soft Dice over the batch, per class (Milletari et al. 2016)
tversky            soft Tversky: false positives and negatives weighted apart
                   (Salehi et al. 2017)
l1, mse            of quantities (distances, flows); ``activation`` first
=================  ================================================================
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch.nn import functional

from lamella.core.errors import InputError
from lamella.core.registry import nearest_names
from lamella.training.target import Target

__all__ = [
    "LOSSES",
    "DeepSupervision",
    "Loss",
    "Weighted",
    "bce",
    "build_loss",
    "cross_entropy",
    "dice",
    "focal",
    "l1",
    "mse",
    "tversky",
]

Loss = Callable[[torch.Tensor, Target], torch.Tensor]
Activation = Literal["softmax", "sigmoid", "none"]


def cross_entropy(
    logits: torch.Tensor,
    target: Target,
    *,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Mean cross-entropy of softmax outputs over valid voxels.

    With class weights the mean is weighted too, as in PyTorch.
    """
    _need_classes("cross_entropy", target)
    logits = _safe(logits, target.valid[:, None])
    weights = None
    per_voxel_weight = target.valid.float()
    if class_weights is not None:
        weights = torch.tensor(class_weights, dtype=torch.float32, device=logits.device)
        per_voxel_weight = per_voxel_weight * weights[target.values]
    per_voxel = functional.cross_entropy(
        logits, target.values, weight=weights, reduction="none", label_smoothing=label_smoothing
    )
    total = (per_voxel * target.valid).sum()
    return total / per_voxel_weight.sum().clamp(min=torch.finfo(torch.float32).tiny)


def bce(
    logits: torch.Tensor, target: Target, *, positive_weight: Sequence[float] | float | None = None
) -> torch.Tensor:
    """Mean binary cross-entropy of sigmoid outputs over valid values."""
    target = target.as_channels(logits.shape[1])
    logits = _safe(logits, target.valid)
    weight = None
    if positive_weight is not None:
        weight = torch.as_tensor(positive_weight, dtype=torch.float32, device=logits.device)
        weight = weight.reshape(-1, *([1] * (logits.ndim - 2))) if weight.ndim else weight
    values = functional.binary_cross_entropy_with_logits(
        logits, target.values, pos_weight=weight, reduction="none"
    )
    return _mean(values, target.valid)


def focal(
    logits: torch.Tensor,
    target: Target,
    *,
    gamma: float = 2.0,
    activation: Activation = "softmax",
) -> torch.Tensor:
    """Cross-entropy times (1 - p)^gamma, p the probability of the right answer; gamma 0 = plain."""
    if activation == "softmax":
        _need_classes("focal with softmax", target)
        logits = _safe(logits, target.valid[:, None])
        log_p = functional.log_softmax(logits, 1).gather(1, target.values[:, None])[:, 0]
        valid = target.valid
    else:
        target = target.as_channels(logits.shape[1])
        valid = target.valid
        logits = _safe(logits, valid)
        log_p = functional.logsigmoid(torch.where(target.values > 0.5, logits, -logits))
    return _mean(-((1 - log_p.exp()) ** gamma) * log_p, valid)


def dice(
    logits: torch.Tensor,
    target: Target,
    *,
    activation: Activation = "softmax",
    include_background: bool = False,
    smooth: float = 1.0,
) -> torch.Tensor:
    """1 - soft Dice, the mean over classes that are valid somewhere in the batch.

    Overlap and sizes are summed over the whole batch: a patch without a class would otherwise give
    a Dice of noise.
    """
    return tversky(
        logits,
        target,
        alpha=0.5,
        beta=0.5,
        activation=activation,
        include_background=include_background,
        # Dice is (2 o + s) / (p + t + s), Tversky at one half (o + s') / ((p + t) / 2 + s').
        smooth=smooth / 2,
    )


def tversky(
    logits: torch.Tensor,
    target: Target,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    activation: Activation = "softmax",
    include_background: bool = False,
    smooth: float = 1.0,
) -> torch.Tensor:
    """1 - TP / (TP + alpha FP + beta FN), soft, the mean over classes valid in the batch.

    Args:
        logits: (n, k, *spatial).
        target: classes or channels.
        alpha: weight of false positives.
        beta: weight of false negatives; above ``alpha`` it favours recall.
        activation: makes probabilities of logits.
        include_background: whether output 0 of a softmax counts too.
        smooth: keeps the ratio of small classes from jumping, voxels.
    """
    channels = target.as_channels(logits.shape[1])
    # Of a softmax every output of a voxel moves every probability.
    probabilities = _activate(_safe(logits, channels.valid), activation)
    probabilities = torch.where(channels.valid, probabilities, 0.0)
    values, valid = torch.where(channels.valid, channels.values, 0.0), channels.valid
    if activation == "softmax" and not include_background and logits.shape[1] > 1:
        probabilities, values, valid = probabilities[:, 1:], values[:, 1:], valid[:, 1:]
    axes = (0, *range(2, logits.ndim))
    overlap = (probabilities * values).sum(axes)
    false_positives = probabilities.sum(axes) - overlap
    false_negatives = values.sum(axes) - overlap
    ratio = (overlap + smooth) / (
        overlap + alpha * false_positives + beta * false_negatives + smooth
    )
    is_known = valid.any(dim=0).flatten(1).any(dim=1)
    return torch.where(is_known, 1 - ratio, 0.0).sum() / is_known.sum().clamp(min=1)


def l1(logits: torch.Tensor, target: Target, *, activation: Activation = "none") -> torch.Tensor:
    """Mean absolute difference over valid values."""
    target = target.as_channels(logits.shape[1])
    outputs = _activate(_safe(logits, target.valid), activation)
    return _mean((outputs - target.values).abs(), target.valid)


def mse(logits: torch.Tensor, target: Target, *, activation: Activation = "none") -> torch.Tensor:
    """Mean squared difference over valid values."""
    target = target.as_channels(logits.shape[1])
    outputs = _activate(_safe(logits, target.valid), activation)
    return _mean((outputs - target.values) ** 2, target.valid)


class Weighted:
    """A weighted sum of losses, each on all outputs or on some channels.

    Args:
        terms: name → (loss, weight, channels); ``None`` channels = all.
    """

    def __init__(self, terms: Mapping[str, tuple[Loss, float, tuple[int, ...] | None]]) -> None:
        if not terms:
            raise InputError("a weighted loss has no terms", hint="name at least one loss")
        self._terms = dict(terms)

    def __call__(self, logits: torch.Tensor, target: Target) -> torch.Tensor:
        """The sum."""
        total = logits.new_zeros((), dtype=torch.float32)
        for value in self.parts(logits, target).values():
            total = total + value
        return total

    def parts(self, logits: torch.Tensor, target: Target) -> dict[str, torch.Tensor]:
        """Every term, weighted, by name."""
        parts = {}
        for name, (loss, weight, channels) in self._terms.items():
            if channels is None:
                parts[name] = weight * loss(logits, target)
                continue
            chosen = list(channels)
            whole = target.as_channels(logits.shape[1])
            part = Target(whole.values[:, chosen], whole.valid[:, chosen], False)
            parts[name] = weight * loss(logits[:, chosen], part)
        return parts


class DeepSupervision:
    """A loss on outputs at several scales, weighted 1, 1/2, 1/4, ... (Isensee et al. 2021).

    Targets of coarser outputs are the nearest voxels of the finest, as nnU-Net takes them: labels
    are never averaged, and neither are masks.

    Args:
        loss: of one scale.
    """

    def __init__(self, loss: Loss) -> None:
        self._loss = loss

    def __call__(
        self, outputs: torch.Tensor | Sequence[torch.Tensor], target: Target
    ) -> torch.Tensor:
        """The loss over all scales; of a single output just the loss."""
        scales = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
        weights = [0.5**i for i in range(len(scales))]
        total = scales[0].new_zeros((), dtype=torch.float32)
        for weight, logits in zip(weights, scales, strict=True):
            total = total + weight * self._loss(logits, _resized(target, logits.shape[2:]))
        return total / sum(weights)


LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "cross_entropy": cross_entropy,
    "bce": bce,
    "focal": focal,
    "dice": dice,
    "tversky": tversky,
    "l1": l1,
    "mse": mse,
}
"""Losses by the name a configuration gives them."""


def build_loss(terms: Sequence[Mapping[str, Any]]) -> Weighted:
    """A weighted loss from a configuration.

    Args:
        terms: each with ``name``, and perhaps ``weight`` (1), ``channels`` and arguments of the
            loss.

    Raises:
        InputError: for a loss or an argument that does not exist.

    Examples:
        >>> build_loss([{"name": "cross_entropy"}, {"name": "dice", "weight": 0.5}]) is not None
        True
    """
    built: dict[str, tuple[Loss, float, tuple[int, ...] | None]] = {}
    for number, term in enumerate(terms):
        words = dict(term)
        name = str(words.pop("name", ""))
        if name not in LOSSES:
            near = nearest_names(name, LOSSES)
            raise InputError(
                f"there is no loss {name!r}",
                hint=(f"did you mean {near[0]}? " if near else "")
                + f"losses are: {', '.join(LOSSES)}",
            )
        weight = float(words.pop("weight", 1.0))
        channels = words.pop("channels", None)
        built[name if name not in built else f"{name}_{number}"] = (
            _bound(name, words),
            weight,
            None if channels is None else tuple(int(c) for c in channels),
        )
    return Weighted(built)


def _bound(name: str, words: dict[str, Any]) -> Loss:
    function = LOSSES[name]
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY]
    unknown = sorted(set(words) - set(known))
    if unknown:
        raise InputError(
            f"the loss {name!r} takes no {', '.join(unknown)}",
            hint=f"it takes {', '.join(known)}" if known else "it takes no arguments",
        )
    return functools.partial(function, **words)


def _safe(logits: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Logits in float32, those that nobody may look at replaced: not even NaN passes through."""
    return torch.where(valid.expand_as(logits), logits.float(), 0.0)


def _mean(values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    return torch.where(valid, values, 0.0).sum() / valid.sum().clamp(min=1)


def _activate(logits: torch.Tensor, activation: Activation) -> torch.Tensor:
    if activation == "softmax":
        return logits.softmax(1)
    return logits.sigmoid() if activation == "sigmoid" else logits


def _need_classes(name: str, target: Target) -> None:
    if not target.is_classes:
        raise InputError(
            f"{name} wants one class a voxel, the target has channels",
            hint="use bce or focal with activation: sigmoid for classes that overlap",
        )


def _resized(target: Target, shape: torch.Size) -> Target:
    if target.values.shape[-len(shape) :] == shape:
        return target
    values = target.values if not target.is_classes else target.values[:, None]
    valid = target.valid if not target.is_classes else target.valid[:, None]
    small = functional.interpolate(values.float(), size=tuple(shape), mode="nearest")
    small_valid = functional.interpolate(valid.float(), size=tuple(shape), mode="nearest") > 0.5
    if not target.is_classes:
        return Target(small, small_valid, False)
    return Target(small[:, 0].long(), small_valid[:, 0], True)
