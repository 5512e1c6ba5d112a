"""A network as an ONNX graph (and as TorchScript), compared with PyTorch before anything is kept.

Batch and spatial extents stay free. The network is traced once; the graph is made of the trace.
PyTorch's exporters turn adaptive pooling into pooling for the size that was traced, which is
another network on other sizes, so that it is written out as two products with matrices of means.

Examples:
    >>> pool = DynamicPool((2, 2))
    >>> pool(torch.arange(16.0).reshape(1, 1, 4, 4)).tolist()
    [[[[2.5, 4.5], [10.5, 12.5]]]]
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from lamella.core.errors import LamellaError, ModelError
from lamella.core.optional import require
from lamella.models.export import check_shape

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lamella.wire.card import ModelCard

__all__ = [
    "INPUT",
    "OPSET",
    "OUTPUT",
    "DynamicPool",
    "Traced",
    "save_onnx",
    "save_torchscript",
    "trace_network",
]

OPSET = 18
INPUT, OUTPUT = "image", "logits"
TOLERANCE = 1e-3
"""|found - expected| <= TOLERANCE * (1 + |expected|), as the BioImage.io validator compares."""

_PURPOSE = "writing ONNX"


@dataclass(frozen=True, slots=True)
class Traced:
    """A network and its trace.

    Attributes:
        network: the original, on the CPU, in evaluation mode.
        module: the trace.
        card: of the model.
        shapes: of inputs it is compared on, (n, c, *spatial).
    """

    network: nn.Module
    module: Any
    card: ModelCard
    shapes: tuple[tuple[int, ...], ...]


class DynamicPool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` by products with matrices, for graphs with free extents.

    Args:
        extents: bins along y and x.
    """

    def __init__(self, extents: tuple[int, int]) -> None:
        super().__init__()
        self.extents = extents

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Means of bins, (..., y, x) of ``extents``."""
        rows = _bins(image.shape[-2], self.extents[0], image)
        columns = _bins(image.shape[-1], self.extents[1], image)
        return torch.matmul(torch.matmul(rows, image), columns.transpose(0, 1))


def _bins(n: int, k: int, like: torch.Tensor) -> torch.Tensor:
    """Matrix (k, n) that takes means of bins, as PyTorch cuts them: floor and ceil of i n / k."""
    bins, at = torch.arange(k, device=like.device), torch.arange(n, device=like.device)
    start = torch.div(bins * n, k, rounding_mode="floor")
    stop = torch.div((bins + 1) * n + k - 1, k, rounding_mode="floor")
    inside = ((at[None] >= start[:, None]) & (at[None] < stop[:, None])).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


def trace_network(network: nn.Module, card: ModelCard) -> Traced:
    """Trace a network.

    Raises:
        ModelError: it cannot be traced, or its trace is bound to one size.
    """
    network = network.eval().cpu().requires_grad_(False)
    traceable = _with_dynamic_pools(copy.deepcopy(network))
    shapes = _shapes(card)
    try:
        with _quiet():
            module = torch.jit.trace(traceable, torch.zeros(shapes[0]), check_trace=False)
    except LamellaError:
        raise
    except Exception as error:  # whatever a foreign network raises under the tracer
        raise ModelError(
            f"the network of {card.id!r} cannot be traced: {_first_line(error)}",
            hint="export it as a Lamella package instead: lamella models export --format zip",
        ) from error
    return Traced(network, module, card, shapes)


def save_torchscript(traced: Traced, path: Path) -> None:
    """Write the trace as TorchScript.

    Raises:
        ModelError: it computes something else than the network.
    """

    def run(image: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad(), _quiet():
            return traced.module(torch.from_numpy(image)).numpy()

    _compare(traced, run, "TorchScript")
    with _quiet():
        torch.jit.save(traced.module, str(path))


def save_onnx(traced: Traced, path: Path) -> float:
    """Write the trace as ONNX, opset 18; the card is in its metadata (``lamella.card``).

    Returns:
        The greatest difference of a logit that was found.

    Raises:
        ModelError: the graph computes something else than the network, or a layer has no ONNX.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """
    onnx = require("onnx", extra="export", purpose=_PURPOSE)
    runtime = require("onnxruntime", extra="export", purpose=_PURPOSE)
    model = onnx.load_from_string(_graph(traced))
    onnx.checker.check_model(model)
    entry = model.metadata_props.add()
    entry.key, entry.value = "lamella.card", traced.card.to_json()
    data = model.SerializeToString()
    settings = runtime.SessionOptions()
    settings.log_severity_level = 4
    session = runtime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])

    def run(image: NDArray[np.float32]) -> NDArray[np.float32]:
        return session.run([OUTPUT], {INPUT: image})[0]

    difference = _compare(traced, run, "ONNX")
    path.write_bytes(data)
    return difference


def _graph(traced: Traced) -> bytes:
    """The graph, by whichever of PyTorch's two exporters knows the network's layers.

    That of traces is the faster one and needs no compiler; vision transformers need the other.

    Raises:
        ModelError: neither does.
    """
    try:
        return _graph_of_trace(traced)
    except Exception as first:  # noqa: BLE001 - the exporters raise a dozen kinds
        try:
            return _graph_of_program(traced)
        except Exception:  # noqa: BLE001 - the same
            raise ModelError(
                f"the network of {traced.card.id!r} has no ONNX: {_first_line(first)}",
                hint="export it as a Lamella package instead: lamella models export --format zip",
            ) from first


def _graph_of_trace(traced: Traced) -> bytes:
    raw = io.BytesIO()
    names = dict(enumerate(("batch", "channel", *traced.card.axes)))
    free = {axis: name for axis, name in names.items() if axis != 1}
    with _quiet(), _silent_descriptors():
        torch.onnx.export(
            traced.module,
            (torch.zeros(traced.shapes[0]),),
            raw,  # pyright: ignore[reportArgumentType] - file objects are taken too
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: free, OUTPUT: free},
        )
    return raw.getvalue()


def _graph_of_program(traced: Traced) -> bytes:
    # Extents of 1 would be taken for fixed ones: the second shape has a batch of two.
    image = torch.zeros(traced.shapes[1])
    dynamic = torch.export.Dim.DYNAMIC
    free = {axis: dynamic for axis in range(image.ndim) if axis != 1}
    network = _with_dynamic_pools(copy.deepcopy(traced.network))
    with _quiet(), _silent_descriptors():
        program: Any = torch.onnx.export(
            network,
            (image,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=(free,),
            verbose=False,
        )
    return program.model_proto.SerializeToString()


def _compare(traced: Traced, run: Any, what: str) -> float:
    """Greatest difference to the network on all shapes.

    Raises:
        ModelError: beyond the tolerance, with the difference.
    """
    worst = 0.0
    for number, shape in enumerate(traced.shapes):
        image = np.random.default_rng(number).standard_normal(shape, np.float32)
        with torch.no_grad():
            expected = traced.network(torch.from_numpy(image)).numpy()
        try:
            found = run(image)
        except Exception as error:  # runtimes raise their own kinds
            raise ModelError(
                f"{what} of {traced.card.id!r} fails on an input of {shape}: {_first_line(error)}",
                hint="a layer of this network does not convert; use another network",
            ) from error
        if found.shape != expected.shape:
            raise ModelError(
                f"{what} of {traced.card.id!r} turns {shape} into {found.shape}, PyTorch into"
                f" {expected.shape}",
                hint="a layer of this network does not convert; use another network",
            )
        difference = np.abs(found - expected)
        worst = max(worst, float(difference.max()))
        if not bool((difference <= TOLERANCE * (1 + np.abs(expected))).all()):
            raise ModelError(
                f"{what} of {traced.card.id!r} differs from PyTorch by {difference.max():.2g} on an"
                f" input of {shape}; {TOLERANCE:g} is allowed",
                hint="a layer of this network does not convert; use another network",
                details={"difference": float(difference.max()), "shape": list(shape)},
            )
    return worst


def _shapes(card: ModelCard) -> tuple[tuple[int, ...], ...]:
    """A small input, two of them that are larger, and one that is larger along x alone."""
    small = check_shape(card)
    divisor = card.divisor or (1,) * len(small)
    larger = tuple(n + d for n, d in zip(small, divisor, strict=True))
    wide = (*small[:-1], small[-1] + 2 * divisor[-1])
    channels = card.n_channels
    return ((1, channels, *small), (2, channels, *larger), (1, channels, *wide))


def _with_dynamic_pools(module: nn.Module) -> nn.Module:
    for name, child in list(module.named_children()):
        if isinstance(child, nn.AdaptiveAvgPool2d):
            extents = _pair(child.output_size)
            if extents is not None and extents != (1, 1):
                setattr(module, name, DynamicPool(extents))
        else:
            _with_dynamic_pools(child)
    return module


def _pair(size: int | Sequence[int | None] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    y, x = (size, size) if isinstance(size, int) else size
    return None if y is None or x is None else (y, x)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch's exporters warn of every shape that becomes a number, and print graphs."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _silent_descriptors() -> Iterator[None]:
    """PyTorch's C++ prints the whole graph where it fails, past ``sys.stdout``."""
    kept: list[tuple[int, int]] = []
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a descriptor is wanted
        try:
            for descriptor in (1, 2):
                with contextlib.suppress(OSError):
                    kept.append((descriptor, os.dup(descriptor)))
                    os.dup2(nowhere.fileno(), descriptor)
            yield
        finally:
            for descriptor, copied in kept:
                os.dup2(copied, descriptor)
                os.close(copied)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
