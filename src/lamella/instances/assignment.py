"""Best one-to-one assignment over sparse pairs, component by component. Imports numba.

The pairs fall into connected components, nearly all of one to four pairs; each is solved exactly
by the Hungarian method with potentials (Kuhn 1955, doi:10.1002/nav.3800020109; in the form of
Jonker & Volgenant 1987, doi:10.1007/BF02278710). Weights are integers, so sums are exact and the
same pairs are chosen in whatever order they come, as long as the best choice is unique.
"""

import numba
import numpy as np

from lamella.instances.union import root

_jit = numba.njit(cache=True, nogil=True)

_FAR = np.int64(2**62)


@_jit
def components_of(left, right, n):
    """The component of every pair, named by its smallest node.

    Args:
        left: int64, (m,); 0 to n - 1.
        right: int64, (m,); 0 to n - 1, nodes of their own.
        n: how many nodes either side has.

    Returns:
        int64, (m,).
    """
    parent = np.arange(2 * n)
    for k in range(left.size):
        i, j = root(parent, left[k]), root(parent, n + right[k])
        if i < j:
            parent[j] = i
        else:
            parent[i] = j
    found = np.empty(left.size, np.int64)
    for k in range(left.size):
        found[k] = root(parent, left[k])
    return found


@_jit
def _cheapest(gain, row, prices, row_of, column, slack, came_from, is_done):
    """Look from one row at every open column; the cheapest one and the step to it."""
    step, following = _FAR, 0
    for j in range(1, row_of.size):
        if is_done[j]:
            continue
        cost = -gain[row - 1, j - 1] - prices[0][row] - prices[1][j]
        if cost < slack[j]:
            slack[j] = cost
            came_from[j] = column
        if slack[j] < step:
            step, following = slack[j], j
    return step, following


@_jit
def assign(gain):
    """Choose at most one entry per row and column, the sum as large as possible.

    Args:
        gain: int64, (r, c) with r <= c; 0 where a pair may not be chosen.

    Returns:
        int64, (r,); the column of every row.
    """
    n_rows, n_columns = gain.shape
    # Row and column 0 are where an augmenting path begins.
    prices = np.zeros(n_rows + 1, np.int64), np.zeros(n_columns + 1, np.int64)
    row_of = np.zeros(n_columns + 1, np.int64)
    for i in range(1, n_rows + 1):
        row_of[0] = i
        column = 0
        slack = np.full(n_columns + 1, _FAR)
        came_from = np.zeros(n_columns + 1, np.int64)
        is_done = np.zeros(n_columns + 1, np.bool_)
        while row_of[column] != 0:
            is_done[column] = True
            step, following = _cheapest(
                gain, row_of[column], prices, row_of, column, slack, came_from, is_done
            )
            for j in range(n_columns + 1):
                if is_done[j]:
                    prices[0][row_of[j]] += step
                    prices[1][j] -= step
                else:
                    slack[j] -= step
            column = following
        while column != 0:
            row_of[column] = row_of[came_from[column]]
            column = came_from[column]
    chosen = np.empty(n_rows, np.int64)
    for j in range(1, n_columns + 1):
        if row_of[j] > 0:
            chosen[row_of[j] - 1] = j - 1
    return chosen


@_jit
def match_sorted(left, right, gain, component, largest):
    """Choose pairs one to one; components that are too large are left to the caller.

    Args:
        left: int64, (m,).
        right: int64, (m,).
        gain: int64, (m,); positive.
        component: int64, (m,); ascending.
        largest: entries of the largest table that is solved here.

    Returns:
        bool, (m,): chosen; bool, (m,): left to the caller.
    """
    m = left.size
    is_chosen = np.zeros(m, np.bool_)
    is_left = np.zeros(m, np.bool_)
    start = 0
    while start < m:
        stop = start + 1
        while stop < m and component[stop] == component[start]:
            stop += 1
        if stop == start + 1:
            is_chosen[start] = True
        else:
            rows, columns = np.unique(left[start:stop]), np.unique(right[start:stop])
            if rows.size * columns.size > largest:
                is_left[start:stop] = True
            else:
                table = np.zeros((rows.size, columns.size), np.int64)
                for k in range(start, stop):
                    i = np.searchsorted(rows, left[k])
                    j = np.searchsorted(columns, right[k])
                    table[i, j] = gain[k]
                is_flipped = rows.size > columns.size
                column = assign(table.T.copy() if is_flipped else table)
                for k in range(start, stop):
                    i = np.searchsorted(rows, left[k])
                    j = np.searchsorted(columns, right[k])
                    is_chosen[k] = column[j] == i if is_flipped else column[i] == j
        start = stop
    return is_chosen, is_left
