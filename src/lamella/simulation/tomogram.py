"""Simulated cryo-electron tomograms whose membranes, particles and microtubules are known.

A scene (vesicles, curved sheets, tubules, double membranes, ribosome-like particles, microtubules,
soluble proteins) is drawn as density, seen through contrast transfer and a missing wedge, and given
noise. Protein is dark, as in most tomograms; the tilt axis is y, the beam z.

Scene and noise draw from separate random streams: the same seed with another noise, defocus or tilt
range shows the same scene.

**SNR** is the variance of the noise-free tomogram over the variance of the noise, both after the
missing wedge, over the whole volume.

Example:
    >>> simulated = simulate_tomogram((32, 48, 40), seed=1, options=TomogramOptions(snr=0.5))
    >>> simulated.intensity.shape, simulated.labels.dtype.name
    ((32, 48, 40), 'uint8')
    >>> noise = simulated.intensity - simulated.signal
    >>> round(float(simulated.signal.var() / noise.var()), 3)
    0.5
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.random import Generator
    from numpy.typing import NDArray

    from lamella.simulation.canvas import Canvas
    from lamella.volume.labels import Labels
    from lamella.volume.volume import Volume

__all__ = ["CLASSES", "SimulatedTomogram", "TomogramOptions", "simulate_tomogram"]

CLASSES: tuple[tuple[int, str, tuple[int, int, int]], ...] = (
    (0, "background", (0, 0, 0)),
    (1, "membrane", (79, 195, 247)),
    (2, "particle", (255, 183, 77)),
    (3, "microtubule", (129, 199, 132)),
)
"""Value, name and colour of the classes in the reference labels."""

_PADDING_NM = 14.0
_MIN_PADDING = 4
_N_TRIALS = 12
_TUBE_RADIUS_NM = (9.0, 18.0)
_MAX_VOXELS = 2_000_000_000
# Objects per cubic micrometre at a density of 1.
_VESICLES_PER_UM3 = 1400.0
_SHEETS_PER_UM2 = 55.0
_TUBES_PER_UM2 = 25.0
_MICROTUBULES_PER_UM2 = 45.0
_PARTICLES_PER_UM3 = 7000.0
_SOLUTES_PER_UM3 = 1_200_000.0
_MEMBRANE_PROTEINS_PER_NM2 = 0.008


@dataclass(frozen=True, slots=True)
class TomogramOptions:
    """What to simulate.

    Attributes:
        spacing_nm: distance of voxel centres, the same along every axis.
        snr: variance of the noise-free tomogram over that of the noise; None: no noise.
        tilt_range: least and greatest tilt in degrees about y.
        defocus_um: underfocus, positive.
        voltage_kv: acceleration voltage.
        cs_mm: spherical aberration.
        amplitude_contrast: share of amplitude contrast, 0..1.
        b_factor_nm2: fall-off of the signal at high frequency.
        is_phase_flipped: whether the signs of the contrast transfer were corrected.
        membrane_density: how many vesicles, sheets and tubules, relative to the default scene;
            above 0 there is at least one membrane.
        particle_density: how many ribosome-like particles, relative.
        microtubule_density: how many microtubules, relative.
        solute_density: how crowded the solvent is, relative.
        double_fraction: share of vesicles and sheets that are double membranes.
        vesicle_radius_nm: least and greatest mean radius.
        n_gold: gold fiducials of 10 nm.
        avoids_wedge: turn sheets and tubules so that tilts to 60 degrees see most of them; else
            they lie in any direction, and about a third of them leave no trace in the tomogram.
    """

    spacing_nm: float = 1.0
    snr: float | None = 0.2
    tilt_range: tuple[float, float] = (-60.0, 60.0)
    defocus_um: float = 3.0
    voltage_kv: float = 300.0
    cs_mm: float = 2.7
    amplitude_contrast: float = 0.07
    b_factor_nm2: float = 4.0
    is_phase_flipped: bool = False
    membrane_density: float = 1.0
    particle_density: float = 1.0
    microtubule_density: float = 1.0
    solute_density: float = 1.0
    double_fraction: float = 0.2
    vesicle_radius_nm: tuple[float, float] = (12.0, 45.0)
    n_gold: int = 0
    avoids_wedge: bool = True

    def __post_init__(self) -> None:
        _positive("spacing_nm", self.spacing_nm)
        _positive("voltage_kv", self.voltage_kv)
        if self.snr is not None:
            _positive("snr", self.snr)
        low, high = self.tilt_range
        if not -90 <= low < high <= 90:
            raise InputError(
                f"tilt range {low:g}..{high:g} degrees makes no tilt series",
                hint="give the least and the greatest tilt within -90..90, as in -60,60",
            )
        for name in (
            "membrane_density",
            "particle_density",
            "microtubule_density",
            "solute_density",
            "b_factor_nm2",
            "cs_mm",
            "n_gold",
        ):
            value = getattr(self, name)
            if not (np.isfinite(value) and value >= 0):
                raise InputError(f"{name} must be zero or more, got {value!r}")
        for name in ("amplitude_contrast", "double_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must lie in 0..1, got {getattr(self, name)!r}")
        smallest, largest = self.vesicle_radius_nm
        if not 5 <= smallest <= largest < np.inf:
            raise InputError(
                f"vesicle radii {smallest:g}..{largest:g} nm: a bilayer bends to 5 nm at the least",
                hint="give the least and the greatest radius in nm, as in 12,45",
            )


@dataclass(frozen=True, slots=True)
class SimulatedTomogram:
    """A tomogram and what is in it, all (z, y, x).

    Attributes:
        intensity: what a microscope would give, float32, mean 0 and standard deviation 1.
        signal: the same without noise, float32, on the same scale.
        labels: class per voxel, uint8; see :data:`CLASSES`.
        instances: object per voxel, uint32, 1.. without gaps; 0 is background.
        options: what was asked for.
        seed: what it was drawn from.
    """

    intensity: NDArray[np.float32]
    signal: NDArray[np.float32]
    labels: NDArray[np.uint8]
    instances: NDArray[np.uint32]
    options: TomogramOptions
    seed: int

    def to_volume(self) -> Volume:
        """The intensities with their geometry."""
        from lamella.volume.volume import Volume

        return Volume.from_array(
            self.intensity, axes="zyx", spacing=(self.options.spacing_nm,) * 3, unit="nm"
        )

    def to_labels(self, *, instances: bool = False) -> Labels:
        """The reference: classes, or objects where ``instances``."""
        from lamella.volume.labels import LabelClass, Labels

        classes = tuple(LabelClass(*entry) for entry in CLASSES)
        return Labels.from_array(
            self.instances if instances else self.labels,
            axes="zyx",
            spacing=(self.options.spacing_nm,) * 3,
            unit="nm",
            classes=() if instances else classes,
            is_instance=instances,
        )


def simulate_tomogram(
    shape: tuple[int, int, int], *, seed: int, options: TomogramOptions | None = None
) -> SimulatedTomogram:
    """Simulate a tomogram.

    Args:
        shape: voxels per axis, (z, y, x).
        seed: 0 or greater; same seed, shape and options, same tomogram.
        options: what to simulate.

    Raises:
        InputError: a shape that is not three positive extents, or too large to hold in memory.
    """
    from lamella.simulation.microscope import form_image, wedge_noise

    options = options or TomogramOptions()
    _check_shape(shape, seed)
    scene_stream, noise_stream = np.random.SeedSequence(seed).spawn(2)
    canvas, inner = _draw_scene(shape, np.random.default_rng(scene_stream), options)
    signal = form_image(
        canvas.density,
        options.spacing_nm,
        options.tilt_range,
        is_phase_flipped=options.is_phase_flipped,
        defocus_um=options.defocus_um,
        voltage_kv=options.voltage_kv,
        cs_mm=options.cs_mm,
        amplitude_contrast=options.amplitude_contrast,
        b_factor_nm2=options.b_factor_nm2,
    )[inner].copy()
    signal -= signal.mean(dtype=np.float64)
    intensity = signal
    if options.snr is not None:
        rng = np.random.default_rng(noise_stream)
        noise = wedge_noise(rng, canvas.shape, options.tilt_range)[inner].copy()
        noise -= noise.mean(dtype=np.float64)
        power = float(signal.var(dtype=np.float64)) or 1.0
        noise_power = float(noise.var(dtype=np.float64)) or 1.0
        noise *= np.float32(np.sqrt(power / options.snr / noise_power))
        intensity = signal + noise
    scale = np.float32(1 / (float(intensity.std(dtype=np.float64)) or 1.0))
    return SimulatedTomogram(
        intensity=intensity * scale,
        signal=signal * scale,
        labels=canvas.labels[inner].copy(),
        instances=_without_gaps(canvas.instances[inner]),
        options=options,
        seed=seed,
    )


def _draw_scene(
    shape: tuple[int, int, int], rng: Generator, options: TomogramOptions
) -> tuple[Canvas, tuple[slice, ...]]:
    """The scene on a padded grid, and where the volume asked for lies in it."""
    from scipy.fft import next_fast_len

    from lamella.simulation.canvas import Canvas
    from lamella.simulation.structure import (
        add_gold,
        add_particles,
        add_solutes,
        decorate_membranes,
    )

    # Objects and their fringes reach in from outside; Fourier space wraps around out there.
    padding = max(_MIN_PADDING, round(_PADDING_NM / options.spacing_nm))
    fast: Any = next_fast_len  # scipy's own annotation says None
    depth, height, width = (int(fast(extent + 2 * padding, real=True)) for extent in shape)
    canvas = Canvas((depth, height, width), options.spacing_nm)
    inner = tuple(slice(padding, padding + extent) for extent in shape)
    _add_long_objects(canvas, rng, options)
    _add_vesicles(canvas, rng, options)
    volume_um3 = float(np.prod(canvas.extent_nm)) * 1e-9
    n_particles = rng.poisson(_PARTICLES_PER_UM3 * volume_um3 * options.particle_density)
    add_particles(canvas, rng, n_particles)
    decorate_membranes(canvas, rng, _MEMBRANE_PROTEINS_PER_NM2 * options.solute_density)
    add_solutes(canvas, rng, _SOLUTES_PER_UM3 * options.solute_density)
    canvas.finish()
    add_gold(canvas, rng, options.n_gold)
    return canvas, inner


def _add_long_objects(canvas: Canvas, rng: Generator, options: TomogramOptions) -> None:
    from lamella.simulation.structure import add_microtubule, add_sheet, add_tube

    area_um2 = float(np.prod(canvas.extent_nm)) ** (2 / 3) * 1e-6
    avoids_wedge = options.avoids_wedge
    for _ in range(rng.poisson(_SHEETS_PER_UM2 * area_um2 * options.membrane_density)):
        is_double = bool(rng.random() < options.double_fraction)
        add_sheet(canvas, rng, is_double=is_double, avoids_wedge=avoids_wedge)
    for _ in range(rng.poisson(_TUBES_PER_UM2 * area_um2 * options.membrane_density)):
        add_tube(canvas, rng, _TUBE_RADIUS_NM, avoids_wedge=avoids_wedge)
    for _ in range(rng.poisson(_MICROTUBULES_PER_UM2 * area_um2 * options.microtubule_density)):
        _try(partial(add_microtubule, canvas, rng))


def _add_vesicles(canvas: Canvas, rng: Generator, options: TomogramOptions) -> None:
    from lamella.simulation.structure import add_vesicle

    volume_um3 = float(np.prod(canvas.extent_nm)) * 1e-9
    n_vesicles = rng.poisson(_VESICLES_PER_UM3 * volume_um3 * options.membrane_density)
    has_membrane = bool((canvas.labels == 1).any())
    if options.membrane_density > 0 and not has_membrane:
        n_vesicles = max(1, n_vesicles)
    for _ in range(n_vesicles):
        draw = partial(
            add_vesicle,
            canvas,
            rng,
            options.vesicle_radius_nm,
            is_double=bool(rng.random() < options.double_fraction),
        )
        _try(draw)


def _try(draw: Callable[[], bool]) -> bool:
    return any(draw() for _ in range(_N_TRIALS))


def _without_gaps(instances: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Ids 1.. in their old order; objects that lie in the padding alone are gone."""
    present = np.zeros(int(instances.max(initial=0)) + 1, np.uint32)
    present[instances.ravel()] = 1
    present[0] = 0
    return (np.cumsum(present, dtype=np.uint32) * present)[instances]


def _positive(name: str, value: float) -> None:
    if not (np.isfinite(value) and value > 0):
        raise InputError(f"{name} must be greater than zero, got {value!r}")


def _check_shape(shape: tuple[int, ...], seed: int) -> None:
    if len(shape) != 3 or any(extent < 1 for extent in shape):
        raise InputError(
            f"a tomogram has three positive extents, got shape {tuple(shape)}",
            hint="give z,y,x as in 64,256,256",
        )
    if seed < 0:
        raise InputError(f"a seed is 0 or greater, got {seed}")
    if np.prod(np.asarray(shape, np.float64)) > _MAX_VOXELS:
        raise InputError(
            f"shape {tuple(shape)} would need {np.prod(np.asarray(shape, np.float64)) * 30e-9:.0f}"
            " GB of memory",
            hint="simulate several smaller tomograms with other seeds",
        )
