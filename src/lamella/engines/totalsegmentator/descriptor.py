"""What the engine for TotalSegmentator can do, told without importing NumPy.

Example:
    >>> TOTALSEGMENTATOR.environment, TOTALSEGMENTATOR.needs
    ('totalsegmentator', ())
"""

from __future__ import annotations

from lamella.engines.engine import EngineDescriptor, OptionDescriptor

__all__ = ["OPTIONS", "TOTALSEGMENTATOR"]

OPTIONS = (
    OptionDescriptor(
        "fast",
        "bool",
        False,
        "Use the task's model for 3 mm (6 mm for body): a fraction of the time and memory.",
    ),
    OptionDescriptor("fastest", "bool", False, "Use the task's model for 6 mm: a rough guess."),
    OptionDescriptor(
        "roi_subset",
        "text",
        None,
        "Only these classes of total, total_v3 or total_mr, separated by commas: the image is"
        " cropped to them, and parts of the model that know none of them are not run.",
    ),
    OptionDescriptor(
        "robust_crop",
        "bool",
        False,
        "Where the image is cropped first, find the crop with the 3 mm model instead of the 6 mm"
        " one.",
    ),
    OptionDescriptor(
        "body_seg",
        "bool",
        False,
        "Crop to the body first (CT): faster where much of a large image is air.",
    ),
    OptionDescriptor(
        "remove_small_blobs", "bool", False, "Remove blobs below 200 mm3 of every class."
    ),
    OptionDescriptor(
        "higher_order_resampling",
        "bool",
        False,
        "Resample the network's output instead of its labels: smoother outlines, more time, and"
        " some 400 bytes of memory for each voxel of the input.",
    ),
    OptionDescriptor(
        "force_split",
        "bool",
        False,
        "Predict tasks of several models in three pieces along the body: less memory.",
    ),
    OptionDescriptor(
        "licence",
        "text",
        None,
        "Licence number of the licensed tasks, or better a file that holds it, so that the number"
        " is not written into the manifest; default: the one in TotalSegmentator's own config.",
    ),
    OptionDescriptor(
        "weights",
        "text",
        None,
        "A folder of Dataset... folders to be used before those of the model store.",
    ),
)

TOTALSEGMENTATOR = EngineDescriptor(
    id="totalsegmentator",
    title="TotalSegmentator",
    description="Organs, bones, vessels and muscles in CT and MR: every task of the package.",
    module="lamella.engines.totalsegmentator.engine",
    axes=("zyx",),
    produces=("semantic",),
    devices=("cpu", "mps", "cuda"),
    needs_model=True,
    has_preview=True,
    is_resumable=True,
    options=OPTIONS,
    environment="totalsegmentator",
    model_module="lamella.engines.totalsegmentator.models",
    confidence=("probability", "margin", "entropy"),
    memory_bytes_per_voxel=40.0,
    strategies=(),
    device_memory_bytes=6_000_000_000,
)
