"""Streamed statistics equal numpy's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.testing.strategies import volumes
from lamella.volume import Volume
from lamella.volume.statistics import PERCENTS, intensity_statistics

DTYPES = ("uint8", "int16", "uint64", "float32", "float64", "bool")


@given(volume=volumes(dtypes=DTYPES, axes=("yx", "zyx", "tczyx")))
def test_equals_numpy(volume: Volume) -> None:
    values = volume.load()
    result = intensity_statistics(volume)
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values.ravel()
    assert result.n_voxels == values.size
    assert result.n_nan + result.n_infinite == values.size - finite.size
    assert result.is_complete
    assert result.n_nonzero == np.count_nonzero(finite)
    if finite.size:
        assert result.minimum == finite.min().item()
        assert result.maximum == finite.max().item()
        scale = max(1.0, float(np.abs(finite.astype(np.float64)).max()))
        if scale < 1e100:
            mean = np.mean(finite.astype(np.float64) / scale)
            assert result.mean / scale == pytest.approx(mean, abs=1e-9)
    else:
        assert np.isnan(result.mean)
        assert np.isnan(result.maximum)


@given(shift=st.sampled_from([0.0, 1e6, -1e9]), seed=st.integers(0, 99))
def test_std_does_not_cancel(shift: float, seed: int) -> None:
    """A small spread on a large offset, in many slabs: naive sums of squares would lose it."""
    data = np.random.default_rng(seed).normal(size=(40, 16, 16)) + shift
    result = intensity_statistics(Volume.from_array(data))
    assert result.std == pytest.approx(float(data.std()), rel=1e-6)
    expected = np.percentile(data, PERCENTS)
    assert result.percentiles == pytest.approx(tuple(expected), rel=1e-9)


def test_slabs_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(0).normal(50, 9, size=(2, 33, 20, 20)).astype(np.float32)
    volume = Volume.from_array(data, axes="czyx")
    whole = intensity_statistics(volume)
    monkeypatch.setattr("lamella.volume.statistics._SLAB_BYTES", 5000)
    cut = intensity_statistics(volume)
    assert (cut.minimum, cut.maximum) == (whole.minimum, whole.maximum)
    assert cut.mean == pytest.approx(whole.mean, rel=1e-9)
    assert cut.std == pytest.approx(whole.std, rel=1e-6)


def test_large_volumes_say_what_was_looked_at() -> None:
    data = np.arange(64 * 32 * 32, dtype=np.float32).reshape(64, 32, 32)
    volume = Volume.from_array(data)
    result = intensity_statistics(volume, max_bytes=32 * 32 * 4 * 8)
    assert not result.is_complete
    assert result.source == "8 of 64 planes along z"
    assert (result.minimum, result.maximum) == (0, data.max())
    coarse = Volume.from_array(data[::2, ::2, ::2].copy(), spacing=(2, 2, 2), unit="nm")
    leveled = Volume.from_array(data, levels=(coarse,))
    result = intensity_statistics(leveled, max_bytes=coarse.nbytes)
    assert result.source == "level 1 of the pyramid"
    assert result.n_voxels == coarse.load().size
