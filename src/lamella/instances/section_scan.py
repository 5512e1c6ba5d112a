"""Compiled passes over labelled slices: runs, overlaps of runs, rewriting. Imports numba.

A slice is looked at once: every row falls into *runs* of one label, and whatever linking needs
(areas, centroids, overlaps with other slices) comes from the runs, of which there are about a
hundred times fewer than voxels. Labels are found by hashing, so their values do not matter.
"""

import numba
import numpy as np

_jit = numba.njit(cache=True, nogil=True)

_EMPTY = np.uint64(0)


@_jit
def _slot(keys, key):
    """Where ``key`` is in an open-addressing table, or where it would go (Fibonacci hashing)."""
    mask = keys.size - 1
    at = np.int64((key * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)) & mask
    while keys[at] != _EMPTY and keys[at] != key:
        at = (at + 1) & mask
    return at


@_jit
def _grow(keys, values):
    """The same table at twice the size."""
    new_keys = np.zeros(2 * keys.size, np.uint64)
    new_values = np.zeros(2 * keys.size, np.int64)
    for k in range(keys.size):
        if keys[k] != _EMPTY:
            at = _slot(new_keys, keys[k])
            new_keys[at] = keys[k]
            new_values[at] = values[k]
    return new_keys, new_values


@_jit
def _runs_of(line, starts, stops):
    """Find the runs of one row; how many there are."""
    n = 0
    before = line.dtype.type(0)
    for x in range(line.size):
        value = line[x]
        if value != before:
            if before != 0:
                stops[n] = x
                n += 1
            if value != 0:
                starts[n] = x
            before = value
    if before != 0:
        stops[n] = line.size
        n += 1
    return n


@_jit
def _add_runs(line, y, bounds, found, runs, tables):
    """Find the sections of the runs of one row; how many sections there are then."""
    starts, stops = bounds
    keys, values, labels, moments, first, counters = tables
    n = counters[0]
    n_runs = counters[1]
    for k in range(found):
        start, stop = starts[k], stops[k]
        key = np.uint64(line[start])
        at = _slot(keys, key)
        if keys[at] == _EMPTY:
            keys[at] = key
            values[at] = n
            labels[n] = key
            first[n] = y * line.size + start
            n += 1
        section = values[at]
        length = np.float64(stop - start)
        moments[section, 0] += length
        moments[section, 1] += length * y
        moments[section, 2] += 0.5 * length * (start + stop - 1)
        runs[n_runs, 0] = start
        runs[n_runs, 1] = stop
        runs[n_runs, 2] = section
        n_runs += 1
    counters[0] = n
    counters[1] = n_runs


@_jit
def scan_plane(plane):
    """Runs and sections of one slice.

    Args:
        plane: unsigned integers, C-contiguous, (y, x); 0 is background.

    Returns:
        row: int64, (y + 1,); runs of row y are ``row[y]`` to ``row[y + 1]``.
        runs: int32, (n_runs, 3); first column, column after the last, section.
        labels: uint64, (n,); label of every section, by first voxel in scan order.
        moments: float64, (n, 3); area, sum of y, sum of x, in voxels.
        first: int64, (n,); flat index of the first voxel.
    """
    ny, nx = plane.shape
    row = np.zeros(ny + 1, np.int64)
    runs = np.empty((1024, 3), np.int32)
    keys = np.zeros(256, np.uint64)
    values = np.zeros(256, np.int64)
    labels = np.empty(128, np.uint64)
    moments = np.zeros((128, 3))
    first = np.empty(128, np.int64)
    counters = np.zeros(2, np.int64)
    bounds = np.empty(nx, np.int32), np.empty(nx, np.int32)
    for y in range(ny):
        found = _runs_of(plane[y], bounds[0], bounds[1])
        # Room first: arrays that may be replaced within a loop make it many times slower.
        while counters[1] + found > runs.shape[0]:
            runs = np.concatenate((runs, np.empty_like(runs)))
        while counters[0] + found > labels.size:
            labels = np.concatenate((labels, np.empty_like(labels)))
            moments = np.concatenate((moments, np.zeros_like(moments)))
            first = np.concatenate((first, np.empty_like(first)))
        while 2 * (counters[0] + found) > keys.size:
            keys, values = _grow(keys, values)
        tables = (keys, values, labels, moments, first, counters)
        _add_runs(plane[y], y, bounds, found, runs, tables)
        row[y + 1] = counters[1]
    n, n_runs = counters
    return row, runs[:n_runs].copy(), labels[:n].copy(), moments[:n].copy(), first[:n].copy()


@_jit
def _add_overlaps(runs_a, row_a, runs_b, row_b, n_b, keys, counts):
    """Count the overlaps of one row, given as first and last + 1 run; how many pairs are new."""
    n = 0
    i, end_i = row_a
    j, end_j = row_b
    while i < end_i and j < end_j:
        stop_a, stop_b = runs_a[i, 1], runs_b[j, 1]
        shared = min(stop_a, stop_b) - max(runs_a[i, 0], runs_b[j, 0])
        if shared > 0:
            # One more than the pair's number: 0 marks a free slot.
            key = np.uint64(runs_a[i, 2]) * n_b + np.uint64(runs_b[j, 2]) + np.uint64(1)
            at = _slot(keys, key)
            if keys[at] == _EMPTY:
                keys[at] = key
                n += 1
            counts[at] += shared
        i += stop_a <= stop_b
        j += stop_b <= stop_a
    return n


@_jit
def overlap_sections(row_a, runs_a, area_a, row_b, runs_b, area_b, least):
    """Overlaps of the sections of two slices, from their runs.

    Args:
        row_a: int64, (y + 1,); as from :func:`scan_plane`.
        runs_a: int32, (n_runs, 3); as from :func:`scan_plane`.
        area_a: float64, (n_a,); areas in voxels.
        row_b: as ``row_a``, of the other slice.
        runs_b: as ``runs_a``.
        area_b: as ``area_a``.
        least: overlaps below this share of the smaller section are left out.

    Returns:
        int64, (n, 3): section in a, section in b, voxels in common; in no order.
    """
    n_b = np.uint64(area_b.size)
    keys = np.zeros(256, np.uint64)
    counts = np.zeros(256, np.int64)
    n = 0
    for y in range(row_a.size - 1):
        i, j, end_i, end_j = row_a[y], row_b[y], row_a[y + 1], row_b[y + 1]
        while 2 * (n + end_i - i + end_j - j) > keys.size:
            keys, counts = _grow(keys, counts)
        n += _add_overlaps(runs_a, (i, end_i), runs_b, (j, end_j), n_b, keys, counts)
    found = np.empty((n, 3), np.int64)
    kept = 0
    for at in range(keys.size):
        if keys[at] == _EMPTY:
            continue
        pair = keys[at] - np.uint64(1)
        a, b = np.int64(pair // n_b), np.int64(pair % n_b)
        if counts[at] >= least * min(area_a[a], area_b[b]):
            found[kept, 0] = a
            found[kept, 1] = b
            found[kept, 2] = counts[at]
            kept += 1
    return found[:kept].copy()


@_jit
def rewrite_plane(plane, out, labels, ids):
    """Replace the labels of a slice by ids.

    Args:
        plane: unsigned integers, C-contiguous, (y, x).
        out: receives ids, same shape.
        labels: uint64, (n,); all labels of the slice.
        ids: their ids, dtype of ``out``.
    """
    size = 256
    while size < 2 * labels.size + 2:
        size *= 2
    keys = np.zeros(size, np.uint64)
    values = np.zeros(size, np.int64)
    for k in range(labels.size):
        at = _slot(keys, labels[k])
        keys[at] = labels[k]
        values[at] = k
    ny, nx = plane.shape
    for y in range(ny):
        before = plane.dtype.type(0)
        new = out.dtype.type(0)
        for x in range(nx):
            value = plane[y, x]
            if value != before:
                new = out.dtype.type(0)
                if value != 0:
                    new = ids[values[_slot(keys, np.uint64(value))]]
                before = value
            out[y, x] = new
