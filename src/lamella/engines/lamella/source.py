"""The input as the network wants it: measured, normalised, resampled, and never whole."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lamella.core.errors import InputError
from lamella.inference.normalise import NormalisedSlabs, Normaliser
from lamella.inference.resample import ResampledSlabs, target_shape
from lamella.inference.slab import Slabs, VolumeSlabs
from lamella.inference.statistics import Finding, measure
from lamella.volume.volume import Note
from lamella.wire.event import ProgressEvent

if TYPE_CHECKING:
    from lamella.engines.lamella.settings import Settings
    from lamella.volume.volume import Volume
    from lamella.wire.card import ModelCard
    from lamella.wire.event import EventSink

__all__ = ["Look", "Prepared", "look_at", "prepare", "prepare_with"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A source of tiles.

    Attributes:
        source: normalised intensities on the network's grid.
        shape: extent of the input, (z, y, x) voxels.
        sha256: of the input's voxels as float32, whatever file they came from.
        levels: coarser levels stored with the input, normalised; empty when it is resampled.
        notes: what the user must know.
    """

    source: Slabs
    shape: tuple[int, int, int]
    sha256: str
    levels: tuple[Slabs, ...]
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at all voxels of an input found; ``sha256`` as in :class:`Prepared`."""

    finding: Finding
    sha256: str


def prepare(volume: Volume, card: ModelCard, settings: Settings, sink: EventSink) -> Prepared:
    """Look at all voxels once and stack normalisation and resampling on top.

    Args:
        volume: the input, with the axes and channels the model takes.
        card: says how intensities and spacing have to be.
        settings: whether values that are not finite may be replaced.
        sink: progress and cancellation.

    Raises:
        InputError: for NaN or infinite voxels, a constant volume, or an impossible spacing.
    """
    return prepare_with(volume, card, settings, look_at(volume, card, sink))


def look_at(volume: Volume, card: ModelCard, sink: EventSink) -> Look:
    """Look at all voxels once.

    Args:
        volume: the input, with the axes and channels the model takes.
        card: says which numbers the normalisation needs.
        sink: progress and cancellation.

    Raises:
        InputError: when no voxel is finite.
    """
    raw = VolumeSlabs(volume)
    digest = hashlib.sha256(repr((volume.n_channels, raw.shape)).encode())

    def report(done: int, total: int) -> None:
        sink.check()
        sink.emit(ProgressEvent(stage="statistics", done=done, total=total, unit="layers"))

    finding = measure(raw, card.normalisation, report=report, digest=digest)
    return Look(finding, digest.hexdigest())


def prepare_with(volume: Volume, card: ModelCard, settings: Settings, look: Look) -> Prepared:
    """Stack normalisation and resampling, with what a look at all voxels found.

    Args:
        volume: the input, with the axes and channels the model takes.
        card: says how intensities and spacing have to be.
        settings: whether values that are not finite may be replaced.
        look: at this volume, in this process or in another.

    Raises:
        InputError: for NaN or infinite voxels, a constant volume, or an impossible spacing.
    """
    raw = VolumeSlabs(volume)
    notes: list[Note] = []
    finding = look.finding
    if finding.n_not_finite:
        notes.append(_not_finite(finding.n_not_finite, settings))
    if finding.is_constant:
        raise InputError(
            f"every voxel of the input is {finding.minimum.tolist()[0]:g}: there is nothing to"
            " segment",
            hint="check that the right data set, channel and level were opened",
        )
    if card.axes == "zyx" and raw.shape[0] == 1:
        notes.append(
            Note("single_slice", "a 3-D model was run on one slice: it lacks what lies around it")
        )
    normaliser = Normaliser.resolve(
        card.normalisation,
        finding.statistics,
        fill=finding.fill if finding.n_not_finite else None,
    )
    normalised = NormalisedSlabs(raw, normaliser)
    shape = _network_shape(volume, raw.shape, card, notes)
    if shape == raw.shape:
        has_own_layers = card.normalisation.scope == "slice"
        levels = tuple(
            NormalisedSlabs(VolumeSlabs(level), normaliser)
            for level in (() if has_own_layers else volume.levels)
        )
        return Prepared(normalised, raw.shape, look.sha256, levels, tuple(notes))
    notes.append(
        Note(
            "resampled",
            f"the input ({volume.spacing}) was resampled to the model's spacing ({_wanted(card)}):"
            f" {_text(raw.shape)} -> {_text(shape)} voxels; labels lie on the input's own grid",
        )
    )
    resampled = ResampledSlabs(normalised, shape)
    return Prepared(resampled, raw.shape, look.sha256, (), tuple(notes))


def _not_finite(n: int, settings: Settings) -> Note:
    if not settings.replaces_not_finite:
        raise InputError(
            f"{n} voxel(s) of the input are NaN or infinite",
            hint="replace them by the mean of the others with --option replace_not_finite=true",
        )
    return Note("not_finite_replaced", f"{n} voxel(s) were NaN or infinite and set to the mean")


def _network_shape(
    volume: Volume, shape: tuple[int, int, int], card: ModelCard, notes: list[Note]
) -> tuple[int, int, int]:
    if card.spacing is None or card.spacing.unit == "voxel":
        return shape
    if not volume.spacing.is_calibrated:
        notes.append(
            Note(
                "spacing_unknown",
                f"the input has no known spacing; it was taken to be the model's ({_wanted(card)})."
                " Set it with --spacing z,y,x --unit U",
            )
        )
        return shape
    wanted = card.spacing.values
    have = volume.spacing.to(card.spacing.unit).values[-len(wanted) :]
    target = target_shape(shape[-len(wanted) :], have, wanted, tolerance=card.spacing_tolerance)
    z, y, x = shape[: 3 - len(wanted)] + target
    return z, y, x


def _wanted(card: ModelCard) -> str:
    assert card.spacing is not None, "asked for only where the card has a spacing"
    return str(card.spacing.to_spacing())


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
