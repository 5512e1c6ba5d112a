"""Training patches of CellMap crops: raw data and what is known of each class, on one grid.

Nothing is resolved by number: the raw level and the levels of labels are the nearest by size, and
are brought to the network's voxels through their positions in nanometres. Patches lie in the crops
(and in as much around them as the configuration allows and was fetched); labels are valid inside
the crops alone, and for each class only where something is known of it.

Raw data of 8 bits are scaled by fixed numbers. Statistics of a volume would be those of whatever
part was fetched, and a prediction of a part would see other numbers than the training did; fixed
ones are the same for a crop, a block and a whole volume.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lamella.core.errors import InputError
from lamella.inference.normalise import Normaliser
from lamella.inference.statistics import Statistics
from lamella.training.augment import Sample
from lamella.training.cellmap.classes import ClassTable
from lamella.training.cellmap.known import LabelReader, may_be_known
from lamella.training.cellmap.split import split_crops
from lamella.training.cellmap.survey import survey_crops
from lamella.training.cellmap.tree import Tree
from lamella.training.cellmap.view import Chunks, find_view, text_nm
from lamella.training.cellmap.wanted import fixed_normalisation, learnt_classes
from lamella.training.chunk_order import draw_point, draw_start
from lamella.training.source import SourceInfo
from lamella.volume.box import Box
from lamella.wire.card import NormalisationDoc
from lamella.wire.request import SpacingDoc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lamella.training.cellmap.survey import CropPlace
    from lamella.training.cellmap.view import CropView
    from lamella.training.configuration import CellmapConfig, TaskConfig
    from lamella.volume.source import LazyArray

__all__ = ["CellmapSource", "CropRegion"]

_N_TRIES = 16
"""Voxels tried until one with raw data is found."""
_KEPT_BYTES = 2**28
"""Raw data and labels up to this size stay decoded in every worker; half of its cache."""


class CellmapSource:
    """Draws patches; see :class:`lamella.training.source.PatchSource`.

    Args:
        config: which crops, on which voxels.
        task: which classes, as what.
        normalisation: ``fixed`` or ``none``; without numbers, those for eight bits.

    Raises:
        InputError: no crop, a class that nobody annotated, classes or a normalisation that do not
            go with the data.
        MissingPathError: nothing at the root.
    """

    def __init__(
        self, config: CellmapConfig, task: TaskConfig, normalisation: NormalisationDoc
    ) -> None:
        self._config = config
        self._kind = task.kind
        self._names = learnt_classes(config, task)
        self._tree = Tree.open(config.root)
        self._arrays: dict[str, LazyArray] = {}
        self._labels = LabelReader(self._tree, self._open)
        self._views: dict[str, CropView] = {}
        self._points: dict[tuple[str, str], NDArray[np.int32]] = {}
        survey = survey_crops(
            self._tree, wanted=self._names, data_sets=config.data_sets, crops=config.crops
        )
        warnings = list(survey.warnings)
        places = self._usable(survey.crops, warnings)
        doc = fixed_normalisation(normalisation, {p.raw[0].dtype for p in places})
        self._normaliser = Normaliser.resolve(doc, Statistics(None, None, None, None))
        split = split_crops(places, config.split, classes=self._names, knows=self._may_know)
        self._places = {
            "train": split.train, "validation": split.validation, "test": split.test,
        }  # fmt: skip
        warnings += split.warnings
        warnings += self._unjudged(split.validation)
        volumes = np.array([self._views[p.key].crop.size for p in split.train], np.float64)
        self._shares = np.cumsum(volumes / volumes.sum())
        self._candidates = self._with_class(split.train, warnings)
        self.info = SourceInfo(
            axes="zyx",
            n_channels=1,
            spacing=SpacingDoc(values=config.spacing, unit="nm"),
            normalisation=doc,
            specimens=split.groups,
            description=config.description,
            licence=config.licence,
            fingerprint={
                "root": config.root, **{place.key: place.fingerprint for place in places},
            },
            warnings=tuple(warnings),
        )  # fmt: skip

    # -- the contract

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Sample:
        """A patch of the training split, exactly of this shape.

        Raises:
            UnreadableFileError: a chunk that cannot be decoded.
        """
        return self.draw_near(rng, rng, shape)

    @property
    def has_chunks(self) -> bool:
        """Whether the crops are too much to be kept decoded."""
        decoded = sum(self._views[place.key].reach.size for place in self._places["train"])
        return 2 * decoded > _KEPT_BYTES

    def draw_near(
        self, near: np.random.Generator, rng: np.random.Generator, shape: tuple[int, ...]
    ) -> Sample:
        """A patch near the others of its group; see ``NearbySource``.

        Raises:
            UnreadableFileError: a chunk that cannot be decoded.
        """
        place, point = self._choose(near, rng, shape)
        view = self._views[place.key]
        start = [
            _start(rng, n, int(p), a, b)
            for n, p, a, b in zip(shape, point, view.reach.start, view.reach.stop, strict=True)
        ]
        return self.read(
            place, Box(tuple(start), tuple(a + n for a, n in zip(start, shape, strict=True)))
        )

    def regions(self, split: Literal["validation", "test"]) -> Sequence[CropRegion]:
        """The crops of a split, with their context."""
        return [CropRegion(self, place) for place in self._places[split]]

    # -- what regions ask

    def view(self, place: CropPlace) -> CropView:
        """How a crop lies on the network's voxels."""
        return self._views[place.key]

    def read(self, place: CropPlace, box: Box) -> Sample:
        """Read a box of the network's grid; what lies beyond the crop's reach is padded.

        Args:
            place: the crop.
            box: that touches its reach.
        """
        view = self._views[place.key]
        inner = box.intersect(view.reach)
        raw, fetched = view.read(self._open(view.raw.path), inner)
        image = self._normaliser.apply(raw[None], 0)
        values, valid = self._labels_of(place, view, inner)
        if fetched is not None:
            valid &= fetched
        before = [a - b for a, b in zip(inner.start, box.start, strict=True)]
        after = [a - b for a, b in zip(box.stop, inner.stop, strict=True)]
        if any(before) or any(after):
            width = [(0, 0), *zip(before, after, strict=True)]
            image = np.pad(image, width, mode="reflect")
            values = np.pad(values, width)
            valid = np.pad(valid, width)
        return Sample(image, values, valid)

    # -- labels

    def _labels_of(
        self, place: CropPlace, view: CropView, box: Box
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        inside = box.intersect(view.crop)
        dtype = np.int64 if self._is_objects or self._kind == "semantic" else np.uint8
        n = len(self._names) if self._kind == "multilabel" else 1
        values = np.zeros((n, *box.shape), dtype)
        valid = np.zeros(values.shape, bool)
        if inside.is_empty:
            return values, valid
        here = (slice(None), *inside.relative_to(box).slices())
        target = view.grid_of(inside)
        if self._is_objects:
            name = self._names[0]
            if name in place.annotated:
                values[here] = self._labels.ids(place, name, target)
                valid[here] = True
            return values, valid
        known = [
            self._labels.known(place, name, target, self._config.implied) for name in self._names
        ]
        if self._kind == "multilabel":
            for channel, of in enumerate(known):
                if of is not None:
                    values[(channel, *here[1:])] = of.is_present
                    valid[(channel, *here[1:])] = of.is_known
            return values, valid
        is_all_known = np.ones(inside.shape, bool)
        for value, of in enumerate(known, start=1):
            if of is None:
                is_all_known[...] = False
                continue
            values[here] = np.where(of.is_present, value, values[here])
            is_all_known &= of.is_known
        valid[here] = is_all_known | (values[here] > 0)
        return values, valid

    @property
    def _is_objects(self) -> bool:
        return self._kind not in ("semantic", "multilabel")

    # -- choice

    def _choose(
        self, near: np.random.Generator, rng: np.random.Generator, shape: tuple[int, ...]
    ) -> tuple[CropPlace, NDArray[np.integer]]:
        """A crop (by ``near``) and a voxel of it that the patch shall show (by both)."""
        names = list(self._candidates)
        if names and near.random() < self._config.class_balance:
            name = names[near.integers(len(names))]
            places = self._candidates[name]
            for i in near.permutation(len(places)):
                points = self._points_of(places[i], name)
                if len(points):
                    return places[i], np.array(draw_point(near, rng, points, shape, shape))
        train = self._places["train"]
        place = train[min(int(np.searchsorted(self._shares, near.random())), len(train) - 1)]
        crop = self._views[place.key].crop
        one = (1, 1, 1)
        points = np.array([draw_start(near, rng, crop, one, shape) for _ in range(_N_TRIES)])
        fetched = np.flatnonzero(self._views[place.key].are_fetched(points))
        return place, points[fetched[0] if len(fetched) else 0]

    def _points_of(self, place: CropPlace, name: str) -> NDArray[np.int32]:
        """Voxels of a class in a crop, where raw data were fetched."""
        key = (place.key, name)
        if key not in self._points:
            view = self._views[place.key]
            points = self._labels.points(place, name, view.grid)
            points = points.clip(view.crop.start, np.array(view.crop.stop) - 1)
            self._points[key] = points[view.are_fetched(points)]
        return self._points[key]

    # -- opening

    def _may_know(self, place: CropPlace, name: str) -> bool:
        if self._is_objects:
            return name in place.annotated
        return may_be_known(place, name, self._config.implied)

    def _usable(self, crops: Sequence[CropPlace], warnings: list[str]) -> list[CropPlace]:
        """Crops that the raw data show, and of which anything wanted may be known."""
        chunks = Chunks(self._tree, assumes_all=self._tree.is_remote)
        context = self._config.context_nm
        usable: list[CropPlace] = []
        far: set[str] = set()
        for place in crops:
            if not any(self._may_know(place, name) for name in self._names):
                continue
            view = find_view(
                place.raw, place.extent, self._config.spacing,
                chunks=chunks, context_nm=(context, context, context),
            )  # fmt: skip
            if view is None:
                warnings.append(
                    f"{place.path} lies outside of the raw data, or is thinner than a voxel of"
                    f" {text_nm(self._config.spacing)}; it is left out"
                )
                continue
            if len(view.missing) == view.n_chunks:
                warnings.append(
                    f"{place.path}: no raw data were fetched for this crop; it is left out"
                )
                continue
            warnings += view.complaints(place.path, far)
            self._views[place.key] = view
            usable.append(place)
        if not usable:
            raise self._nothing_known(crops, warnings)
        return usable

    def _nothing_known(self, crops: Sequence[CropPlace], warnings: list[str]) -> InputError:
        found = sorted({name for place in crops for name in place.annotated})
        return InputError(
            f"no crop below {self._config.root} can teach {', '.join(self._names)}"
            + (f": {warnings[0]}" if warnings else ""),
            hint=f"annotated there: {', '.join(found) or 'nothing'}; `lamella cellmap index` lists"
            " what is wrong with each crop",
            details={"warnings": warnings},
        )

    def _with_class(
        self, train: Sequence[CropPlace], warnings: list[str]
    ) -> dict[str, tuple[CropPlace, ...]]:
        """For each class the crops in which its voxels may be, where there are any."""
        table = ClassTable.read()
        unknown = [n for n in self._names if not any(self._may_know(p, n) for p in train)]
        if unknown:
            found = sorted({name for place in train for name in place.annotated})
            raise InputError(
                f"{', '.join(unknown)}: annotated in none of the {len(train)} crops that are learnt"
                f" from, below {self._config.root}",
                hint=f"take task.classes from {', '.join(found)}, or change data.split",
            )
        candidates: dict[str, tuple[CropPlace, ...]] = {}
        for name in self._names:
            atoms = table[name].atoms
            places = tuple(
                place
                for place in train
                if name in place.annotated
                or (
                    not self._is_objects
                    and self._may_know(place, name)
                    and any(table[other].atoms <= atoms for other in place.annotated)
                )
            )
            if any(len(self._points_of(place, name)) for place in places):
                candidates[name] = places
            else:
                warnings.append(
                    f"{name} has no voxel in the {len(train)} crops that are learnt from: the"
                    " network can learn only where it is not"
                )
        if not candidates:
            raise InputError(
                f"none of {', '.join(self._names)} has a voxel in the {len(train)} crops that are"
                " learnt from",
                hint="choose other classes, or change data.split",
            )
        return candidates

    def _unjudged(self, validation: Sequence[CropPlace]) -> list[str]:
        names = [n for n in self._names if not any(self._may_know(p, n) for p in validation)]
        if not validation or not names:
            return []
        return [
            f"{', '.join(names)}: annotated in none of the {len(validation)} crops that validate,"
            " so nothing tells how well it is learnt"
        ]

    # -- arrays, and travelling to other processes

    def _open(self, path: str) -> LazyArray:
        if path not in self._arrays:
            self._arrays[path] = self._tree.open_lazy(path)
        return self._arrays[path]

    def __getstate__(self) -> dict[str, Any]:
        # Opened arrays hold threads and connections; points are found again.
        state = dict(self.__dict__)
        state["_arrays"], state["_points"] = {}, {}
        state["_labels"] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._labels = LabelReader(self._tree, self._open)


class CropRegion:
    """A crop with its context, to judge on; see :class:`lamella.training.source.Region`."""

    def __init__(self, source: CellmapSource, place: CropPlace) -> None:
        self._source = source
        self._place = place
        self.name = place.key
        self.specimen = place.data_set
        self.shape = source.view(place).reach.shape

    def read(self, box: Box) -> Sample:
        """Image, labels and validity of a box, in voxels of the region."""
        return self._source.read(self._place, box.shift(self._source.view(self._place).reach.start))


def _start(rng: np.random.Generator, n: int, point: int, low: int, high: int) -> int:
    """Where a patch of ``n`` voxels begins that shows a point and stays within low..high."""
    if high - low <= n:
        return low - (n - (high - low)) // 2
    jitter = n // 4
    start = point - n // 2 + int(rng.integers(-jitter, jitter + 1))
    return min(max(start, low), high - n)
