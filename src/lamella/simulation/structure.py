"""What lives in a simulated tomogram: vesicles, sheets, tubes, ribosomes, microtubules, solutes.

Sizes are those of cells: vesicles of 12 to 45 nm radius, bilayers 5 nm thick, ribosomes of 25 nm
(two subunits), microtubules of 13 protofilaments on 11.2 nm radius with 4 nm monomers on a
three-start helix (Desai & Mitchison 1997).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lamella.simulation.canvas import MICROTUBULE, PARTICLE, Canvas, surface_distance
from lamella.volume.box import Box

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

__all__ = [
    "add_gold",
    "add_microtubule",
    "add_particles",
    "add_sheet",
    "add_solutes",
    "add_tube",
    "add_vesicle",
    "decorate_membranes",
]

_REACH_NM = 9.0
_N_PROTOFILAMENTS = 13
_MICROTUBULE_RADIUS_NM = 11.2
_MONOMER_NM = 4.0
_HELIX_RISE_NM = 12.0
_SUBUNITS_NM = (  # semi-axes and centre of a ribosome's two subunits, (z, y, x)
    ((8.5, 9.5, 10.0), (0.0, 0.0, 0.0)),
    ((4.5, 10.0, 7.0), (11.0, 0.0, 0.0)),
)
_GOLD_DENSITY = 8.0
_MIN_GAP_NM, _MAX_GAP_NM = 13.0, 22.0
_SMALLEST_VESICLE_NM = 10.0
_VISIBLE_SLOPE = 0.84
_VISIBLE_TUBE = 0.6


def add_vesicle(
    canvas: Canvas, rng: Generator, radius_nm: tuple[float, float], *, is_double: bool = False
) -> bool:
    """Add an aspherical vesicle at random, with a second membrane inside where ``is_double``."""
    radius = rng.uniform(*radius_nm)
    semi_axes = radius * np.exp(rng.normal(0, 0.14, 3))
    centre = rng.uniform(0, 1, 3) * canvas.extent_nm
    box = canvas.box_around(centre, 1.25 * float(semi_axes.max()) + _REACH_NM)
    if box is None:
        return False
    u = _local_coordinates(canvas, box, centre, _rotation(rng))
    q = [component / np.float32(axis) for component, axis in zip(u, semi_axes, strict=True)]
    implicit = np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2)
    for _ in range(3):
        frequency = rng.normal(0, 1.3, 3)
        implicit += np.float32(rng.uniform(0, 0.05)) * _wave(
            q, frequency, rng.uniform(0, 2 * np.pi)
        )
    implicit -= 1
    # The inner membrane cannot bend more sharply than a small vesicle does.
    has_room = float(semi_axes.min()) - _MAX_GAP_NM > _SMALLEST_VESICLE_NM
    gap = _gap(rng, is_double and has_room) / radius
    return _draw_layers(canvas, box, implicit, rng, gap=gap)


def add_sheet(
    canvas: Canvas, rng: Generator, *, is_double: bool = False, avoids_wedge: bool = True
) -> bool:
    """Add a bent, undulating sheet that crosses the whole volume, or two in parallel.

    ``avoids_wedge`` turns it so that its normal, seen along the tilt axis y, is within 40 degrees
    of x.
    """
    box = Box.from_shape(canvas.shape)
    centre = rng.uniform(0.1, 0.9, 3) * canvas.extent_nm
    rotation = _rotation(rng)
    while avoids_wedge and abs(rotation[0, 0]) > _VISIBLE_SLOPE * abs(rotation[0, 2]):
        rotation = _rotation(rng)
    u = _local_coordinates(canvas, box, centre, rotation)
    bend = rng.normal(0, 1 / 250.0, 2).astype(np.float32)
    implicit = u[0] + 0.5 * bend[0] * u[1] ** 2 + 0.5 * bend[1] * u[2] ** 2
    for _ in range(3):
        wavelength = rng.uniform(50, 160)
        direction = rng.normal(0, 1, 2)
        direction *= 1 / (wavelength * np.linalg.norm(direction))
        frequency = np.array([0.0, *direction])
        amplitude = np.float32(rng.uniform(0, 0.04) * wavelength)
        implicit += amplitude * _wave(u, 2 * np.pi * frequency, rng.uniform(0, 2 * np.pi))
    return _draw_layers(canvas, box, implicit, rng, gap=_gap(rng, is_double))


def add_tube(
    canvas: Canvas, rng: Generator, radius_nm: tuple[float, float], *, avoids_wedge: bool = True
) -> bool:
    """Add a winding membrane tubule that crosses the whole volume.

    ``avoids_wedge`` turns its axis at least 53 degrees away from x: the walls of a tubule along x
    lie in the missing wedge all round.
    """
    box = Box.from_shape(canvas.shape)
    centre = rng.uniform(0.1, 0.9, 3) * canvas.extent_nm
    rotation = _rotation(rng)
    while avoids_wedge and abs(rotation[0, 2]) > _VISIBLE_TUBE:
        rotation = _rotation(rng)
    u = _local_coordinates(canvas, box, centre, rotation)
    radius = rng.uniform(*radius_nm)
    offsets = []
    for component in u[1:]:
        amplitude, wavelength = rng.uniform(0, 12), rng.uniform(90, 220)
        phase = rng.uniform(0, 2 * np.pi)
        offsets.append(
            component
            + np.float32(amplitude)
            * np.cos(np.float32(2 * np.pi / wavelength) * u[0] + np.float32(phase))
        )
    implicit = np.hypot(offsets[0], offsets[1]) - np.float32(radius)
    return _draw_layers(canvas, box, implicit, rng, gap=0.0)


def add_particles(canvas: Canvas, rng: Generator, n_tries: int) -> int:
    """Add ribosome-like particles where there is room; return how many found it."""
    n_added = 0
    for _ in range(n_tries):
        centre = rng.uniform(0, 1, 3) * canvas.extent_nm
        beads = _ribosome(rng) @ _rotation(rng).T + centre
        n_added += canvas.draw_beads(beads, PARTICLE, rng.uniform(0.9, 1.3))
    return n_added


def add_microtubule(canvas: Canvas, rng: Generator) -> bool:
    """Add a gently bent microtubule, near the plane of the section, across the volume."""
    axis = np.array([rng.normal(0, 0.25), *rng.normal(0, 1, 2)])
    axis /= np.linalg.norm(axis)
    side = np.cross(axis, [1.0, 0.0, 0.0])
    side /= np.linalg.norm(side)
    up = np.cross(axis, side)
    half = 0.6 * float(np.linalg.norm(canvas.extent_nm))
    along = np.arange(-half, half, _MONOMER_NM)
    index = np.arange(_N_PROTOFILAMENTS)
    s = along[:, None] + (index * _HELIX_RISE_NM / _N_PROTOFILAMENTS)[None, :]
    angle = 2 * np.pi * index / _N_PROTOFILAMENTS + rng.uniform(0, 2 * np.pi)
    bend = rng.normal(0, 1 / 2500.0)
    centre = rng.uniform(0.1, 0.9, 3) * canvas.extent_nm
    middle = s[..., None] * axis + (0.5 * bend * s**2)[..., None] * side
    ring = np.cos(angle)[:, None] * side + np.sin(angle)[:, None] * up
    beads = (centre + middle + _MICROTUBULE_RADIUS_NM * ring[None]).reshape(-1, 3)
    return canvas.draw_beads(beads, MICROTUBULE, rng.uniform(0.85, 1.1))


def add_solutes(canvas: Canvas, rng: Generator, per_um3: float) -> None:
    """Fill the free volume with small soluble proteins: clusters of a few beads, unlabelled."""
    n = rng.poisson(per_um3 * float(np.prod(canvas.extent_nm)) * 1e-9)
    centres = rng.uniform(0, 1, (n, 3)) * canvas.extent_nm
    sizes = rng.integers(1, 7, n)
    beads = np.repeat(centres, sizes, axis=0)
    beads = beads + rng.normal(0, 1.6, beads.shape)
    strength = np.repeat(rng.uniform(0.25, 0.8, n), sizes)
    voxel = np.round(beads / canvas.spacing_nm).astype(np.int64)
    voxel = np.clip(voxel, 0, np.asarray(canvas.shape) - 1)
    is_free = ~canvas.occupied[tuple(voxel.T)]
    canvas.add_density(beads[is_free], strength[is_free])


def decorate_membranes(canvas: Canvas, rng: Generator, per_nm2: float) -> None:
    """Set membrane proteins, unlabelled beads, onto the rims of what is labelled membrane."""
    from scipy.ndimage import binary_dilation

    wall = canvas.labels == 1
    rim = np.flatnonzero(binary_dilation(wall, iterations=1) & ~wall)
    area_nm2 = len(rim) * canvas.spacing_nm**2
    n = min(len(rim), rng.poisson(per_nm2 * area_nm2))
    chosen = rng.choice(rim, n, replace=False)
    centres = np.stack(np.unravel_index(chosen, canvas.shape), axis=1) * canvas.spacing_nm
    sizes = rng.integers(1, 4, n)
    beads = np.repeat(centres, sizes, axis=0)
    beads = beads + rng.normal(0, 1.3, beads.shape)
    canvas.add_density(beads, np.repeat(rng.uniform(0.3, 1.0, n), sizes))


def add_gold(canvas: Canvas, rng: Generator, n: int) -> None:
    """Add gold fiducials of 5 nm radius, unlabelled and much denser than all else."""
    for _ in range(n):
        centre = rng.uniform(0, 1, 3) * canvas.extent_nm
        box = canvas.box_around(centre, 6.0)
        if box is None:
            continue
        grid = canvas.coordinates(box)
        squared = sum((g - np.float32(c)) ** 2 for g, c in zip(grid, centre, strict=True))
        canvas.density[box.slices()][squared <= 25.0] = _GOLD_DENSITY


def _gap(rng: Generator, is_double: bool) -> float:
    """Distance in nm between the two bilayers of a double membrane, 0 for a single one."""
    return rng.uniform(_MIN_GAP_NM, _MAX_GAP_NM) if is_double else 0.0


def _draw_layers(
    canvas: Canvas, box: Box, implicit: NDArray[np.float32], rng: Generator, *, gap: float
) -> bool:
    """A bilayer on the zero set, and one on the set at ``-gap`` where that is not 0."""
    strength = rng.uniform(0.8, 1.2)
    distance = surface_distance(implicit, canvas.spacing_nm)
    if not canvas.draw_membrane(box, distance, strength):
        return False
    if gap:
        inner = surface_distance(implicit + np.float32(gap), canvas.spacing_nm)
        canvas.draw_membrane(box, inner, strength)
    return True


def _local_coordinates(
    canvas: Canvas, box: Box, centre_nm: NDArray[np.float64], rotation: NDArray[np.float64]
) -> list[NDArray[np.float32]]:
    """Voxel positions in a turned frame around a centre, nm, three float32 (z, y, x)."""
    z, y, x = (
        grid - np.float32(c) for grid, c in zip(canvas.coordinates(box), centre_nm, strict=True)
    )
    turned = rotation.astype(np.float32)
    return [row[0] * z + row[1] * y + row[2] * x for row in turned]


def _wave(
    coordinates: list[NDArray[np.float32]], frequency: NDArray[np.float64], phase: float
) -> NDArray[np.float32]:
    argument = np.full_like(coordinates[0], phase)
    for component, value in zip(coordinates, frequency, strict=True):
        if value:
            argument += np.float32(value) * component
    return np.cos(argument)


def _rotation(rng: Generator) -> NDArray[np.float64]:
    """A uniformly random rotation, float64, (3, 3), from a random unit quaternion."""
    a, b, c, d = (q := rng.normal(size=4)) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (c * c + d * d), 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), 1 - 2 * (b * b + d * d), 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), 1 - 2 * (b * b + c * c)],
        ]
    )


def _ribosome(rng: Generator) -> NDArray[np.float64]:
    """Bead centres of one particle, nm around its centre, float64, (n, 3)."""
    parts = []
    for semi_axes, centre in _SUBUNITS_NM:
        lattice = np.mgrid[-12:13:2.8, -12:13:2.8, -12:13:2.8].reshape(3, -1).T
        inside = lattice[np.sum((lattice / semi_axes) ** 2, axis=1) <= 1]
        parts.append(inside + rng.normal(0, 0.7, inside.shape) + centre)
    beads = np.concatenate(parts)
    return beads - beads.mean(axis=0)
