"""Options that every engine with tiles of its own takes, worded once."""

from __future__ import annotations

from lamella.engines.engine import OptionDescriptor

__all__ = ["REPLACE_NOT_FINITE", "RUNTIME", "THREADS", "band_option"]

RUNTIME = OptionDescriptor(
    "runtime",
    "choice",
    "auto",
    "What runs the network: OpenVINO on the CPU and PyTorch on CUDA unless chosen.",
    choices=("auto", "openvino", "torch"),
)
REPLACE_NOT_FINITE = OptionDescriptor(
    "replace_not_finite",
    "bool",
    False,
    "Replace NaN and infinite voxels by the mean of the others instead of refusing them.",
)
THREADS = OptionDescriptor(
    "threads",
    "int",
    None,
    "Threads on the CPU; default: one per physical core.",
    minimum=1,
    maximum=1024,
)


def band_option(default_mb: int) -> OptionDescriptor:
    """``band_mb`` with an engine's default, in MiB."""
    return OptionDescriptor(
        "band_mb",
        "int",
        default_mb,
        "Memory for the moving band in MiB; wider volumes are run in several columns.",
        minimum=1,
    )
