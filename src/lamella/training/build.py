"""Network, loss and optimiser of a training, from its configuration.

The network's channels follow from the data and the task; everything else is in the configuration.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from lamella.core.errors import AxesError, InputError, ModelError
from lamella.models.store import find_model
from lamella.networks.pretrained import load_published
from lamella.networks.registry import build_network, find_network
from lamella.training.losses import DeepSupervision, build_loss

if TYPE_CHECKING:
    from torch import nn

    from lamella.core.places import Places
    from lamella.models.folder import ModelFolder
    from lamella.training.configuration import OptimiserConfig, TrainConfig
    from lamella.training.losses import Loss
    from lamella.training.source import PatchSource
    from lamella.training.task import Task

__all__ = ["build_optimiser", "build_training_loss", "build_training_network"]


def build_training_network(
    config: TrainConfig, source: PatchSource, task: Task, places: Places | None = None
) -> nn.Module:
    """The network, with fresh, published or a model's weights, in channels-last memory.

    Fresh weights follow from the configuration's seed.

    Args:
        config: network, and what it starts from.
        source: says how many channels images have.
        task: says how many outputs are wanted.
        places: of models to start from, beside the shipped ones.

    Raises:
        InputError: a network that lacks what the configuration asks of it.
        AxesError: a 2-D network for volumes or the other way round.
        ModelError: weights to start from that do not fit.
        DownloadError: published weights that could not be fetched.
    """
    descriptor = find_network(config.network.id)
    if descriptor.axes != source.info.axes:
        raise AxesError(
            f"network {config.network.id!r} takes axes {descriptor.axes!r}, the patches have"
            f" {source.info.axes!r}",
            hint="choose another piece: network=..., or a patch of 2 (images) or 3 (volumes)"
            " numbers",
        )
    arguments: dict[str, Any] = {
        **config.network.arguments,
        "in_channels": source.info.n_channels,
        "out_channels": task.n_outputs,
    }
    if config.loss.deep_supervision:
        fields = {field.name for field in dataclasses.fields(descriptor.arguments)}
        if "deep_supervision" not in fields:
            raise InputError(
                f"network {config.network.id!r} has no outputs at coarser scales",
                hint="use dynunet or a MedNeXt, or loss.deep_supervision=false",
            )
        arguments["deep_supervision"] = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = build_network(config.network.id, arguments)
    if config.network.pretrained:
        load_published(network, config.network.id, arguments)
    if config.network.start:
        _load_start(network, find_model(config.network.start, places))
    layout = torch.channels_last if descriptor.axes == "yx" else torch.channels_last_3d
    return network.to(memory_format=layout)


def build_training_loss(config: TrainConfig, task: Task) -> Loss:
    """The weighted sum of losses; the task's own where the configuration names none.

    Raises:
        InputError: a loss or an argument that does not exist, or class weights that do not fit.
    """
    terms = []
    weights = config.loss.class_weights
    for term in config.loss.terms or task.default_loss:
        words: dict[str, Any] = {"name": term.name, "weight": term.weight, **term.arguments}
        if term.channels is not None:
            words["channels"] = term.channels
        if weights and term.name == "cross_entropy":
            words.setdefault("class_weights", weights)
        terms.append(words)
    if weights and len(weights) != task.n_outputs:
        raise InputError(
            f"loss.class_weights has {len(weights)} numbers, the network {task.n_outputs} outputs",
            hint="give one a class, background first",
        )
    if weights and not any(words["name"] == "cross_entropy" for words in terms):
        raise InputError(
            "loss.class_weights belongs to cross_entropy, which is no term of the loss",
            hint="add it: loss=dice_cross_entropy, or leave the weights out",
        )
    loss = build_loss(terms)
    return DeepSupervision(loss) if config.loss.deep_supervision else loss


def build_optimiser(network: nn.Module, config: OptimiserConfig) -> torch.optim.Optimizer:
    """The optimiser; weights with two and more axes decay, biases and scales do not."""
    learnt = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learnt if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in learnt if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.kind == "sgd":
        has_momentum = config.momentum > 0
        return torch.optim.SGD(
            groups, lr=config.learning_rate, momentum=config.momentum, nesterov=has_momentum
        )
    if config.kind == "radam":
        return torch.optim.RAdam(groups, lr=config.learning_rate, decoupled_weight_decay=True)
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def _load_start(network: nn.Module, folder: ModelFolder) -> None:
    """Take every weight from a model that fits; heads for other classes stay fresh."""
    from safetensors.torch import load_file

    given = load_file(folder.weights_path)
    own = network.state_dict()
    fitting = {
        name: value.to(own[name].dtype)
        for name, value in given.items()
        if name in own and own[name].shape == value.shape
    }
    if len(fitting) < len(own) / 2:
        raise ModelError(
            f"network.start: {len(fitting)} of {len(own)} weights of {folder.path} fit here",
            hint=f"it was made with network {folder.card.network.id!r} and"
            f" {folder.card.network.arguments}: use the same",
        )
    network.load_state_dict({**own, **fitting})
