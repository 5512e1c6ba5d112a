"""Augmentation: image, labels and mask move together, and labels are never mixed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.core.errors import InputError
from lamella.training.augment import Augmentation, AugmentOptions, Intensity, Movement, Sample, draw

STRONG = AugmentOptions(
    rotation_chance=0.7, scale_chance=0.7, elastic_chance=0.7, noise_chance=0.7, blur_chance=0.7,
    contrast_chance=0.7, gamma_chance=0.7, missing_chance=0.2, misalign_chance=0.7,
    misalign_voxels=3,
)  # fmt: skip
NOTHING = AugmentOptions(
    flip_axes=(), quarter_turns=False, rotation_chance=0, scale_chance=0, elastic_chance=0,
    noise_chance=0, blur_chance=0, contrast_chance=0, gamma_chance=0,
)  # fmt: skip

seeds = st.integers(0, 10**6)
shapes = st.sampled_from([(8, 12, 12), (10, 10, 10), (14, 9), (12, 12)])


def sample_of(shape, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 3, 70000], (2, *shape)).astype(np.uint32)
    return Sample(
        rng.normal(size=(1, *shape)).astype(np.float32), labels, rng.random(labels.shape) < 0.9
    )


@settings(max_examples=40, deadline=None)
@given(seeds, shapes)
def test_labels_are_never_mixed(seed, shape):
    sample = sample_of(shape)
    found = draw(np.random.default_rng(seed), STRONG, shape).apply(sample)
    assert found.labels.dtype == sample.labels.dtype
    assert set(np.unique(found.labels)) <= {0, 3, 70000}
    assert found.image.shape[1:] == found.labels.shape[1:] == found.valid.shape[1:]
    assert found.image.dtype == np.float32
    assert np.isfinite(found.image).all()


@settings(max_examples=40, deadline=None)
@given(seeds, shapes)
def test_image_labels_and_mask_move_together(seed, shape):
    # An image that is a ramp of its own coordinates says where each voxel came from.
    ramp = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")).astype(np.float32)
    sample = Sample(ramp, ramp.astype(np.int64), np.ones(ramp.shape, bool))
    found = draw(np.random.default_rng(seed), STRONG, shape).movement.apply(sample)
    valid = found.valid.all(axis=0)
    # A label is the nearest voxel, the image is interpolated: at most half a voxel between them.
    distance = np.abs(found.image - found.labels)[:, valid]
    assert distance.size == 0 or distance.max() <= 0.5 + 1e-3


@settings(max_examples=30, deadline=None)
@given(seeds, shapes)
def test_the_same_state_gives_the_same_sample(seed, shape):
    sample = sample_of(shape)
    one, two = (draw(np.random.default_rng(seed), STRONG, shape).apply(sample) for _ in range(2))
    for name in ("image", "labels", "valid"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


@given(seeds, shapes)
def test_no_chances_change_nothing(seed, shape):
    sample = sample_of(shape)
    found = draw(np.random.default_rng(seed), NOTHING, shape).apply(sample)
    np.testing.assert_array_equal(found.image, sample.image)
    np.testing.assert_array_equal(found.labels, sample.labels)
    np.testing.assert_array_equal(found.valid, sample.valid)


@given(seeds, shapes)
def test_flips_and_turns_move_voxels_and_change_none(seed, shape):
    plain = AugmentOptions(
        rotation_chance=0, scale_chance=0, noise_chance=0, blur_chance=0, contrast_chance=0,
        gamma_chance=0,
    )  # fmt: skip
    sample = sample_of(shape)
    found = draw(np.random.default_rng(seed), plain, shape).apply(sample)
    np.testing.assert_array_equal(np.sort(found.image.ravel()), np.sort(sample.image.ravel()))
    pairs = [
        np.unique(np.stack([s.image.ravel(), s.labels[0].ravel()]), axis=1) for s in (found, sample)
    ]
    np.testing.assert_array_equal(*pairs)


@given(seeds)
def test_coarse_axes_are_not_rotated(seed):
    options = AugmentOptions(rotation_chance=1, scale_chance=1, elastic_chance=1)
    movement = draw(np.random.default_rng(seed), options, (6, 16, 16), (40.0, 4.0, 4.0)).movement
    np.testing.assert_array_equal(movement.matrix[0], (1, 0, 0))
    np.testing.assert_array_equal(movement.matrix[:, 0], (1, 0, 0))
    assert not movement.displacements[0].any()
    assert all(plane == (1, 2) for plane, _ in movement.turns)


@given(seeds)
def test_a_rotation_is_one_in_physical_space(seed):
    options = AugmentOptions(rotation_chance=1, scale_chance=0, elastic_chance=0)
    sizes = np.array([2.0, 1.0, 1.5])
    movement = draw(np.random.default_rng(seed), options, (8, 8, 8), sizes.tolist()).movement
    physical = movement.matrix * sizes[:, None] / sizes[None, :]
    np.testing.assert_allclose(physical @ physical.T, np.eye(3), atol=1e-12)


def test_what_comes_from_outside_is_not_valid():
    sample = Sample(
        np.zeros((1, 20, 20), np.float32), np.ones((1, 20, 20), np.uint8),
        np.ones((1, 20, 20), bool),
    )  # fmt: skip
    found = Movement(matrix=np.eye(2) * 2).apply(sample)
    assert found.valid[0, 10, 10]
    assert not found.valid[0, 0, 0]
    assert 0.2 < found.valid.mean() < 0.3


def test_misaligned_slices_take_their_labels_along():
    labels = np.zeros((1, 4, 9, 9), np.uint8)
    labels[:, :, 4, 4] = 1
    sample = Sample(labels.astype(np.float32), labels, np.ones(labels.shape, bool))
    shifts = np.array([[0, 0], [0, 0], [2, -1], [2, -1]])
    found = Movement(shifts=shifts).apply(sample)
    assert [tuple(np.argwhere(found.labels[0, z])[0]) for z in range(4)] == [
        (4, 4), (4, 4), (6, 3), (6, 3),
    ]  # fmt: skip
    np.testing.assert_array_equal(found.image, found.labels)
    assert not found.valid[0, 2, :2].any()
    assert found.valid[0, 0].all()


def test_intensities_change_and_labels_do_not():
    sample = sample_of((6, 8, 8))
    change = Augmentation(
        intensity=Intensity(
            blur=(0.5, 1.0, 1.0), contrast=1.2, brightness=0.3, gamma=1.3, noise=0.2, blank=(2,)
        )
    )
    found = change.apply(sample)
    assert not np.array_equal(found.image, sample.image)
    assert np.ptp(found.image[:, 2]) == 0
    np.testing.assert_array_equal(found.labels, sample.labels)


WIDE = AugmentOptions(
    rotation_chance=1, rotation_degrees=45, scale_chance=1, scale_range=(0.5, 0.9), reach=4
)


@settings(max_examples=40, deadline=None)
@given(seeds, shapes)
def test_with_enough_reach_everything_comes_from_the_image(seed, shape):
    change = draw(np.random.default_rng(seed), WIDE, shape)
    source = change.movement.source_shape(shape, WIDE.reach)
    assert all(a <= b <= 4 * a for a, b in zip(shape, source, strict=True))
    labels = np.ones((1, *source), np.uint8)
    found = change.apply(Sample(labels.astype(np.float32), labels, np.ones(source, bool)[None]))
    assert found.valid.shape[1:] == found.labels.shape[1:] == shape
    assert found.valid.all()


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from([(10, 10, 10), (12, 12)]))
def test_reach_shows_more_of_the_image_and_moves_nothing(seed, shape):
    """What a patch and a larger piece around the same middle have in common is the same."""
    movement = draw(np.random.default_rng(seed), WIDE, shape).movement
    wide = tuple(n + 8 for n in shape)
    ramp = np.stack(np.meshgrid(*(np.arange(n) for n in wide), indexing="ij")).astype(np.float32)
    inner = ramp[(slice(None), *(slice(4, -4),) * len(shape))]
    near, far = (
        movement.apply(Sample(image, image.astype(np.int64), np.ones(image.shape, bool)))
        for image in (inner, ramp)
    )
    valid = near.valid.all(axis=0)
    # Points between the last voxel and its border are reflected in the one and not in the other.
    assert np.abs(near.image - far.image)[:, valid].max() < 1
    assert far.valid[:, valid].all()


def test_without_reach_a_patch_is_made_of_itself():
    movement = Movement(matrix=np.eye(2) * 3)
    assert movement.source_shape((16, 20), 1) == (16, 20)
    assert movement.source_shape((16, 20), 2) == (32, 40)
    assert movement.source_shape((16, 20), 8) == (46, 58)
    assert Movement().source_shape((16, 20), 8) == (16, 20)


def test_uneven_light_is_smooth_and_leaves_the_darkest_dark():
    options = AugmentOptions(shading_chance=1, shading_strength=0.5)
    change = draw(np.random.default_rng(4), options, (64, 64)).intensity
    stripes = np.zeros((1, 64, 64), np.float32)
    stripes[:, :, ::2] = 1.0
    found = Intensity(shading=change.shading).apply(stripes)
    assert not found[:, :, 1::2].any()
    light = found[0, :, ::2]
    assert light.min() > 0
    assert np.ptp(light) > 0.05
    assert np.abs(np.diff(light, axis=0)).max() < 0.1


def test_impossible_values_are_refused():
    with pytest.raises(InputError, match="noise_chance"):
        AugmentOptions(noise_chance=1.5)
    with pytest.raises(InputError, match="reach is"):
        AugmentOptions(reach=0.5)
    with pytest.raises(InputError, match="scale_range"):
        AugmentOptions(scale_range=(0.0, 1.0))
    sample = sample_of((6, 8, 8))
    with pytest.raises(InputError, match="one grid"):
        Augmentation().apply(Sample(sample.image, sample.labels[:, 1:], sample.valid[:, 1:]))
