"""Which classes of which crops are predicted, on which voxels, from which raw data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from lamella.core.errors import GeometryError, InputError, ModelError
from lamella.inference.instance_maps import check_outputs
from lamella.inference.resample import MAX_RATIO
from lamella.training.cellmap.classes import ClassTable
from lamella.training.cellmap.grid import TOLERATED_RATIO, choose_level
from lamella.training.cellmap.index import find_data_sets, find_raw
from lamella.training.cellmap.manifest import WantedLabel
from lamella.training.cellmap.passes import context_of
from lamella.training.cellmap.survey import survey_crops
from lamella.training.cellmap.view import Chunks, find_view, text_nm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lamella.training.cellmap.grid import Grid, Triple
    from lamella.training.cellmap.index import Finding
    from lamella.training.cellmap.machine import NetworkSettings
    from lamella.training.cellmap.tree import Level, Tree
    from lamella.training.cellmap.view import CropView
    from lamella.wire.card import ModelCard

__all__ = ["OBJECT_DECODERS", "CropWish", "find_wishes", "predicted_classes"]

OBJECT_DECODERS = ("boundary_watershed", "distance_watershed", "affinities", "flows")
"""Decoders of networks that give maps of single objects."""


@dataclass(frozen=True, slots=True)
class CropWish:
    """Classes of one crop that are wanted on the same voxels.

    Attributes:
        labels: which.
        view: the raw data on the network's voxels, with context.
    """

    labels: tuple[WantedLabel, ...]
    view: CropView

    @property
    def grid(self) -> Grid:
        """Voxels that are written."""
        return self.labels[0].grid

    @property
    def map_grid(self) -> Grid:
        """Voxels of the network that hold the crop, and one more on each side."""
        return self.view.grid_of(self.view.crop.grow(1).intersect(self.view.reach))

    def only(self, labels: Sequence[WantedLabel]) -> CropWish:
        """The same crop with some of its classes."""
        return replace(self, labels=tuple(labels))

    @staticmethod
    def label_key(label: WantedLabel) -> tuple[str, str, str]:
        """What tells classes of crops apart."""
        return (label.data_set, label.crop, label.name)


@dataclass(frozen=True, slots=True)
class _Looker:
    """What is the same for all crops."""

    tree: Tree
    card: ModelCard
    network: NetworkSettings
    chunks: Chunks
    warnings: list[str]


def predicted_classes(card: ModelCard, asked: Sequence[str]) -> tuple[str, ...]:
    """Classes of a model that are predicted.

    Raises:
        InputError: asked for classes that it does not have.
        ModelError: a model that cannot be run on crops.
    """
    check_outputs(card)
    if card.n_channels != 1:
        raise ModelError(
            f"the model {card.id!r} takes {card.n_channels} channels; raw data have one",
            hint="choose a model that was trained on CellMap data",
        )
    if card.axes == "yx" and card.decoder.kind in OBJECT_DECODERS:
        raise ModelError(
            f"the model {card.id!r} tells objects of single slices apart, not of crops",
            hint="choose a 3-D model",
        )
    names = tuple(known.name for known in card.classes if known.value != 0)
    unknown = [name for name in asked if not any(fnmatchcase(n, name) for n in names)]
    if unknown:
        raise InputError(
            f"the model {card.id!r} has no class {', '.join(unknown)}",
            hint=f"it has {', '.join(names)}",
        )
    return tuple(n for n in names if not asked or any(fnmatchcase(n, p) for p in asked))


def find_wishes(
    tree: Tree,
    card: ModelCard,
    *,
    names: Sequence[str],
    crops: Sequence[str],
    wanted: Sequence[WantedLabel] | None,
    network: NetworkSettings,
    warnings: list[str],
) -> list[CropWish]:
    """Find what is to be predicted.

    Args:
        tree: of the root.
        card: of the model.
        names: classes of the model that are predicted.
        crops: patterns of crops (``crop234`` or ``DATASET/crop234``); empty: all.
        wanted: from a manifest; None = the annotated crops of the root.
        network: tile and overlap, which say how much is read around a crop.
        warnings: receives what a person should hear.

    Raises:
        InputError: nothing to predict; raw data of a crop that were not fetched; a crop beside
            its raw data; voxels that have nothing to do with the model's.
    """
    labels = _annotated(tree, names, crops, warnings) if wanted is None else wanted
    chosen = [
        label
        for label in labels
        if label.name in names
        and (not crops or any(_is_meant(label, pattern) for pattern in crops))
    ]
    if not chosen:
        there = sorted({label.name for label in labels})
        raise InputError(
            "no class of any crop is left to predict",
            hint=f"the model gives {', '.join(names)}; wanted are {', '.join(there) or 'none'}"
            + (f" of crops {', '.join(crops)}" if crops else ""),
        )
    raws = _raw_levels(tree, chosen, warnings)
    looker = _Looker(tree, card, network, Chunks(tree, assumes_all=tree.is_remote), warnings)
    groups: dict[tuple[str, str, Grid], list[WantedLabel]] = {}
    for label in chosen:
        if label.data_set in raws:
            groups.setdefault((label.data_set, label.crop, label.grid), []).append(label)
    return [_wish(looker, of, raws[of[0].data_set]) for of in groups.values()]


def _annotated(
    tree: Tree, names: Sequence[str], crops: Sequence[str], warnings: list[str]
) -> list[WantedLabel]:
    """Every class of the model for every annotated crop."""
    table = ClassTable.read()
    known = [name for name in names if name in table]
    survey = survey_crops(tree, wanted=known, crops=crops)
    warnings += survey.warnings
    return [
        WantedLabel(
            place.data_set,
            place.name,
            name,
            place.levels[name][0].grid if name in place.levels else place.extent,
        )
        for place in survey.crops
        for name in names
    ]


def _raw_levels(
    tree: Tree, labels: Sequence[WantedLabel], warnings: list[str]
) -> dict[str, tuple[Level, ...]]:
    paths = dict(find_data_sets(tree))
    raws: dict[str, tuple[Level, ...]] = {}
    missing: list[str] = []
    for name in dict.fromkeys(label.data_set for label in labels):
        findings: list[Finding] = []
        levels = find_raw(tree, paths[name], findings) if name in paths else ()
        if levels:
            raws[name] = levels
        else:
            missing.append(name)
    if not raws:
        raise InputError(
            f"{tree.address} holds no raw data of {', '.join(missing)}",
            hint="fetch them; expected DATASET/DATASET.zarr/recon-1/em/fibsem-uint8",
        )
    if missing:
        warnings.append(f"no raw data of {', '.join(missing)} below {tree.address}: not predicted")
    return raws


def _wish(looker: _Looker, labels: list[WantedLabel], raw: tuple[Level, ...]) -> CropWish:
    first = labels[0]
    where = f"{first.data_set}/{first.crop}"
    spacing = _spacing(looker.card, raw, first.grid)
    view = find_view(
        raw,
        first.grid,
        spacing,
        chunks=looker.chunks,
        context_nm=context_of(
            first.grid, spacing, looker.network.tile, looker.network.overlap_fraction
        ),
    )
    if view is None or _sticks_out(first.grid, view):
        low, high = (text_nm(v) for v in (first.grid.low, first.grid.high))
        raise InputError(
            f"{where} spans {low} to {high}; the raw data of {first.data_set} span"
            f" {text_nm(raw[0].grid.low)} to {text_nm(raw[0].grid.high)}",
            hint="check the translation (z, y, x, nm) in the manifest or the labels' .zattrs, or"
            " leave it out with --crop",
        )
    if view.missing:
        chunk = ".".join(map(str, min(view.missing)))
        raise InputError(
            f"{where}: {len(view.missing)} of {view.n_chunks} chunks of {view.raw.path} were not"
            f" fetched, such as {chunk}",
            hint="fetch the raw data of this crop, or leave it out with --crop",
        )
    if view.worst_ratio > MAX_RATIO:
        raise InputError(
            f"the model was trained on voxels of {text_nm(spacing)}; the nearest raw data of"
            f" {first.data_set} have {text_nm(view.raw.grid.spacing)}",
            hint="check the units of both, or choose another model",
        )
    if view.worst_ratio > TOLERATED_RATIO:
        note = (
            f"{view.raw.path} ({text_nm(view.raw.grid.spacing)}) is resampled to the model's"
            f" {text_nm(spacing)}"
        )
        if note not in looker.warnings:
            looker.warnings.append(note)
    return CropWish(tuple(labels), view)


def _spacing(card: ModelCard, raw: Sequence[Level], wanted: Grid) -> Triple:
    """Voxels of the network, nm: the card's, or those of the raw level nearest to what is wanted.

    Raises:
        GeometryError: a card whose spacing is no length.
    """
    own = raw[choose_level([v.grid.spacing for v in raw], wanted.spacing).index].grid.spacing
    if card.spacing is None or card.spacing.unit == "voxel":
        return own
    try:
        values = card.spacing.to_spacing().to("nm").values
    except GeometryError as error:
        raise GeometryError(
            f"the spacing of model {card.id!r} is no length: {error.message}"
        ) from None
    z, y, x = (*own[: 3 - len(values)], *values)
    return z, y, x


def _sticks_out(wanted: Grid, view: CropView) -> bool:
    """Whether a crop reaches beyond the raw data by more than a voxel, which may be rounding."""
    raw = view.raw.grid
    return any(
        low < a - max(s, n) or high > b + max(s, n)
        for a, b, s, n, low, high in zip(
            raw.low, raw.high, raw.spacing, view.grid.spacing, wanted.low, wanted.high, strict=True
        )
    )


def _is_meant(label: WantedLabel, pattern: str) -> bool:
    return fnmatchcase(label.crop, pattern) or fnmatchcase(
        f"{label.data_set}/{label.crop}", pattern
    )
