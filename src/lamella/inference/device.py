"""What a request leaves open of where a network runs: device, runtime and precision.

Examples:
    >>> choose_machine("cpu", "auto", "auto")
    Machine(device='cpu', runtime='openvino', precision='fp32')
    >>> choose_machine("cuda:1", "auto", "auto")
    Machine(device='cuda:1', runtime='torch', precision='fp16')
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lamella.core.errors import InputError
from lamella.core.optional import is_importable

if TYPE_CHECKING:
    from lamella.inference.runtime import Precision

__all__ = ["Machine", "choose_device", "choose_machine"]


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a network runs.

    Attributes:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        runtime: ``openvino`` or ``torch``.
        precision: what is computed with.
    """

    device: str
    runtime: str
    precision: Precision


def choose_machine(
    device: str,
    runtime: str,
    precision: Literal["auto"] | Precision,
    *,
    may_lack_openvino: bool = False,
) -> Machine:
    """Decide what is left to choice: OpenVINO in fp32 on the CPU, PyTorch in fp16 on CUDA.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        runtime: ``auto``, ``openvino`` or ``torch``.
        precision: ``auto`` or a precision.
        may_lack_openvino: take PyTorch on the CPU where OpenVINO is not installed.

    Raises:
        InputError: OpenVINO on a device that is not the CPU.
    """
    device = choose_device(device)
    is_cpu = device == "cpu"
    if runtime == "auto":
        has_openvino = not may_lack_openvino or is_importable("openvino")
        runtime = "openvino" if is_cpu and has_openvino else "torch"
    if runtime == "openvino" and not is_cpu:
        raise InputError(
            f"OpenVINO runs on the CPU here, not on {device}",
            hint="leave out --option runtime, or use --device cpu",
        )
    if precision == "auto":
        precision = "fp32" if is_cpu else "fp16"
    return Machine(device, runtime, precision)


def choose_device(name: str) -> str:
    """``auto`` becomes ``cuda`` where PyTorch sees a device, ``cpu`` elsewhere."""
    if name != "auto":
        return name
    # PyTorch takes seconds to import: it is asked only where there can be a CUDA device.
    has_driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")
    if not has_driver or not is_importable("torch"):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
