"""What the engine for MONAI bundles can do, told without importing MONAI.

Example:
    >>> MONAI.model_module
    'lamella.engines.monai.models'
"""

from __future__ import annotations

from lamella.engines.engine import EngineDescriptor, OptionDescriptor

OPTIONS = (
    OptionDescriptor(
        "batch",
        "int",
        None,
        "Tiles per pass of the network; default: 1 in 3-D, about 2^18 pixels in 2-D.",
        minimum=1,
        maximum=256,
    ),
    OptionDescriptor(
        "runtime",
        "choice",
        "auto",
        "What runs the network: OpenVINO on the CPU where it agrees with PyTorch, PyTorch on CUDA.",
        choices=("auto", "openvino", "torch"),
    ),
    OptionDescriptor(
        "check",
        "choice",
        "auto",
        "Compare OpenVINO with PyTorch on a tile before the run; never trusts the conversion.",
        choices=("auto", "never"),
    ),
    OptionDescriptor(
        "replace_not_finite",
        "bool",
        False,
        "Replace NaN and infinite voxels by the mean of the others instead of refusing them.",
    ),
    OptionDescriptor(
        "threads",
        "int",
        None,
        "Threads on the CPU; default: one per physical core.",
        minimum=1,
        maximum=1024,
    ),
    OptionDescriptor(
        "band_mb",
        "int",
        1024,
        "Memory for the moving band in MiB; wider volumes are run in several columns.",
        minimum=1,
    ),
)

MONAI = EngineDescriptor(
    id="monai",
    title="MONAI bundles",
    description="Segmentation bundles of the MONAI model zoo and of one's own, 3-D or 2-D.",
    module="lamella.engines.monai.engine",
    axes=("zyx", "yx"),
    produces=("semantic",),
    needs=("torch", "monai", "zarr"),
    extra="monai",
    devices=("cpu", "cuda"),
    needs_model=True,
    has_preview=True,
    has_uncertainty=True,
    is_resumable=True,
    options=OPTIONS,
    model_module="lamella.engines.monai.models",
    confidence=("probability", "margin", "entropy", "tta_spread"),
)
