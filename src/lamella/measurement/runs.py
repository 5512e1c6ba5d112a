"""Compiled run-length statistics of objects (numba: import it inside functions only).

A table of objects is three arrays, one row per object: ``ids``; ``whole`` with the columns below,
exact integers; ``values`` with sums of intensities relative to the object's first voxel, so that
their spread survives a large offset. A hash table finds the row of an id.
"""

import numba
import numpy as np

_jit = numba.njit(cache=True, nogil=True)
_MIX = np.uint64(0x9E3779B97F4A7C15)
_ONE = np.uint64(1)

# Columns of `whole`: voxels; twice the sum of z, y, x; box start and stop per axis; first voxel.
VOXELS, SUM, START, STOP, FIRST, N_WHOLE = 0, 1, 4, 7, 10, 13
# Columns of `values`: first intensity; sum and sum of squares of the differences to it; extremes.
SHIFT, DIFFERENCE, SQUARES, LOWEST, HIGHEST, N_VALUES = 0, 1, 2, 3, 4, 5


@_jit
def find_slot(key, ids, slots, shift):
    """Slot of an id in the hash table; it holds -1 when the id is new.

    Multiplicative hashing (Knuth, TAOCP 6.4): consecutive ids never collide.

    Args:
        key: the id.
        ids: unsigned, (capacity,).
        slots: int64, rows, a power of two ≥ 2 x capacity; -1 = free.
        shift: 64 - log2 of the number of slots, uint64.
    """
    wrap = np.uint64(slots.size - 1)
    slot = (np.uint64(key) * _MIX) >> shift
    while slots[slot] >= 0 and ids[slots[slot]] != key:
        slot = (slot + _ONE) & wrap
    return slot


@_jit
def enter_ids(ids, n_ids, slots, shift):
    """Enter the first ``n_ids`` ids into an empty hash table, in place."""
    for row in range(n_ids):
        slots[find_slot(ids[row], ids, slots, shift)] = row


@_jit
def add_runs(slab, image, rows, start, table, n_ids):
    """Add a slab to the table, run by run along x, until the table is full.

    Arrays that a loop may replace cost ten times the speed, so the table never grows in here.

    Args:
        slab: unsigned labels, (z, y, x), C-contiguous.
        image: float32 or float64 intensities of the same shape, or of shape (0, 0, 0).
        rows: int32, (z, y + 2, x + 2) or (0, 0, 0); receives the row + 1 of every voxel, 0 where
            there is no object, inside a rim that is left alone.
        start: index of the slab's first plane in the volume; line (z * ny + y) of the slab to
            begin at.
        table: ids, whole, values, slots, shift.
        n_ids: rows in use.

    Returns:
        The line it stopped before (the number of lines when done), and ``n_ids``.
    """
    ids, whole, values, slots, shift = table
    z_first, first_line = start
    nz, ny, nx = slab.shape
    for line in range(first_line, nz * ny):
        if n_ids + nx > ids.size:
            return line, n_ids
        z, y = line // ny, line % ny
        labels = slab[z, y]
        begin = 0
        for x in range(1, nx + 1):
            if x < nx and labels[x] == labels[begin]:
                continue
            key, row = labels[begin], np.int64(-1)
            if key != 0:
                slot = find_slot(key, ids, slots, shift)
                if slots[slot] < 0:
                    slots[slot] = n_ids
                    ids[n_ids] = key
                    _begin_row(whole[n_ids], values[n_ids], z + z_first, y, begin)
                    if image.size:
                        values[n_ids, SHIFT] = image[z, y, begin]
                    n_ids += 1
                row = slots[slot]
                _add_run(whole[row], z + z_first, y, begin, x)
                if image.size:
                    _add_values(values[row], image[z, y, begin:x])
            if rows.size:
                rows[z, y + 1, begin + 1 : x + 1] = row + 1
            begin = x
    return nz * ny, n_ids


@_jit
def _begin_row(whole, values, z, y, x):
    """First voxel of a new object."""
    whole[FIRST], whole[FIRST + 1], whole[FIRST + 2] = z, y, x
    whole[START], whole[START + 1], whole[START + 2] = z, y, x
    values[LOWEST], values[HIGHEST] = np.inf, -np.inf


@_jit
def _add_run(whole, z, y, start, stop):
    """Voxels start..stop of one line."""
    n = stop - start
    whole[VOXELS] += n
    whole[SUM] += 2 * n * z
    whole[SUM + 1] += 2 * n * y
    whole[SUM + 2] += n * (start + stop - 1)
    # Lines come in scan order, so z only grows.
    whole[STOP] = z + 1
    whole[START + 1] = min(whole[START + 1], y)
    whole[STOP + 1] = max(whole[STOP + 1], y + 1)
    whole[START + 2] = min(whole[START + 2], start)
    whole[STOP + 2] = max(whole[STOP + 2], stop)


@_jit
def _add_values(values, intensities):
    """Intensities of one run."""
    shift = values[SHIFT]
    for value in intensities:
        difference = np.float64(value) - shift
        values[DIFFERENCE] += difference
        values[SQUARES] += difference * difference
        values[LOWEST] = min(values[LOWEST], np.float64(value))
        values[HIGHEST] = max(values[HIGHEST], np.float64(value))


@_jit
def add_map_runs(slab, maps, table, sums):
    """Add up maps over the objects of a slab, run by run along x.

    Args:
        slab: unsigned labels, (z, y, x), C-contiguous.
        maps: uint8, (m, z, y, x), C-contiguous.
        table: ids, slots, shift; ids that it lacks are passed over.
        sums: int64, (rows, m), in place.
    """
    ids, slots, shift = table
    nz, ny, nx = slab.shape
    for line in range(nz * ny):
        z, y = line // ny, line % ny
        labels = slab[z, y]
        begin = 0
        for x in range(1, nx + 1):
            if x < nx and labels[x] == labels[begin]:
                continue
            key = labels[begin]
            if key != 0:
                row = slots[find_slot(key, ids, slots, shift)]
                if row >= 0:
                    for k in range(maps.shape[0]):
                        total = 0
                        for value in maps[k, z, y, begin:x]:
                            total += value
                        sums[row, k] += total
            begin = x
