"""What the engine for nnU-Net models can do, told without importing NumPy.

Example:
    >>> NNUNET.is_resumable, NNUNET.extra
    (True, 'nnunet')
"""

from __future__ import annotations

from lamella.engines.engine import EngineDescriptor, OptionDescriptor
from lamella.engines.tile_options import RUNTIME, THREADS, band_option

OPTIONS = (
    OptionDescriptor(
        "configuration",
        "text",
        None,
        "Which trained configuration: 3d_fullres, 2d, 3d_lowres, 3d_cascade_fullres or the whole"
        " name of its folder; several joined by + are averaged; default: the first of 3d_fullres,"
        " 3d_cascade_fullres, 3d_lowres and 2d that is there.",
    ),
    OptionDescriptor(
        "folds",
        "text",
        "auto",
        "Folds to average: numbers such as 0,1,2, all (the model trained on all cases), or auto ="
        " every numbered fold there is.",
    ),
    OptionDescriptor(
        "checkpoint",
        "choice",
        "final",
        "Which weights of a fold: those of the last epoch or the best ones.",
        choices=("final", "best"),
    ),
    OptionDescriptor(
        "step_size",
        "float",
        None,
        "Distance of tiles as a share of the patch (nnU-Net's -step_size); default: 0.5, or what"
        " --overlap-fraction says.",
        minimum=0.05,
        maximum=1.0,
    ),
    OptionDescriptor(
        "unit",
        "choice",
        "auto",
        "Unit in which the training images gave their spacing: auto = what dataset.json says, else"
        " voxels for models of plain images and mm for all others.",
        choices=("auto", "mm", "um", "nm", "voxel"),
    ),
    OptionDescriptor(
        "postprocess",
        "bool",
        False,
        "Apply the model's postprocessing.pkl (keep only the largest component of some classes).",
    ),
    RUNTIME,
    OptionDescriptor(
        "check",
        "choice",
        "auto",
        "Compare OpenVINO with PyTorch on a tile before the run: auto does for the first fold.",
        choices=("auto", "always", "never"),
    ),
    THREADS,
    band_option(4096),
)

NNUNET = EngineDescriptor(
    id="nnunet",
    title="nnU-Net v2",
    description="Any trained nnU-Net v2 folder or exported zip: 2d, 3d, cascade, ensembles.",
    module="lamella.engines.nnunet.engine",
    axes=("zyx", "yx"),
    produces=("semantic",),
    needs=("torch", "nnunetv2", "dynamic_network_architectures", "openvino"),
    extra="nnunet",
    devices=("cpu", "cuda"),
    needs_model=True,
    has_preview=True,
    is_resumable=True,
    options=OPTIONS,
    model_module="lamella.engines.nnunet.models",
    confidence=("probability", "margin", "entropy", "tta_spread"),
)
