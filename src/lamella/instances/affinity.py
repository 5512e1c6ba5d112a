"""Affinities: from "do these two voxels belong together?" to objects.

A network gives, for every voxel and every *offset*, the probability that the voxel and the one at
the offset from it are of the same object. Short offsets (the neighbours along the axes) attract;
longer ones, where the network has them, keep objects apart that touch in a few voxels:

* with long offsets: mutex watershed (Wolf et al. 2018), which needs no seeds and no threshold
  between objects;
* without: what hangs together by high affinities is a seed, and seeds grow along the highest
  affinities first (watershed on edges, Cousty et al. 2009).

Examples:
    >>> labels = np.array([[1, 1, 2, 2, 0]], np.uint32)
    >>> options = AffinityOptions(offsets=((-1, 0), (0, -1)))
    >>> maps = affinity_targets(labels, options.offsets)
    >>> maps.shape, affinity_instances(labels > 0, maps, options=options).tolist()
    ((2, 1, 5), [[1, 1, 2, 2, 0]])
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import InputError
from lamella.instances.clean import relabel_sequential, remove_small
from lamella.instances.components import label_components

__all__ = ["AffinityOptions", "affinity_instances", "affinity_targets"]

_TOP = 65_535
Offset = tuple[int, ...]
NEIGHBOURS: tuple[Offset, ...] = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))


@dataclass(frozen=True, slots=True)
class AffinityOptions:
    """How affinities become objects.

    Attributes:
        offsets: of every map, in voxels, (z, y, x) or (y, x); those of length 1 attract, all
            others keep apart.
        foreground_threshold: probability from which a voxel is foreground (a mask ignores it).
        affinity_threshold: neighbours below this are never joined directly.
        seed_threshold: without long offsets: affinity from which neighbours are of one seed.
        min_seed_size: without long offsets: smaller cores are no seeds, in voxels;
            they join the object beside them, or are one of their own where there is none.
        min_size: smaller objects are dropped, in voxels.
    """

    offsets: tuple[Offset, ...] = NEIGHBOURS
    foreground_threshold: float = 0.5
    affinity_threshold: float = 0.5
    seed_threshold: float = 0.9
    min_seed_size: int = 10
    min_size: int = 0

    def __post_init__(self) -> None:
        # Cards give lists.
        object.__setattr__(self, "offsets", tuple(tuple(int(d) for d in o) for o in self.offsets))
        lengths = {len(offset) for offset in self.offsets}
        if len(lengths) != 1 or not lengths <= {2, 3}:
            raise InputError(
                f"offsets are {self.offsets}, expected several of two or of three integers"
            )
        if not any(_is_short(offset) for offset in self.offsets):
            raise InputError(
                f"none of the offsets {self.offsets} reaches a neighbour: nothing can be joined",
                hint="add the neighbours along the axes, such as (-1, 0, 0)",
            )
        if any(not any(offset) for offset in self.offsets):
            raise InputError("an offset of 0 joins a voxel with itself")


def affinity_targets(
    labels: NDArray[Any], offsets: Sequence[Sequence[int]] = NEIGHBOURS
) -> NDArray[np.float32]:
    """What a network is to learn: 1 where both voxels of an offset are of the same object.

    Args:
        labels: integers, (z, y, x) or (y, x); 0 is background.
        offsets: in voxels, as many axes as ``labels``.

    Returns:
        float32, (n_offsets, …); 0 where an offset leads out of the array.

    Raises:
        InputError: for offsets with another number of axes.
    """
    result = np.zeros((len(offsets), *labels.shape), np.float32)
    for k, offset in enumerate(offsets):
        if len(offset) != labels.ndim:
            raise InputError(f"offset {tuple(offset)} does not fit labels of {labels.ndim} axes")
        here, there = _shifted(labels.shape, offset)
        result[k][here] = (labels[here] == labels[there]) & (labels[here] > 0)
    return result


def affinity_instances(
    foreground: NDArray[Any], affinities: NDArray[Any], *, options: AffinityOptions | None = None
) -> NDArray[np.uint32]:
    """Objects from affinities.

    Args:
        foreground: mask (bool) or probability (floating), (z, y, x) or (y, x).
        affinities: probabilities, 0 to 1, floating, (n_offsets, …), in the order of the offsets.
        options: offsets and thresholds.

    Returns:
        uint32 labels; 0 is background, objects are numbered 1..n by their first voxel in scan
        order.

    Raises:
        InputError: when shapes and offsets do not fit together.
    """
    options = options or AffinityOptions()
    _check(foreground, affinities, options)
    inside = foreground
    if foreground.dtype != np.bool_:
        inside = foreground >= options.foreground_threshold
    shape = inside.shape
    as_volume = (1,) * (3 - inside.ndim) + shape
    inside = np.ascontiguousarray(inside.reshape(as_volume))
    maps = np.rint(np.clip(affinities, 0.0, 1.0) * _TOP).astype(np.uint16)
    maps = maps.reshape(len(maps), *as_volume)
    if any(not _is_short(offset) for offset in options.offsets):
        labels = _mutex(inside, maps, options)
    else:
        labels = _seeded(inside, maps, options)
    labels = label_components(labels, connectivity=6).labels
    if options.min_size > 1:
        labels = remove_small(labels, options.min_size)
    numbered = relabel_sequential(labels, order="scan")
    return numbered.astype(np.uint32, copy=False).reshape(shape)


def _mutex(
    inside: NDArray[np.bool_], maps: NDArray[np.uint16], options: AffinityOptions
) -> NDArray[np.int64]:
    from lamella.instances.mutex import mutex_watershed

    least = _level(options.affinity_threshold)
    u, v, strength, is_repulsive = _edges(inside, maps, options, least)
    order = np.argsort(_TOP - strength, kind="stable")
    found = mutex_watershed(u[order], v[order], is_repulsive[order], inside.size)
    return np.where(inside, found.reshape(inside.shape) + 1, 0)


def _seeded(
    inside: NDArray[np.bool_], maps: NDArray[np.uint16], options: AffinityOptions
) -> NDArray[np.int64]:
    from lamella.instances.mutex import grow_seeds, mutex_watershed

    u, v, strength, _ = _edges(inside, maps, options, _level(options.affinity_threshold))
    strong = strength >= _level(options.seed_threshold)
    nothing = np.zeros(int(strong.sum()), bool)
    cores = mutex_watershed(u[strong], v[strong], nothing, inside.size)
    sizes = np.bincount(cores, minlength=inside.size)
    is_seed = (sizes[cores] >= options.min_seed_size) & inside.ravel()
    order = np.argsort(_TOP - strength, kind="stable")
    found = grow_seeds(u[order], v[order], np.where(is_seed, cores + 1, 0))
    # Clusters without a seed are below 0: brought above all seeds.
    found = np.where(found < 0, inside.size - found, found)
    return np.where(inside, found.reshape(inside.shape), 0)


def _edges(
    inside: NDArray[np.bool_], maps: NDArray[np.uint16], options: AffinityOptions, least: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint16], NDArray[np.bool_]]:
    """Edges within the foreground: both ends, strength, and which keep apart."""
    from lamella.instances.mutex import collect_edges

    parts: list[tuple[NDArray[Any], ...]] = []
    n = inside.size
    buffers = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.uint16)
    for affinity, offset in zip(maps, options.offsets, strict=True):
        full = (0,) * (3 - len(offset)) + offset
        is_long = not _is_short(offset)
        # A long edge that rather attracts than repels says nothing.
        limits = (0, _TOP // 2) if is_long else (max(1, least), _TOP)
        found = collect_edges(inside, affinity, full, limits, is_long, buffers)
        u, v, strength = (buffer[:found].copy() for buffer in buffers)
        parts.append((u, v, strength, np.full(found, is_long)))
    u, v, strength, is_repulsive = (np.concatenate(part) for part in zip(*parts, strict=True))
    return u, v, strength, is_repulsive


def _is_short(offset: Sequence[int]) -> bool:
    return sum(abs(d) for d in offset) == 1


def _level(value: float) -> int:
    return round(value * _TOP)


def _shifted(
    shape: tuple[int, ...], offset: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Voxels that have a partner, and their partners."""
    here = tuple(
        slice(max(0, -d), max(0, min(n, n - d))) for n, d in zip(shape, offset, strict=True)
    )
    there = tuple(
        slice(s.start + d, max(s.start, s.stop) + d) for s, d in zip(here, offset, strict=True)
    )
    return here, there


def _check(foreground: NDArray[Any], affinities: NDArray[Any], options: AffinityOptions) -> None:
    n = foreground.ndim
    if n not in (2, 3) or len(options.offsets[0]) != n:
        raise InputError(
            f"foreground has {n} axes; the offsets {options.offsets} have {len(options.offsets[0])}"
        )
    expected = (len(options.offsets), *foreground.shape)
    if affinities.shape != expected:
        raise InputError(
            f"affinities have shape {affinities.shape}, expected {expected}: one map per offset"
        )
