"""Objects: from classes or probabilities to numbered instances, and cleaning them.

Nothing here imports torch; numba, cc3d and edt are imported when a function needs them.
"""

from lamella.instances.affinity import AffinityOptions, affinity_instances, affinity_targets
from lamella.instances.clean import (
    count_voxels,
    fill_holes,
    keep_largest,
    relabel_sequential,
    remove_small,
)
from lamella.instances.components import (
    Components,
    ObjectCount,
    id_dtype,
    label_components,
    label_components_blockwise,
)
from lamella.instances.flow import FlowOptions, flow_instances, flow_targets
from lamella.instances.link import LinkOptions, LinkResult, link_slices
from lamella.instances.pipeline import CleanOptions, clean_labels
from lamella.instances.watershed import WatershedOptions, watershed_instances

__all__ = [
    "AffinityOptions",
    "CleanOptions",
    "Components",
    "FlowOptions",
    "LinkOptions",
    "LinkResult",
    "ObjectCount",
    "WatershedOptions",
    "affinity_instances",
    "affinity_targets",
    "clean_labels",
    "count_voxels",
    "fill_holes",
    "flow_instances",
    "flow_targets",
    "id_dtype",
    "keep_largest",
    "label_components",
    "label_components_blockwise",
    "link_slices",
    "relabel_sequential",
    "remove_small",
    "watershed_instances",
]
