"""What the engine for Lamella's own networks can do, told without importing NumPy.

Example:
    >>> LAMELLA.is_resumable
    True
"""

from __future__ import annotations

from lamella.engines.engine import EngineDescriptor, OptionDescriptor
from lamella.engines.tile_options import REPLACE_NOT_FINITE, RUNTIME, THREADS, band_option

OPTIONS = (
    OptionDescriptor(
        "blend",
        "choice",
        "gaussian",
        "How overlapping tiles are joined: weighted by a Gaussian, or each voxel from the tile in "
        "whose centre it lies most.",
        choices=("gaussian", "crop"),
    ),
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
        "Compare OpenVINO with PyTorch on a tile before the run: auto = where PyTorch is loaded "
        "already.",
        choices=("auto", "always", "never"),
    ),
    OptionDescriptor(
        "confidence",
        "bool",
        False,
        "Leave the probability of the chosen class as probabilities.zarr (0..255) as well; "
        "--confidence leaves every measure, and tells of objects and classes.",
    ),
    REPLACE_NOT_FINITE,
    THREADS,
    band_option(1024),
    OptionDescriptor(
        "object_block",
        "int",
        None,
        "Edge, in voxels, of the blocks in which objects of a 3-D network are found, to be merged "
        "across faces; default: the whole volume up to 2^28 voxels, else 384.",
        minimum=16,
        maximum=4096,
    ),
    OptionDescriptor(
        "object_halo",
        "int",
        32,
        "Voxels that such a block sees beyond its faces; at best as wide as the objects are.",
        minimum=2,
        maximum=1024,
    ),
    OptionDescriptor(
        "compile",
        "bool",
        False,
        "Compile the network with torch.compile first (PyTorch only; worth it for long runs).",
    ),
)

LAMELLA = EngineDescriptor(
    id="lamella",
    title="Lamella networks",
    description="Semantic and instance networks of this project, 3-D, or 2-D over slices.",
    module="lamella.engines.lamella.engine",
    axes=("zyx", "yx"),
    produces=("semantic", "instance"),
    needs=("numpy", "openvino", "zarr"),
    devices=("cpu", "cuda"),
    needs_model=True,
    has_preview=True,
    is_resumable=True,
    strategies=("slices", "hybrid", "volumetric", "ortho"),
    options=OPTIONS,
    confidence=("probability", "margin", "entropy", "tta_spread"),
)
