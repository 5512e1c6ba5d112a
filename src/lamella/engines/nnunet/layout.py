"""How an input lies on the grid of a trained configuration, and the source of its tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import InputError, ModelError
from lamella.engines.nnunet.normalise import Channel, NormalisedCrop, channels_of
from lamella.engines.nnunet.preprocess import (
    CascadeSlabs,
    Limits,
    SplineSlabs,
    TransposedSlabs,
    permuted,
)
from lamella.engines.nnunet.resample import Operator, Rule, new_shape, separate_axis
from lamella.engines.nnunet.survey import Survey, write_mask
from lamella.engines.nnunet.write import turned
from lamella.inference.slab import Slabs, VolumeSlabs
from lamella.volume.box import Box
from lamella.wire.event import ProgressEvent

if TYPE_CHECKING:
    from pathlib import Path

    from lamella.engines.nnunet.classes import ClassRule
    from lamella.engines.nnunet.folder import TrainedFolder
    from lamella.volume.labels import Labels
    from lamella.volume.volume import Volume
    from lamella.wire.event import EventSink

__all__ = ["Layout", "SourceWish", "lay_out", "make_source"]

# Beyond this the spacing is far likelier in another unit than meant.
_MAX_RATIO = 20.0
_LAYERS_AT_ONCE = 16
_DEFAULT = "resample_data_or_seg_to_shape"


@dataclass(frozen=True, slots=True)
class Layout:
    """An input on the grid of a configuration; all but the first field in the order of the plans.

    Attributes:
        transpose: axis of the input that is axis i of the plans.
        shape: extent of the input.
        crop: the part that is not zero.
        network_shape: extent of that part at the spacing of the plans.
        spacing: of the input.
        target: of the plans.
        image: how the image is resampled.
        labels: how labels of an earlier stage are resampled.
        logits: how logits are resampled.
    """

    transpose: tuple[int, int, int]
    shape: tuple[int, int, int]
    crop: Box
    network_shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    target: tuple[float, float, float]
    image: Rule
    labels: Rule
    logits: Rule

    def separate(self, rule: Rule) -> int | None:
        """The axis that is resampled on its own towards the network."""
        return separate_axis(self.spacing, self.target, force=rule.force_separate_z)

    @property
    def separate_back(self) -> int | None:
        """The axis that is resampled on its own on the way back."""
        return separate_axis(self.target, self.spacing, force=self.logits.force_separate_z)


def lay_out(
    folder: TrainedFolder, seen: Survey, spacing_zyx: tuple[float, float, float], unit: str
) -> Layout:
    """Work out the grid.

    Args:
        folder: the configuration.
        seen: extent and crop of the input.
        spacing_zyx: of the input, in the unit of the plans.
        unit: that unit, for messages.

    Raises:
        InputError: a spacing so far from that of the plans that one must be wrong.
        ModelError: plans that resample in an unknown way.
    """
    transpose = folder.transpose
    if sorted(transpose) != [0, 1, 2]:
        raise ModelError(f"{folder.root / 'plans.json'}: transpose_forward is {transpose}")
    spacing = permuted(spacing_zyx, transpose)
    wanted = [float(size) for size in folder.settings["spacing"]]
    # A 2d configuration leaves the distance of slices alone.
    z, y, x = wanted if len(wanted) == 3 else (spacing[0], *wanted)
    _check_ratio(spacing, (z, y, x), unit)
    crop = turned(seen.crop, transpose)
    image = _rule(folder, "data", default_order=3)
    network = crop.shape if image.is_none else new_shape(crop.shape, spacing, (z, y, x))
    return Layout(
        transpose=transpose,
        shape=permuted(seen.shape, transpose),
        crop=crop,
        network_shape=(network[0], network[1], network[2]),
        spacing=spacing,
        target=(z, y, x),
        image=image,
        labels=_rule(folder, "seg", default_order=1),
        logits=_rule(folder, "probabilities", default_order=1),
    )


def _check_ratio(spacing: Any, wanted: Any, unit: str) -> None:
    ratios = [have / want for have, want in zip(spacing, wanted, strict=True)]
    worst = max(ratios, key=lambda ratio: max(ratio, 1 / ratio))
    if 1 / _MAX_RATIO <= worst <= _MAX_RATIO:
        return
    have, want = (" x ".join(f"{size:g}" for size in sizes) for sizes in (spacing, wanted))
    raise InputError(
        f"the input's spacing is {have} {unit}, the model was trained at {want}: a factor of"
        f" {max(worst, 1 / worst):.3g} apart",
        hint="if the training images gave their spacing in another unit, say which with --option"
        " unit=nm (um, mm, voxel); else set the true spacing with --spacing z,y,x --unit U",
    )


def _rule(folder: TrainedFolder, kind: str, *, default_order: int) -> Rule:
    settings = folder.settings
    name = str(settings.get(f"resampling_fn_{kind}", _DEFAULT))
    given = dict(settings.get(f"resampling_fn_{kind}_kwargs") or {})
    if name == _DEFAULT:
        return Rule(
            order=int(given.get("order", default_order)),
            order_z=int(given.get("order_z", 0)),
            force_separate_z=given.get("force_separate_z", None if not given else False),
        )
    if name == "resample_torch_fornnunet" and given.get("mode", "linear") == "linear":
        return Rule(
            order=1,
            force_separate_z=given.get("force_separate_z"),
            ties_to_lowest=kind == "seg",
        )
    if name == "no_resampling_hack":
        return Rule(is_none=True)
    raise ModelError(
        f"{folder.root / 'plans.json'} resamples with {name!r}, which is not known",
        hint=f"known are {_DEFAULT}, resample_torch_fornnunet (linear) and no_resampling_hack",
    )


# --- The source ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SourceWish:
    """What a source is made of.

    Attributes:
        volume: the input.
        seen: what was seen of it.
        folder: the configuration.
        rule: its classes.
        layout: its grid.
        previous: labels of the first stage of a cascade, on the input's grid; else None.
        work: folder for the mask of the specimen.
    """

    volume: Volume
    seen: Survey
    folder: TrainedFolder
    rule: ClassRule
    layout: Layout
    previous: Labels | None
    work: Path


def make_source(wish: SourceWish, sink: EventSink) -> Slabs:
    """The input as the network of a configuration takes it.

    Args:
        wish: what of.
        sink: progress and cancellation of passes over the input that some models need.

    Raises:
        InputError: intensities that the model's normalisation does not allow.
        ModelError: a normalisation that is not known.
    """
    layout, seen = wish.layout, wish.seen
    raw = VolumeSlabs(wish.volume)
    mask, n_inside = None, None
    if any(wish.folder.settings["use_mask_for_norm"]):
        mask, n_inside = write_mask(raw, seen.crop, wish.work / "mask.npy", sink)

    def crop_range(channel: int) -> tuple[float, float]:
        if seen.is_whole:
            one = seen.channels[channel]
            return one.minimum, one.maximum
        plain = NormalisedCrop(raw, seen.crop, (Channel(),) * raw.n_channels)
        lower, upper = _extremes(plain, None, sink)
        return float(lower[channel, 0]), float(upper[channel, 0])

    channels = channels_of(wish.folder, seen, n_inside, crop_range)
    image: Slabs = TransposedSlabs(NormalisedCrop(raw, seen.crop, channels, mask), layout.transpose)
    if layout.network_shape != image.shape:
        limits = _limits(image, wish, channels, sink) if layout.image.order > 1 else None
        separate = layout.separate(layout.image)
        image = SplineSlabs(image, layout.network_shape, layout.image, separate, limits)
    if wish.previous is None:
        return image
    before = NormalisedCrop(VolumeSlabs(wish.previous), seen.crop, (Channel(),))
    return CascadeSlabs(
        image,
        TransposedSlabs(before, layout.transpose),
        wish.rule.foreground,
        layout.labels,
        layout.separate(layout.labels),
    )


def _limits(
    image: Slabs, wish: SourceWish, channels: tuple[Channel, ...], sink: EventSink
) -> Limits | None:
    """What splines may give: skimage clips them to the range of what it resamples at once."""
    layout = wish.layout
    axis = layout.separate(layout.image)
    if axis is None:
        if wish.seen.is_whole and not any(channel.has_mask for channel in channels):
            ends = np.array([[one.minimum, one.maximum] for one in wish.seen.channels], np.float32)
            for channel, pair in zip(channels, ends, strict=True):
                channel.apply(pair, None)
            return Limits(None, ends[:, :1], ends[:, 1:])
        return Limits(None, *_extremes(image, None, sink))
    if layout.image.order_z != 0:
        return None  # slices that were clipped one by one would have to be mixed
    lower, upper = _extremes(image, axis, sink)
    nearest = Operator.make(image.shape[axis], layout.network_shape[axis], order=0).start
    return Limits(axis, lower[:, nearest], upper[:, nearest])


def _extremes(source: Slabs, axis: int | None, sink: EventSink) -> tuple[Any, Any]:
    """Smallest and largest value of every channel, (c, 1), or of its slices, (c, n)."""
    depth, height, width = source.shape
    n = 1 if axis is None else source.shape[axis]
    lower = np.full((source.n_channels, n), np.inf, np.float32)
    upper = np.full((source.n_channels, n), -np.inf, np.float32)
    across = tuple(1 + other for other in range(3) if other != axis)
    for start in range(0, depth, _LAYERS_AT_ONCE):
        sink.check()
        stop = min(depth, start + _LAYERS_AT_ONCE)
        block = source.read(Box((start, 0, 0), (stop, height, width)))
        here = slice(start, stop) if axis == 0 else slice(None)
        low, high = block.min(axis=across), block.max(axis=across)
        shape = (source.n_channels, -1)
        lower[:, here] = np.minimum(lower[:, here], low.reshape(shape))
        upper[:, here] = np.maximum(upper[:, here], high.reshape(shape))
        sink.emit(
            ProgressEvent(stage="range of intensities", done=stop, total=depth, unit="layers")
        )
    return lower, upper
