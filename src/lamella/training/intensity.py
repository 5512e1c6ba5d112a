"""What random changes of training patches do to intensities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Intensity", "smooth_field"]


@dataclass(frozen=True, slots=True, eq=False)
class Intensity:
    """What happens to intensities; the order is that of the attributes.

    Attributes:
        blur: sigma per spatial axis, voxels; empty for none.
        shading: logarithm of the illumination at control points, (*points); None for even.
        contrast: factor of the deviation from the mean.
        brightness: added.
        gamma: exponent over the patch's range; 1 for none.
        noise: standard deviation.
        noise_seed: of the noise.
        blank: slices along the first spatial axis that are blank.
    """

    blur: tuple[float, ...] = ()
    shading: NDArray[np.float64] | None = None
    contrast: float = 1.0
    brightness: float = 0.0
    gamma: float = 1.0
    noise: float = 0.0
    noise_seed: int = 0
    blank: tuple[int, ...] = ()

    def apply(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a changed copy, float32."""
        image = np.array(image, np.float32)
        if self.blur:
            from scipy.ndimage import gaussian_filter

            smooth = gaussian_filter(image, (0.0, *self.blur), mode="reflect")
            image = np.asarray(smooth, np.float32)
        if self.shading is not None:
            field = np.exp(smooth_field(self.shading[None], image.shape[1:])[0]).astype(np.float32)
            dark = image.min(axis=tuple(range(1, image.ndim)), keepdims=True)
            image = (image - dark) * field + dark
        if self.contrast != 1.0 or self.brightness:
            mean = image.mean(axis=tuple(range(1, image.ndim)), keepdims=True)
            image = (image - mean) * np.float32(self.contrast) + mean + np.float32(self.brightness)
        if self.gamma != 1.0:
            low, high = float(image.min()), float(image.max())
            if high > low:
                image = ((image - low) / (high - low)) ** np.float32(self.gamma)
                image = image * np.float32(high - low) + np.float32(low)
        if self.noise:
            rng = np.random.default_rng(self.noise_seed)
            image += rng.standard_normal(image.shape, np.float32) * np.float32(self.noise)
        for index in self.blank:
            image[:, index] = image.mean()
        return image.astype(np.float32, copy=False)


def smooth_field(control: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Values at every voxel: cubic between control points, one of which lies outside."""
    from scipy.ndimage import map_coordinates

    axes = [np.linspace(1.0, m - 2.0, n) for m, n in zip(control.shape[1:], shape, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"))
    return np.stack([map_coordinates(c, points, order=3, mode="nearest") for c in control])
