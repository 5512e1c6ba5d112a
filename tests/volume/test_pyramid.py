"""Pyramid levels: towards isotropy, means that keep the mean, labels that are chosen."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lamella.volume.pyramid import downsample_labels, downsample_mean, pyramid_factors

arrays = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=9))
factor = st.tuples(*[st.integers(1, 4)] * 3)


@given(arrays, factor)
def test_labels_are_only_values_that_were_there(array, factors):
    coarse = downsample_labels(array, factors)
    assert coarse.shape == tuple(-(-n // f) for n, f in zip(array.shape, factors, strict=True))
    assert set(np.unique(coarse)) <= set(np.unique(array))


@given(arrays, factor)
def test_mean_equals_the_slow_mean(array, factors):
    coarse = downsample_mean(array.astype(np.float64), factors)
    for index in np.ndindex(*coarse.shape):
        block = array[tuple(slice(i * f, i * f + f) for i, f in zip(index, factors, strict=True))]
        assert np.isclose(coarse[index], block.mean())


@given(
    st.tuples(*[st.integers(1, 3000)] * 3),
    st.tuples(*[st.floats(0.1, 100)] * 3),
)
def test_levels_shrink_until_small_and_never_get_less_isotropic(shape, spacing):
    previous = max(spacing) / min(spacing)
    for factors in pyramid_factors(shape, spacing):
        scaled = [s * f for s, f, n in zip(spacing, factors, shape, strict=True) if -(-n // f) > 1]
        if len(scaled) == 3:
            assert max(scaled) / min(scaled) <= max(previous, 2.0) + 1e-9
            previous = max(scaled) / min(scaled)
    last = (pyramid_factors(shape, spacing) or ((1, 1, 1),))[-1]
    assert max(-(-n // f) for n, f in zip(shape, last, strict=True)) <= 64
