"""Voxels of a data set's pairs: opened when wanted, kept within a limit, normalised as inference.

Small files are read whole, once, and kept in an :class:`ArrayCache`; of large ones only the box
that is asked for is read. Everything is (z, y, x) in here, z = 1 for images.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import GeometryError, InputError
from lamella.io.format import OpenOptions, open_volume
from lamella.training.pairs.cache import DEFAULT_CACHE_BYTES, ArrayCache
from lamella.training.pairs.codec import LabelCodec, half_of
from lamella.training.pairs.pattern import split_location
from lamella.volume.box import Box
from lamella.volume.source import FunctionArray
from lamella.volume.volume import Volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.inference.normalise import Normaliser
    from lamella.training.pairs.pairing import Pair
    from lamella.volume.spacing import Spacing
    from lamella.wire.card import NormalisationDoc

__all__ = ["Facts", "PairStore", "open_location"]

LARGE_BYTES = DEFAULT_CACHE_BYTES // 4
"""Images in chunks that are larger are drawn from in an order that shares chunks."""
_TURNED = 0.05
"""Largest difference of the axes' directions that is rounding."""
_MAX_OPEN = 64
"""Pairs whose files stay open."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What an image says before its voxels are read.

    Attributes:
        shape: (z, y, x).
        has_z: whether the file has a z axis.
        n_channels: that are used.
        dtype: of the file.
        spacing: of the file, or as given; unit ``voxel`` where nobody knows.
    """

    shape: tuple[int, int, int]
    has_z: bool
    n_channels: int
    dtype: str
    spacing: Spacing


@dataclass(frozen=True, slots=True)
class _Opened:
    image: Volume
    labels: dict[str, Volume]
    mask: Volume | None


def open_location(root: Path, location: str, spacing: Spacing | None = None) -> Volume:
    """Open a file, or a data set inside it, as a volume with the axes (c) (z) y x.

    Args:
        root: folder that the location starts from.
        location: path and, behind ``::``, the data set.
        spacing: replaces that of the file.

    Raises:
        LamellaError: when it cannot be read; the message names the file.
    """
    path, dataset = split_location(location)
    full = root / path
    volume = open_volume(full, OpenOptions(dataset=dataset or None))
    if ".zarr" in path or path.endswith(".ozx"):
        volume = _read_fast(volume, full, dataset or None)
    if "t" in volume.axes:
        n = volume.shape[volume.axes.index("t")]
        if n != 1:
            raise InputError(
                f"{full} has {n} time points; training takes images without a time axis",
                hint="write the time points that are annotated as files of their own",
            )
        volume = volume.select("t", 0)
    if spacing is not None:
        volume = volume.with_spacing(spacing)
    if 0 in volume.shape:
        raise InputError(f"{full} holds no voxels", hint="remove it, or write it again")
    return volume


class PairStore:
    """Images and labels by the number of their pair; can be pickled, empty on the other side.

    Args:
        root: folder that locations start from.
        pairs: what there is.
        codec: how label files are understood.
        normalisation: of images, by their own statistics.
        channels: of images that are used; empty = all.
        spacing: instead of what the files say.
        cache: keeps what was read.
    """

    def __init__(
        self,
        root: Path,
        pairs: Sequence[Pair],
        codec: LabelCodec,
        normalisation: NormalisationDoc,
        *,
        channels: tuple[int, ...] = (),
        spacing: Spacing | None = None,
        cache: ArrayCache | None = None,
    ) -> None:
        self.root = root
        self.pairs = tuple(pairs)
        self.codec = codec
        self._normalisation = normalisation
        self._channels = channels
        self._spacing = spacing
        self._cache = cache or ArrayCache()
        self._facts: dict[int, Facts] = {}
        self._normalisers: dict[int, Normaliser] = {}
        self._halves: dict[int, dict[str, float]] = {}
        self._opened: OrderedDict[int, _Opened] = OrderedDict()
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        state["_opened"] = OrderedDict()
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = Lock()

    def facts(self, number: int) -> Facts:
        """What a pair's image says of itself.

        Raises:
            LamellaError: when image and labels cannot be read, or do not lie on one grid.
        """
        if number not in self._facts:
            image = self._open(number).image
            z, y, x = (1, *image.spatial_shape)[-3:]
            self._facts[number] = Facts(
                shape=(z, y, x),
                has_z="z" in image.axes,
                n_channels=len(self._channels) or image.n_channels,
                dtype=str(image.dtype),
                spacing=image.spacing,
            )
        return self._facts[number]

    def image(self, number: int, box: Box) -> NDArray[np.float32]:
        """Read a box of an image, normalised.

        Args:
            number: of the pair.
            box: (z, y, x), inside the image.

        Returns:
            float32, (c, z, y, x).
        """
        normaliser = self.normaliser(number)
        raw = self.raw(number, box).astype(np.float32)
        return normaliser.apply(raw, box.start[0])

    def labels(self, number: int, box: Box) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Read a box of labels.

        Returns:
            Labels (m, z, y, x) and where they are valid (None = everywhere).

        Raises:
            InputError: for values that nothing names.
        """
        opened = self._open(number)
        size = sum(volume.nbytes for volume in opened.labels.values())
        whole = Box.from_shape(self.facts(number).shape)
        if size > self._cache.max_entry_bytes:
            return self._encoded(number, opened, box)

        def make() -> tuple[Any, int]:
            labels, valid = self._encoded(number, opened, whole)
            if labels.dtype == np.int64 and int(labels.max()) < 2**31:
                labels = labels.astype(np.int32)
            return (labels, valid), labels.nbytes + (0 if valid is None else valid.nbytes)

        labels, valid = self._cache.get((number, "labels"), make)
        cut = (slice(None), *box.slices())
        return labels[cut], None if valid is None else valid[cut]

    def normaliser(self, number: int) -> Normaliser:
        """The normalisation of an image, by the statistics that inference would measure."""
        if number not in self._normalisers:
            from lamella.inference.normalise import Normaliser
            from lamella.inference.slab import VolumeSlabs
            from lamella.inference.statistics import Finding, Statistics, measure

            if (
                self._normalisation.kind in ("fixed", "none")
                and "f" not in self.facts(number).dtype
            ):
                # Integers are always finite: nothing has to be measured.
                found: Finding | None = None
                statistics, fill = Statistics(None, None, None, None), None
            else:
                found = measure(VolumeSlabs(self._as_volume(number)), self._normalisation)
                statistics = found.statistics
                fill = found.fill if found.n_not_finite else None
            self._normalisers[number] = Normaliser.resolve(
                self._normalisation, statistics, fill=fill
            )
        return self._normalisers[number]

    def raw(self, number: int, box: Box) -> NDArray[Any]:
        """Read a box of an image as stored, (c, z, y, x), the channels in use."""
        image = self._open(number).image
        if image.nbytes > self._cache.max_entry_bytes:
            return self._read(image, box, self._channels)

        def make() -> tuple[Any, int]:
            whole = Box.from_shape(self.facts(number).shape)
            array = self._read(image, whole, self._channels)
            return array, array.nbytes

        return self._cache.get((number, "image"), make)[(slice(None), *box.slices())]

    def chunks(self, number: int) -> tuple[int, int, int] | None:
        """Chunks of an image, (z, y, x), that is too large to be kept; None for all others.

        Does not depend on the size of the cache: what patches show must not.
        """
        if ".zarr" not in self.pairs[number].image and ".ozx" not in self.pairs[number].image:
            return None
        image = self._open(number).image
        chunks = getattr(image.data, "chunks", None)
        if chunks is None or image.nbytes <= LARGE_BYTES:
            return None
        z, y, x = (1, *chunks[image.axes.n_leading :])[-3:]
        return z, y, x

    def image_volume(self, number: int) -> Volume:
        """The image file of a pair, opened."""
        return self._open(number).image

    def label_volumes(self, number: int) -> list[tuple[str, Volume]]:
        """Label files of a pair, opened, with their locations."""
        opened = self._open(number)
        return [(place, opened.labels[name]) for name, place in self.pairs[number].labels]

    # -- opening

    def _open(self, number: int) -> _Opened:
        with self._lock:
            if number in self._opened:
                self._opened.move_to_end(number)
                return self._opened[number]
        pair = self.pairs[number]
        image = open_location(self.root, pair.image, self._spacing)
        self._check_channels(pair, image)
        labels = {name: open_location(self.root, place) for name, place in pair.labels}
        mask = open_location(self.root, pair.mask) if pair.mask else None
        drawn = [*zip((place for _, place in pair.labels), labels.values(), strict=True)]
        for place, volume in [*drawn, *([(pair.mask, mask)] if mask is not None else [])]:
            _check_grid(pair.image, image, place, volume)
        opened = _Opened(image, labels, mask)
        with self._lock:
            self._opened[number] = opened
            while len(self._opened) > _MAX_OPEN:
                self._opened.popitem(last=False)
        return opened

    def _check_channels(self, pair: Pair, image: Volume) -> None:
        if self._channels and max(self._channels) >= image.n_channels:
            raise InputError(
                f"{pair.image} has {image.n_channels} channel(s), data.channels asks for"
                f" {list(self._channels)}",
                hint=f"channels are counted from 0: choose of 0 to {image.n_channels - 1}",
            )

    def _as_volume(self, number: int) -> Volume:
        """The image as inference would open it: channels in use, voxels out of the cache."""
        facts = self.facts(number)
        shape = (facts.n_channels, *facts.shape)

        def read(slices: tuple[slice, ...]) -> NDArray[Any]:
            return self.raw(number, Box.from_slices(slices[1:]))[slices[0]]

        return Volume.from_array(FunctionArray(shape, facts.dtype, read), axes="czyx")

    # -- reading

    def _read(self, volume: Volume, box: Box, channels: tuple[int, ...] = ()) -> NDArray[Any]:
        """A box, (c, z, y, x)."""
        spatial = box.slices() if "z" in volume.axes else box.slices()[1:]
        leading = (slice(None),) * volume.axes.n_leading
        data = np.asarray(volume.data[leading + spatial])
        data = data.reshape(volume.n_channels, *box.shape)
        return data[list(channels)] if channels else data

    def _encoded(
        self, number: int, opened: _Opened, box: Box
    ) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        whole = Box.from_shape(self.facts(number).shape)
        # What lies around the box decides which of its borders are unsure.
        margin = 0 if self.codec.unsure is None else self.codec.unsure.margin
        read = box.grow(margin).intersect(whole)
        arrays = {name: self._read(volume, read) for name, volume in opened.labels.items()}
        mask = None
        if opened.mask is not None:
            mask = np.asarray(self._read(opened.mask, read).any(axis=0))
        places = {name: str(self.root / place) for name, place in self.pairs[number].labels}
        halves = self._cuts(number, opened) if self.codec.is_mask else {}
        labels, valid = self.codec.encode(arrays, halves, mask, places=places)
        cut = (slice(None), *box.relative_to(read).slices())
        return labels[cut], None if valid is None else valid[cut]

    def _cuts(self, number: int, opened: _Opened) -> dict[str, float]:
        """Where each mask is cut, by its largest value anywhere."""
        if self.codec.threshold is not None:
            return dict.fromkeys(opened.labels, self.codec.threshold)
        if number not in self._halves:
            self._halves[number] = {
                name: half_of(_largest(volume), is_float=volume.dtype.kind == "f")
                for name, volume in opened.labels.items()
            }
        return self._halves[number]


def _read_fast(volume: Volume, path: Path, dataset: str | None) -> Volume:
    """The same volume, its chunks decoded by the reader made for patches."""
    from lamella.training.patch_reader import open_level

    reader = open_level(path, dataset=dataset)
    if reader.shape != volume.shape or reader.dtype != volume.dtype:
        return volume
    return replace(volume, data=reader)


def _largest(volume: Volume) -> float:
    from lamella.volume.source import iter_slabs

    if volume.dtype == bool:
        return 1.0
    axis = volume.axes.n_leading
    maxima = [slab.max() for _, slab in iter_slabs(volume.data, axis=axis)]
    return float(np.nanmax(np.array(maxima, np.float64)))


def _check_grid(image_place: str, image: Volume, place: str, labels: Volume) -> None:
    ours, theirs = (1, *image.spatial_shape)[-3:], (1, *labels.spatial_shape)[-3:]
    if ours != theirs:
        raise GeometryError(
            f"{place} has {_text(theirs)} voxels, its image {image_place} {_text(ours)}",
            hint="labels lie on their image voxel by voxel; nothing is resized",
        )
    both = (image.affine, labels.affine)
    if all(affine.frame == "RAS" and affine.ndim == 3 for affine in both):
        turned = np.abs(np.subtract(both[0].direction, both[1].direction)).max()
        if turned > _TURNED:
            raise GeometryError(
                f"{place} is turned or mirrored against its image {image_place}, as their headers"
                " say",
                hint="write the labels on the grid of the image; voxels are taken one by one",
            )


def _text(shape: Sequence[int]) -> str:
    return " x ".join(str(n) for n in (shape[1:] if shape[0] == 1 else shape))
