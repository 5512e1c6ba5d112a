"""What the tests of linking share: reference implementations, slices, damage."""

import numpy as np


def intersection_over_union(a, b):
    """IoU of all labels of a with all of b, background included; (a.max() + 1, b.max() + 1)."""
    a, b = a.ravel().astype(np.int64), b.ravel().astype(np.int64)
    shape = int(a.max()) + 1, int(b.max()) + 1
    shared = np.bincount(a * shape[1] + b, minlength=shape[0] * shape[1]).reshape(shape)
    union = shared.sum(0, keepdims=True) + shared.sum(1, keepdims=True) - shared
    return np.divide(shared, union, out=np.zeros(shape), where=union > 0)


def stitch3d(labels, threshold=0.25):
    """Cellpose's ``stitch3D`` from its documented behaviour, greedy and slice by slice."""
    labels = labels.astype(np.int64)
    top, has_begun = labels[0].max(), False
    for z in range(1, len(labels)):
        iou = intersection_over_union(labels[z], labels[z - 1])[1:, 1:]
        n = int(labels[z].max())
        if not iou.size:
            if has_begun:
                labels[z] = np.append(0, np.arange(top + 1, top + n + 1))[labels[z]]
                top += n
            else:
                top = labels[z].max()
            continue
        iou[iou < threshold] = 0
        iou[iou < iou.max(axis=0)] = 0
        new = iou.argmax(axis=1) + 1
        alone = np.flatnonzero(iou.max(axis=1) == 0)
        new[alone] = np.arange(top + 1, top + len(alone) + 1)
        top += len(alone)
        labels[z] = np.append(0, new)[labels[z]]
        has_begun = True
    return labels


def as_slices(labels, seed=None):
    """The objects of every slice numbered 1..n in it, in random order with a seed."""
    rng = None if seed is None else np.random.default_rng(seed)
    result = np.zeros(labels.shape, np.uint32)
    for z, plane in enumerate(labels):
        values, index = np.unique(plane, return_inverse=True)
        n = len(values) - (values[0] == 0)
        order = np.arange(1, n + 1) if rng is None else rng.permutation(n) + 1
        table = np.append(0, order) if values[0] == 0 else order
        result[z] = table[index.reshape(plane.shape)]
    return result


def link(labels, slab_depth=None, spacing=(1.0, 1.0, 1.0), **options):
    """Linked labels and the result."""
    from lamella.instances import LinkOptions, link_slices

    made = []

    def create(dtype):
        made.append(np.full(labels.shape, 77, dtype))
        return made[0]

    result = link_slices(
        labels, create, spacing=spacing, options=LinkOptions(**options), slab_depth=slab_depth
    )
    return made[0], result


def average_precision(prediction, reference, threshold=0.5):
    """TP / (TP + FP + FN)."""
    from lamella.evaluation import count_overlaps, score_instances

    table = count_overlaps(prediction.astype(np.uint32), reference.astype(np.uint32))
    return score_instances(table, thresholds=(threshold,)).matchings[0].average_precision


def same_partition(a, b):
    """Whether two label images group the voxels in the same way."""
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
    return pairs.shape[1] == len(np.unique(a)) == len(np.unique(b))
