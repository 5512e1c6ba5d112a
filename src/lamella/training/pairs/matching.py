"""Which labels belong to which image: by the part that their names have in common.

Names are compared in several ways, the strictest first, and the first way in which everything has
exactly one partner is taken:

1. what the wildcards of the two patterns stand for: ``raw/*.tif`` and ``mito/*.png``;
2. paths without endings such as ``_labels``, ``_seg`` or ``-mask``, and ``_0000``;
3. what is left when the words that all names begin and end with are taken away, numbers as numbers:
   ``raw/07.tif`` and ``labels/labels00000007.png``.

Nothing is ever paired by its order: a missing file would shift all behind it.

Examples:
    >>> images = [Found("a/cell1.png", ("cell1",)), Found("a/cell2.png", ("cell2",))]
    >>> labels = [Found("b/cell2_seg.tif", ("cell2_seg",)), Found("b/cell1_seg.tif", ("1",))]
    >>> match(images, labels).partners
    {'a/cell1.png': 'b/cell1_seg.tif', 'a/cell2.png': 'b/cell2_seg.tif'}
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from lamella.training.pairs.pattern import Found

__all__ = ["Matching", "match"]

_ENDING = re.compile(
    r"([._-]+(seg|segs|label|labels|mask|masks|gt|segmentation|annotation|annotations|manual"
    r"|instances?|roi|rois|roiset|image|img|raw|0+))+$",
    re.I,
)
_WORD = re.compile(r"\d+|[^\W\d_]+|[\W_]")
Key = Callable[[Sequence[Found]], list[Hashable]]


@dataclass(frozen=True, slots=True)
class Matching:
    """Who belongs to whom.

    Attributes:
        partners: location of the labels by location of the image.
        alone_images: images without labels.
        alone_labels: labels without an image.
        doubles: groups of files of one side that share a name.
    """

    partners: dict[str, str]
    alone_images: tuple[str, ...] = ()
    alone_labels: tuple[str, ...] = ()
    doubles: tuple[tuple[str, ...], ...] = ()

    @property
    def is_perfect(self) -> bool:
        """Whether everything has exactly one partner."""
        return not (self.alone_images or self.alone_labels or self.doubles)


def match(images: Sequence[Found], labels: Sequence[Found]) -> Matching:
    """Pair images with labels.

    Args:
        images: each with what its wildcards stood for.
        labels: the same.
    """
    if len(images) == len(labels) == 1:
        return Matching({images[0].location: labels[0].location})
    tried: list[Matching] = []
    for key in (_captured, _trimmed, _rest):
        tried.append(_by_keys(images, labels, key))
        if tried[-1].is_perfect:
            return tried[-1]
    return max(tried, key=lambda one: (len(one.partners), -len(one.doubles)))


def _by_keys(images: Sequence[Found], labels: Sequence[Found], key: Key) -> Matching:
    sides: list[dict[Hashable, list[str]]] = []
    for files in (images, labels):
        named: dict[Hashable, list[str]] = {}
        for found, name in zip(files, key(files), strict=True):
            named.setdefault(name, []).append(found.location)
        sides.append(named)
    left, right = sides
    doubles = [tuple(group) for side in sides for group in side.values() if len(group) > 1]
    partners = {
        group[0]: right[name][0]
        for name, group in left.items()
        if len(group) == 1 and len(right.get(name, ())) == 1
    }
    taken = {*partners, *partners.values(), *(place for group in doubles for place in group)}
    return Matching(
        partners,
        tuple(f.location for f in images if f.location not in taken),
        tuple(f.location for f in labels if f.location not in taken),
        tuple(doubles),
    )


def _captured(files: Sequence[Found]) -> list[Hashable]:
    return [found.captured for found in files]


def _trimmed(files: Sequence[Found]) -> list[Hashable]:
    """Paths without known endings, and without the folders that all have in common."""
    stems = [_ENDING.sub("", found.stem) for found in files]
    folders = [stem.split("/")[:-1] for stem in stems]
    shared = _n_shared(folders)
    return ["/".join(stem.split("/")[shared:]).lower() for stem in stems]


def _rest(files: Sequence[Found]) -> list[Hashable]:
    words: list[list[str]] = [_WORD.findall(found.stem) for found in files]
    shared = _n_shared(words)
    words = [parts[shared:] for parts in words]
    shared = _n_shared([parts[::-1] for parts in words])
    return [
        tuple(
            int(word) if word.isdecimal() else word.lower() for word in parts[: len(parts) - shared]
        )
        for parts in words
    ]


def _n_shared(lists: Sequence[Sequence[str]]) -> int:
    """How many first entries all lists have in common."""
    n = 0
    for entries in zip(*lists, strict=False):
        if len(set(entries)) > 1:
            break
        n += 1
    return n
