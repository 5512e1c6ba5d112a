"""Which objects are branches of others: what begins inside a section that already goes on.

A fork and two objects that touch look alike where they meet; what tells them apart is how far the
trunk and its branches go on.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.instances.overlap_graph import OverlapGraph

__all__ = ["Chains", "find_branches"]

COVER = 0.75
"""Share of a trunk that its branches must make up together."""
SLIVER = 0.2
"""Share of a trunk below which what lies in it is a cap of something else."""
LENGTH = 3
"""Sections that each branch must have; the trunk as many as the longer one."""
SEEN = 2
"""Sections that are enough of a branch that goes on to the first or last slice."""
LONG = 16
"""Sections from which a trunk is long enough for every branch."""


@dataclass(frozen=True, slots=True)
class Chains:
    """Sections that are linked, slice by slice.

    Attributes:
        graph: sections and their overlaps.
        following: int64, (n,); the section that every section is linked to in the next slice, or
            -1.
        preceding: int64, (n,); the same in the slice before.
        of: int64, (n,); object of every section.
    """

    graph: OverlapGraph
    following: NDArray[np.int64]
    preceding: NDArray[np.int64]
    of: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Way:
    """One of the two directions: ``away`` from a trunk to its branches, ``back`` along it."""

    away: NDArray[np.int64]
    back: NDArray[np.int64]
    step: int


def find_branches(
    chains: Chains, is_nested: NDArray[np.bool_], is_part: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Find the edges from trunks to their branches, in either direction.

    Args:
        chains: what is linked already.
        is_nested: bool, (m,); edges whose smaller section lies inside the larger.
        is_part: bool, (m,); edges from a section to one of two that are as large as it together.
    """
    a, b, distance, _ = chains.graph.edges.T
    of, rank = chains.of, chains.graph.rank
    first, last = _reach(chains)
    found: list[NDArray[np.int64]] = []
    stems: list[NDArray[np.int64]] = []
    usable = np.flatnonzero((distance == 1) & (is_nested | is_part))
    for trunk, twig, way, is_end in (
        (a, b, _Way(chains.following, chains.preceding, 1), first[of] == rank),
        (b, a, _Way(chains.preceding, chains.following, -1), last[of] == rank),
    ):
        edges = usable[is_end[twig[usable]] & (way.away[trunk[usable]] >= 0)]
        edges = edges[of[trunk[edges]] != of[twig[edges]]]
        stem, new, old = trunk[edges], twig[edges], way.away[trunk[edges]]
        is_whole = is_part[edges] | _is_covered(chains.graph, stem, new, old)
        edges = edges[is_whole & _is_long(chains.graph, stem, new, old, way)]
        found.append(edges)
        stems.append(trunk[edges])
    is_cross = _cross(chains, stems)
    return np.concatenate([e[~c] for e, c in zip(found, is_cross, strict=True)])


def _reach(chains: Chains) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last rank of every object."""
    n = chains.graph.n_sections
    first, last = np.full(n, np.iinfo(np.int64).max), np.full(n, -1)
    np.minimum.at(first, chains.of, chains.graph.rank)
    np.maximum.at(last, chains.of, chains.graph.rank)
    return first, last


def _cross(
    chains: Chains, stems: list[NDArray[np.int64]]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which splits come after a merging of the same trunk, and which mergings before one.

    A trunk with two ends on either side is two objects that touch.
    """
    of, rank = chains.of, chains.graph.rank
    splits, merges = stems
    earliest, latest = np.full(len(of), np.iinfo(np.int64).max), np.full(len(of), -1)
    np.minimum.at(earliest, of[merges], rank[merges])
    np.maximum.at(latest, of[splits], rank[splits])
    return earliest[of[splits]] <= rank[splits], latest[of[merges]] >= rank[merges]


def _is_covered(
    graph: OverlapGraph,
    stem: NDArray[np.int64],
    new: NDArray[np.int64],
    old: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Whether the two branches together are the trunk, and either alone is not."""
    area = graph.area
    shared_new, shared_old = _shared(graph, stem, new), _shared(graph, stem, old)
    together = shared_new + shared_old
    is_trunk = together >= COVER * area[stem]
    is_trunk &= together >= COVER * (area[new] + area[old])
    return is_trunk & (shared_new >= SLIVER * area[stem]) & (shared_old < (1 - SLIVER) * area[stem])


def _shared(
    graph: OverlapGraph, one: NDArray[np.int64], two: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Voxels in common, of pairs that have an edge."""
    n = np.int64(max(1, graph.n_sections))
    keys = graph.edges[:, 0] * n + graph.edges[:, 1]
    wanted = np.minimum(one, two) * n + np.maximum(one, two)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return graph.edges[at, 3]


def _is_long(
    graph: OverlapGraph,
    stem: NDArray[np.int64],
    new: NDArray[np.int64],
    old: NDArray[np.int64],
    way: _Way,
) -> NDArray[np.bool_]:
    """Whether branches go on, and the trunk is as long as they are while it stays as thick.

    A trunk that is as large as its branches together for a few slices only is two objects that
    touch, and were taken for one there. Of a branch that goes on to the first or last slice no more
    can be seen.
    """
    length_new = _run_lengths(graph, new, way.away, np.zeros(len(new)))
    length_old = _run_lengths(graph, old, way.away, np.zeros(len(old)))
    trunk = _run_lengths(graph, stem, way.back, COVER * graph.area[stem])
    shorter, longer = np.minimum(length_new, length_old), np.maximum(length_new, length_old)
    goes_out = ~graph.has_sections(graph.rank[new] + way.step * shorter)
    is_seen = goes_out & (shorter >= SEEN) & (trunk >= LENGTH)
    return ((shorter >= LENGTH) | is_seen) & (trunk >= longer)


def _run_lengths(
    graph: OverlapGraph,
    start: NDArray[np.int64],
    links: NDArray[np.int64],
    least: NDArray[Any],
) -> NDArray[np.int64]:
    """Sections from some sections on, themselves included, while they are large enough."""
    length = np.zeros(len(start), np.int64)
    at, is_on = start, np.ones(len(start), bool)
    for _ in range(LONG):
        is_on &= (at >= 0) & (graph.area[at] >= least)
        if not is_on.any():
            break
        length += is_on
        at = np.where(is_on, links[at], -1)
    return length
