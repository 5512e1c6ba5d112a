"""What to do about an image: the choice of ``auto``, and whether a request makes sense.

Examples:
    >>> RestoreOptions(mode="denoise", method="non_local_means").method
    'non_local_means'
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from lamella.core.errors import GeometryError, InputError, MissingPathError
from lamella.core.optional import is_importable, require
from lamella.core.places import Places
from lamella.restoration.quality import Quality
from lamella.restoration.source import ChannelSource
from lamella.volume.spacing import Spacing, convert_length

__all__ = [
    "ACTION_OF_METHOD", "METHODS", "METHOD_TITLES", "Action", "Decision", "Dimensions", "Method",
    "Mode", "RestoreOptions", "check_available", "decide", "sigma_in_voxels",
]  # fmt: skip

Mode = Literal["none", "auto", "denoise", "deblur"]
Method = Literal["auto", "blind_spot", "non_local_means", "richardson_lucy", "cellpose3"]
METHOD_TITLES: dict[str, str] = {
    "blind_spot": "a network trained on the image itself",
    "non_local_means": "non-local means",
    "richardson_lucy": "Richardson-Lucy deconvolution",
    "cellpose3": "Cellpose 3",
}
"""Methods in words for people."""
METHODS: tuple[Method, ...] = get_args(Method)
Action = Literal["none", "denoise", "deblur"]
Dimensions = Literal["auto", "2", "3"]

ACTION_OF_METHOD: dict[str, tuple[Action, ...]] = {
    "blind_spot": ("denoise",),
    "non_local_means": ("denoise",),
    "richardson_lucy": ("deblur",),
    "cellpose3": ("denoise", "deblur"),
}

_ACTION_OF_VERDICT: dict[str, Action] = {
    "clean": "none",
    "noisy": "denoise",
    "blurred": "deblur",
}

_MAX_ANISOTROPY = 2.0
"""Volumes with thicker slices are restored slice by slice."""
_MIN_LAYERS = 8


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """What was asked for.

    Attributes:
        mode: none, denoise, deblur, or auto: decided by the quality of each channel.
        method: auto takes the first of blind_spot (with PyTorch) and non_local_means for noise,
            richardson_lucy for blur.
        strength: of the method, 1 = as estimated; for blind_spot the share of the result, at most
            1.
        psf_sigma: width of a Gaussian point spread function per axis, a length.
        psf: file of a measured point spread function.
        model: name or file of a restoration model, for cellpose3.
        dimensions: slice by slice ("2") or in 3-D ("3"); auto looks at depth and anisotropy.
        seed: of everything random.
        device: auto, cpu, cuda or cuda:N, for trained methods.
        n_steps: most steps of training.
    """

    mode: Mode = "auto"
    method: Method = "auto"
    strength: float | None = None
    psf_sigma: Spacing | None = None
    psf: Path | None = None
    model: str | None = None
    dimensions: Dimensions = "auto"
    seed: int = 0
    device: str = "auto"
    n_steps: int = 160

    def __post_init__(self) -> None:
        if self.psf is not None and self.psf_sigma is not None:
            raise InputError(
                "a measured point spread function and a width were both given",
                hint="give --psf or --psf-sigma",
            )
        has_psf = self.psf is not None or self.psf_sigma is not None
        if has_psf and self.mode in ("none", "denoise"):
            raise InputError(
                f"a point spread function has no meaning for the mode {self.mode!r}",
                hint="use the mode deblur",
            )
        allowed = ACTION_OF_METHOD.get(self.method, ("denoise", "deblur"))
        if self.mode != "auto" and self.method != "auto" and self.mode not in allowed:
            raise InputError(
                f"the method {self.method!r} has no meaning for the mode {self.mode!r}",
                hint=f"use the mode {' or '.join(allowed)}, or leave out the method",
            )
        if self.strength is not None and not 0 < self.strength < 1e3:
            raise InputError(
                f"strength {self.strength:g} is out of range",
                hint="1 is as estimated; try 0.5 to 2",
            )
        if self.model is not None and self.method != "cellpose3":
            raise InputError(
                f"a restoration model was named, but the method is {self.method!r}",
                hint="add the method cellpose3",
            )


@dataclass(frozen=True, slots=True)
class Decision:
    """What is done to a channel, and why, in words.

    Attributes:
        action: none, denoise or deblur.
        method: empty for none.
        is_volumetric: in 3-D, or slice by slice.
        why: what was seen and what follows from it.
    """

    action: Action
    method: str
    is_volumetric: bool
    why: str


def check_available(options: RestoreOptions, places: Places) -> None:
    """Refuse a method that is not installed, before any work is done; it is never skipped.

    Raises:
        MissingDependencyError: with the command that installs it.
        MissingPathError: when the point spread function's file is not there.
    """
    if options.method == "blind_spot":
        require("torch", extra="restore", purpose="self-supervised denoising")
    if options.method == "cellpose3":
        from lamella.isolation.environment import python_of

        python_of("cellpose3", places)
    if options.psf is not None and not options.psf.exists():
        raise MissingPathError(f"there is no point spread function {options.psf}")


def decide(quality: Quality, source: ChannelSource, options: RestoreOptions) -> Decision:
    """Choose action, method and dimensions for a channel.

    Args:
        quality: of the channel.
        source: the channel.
        options: what was asked for.
    """
    seen = f"the image is {quality.verdict}: {quality.reason}"
    if options.mode == "auto":
        action, why = _ACTION_OF_VERDICT[quality.verdict], seen
    else:
        action, why = options.mode, f"{options.mode} was asked for; {seen}"
    if action == "none":
        return Decision("none", "", False, f"{why}; it is left as it is")
    method = options.method
    if method == "auto" or action not in ACTION_OF_METHOD[method]:
        other = "" if method == "auto" else f"; {method} cannot {action}"
        method, note = _own_method(action)
        why += other + note
    is_volumetric, words = _dimensions(source, options, method)
    return Decision(action, method, is_volumetric, f"{why}; {words}" if words else why)


def sigma_in_voxels(sigma: Spacing, source: ChannelSource) -> tuple[float, float, float]:
    """Widths of a point spread function as voxels of a channel, (z, y, x).

    Raises:
        GeometryError: for a physical width on an image without calibration.
    """
    values = ((sigma.values[-1],) * (3 - len(sigma.values))) + sigma.values
    if sigma.unit == "voxel":
        z, y, x = values
        return z, y, x
    unit = source.volume.unit
    if unit == "voxel":
        raise GeometryError(
            f"the width {sigma} cannot be turned into voxels: the image is not calibrated",
            hint="give the spacing (--spacing z,y,x --unit um), or the width in voxels",
        )
    z, y, x = (
        convert_length(value, sigma.unit, unit) / step
        for value, step in zip(values, source.spacing_zyx, strict=True)
    )
    return z, y, x


def _own_method(action: Action) -> tuple[Method, str]:
    """The method of ``auto``, and a remark where another would have been better."""
    if action == "deblur":
        return "richardson_lucy", ""
    if is_importable("torch"):
        return "blind_spot", ""
    return "non_local_means", (
        "; PyTorch is not installed, so non-local means are used in place of a trained network"
    )


def _dimensions(source: ChannelSource, options: RestoreOptions, method: str) -> tuple[bool, str]:
    depth = source.shape[0]
    if depth == 1:
        return False, ""
    if method == "cellpose3":
        if options.dimensions == "3":
            raise InputError(
                "Cellpose restores slice by slice only", hint="leave out --dimensions 3"
            )
        return False, "slice by slice"
    if options.dimensions != "auto":
        return options.dimensions == "3", (
            "in 3-D as asked" if options.dimensions == "3" else "slice by slice as asked"
        )
    if depth < _MIN_LAYERS:
        return False, f"slice by slice ({depth} slices are too few for 3-D)"
    if source.volume.unit == "voxel":
        return False, "slice by slice (the distance of the slices is not known)"
    anisotropy = source.volume.spacing.anisotropy
    if anisotropy > _MAX_ANISOTROPY:
        return False, f"slice by slice (slices are {anisotropy:.3g} times as far apart as pixels)"
    return True, "in 3-D"
