"""Where one object parts in two: found by what stays the same, however far the parts have moved.

Between thick slices two branches may move so far apart that neither lies inside the trunk any more.
What is kept is their sum: together they have the area of the trunk, and their joint centroid is
where the trunk's is. That is evidence only where it need not be so: sections that overlap anything
else are left out, for in packed tissue the areas on both sides of any outline are equal.

Examples:
    >>> from lamella.instances.overlap_graph import build_overlap_graph
    >>> labels = np.zeros((2, 4, 12), np.uint8)
    >>> labels[0, :, 2:10] = 1
    >>> labels[1, :, :4], labels[1, :, 8:] = 1, 2
    >>> graph = build_overlap_graph(labels)
    >>> every = np.ones(len(graph.edges), bool)
    >>> find_partings(graph, (1.0, 1.0), every, every, np.arange(2)).from_stem.tolist()
    [True, True]
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lamella.instances.overlap_graph import OverlapGraph

__all__ = ["Partings", "find_partings"]

_HALF = 0.5
"""Share of every part that lies over the stem."""
_LEAST = 0.2
"""Area of a part, in areas of the stem."""
_RIVAL = 0.25
"""Share of the smaller section from which another overlap counts."""
_CONSERVED = 0.75
"""How alike areas are that count as the same."""
_STEADY = 0.35
"""How far a joint centroid may move, in radii of the stem."""


@dataclass(frozen=True, slots=True)
class Partings:
    """Edges of a graph that belong to partings.

    Attributes:
        from_stem: bool, (m,); from a section to one of the two it parts into.
        onward: bool, (m,); from one of the two to the next section, where both move apart alike.
    """

    from_stem: NDArray[np.bool_]
    onward: NDArray[np.bool_]


def find_partings(
    graph: OverlapGraph,
    spacing: tuple[float, float],
    is_near: NDArray[np.bool_],
    is_onward: NDArray[np.bool_],
    gain: NDArray[np.int64],
) -> Partings:
    """Find where sections part in two, in either direction.

    Args:
        graph: sections and their overlaps.
        spacing: centre-to-centre distance, (y, x).
        is_near: bool, (m,); edges between neighbouring slices that may be links at all.
        is_onward: bool, (m,); those among them that overlap enough to go on from a part.
        gain: int64, (m,); what an edge is worth, no two alike.
    """
    a, b, _, shared = graph.edges.T
    sections = _Sections(graph.area, graph.centroid * spacing, spacing[0] * spacing[1])
    smaller = np.minimum(graph.area[a], graph.area[b])
    beside = np.flatnonzero((graph.edges[:, 2] == 1) & (shared >= _RIVAL * smaller))
    from_stem, onward = np.zeros(len(a), bool), np.zeros(len(a), bool)
    for stem, part in ((a, b), (b, a)):
        is_part = is_near & (shared >= _HALF * graph.area[part])
        is_part &= graph.area[part] >= _LEAST * graph.area[stem]
        twins = _twins(stem, part, beside, is_part)
        stems = stem[twins[:, :1]]
        twins = twins[sections.are_same(stems, part[twins], stems[:, 0])]
        from_stem[twins] = True
        # The best edge on from every section is written last and stays.
        edges = np.flatnonzero(is_onward)
        edges = edges[np.argsort(gain[edges])]
        best = np.full(graph.n_sections, -1)
        best[stem[edges]] = edges
        after = best[part[twins]]
        has_both = (after >= 0).all(axis=1)
        after, twins = after[has_both], twins[has_both]
        ends = part[after]
        is_even = sections.are_same(part[twins], ends, stem[twins[:, 0]])
        onward[after[is_even & (ends[:, 0] != ends[:, 1])]] = True
    return Partings(from_stem, onward)


def _twins(
    stem: NDArray[np.int64],
    part: NDArray[np.int64],
    beside: NDArray[np.int64],
    is_part: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Pairs of edges, int64, (k, 2), from a section to the only two that it overlaps."""
    n_parts, n_stems = np.bincount(stem[beside]), np.bincount(part[beside])
    edges = beside[is_part[beside]]
    edges = edges[(n_parts[stem[edges]] == 2) & (n_stems[part[edges]] == 1)]
    edges = edges[np.argsort(stem[edges], kind="stable")]
    is_pair = stem[edges[1:]] == stem[edges[:-1]]
    return np.stack([edges[:-1][is_pair], edges[1:][is_pair]], axis=1)


@dataclass(frozen=True, slots=True)
class _Sections:
    """Sizes and places; ``place`` is in the unit of the spacing, ``pixel`` the area of a pixel."""

    area: NDArray[np.int64]
    place: NDArray[np.float64]
    pixel: float

    def are_same(
        self, one: NDArray[np.int64], two: NDArray[np.int64], stem: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Whether two groups of sections, (k, 1 or 2), are as large and in the same place."""
        before, after = self.area[one].sum(axis=1), self.area[two].sum(axis=1)
        moved = np.linalg.norm(self._middle(two) - self._middle(one), axis=1)
        radius = np.sqrt(self.area[stem] * self.pixel / np.pi)
        is_as_large = np.minimum(before, after) >= _CONSERVED * np.maximum(before, after)
        return is_as_large & (moved <= _STEADY * radius)

    def _middle(self, group: NDArray[np.int64]) -> NDArray[np.float64]:
        area = self.area[group][:, :, None]
        return (self.place[group] * area).sum(axis=1) / area.sum(axis=1)
