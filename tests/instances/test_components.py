"""Connected components: the same objects as scipy, whatever the slabs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from lamella.core.errors import InputError, RunCancelledError
from lamella.core.progress import CancelToken, SilentSink
from lamella.instances import id_dtype, label_components, label_components_blockwise

HOPS = {4: 1, 8: 2, 6: 1, 18: 2, 26: 3}


def random_classes(seed, shape, density, n_classes, dtype=np.uint8):
    rng = np.random.default_rng(seed)
    classes = rng.integers(1, n_classes + 1, shape)
    return np.where(rng.random(shape) < density, classes, 0).astype(dtype)


def reference_components(classes, connectivity):
    """Scipy, class by class, then numbered by first voxel."""
    structure = ndimage.generate_binary_structure(classes.ndim, HOPS[connectivity])
    labels = np.zeros(classes.shape, np.int64)
    for value in np.unique(classes[classes > 0]):
        found, _ = ndimage.label(classes == value, structure)
        labels += np.where(found > 0, found + labels.max(), 0)
    ids, first = np.unique(labels, return_index=True)
    order = [i for _, i in sorted(zip(first[ids > 0], ids[ids > 0], strict=True))]
    lut = np.zeros(labels.max() + 1, np.int64)
    lut[order] = np.arange(1, len(order) + 1)
    return lut[labels]


volumes = st.builds(
    random_classes,
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 8), st.integers(1, 8)),
    density=st.floats(0.0, 1.0),
    n_classes=st.integers(1, 3),
)


@given(classes=volumes, connectivity=st.sampled_from([6, 18, 26]))
def test_equals_scipy(classes, connectivity):
    found = label_components(classes, connectivity=connectivity)
    expected = reference_components(classes, connectivity)
    np.testing.assert_array_equal(found.labels, expected)
    assert found.count == expected.max(initial=0)
    np.testing.assert_array_equal(found.classes[found.labels], classes)


@given(
    classes=volumes,
    connectivity=st.sampled_from([6, 18, 26, None]),
    slab_depth=st.integers(1, 10),
)
def test_blockwise_is_whole_for_any_slab_depth(classes, connectivity, slab_depth):
    whole = label_components(classes, connectivity=connectivity)
    outputs = []

    def create(dtype):
        outputs.append(np.full(classes.shape, 77, dtype))
        return outputs[0]

    found = label_components_blockwise(
        classes, create, connectivity=connectivity, slab_depth=slab_depth
    )
    np.testing.assert_array_equal(outputs[0], whole.labels)
    assert found.count == whole.count
    assert found.dtype == whole.labels.dtype == outputs[0].dtype
    np.testing.assert_array_equal(found.classes, whole.classes)


@given(
    seed=st.integers(0, 2**32 - 1),
    density=st.floats(0, 1),
    connectivity=st.sampled_from([4, 8, None]),
    slab_depth=st.integers(1, 9),
)
def test_images_blockwise(seed, density, connectivity, slab_depth):
    classes = random_classes(seed, (8, 11), density, 2)
    whole = label_components(classes, connectivity=connectivity)
    np.testing.assert_array_equal(whole.labels, reference_components(classes, connectivity or 8))
    output = np.zeros(classes.shape, np.uint32)
    label_components_blockwise(
        classes, lambda _: output, connectivity=connectivity, slab_depth=slab_depth
    )
    np.testing.assert_array_equal(output, whole.labels)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint32, np.int64, np.uint64])
def test_every_integer_dtype(dtype):
    classes = np.zeros((3, 4, 5), dtype)
    classes[0, 0, 0] = classes[2, 3, 4] = 1
    found = label_components(classes)
    assert found.count == 2
    assert found.labels.dtype == np.uint32


def test_more_objects_than_16_bits_do_not_wrap():
    # 65 535 is where uint16 ids start again at 0.
    classes = np.zeros((2, 520, 520), bool)
    classes[0, ::2, ::2] = True
    found = label_components(classes, connectivity=6)
    assert found.count == 260 * 260 > 65_535
    assert found.labels.max() == found.count
    assert len(np.unique(found.labels)) == found.count + 1


def test_ids_take_64_bits_when_needed():
    assert id_dtype(2**32 - 1) == np.uint32
    assert id_dtype(2**32) == np.uint64


def test_a_spiral_through_every_slab_is_one_object():
    classes = np.zeros((40, 5, 5), np.uint8)
    classes[:, 0, 0] = classes[:, 4, 4] = 1
    classes[-1] = 1
    output = np.zeros(classes.shape, np.uint32)
    assert label_components_blockwise(classes, lambda _: output, slab_depth=1).count == 1


@pytest.mark.parametrize("shape", [(0, 4, 4), (3, 0, 4), (0, 0)])
def test_empty_arrays(shape):
    assert label_components(np.zeros(shape, np.uint8)).count == 0
    found = label_components_blockwise(np.zeros(shape, np.uint8), lambda d: np.zeros(shape, d))
    assert found.count == 0


@pytest.mark.parametrize(
    ("labels", "connectivity", "part"),
    [
        (np.zeros((3, 3), float), None, "float64"),
        (np.zeros(3, np.uint8), None, "1 axes"),
        (np.zeros((3, 3, 3), np.uint8), 8, "expected one of [6, 18, 26]"),
        (np.zeros((3, 3), np.uint8), 6, "expected one of [4, 8]"),
    ],
)
def test_bad_input_is_named(labels, connectivity, part):
    with pytest.raises(InputError) as caught:
        label_components(labels, connectivity=connectivity)
    assert part in caught.value.message


def test_cancelling_writes_nothing():
    token = CancelToken()
    token.cancel()
    with pytest.raises(RunCancelledError):
        label_components_blockwise(
            np.ones((4, 4, 4), np.uint8),
            lambda _: pytest.fail("created"),
            sink=SilentSink(token),
        )
