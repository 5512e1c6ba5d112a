"""From labelled nuclei to what a fluorescence microscope's camera counts.

Examples:
    >>> from lamella.simulation.nuclei_options import NucleiOptions
    >>> rng = np.random.default_rng(0)
    >>> options = NucleiOptions(shape=(8, 8), background=0)
    >>> dark = detect_light(np.zeros((8, 8), np.float32), options, rng)
    >>> dark.dtype.name, bool(dark.mean() < 200)
    ('uint16', True)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.simulation.nuclei_options import NucleiOptions

__all__ = ["detect_light", "emit_light"]

_ADC_OFFSET = 100.0
_ADC_SPAN = 4000.0


def emit_light(
    labels: NDArray[np.uint32],
    relative_radius: NDArray[np.float32],
    options: NucleiOptions,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Return light per voxel, 1 for a mean nucleus, before the optics.

    Args:
        labels: uint32, (z, y, x) or (y, x); nuclei are 1..n.
        relative_radius: float32, same shape; 0 at a nucleus' centre, 1 at its rim.
        options: brightness, texture, rounding.
        rng: draws brightness and texture.
    """
    n_nuclei = int(labels.max(initial=0))
    spread = options.brightness_variation
    brightness = np.exp(spread * rng.standard_normal(n_nuclei + 1) - spread**2 / 2)
    brightness[0] = 0.0
    dome = np.sqrt(np.clip(1.0 - np.minimum(relative_radius, 1.0) ** 2, 0.0, 1.0))
    light = brightness[labels] * (1.0 - options.rounding * (1.0 - dome))
    grain = [0.18 * options.radius_um / step for step in options.spacing]
    light *= np.maximum(0.1, 1.0 + options.texture * _smooth_noise(options.shape, grain, rng))
    return light.astype(np.float32)


def _smooth_noise(
    shape: tuple[int, ...], sigma_vox: list[float], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return Gaussian noise of unit standard deviation, correlated over ``sigma_vox``."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(
        rng.standard_normal(shape, dtype=np.float32), sigma_vox, mode="reflect", truncate=3.0
    )
    return np.asarray(noise / max(float(noise.std()), 1e-6), np.float32)


def detect_light(
    light: NDArray[np.float32], options: NucleiOptions, rng: np.random.Generator
) -> NDArray[np.uint16]:
    """Return camera counts of ``light`` seen through the microscope.

    Args:
        light: float32, (z, y, x) or (y, x), as :func:`emit_light` gives it.
        options: point-spread function, haze, background, illumination, photons, read noise.
        rng: draws the illumination's centre and the noise.
    """
    from scipy.ndimage import gaussian_filter

    sigma = np.divide(options.psf_sigma, options.spacing)
    seen = gaussian_filter(light, sigma, mode="reflect", truncate=3.0)
    if options.haze > 0:
        wide = [0.8 * options.radius_um / step for step in options.spacing]
        out_of_focus = gaussian_filter(light, wide, mode="reflect", truncate=3.0)
        seen = (1.0 - options.haze) * seen + options.haze * out_of_focus
    seen = (seen + options.background) * _illumination(options, rng)
    photons = rng.poisson(np.maximum(seen, 0.0) * options.photons).astype(np.float32)
    photons += options.read_noise * rng.standard_normal(light.shape, dtype=np.float32)
    counts = _ADC_OFFSET + photons * (_ADC_SPAN / options.photons)
    return np.clip(np.rint(counts), 0, np.iinfo(np.uint16).max).astype(np.uint16)


def _illumination(options: NucleiOptions, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the relative light over the field: a bright spot off centre, falling outwards."""
    center = rng.uniform(0.2, 0.8, 2)
    y, x = (np.linspace(0.0, 1.0, size, dtype=np.float32) for size in options.shape[-2:])
    distance2 = (y[:, None] - center[0]) ** 2 + (x[None, :] - center[1]) ** 2
    fall = distance2 / max(float(distance2.max()), 1e-6)
    return np.asarray(1.0 - options.illumination * fall, np.float32)
