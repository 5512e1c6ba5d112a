"""Do the levels of a spine follow each other? Doubts about labels, found from where they lie.

Models miscount: one or two in a hundred spines come back shifted, with a level twice, or with two
levels exchanged. The vertebrae are put in order along the curve through them
(:mod:`lamella.measurement.spine_curve`), and their labels are read from the head down::

    T11  T12  L1  L3  L4          L2 is missing between L1 and L3
    T11  T12  L1  L1' L2          L1 is there twice
    T11  L1  T12  L2              T12 and L1 are exchanged

A level that is missing where the neighbours stand as close as neighbours do was skipped, which a
person without it (a transitional spine) and a miscount have in common; one that is missing where
there is room for a vertebra was not found.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lamella.measurement.spine_curve import arc_positions, order_along
from lamella.measurement.spine_levels import VARIANTS, levels_between, rank_of
from lamella.measurement.vertebrae import Piece, Vertebra

__all__ = ["Finding", "Spine", "check_spine"]

_FAR_PIECE_MM = 10.0
_SMALL_PIECE = 0.02
"""Pieces below this share of a vertebra are crumbs, wherever they lie."""
_DOUBLE_PIECE = 0.3
"""A piece of at least this share of the largest one may be a vertebra of its own."""
_DOUBLE_DISTANCE = 0.6
"""How far along the spine it must lie from the largest one, in usual distances of neighbours."""
_ROOM = 1.6
"""Distances above this many usual ones leave room for another vertebra."""
_LARGE = 1.8
"""Neighbours differ by less in volume, C2 among the cervical ones included."""
_USUAL_MM = {"C": 18.0, "T": 24.0, "L": 35.0, "S": 35.0}
"""Distance of neighbours' centres in adults, by region, where a spine has too few to tell."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A doubt.

    Args:
        code: ``level_missing``, ``level_skipped``, ``level_double``, ``levels_swapped``,
            ``level_in_pieces``, ``level_large``, ``spine_gap`` or ``transitional_anatomy``.
        message: one sentence, naming the neighbours.
        levels: those concerned, from the head down.
        is_hint: whether it is a remark and no doubt about the labels.
    """

    code: str
    message: str
    levels: tuple[str, ...]
    is_hint: bool = False


@dataclass(frozen=True, slots=True)
class Spine:
    """Vertebrae in their order.

    Args:
        order: indices of the vertebrae from the head down.
        position_mm: distance along the curve from the first of them, in the same order.
        findings: doubts and hints.
    """

    order: tuple[int, ...]
    position_mm: tuple[float, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class _Node:
    """Something on the curve: a vertebra, or a second large piece of one."""

    level: str
    index: int
    place: tuple[float, float, float]
    is_second: bool = False

    @property
    def rank(self) -> int:
        return rank_of(self.level)


def check_spine(vertebrae: Sequence[Vertebra]) -> Spine:
    """Order vertebrae along the spine, and look whether their levels follow each other.

    Args:
        vertebrae: from :func:`lamella.measurement.vertebrae.find_vertebrae`.
    """
    if not vertebrae:
        return Spine((), (), ())
    axis = _axis(vertebrae)
    nodes: list[_Node] = []
    for k, vertebra in enumerate(vertebrae):
        seconds = _second_vertebrae(vertebra, axis)
        is_apart = bool(seconds or _far_pieces(vertebra, axis))
        place = _main(vertebra).centroid_mm if is_apart else vertebra.centroid_mm
        nodes.append(_Node(vertebra.level, k, place))
        nodes += [_Node(vertebra.level, k, piece.centroid_mm, is_second=True) for piece in seconds]
    places = np.array([node.place for node in nodes])
    ordered = [nodes[int(k)] for k in order_along(places, [node.rank for node in nodes])]
    along = arc_positions(np.array([node.place for node in ordered]))
    findings = [
        *_doubles(ordered),
        *_swaps(ordered),
        *_gaps(ordered, along),
        *_pieces(vertebrae, axis),
        *_large(vertebrae, ordered),
        *_variants(ordered),
    ]
    kept = [
        (node.index, float(p)) for node, p in zip(ordered, along, strict=True) if not node.is_second
    ]
    first = kept[0][1]
    return Spine(
        tuple(index for index, _ in kept),
        tuple(position - first for _, position in kept),
        tuple(findings),
    )


def _main(vertebra: Vertebra) -> Piece:
    return vertebra.pieces[0]


def _axis(vertebrae: Sequence[Vertebra]) -> NDArray[np.float64]:
    """Where the spine runs, on the whole: a unit vector (z, y, x)."""
    places = np.array([vertebra.centroid_mm for vertebra in vertebrae])
    if len(places) < 3:
        return np.array([1.0, 0.0, 0.0])
    return np.linalg.svd(places - places.mean(axis=0), full_matrices=False)[2][0]


def _second_vertebrae(vertebra: Vertebra, axis: NDArray[np.float64]) -> list[Piece]:
    """Pieces that may be vertebrae of their own.

    They are large and lie above or below the largest one: an arch that came off its body lies
    behind it. Where the volume ends, vertebrae fall into pieces by themselves.
    """
    main = _main(vertebra)
    apart = _DOUBLE_DISTANCE * _USUAL_MM[vertebra.level[0]]
    return [
        piece
        for piece in vertebra.pieces[1:]
        if not vertebra.is_incomplete
        and piece.n_voxels >= _DOUBLE_PIECE * main.n_voxels
        and abs(float(np.subtract(piece.centroid_mm, main.centroid_mm) @ axis)) > apart
    ]


def _far_pieces(vertebra: Vertebra, axis: NDArray[np.float64]) -> list[Piece]:
    """Pieces far off that are too small, or lie too oddly, to be vertebrae."""
    seconds = _second_vertebrae(vertebra, axis)
    least = _SMALL_PIECE * _main(vertebra).n_voxels
    return [
        piece
        for piece in vertebra.pieces[1:]
        if piece.gap_mm > _FAR_PIECE_MM and piece.n_voxels >= least and piece not in seconds
    ]


def _doubles(ordered: Sequence[_Node]) -> list[Finding]:
    found = []
    for level in dict.fromkeys(node.level for node in ordered):
        at = [k for k, node in enumerate(ordered) if node.level == level]
        if len(at) > 1:
            beside = [_neighbours(ordered, k) for k in at]
            found.append(
                Finding(
                    "level_double",
                    f"{level} is there {_times(len(at))}: {' and '.join(beside)}; one of them is"
                    " another level",
                    (level,),
                )
            )
    return found


def _neighbours(ordered: Sequence[_Node], k: int) -> str:
    above = ordered[k - 1].level if k > 0 else None
    below = ordered[k + 1].level if k + 1 < len(ordered) else None
    if above and below:
        return f"between {above} and {below}"
    return f"above {below}" if below else f"below {above}" if above else "alone"


def _times(n: int) -> str:
    return "twice" if n == 2 else f"{n} times"


def _swaps(ordered: Sequence[_Node]) -> list[Finding]:
    """Neighbours on the curve that stand the wrong way round."""
    found = []
    for k, (upper, lower) in enumerate(pairwise(ordered)):
        if upper.rank <= lower.rank:
            continue
        above = ordered[k - 1].level if k > 0 else None
        below = ordered[k + 2].level if k + 2 < len(ordered) else None
        beside = " and ".join(name for name in (above, below) if name)
        found.append(
            Finding(
                "levels_swapped",
                f"{upper.level} lies above {lower.level}"
                + (f" (their neighbours are {beside})" if beside else "")
                + ": their labels are exchanged, or the levels were miscounted",
                (lower.level, upper.level),
            )
        )
    return found


def _gaps(ordered: Sequence[_Node], along: NDArray[np.float64]) -> list[Finding]:
    """Levels that are missing, or vertebrae that have no label, between neighbours."""
    kept = _ascending(ordered)
    usual = _usual_distances(ordered, along, kept)
    found = []
    for upper_at, lower_at in pairwise(kept):
        upper, lower = ordered[upper_at], ordered[lower_at]
        distance = float(along[lower_at] - along[upper_at])
        expected = usual[upper_at]
        others = lower_at - upper_at - 1
        room = round(distance / expected) - 1 if distance > _ROOM * expected else 0
        # What stands between in the wrong order is told as exchanged.
        other = {node.level for node in ordered}
        missing = tuple(m for m in levels_between(upper.level, lower.level) if m not in other)
        if missing:
            found.append(_missing((upper, lower), missing, distance, room, others))
        elif room and not others:
            found.append(
                Finding(
                    "spine_gap",
                    f"{upper.level} and {lower.level} lie {distance:.0f} mm apart, neighbours here"
                    f" about {expected:.0f} mm: a vertebra between them has no label",
                    (upper.level, lower.level),
                )
            )
    return found


def _missing(
    between: tuple[_Node, _Node], missing: tuple[str, ...], distance: float, room: int, others: int
) -> Finding:
    """A gap between two nodes: with ``room`` vertebrae's space, and ``others`` labelled amiss."""
    upper, lower = between
    names = _joined(missing)
    verb = "is" if len(missing) == 1 else "are"
    where = f"between {upper.level} and {lower.level} ({distance:.0f} mm apart)"
    if others:
        return Finding(
            "level_missing",
            f"{names} {verb} missing {where}, where a vertebra has a label that does not fit",
            (upper.level, *missing, lower.level),
        )
    if room:
        space = "one vertebra" if room == 1 else f"{room} vertebrae"
        return Finding(
            "level_missing",
            f"{names} {verb} missing {where}, where there is room for {space}",
            (upper.level, *missing, lower.level),
        )
    return Finding(
        "level_skipped",
        f"{names} {verb} skipped {where}, where there is no room for a vertebra: the levels on one"
        " side were miscounted, or the patient lacks a level",
        (upper.level, *missing, lower.level),
    )


def _joined(names: Sequence[str]) -> str:
    if len(names) > 3:
        return f"{names[0]} to {names[-1]}"
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _ascending(ordered: Sequence[_Node]) -> list[int]:
    """The longest run of nodes whose levels descend the body; what breaks it is told elsewhere."""
    best: list[list[int]] = []
    for k, node in enumerate(ordered):
        before = [run for run in best if ordered[run[-1]].rank < node.rank]
        best.append([*max(before, key=len, default=[]), k])
    return max(best, key=len)


def _usual_distances(
    ordered: Sequence[_Node], along: NDArray[np.float64], kept: list[int]
) -> dict[int, float]:
    """The distance one expects below each node: of the nearest true neighbours, else of adults."""
    known = [
        (0.5 * (a + b), float(along[b] - along[a]))
        for a, b in pairwise(kept)
        if b == a + 1 and not levels_between(ordered[a].level, ordered[b].level)
    ]
    usual = {}
    for a, b in pairwise(kept):
        centre = 0.5 * (a + b)
        near = sorted(
            (pair for pair in known if pair[0] != centre), key=lambda pair: abs(pair[0] - centre)
        )
        if len(near) >= 2:
            usual[a] = float(np.median([distance for _, distance in near[:4]]))
        else:
            usual[a] = _USUAL_MM[ordered[a].level[0]]
    return usual


def _pieces(vertebrae: Sequence[Vertebra], axis: NDArray[np.float64]) -> list[Finding]:
    found = []
    for vertebra in vertebrae:
        far = _far_pieces(vertebra, axis)
        if far:
            gap = max(piece.gap_mm for piece in far)
            found.append(
                Finding(
                    "level_in_pieces",
                    f"{vertebra.level} lies in {len(far) + 1} pieces up to {gap:.0f} mm apart: the"
                    " smaller ones belong to something else, or its centroid lies off",
                    (vertebra.level,),
                )
            )
    return found


def _large(vertebrae: Sequence[Vertebra], ordered: Sequence[_Node]) -> list[Finding]:
    """A label that covers two vertebrae is one piece, and twice as large as its neighbours."""
    found = []
    whole = [node for node in ordered if not node.is_second]
    for above, node, below in zip(whole, whole[1:], whole[2:], strict=False):
        three = [vertebrae[other.index] for other in (above, node, below)]
        if any(known.is_incomplete or known.level == "S1" for known in three):
            continue
        # Of the largest pieces: a second one is a level there twice, told as such.
        sizes = [_main(known).n_voxels for known in three]
        ratio = 2 * sizes[1] / (sizes[0] + sizes[2])
        if ratio > _LARGE:
            found.append(
                Finding(
                    "level_large",
                    f"{node.level} is {ratio:.1f} times as large as"
                    f" {above.level} and {below.level} beside it: it may cover two vertebrae",
                    (node.level,),
                )
            )
    return found


def _variants(ordered: Sequence[_Node]) -> list[Finding]:
    """What a person who counts would look at twice."""
    present = {node.level for node in ordered}
    found = [
        Finding(
            "transitional_anatomy",
            f"{level} was found: a supernumerary level, as some people have, or a miscount. Count"
            " from C2 or from the sacrum",
            (level,),
            is_hint=True,
        )
        for level in VARIANTS
        if level in present
    ]
    levels = [node.level for node in ordered]
    for upper, lower, text in (
        ("L4", "S1", "four lumbar vertebrae: L5 may be part of the sacrum"),
        ("T11", "L1", "eleven thoracic vertebrae: the last ribs decide"),
    ):
        if any(pair == (upper, lower) for pair in pairwise(levels)):
            found.append(
                Finding(
                    "transitional_anatomy",
                    f"{lower} follows {upper}; if no vertebra was overlooked, there are {text}",
                    (upper, lower),
                    is_hint=True,
                )
            )
    return found
