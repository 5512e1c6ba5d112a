"""Compiled kernel of boundaries. Imports numba."""

import numba
import numpy as np

_jit = numba.njit(cache=True, nogil=True)


@_jit
def near_two_objects(ids, start, shape, strides, steps):
    """Which voxels have two different objects around them, and of which that is known.

    Args:
        ids: int64, (n,); a patch with a margin of -1 as wide as the steps are long; 0 is
            background, -1 unknown.
        start: index of the patch's first voxel.
        shape: three extents of the patch.
        strides: three strides of ``ids``.
        steps: int64, (m,); offsets of the voxels around one in ``ids``.

    Returns:
        bool, ``shape``: whether there are two; bool: whether all voxels around are known.
    """
    found = np.zeros(shape, np.bool_)
    known = np.zeros(shape, np.bool_)
    for z in range(shape[0]):
        for y in range(shape[1]):
            row = start + z * strides[0] + y * strides[1]
            for x in range(shape[2]):
                at = row + x
                first = ids[at]
                complete = first >= 0
                two = False
                for k in range(steps.size):
                    other = ids[at + steps[k]]
                    if other < 0:
                        complete = False
                    elif other > 0:
                        if first > 0:
                            two = two or other != first
                        else:
                            first = other
                found[z, y, x] = two
                known[z, y, x] = complete
    return found, known
