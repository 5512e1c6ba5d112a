"""What the engine for MONAI bundles can do, told without importing MONAI.

Example:
    >>> MONAI.model_module
    'lamella.engines.monai.models'
"""

from __future__ import annotations

from lamella.engines.engine import EngineDescriptor, OptionDescriptor
from lamella.engines.tile_options import REPLACE_NOT_FINITE, RUNTIME, THREADS, band_option

OPTIONS = (
    OptionDescriptor(
        "batch",
        "int",
        None,
        "Tiles per pass of the network; default: 1 in 3-D, about 2^18 pixels in 2-D.",
        minimum=1,
        maximum=256,
    ),
    RUNTIME,
    OptionDescriptor(
        "check",
        "choice",
        "auto",
        "Compare OpenVINO with PyTorch on a tile before the run; never trusts the conversion.",
        choices=("auto", "never"),
    ),
    REPLACE_NOT_FINITE,
    THREADS,
    band_option(1024),
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
    is_resumable=True,
    options=OPTIONS,
    model_module="lamella.engines.monai.models",
    confidence=("probability", "margin", "entropy", "tta_spread"),
)
