"""A network's numbers to files and back: safetensors, and an OpenVINO graph checked against torch.

OpenVINO folds a batch normalisation into the convolution before it. Folded weights are other
numbers than the ones stored, and rounding them would make the graph another network; so they are
folded here first, once, in a way that keeps the network's layout (:func:`fold_batch_norms`).
"""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from lamella.core.errors import ModelError
from lamella.core.optional import import_openvino, require
from lamella.networks.registry import build_network

if TYPE_CHECKING:
    from pathlib import Path

    from lamella.wire.card import ModelCard

__all__ = [
    "NoGraphError",
    "check_shape",
    "fold_batch_norms",
    "graph_difference",
    "load_weights",
    "round_to_half",
    "save_graph",
    "save_weights",
]

GRAPH_TOLERANCE = 1e-4
"""Greatest difference between graph and network, relative to the greatest logit (at least 1)."""

_HALF_MAX = 65504.0
_SMALLEST_CHECK = 32


class NoGraphError(ModelError):
    """A network that cannot be written as a graph for images of any size; it runs in PyTorch."""

    code = "no_graph"


@torch.no_grad()
def fold_batch_norms(network: nn.Module) -> int:
    """Fold batch normalisations into the convolutions before them, keeping the network's layout.

    Weights take the scale; the normalisation keeps its offset alone (weight 1, mean 0, variance 1),
    so that the state dict has the same names; a training gets the scale back from its data
    (:func:`lamella.training.norms.unfold_norms`). Only where a convolution without bias and its
    normalisation follow each other in an ``nn.Sequential``.

    Returns:
        How many were folded.
    """
    n_folded = 0
    for module in list(network.modules()):
        if not isinstance(module, nn.Sequential):
            continue
        for first, second in pairwise(module):
            if _is_foldable(first, second):
                _fold(first, second)
                n_folded += 1
    return n_folded


@torch.no_grad()
def round_to_half(network: nn.Module) -> None:
    """Fold batch normalisations, then round every float of the network to float16, in place.

    Raises:
        ModelError: a number that is not finite or beyond the range of float16.
    """
    fold_batch_norms(network)
    for name, value in network.state_dict().items():
        if not value.is_floating_point():
            continue
        largest = float(value.abs().max()) if value.numel() else 0.0
        if not largest <= _HALF_MAX:  # also catches NaN
            raise ModelError(
                f"weight {name!r} holds {largest:g}, which float16 cannot hold",
                hint="the training diverged, or the network's inputs are not normalised",
            )
        value.copy_(value.half().float())


def save_weights(network: nn.Module, card: ModelCard, path: Path, *, half: bool = True) -> None:
    """Write a network's state as safetensors, floats as float16 (float32 where not ``half``).

    Raises:
        ModelError: the state is not that of the network the card names.
    """
    safetensors = require("safetensors.torch", extra="torch", purpose="writing a model folder")
    state = network.state_dict()
    expected = build_network(card.network.id, card.network.arguments).state_dict()
    _check_state(state, expected, what=f"the network given for model {card.id!r}")
    # A clone each: MONAI registers some layers under two names, and the format shares no memory.
    kept = {
        name: (value.half() if half and value.is_floating_point() else value).contiguous().clone()
        for name, value in state.items()
    }
    safetensors.save_file(kept, str(path))


def load_weights(network: nn.Module, path: Path) -> None:
    """Fill a network with the weights of a model folder, as float32.

    Raises:
        ModelError: names or shapes that are not the network's, or an unreadable file.
    """
    safetensors = require("safetensors.torch", extra="torch", purpose="loading a model")
    from safetensors import SafetensorError

    try:
        state = safetensors.load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is no readable safetensors file: {error}") from None
    _check_state(state, network.state_dict(), what=str(path))
    network.load_state_dict(
        {
            name: value.float() if value.is_floating_point() else value
            for name, value in state.items()
        }
    )


def save_graph(network: nn.Module, card: ModelCard, path: Path, *, half: bool = True) -> None:
    """Write a network as an OpenVINO graph, ``path`` and a ``.bin`` beside it, and check it.

    Numbers are stored as float16 where ``half``. Where OpenVINO merges constants so that they no
    longer are float16 numbers, they are stored as float32 instead.

    Raises:
        NoGraphError: OpenVINO cannot convert a layer, or the graph holds for one size only.
        ModelError: the graph computes something else than the network.
    """
    openvino = import_openvino()
    n_spatial = len(card.axes)
    example = torch.zeros((1, card.n_channels, *check_shape(card)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer warns of every shape turned into a number
            graph = openvino.convert_model(
                network, example_input=example, input=[-1, card.n_channels] + [-1] * n_spatial
            )
    except Exception as error:  # the tracer and the converter raise anything
        raise NoGraphError(
            f"OpenVINO cannot convert the network of model {card.id!r}: {_first_line(error)}",
            hint="it runs in PyTorch",
        ) from error
    difference = float("inf")
    for is_half in (True, False) if half else (False,):
        openvino.save_model(graph, path, compress_to_fp16=is_half)
        difference = graph_difference(network, card, path)
        if difference <= GRAPH_TOLERANCE:
            _check_other_size(network, card, path)
            return
    raise ModelError(
        f"the OpenVINO graph of model {card.id!r} differs from its network by {difference:.2g}"
        f" (relative to the greatest logit; {GRAPH_TOLERANCE:g} is allowed)",
        hint="a layer of this network does not convert; use another network",
    )


def _check_other_size(network: nn.Module, card: ModelCard, path: Path) -> None:
    """Transformers trace the size of their example into the graph, which then fits no other."""
    *first, last = check_shape(card)
    other = (*first, 2 * last)
    try:
        difference = graph_difference(network, card, path, shape=other)
    except (RuntimeError, ValueError):
        difference = float("inf")
    if difference > GRAPH_TOLERANCE:
        raise NoGraphError(
            f"the OpenVINO graph of model {card.id!r} holds for images of one size only",
            hint="it runs in PyTorch",
        )


@torch.no_grad()
def graph_difference(
    network: nn.Module, card: ModelCard, path: Path, *, shape: tuple[int, ...] | None = None
) -> float:
    """Greatest difference of logits between a graph and a network on a random input.

    Relative to the greatest logit, or to 1 where all are smaller. The input has the extents of
    :func:`check_shape` unless others are given.
    """
    openvino = import_openvino()
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    rng = np.random.default_rng(0)
    image = rng.standard_normal((1, card.n_channels, *(shape or check_shape(card))), np.float32)
    expected = network(torch.from_numpy(image)).numpy()
    found = compiled(image)[0]
    if found.shape != expected.shape:
        return float("inf")
    largest = max(1.0, float(np.abs(expected).max()))
    return float(np.abs(found - expected).max()) / largest


def check_shape(card: ModelCard) -> tuple[int, ...]:
    """A small input the network takes: the tile, halved while it stays a multiple of the stride."""
    divisors = card.divisor or (1,) * len(card.tile)
    shape = []
    for extent, divisor in zip(card.tile, divisors, strict=True):
        size = extent
        while size % 2 == 0 and size // 2 >= _SMALLEST_CHECK and (size // 2) % divisor == 0:
            size //= 2
        shape.append(size)
    return tuple(shape)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


_Convolution = nn.Conv2d | nn.Conv3d
_BatchNorm = nn.BatchNorm2d | nn.BatchNorm3d


def _is_foldable(convolution: nn.Module, norm: nn.Module) -> bool:
    return (
        isinstance(convolution, _Convolution)
        and convolution.bias is None
        and isinstance(norm, _BatchNorm)
        and norm.running_var is not None
        and norm.affine
    )


def _fold(convolution: nn.Module, norm: nn.Module) -> None:
    assert isinstance(convolution, _Convolution)
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    convolution.weight.mul_(scale.reshape(-1, *[1] * (convolution.weight.ndim - 1)))
    norm.bias.sub_(norm.running_mean * scale)
    norm.weight.fill_(1.0)
    norm.running_mean.zero_()
    # With eps the layer still scales by 0.999995: far below the rounding of a float16, so that
    # folding it again gives the same numbers.
    norm.running_var.fill_(1.0)


def _check_state(
    state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], *, what: str
) -> None:
    missing = sorted(set(expected) - set(state))
    extra = sorted(set(state) - set(expected))
    wrong = sorted(
        name for name in set(state) & set(expected) if state[name].shape != expected[name].shape
    )
    if missing or extra or wrong:
        facts = [
            f"{kind}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
            for kind, names in (("missing", missing), ("unknown", extra), ("other shape", wrong))
            if names
        ]
        raise ModelError(
            f"{what} does not hold the weights of the card's network ({'; '.join(facts)})",
            hint="the card's network id and arguments must be those the weights were trained with",
            details={"missing": missing, "unknown": extra, "shape": wrong},
        )
