"""Training patches and regions to judge on, out of pairs of files.

Half of the patches (``data.foreground_fraction``) are centred on a voxel of a class, classes in
turn, each image that has the class as likely as any other: a class that fills a thousandth of one
image is seen as often as one that fills the half of all. The other patches lie anywhere.

Nothing is resized. Opening reads names and a few headers; voxels and labels are read when the first
patch needs them, and kept within :data:`lamella.training.pairs.cache.DEFAULT_CACHE_BYTES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lamella.core.errors import AxesError, InputError
from lamella.training.augment import Sample
from lamella.training.chunk_order import draw_point, draw_start
from lamella.training.pairs.cache import DEFAULT_CACHE_BYTES, ArrayCache
from lamella.training.pairs.codec import LabelCodec
from lamella.training.pairs.information import describe
from lamella.training.pairs.opening import open_pairs, with_index
from lamella.training.pairs.patch import cut_patch
from lamella.training.pairs.piece import Piece, part_of, pieces_of
from lamella.training.pairs.region import PairRegion
from lamella.training.pairs.scan import Scan, scan_labels
from lamella.training.pairs.store import PairStore
from lamella.volume.box import Box

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.training.configuration import PairsConfig, TaskConfig
    from lamella.training.pairs.index import IndexDoc
    from lamella.training.source import SourceInfo
    from lamella.wire.card import NormalisationDoc

__all__ = ["PairsSource"]

_TRIES = 32
_MANY = 512
"""Above so many pieces their sizes are not asked for: all are equally likely."""


class PairsSource:
    """A :class:`lamella.training.source.PatchSource` of files.

    Args:
        config: which files, and what they mean.
        task: what is learnt.
        normalisation: of images.
        axes: of patches: ``yx`` takes slices out of volumes.
        cache_bytes: memory for images and labels, in each process.

    Raises:
        MissingPathError: when a pattern finds nothing.
        InputError: for pairs that do not match, splits that cannot be, labels that do not fit.
    """

    def __init__(
        self,
        config: PairsConfig,
        task: TaskConfig,
        normalisation: NormalisationDoc,
        *,
        axes: Literal["zyx", "yx"],
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        config = with_index(config)
        opened = open_pairs(config)
        self._axes: Literal["zyx", "yx"] = axes
        self._cache = ArrayCache(cache_bytes)
        self._fraction = config.foreground_fraction
        self.store = PairStore(
            Path(opened.root),
            opened.pairs,
            LabelCodec.of(task, config),
            normalisation,
            channels=config.channels,
            spacing=None if config.spacing is None else config.spacing.to_spacing(),
            cache=self._cache,
        )
        self._pieces = pieces_of(opened.pairs, config.split)
        self._train = [piece for piece in self._pieces if piece.split == "train"]
        self._counts: dict[Piece, tuple[int, ...]] = {}
        if opened.index is not None and config.split.by != "part":
            self._counts.update(_written_counts(self._pieces, opened.index, task, self.store.codec))
        self._weights: NDArray[np.float64] | None = None
        self._has_chunks: bool | None = None
        self.info: SourceInfo = describe(self, opened, config, normalisation)
        self.hashes = opened.hashes

    @property
    def axes(self) -> Literal["zyx", "yx"]:
        """Of patches."""
        return self._axes

    @property
    def pieces(self) -> Sequence[Piece]:
        """All images and parts of images."""
        return self._pieces

    def box(self, piece: Piece) -> Box:
        """Where a piece lies in its image, (z, y, x)."""
        shape = self.store.facts(piece.number).shape
        if self._axes == "zyx" and not self.store.facts(piece.number).has_z:
            raise AxesError(
                f"{self.store.pairs[piece.number].image} is an image, the patches are volumes",
                hint="give a 2-D patch (trainer.patch) and network, or write the slices as one"
                " volume; a pattern that ends with a slash reads folders of slices",
            )
        return part_of(shape, piece.span)

    def scan(self, piece: Piece) -> Scan:
        """Where the classes of a piece are."""

        def make() -> tuple[Any, int]:
            found = scan_labels(self.store, piece.number, self.box(piece))
            return found, found.n_bytes

        found: Scan = self._cache.get(("scan", piece), make)
        self._counts[piece] = found.counts
        return found

    def counts(self, piece: Piece) -> tuple[int, ...]:
        """Valid voxels of each class in a piece."""
        if piece not in self._counts:
            self.scan(piece)
        return self._counts[piece]

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Sample:
        """A patch of the training split; see the contract of ``PatchSource``.

        Raises:
            InputError: for a shape with another number of axes, or labels that cannot be used.
        """
        return self.draw_near(rng, rng, shape)

    @property
    def has_chunks(self) -> bool:
        """Whether any image lies in chunks and is too large to be kept in memory."""
        if self._has_chunks is None:
            self._has_chunks = len(self._train) <= _MANY and any(
                self.store.chunks(number) is not None
                for number in {piece.number for piece in self._train}
            )
        return self._has_chunks

    def draw_near(
        self, place: np.random.Generator, rng: np.random.Generator, shape: tuple[int, ...]
    ) -> Sample:
        """A patch near the others of its group; see ``NearbySource``.

        Raises:
            InputError: for a shape with another number of axes, or labels that cannot be used.
        """
        if len(shape) != len(self._axes):
            raise InputError(
                f"patches are {self._axes}, the shape {shape} has {len(shape)} axes",
                hint=f"give {len(self._axes)} numbers",
            )
        size = (1, *shape)[-3:]
        if place.random() < self._fraction:
            found = self._at_class(place)
            if found is not None:
                piece, points = found
                return self._cut(piece, self._point(place, rng, piece, points, size), size)
        piece = self._any(place)
        box = self.box(piece)
        known = self._known(piece)
        if known is not None:
            return self._cut(piece, self._point(place, rng, piece, known, size), size)
        chunks = self.store.chunks(piece.number)
        if chunks is not None:
            start = draw_start(place, rng, box, size, chunks)
        else:
            start = tuple(
                a + int(rng.integers(max(1, n - s + 1)))
                for a, n, s in zip(box.start, box.shape, size, strict=True)
            )
        return self._cut(piece, tuple(a + s // 2 for a, s in zip(start, size, strict=True)), size)

    def regions(self, split: Literal["validation", "test"]) -> Sequence[PairRegion]:
        """Whole images (each slice of a volume for itself where patches are 2-D)."""
        regions: list[PairRegion] = []
        for piece in self._pieces:
            if piece.split != split:
                continue
            box = self.box(piece)
            if self._axes == "zyx" or box.shape[0] == 1:
                is_part = piece.span != (0.0, 1.0)
                regions.append(
                    PairRegion(self.store, piece.number, box, self._axes, is_part=is_part)
                )
                continue
            for z in range(box.start[0], box.stop[0]):
                layer = Box((z, *box.start[1:]), (z + 1, *box.stop[1:]))
                regions.append(PairRegion(self.store, piece.number, layer, self._axes, z=z))
        return regions

    # -- drawing

    def _at_class(self, rng: np.random.Generator) -> tuple[Piece, NDArray[np.int32]] | None:
        """Voxels of a class: the class in turn, then an image that has it; None without any."""
        for index in rng.permutation(len(self.store.codec.balanced)).tolist():
            piece = self._with_class(rng, index)
            if piece is not None:
                return piece, self.scan(piece).points[index]
        return None

    def _point(
        self,
        place: np.random.Generator,
        rng: np.random.Generator,
        piece: Piece,
        points: NDArray[np.int32],
        size: tuple[int, ...],
    ) -> tuple[int, ...]:
        """One of the places of a piece, near those of the same group where that helps."""
        chunks = self.store.chunks(piece.number)
        if chunks is None:
            return tuple(int(c) for c in points[int(rng.integers(len(points)))])
        return draw_point(place, rng, points, size, chunks)

    def _with_class(self, rng: np.random.Generator, index: int) -> Piece | None:
        # Rejection, so that what is drawn never depends on which images were looked at before.
        for _ in range(_TRIES):
            piece = self._train[int(rng.integers(len(self._train)))]
            if self.counts(piece)[index]:
                return piece
        having = [piece for piece in self._train if self.counts(piece)[index]]
        return having[int(rng.integers(len(having)))] if having else None

    def _any(self, rng: np.random.Generator) -> Piece:
        """A piece, the larger the likelier."""
        if len(self._train) > _MANY:
            return self._train[int(rng.integers(len(self._train)))]
        if self._weights is None:
            sizes = np.array([self.box(piece).size for piece in self._train], np.float64)
            self._weights = np.cumsum(sizes / sizes.sum())
        at = int(np.searchsorted(self._weights, rng.random(), side="right"))
        return self._train[min(at, len(self._train) - 1)]

    def _known(self, piece: Piece) -> NDArray[np.int32] | None:
        """Places worth looking at where not everything is known."""
        if not (self.store.codec.may_hide or self.store.pairs[piece.number].mask):
            return None
        known = self.scan(piece).known
        return known if known is not None and len(known) else None

    def _cut(self, piece: Piece, center: tuple[int, ...], size: tuple[int, ...]) -> Sample:
        within = self.box(piece)
        if self._axes == "yx":
            z = min(max(center[0], within.start[0]), within.stop[0] - 1)
            within = Box((z, *within.start[1:]), (z + 1, *within.stop[1:]))
        return cut_patch(self.store, piece.number, within, center, size, axes=self._axes)


def _written_counts(
    pieces: Sequence[Piece], index: IndexDoc, task: TaskConfig, codec: LabelCodec
) -> dict[Piece, tuple[int, ...]]:
    """Counts of classes out of the data set's document, where it means the same classes."""
    classes = tuple(known.model_dump(mode="json") for known in task.classes)
    is_same = (index.task in ("semantic", "multilabel")) == (codec.kind != "ids")
    if not is_same or index.ignore_values != task.ignore_values:
        return {}
    if codec.kind != "ids" and classes != index.classes:
        return {}
    return {
        piece: tuple(counts[name] for name in codec.balanced)
        for piece in pieces
        if (counts := index.pairs[piece.number].class_counts).keys() >= set(codec.balanced)
    }
