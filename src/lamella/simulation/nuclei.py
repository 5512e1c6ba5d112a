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
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.simulation.fluorescence import detect_light, emit_light
from lamella.simulation.nuclei_options import NucleiOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.volume.labels import Labels
    from lamella.volume.volume import Volume

__all__ = ["NUCLEUS_COLOR", "NucleiOptions", "SimulatedNuclei", "draw_nuclei", "simulate_nuclei"]

NUCLEUS_COLOR = (79, 195, 247)

_N_WAVES = 5
_PLACEMENT_TRIALS = 60


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
    light = emit_light(labels, depth, options, streams[1])
    image = detect_light(light, options, streams[2])
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

    near = np.asarray(binary_dilation(inside, iterations=2), bool)
    return bool((near & (labels > 0)).any())


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
        found: Any = label(labels[window] == nucleus_id)
        pieces, n_pieces = found
        largest = 1 if n_pieces == 1 else int(np.bincount(pieces.ravel())[1:].argmax()) + 1
        out[window][pieces == largest] = next_id
        next_id += 1
    return out
