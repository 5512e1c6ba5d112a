"""Point spread functions: what a point becomes in the image, given, measured or estimated.

Examples:
    >>> blur = GaussianPsf((0.0, 2.0, 2.0))
    >>> blur.reach
    (0, 8, 8)
    >>> import numpy as np
    >>> image = np.zeros((1, 33, 33), np.float32); image[0, 16, 16] = 1
    >>> round(float(blur.blur(image).sum()), 4)
    1.0
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import InputError
from lamella.restoration.quality import Quality
from lamella.restoration.tiles import Triple

__all__ = ["GaussianPsf", "MeasuredPsf", "PointSpread", "estimate_psf", "read_psf"]

_TRUNCATE = 4.0
_MAX_SIGMA = 20.0
_MIN_SIGMA = 0.3
"""Blur narrower than this changes nothing that a grid of pixels could show."""
_NATURAL_SIGMA = 1.0
"""Width that the spectra of sharp images show by themselves (0.4 to 1.3 over those looked at); what
is to be taken away lies above it. Taking away too much makes rings, too little does no harm."""


class PointSpread(Protocol):
    """What deconvolution needs to know of a blur.

    Contract:
        * ``blur`` and ``blur_back`` keep the shape and the sum (up to the border); ``blur_back`` is
          the blur with the mirrored function.
    """

    @property
    def reach(self) -> Triple:
        """Extent on each side, in voxels, (z, y, x)."""
        ...

    @property
    def parameters(self) -> dict[str, Any]:
        """For the record."""
        ...

    def blur(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Blur a block, float32, (z, y, x)."""
        ...

    def blur_back(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Blur with the mirrored function."""
        ...


@dataclass(frozen=True, slots=True)
class GaussianPsf:
    """A Gaussian, with its own width along each axis.

    Attributes:
        sigma_zyx: standard deviations in voxels; 0: not blurred along this axis.
        source: given or estimated.
    """

    sigma_zyx: tuple[float, float, float]
    source: str = "given"

    def __post_init__(self) -> None:
        if not all(math.isfinite(s) and 0 <= s <= _MAX_SIGMA for s in self.sigma_zyx):
            words = ", ".join(f"{s:.3g}" for s in self.sigma_zyx)
            raise InputError(
                f"a blur of sigma ({words}) voxels along (z, y, x) cannot be taken away",
                hint=f"give a --psf-sigma between {_MIN_SIGMA} and {_MAX_SIGMA:g} voxels",
            )
        if max(self.sigma_zyx) < _MIN_SIGMA:
            raise InputError(
                f"a blur of {max(self.sigma_zyx):.2f} voxels is none that could be taken away",
                hint=f"give a --psf-sigma of at least {_MIN_SIGMA} voxels, or another mode",
            )

    @property
    def reach(self) -> Triple:
        """Four standard deviations."""
        z, y, x = (math.ceil(_TRUNCATE * s) for s in self.sigma_zyx)
        return z, y, x

    @property
    def parameters(self) -> dict[str, Any]:
        """Shape and widths."""
        return {"psf": "gaussian", "psf_source": self.source, "sigma_zyx_voxels": self.sigma_zyx}

    def blur(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Blur a block; mirrored at its faces."""
        from scipy.ndimage import gaussian_filter

        blurred = gaussian_filter(image, self.sigma_zyx, mode="mirror", truncate=_TRUNCATE)
        return np.asarray(blurred, np.float32)

    def blur_back(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same: a Gaussian is its own mirror image."""
        return self.blur(image)


@dataclass(frozen=True, slots=True)
class MeasuredPsf:
    """A point spread function as it was measured.

    Attributes:
        kernel: float32, (z, y, x), odd extents, sum 1, its centre in the middle.
        source: the file it came from.
    """

    kernel: NDArray[np.float32]
    source: str = "given"

    @property
    def reach(self) -> Triple:
        """Half the kernel."""
        z, y, x = (n // 2 for n in self.kernel.shape)
        return z, y, x

    @property
    def parameters(self) -> dict[str, Any]:
        """Shape and SHA-256 of the kernel."""
        digest = hashlib.sha256(np.ascontiguousarray(self.kernel, "<f4").tobytes()).hexdigest()
        return {
            "psf": "measured",
            "psf_source": self.source,
            "psf_shape": list(self.kernel.shape),
            "psf_sha256": digest,
        }

    def blur(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Blur a block; mirrored at its faces."""
        return self._convolved(image, self.kernel)

    def blur_back(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Blur with the mirrored kernel."""
        return self._convolved(image, self.kernel[::-1, ::-1, ::-1])

    def _convolved(
        self, image: NDArray[np.float32], kernel: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        from scipy.signal import fftconvolve

        # numpy's "reflect" is scipy's "mirror"; it wraps as often as a thin block needs.
        margins = [
            (r, r) if n > 1 else (0, 0) for r, n in zip(self.reach, image.shape, strict=True)
        ]
        flat = kernel
        for axis, n in enumerate(image.shape):
            if n == 1:
                flat = flat.sum(axis=axis, keepdims=True)
        padded = np.pad(image, margins, mode="reflect")
        return fftconvolve(padded, flat, mode="valid").astype(np.float32)


def estimate_psf(quality: Quality) -> GaussianPsf:
    """The Gaussian that explains the fall of an image's spectrum (blind estimate).

    Along z the width is taken from sections, where the volume is deep enough to tell; axes that
    cannot be judged are left as they are.

    Raises:
        InputError: when noise hides the blur, or there is none to speak of.
    """
    along_z, along_y, along_x = quality.blur_sigma_zyx
    overall = quality.blur_sigma
    if overall is None:
        raise InputError(
            "the width of the blur cannot be estimated: noise hides the fine detail"
            f" (contrast to noise {quality.contrast_to_noise:.3g})",
            hint="give it with --psf-sigma, or denoise instead: --mode denoise",
        )
    sigma = (
        _excess(along_z or 0.0),
        _excess(overall if along_y is None else along_y),
        _excess(overall if along_x is None else along_x),
    )
    if max(sigma) < _MIN_SIGMA:
        raise InputError(
            f"the image is not blurred: the estimated width of {overall:.2f} pixels is that of"
            " sharp images",
            hint="give --psf-sigma if you know better",
        )
    return GaussianPsf(sigma, "estimated from the spectrum")


def _excess(sigma: float) -> float:
    """What an estimated width has beyond that of sharp images."""
    return min(math.sqrt(max(sigma**2 - _NATURAL_SIGMA**2, 0.0)), _MAX_SIGMA)


def read_psf(path: Path) -> MeasuredPsf:
    """Read a measured point spread function from an image file, 2-D or 3-D.

    Its background (the median of its faces) is taken off, its centre of mass put into the middle of
    the kernel to the nearest voxel, and its sum set to 1.

    Raises:
        InputError: for a file that holds no point spread function.
    """
    from lamella.io.format import open_volume

    volume = open_volume(path)
    if volume.axes.n_leading:
        raise InputError(
            f"{path} has the axes {volume.axes}; a point spread function has (z) y x",
            hint="write its one channel to a file of its own with lamella convert",
        )
    if math.prod(volume.shape) > 2**24:
        raise InputError(f"{path} is too large for a point spread function: {volume.shape}")
    values = volume.load().astype(np.float64)
    values = values.reshape((1,) * (3 - values.ndim) + values.shape)
    if not np.isfinite(values).all():
        raise InputError(f"{path} holds values that are not finite")
    rim = np.ones(values.shape, bool)
    rim[tuple(slice(1, -1) if n > 2 else slice(None) for n in values.shape)] = False
    if rim.any():
        values = values - float(np.median(values[rim]))
    values = np.maximum(values, 0.0)
    if values.sum() <= 0:
        raise InputError(
            f"{path} is no point spread function: nothing rises above its border",
            hint="crop a single bright bead, with some background around it",
        )
    return MeasuredPsf(_centred(values), str(path))


def _centred(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Cut to odd extents around the centre of mass, sum 1."""
    total = values.sum()
    for axis, length in enumerate(values.shape):
        others = tuple(a for a in range(3) if a != axis)
        center = round(float((values.sum(axis=others) * np.arange(length)).sum() / total))
        reach = min(center, length - 1 - center)
        values = np.take(values, np.arange(center - reach, center + reach + 1), axis=axis)
    return (values / values.sum()).astype(np.float32)
