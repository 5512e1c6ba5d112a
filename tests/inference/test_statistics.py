"""Streamed statistics equal numpy's over the whole array."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import InputError, ModelError
from lamella.inference import statistics
from lamella.inference.normalise import NormalisedSlabs, Normaliser
from lamella.inference.slab import VolumeSlabs
from lamella.inference.statistics import measure
from lamella.volume import Box, Volume
from lamella.wire.card import NormalisationDoc


def slabs(data):
    return VolumeSlabs(Volume.from_array(data, axes="czyx"[-data.ndim :]))


def whole(source):
    return Box((0, 0, 0), source.shape)


@pytest.fixture(params=[64, 1 << 22])
def slab_voxels(request, monkeypatch):
    monkeypatch.setattr(statistics, "SLAB_VOXELS", request.param)


@given(
    st.integers(0, 999),
    st.tuples(*[st.integers(1, 9)] * 4),
    st.sampled_from(["uint8", "int16", "float32", "float64"]),
    st.sampled_from([1.0, 1e-3, 1e6]),
)
def test_statistics_equal_numpy(slab_voxels, seed, shape, dtype, size):
    rng = np.random.default_rng(seed)
    data = (rng.normal(0, 40 * (size if dtype[0] == "f" else 1), shape) + 3).astype(dtype)
    doc = NormalisationDoc(kind="percentile", low=2.5, high=97)
    found = measure(slabs(data), doc).statistics
    flat = data.astype(np.float32).reshape(shape[0], -1).astype(np.float64)
    scale = np.abs(flat).max() + 1e-30
    np.testing.assert_allclose(found.mean[:, 0], flat.mean(axis=1), atol=1e-6 * scale)
    np.testing.assert_allclose(found.std[:, 0], flat.std(axis=1), atol=1e-5 * scale)
    low, high = np.quantile(flat, (0.025, 0.97), axis=1)
    np.testing.assert_allclose(found.low[:, 0], low, rtol=1e-6, atol=1e-12 * scale)
    np.testing.assert_allclose(found.high[:, 0], high, rtol=1e-6, atol=1e-12 * scale)


def test_statistics_of_every_slice():
    data = np.random.default_rng(0).normal(5, 2, (2, 7, 6, 5)).astype(np.float32)
    doc = NormalisationDoc(kind="percentile", scope="slice", low=10, high=90)
    found = measure(slabs(data), doc).statistics
    np.testing.assert_allclose(found.mean, data.mean(axis=(2, 3)), rtol=1e-5)
    np.testing.assert_allclose(found.std, data.std(axis=(2, 3)), rtol=1e-5)
    flat = data.reshape(2, 7, -1)
    np.testing.assert_allclose(found.low, np.quantile(flat, 0.1, axis=2), rtol=1e-6)
    np.testing.assert_allclose(found.high, np.quantile(flat, 0.9, axis=2), rtol=1e-6)


@pytest.mark.parametrize(
    ("doc", "expected"),
    [
        (NormalisationDoc(kind="zscore"), lambda v: (v - v.mean()) / v.std()),
        (
            NormalisationDoc(kind="zscore", scope="slice"),
            lambda v: (v - v.mean((1, 2), keepdims=True)) / v.std((1, 2), keepdims=True),
        ),
        (
            NormalisationDoc(kind="percentile", low=1, high=99, clip=True),
            lambda v: np.clip(
                (v - np.quantile(v, 0.01)) / (np.quantile(v, 0.99) - np.quantile(v, 0.01)), 0, 1
            ),
        ),
        (
            NormalisationDoc(kind="fixed", low=-3, high=4, mean=1, std=2),
            lambda v: (np.clip(v, -3, 4) - 1) / 2,
        ),
        (NormalisationDoc(kind="none"), lambda v: v),
    ],
)
def test_every_normalisation_of_a_card(doc, expected):
    data = np.random.default_rng(1).normal(2, 5, (6, 9, 8))
    source = slabs(data.astype(np.float32))
    normaliser = Normaliser.resolve(doc, measure(source, doc).statistics)
    normalised = NormalisedSlabs(source, normaliser)
    np.testing.assert_allclose(normalised.read(whole(source))[0], expected(data), atol=2e-4)
    part = Box((2, 1, 3), (5, 7, 8))
    np.testing.assert_array_equal(
        normalised.read(part), normalised.read(whole(source))[(slice(None), *part.slices())]
    )


def test_values_that_are_not_finite_count_nowhere():
    data = np.random.default_rng(0).normal(0, 1, (4, 5, 6)).astype(np.float32)
    good = data.copy()
    data[1, 2, 3], data[0, 0, 0], data[3, 4, 5] = np.nan, np.inf, -np.inf
    mask = np.isfinite(data)
    doc = NormalisationDoc(kind="percentile", low=0, high=100)
    finding = measure(slabs(data), doc)
    assert finding.n_not_finite == 3
    assert finding.minimum == good[mask].min() == finding.statistics.low
    assert finding.maximum == good[mask].max() == finding.statistics.high
    np.testing.assert_allclose(finding.statistics.mean.item(), good[mask].mean(), atol=1e-6)
    normaliser = Normaliser.resolve(NormalisationDoc(), finding.statistics, fill=finding.fill)
    result = NormalisedSlabs(slabs(data), normaliser).read(Box((0, 0, 0), (4, 5, 6)))
    assert abs(result[0, 1, 2, 3]) < 1e-6


def test_nothing_finite_and_nothing_but_one_value():
    with pytest.raises(InputError, match="no voxel"):
        measure(slabs(np.full((2, 2, 2), np.nan)), NormalisationDoc())
    constant = measure(slabs(np.full((2, 2, 2), 1000.1, np.float32)), NormalisationDoc())
    assert constant.is_constant
    assert constant.statistics.std.item() < 1e-3


def test_layers_without_contrast_become_zero():
    data = np.zeros((2, 4, 4), np.float32)
    data[1] = np.arange(16).reshape(4, 4)
    doc = NormalisationDoc(kind="zscore", scope="slice")
    source = slabs(data)
    normaliser = Normaliser.resolve(doc, measure(source, doc).statistics)
    assert (NormalisedSlabs(source, normaliser).read(whole(source))[0, 0] == 0).all()


@pytest.mark.parametrize("limits", [(50, 50), (-1, 99), (1, 101), (90, 10)])
def test_impossible_percentiles_are_the_models_fault(limits):
    doc = NormalisationDoc(kind="percentile", low=limits[0], high=limits[1])
    with pytest.raises(ModelError, match="percentiles"):
        measure(slabs(np.arange(8.0).reshape(2, 2, 2)), doc)


def test_the_checksum_sees_every_voxel_and_reports_come():
    data = np.random.default_rng(0).normal(size=(5, 4, 4)).astype(np.float32)
    other = data.copy()
    other[4, 3, 3] += 1
    digests, reports = [], []
    for image in (data, data.astype(np.float64), other):
        digest = hashlib.sha256()
        measure(
            slabs(image),
            NormalisationDoc(),
            report=lambda done, total: reports.append((done, total)),
            digest=digest,
        )
        digests.append(digest.hexdigest())
    assert digests[0] == digests[1] != digests[2]
    assert reports[-1] == (5, 5)
