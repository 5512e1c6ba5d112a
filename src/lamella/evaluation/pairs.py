"""Compiled run-length counting of label pairs (numba: import it inside functions only)."""

import numba
import numpy as np

_jit = numba.njit(cache=True, nogil=True)
_MIX_A = np.uint64(0x9E3779B97F4A7C15)
_MIX_B = np.uint64(0xC2B2AE3D27D4EB4F)
_ONE = np.uint64(1)


@_jit
def _slot(a, b, shift):
    """Multiplicative hashing (Knuth, TAOCP 6.4): spreads consecutive and strided ids alike."""
    mixed = np.uint64(a) * _MIX_A + np.uint64(b) * _MIX_B
    mixed ^= mixed >> np.uint64(29)
    return (mixed * _MIX_A) >> shift


@_jit
def enter_pairs(pairs, n_pairs, slots):
    """Enter the first ``n_pairs`` rows into an empty hash table, in place."""
    shift = np.uint64(64 - int(np.log2(slots.size)))
    wrap = np.uint64(slots.size - 1)
    for row in range(n_pairs):
        slot = _slot(pairs[row, 0], pairs[row, 1], shift)
        while slots[slot] >= 0:
            slot = (slot + _ONE) & wrap
        slots[slot] = row


@_jit
def count_pairs(lines, start_row, pairs, counts, slots, n_pairs):
    """Add the voxels of two arrays to a table of pairs, run by run, until the table is full.

    The table never grows in here: arrays that a loop may replace cost ten times the speed.

    Args:
        lines: two unsigned arrays of one dtype and shape (rows, columns), C-contiguous.
        start_row: where to begin.
        pairs: unsigned, (capacity, 2), capacity > columns; the first ``n_pairs`` rows are in use.
        counts: int64, (capacity,); voxels of every pair.
        slots: int64, hash table of rows, a power of two ≥ 2 x capacity; -1 = free.
        n_pairs: rows in use.

    Returns:
        The row it stopped before (the number of rows when done), and ``n_pairs``.
    """
    first, second = lines
    n_rows, n_columns = first.shape
    shift = np.uint64(64 - int(np.log2(slots.size)))
    wrap = np.uint64(slots.size - 1)
    for i in range(start_row, n_rows):
        if n_pairs + n_columns > counts.size:
            return i, n_pairs
        left, right = first[i], second[i]
        a, b, start = left[0], right[0], 0
        for x in range(1, n_columns + 1):
            if x < n_columns and left[x] == a and right[x] == b:
                continue
            slot = _slot(a, b, shift)
            row = slots[slot]
            while row >= 0 and (pairs[row, 0] != a or pairs[row, 1] != b):
                slot = (slot + _ONE) & wrap
                row = slots[slot]
            if row < 0:
                row = n_pairs
                n_pairs += 1
                slots[slot] = row
                pairs[row, 0] = a
                pairs[row, 1] = b
            counts[row] += x - start
            if x < n_columns:
                a, b, start = left[x], right[x], x
    return n_rows, n_pairs
