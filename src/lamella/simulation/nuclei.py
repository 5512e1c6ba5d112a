"""Simulated fluorescence nuclei, 2-D or 3-D, whose every instance is known.

A nucleus is a star-shaped blob: an ellipsoid whose radius is modulated by a few smooth waves over
the direction. Some are placed touching a neighbour. The image is formed the way a microscope forms
it, in this order: brightness and texture of each nucleus, out-of-focus haze, blur by the (axially
longer) point-spread function, uneven illumination, shot noise, read noise.

Shape, placement and noise draw from separate random streams, so that two simulations with the same
seed and different noise show the same nuclei.

Example:
    >>> simulated = draw_nuclei(NucleiOptions(shape=(64, 64), n_nuclei=4), seed=1)
    >>> simulated.labels.shape, simulated.image.dtype.name
    ((64, 64), 'uint16')
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from lamella.core.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.volume.labels import Labels
    from lamella.volume.volume import Volume

NUCLEUS_COLOR = (79, 195, 247)

_N_WAVES = 5
_PLACEMENT_TRIALS = 60
_ADC_OFFSET = 100.0
_ADC_SPAN = 4000.0


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
            np.isfinite(value) and value >= lowest_allowed for value in values
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


@dataclass(frozen=True, slots=True)
class SimulatedNuclei:
    """A simulated image and its reference.

    Attributes:
        image: uint16, (z, y, x) or (y, x), camera counts.
        labels: uint32, same shape; 0 is background, nuclei are 1..n without gaps, each in one
            piece.
        options: what was asked for.
        seed: the seed that gives exactly this again.
    """

    image: NDArray[np.uint16]
    labels: NDArray[np.uint32]
    options: NucleiOptions
    seed: int

    @property
    def n_nuclei(self) -> int:
        """Nuclei that found a place."""
        return int(self.labels.max(initial=0))


@dataclass(frozen=True, slots=True)
class _Nucleus:
    center_um: NDArray[np.float64]
    semi_axes_um: NDArray[np.float64]
    rotation: NDArray[np.float64]
    wave_vectors: NDArray[np.float64]
    wave_phases: NDArray[np.float64]
    wave_amplitudes: NDArray[np.float64]

    @property
    def reach_um(self) -> float:
        return float(self.semi_axes_um.max() * (1.0 + np.abs(self.wave_amplitudes).sum()))


def draw_nuclei(options: NucleiOptions, *, seed: int = 0) -> SimulatedNuclei:
    """Simulate an image of nuclei and its instance labels.

    Args:
        options: what to simulate.
        seed: equal seeds and options give equal arrays.

    Returns:
        uint16 image and uint32 labels of ``options.shape``.
    """
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3)]
    labels, depth = _place_nuclei(options, streams[0])
    light = _emit_light(labels, depth, options, streams[1])
    image = _detect(light, options, streams[2])
    return SimulatedNuclei(image=image, labels=labels, options=options, seed=seed)


def simulate_nuclei(options: NucleiOptions, *, seed: int = 0) -> tuple[Volume, Labels]:
    """Simulate nuclei as a volume with geometry and its reference labels.

    Args:
        options: what to simulate.
        seed: equal seeds and options give equal arrays.

    Returns:
        The image (uint16, µm) and its instance labels (uint32) on the same grid.
    """
    from lamella.volume.labels import LabelClass, Labels
    from lamella.volume.volume import Volume

    simulated = draw_nuclei(options, seed=seed)
    axes = "zyx"[-len(options.shape) :]
    image = Volume.from_array(
        simulated.image, axes=axes, spacing=options.spacing, unit="um", name="nuclei"
    )
    labels = Labels.from_array(
        simulated.labels,
        axes=axes,
        spacing=options.spacing,
        unit="um",
        name="nuclei",
        classes=(LabelClass(value=1, name="nucleus", color=NUCLEUS_COLOR),),
        is_instance=True,
    )
    return image, labels


def _place_nuclei(
    options: NucleiOptions, rng: np.random.Generator
) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    """Return labels and the relative radius (0 at the centre, 1 at the rim) of every voxel."""
    labels = np.zeros(options.shape, np.uint32)
    relative_radius = np.full(options.shape, np.inf, np.float32)
    extent = np.multiply(options.shape, options.spacing)
    placed: list[_Nucleus] = []
    for _ in range(options.n_nuclei):
        is_touching = bool(placed) and rng.random() < options.touching_fraction
        for _ in range(_PLACEMENT_TRIALS):
            nucleus = _random_nucleus(options, rng, extent, placed if is_touching else [])
            if _try_to_paint(
                nucleus, len(placed) + 1, labels, relative_radius, options, is_touching
            ):
                placed.append(nucleus)
                break
    return _keep_one_piece_each(labels, len(placed)), relative_radius


def _random_nucleus(
    options: NucleiOptions,
    rng: np.random.Generator,
    extent: NDArray[np.float64],
    neighbours: list[_Nucleus],
) -> _Nucleus:
    n_axes = len(options.shape)
    radius = options.radius_um * max(0.3, 1 + options.radius_variation * rng.standard_normal())
    stretch = np.exp(rng.uniform(-0.5, 0.5, n_axes) * np.log(options.elongation))
    semi_axes = radius * stretch / prod(stretch) ** (1 / n_axes)
    rotation, _ = np.linalg.qr(rng.standard_normal((n_axes, n_axes)))
    if neighbours:
        neighbour = neighbours[rng.integers(len(neighbours))]
        direction = rng.standard_normal(n_axes)
        direction /= np.linalg.norm(direction)
        gap = neighbour.semi_axes_um.mean() + semi_axes.mean()
        center = neighbour.center_um + direction * gap * rng.uniform(0.8, 1.05)
        # A thin volume leaves no room along its short axis: slide back inside.
        center = np.clip(center, 0.0, extent)
    else:
        center = rng.uniform(0.0, 1.0, n_axes) * extent
    amplitudes = options.deformation * rng.standard_normal(_N_WAVES) / np.sqrt(_N_WAVES)
    return _Nucleus(
        center_um=center,
        semi_axes_um=semi_axes,
        rotation=rotation,
        wave_vectors=rng.standard_normal((_N_WAVES, n_axes)) * 1.8,
        wave_phases=rng.uniform(0, 2 * np.pi, _N_WAVES),
        wave_amplitudes=np.clip(amplitudes * 1.5, -0.3, 0.3),
    )


def _try_to_paint(
    nucleus: _Nucleus,
    label: int,
    labels: NDArray[np.uint32],
    relative_radius: NDArray[np.float32],
    options: NucleiOptions,
    is_touching: bool,
) -> bool:
    """Paint a nucleus unless it would hide another; tell whether it was painted."""
    window = _window(nucleus, options)
    if window is None:
        return False
    radius = _relative_radius(nucleus, window, options)
    inside = radius < 1.0
    n_inside = int(inside.sum())
    taken = inside & (labels[window] > 0)
    allowed = 0.15 if is_touching else 0.0
    if n_inside < 4 or taken.sum() > allowed * n_inside or _hides_another(taken, labels[window]):
        return False
    if not is_touching and _is_adjacent(inside, labels[window]):
        return False
    wins = inside & (radius < relative_radius[window])
    labels[window][wins] = label
    relative_radius[window][wins] = radius[wins]
    return True


def _hides_another(taken: NDArray[np.bool_], labels: NDArray[np.uint32]) -> bool:
    if not taken.any():
        return False
    eaten = np.bincount(labels[taken])
    whole = np.bincount(labels.ravel(), minlength=eaten.size)[: eaten.size]
    return bool((eaten[1:] > 0.25 * whole[1:]).any())


def _is_adjacent(inside: NDArray[np.bool_], labels: NDArray[np.uint32]) -> bool:
    from scipy.ndimage import binary_dilation

    return bool((binary_dilation(inside, iterations=2) & (labels > 0)).any())


def _window(nucleus: _Nucleus, options: NucleiOptions) -> tuple[slice, ...] | None:
    slices = []
    for center, step, size in zip(nucleus.center_um, options.spacing, options.shape, strict=True):
        start = max(0, int((center - nucleus.reach_um) / step) - 3)
        stop = min(size, int((center + nucleus.reach_um) / step) + 4)
        if stop <= start:
            return None
        slices.append(slice(start, stop))
    return tuple(slices)


def _relative_radius(
    nucleus: _Nucleus, window: tuple[slice, ...], options: NucleiOptions
) -> NDArray[np.float32]:
    """Return distance from the centre over the outline's radius in that direction."""
    grids = np.meshgrid(
        *(
            (np.arange(part.start, part.stop) + 0.5) * step - center
            for part, step, center in zip(window, options.spacing, nucleus.center_um, strict=True)
        ),
        indexing="ij",
    )
    points = np.stack(grids, axis=-1) @ nucleus.rotation / nucleus.semi_axes_um
    length = np.linalg.norm(points, axis=-1)
    direction = points / np.maximum(length, 1e-9)[..., None]
    waves = np.cos(direction @ nucleus.wave_vectors.T + nucleus.wave_phases)
    outline = 1.0 + waves @ nucleus.wave_amplitudes
    return (length / np.maximum(outline, 0.2)).astype(np.float32)


def _keep_one_piece_each(labels: NDArray[np.uint32], n_nuclei: int) -> NDArray[np.uint32]:
    """Drop crumbs that a neighbour cut off, and number what is left without gaps."""
    from scipy.ndimage import find_objects, label

    out = np.zeros_like(labels)
    next_id = 1
    for nucleus_id, window in enumerate(find_objects(labels, n_nuclei), start=1):
        if window is None:
            continue
        pieces, n_pieces = label(labels[window] == nucleus_id)
        largest = 1 if n_pieces == 1 else int(np.bincount(pieces.ravel())[1:].argmax()) + 1
        out[window][pieces == largest] = next_id
        next_id += 1
    return out


def _emit_light(
    labels: NDArray[np.uint32],
    relative_radius: NDArray[np.float32],
    options: NucleiOptions,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Return light per voxel, 1 for a mean nucleus, before the optics."""
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
    return noise / max(float(noise.std()), 1e-6)


def _detect(
    light: NDArray[np.float32], options: NucleiOptions, rng: np.random.Generator
) -> NDArray[np.uint16]:
    """Return camera counts of ``light`` seen through the microscope."""
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
