"""Which sections are one object: the rules of linking, on the overlap graph alone.

The rules are stated, with their reasons, in docs/design/0004-linking.md; the numbers of this
module are theirs. All of them are symmetric: reading the slices backwards, renaming labels or
reading them in other pieces gives the same objects. Where two choices are equally good, a hash of
where the sections lie decides, which is symmetric too.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.instances.branching import Chains, find_branches
from lamella.instances.link_options import Linking, LinkOptions
from lamella.instances.matching import match_pairs
from lamella.instances.overlap_graph import OverlapGraph
from lamella.instances.parting import find_partings

__all__ = ["link_sections"]

NESTED = 0.75
"""Share of the smaller section inside the larger from which it is a cap, a piece or a branch."""
NESTED_AT_BORDER = 0.95
"""The same for caps in the first and last slice, where nothing tells whether they end there."""
DRIFT = 0.35
"""How far two displacements of one object may differ, in radii of the smaller section."""
WAIST = 1.1
"""From how much larger neighbours, in areas, a section is a waist."""
OFF_CENTRE = 0.25
"""Distance of the centroids, in radii of the larger section, from which a waist parts objects."""
REACH = 4.0
"""Farthest centroid of a link, in equivalent radii of the larger section, unless given."""
GAP_IOU = 0.5
"""IoU from which two sections may be one object that is missing between them."""
GAP_TAPER = 0.95
"""An end is no gap where it is thinner than this share of what its neighbours say."""
GAP_NEIGHBOURS = 2
"""Sections that must lie next to the ends of a gap, at most two on either side, to tell."""
BAD_SLICE = 0.5
"""Share of sections that go on behind a slice, not in it, from which the slice counts as bad."""
MANY = 3
"""Sections that the slices beside a bad one must have; fewer are no majority."""
_N_MATCHINGS = 2
"""Links are chosen, waists cut, and links chosen again without them."""
_UNIT = 2**20


def link_sections(
    graph: OverlapGraph, spacing: tuple[float, float], options: LinkOptions
) -> Linking:
    """Join sections to objects.

    Args:
        graph: with edges up to ``options.max_distance_z``.
        spacing: centre-to-centre distance, (y, x).
        options: what a link needs.
    """
    return _Linker(graph, spacing, options).run()


class _Linker:
    """One graph from edges to objects. ``a`` and ``b`` are the ends of every edge."""

    def __init__(
        self, graph: OverlapGraph, spacing: tuple[float, float], options: LinkOptions
    ) -> None:
        self.graph = graph
        self.options = options
        self.n = graph.n_sections
        self.a, self.b, self.distance, shared = graph.edges.T
        area = graph.area
        self.iou = shared / (area[self.a] + area[self.b] - shared)
        self.inside = shared / np.minimum(area[self.a], area[self.b])
        self.weight = self.iou * self.inside
        self.gain = self._gains()
        self.shift = (graph.centroid[self.b] - graph.centroid[self.a]) * spacing
        self.radius = np.sqrt(area * spacing[0] * spacing[1] / np.pi)
        self.is_near = (self.distance == 1) & self._is_in_reach()
        is_alike = self.is_near & (self.iou >= options.min_overlap_ratio)
        self.partings = find_partings(graph, spacing, self.is_near, is_alike, self.gain)
        self.following = np.full(self.n, -1)
        self.preceding = np.full(self.n, -1)
        self.joins: list[NDArray[np.int64]] = []

    def run(self) -> Linking:
        strong, caps = self._allowed()
        self._link(strong, caps)
        linked = np.flatnonzero(self.following >= 0)
        links = np.stack([linked, self.following[linked]], axis=1)
        self.joins.append(links)
        gaps = [self._close_gaps(d) for d in range(2, self.options.max_distance_z + 1)]
        n_absorbed = self._absorb()
        n_branches = self._branch()
        object_of = self._objects()
        return Linking(
            object_of=object_of,
            n_objects=int(object_of.max(initial=-1)) + 1,
            n_branches=n_branches,
            n_absorbed=n_absorbed,
            links=links,
            gaps=np.concatenate([np.zeros((0, 2), np.int64), *gaps]),
            margin=self._margins(),
        )

    # -- neighbouring slices

    def _allowed(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Edges between neighbouring slices that may be links: strong ones and caps."""
        least = self.options.min_overlap_ratio
        strong = self.is_near & (self.weight >= least)
        strong |= self.partings.from_stem | self.partings.onward
        caps = self.is_near & ~strong & (self.inside >= self._nested())
        displaced = self.is_near & ~strong & ~caps & (self.iou >= least)
        moved = np.flatnonzero(displaced)
        strong[moved[self._is_drift(moved, self.is_near & (self.iou >= least))]] = True
        return strong, caps

    def _nested(self) -> NDArray[np.float64]:
        """How much of the smaller section of every edge must lie inside the larger, for a cap."""
        area = self.graph.area
        is_a_small = area[self.a] < area[self.b]
        beyond = np.where(is_a_small, self.graph.rank[self.a] - 1, self.graph.rank[self.b] + 1)
        return np.where(self.graph.has_sections(beyond), NESTED, NESTED_AT_BORDER)

    def _is_in_reach(self) -> NDArray[np.bool_]:
        limit = self.options.max_centroid_distance
        far = np.hypot(self.shift[:, 0], self.shift[:, 1])
        if limit is None:
            return far <= REACH * np.maximum(self.radius[self.a], self.radius[self.b])
        return far <= limit

    def _is_drift(self, moved: NDArray[np.int64], usable: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which edges move an object the way the edge before or after them does."""
        a, b = self.a[moved], self.b[moved]
        tolerance = DRIFT * np.minimum(self.radius[a], self.radius[b])
        result = np.zeros(len(moved), bool)
        for ends, node in ((self.b, a), (self.a, b)):
            edges = np.flatnonzero(usable & _marked(node, self.n)[ends])
            beside = np.full(self.n, -1)
            # The best one is written last and stays.
            order = edges[np.argsort(self.gain[edges])]
            beside[ends[order]] = order
            other = beside[node]
            change = self.shift[moved] - self.shift[other]
            result |= (other >= 0) & (np.hypot(change[:, 0], change[:, 1]) <= tolerance)
        return result

    def _link(self, strong: NDArray[np.bool_], caps: NDArray[np.bool_]) -> None:
        """One to one; then what lies in a waist is cut again, and what it kept apart linked."""
        edges = np.flatnonzero(strong | caps)
        for _ in range(_N_MATCHINGS):
            chosen = edges[match_pairs(self.a[edges], self.b[edges], self.gain[edges], self.n)]
            self.following[:] = self.preceding[:] = -1
            self.following[self.a[chosen]] = self.b[chosen]
            self.preceding[self.b[chosen]] = self.a[chosen]
            cut = chosen[self._is_waist(chosen, caps[chosen])]
            self.following[self.a[cut]] = self.preceding[self.b[cut]] = -1
            if not len(cut):
                break
            edges = np.setdiff1d(edges, cut, assume_unique=True)

    def _is_waist(self, edges: NDArray[np.int64], is_cap: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which links lie in a waist: the smaller of the two sections is larger again beyond."""
        area, a, b = self.graph.area, self.a[edges], self.b[edges]
        is_a_small = area[a] < area[b]
        small, large = np.where(is_a_small, a, b), np.where(is_a_small, b, a)
        beyond = np.where(is_a_small, self.preceding[a], self.following[b])
        behind = np.where(is_a_small, self.following[b], self.preceding[a])
        beyond, behind = (np.where(at >= 0, area[at], 0) for at in (beyond, behind))
        far = np.hypot(self.shift[edges, 0], self.shift[edges, 1])
        is_waist = np.minimum(beyond, area[large]) > WAIST * area[small]
        is_waist &= (behind > WAIST * area[large]) | (self.iou[edges] < GAP_IOU)
        is_waist &= (far > OFF_CENTRE * self.radius[large]) & ~self.partings.from_stem[edges]
        return np.where(is_cap, beyond > area[small], is_waist)

    # -- missing and bad slices

    def _close_gaps(self, distance: int) -> NDArray[np.int64]:
        """Join ends of objects across a slice that lacks them."""
        graph, a, b = self.graph, self.a, self.b
        least = self.options.min_overlap_ratio
        edges = np.flatnonzero(
            (self.distance == distance)
            & (self.weight >= least)
            & (self.iou >= max(GAP_IOU, least))
            & self._is_in_reach()
        )
        of = self._objects()
        first, last = self._reach(of)
        is_open = (last[of[a[edges]]] < graph.rank[b[edges]]) & (
            first[of[b[edges]]] > graph.rank[a[edges]]
        )
        edges = edges[is_open]
        edges = edges[self._is_whole(edges, distance) | self._is_bad_slice(edges)]
        # The best edge of every pair of objects, then one to one.
        order = np.lexsort((-self.gain[edges], of[b[edges]], of[a[edges]]))
        edges = edges[order]
        pairs = np.stack([of[a[edges]], of[b[edges]]], axis=1)
        is_first = np.ones(len(edges), bool)
        is_first[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
        edges = edges[is_first]
        chosen = edges[match_pairs(of[a[edges]], of[b[edges]], self.gain[edges], self.n)]
        gaps = np.stack([a[chosen], b[chosen]], axis=1)
        self.joins.append(gaps)
        return gaps

    def _is_whole(self, edges: NDArray[np.int64], distance: int) -> NDArray[np.bool_]:
        """Whether neither end tapers towards the gap, as far as enough neighbours tell."""
        size = np.sqrt(self.graph.area)
        a, b = self.a[edges], self.b[edges]
        n_known = np.zeros(len(edges), np.int64)
        is_whole = np.ones(len(edges), bool)
        for end, other, links in ((a, b, self.preceding), (b, a, self.following)):
            before = links[end]
            # What lies on the straight line from the section before the end to beyond the gap.
            expected = (distance * size[before] + size[other]) / (distance + 1)
            is_whole &= (before < 0) | (size[end] >= GAP_TAPER * expected)
            n_known += before >= 0
            n_known += (before >= 0) & (links[before] >= 0)
        return (n_known >= GAP_NEIGHBOURS) & is_whole

    def _is_bad_slice(self, edges: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether most objects on both sides go on across the slices between, and few in them."""
        rank = self.graph.rank
        n_ranks = int(rank.max(initial=-1)) + 1
        n_sections = np.bincount(rank, minlength=n_ranks)
        is_linked = (self.following >= 0) | (self.preceding >= 0)
        n_linked = np.bincount(rank[is_linked], minlength=n_ranks)
        before, after = (
            np.bincount(rank[_marked(ends[edges], self.n)], minlength=n_ranks)
            for ends in (self.a, self.b)
        )
        p, q = rank[self.a[edges]], rank[self.b[edges]]
        beside = n_sections[p] + n_sections[q]
        total = np.concatenate([np.zeros(1, np.int64), np.cumsum(n_linked)])
        between = (total[q] - total[p + 1]) / np.maximum(1, q - p - 1)
        is_bad = (before[p] + after[q] > BAD_SLICE * beside) & (2 * between < BAD_SLICE * beside)
        return is_bad & (np.minimum(n_sections[p], n_sections[q]) >= MANY)

    # -- pieces and branches

    def _absorb(self) -> int:
        """Put loose pieces into the object that holds them on both sides."""
        of = self._objects()
        size = np.bincount(of, minlength=1)
        is_loose = size[of] == 1
        nested = np.flatnonzero((self.distance == 1) & (self.inside >= NESTED))
        before = nested[is_loose[self.b[nested]]]
        after = nested[is_loose[self.a[nested]]]
        # (piece, object) of both sides, with what the overlap is worth.
        n = np.int64(max(1, self.n))
        left = self.b[before] * n + of[self.a[before]]
        right = self.a[after] * n + of[self.b[after]]
        both = np.intersect1d(left, right)
        both = both[~is_loose[_first_of(of, self.n)[both % n]]] if len(both) else both
        if not len(both):
            return 0
        worth = np.zeros(len(both), np.int64)
        for keys, edges in ((left, before), (right, after)):
            at = np.minimum(np.searchsorted(both, keys), len(both) - 1)
            hit = both[at] == keys
            np.add.at(worth, at[hit], self.gain[edges[hit]])
        order = np.lexsort((-worth, both // n))
        piece = both[order] // n
        is_best = np.ones(len(order), bool)
        is_best[1:] = piece[1:] != piece[:-1]
        holder = _first_of(of, self.n)[both[order][is_best] % n]
        self.joins.append(np.stack([piece[is_best], holder], axis=1))
        return int(is_best.sum())

    def _branch(self) -> int:
        """Join what a trunk splits into, in either direction."""
        chains = Chains(self.graph, self.following, self.preceding, self._objects())
        edges = find_branches(chains, self.inside >= NESTED, self.partings.from_stem)
        self.joins.append(np.stack([self.a[edges], self.b[edges]], axis=1))
        return len(edges)

    # -- bookkeeping

    def _gains(self) -> NDArray[np.int64]:
        """What an edge is worth, exact and unique: weight first, then a hash of the places."""
        worth = np.rint((self.iou + self.inside) * (0.5 * _UNIT)).astype(np.int64)
        p = self.graph.first[self.a].astype(np.uint64)
        q = self.graph.first[self.b].astype(np.uint64)
        mixed = np.minimum(p, q) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= np.maximum(p, q) * np.uint64(0xC2B2AE3D27D4EB4F)
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        return worth * _UNIT + (mixed >> np.uint64(44)).astype(np.int64) + 1

    def _reach(self, of: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First and last rank of every object."""
        first = np.full(self.n, np.iinfo(np.int64).max)
        last = np.full(self.n, -1)
        np.minimum.at(first, of, self.graph.rank)
        np.maximum.at(last, of, self.graph.rank)
        return first, last

    def _objects(self) -> NDArray[np.int64]:
        """Object of every section, numbered by its first section."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        joins = np.concatenate(self.joins)
        ones = np.ones(len(joins), bool)
        joined = coo_matrix((ones, (joins[:, 0], joins[:, 1])), shape=(self.n, self.n))
        found: Any = connected_components(joined, directed=False)
        n, of = found
        smallest = _first_of(of, n)
        number = np.empty(n, np.int64)
        number[np.argsort(smallest)] = np.arange(n)
        return number[of]

    def _margins(self) -> NDArray[np.float32]:
        """How clear every link was: its weight less the best other weight at either end."""
        margin = np.full(self.n, np.nan, np.float32)
        edges = np.flatnonzero(self.distance == 1)
        is_link = self.following[self.a[edges]] == self.b[edges]
        worth = 0.5 * (self.iou[edges] + self.inside[edges])
        rival = np.zeros(2 * self.n)
        np.maximum.at(rival, self.a[edges[~is_link]], worth[~is_link])
        np.maximum.at(rival, self.n + self.b[edges[~is_link]], worth[~is_link])
        a, b = self.a[edges[is_link]], self.b[edges[is_link]]
        margin[a] = worth[is_link] - np.maximum(rival[a], rival[self.n + b])
        return margin


def _marked(index: NDArray[np.int64], n: int) -> NDArray[np.bool_]:
    """True where an index is among those given."""
    mark = np.zeros(n, bool)
    mark[index] = True
    return mark


def _first_of(groups: NDArray[Any], n: int) -> NDArray[np.int64]:
    """Smallest index of every group."""
    smallest = np.full(n, len(groups), np.int64)
    np.minimum.at(smallest, groups, np.arange(len(groups)))
    return smallest
