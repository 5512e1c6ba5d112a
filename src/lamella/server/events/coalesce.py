"""What a listener that is behind need not hear: superseded progress and previews, nothing else.

Whoever applies what is left ends where it would have ended with everything:

* of progress, the last report of every stage;
* of previews, those that no later one paints over. A coarse preview never paints over final labels.

Examples:
    >>> lines = ['{"type": "progress", "stage": "tiles", "done": %d, "total": 9}' % n
    ...          for n in (1, 2, 3)]
    >>> [entry.number for entry in coalesce([Entry(n, line) for n, line in enumerate(lines, 1)])]
    [3]
"""

from __future__ import annotations

from collections.abc import Sequence

from lamella.server.events.entry import Entry

__all__ = ["coalesce"]

# Later previews that an earlier one is compared with, the largest first: enough to recognise what
# a pass over the whole volume paints over, without comparing everything with everything.
_N_COVERS = 16

_Box = tuple[tuple[int, ...], tuple[int, ...]]


class _Covers:
    """Boxes of later previews."""

    def __init__(self) -> None:
        self._exact: set[_Box] = set()
        self._largest: list[tuple[int, _Box]] = []

    def has(self, box: _Box) -> bool:
        return box in self._exact or any(_holds(other, box) for _, other in self._largest)

    def add(self, box: _Box) -> None:
        self._exact.add(box)
        self._largest.append((_size(box), box))
        self._largest.sort(reverse=True)
        del self._largest[_N_COVERS:]


def coalesce(entries: Sequence[Entry]) -> list[Entry]:
    """What is left of consecutive entries, in their order."""
    kept: list[Entry] = []
    stages: set[str] = set()
    final, coarse = _Covers(), _Covers()
    for entry in reversed(entries):
        if entry.type == "progress":
            stage = str(entry.document["stage"])
            if stage in stages:
                continue
            stages.add(stage)
        elif entry.type == "preview":
            box = _box(entry)
            is_final = bool(entry.document["is_final"])
            if final.has(box) or (not is_final and coarse.has(box)):
                continue
            (final if is_final else coarse).add(box)
        kept.append(entry)
    kept.reverse()
    return kept


def _box(entry: Entry) -> _Box:
    return tuple(entry.document["box_start"]), tuple(entry.document["box_stop"])


def _holds(outer: _Box, inner: _Box) -> bool:
    return all(a <= b for a, b in zip(outer[0], inner[0], strict=True)) and all(
        a >= b for a, b in zip(outer[1], inner[1], strict=True)
    )


def _size(box: _Box) -> int:
    size = 1
    for start, stop in zip(*box, strict=True):
        size *= max(0, stop - start)
    return size
