"""Compiled kernels of the watershed: maxima by depth, seeds by distance, flooding by level.

Imports numba, so import it inside functions only. All kernels work on C-contiguous arrays
``(z, y, x)``; an image is a volume with one plane. Every loop runs in scan order and every queue is
first-in first-out, so a result depends on the input alone.
"""

import numba
import numpy as np

from lamella.instances.union import root

_jit = numba.njit(cache=True, nogil=True)


@_jit
def deep_maxima(height, order, depth):
    """Find the maxima that stand out by at least ``depth`` (their *dynamics*).

    Voxels enter from the highest to the lowest and join the peak of their neighbours; where two
    peaks meet, the lower one is given up when it rises less than ``depth`` above the meeting
    point (Grimaud 1992, doi:10.1117/12.60650).

    Args:
        height: uint16 or float32, (z, y, x).
        order: int64, flat indices of the voxels that take part, highest first.
        depth: in the unit of ``height``.

    Returns:
        int64 flat indices of the kept maxima, highest first.
    """
    nz, ny, nx = height.shape
    flat = height.ravel()
    parent = np.full(flat.size, -1, np.int64)
    kept = np.zeros(flat.size, np.bool_)
    for i in order:
        z, y, x = i // (ny * nx), (i // nx) % ny, i % nx
        parent[i] = i
        mine = i
        for a in range(max(0, z - 1), min(nz, z + 2)):
            for b in range(max(0, y - 1), min(ny, y + 2)):
                for c in range(max(0, x - 1), min(nx, x + 2)):
                    j = (a * ny + b) * nx + c
                    if j == i or parent[j] < 0:
                        continue
                    other = root(parent, j)
                    if other != mine:
                        mine = _merge_peaks(flat, parent, kept, (mine, other, i), depth)
        # Nothing higher beside it: a peak of its own, for now.
        kept[i] = mine == i
    return order[kept[order]]


@_jit
def _merge_peaks(flat, parent, kept, meeting, depth):
    """Join two peaks that meet at a voxel; the lower stays a maximum if it is deep enough."""
    high, low, at = meeting
    if high == at:
        parent[at] = low
        return low
    if flat[low] > flat[high] or (flat[low] == flat[high] and low < high):
        high, low = low, high
    if flat[low] - flat[at] < depth:
        kept[low] = False
    parent[low] = high
    return high


@_jit
def thin_by_distance(peaks, shape, spacing, distance):
    """Keep peaks, in the order given, that lie at least ``distance`` from every kept one.

    Args:
        peaks: int64 flat indices, best first.
        shape: (z, y, x).
        spacing: float64, (z, y, x).
        distance: in the unit of ``spacing``, positive.

    Returns:
        int64 flat indices of the kept peaks, best first.
    """
    _, ny, nx = shape
    cell = np.empty(3, np.int64)
    grid = np.empty(3, np.int64)
    for a in range(3):
        # A cell is at least `distance` wide, so rivals sit in the 27 cells around.
        cell[a] = max(1, min(shape[a], int(np.ceil(min(distance / spacing[a], 2.0**31)))))
        grid[a] = (shape[a] + cell[a] - 1) // cell[a]
    head = np.full(grid[0] * grid[1] * grid[2], -1, np.int64)
    following = np.full(peaks.size, -1, np.int64)
    kept = np.zeros(peaks.size, np.bool_)
    limit = distance * distance
    for k in range(peaks.size):
        i = peaks[k]
        z, y, x = i // (ny * nx), (i // nx) % ny, i % nx
        cz, cy, cx = z // cell[0], y // cell[1], x // cell[2]
        is_free = True
        for a in range(max(0, cz - 1), min(grid[0], cz + 2)):
            for b in range(max(0, cy - 1), min(grid[1], cy + 2)):
                for c in range(max(0, cx - 1), min(grid[2], cx + 2)):
                    m = head[(a * grid[1] + b) * grid[2] + c]
                    while m >= 0 and is_free:
                        j = peaks[m]
                        gap_z = (j // (ny * nx) - z) * spacing[0]
                        gap_y = ((j // nx) % ny - y) * spacing[1]
                        gap_x = (j % nx - x) * spacing[2]
                        is_free = gap_z * gap_z + gap_y * gap_y + gap_x * gap_x >= limit
                        m = following[m]
        if is_free:
            kept[k] = True
            slot = (cz * grid[1] + cy) * grid[2] + cx
            following[k] = head[slot]
            head[slot] = k
    return peaks[kept]


@_jit
def flood(labels, mask, level, n_levels):
    """Grow the labels over the mask, lowest level first (Meyer 1994), in place.

    One first-in first-out queue per level, so plateaus are shared evenly between the seeds beside
    them. A voxel lower than the flood that reaches it is taken at the flood's level. Neighbours
    are the 6 (4 in one plane) that share a face.

    Args:
        labels: integer, (z, y, x); seeds are positive, the rest is 0. Changed in place.
        mask: bool, (z, y, x); where labels may grow.
        level: uint16, (z, y, x), each below ``n_levels``.
        n_levels: number of levels.
    """
    nz, ny, nx = labels.shape
    flat, inside, rank = labels.ravel(), mask.ravel(), level.ravel()
    head = np.full(n_levels, -1, np.int64)
    tail = np.full(n_levels, -1, np.int64)
    following = np.full(flat.size, -1, np.int64)
    steps = np.array([-ny * nx, -nx, -1, 1, nx, ny * nx])
    for i in range(flat.size):
        if flat[i] > 0:
            r = rank[i]
            if tail[r] < 0:
                head[r] = i
            else:
                following[tail[r]] = i
            tail[r] = i
    for current in range(n_levels):
        i = head[current]
        while i >= 0:
            z, y, x = i // (ny * nx), (i // nx) % ny, i % nx
            reach = (z > 0, y > 0, x > 0, x < nx - 1, y < ny - 1, z < nz - 1)
            for s in range(6):
                if not reach[s]:
                    continue
                j = i + steps[s]
                if flat[j] != 0 or not inside[j]:
                    continue
                flat[j] = flat[i]
                r = max(rank[j], current)
                if tail[r] < 0:
                    head[r] = j
                else:
                    following[tail[r]] = j
                tail[r] = j
            i = following[i]
