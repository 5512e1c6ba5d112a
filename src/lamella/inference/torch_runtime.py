"""Networks on PyTorch: CUDA, and the reference that OpenVINO is checked against on the CPU.

On CUDA batches travel through pinned memory and two of them are in flight, so copying, the
network and the blending on the CPU overlap; convolutions run channels-last under autocast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import DeviceError, DeviceMemoryError, EngineError, ModelError
from lamella.core.optional import require
from lamella.inference.runtime import Pending, Precision

__all__ = ["TorchOptions", "TorchRuntime"]


@dataclass(frozen=True, slots=True)
class TorchOptions:
    """How a network is run.

    Attributes:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        precision: what convolutions are computed with; fp32 means true fp32, not TF32.
        is_deterministic: same bits from run to run on the same hardware (slower on CUDA).
        compile: compile the network first (worth it from some hundred tiles on).
        n_threads: threads on the CPU; None leaves it to PyTorch.
    """

    device: str = "cpu"
    precision: Precision = "fp32"
    is_deterministic: bool = False
    compile: bool = False
    n_threads: int | None = None


class TorchRuntime:
    """A PyTorch network for one batch shape.

    Args:
        network: ``torch.nn.Module``; put into evaluation mode and moved to the device.
        batch_shape: (n, c, z, y, x) or (n, c, y, x).
        options: device and precision.

    Raises:
        DeviceError: when the device is not there.
        DeviceMemoryError: when a batch does not fit into its memory.
        ModelError: when the network's output does not fit.
    """

    name = "torch"

    def __init__(
        self, network: Any, batch_shape: Sequence[int], options: TorchOptions | None = None
    ) -> None:
        options = options or TorchOptions()
        self._torch = torch = require("torch", extra="torch", purpose="running networks on PyTorch")
        self._device = _device(torch, options.device)
        self.device = str(self._device)
        self.precision: str = options.precision
        self.batch_shape = tuple(int(n) for n in batch_shape)
        self.n_in_flight = 2 if self._device.type == "cuda" else 1
        if options.n_threads is not None:
            torch.set_num_threads(options.n_threads)
        self._is_channels_last = self._device.type == "cuda"
        self._configure(options)
        network = network.eval().to(self._device)
        if self._is_channels_last:
            network = network.to(memory_format=self._memory_format)
        self._network = torch.compile(network) if options.compile else network
        self._staging = self._pinned_buffers()
        self._turn = 0
        self.n_outputs = self._probe()

    def _configure(self, options: TorchOptions) -> None:
        if self._device.type != "cuda":
            return
        backends = self._torch.backends
        backends.cudnn.benchmark = not options.is_deterministic
        backends.cudnn.deterministic = options.is_deterministic
        backends.cudnn.allow_tf32 = False
        backends.cuda.matmul.allow_tf32 = False

    @property
    def _memory_format(self) -> Any:
        is_3d = len(self.batch_shape) == 5
        return self._torch.channels_last_3d if is_3d else self._torch.channels_last

    def _pinned_buffers(self) -> list[Any]:
        if self._device.type != "cuda":
            return []
        return [
            self._torch.empty(self.batch_shape, dtype=self._torch.float32, pin_memory=True)
            for _ in range(self.n_in_flight)
        ]

    def _probe(self) -> int:
        output = self(np.zeros(self.batch_shape, np.float32)).shape
        if output[0] != self.batch_shape[0] or output[2:] != self.batch_shape[2:]:
            raise ModelError(
                f"the network turns tiles of shape {self.batch_shape} into {tuple(output)}; logits"
                " of the same extent were expected"
            )
        return int(output[1])

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the network and wait for it."""
        return self.submit(batch)()

    def submit(self, batch: NDArray[np.float32]) -> Pending:
        """Start a batch; on the CPU this does the work."""
        torch = self._torch
        try:
            with torch.inference_mode(), self._autocast():
                logits = self._network(self._to_device(batch))
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory() from error
        except RuntimeError as error:
            raise EngineError(
                f"PyTorch failed on a tile of shape {self.batch_shape}: {error}"
            ) from error

        def fetch() -> NDArray[np.float32]:
            try:
                host: NDArray[np.float32] = logits.float().contiguous().cpu().numpy()
            except torch.OutOfMemoryError as error:
                raise self._out_of_memory() from error
            return host

        return fetch

    def _out_of_memory(self) -> DeviceMemoryError:
        return DeviceMemoryError(
            f"{self.device} has too little memory for a batch of shape {self.batch_shape}",
            hint="choose a smaller --tile, --option batch=1 or --precision fp16",
        )

    def _to_device(self, batch: NDArray[np.float32]) -> Any:
        torch = self._torch
        tensor = torch.from_numpy(batch)
        if self._device.type != "cuda":
            return tensor
        staged = self._staging[self._turn]
        self._turn = (self._turn + 1) % len(self._staging)
        staged.copy_(tensor)
        return staged.to(self._device, non_blocking=True).to(memory_format=self._memory_format)

    def _autocast(self) -> Any:
        torch = self._torch
        if self.precision == "fp32":
            return torch.autocast(self._device.type, enabled=False)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self._device.type, dtype=dtype)


def _device(torch: Any, name: str) -> Any:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"unknown device {name!r}", hint="use cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(
                "CUDA was asked for, but PyTorch sees no CUDA device",
                hint="run with --device cpu, or install a CUDA build: pip install torch",
            )
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise DeviceError(
                f"there is no {name}: {torch.cuda.device_count()} CUDA device(s) are present"
            )
    elif device.type != "cpu":
        raise DeviceError(f"device {name!r} is not supported", hint="use cpu, cuda or cuda:N")
    return device
