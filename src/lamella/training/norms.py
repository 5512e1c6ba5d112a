"""Batch normalisations of a network that a training starts from, made fit to be trained on.

A model folder keeps each batch normalisation folded into the convolution before it: scale in the
weights, mean 0, variance 1 (:func:`lamella.models.export.fold_batch_norms`). Inference computes
the same with it. A training does not: it normalises by the statistics of its batches, and with the
scale gone from where it is applied the network would be another one than what it starts from.

The scale can be had back from data. With ``m`` and ``v`` the mean and the variance of what enters a
folded normalisation, running mean ``m``, running variance ``v``, weight ``sqrt(v + eps)`` and a
bias larger by ``m`` compute the same in inference, and in training as nearly as a batch resembles
those that were measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lamella.training.configuration import TrainConfig
    from lamella.training.patches import PatchDataset

__all__ = ["folded_norms", "unfold_norms", "unfold_start"]

_N_BATCHES = 8
"""That are measured: the first of the training."""


def unfold_start(network: nn.Module, config: TrainConfig, dataset: PatchDataset) -> None:
    """Make the network of a training's first step compute what the model it starts from does.

    Args:
        network: on the CPU, with the weights of ``config.network.start`` where that names a model.
        config: of the training.
        dataset: its patches.

    Raises:
        LamellaError: a patch that cannot be drawn.
    """

    def batches() -> Iterator[torch.Tensor]:
        size = config.trainer.batch_size
        for first in range(0, _N_BATCHES * size, size):
            yield torch.stack([dataset[first + i]["image"] for i in range(size)])

    if config.network.start:
        unfold_norms(network, batches())


def folded_norms(network: nn.Module) -> list[_BatchNorm]:
    """The batch normalisations that were trained, and folded since."""
    return [
        module
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.affine and _is_folded(module)
    ]


@torch.no_grad()
def unfold_norms(network: nn.Module, batches: Iterable[torch.Tensor]) -> int:
    """Measure what enters the folded normalisations, and give them statistics and scale back.

    Args:
        network: on the batches' device; changed in place. Its outputs in inference stay the same
            up to rounding.
        batches: of images, float32 (n, c, *spatial), of the size that is trained on; at least one.

    Returns:
        How many there were; without any no batch is taken.
    """
    norms = folded_norms(network)
    if not norms:
        return 0
    sums = {norm: torch.zeros(2, norm.num_features, dtype=torch.float64) for norm in norms}

    def measure(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        values = inputs[0]
        axes = [axis for axis in range(values.ndim) if axis != 1]
        variance, mean = torch.var_mean(values, axes)
        sums[norm] += torch.stack([mean, variance]).cpu()

    was_training, n_batches = network.training, 0
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    network.eval()
    try:
        for batch in batches:
            network(batch)
            n_batches += 1
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    for norm in norms:
        mean, variance = (sums[norm] / n_batches).to(norm.weight.device)
        _unfold(norm, mean, variance)
    return len(norms)


def _is_folded(norm: _BatchNorm) -> bool:
    """Whether it scales nothing; one that is fresh has seen no batch."""
    mean, variance, seen = norm.running_mean, norm.running_var, norm.num_batches_tracked
    if mean is None or variance is None or seen is None or int(seen) == 0:
        return False
    return bool((mean == 0).all() and (variance == 1).all() and (norm.weight == 1).all())


def _unfold(norm: _BatchNorm, mean: torch.Tensor, variance: torch.Tensor) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    norm.bias.add_(mean * scale)
    norm.weight.copy_(scale * torch.sqrt(variance + norm.eps))
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
