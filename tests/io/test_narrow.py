"""A value changes its type only if it stays the same value."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import InputError, NarrowingError
from lamella.io.narrow import checked, parse_dtype
from lamella.testing.strategies import filled_array

TYPES = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
FLOATS = ["float16", "float32", "float64"]


@given(
    came=st.sampled_from(TYPES + FLOATS),
    wanted=st.sampled_from(TYPES),
    fill=st.sampled_from(["noise", "zeros", "extremes", "ramp"]),
    seed=st.integers(0, 1000),
)
def test_to_integers_nothing_changes_or_it_is_refused(came, wanted, fill, seed):
    array = filled_array((5, 7), came, fill=fill, seed=seed)
    exact = [int(v) if np.isfinite(v) and v == int(v) else None for v in array.ravel().tolist()]
    info = (0, 1) if wanted == "bool" else (np.iinfo(wanted).min, np.iinfo(wanted).max)
    fits = all(v is not None and info[0] <= v <= info[1] for v in exact)
    if fits:
        result = checked(array, wanted)
        assert result.dtype == wanted
        assert [int(v) for v in result.ravel().tolist()] == exact
    else:
        with pytest.raises(NarrowingError) as caught:
            checked(array, wanted)
        assert caught.value.hint


@given(came=st.sampled_from(["int64", "uint64", "int32"]), seed=st.integers(0, 1000))
def test_integers_become_floats_only_exactly(came, seed):
    array = filled_array((20,), came, fill="noise", seed=seed)
    try:
        result = checked(array, "float32")
    except NarrowingError:
        return
    assert [int(v) for v in result] == [int(v) for v in array]


def test_nan_is_no_integer():
    with pytest.raises(NarrowingError, match="nan does not fit into uint16") as caught:
        checked(np.array([1.0, np.nan]), "uint16")
    assert "NaN" in caught.value.hint


def test_bounds_of_64_bits_are_exact():
    assert checked(np.array([2.0**63]), "uint64").tolist() == [2**63]
    with pytest.raises(NarrowingError):
        checked(np.array([2.0**63]), "int64")
    with pytest.raises(NarrowingError):
        checked(np.array([2.0**64]), "uint64")


def test_floats_round_but_do_not_overflow():
    assert checked(np.array([1.1]), "float32").tolist() == [pytest.approx(1.1)]
    with pytest.raises(NarrowingError):
        checked(np.array([1e300]), "float32")
    assert np.isinf(checked(np.array([np.inf]), "float32"))[0]


def test_imaginary_parts_are_not_dropped():
    assert checked(np.array([1 + 0j]), "float64").tolist() == [1.0]
    with pytest.raises(NarrowingError):
        checked(np.array([1 + 2j]), "float32")


def test_wrong_ids_are_named():
    with pytest.raises(NarrowingError, match=r"70000 does not fit into uint16 \(0 to 65535\)"):
        checked(np.array([5, 70_000], np.uint32), "uint16")


@pytest.mark.parametrize(
    "text", ["object", "S3", "complex256", "float128", "datetime64", "nonsense"]
)
def test_no_voxel_types(text):
    with pytest.raises(InputError, match="no voxel type"):
        parse_dtype(text)
