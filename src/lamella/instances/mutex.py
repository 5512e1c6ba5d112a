"""Compiled clustering of a graph by its edges, strongest first. Imports numba.

Both algorithms read edges in a fixed order and keep clusters in a union-find, so the result
depends on the order alone.
"""

import numba
import numpy as np

from lamella.instances.union import root

_jit = numba.njit(cache=True, nogil=True)


@_jit
def mutex_watershed(u, v, is_repulsive, n):
    """Merge along attractive edges unless an earlier repulsive edge keeps the clusters apart.

    Wolf et al. (2018), doi:10.1007/978-3-030-01225-0_34.

    Args:
        u: int64, (m,); one end of every edge, strongest edge first.
        v: int64, (m,); the other end.
        is_repulsive: bool, (m,).
        n: number of nodes.

    Returns:
        int64, (n,): the root of every node.
    """
    parent = np.arange(n)
    size = np.ones(n, np.int64)
    # Whom a cluster may not join: linked lists that are joined when clusters are.
    head = np.full(n, -1, np.int64)
    tail = np.full(n, -1, np.int64)
    length = np.zeros(n, np.int64)
    n_repulsive = is_repulsive.sum()
    node = np.empty(2 * n_repulsive, np.int64)
    following = np.full(2 * n_repulsive, -1, np.int64)
    used = 0
    for k in range(u.size):
        a, b = root(parent, u[k]), root(parent, v[k])
        if a == b or _are_apart(parent, head, length, node, following, a, b):
            continue
        if is_repulsive[k]:
            for mine, other in ((a, b), (b, a)):
                node[used] = other
                if head[mine] < 0:
                    head[mine] = used
                else:
                    following[tail[mine]] = used
                tail[mine] = used
                length[mine] += 1
                used += 1
            continue
        if size[a] < size[b] or (size[a] == size[b] and b < a):
            a, b = b, a
        parent[b] = a
        size[a] += size[b]
        if head[b] >= 0:
            if head[a] < 0:
                head[a] = head[b]
            else:
                following[tail[a]] = head[b]
            tail[a] = tail[b]
            length[a] += length[b]
    for i in range(n):
        parent[i] = root(parent, i)
    return parent


@_jit
def _are_apart(parent, head, length, node, following, a, b):
    """Whether two clusters may not be joined; the shorter list is looked through."""
    if length[b] < length[a]:
        a, b = b, a
    k = head[a]
    while k >= 0:
        other = root(parent, node[k])
        node[k] = other
        if other == b:
            return True
        k = following[k]
    return False


@_jit
def grow_seeds(u, v, seeds):
    """Merge along edges unless both clusters hold a seed: a watershed on edges.

    Cousty et al. (2009), doi:10.1109/TPAMI.2008.173 (minimum spanning forest cut).

    Args:
        u: int64, (m,); one end of every edge, strongest edge first.
        v: int64, (m,); the other end.
        seeds: int64, (n,); seed of every node, 0 for none.

    Returns:
        int64, (n,): seed that every node ends with; where none reaches it, a negative number that
        its cluster has for itself.
    """
    n = seeds.size
    parent = np.arange(n)
    seed = seeds.copy()
    for k in range(u.size):
        a, b = root(parent, u[k]), root(parent, v[k])
        if a == b or (seed[a] != seed[b] and seed[a] > 0 and seed[b] > 0):
            continue
        if b < a:
            a, b = b, a
        parent[b] = a
        if seed[a] == 0:
            seed[a] = seed[b]
    result = np.empty(n, np.int64)
    for i in range(n):
        r = root(parent, i)
        result[i] = seed[r] if seed[r] > 0 else -1 - r
    return result


@_jit
def collect_edges(inside, affinity, offset, limits, is_repulsive, edges):
    """List the edges of one offset between foreground voxels.

    Args:
        inside: bool, (z, y, x); voxels that take part.
        affinity: uint16, (z, y, x); of every voxel with the one at ``offset`` from it.
        offset: three integers.
        limits: least and greatest affinity of an edge.
        is_repulsive: whether the strength of an edge is the lack of affinity.
        edges: u, v (int64) and strength (uint16), to be filled.

    Returns:
        How many edges there are.
    """
    u, v, strength = edges
    nz, ny, nx = inside.shape
    dz, dy, dx = offset
    n = 0
    for z in range(max(0, -dz), min(nz, nz - dz)):
        for y in range(max(0, -dy), min(ny, ny - dy)):
            for x in range(max(0, -dx), min(nx, nx - dx)):
                if not inside[z, y, x] or not inside[z + dz, y + dy, x + dx]:
                    continue
                value = affinity[z, y, x]
                if value < limits[0] or value > limits[1]:
                    continue
                u[n] = (z * ny + y) * nx + x
                v[n] = ((z + dz) * ny + y + dy) * nx + x + dx
                strength[n] = 65535 - value if is_repulsive else value
                n += 1
    return n
