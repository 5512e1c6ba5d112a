"""Compiled kernels of flows: heat in an object, and following a flow field. Imports numba."""

import numba
import numpy as np

_jit = numba.njit(cache=True, nogil=True)


@_jit
def diffuse(inside, center, n_steps):
    """Let heat spread from one voxel of an object through the object.

    Every step adds 1 at the centre and replaces each voxel by the mean over itself and its face
    neighbours, where what lies outside of the object is 0 (cold).

    Args:
        inside: bool, (z, y, x), with a border of False.
        center: three indices inside.
        n_steps: steps.

    Returns:
        float64, (z, y, x): heat.
    """
    nz, ny, nx = inside.shape
    # A slice of an image has no neighbours along z.
    share = 1.0 / 7.0 if nz > 3 else 1.0 / 5.0
    flat = inside.ravel()
    starts, stops = _runs(flat)
    heat = np.zeros(flat.size)
    after = np.zeros(flat.size)
    middle = (center[0] * ny + center[1]) * nx + center[2]
    # Unsigned indices cannot count from the end, which lets the inner loop be vectorised.
    plane, row, one = np.uintp(ny * nx), np.uintp(nx), np.uintp(1)
    for _ in range(n_steps):
        heat[middle] += 1.0
        for k in range(starts.size):
            for i in range(starts[k], stops[k]):
                total = heat[i] + (heat[i - row] + heat[i + row])
                total += heat[i - one] + heat[i + one]
                total += heat[i - plane] + heat[i + plane]
                after[i] = total * share
        heat, after = after, heat
    return heat.reshape(inside.shape)


@_jit
def _runs(flat):
    """First and one past the last index of every run of True; the last element is False."""
    n = 0
    for i in range(1, flat.size):
        if flat[i] and not flat[i - 1]:
            n += 1
    starts, stops = np.empty(n, np.uintp), np.empty(n, np.uintp)
    k = 0
    for i in range(1, flat.size):
        if flat[i] and not flat[i - 1]:
            starts[k] = i
        elif flat[i - 1] and not flat[i]:
            stops[k] = i
            k += 1
    return starts, stops


@_jit
def follow(points, flow, n_steps):
    """Move points along a flow field, in place (Euler steps of one voxel, trilinear).

    Args:
        points: float32, (n, 3); positions in voxels.
        flow: float32, (3, z, y, x); voxels a step.
        n_steps: steps.
    """
    _, nz, ny, nx = flow.shape
    top = (nz - 1, ny - 1, nx - 1)
    for i in range(points.shape[0]):
        z, y, x = points[i, 0], points[i, 1], points[i, 2]
        for _ in range(n_steps):
            z0, y0, x0 = int(z), int(y), int(x)
            z1, y1, x1 = min(z0 + 1, top[0]), min(y0 + 1, top[1]), min(x0 + 1, top[2])
            fz, fy, fx = z - z0, y - y0, x - x0
            step = np.zeros(3)
            for c in range(3):
                f = flow[c]
                low = (f[z0, y0, x0] * (1 - fx) + f[z0, y0, x1] * fx) * (1 - fy)
                low += (f[z0, y1, x0] * (1 - fx) + f[z0, y1, x1] * fx) * fy
                high = (f[z1, y0, x0] * (1 - fx) + f[z1, y0, x1] * fx) * (1 - fy)
                high += (f[z1, y1, x0] * (1 - fx) + f[z1, y1, x1] * fx) * fy
                step[c] = low * (1 - fz) + high * fz
            z = min(max(z + step[0], 0.0), float(top[0]))
            y = min(max(y + step[1], 0.0), float(top[1]))
            x = min(max(x + step[2], 0.0), float(top[2]))
        points[i, 0], points[i, 1], points[i, 2] = z, y, x


@_jit
def climb(votes, start):
    """From every voxel that got votes to the summit it leads to, uphill within a 5-voxel box.

    Args:
        votes: int64, (z, y, x).
        start: int64, (n,); flat indices of voxels with votes.

    Returns:
        int64, (n,): flat index of the summit.
    """
    nz, ny, nx = votes.shape
    flat = votes.ravel()
    best = np.empty(start.size, np.int64)
    known = np.full(flat.size, -1, np.int64)
    for k in range(start.size):
        i = start[k]
        while known[i] < 0:
            z, y, x = i // (ny * nx), (i // nx) % ny, i % nx
            top = i
            for a in range(max(0, z - 2), min(nz, z + 3)):
                for b in range(max(0, y - 2), min(ny, y + 3)):
                    for c in range(max(0, x - 2), min(nx, x + 3)):
                        j = (a * ny + b) * nx + c
                        # Of equal voxels the first in scan order is the summit.
                        if flat[j] > flat[top] or (flat[j] == flat[top] and j < top):
                            top = j
            if top == i:
                known[i] = i
                break
            i = top
        summit = known[i]
        best[k] = summit
        known[start[k]] = summit
    return best
