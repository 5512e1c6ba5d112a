"""How an electron microscope and a tilt series turn density into a tomogram.

Everything is linear and done in Fourier space. At one defocus for all tilts, the central slice of
each tilt carries the contrast transfer of its spatial frequency's length, so that the tomogram's
transfer function depends on the length of k alone; what no tilt has seen is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import fft

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["contrast_transfer", "electron_wavelength_nm", "form_image", "wedge_noise"]


def electron_wavelength_nm(voltage_kv: float) -> float:
    """Relativistic wavelength of electrons in nm.

    Examples:
        >>> round(electron_wavelength_nm(300.0) * 1000, 3)
        1.969
    """
    volts = voltage_kv * 1e3
    return 1.226426 / float(np.sqrt(volts + 0.97845e-6 * volts**2))


def contrast_transfer(
    frequency_per_nm: NDArray[np.float32],
    *,
    defocus_um: float,
    voltage_kv: float,
    cs_mm: float,
    amplitude_contrast: float,
    b_factor_nm2: float,
) -> NDArray[np.float32]:
    """Contrast transfer function with envelope; negative at low frequency: protein is dark.

    -[sqrt(1 - A^2) sin(chi) + A cos(chi)] exp(-B k^2 / 4) with
    chi = pi lambda dz k^2 - pi/2 Cs lambda^3 k^4, underfocus positive (Rohou & Grigorieff 2015).
    """
    wavelength = electron_wavelength_nm(voltage_kv)
    squared = frequency_per_nm**2
    chi = np.float32(np.pi * wavelength * defocus_um * 1e3) * squared
    chi -= np.float32(0.5 * np.pi * cs_mm * 1e6 * wavelength**3) * squared**2
    phase = np.float32(np.sqrt(1 - amplitude_contrast**2))
    transfer = phase * np.sin(chi) + np.float32(amplitude_contrast) * np.cos(chi)
    return -transfer * np.exp(np.float32(-0.25 * b_factor_nm2) * squared)


def form_image(
    density: NDArray[np.float32],
    spacing_nm: float,
    tilt_range: tuple[float, float],
    *,
    is_phase_flipped: bool,
    **optics: float,
) -> NDArray[np.float32]:
    """Noise-free tomogram of a density: contrast transfer, then the missing wedge.

    Args:
        density: float32, (z, y, x).
        spacing_nm: of its voxels.
        tilt_range: least and greatest tilt in degrees about y.
        is_phase_flipped: whether the signs of the contrast transfer were corrected, keeping
            protein dark.
        **optics: arguments of :func:`contrast_transfer`.
    """
    spectrum: Any = fft.rfftn(density, workers=-1)
    for index, (squared, seen) in enumerate(_planes(density.shape, spacing_nm, tilt_range)):
        transfer = contrast_transfer(np.sqrt(squared), **optics)
        if is_phase_flipped:
            transfer = -np.abs(transfer)
        spectrum[index] *= transfer * seen
    image: Any = fft.irfftn(spectrum, s=density.shape, workers=-1)
    return image


def wedge_noise(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    tilt_range: tuple[float, float],
) -> NDArray[np.float32]:
    """White Gaussian noise of the projections as it arrives in the tomogram: wedge missing."""
    spectrum: Any = fft.rfftn(rng.standard_normal(shape, np.float32), workers=-1)
    for index, (_, seen) in enumerate(_planes(shape, 1.0, tilt_range)):
        spectrum[index] *= seen
    noise: Any = fft.irfftn(spectrum, s=shape, workers=-1)
    return noise


def _planes(
    shape: tuple[int, ...], spacing_nm: float, tilt_range: tuple[float, float]
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """Per plane of kz: squared frequency (per nm^2) and what the tilts have seen, (ky, kx)."""
    kz = fft.fftfreq(shape[0], spacing_nm).astype(np.float32)
    ky = fft.fftfreq(shape[1], spacing_nm).astype(np.float32)[:, None]
    kx = fft.rfftfreq(shape[2], spacing_nm).astype(np.float32)[None, :]
    in_plane = ky**2 + kx**2
    low, high = (np.float32(angle) for angle in tilt_range)
    for k in kz:
        # The slice of tilt t holds the frequencies whose angle to x, seen along y, is t; kx = 0
        # is seen at +-90 degrees only, but for kz = 0, which every tilt holds.
        angle = np.degrees(np.arctan2(k, kx))
        seen = (angle >= low) & (angle <= high)
        if k == 0:
            seen[:] = True
        else:
            seen[:, 0] = low <= -90 or high >= 90
        yield in_plane + k * k, seen
