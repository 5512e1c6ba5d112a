"""Logits of whole regions, core by core."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lamella.training.augment import Sample
from lamella.training.validation import iterate_logits, n_tiles


class ArrayRegion:
    """A region in memory that counts how often each voxel is read."""

    name = specimen = "array"

    def __init__(self, shape, seed=0):
        self.shape = shape
        self.image = np.random.default_rng(seed).normal(size=(1, *shape)).astype(np.float32)
        self.labels = np.arange(np.prod(shape)).reshape((1, *shape))

    def read(self, box):
        inside = (slice(None), *box.slices())
        return Sample(
            self.image[inside], self.labels[inside], np.ones_like(self.labels[inside], bool)
        )


class Local(torch.nn.Module):
    """A voxel's output depends on itself alone."""

    def forward(self, batch):
        return torch.cat([batch, 2 * batch], dim=1)


class Mean(torch.nn.Module):
    """A voxel's output depends on two neighbours each way, zeros beyond the tile."""

    def forward(self, batch):
        return torch.nn.functional.avg_pool2d(batch, 5, 1, 2)


extents = st.integers(1, 40)


@given(
    shape=st.one_of(st.tuples(extents, extents), st.tuples(extents, extents, extents)),
    size=st.integers(4, 16),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.9]),
)
def test_cores_cover_the_region_once_and_carry_their_own_voxels(shape, size, overlap):
    region = ArrayRegion(shape)
    tile = (size,) * len(shape)
    seen = np.zeros(shape, int)
    count = 0
    for box, logits, sample in iterate_logits(
        Local(), region, tile=tile, overlap_fraction=overlap, device="cpu"
    ):
        seen[box.slices()] += 1
        count += 1
        assert logits.shape == (1, 2, *box.shape)
        np.testing.assert_array_equal(sample.labels[0], region.labels[0][box.slices()])
        np.testing.assert_array_equal(logits[0, 0], sample.image[0])
        np.testing.assert_array_equal(logits[0, 1], 2 * sample.image[0])
        if min(shape) > 20 and count > 40:
            return
    assert (seen == 1).all()
    assert count == n_tiles(shape, tile, overlap)


def test_tiled_is_untiled_away_from_the_image_border():
    region = ArrayRegion((50, 60))
    whole = Mean()(torch.from_numpy(region.image)[None])[0, 0].numpy()
    got = np.zeros((50, 60), np.float32)
    for box, logits, _ in iterate_logits(
        Mean(), region, tile=(16, 16), overlap_fraction=0.5, device="cpu"
    ):
        got[box.slices()] = logits[0, 0]
    np.testing.assert_allclose(got, whole, atol=1e-6)


def test_of_several_outputs_the_finest_counts():
    class Several(torch.nn.Module):
        def forward(self, batch):
            return [batch, batch[..., ::2, ::2]]

    [(box, logits, _)] = iterate_logits(
        Several(), ArrayRegion((8, 8)), tile=(8, 8), overlap_fraction=0.0, device="cpu"
    )
    assert logits.shape == (1, 1, *box.shape)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_logits_are_float32_in_any_precision(precision):
    network = torch.nn.Conv2d(1, 3, 3, padding=1)
    for _, logits, _ in iterate_logits(
        network,
        ArrayRegion((8, 8)),
        tile=(8, 8),
        overlap_fraction=0.0,
        device="cpu",
        precision=precision,
    ):
        assert logits.dtype == torch.float32
        assert not logits.requires_grad
