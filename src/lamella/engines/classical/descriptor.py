"""What the classical engine can do and which options it takes, told without importing NumPy.

Example:
    >>> CLASSICAL.needs_model
    False
"""

from __future__ import annotations

from lamella.engines.engine import EngineDescriptor, OptionDescriptor

METHODS = ("otsu", "li", "fixed", "watershed", "log")

OPTIONS = (
    OptionDescriptor(
        "method",
        "choice",
        "otsu",
        "A global threshold (otsu, li, fixed), a threshold whose touching objects are told apart "
        "(watershed), or blobs of a known size (log).",
        choices=METHODS,
    ),
    OptionDescriptor(
        "objects",
        "choice",
        "bright",
        "Whether objects are brighter or darker than what surrounds them.",
        choices=("bright", "dark"),
    ),
    OptionDescriptor(
        "threshold",
        "float",
        None,
        "Intensity limit in the input's own values; needed by method=fixed, and in place of "
        "Otsu's with method=watershed.",
    ),
    OptionDescriptor(
        "smoothing",
        "float",
        None,
        "Sigma of a Gaussian before the threshold, in the input's unit (voxels where the input "
        "is not calibrated); default: one voxel of the finest axis, 0 for none.",
        minimum=0.0,
    ),
    OptionDescriptor(
        "radius",
        "float",
        None,
        "Typical radius of an object in the input's unit (voxels where not calibrated); needed by "
        "method=log; with method=watershed, seeds nearer than this are one object.",
        minimum=0.0,
    ),
    OptionDescriptor(
        "radius_range",
        "float",
        1.5,
        "Blobs from radius / range to radius * range are sought (method=log).",
        minimum=1.0,
        maximum=8.0,
    ),
    OptionDescriptor(
        "sensitivity",
        "float",
        0.5,
        "How faint a blob may be, 0 (only the strongest) to 1 (method=log).",
        minimum=0.0,
        maximum=1.0,
    ),
)

CLASSICAL = EngineDescriptor(
    id="classical",
    title="Classical",
    description="Threshold, blob and watershed segmentation; needs no model and no GPU.",
    module="lamella.engines.classical.engine",
    axes=("zyx", "yx"),
    produces=("semantic", "instance"),
    needs=("numpy", "scipy", "zarr"),
    devices=("cpu",),
    needs_model=False,
    has_preview=True,
    is_resumable=False,
    is_deterministic=True,
    strategies=(),
    options=OPTIONS,
)
