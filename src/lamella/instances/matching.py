"""The best one-to-one assignment of pairs, however large their components are.

Components are found first. Small ones are solved by a compiled Hungarian method
(:mod:`lamella.instances.assignment`), large ones by SciPy's sparse one; both are exact, so it does
not matter which.

Examples:
    >>> left, right, gain = np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([5, 4, 3])
    >>> match_pairs(left, right, gain, 2).tolist()
    [1, 2]
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["match_pairs", "match_sparse"]

_LARGEST_TABLE = 2**16


def match_pairs(
    left: NDArray[np.int64], right: NDArray[np.int64], gain: NDArray[np.int64], n: int
) -> NDArray[np.int64]:
    """Indices of the pairs of the best one-to-one assignment, ascending."""
    from lamella.instances.assignment import components_of, match_sorted

    if len(left) == 0:
        return np.zeros(0, np.int64)
    component = components_of(left, right, n)
    order = np.argsort(component, kind="stable")
    is_chosen, is_left = match_sorted(
        left[order], right[order], gain[order], component[order], _LARGEST_TABLE
    )
    if is_left.any():
        rest = np.flatnonzero(is_left)
        at = order[rest]
        is_chosen[rest[match_sparse(left[at], right[at], gain[at])]] = True
    return np.sort(order[is_chosen])


def match_sparse(
    left: NDArray[np.int64], right: NDArray[np.int64], gain: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The same for components whose table would be large; every row may also stay alone."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    rows, i = np.unique(left, return_inverse=True)
    columns, j = np.unique(right, return_inverse=True)
    n = len(rows)
    top = float(gain.max()) + 1.0
    cost = np.concatenate([top - gain, np.full(n, top)])
    table = csr_matrix(
        (
            cost,
            (np.concatenate([i, np.arange(n)]), np.concatenate([j, len(columns) + np.arange(n)])),
        ),
        shape=(n, len(columns) + n),
    )
    found: Any = min_weight_full_bipartite_matching(table)
    column_of = np.full(n, -1)
    column_of[found[0]] = found[1]
    return np.flatnonzero(column_of[i] == j)
