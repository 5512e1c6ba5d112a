"""Per-slice instances of an engine become objects of the volume: ``--instances hybrid``."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import InputError
from lamella.core.progress import ProgressSink
from lamella.engines.engine import EngineDescriptor
from lamella.volume.box import Box
from lamella.volume.labels import Labels
from lamella.volume.spacing import Unit, convert_length
from lamella.volume.volume import Note, Volume
from lamella.wire.request import LinkingDoc, SegmentRequest

if TYPE_CHECKING:
    from lamella.instances import LinkOptions, LinkResult
    from lamella.io.label_store import LabelStore

__all__ = [
    "LinkedLabels",
    "check_strategy",
    "length_in",
    "link_facts",
    "link_labels",
    "link_options",
    "linking_notes",
    "wants_linking",
]

_SLAB_VOXELS = 2**23
_FEW, _FEW_LINKS = 20, 0.2
"""Fewer sections than this tell nothing; a smaller share of linked ones is odd."""
_STRATEGIES = ("slices", "hybrid", "volumetric", "ortho")


@dataclass(frozen=True, slots=True)
class LinkedLabels:
    """Linked instances that are on disk, not yet finished as an image.

    Attributes:
        store: ids 1..n, every voxel written.
        columns: numbers of every object, by name, indexed by id.
        facts: what the manifest says of it.
    """

    store: "LabelStore"
    columns: Mapping[str, NDArray[Any]]
    facts: Mapping[str, Any]


def check_strategy(request: SegmentRequest, volume: Volume, engine: EngineDescriptor) -> None:
    """Refuse a way to 3-D objects that the engine or the input does not have.

    Raises:
        InputError: with what there is instead.
    """
    wanted = request.instances
    if wanted not in _STRATEGIES:
        return
    if "z" not in volume.axes or volume.spatial_shape[0] == 1:
        raise InputError(
            f"--instances {wanted} is about the slices of a volume; the input is a single image",
            hint="leave out --instances, or open the slices as one volume (a folder of slices)",
        )
    known = engine.strategies if "instance" in engine.produces else ()
    if known is not None and wanted not in known:
        others = f"it knows {', '.join(known)}; or " if known else ""
        raise InputError(
            f"the engine {engine.id!r} cannot do --instances {wanted}",
            hint=f"{others}use --instances components, or a 2-D instance model such as nuclei-2d",
        )


def wants_linking(request: SegmentRequest, labels: Labels, *, is_per_slice: bool) -> bool:
    """Whether an engine's labels are to be linked.

    Args:
        request: ``auto`` links whatever is per slice, ``hybrid`` by name.
        labels: of the engine.
        is_per_slice: whether the engine told objects apart within slices only.
    """
    has_slices = "z" in labels.axes and labels.spatial_shape[0] > 1
    is_asked = request.instances in ("auto", "hybrid")
    return is_per_slice and is_asked and labels.is_instance and has_slices


def link_labels(
    path: Path, labels: Labels, linking: LinkingDoc, sink: ProgressSink
) -> LinkedLabels:
    """Link the objects of slices, slab by slab, into a label store.

    Args:
        path: folder of the store; not there yet.
        labels: per-slice instances.
        linking: what a link needs.
        sink: progress and cancellation.

    Raises:
        GeometryError: for a physical distance where nobody knows the spacing.
        StorageError: when the disk is full.
        RunCancelledError: when cancelled.
    """
    from lamella.instances import link_slices
    from lamella.io.label_store import create_labels

    options = link_options(linking, labels)
    stores: list[LabelStore] = []

    def create(dtype: np.dtype[Any]) -> "_SlabWriter":
        store = create_labels(
            path, like=labels, dtype=dtype, classes=labels.classes, is_instance=True
        )
        stores.append(store)
        return _SlabWriter(store)

    from lamella.io.ome_zarr_arrays import chunk_shape

    # Whole chunks: each is written once.
    unit = chunk_shape(labels.spatial_shape)[0]
    plane = max(1, math.prod(labels.spatial_shape[1:]))
    depth = unit * max(1, _SLAB_VOXELS // (plane * unit))
    result = link_slices(
        labels.data,
        create,
        spacing=labels.spacing.values,
        options=options,
        slab_depth=depth,
        sink=sink,
    )
    columns = {"n_slices": result.n_slices, "link_margin": result.margin}
    return LinkedLabels(stores[0], columns, link_facts(options, result))


def link_options(linking: LinkingDoc, labels: Volume, *, fill_gaps: bool = False) -> "LinkOptions":
    """The options of a document, lengths in the unit of the labels.

    Raises:
        GeometryError: for a physical distance where nobody knows the spacing.
    """
    from lamella.instances import LinkOptions

    far = linking.max_centroid_distance
    return LinkOptions(
        min_overlap_ratio=linking.min_overlap_ratio,
        max_distance_z=linking.max_distance_z,
        max_centroid_distance=None if far is None else length_in(far.value, far.unit, labels),
        fill_gaps=fill_gaps,
    )


def link_facts(options: "LinkOptions", result: "LinkResult") -> dict[str, Any]:
    """What was used and what came out, for people and manifests."""
    return {
        "min_overlap_ratio": options.min_overlap_ratio,
        "max_distance_z": options.max_distance_z,
        "max_centroid_distance": options.max_centroid_distance,
        "fill_gaps": options.fill_gaps,
        "n_sections": result.n_sections,
        "n_objects": result.n_objects,
        "n_links": result.n_links,
        "n_gaps_closed": result.n_gaps_closed,
        "n_branches": result.n_branches,
        "n_absorbed": result.n_absorbed,
        "n_filled_voxels": result.n_filled_voxels,
    }


def linking_notes(facts: Mapping[str, Any]) -> tuple[Note, ...]:
    """What the user must know about how slices were linked."""
    n_sections, n_links = int(facts["n_sections"]), int(facts["n_links"])
    if n_sections < _FEW or n_links >= _FEW_LINKS * n_sections:
        return ()
    return (
        Note(
            "few_links",
            f"only {n_links} of {n_sections} objects of slices go on in the next slice: if the"
            " slices are no volume, use --instances slices; if they are thick, a lower"
            " --min-overlap-ratio may help",
        ),
    )


def length_in(value: float, unit: Unit, labels: Volume) -> float:
    """A length in the unit of the labels' spacing; voxels mean those of the finest axis.

    Raises:
        GeometryError: for a physical length where nobody knows the spacing.
    """
    if unit == "voxel":
        return value * min(labels.spacing.values)
    return convert_length(value, unit, labels.unit)


class _SlabWriter:
    """Lets ids be written into a label store as into an array."""

    def __init__(self, store: "LabelStore") -> None:
        self._store = store

    def __setitem__(self, index: slice, value: NDArray[Any]) -> None:
        rest = self._store.shape[1:]
        self._store.write(Box((index.start, 0, 0), (index.stop, *rest)), value)
