"""Compiled union-find across slab faces. Imports numba, so import it inside functions only."""

import numba

_jit = numba.njit(cache=True, nogil=True)


@_jit
def root(parent, i):
    """Follow ``parent`` from ``i`` to its root, halving the path on the way."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@_jit
def join_planes(values_a, ids_a, values_b, ids_b, hops, parent):
    """Join equal positive values of two touching planes, in place; the smaller id is the root.

    Args:
        values_a: integer or bool, (y, x); the last plane of the slab before.
        ids_a: int64, (y, x); index into ``parent`` of every positive voxel.
        values_b: the first plane of the next slab.
        ids_b: as ``ids_a``.
        hops: how many coordinates may differ: 1 faces, 2 edges, 3 corners.
        parent: int64, (n,); changed in place.
    """
    ny, nx = values_a.shape
    for y in range(ny):
        for x in range(nx):
            if values_b[y, x] == 0:
                continue
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    if abs(dy) + abs(dx) + 1 > hops:
                        continue
                    a, b = y + dy, x + dx
                    if a < 0 or b < 0 or a >= ny or b >= nx:
                        continue
                    if values_a[a, b] == values_b[y, x]:
                        i = root(parent, ids_a[a, b])
                        j = root(parent, ids_b[y, x])
                        if i < j:
                            parent[j] = i
                        else:
                            parent[i] = j


@_jit
def compress(parent):
    """Point every element at its root, in place, and number the roots 1..n in order.

    Returns:
        int64, (n,): the number of every element's root.
    """
    number = parent.copy()
    count = 0
    for i in range(parent.size):
        if parent[i] == i:
            count += 1
            number[i] = count
        else:
            # Roots are smaller than what they hold, so parent[i] is final already.
            parent[i] = parent[parent[i]]
            number[i] = number[parent[i]]
    return number
