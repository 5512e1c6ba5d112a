"""What the Cellpose engines can do and which options they take, told without importing NumPy.

Example:
    >>> CELLPOSE3.environment, CELLPOSE4.environment
    ('cellpose3', 'cellpose4')
"""

from __future__ import annotations

from dataclasses import replace

from lamella.engines.engine import EngineDescriptor, OptionDescriptor
from lamella.engines.tile_options import THREADS

__all__ = ["CELLPOSE3", "CELLPOSE4", "DESCRIPTORS"]

OPTIONS = (
    OptionDescriptor(
        "diameter",
        "float",
        None,
        "Typical diameter of an object in pixels; default: the one the model was trained with.",
        minimum=0.1,
    ),
    OptionDescriptor(
        "diameter_unit",
        "choice",
        "pixel",
        "Unit of diameter; a length is converted with the input's spacing.",
        choices=("pixel", "nm", "um", "mm"),
    ),
    OptionDescriptor(
        "channels",
        "text",
        None,
        "Channels of the input by index from 0, what is segmented first, as in 1 or 1,0; needed "
        "where the input has several.",
    ),
    OptionDescriptor(
        "flow_threshold",
        "float",
        0.4,
        "Objects whose flows differ more than this from those recomputed are dropped; 0 keeps all. "
        "Of slices only.",
        minimum=0.0,
    ),
    OptionDescriptor(
        "cellprob_threshold",
        "float",
        0.0,
        "Pixels above this belong to objects; lower finds more and larger ones.",
        minimum=-20.0,
        maximum=20.0,
    ),
    OptionDescriptor(
        "min_size",
        "int",
        15,
        "Objects of fewer voxels (pixels of a slice) are dropped; 0 keeps all.",
        minimum=0,
    ),
    OptionDescriptor(
        "niter",
        "int",
        None,
        "Steps along the flows; default: in proportion to the diameter.",
        minimum=1,
        maximum=100000,
    ),
    OptionDescriptor(
        "normalise",
        "choice",
        "auto",
        "Percentiles of each slice, of the whole volume, or none; auto: of the whole volume, so "
        "that empty slices stay empty.",
        choices=("auto", "slice", "volume", "none"),
    ),
    OptionDescriptor(
        "percentile_low",
        "float",
        1.0,
        "Percentile that becomes 0.",
        minimum=0.0,
        maximum=100.0,
    ),
    OptionDescriptor(
        "percentile_high",
        "float",
        99.0,
        "Percentile that becomes 1.",
        minimum=0.0,
        maximum=100.0,
    ),
    OptionDescriptor("invert", "bool", False, "Objects are darker than what surrounds them."),
    OptionDescriptor(
        "anisotropy",
        "float",
        None,
        "Spacing along z over that in the plane (ortho only); default: of the input.",
        minimum=0.01,
        maximum=100.0,
    ),
    OptionDescriptor(
        "flow3D_smooth",
        "float",
        0.0,
        "Sigma in voxels by which 3-D flows are smoothed (ortho only).",
        minimum=0.0,
        maximum=20.0,
    ),
    OptionDescriptor("batch", "int", 8, "Tiles per pass of the network.", minimum=1, maximum=1024),
    THREADS,
    OptionDescriptor(
        "download",
        "bool",
        False,
        "Let Cellpose fetch the weights of a model it knows by name, if they are not here.",
    ),
)

CELLPOSE3 = EngineDescriptor(
    id="cellpose3",
    title="Cellpose 3",
    description="Cells and nuclei by flows: cyto3, nuclei and models trained with Cellpose 2 or 3.",
    module="lamella.engines.cellpose.cellpose3",
    axes=("zyx", "yx"),
    produces=("instance",),
    devices=("cpu", "cuda"),
    needs_model=True,
    has_preview=True,
    is_resumable=True,
    options=OPTIONS,
    environment="cellpose3",
    model_module="lamella.engines.cellpose.cellpose3",
    confidence=("probability", "flow_error"),
    strategies=("slices", "hybrid", "ortho"),
)

CELLPOSE4 = replace(
    CELLPOSE3,
    id="cellpose4",
    title="Cellpose 4 (Cellpose-SAM)",
    description="Cells and nuclei by flows: Cellpose-SAM and models trained with Cellpose 4.",
    module="lamella.engines.cellpose.cellpose4",
    environment="cellpose4",
    model_module="lamella.engines.cellpose.cellpose4",
    # 308 million weights and the tiles of a batch.
    device_memory_bytes=6_000_000_000,
)

DESCRIPTORS = {entry.id: entry for entry in (CELLPOSE3, CELLPOSE4)}
