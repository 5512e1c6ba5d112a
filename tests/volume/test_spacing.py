"""Spacing and sizes: exact units, clear refusals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import GeometryError
from lamella.volume.spacing import Size, Spacing, convert_length, parse_unit

units = st.sampled_from(["nm", "um", "mm"])


@given(st.floats(1e-6, 1e6), units, units)
def test_lengths_convert_there_and_back(value, a, b):
    assert convert_length(convert_length(value, a, b), b, a) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    ("text", "values", "unit"),
    [
        ("4", (4.0, 4.0, 4.0), "voxel"),
        ("50,4.6,4.6nm", (50.0, 4.6, 4.6), "nm"),
        ("2, 1 ,1 um", (2.0, 1.0, 1.0), "um"),
        ("23.2A", (2.32, 2.32, 2.32), "nm"),
        ("0.5,0.5µm", (0.5, 0.5), "um"),
        ("1e3,1e3,1e3 nm", (1000.0, 1000.0, 1000.0), "nm"),
    ],
)
def test_spacing_is_read_as_people_write_it(text, values, unit):
    spacing = Spacing.parse(text)
    assert spacing.values == pytest.approx(values)
    assert spacing.unit == unit


@pytest.mark.parametrize("text", ["", "a,b,c", "1,2,3,4", "1;2;3", "0,1,1", "-1", "nan"])
def test_nonsense_is_refused_with_an_example(text):
    with pytest.raises(GeometryError, match=r"spacing"):
        Spacing.parse(text)


def test_voxels_never_become_nanometres_by_themselves():
    with pytest.raises(GeometryError, match="no known spacing"):
        Spacing((1.0, 1.0, 1.0), "voxel").to("nm")


def test_an_unknown_unit_is_refused():
    with pytest.raises(GeometryError, match="furlong"):
        parse_unit("furlong")


@pytest.mark.parametrize(
    ("text", "voxels"), [("200", 200), ("200 voxels", 200), ("500nm3", 2), ("5e-7 um^3", 2)]
)
def test_sizes_become_voxels(text, voxels):
    assert Size.parse(text).to_voxels(Spacing((10.0, 5.0, 5.0), "nm")) == pytest.approx(voxels)


@pytest.mark.parametrize("text", ["-5", "big", "5 stone"])
def test_impossible_sizes_are_refused(text):
    with pytest.raises(GeometryError):
        Size.parse(text)
