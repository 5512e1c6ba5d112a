"""Which sections are one object: the rules of linking, on the overlap graph alone.

The rules are stated, with their reasons, in docs/design/0004-linking.md; the numbers of this
module are theirs. All of them are symmetric: reading the slices backwards, renaming labels or
reading them in other pieces gives the same objects. Where two choices are equally good, a hash of
where the sections lie decides, which is symmetric too.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.instances.link_options import Linking, LinkOptions
from lamella.instances.matching import match_pairs
from lamella.instances.overlap_graph import OverlapGraph

__all__ = ["link_sections"]

NESTED = 0.75
"""Share of the smaller section inside the larger from which it is a cap, a piece or a branch."""
DRIFT = 0.35
"""How far two displacements of one object may differ, in radii of the smaller section."""
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
BRANCH_COVER = 0.75
"""Share of a trunk that its branches must make up together."""
BRANCH_LENGTH = 3
"""Sections that each branch must have; the trunk as many as the longer one."""
LONG = 16
"""Sections from which a trunk is long enough for every branch."""

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
        is_near = (self.distance == 1) & self._is_in_reach()
        strong = is_near & (self.weight >= least)
        caps = is_near & ~strong & (self.inside >= NESTED)
        displaced = is_near & ~strong & ~caps & (self.iou >= least)
        moved = np.flatnonzero(displaced)
        strong[moved[self._is_drift(moved, is_near & (self.iou >= least))]] = True
        return strong, caps

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
        """One to one; then caps that lie in a waist are cut off again."""
        edges = np.flatnonzero(strong | caps)
        chosen = edges[match_pairs(self.a[edges], self.b[edges], self.gain[edges], self.n)]
        self.following[self.a[chosen]] = self.b[chosen]
        self.preceding[self.b[chosen]] = self.a[chosen]
        weak = chosen[caps[chosen]]
        a, b, area = self.a[weak], self.b[weak], self.graph.area
        is_a_small = area[a] < area[b]
        small = np.where(is_a_small, a, b)
        beyond = np.where(is_a_small, self.preceding[a], self.following[b])
        is_waist = (beyond >= 0) & (area[beyond] > area[small])
        self.following[a[is_waist]] = -1
        self.preceding[b[is_waist]] = -1

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
        of = self._objects()
        first, last = self._reach(of)
        found: list[NDArray[np.int64]] = []
        stems: list[NDArray[np.int64]] = []
        rank = self.graph.rank
        nested = np.flatnonzero((self.distance == 1) & (self.inside >= NESTED))
        for trunk, twig, away, back, is_end in (
            (self.a, self.b, self.following, self.preceding, first[of] == rank),
            (self.b, self.a, self.preceding, self.following, last[of] == rank),
        ):
            edges = nested[is_end[twig[nested]] & (away[trunk[nested]] >= 0)]
            edges = edges[of[trunk[edges]] != of[twig[edges]]]
            stem, new, old = trunk[edges], twig[edges], away[trunk[edges]]
            edges = edges[
                self._is_covered(stem, new, old) & self._is_long(stem, new, old, away, back)
            ]
            found.append(edges)
            stems.append(trunk[edges])
        is_cross = self._cross(of, stems)
        edges = np.concatenate([e[~c] for e, c in zip(found, is_cross, strict=True)])
        self.joins.append(np.stack([self.a[edges], self.b[edges]], axis=1))
        return len(edges)

    def _cross(
        self, of: NDArray[np.int64], stems: list[NDArray[np.int64]]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which splits come after a merging of the same trunk, and which mergings before one.

        A trunk with two ends on either side is two objects that touch.
        """
        rank = self.graph.rank
        splits, merges = stems
        earliest = np.full(self.n, np.iinfo(np.int64).max)
        latest = np.full(self.n, -1)
        np.minimum.at(earliest, of[merges], rank[merges])
        np.maximum.at(latest, of[splits], rank[splits])
        return earliest[of[splits]] <= rank[splits], latest[of[merges]] >= rank[merges]

    def _is_covered(
        self, stem: NDArray[np.int64], new: NDArray[np.int64], old: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Whether the two branches together are the trunk, and either alone is not."""
        area = self.graph.area
        shared_new = self._shared(np.minimum(stem, new), np.maximum(stem, new))
        shared_old = self._shared(np.minimum(stem, old), np.maximum(stem, old))
        together = shared_new + shared_old
        is_trunk = together >= BRANCH_COVER * area[stem]
        is_trunk &= together >= BRANCH_COVER * (area[new] + area[old])
        # A twig that is a sliver of the trunk is a cap of something else.
        return is_trunk & (shared_new >= 0.2 * area[stem]) & (shared_old < 0.8 * area[stem])

    def _shared(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
        """Voxels in common, of pairs that have an edge."""
        keys = self.a * np.int64(max(1, self.n)) + self.b
        at = np.minimum(np.searchsorted(keys, a * np.int64(max(1, self.n)) + b), len(keys) - 1)
        return self.graph.edges[at, 3]

    def _is_long(
        self,
        stem: NDArray[np.int64],
        new: NDArray[np.int64],
        old: NDArray[np.int64],
        away: NDArray[np.int64],
        back: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """Whether branches go on, and the trunk is as long as they are while it stays as thick.

        A trunk that is as large as its branches together for a few slices only is two objects
        that touch, and were taken for one there.
        """
        length_new = self._run_lengths(new, away, np.zeros(len(new)))
        length_old = self._run_lengths(old, away, np.zeros(len(old)))
        trunk = self._run_lengths(stem, back, BRANCH_COVER * self.graph.area[stem])
        shorter, longer = np.minimum(length_new, length_old), np.maximum(length_new, length_old)
        return (shorter >= BRANCH_LENGTH) & (trunk >= longer)

    def _run_lengths(
        self, start: NDArray[np.int64], links: NDArray[np.int64], least: NDArray[Any]
    ) -> NDArray[np.int64]:
        """Sections from some sections on, themselves included, while they are large enough."""
        length = np.zeros(len(start), np.int64)
        at, is_on = start, np.ones(len(start), bool)
        for _ in range(LONG):
            is_on &= (at >= 0) & (self.graph.area[at] >= least)
            if not is_on.any():
                break
            length += is_on
            at = np.where(is_on, links[at], -1)
        return length

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
