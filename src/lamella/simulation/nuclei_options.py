"""What :mod:`lamella.simulation.nuclei` simulates, checked when it is written down.

Examples:
    >>> NucleiOptions(shape=(16, 64, 64)).spacing
    (1.5, 0.5, 0.5)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lamella.core.errors import InputError

__all__ = ["NucleiOptions"]


@dataclass(frozen=True, slots=True)
class NucleiOptions:
    """What to simulate.

    Lengths are in µm; per-axis values are (z, y, x) or (y, x), as ``shape``.

    Attributes:
        shape: voxels per axis, two or three axes.
        spacing_um: distance of voxel centres per axis; None: 0.5 in plane and 1.5 along z.
        n_nuclei: nuclei sought; fewer where they find no place.
        radius_um: mean radius.
        radius_variation: relative standard deviation of the radius.
        elongation: longest to shortest semi-axis, up to this ratio.
        deformation: relative amplitude of the bumps on the outline, 0 for ellipsoids.
        touching_fraction: fraction of nuclei placed against a neighbour.
        brightness_variation: relative standard deviation of brightness between nuclei.
        texture: relative amplitude of the chromatin texture.
        rounding: 0 for flat nuclei, 1 for those that fade towards their rim as a sphere's
            projection does.
        psf_sigma_um: standard deviation of the point-spread function per axis; None: 0.4 in
            plane and 1.2 along z.
        haze: fraction of light from out of focus.
        background: background light relative to a nucleus.
        illumination: relative fall of the illumination over the field, 0 for even light.
        photons: photons per voxel of a mean nucleus; less is noisier.
        read_noise: standard deviation of the camera's noise, in photons.
    """

    shape: tuple[int, ...] = (256, 256)
    spacing_um: tuple[float, ...] | None = None
    n_nuclei: int = 40
    radius_um: float = 5.0
    radius_variation: float = 0.2
    elongation: float = 1.5
    deformation: float = 0.08
    touching_fraction: float = 0.3
    brightness_variation: float = 0.25
    texture: float = 0.25
    rounding: float = 0.5
    psf_sigma_um: tuple[float, ...] | None = None
    haze: float = 0.1
    background: float = 0.05
    illumination: float = 0.2
    photons: float = 200.0
    read_noise: float = 2.0

    def __post_init__(self) -> None:
        n_axes = len(self.shape)
        if n_axes not in (2, 3) or any(size < 1 for size in self.shape):
            raise InputError(
                f"simulated nuclei need a shape of two or three positive sizes, got {self.shape}",
                hint="Give (y, x) or (z, y, x).",
            )
        for name in ("spacing_um", "psf_sigma_um"):
            self._check_per_axis(name)
        if self.n_nuclei < 0 or not self.radius_um > 0 or not self.photons > 0:
            raise InputError(
                "n_nuclei must not be negative, radius_um and photons must be positive; got "
                f"{self.n_nuclei}, {self.radius_um} and {self.photons}"
            )
        if self.elongation < 1 or not 0 <= self.deformation <= 0.3:
            raise InputError(
                "elongation must be at least 1 and deformation between 0 and 0.3 (beyond, nuclei "
                f"fall apart); got {self.elongation} and {self.deformation}"
            )
        fractions = (self.touching_fraction, self.rounding, self.haze, self.illumination)
        if any(not 0 <= value <= 1 for value in fractions):
            raise InputError(
                "touching_fraction, rounding, haze and illumination must be between 0 and 1, got "
                f"{fractions}"
            )

    def _check_per_axis(self, name: str) -> None:
        values: tuple[float, ...] | None = getattr(self, name)
        if values is None:
            return
        lowest_allowed = 0.0 if name == "psf_sigma_um" else 1e-9
        if len(values) != len(self.shape) or not all(
            math.isfinite(value) and value >= lowest_allowed for value in values
        ):
            raise InputError(
                f"{name} must hold one positive number for each of the {len(self.shape)} axes of "
                f"the shape, got {values}"
            )

    @property
    def spacing(self) -> tuple[float, ...]:
        """Spacing per axis in µm, the default resolved."""
        return self.spacing_um or (1.5, 0.5, 0.5)[-len(self.shape) :]

    @property
    def psf_sigma(self) -> tuple[float, ...]:
        """Standard deviation of the point-spread function per axis in µm, the default resolved."""
        return self.psf_sigma_um or (1.2, 0.4, 0.4)[-len(self.shape) :]
