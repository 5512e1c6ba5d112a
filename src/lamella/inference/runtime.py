"""What runs a network: one small interface, and the ways to wrap it.

A runtime is opened for one batch shape; it knows nothing of volumes. OpenVINO
(:mod:`~lamella.inference.openvino_runtime`) is the default on the CPU, PyTorch
(:mod:`~lamella.inference.torch_runtime`) on CUDA. Neither module is imported before it is needed.

Examples:
    >>> class Double:
    ...     name, device, precision = "double", "cpu", "fp32"
    ...     batch_shape, n_outputs = (1, 1, 2, 2, 2), 1
    ...     def __call__(self, batch):
    ...         return batch * 2
    >>> runtime = as_pipelined(Mirrored(Double(), axes=(2,)))
    >>> runtime.submit(np.ones((1, 1, 2, 2, 2), np.float32))().max().item()
    2.0
"""

from __future__ import annotations

import gc
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lamella.inference.confidence import sigmoid, softmax
from lamella.volume.volume import Note

__all__ = [
    "Difference",
    "Mirrored",
    "Pipelined",
    "Precision",
    "Runtime",
    "Spread",
    "as_pipelined",
    "compare",
    "release_device_memory",
]

Precision = Literal["fp32", "bf16", "fp16"]
# The same weights in the same precision: differences are the order of additions.
MAX_RELATIVE_FP32 = 0.02
MIN_AGREEMENT_FP32 = 0.999
# Eight bits of mantissa: a network this sensitive should not be run in them.
MIN_AGREEMENT_REDUCED = 0.98
Pending = Callable[[], NDArray[np.float32]]


@runtime_checkable
class Runtime(Protocol):
    """Runs a network.

    Contract:
        * ``batch`` is float32, C-contiguous, of exactly ``batch_shape``: (n, c, z, y, x), or
          (n, c, y, x) for a 2-D network; it is not changed.
        * the result is float32 logits, (n, k, ...) over the same extent; it may be overwritten by
          the next call.
        * on the CPU the same batch gives the same bits.
    """

    @property
    def name(self) -> str:
        """Such as ``"openvino"``."""
        ...

    @property
    def device(self) -> str:
        """Such as ``"cpu"`` or ``"cuda:0"``."""
        ...

    @property
    def precision(self) -> str:
        """What is computed with: ``fp32``, ``bf16`` or ``fp16``."""
        ...

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the input, batch first."""
        ...

    @property
    def n_outputs(self) -> int:
        """Channels of the output."""
        ...

    def __call__(self, batch: NDArray[np.float32], /) -> NDArray[np.float32]:
        """Run the network and wait for it."""
        ...


@runtime_checkable
class Pipelined(Runtime, Protocol):
    """A runtime that works while its caller does something else.

    Contract: at most ``n_in_flight`` batches are submitted and not yet fetched; a batch may not be
    changed before its result was fetched; a result may be overwritten by the ``n_in_flight``-th
    submission after its own.
    """

    @property
    def n_in_flight(self) -> int:
        """How many batches may be on their way."""
        ...

    def submit(self, batch: NDArray[np.float32], /) -> Pending:
        """Start a batch; calling what this returns waits for the logits."""
        ...


class _Immediate:
    """A plain runtime in the place of a pipelined one: ``submit`` does the work."""

    n_in_flight = 1

    def __init__(self, inner: Runtime) -> None:
        self._inner = inner
        self.name = inner.name
        self.device = inner.device
        self.precision = inner.precision
        self.batch_shape = inner.batch_shape
        self.n_outputs = inner.n_outputs

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._inner(batch)

    def submit(self, batch: NDArray[np.float32]) -> Pending:
        logits = self._inner(batch)
        return lambda: logits


def as_pipelined(runtime: Runtime) -> Pipelined:
    """The runtime itself where it can work ahead, else a wrapper that computes at once."""
    return runtime if isinstance(runtime, Pipelined) else _Immediate(runtime)


@dataclass(frozen=True, slots=True)
class Spread:
    """How far mirrored copies differ, as one more output: a probability's standard deviation.

    Attributes:
        activation: what turns logits into probabilities.
        channel: the channel whose probability is meant; None = the one with the largest mean logit.
        temperature: logits are divided by it first (calibration).
    """

    activation: Literal["softmax", "sigmoid"] = "softmax"
    channel: int | None = None
    temperature: float = 1.0

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities of the channel that is meant, or of all, float32, (n, k or 1, ...)."""
        scaled = logits * np.float32(1.0 / self.temperature)
        if self.activation == "softmax":
            share = softmax(scaled, axis=1, out=scaled)
        else:
            chosen = scaled if self.channel is None else scaled[:, self.channel : self.channel + 1]
            return sigmoid(chosen)
        return share if self.channel is None else share[:, self.channel : self.channel + 1]


class Mirrored:
    """Test-time augmentation: the mean of the logits over all mirrored copies of a batch.

    The copies are added in a fixed order, so results stay bit-identical from run to run.

    Args:
        inner: runs the network.
        axes: axes of the batch that may be mirrored (2 is the first spatial one).
        spread: also tell how far the copies differ, as a channel behind the others.
    """

    def __init__(
        self, inner: Runtime, *, axes: tuple[int, ...], spread: Spread | None = None
    ) -> None:
        self._inner = inner
        self._spread = spread
        self._flips = [
            flip for n in range(len(axes) + 1) for flip in itertools.combinations(axes, n)
        ]
        self.name = inner.name
        self.device = inner.device
        self.precision = inner.precision
        self.batch_shape = inner.batch_shape
        self.n_outputs = inner.n_outputs + (spread is not None)

    @property
    def n_copies(self) -> int:
        """Passes of the network per batch."""
        return len(self._flips)

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run every copy and average."""
        total = np.array(self._inner(batch), np.float32)
        moments = None if self._spread is None else _Moments(self._spread, total)
        for flip in self._flips[1:]:
            mirrored = np.ascontiguousarray(np.flip(batch, flip))
            logits = np.flip(self._inner(mirrored), flip)
            total += logits
            if moments is not None:
                moments.add(logits)
        total *= np.float32(1.0 / len(self._flips))
        if moments is None:
            return total
        return np.concatenate([total, moments.deviation(total)], axis=1)


class _Moments:
    """Sums of the copies' probabilities and of their squares: no copy is kept."""

    def __init__(self, spread: Spread, logits: NDArray[np.float32]) -> None:
        self._spread = spread
        # A copy is rarely far from the first, so squares of differences keep their digits.
        self._first = spread.probabilities(logits)
        self._sum = np.zeros_like(self._first)
        self._squares = np.zeros_like(self._first)
        self._n = 1

    def add(self, logits: NDArray[np.float32]) -> None:
        difference = self._spread.probabilities(logits) - self._first
        self._sum += difference
        self._squares += np.square(difference, out=difference)
        self._n += 1

    def deviation(self, mean_logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Standard deviation of the chosen class's probability, (n, 1, ...)."""
        mean = self._sum / np.float32(self._n)
        variance = np.maximum(self._squares / np.float32(self._n) - mean * mean, 0.0)
        if variance.shape[1] > 1:
            chosen = mean_logits.argmax(axis=1, keepdims=True)
            variance = np.take_along_axis(variance, chosen, axis=1)
        return np.sqrt(variance).astype(np.float32)


def release_device_memory() -> None:
    """Give back what PyTorch keeps of the device's memory, where it is loaded at all."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass(frozen=True, slots=True)
class Difference:
    """How far two runtimes are apart on one batch.

    Attributes:
        max_abs: largest difference of a logit.
        spread: standard deviation of the reference's logits.
        agreement: share of voxels with the same largest channel (same sign for one channel).
    """

    max_abs: float
    spread: float
    agreement: float

    @property
    def relative(self) -> float:
        """Largest difference over the spread of the logits."""
        return self.max_abs / max(self.spread, 1e-12)

    def is_acceptable(self, precision: Precision) -> bool:
        """Whether a runtime may stand in for a reference in fp32.

        Args:
            precision: of the runtime.
        """
        if precision != "fp32":
            return self.agreement >= MIN_AGREEMENT_REDUCED
        return self.relative <= MAX_RELATIVE_FP32 and self.agreement >= MIN_AGREEMENT_FP32

    def as_note(self, precision: Precision) -> Note:
        """What is said where OpenVINO in a precision is not acceptable."""
        return Note(
            "runtime_differs",
            f"OpenVINO in {precision} differs from PyTorch in fp32 on this input ({self});"
            " PyTorch in fp32 is used",
        )

    def __str__(self) -> str:
        return (
            f"largest logit difference {self.max_abs:.2g} (spread {self.spread:.2g}),"
            f" {self.agreement:.6f} of voxels agree"
        )


def compare(logits: NDArray[np.float32], reference: NDArray[np.float32]) -> Difference:
    """Compare two outputs of the same batch.

    Args:
        logits: float32, (n, k, ...).
        reference: the same from the reference runtime.
    """
    if reference.shape[1] == 1:
        same = (logits > 0) == (reference > 0)
    else:
        same = logits.argmax(axis=1) == reference.argmax(axis=1)
    return Difference(
        max_abs=float(np.abs(logits - reference).max()),
        spread=float(reference.std(dtype=np.float64)),
        agreement=float(same.mean()),
    )
