"""The algebra of boxes, against sets of points."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import BoxOutOfBoundsError
from lamella.volume.box import Box


@st.composite
def boxes(draw, n=2):
    start = tuple(draw(st.integers(-5, 5)) for _ in range(n))
    return Box(start, tuple(a + draw(st.integers(0, 6)) for a in start))


def points(box):
    spans = (range(a, b) for a, b in zip(box.start, box.stop, strict=True))
    return set(itertools.product(*spans))


@given(boxes(), boxes())
def test_intersection_holds_exactly_the_common_points(a, b):
    assert points(a.intersect(b)) == points(a) & points(b)


@given(boxes(), boxes())
def test_hull_contains_both_and_touches_them(a, b):
    hull = a.hull(b)
    assert points(hull) >= points(a) | points(b)
    assert hull.start == tuple(map(min, a.start, b.start))


@given(boxes(), boxes())
def test_contains_is_inclusion_of_points(a, b):
    assert a.contains(b) == (points(b) <= points(a))


@given(boxes(), st.integers(0, 4))
def test_growing_is_undone_by_shrinking(box, margin):
    assert box.grow(margin).grow(-margin) == box


@given(boxes(), boxes())
def test_relative_to_and_shift_are_inverse(a, b):
    assert a.relative_to(b).shift(b.start) == a


def test_slices_of_a_negative_start_are_refused_instead_of_wrapping():
    with pytest.raises(BoxOutOfBoundsError, match="starts before the array"):
        Box((-1, 0), (2, 2)).slices()


def test_a_box_turned_inside_out_is_refused():
    with pytest.raises(BoxOutOfBoundsError, match="beyond its stop"):
        Box((3,), (2,))


@given(boxes())
def test_size_counts_the_points(box):
    assert box.size == len(points(box))
    assert box.is_empty == (box.size == 0)


def test_slices_cut_what_the_box_says():
    array = np.arange(20).reshape(4, 5)
    assert array[Box((1, 2), (3, 5)).slices()].tolist() == [[7, 8, 9], [12, 13, 14]]
