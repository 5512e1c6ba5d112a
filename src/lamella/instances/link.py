"""Linking: 2-D instances, slice by slice, become 3-D instances.

Two passes, both slab by slab: the first builds the overlap graph (:mod:`.overlap_graph`), from
which the rules (:mod:`.link_rules`) make objects; the second replaces labels by ids. Memory is a
few slabs and about 360 bytes an object and slice, whatever the depth.

Objects are numbered 1..n by their first voxel in scan order (z slowest); no id is used twice.
The objects depend neither on the values of the labels, nor on the direction in which the slices
are read, nor on the pieces they are read in; empty slices at either end, or up to
``max_distance_z - 1`` of them anywhere between, change nothing.

Examples:
    >>> labels = np.zeros((4, 1, 6), np.uint16)
    >>> labels[0, 0, :3], labels[1, 0, :3], labels[3, 0, :3] = 5, 2, 9  # slice 2 is empty
    >>> labels[0, 0, 4:], labels[3, 0, 4:] = 2, 1
    >>> written = []
    >>> def create(dtype):
    ...     written.append(np.zeros(labels.shape, dtype))
    ...     return written[0]
    >>> result = link_slices(labels, create, spacing=(1.0, 1.0, 1.0))
    >>> result.n_objects, written[0][:, 0, 0].tolist()
    (3, [1, 1, 0, 1])
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import InputError
from lamella.core.progress import Progress, ProgressSink, SilentSink
from lamella.instances.components import WritableArray, id_dtype
from lamella.instances.link_options import Linking, LinkOptions
from lamella.instances.link_rules import link_sections
from lamella.instances.overlap_graph import (
    OverlapGraph,
    as_unsigned,
    build_overlap_graph,
    n_workers,
    slab_extents,
)
from lamella.volume.source import LazyArray

__all__ = ["LinkOptions", "LinkResult", "link_slices"]


@dataclass(frozen=True, slots=True)
class LinkResult:
    """What linking made of the slices.

    Attributes:
        n_objects: objects in 3-D; ids are 1..n_objects.
        n_sections: objects of single slices before.
        n_links: links between neighbouring slices (empty slices not counted).
        n_gaps_closed: links across slices that lack the object.
        n_branches: branches joined to their trunk.
        n_absorbed: loose pieces put into the object that holds them on both sides.
        n_filled_voxels: voxels drawn by ``fill_gaps``.
        dtype: of the ids written, uint32 or uint64.
        n_slices: int64, (n_objects + 1,); slices of every object; 0 for 0.
        margin: float32, (n_objects + 1,); how clear the least clear link of every object was,
            from -1 to 1: overlap of the link less that of the best other choice. Nan for objects
            without a link.
    """

    n_objects: int
    n_sections: int
    n_links: int
    n_gaps_closed: int
    n_branches: int
    n_absorbed: int
    n_filled_voxels: int
    dtype: np.dtype[Any]
    n_slices: NDArray[np.int64]
    margin: NDArray[np.float32]


def link_slices(
    labels: LazyArray,
    create: Callable[[np.dtype[Any]], WritableArray],
    *,
    spacing: Sequence[float],
    options: LinkOptions | None = None,
    slab_depth: int | None = None,
    sink: ProgressSink | None = None,
) -> LinkResult:
    """Join the objects of slices to objects in 3-D.

    Args:
        labels: integers, (z, y, x); 0 is background, any other value is one object within its
            slice (the same value in another slice means nothing).
        create: called once, with the dtype that the number of objects needs; returns the output,
            an array of the same shape.
        spacing: centre-to-centre distance, (z, y, x).
        options: what a link needs; default :class:`LinkOptions`.
        slab_depth: slices a slab; default about 4 Mi voxels. The objects do not depend on it.
        sink: for progress and cancellation.

    Raises:
        InputError: for labels that are no integers, negative or not (z, y, x), or a wrong spacing.
        RunCancelledError: when the sink says so.
    """
    options = options or LinkOptions()
    sink = sink or SilentSink()
    if len(spacing) != 3 or not all(value > 0 for value in spacing):
        raise InputError(f"spacing is {tuple(spacing)}, expected three positive values (z, y, x)")
    in_plane = (float(spacing[1]), float(spacing[2]))
    graph = build_overlap_graph(
        labels,
        max_distance_z=options.max_distance_z,
        # Nothing below matters to any rule: the weight is at most the share.
        min_share=min(options.min_overlap_ratio, 0.25),
        slab_depth=slab_depth,
        sink=sink,
    )
    linking = link_sections(graph, in_plane, options)
    dtype = id_dtype(linking.n_objects)
    fill = _GapFiller(labels, graph, linking, in_plane) if options.fill_gaps else None
    _write(
        labels, create(dtype), graph, (linking.object_of + 1).astype(dtype), fill, slab_depth, sink
    )
    return LinkResult(
        n_objects=linking.n_objects,
        n_sections=graph.n_sections,
        n_links=linking.n_links,
        n_gaps_closed=linking.n_gaps_closed,
        n_branches=linking.n_branches,
        n_absorbed=linking.n_absorbed,
        n_filled_voxels=0 if fill is None else fill.n_voxels,
        dtype=dtype,
        n_slices=_slices_of(graph, linking),
        margin=_margins_of(linking),
    )


def _write(
    labels: LazyArray,
    output: WritableArray,
    graph: OverlapGraph,
    ids: NDArray[Any],
    fill: "_GapFiller | None",
    slab_depth: int | None,
    sink: ProgressSink,
) -> None:
    """Second pass: every label becomes the id of its object."""
    from lamella.instances.section_scan import rewrite_plane

    with ThreadPoolExecutor(n_workers()) as pool:
        for start, stop in slab_extents(labels.shape, slab_depth):
            sink.check()
            slab = as_unsigned(labels[start:stop])
            new = np.empty(slab.shape, ids.dtype)

            def rewrite(z: int, start: int = start, slab: Any = slab, new: Any = new) -> None:
                part = slice(graph.offset[z], graph.offset[z + 1])
                rewrite_plane(slab[z - start], new[z - start], graph.label[part], ids[part])

            list(pool.map(rewrite, range(start, stop)))
            if fill is not None:
                for z in range(start, stop):
                    fill.draw(z, new[z - start], ids)
            output[start:stop] = new
            del slab, new, rewrite  # before the next ones are made
            sink.emit(Progress("linking", stop, labels.shape[0], "slices"))


class _GapFiller:
    """Draws objects into slices that lack them.

    The shape is that of the signed distances to both outlines, interpolated along z (Raya & Udupa
    1990, doi:10.1109/42.52980). What is there already stays; where two objects would meet, the
    one that is deeper inside wins.
    """

    def __init__(
        self,
        labels: LazyArray,
        graph: OverlapGraph,
        linking: Linking,
        spacing: tuple[float, float],
    ) -> None:
        self._labels = labels
        self._graph = graph
        self._spacing = spacing
        self.n_voxels = 0
        z_of = graph.slice_of
        pairs = np.concatenate([linking.links, linking.gaps])
        self._between: dict[int, list[tuple[int, int, float]]] = {}
        for a, b in pairs[np.argsort(pairs[:, 0], kind="stable")]:
            first, last = int(z_of[a]), int(z_of[b])
            for z in range(first + 1, last):
                share = (z - first) / (last - first)
                self._between.setdefault(z, []).append((int(a), int(b), share))
        self._z_of = z_of
        self._planes: dict[int, NDArray[Any]] = {}

    def draw(self, z: int, plane: NDArray[Any], ids: NDArray[Any]) -> None:
        """Fill one slice of ids, in place."""
        wanted = self._between.get(z, [])
        is_free = plane == 0
        deepest = np.zeros(plane.shape, np.float32)
        for a, b, share in wanted:
            inside_a, inside_b = self._mask(a), self._mask(b)
            box = _box_of(inside_a | inside_b)
            depth = (1 - share) * self._depth(inside_a[box]) + share * self._depth(inside_b[box])
            better = (depth > deepest[box]) & is_free[box]
            self.n_voxels += int((better & (plane[box] == 0)).sum())
            plane[box][better] = ids[a]
            deepest[box][better] = depth[better]
        # Slices come in order: what lies before this one is not needed any more.
        for known in [k for k in self._planes if k < z]:
            del self._planes[known]

    def _mask(self, section: int) -> NDArray[np.bool_]:
        z = int(self._z_of[section])
        if z not in self._planes:
            self._planes[z] = as_unsigned(self._labels[z : z + 1])[0]
        return self._planes[z] == self._graph.label[section]

    def _depth(self, inside: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Distance to the outline, negative outside."""
        from scipy.ndimage import distance_transform_edt

        within: Any = distance_transform_edt(inside, self._spacing)
        without: Any = distance_transform_edt(~inside, self._spacing)
        return (within - without).astype(np.float32)


def _box_of(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Smallest box around a mask, one voxel wider where there is room."""
    y, x = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return slice(max(0, y[0] - 1), y[-1] + 2), slice(max(0, x[0] - 1), x[-1] + 2)


def _slices_of(graph: OverlapGraph, linking: Linking) -> NDArray[np.int64]:
    """In how many slices every object is."""
    pairs = np.sort(linking.object_of * np.int64(len(graph.offset)) + graph.slice_of)
    is_first = np.ones(len(pairs), bool)
    is_first[1:] = pairs[1:] != pairs[:-1]
    found = pairs[is_first] // len(graph.offset) + 1
    return np.bincount(found, minlength=linking.n_objects + 1)


def _margins_of(linking: Linking) -> NDArray[np.float32]:
    """The least margin of every object's links."""
    is_link = ~np.isnan(linking.margin)
    least = np.full(linking.n_objects + 1, np.inf, np.float32)
    np.minimum.at(least, linking.object_of[is_link] + 1, linking.margin[is_link])
    return np.where(np.isinf(least), np.float32(np.nan), least)
