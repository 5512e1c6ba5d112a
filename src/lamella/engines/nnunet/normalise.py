"""Intensities as nnU-Net scales them: the box that is not zero, each channel by its scheme.

Source: nnU-Net ``preprocessing/normalization/default_normalization_schemes.py`` (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import InputError, ModelError
from lamella.engines.nnunet.folder import TrainedFolder
from lamella.engines.nnunet.survey import Survey
from lamella.inference.slab import Slabs
from lamella.volume.box import Box

__all__ = ["Channel", "NormalisedCrop", "channels_of"]

Scheme = Literal[
    "CTNormalization",
    "ZScoreNormalization",
    "NoNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
]
_SCHEMES = set(Scheme.__args__)
_EPS = 1e-8


@dataclass(frozen=True, slots=True)
class Channel:
    """How one channel is scaled: clipped, shifted, divided; all of it increasing.

    Attributes:
        lower: smallest value, None = not clipped.
        upper: largest value.
        shift: subtracted.
        scale: divided by.
        has_mask: whether voxels outside the specimen are left as they are.
    """

    lower: float | None = None
    upper: float | None = None
    shift: float = 0.0
    scale: float = 1.0
    has_mask: bool = False

    def apply(self, values: NDArray[np.float32], mask: NDArray[np.bool_] | None) -> None:
        """Scale values in place."""
        if self.lower is not None:
            np.clip(values, self.lower, self.upper, out=values)
        keep = ~mask if self.has_mask and mask is not None else None
        outside = None if keep is None else values[keep]
        if self.shift != 0.0:
            values -= np.float32(self.shift)
        if self.scale != 1.0:
            values /= np.float32(self.scale)
        if keep is not None:
            values[keep] = outside


def channels_of(
    folder: TrainedFolder,
    seen: Survey,
    n_inside: int | None,
    crop_range: Callable[[int], tuple[float, float]],
) -> tuple[Channel, ...]:
    """How every channel is scaled, from the plans and what was seen.

    Args:
        folder: whose plans say it.
        seen: sums of the input.
        n_inside: voxels of the mask, None without one.
        crop_range: gives smallest and largest value of a channel within the crop.

    Raises:
        ModelError: a scheme that is not nnU-Net's.
        InputError: values that the scheme does not allow.
    """
    settings = folder.settings
    schemes = [str(name) for name in settings["normalization_schemes"]]
    masks = [bool(use) for use in settings["use_mask_for_norm"]]
    n = len(seen.channels)
    if len(schemes) < n or len(masks) < n:
        raise ModelError(
            f"{folder.root / 'plans.json'} normalises {len(schemes)} channel(s), dataset.json names"
            f" {n}",
            hint="the files are of two different models",
        )
    result = []
    for index in range(n):
        if schemes[index] not in _SCHEMES:
            raise ModelError(
                f"{folder.root / 'plans.json'} normalises with {schemes[index]!r}, which nnU-Net"
                " does not bring",
                hint=f"known are {', '.join(sorted(_SCHEMES))}",
            )
        scheme = cast("Scheme", schemes[index])
        if scheme == "CTNormalization":
            result.append(_ct(_intensities(folder.plans, index, folder)))
        elif scheme == "ZScoreNormalization":
            n_voxels = n_inside if masks[index] and n_inside is not None else seen.crop.size
            mean, std = seen.channels[index].mean_and_std(max(1, n_voxels))
            result.append(Channel(shift=mean, scale=max(std, _EPS), has_mask=masks[index]))
        elif scheme == "RescaleTo01Normalization":
            low, high = crop_range(index)
            result.append(Channel(shift=low, scale=max(high - low, _EPS)))
        elif scheme == "RGBTo01Normalization":
            result.append(_rgb(seen, index))
        else:
            result.append(Channel())
    return tuple(result)


def _ct(known: Mapping[str, Any]) -> Channel:
    return Channel(
        lower=float(known["percentile_00_5"]),
        upper=float(known["percentile_99_5"]),
        shift=float(known["mean"]),
        scale=max(float(known["std"]), _EPS),
    )


def _rgb(seen: Survey, index: int) -> Channel:
    one = seen.channels[index]
    if one.minimum < 0 or one.maximum > 255:
        raise InputError(
            f"channel {index} has values from {one.minimum:g} to {one.maximum:g}; the model was"
            " trained on colour images of 0 to 255",
            hint="convert the image to uint8 first",
        )
    return Channel(scale=255.0)


def _intensities(plans: Mapping[str, Any], index: int, folder: TrainedFolder) -> Mapping[str, Any]:
    known = plans.get("foreground_intensity_properties_per_channel") or plans.get(
        "foreground_intensity_properties_by_modality"
    )
    try:
        return known[str(index)]  # type: ignore[index]
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"{folder.root / 'plans.json'} has no intensities of channel {index}, which CT"
            " normalisation needs",
            hint="copy or download the model again",
        ) from error


class NormalisedCrop:
    """The part of the input that is not zero, its channels scaled.

    Args:
        inner: the input.
        crop: the part.
        channels: how each is scaled.
        mask: of the crop, where some channel needs it.
    """

    def __init__(
        self,
        inner: Slabs,
        crop: Box,
        channels: tuple[Channel, ...],
        mask: NDArray[np.bool_] | None = None,
    ) -> None:
        self._inner = inner
        self._crop = crop
        self._channels = channels
        self._mask = mask
        z, y, x = crop.shape
        self.shape: tuple[int, int, int] = (z, y, x)
        self.n_channels = inner.n_channels

    def read(self, box: Box) -> NDArray[np.float32]:
        """Read a box, (c, z, y, x)."""
        values = np.array(self._inner.read(box.shift(self._crop.start)), np.float32)
        mask = None if self._mask is None else np.asarray(self._mask[box.slices()])
        for channel, one in zip(self._channels, values, strict=True):
            channel.apply(one, mask)
        return values
