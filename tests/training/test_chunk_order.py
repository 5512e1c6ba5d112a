"""Chunk-aware order: as random as any, a function of seed and number, and easy on the chunks."""

import collections
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lamella.core.errors import InputError
from lamella.training.augment import Sample
from lamella.training.chunk_order import PatchOrder, draw_point, draw_start
from lamella.training.source import NearbySource
from lamella.volume.box import Box

orders = st.builds(
    PatchOrder,
    seed=st.integers(0, 2**40),
    batch=st.integers(1, 9),
    lanes=st.integers(1, 6),
    group=st.integers(1, 9),
)


class Chunked:
    """A source whose patches are the numbers that were drawn."""

    info = None
    has_chunks = True

    def draw_near(self, place, rng, shape):
        number = np.float32([place.random(), rng.random()])
        return Sample(number, number, number > 0)

    def draw(self, rng, shape):
        return self.draw_near(rng, rng, shape)


class Plain:
    """A source that knows of no groups."""

    info = None

    def draw(self, rng, shape):
        number = np.float32([rng.random()])
        return Sample(number, number, number > 0)


@given(orders, st.integers(0, 10**6))
def test_a_batch_never_holds_two_patches_of_a_group(order, step):
    first = step * order.batch
    groups = [order.group_of(n) for n in range(first, first + order.batch)]
    assert len(set(groups)) == order.batch


@given(orders, st.integers(0, 1000))
def test_neighbouring_steps_share_no_group(order, step):
    width = order.batch * order.lanes
    first = step * order.batch
    groups = [order.group_of(n) for n in range(first, first + width)]
    assert len(set(groups)) == width


@given(orders)
def test_every_group_has_its_number_of_patches(order):
    width = order.batch * order.lanes * order.group
    counts = collections.Counter(order.group_of(n) for n in range(2 * width))
    assert set(counts.values()) == {order.group}
    assert sorted(counts) == list(range(2 * order.batch * order.lanes))


@given(orders, st.integers(0, 10**5), st.integers(0, 3))
def test_groups_stay_in_one_worker(order, group_number, exponent):
    """Batches go to workers in turn; groups are whole where workers divide the lanes."""
    n_workers = 2**exponent
    if order.lanes % n_workers:
        return
    width = order.batch * order.lanes
    turns, lane = divmod(group_number, width)
    members = [(turns * order.group + t) * width + lane for t in range(order.group)]
    assert {order.group_of(n) for n in members} == {group_number}
    assert len({n // order.batch % n_workers for n in members}) == 1


@given(orders, st.integers(0, 10**9), st.integers(0, 10**9))
def test_groups_share_the_place_and_nothing_else(order, one, other):
    (place, own), (place_2, own_2) = order.generators(one), order.generators(other)
    together = order.group_of(one) == order.group_of(other)
    assert (place.random() == place_2.random()) == together
    assert (own.random() == own_2.random()) == (one == other)
    # What the loop promises: the patch's own generator is that of its seed and number.
    again = np.random.default_rng([order.seed, one])
    assert order.generators(one)[1].random() == again.random()


def test_numbers_of_groups_and_patches_seed_differently():
    order = PatchOrder(0, 1, 1, 1)
    drawn = [
        generator.random()
        for n in range(200)
        for generator in (*order.generators(n), order.augmentation(n))
    ]
    assert len(set(drawn)) == len(drawn)


def test_patches_depend_on_seed_and_number_alone():
    """Any number of workers, in any order, resumed anywhere: the same patches."""
    order, source = PatchOrder(3, 2), Chunked()
    whole = [order.draw(source, n, (4,)).image.tolist() for n in range(200)]
    for n_workers, start in itertools.product((1, 2, 3, 5), (0, 64, 77)):
        resumed = {}
        for worker in range(n_workers):
            fresh, again = PatchOrder(3, 2), Chunked()
            for n in range(start + worker, 200, n_workers):
                resumed[n] = fresh.draw(again, n, (4,)).image.tolist()
        assert [resumed[n] for n in range(start, 200)] == whole[start:]


def test_other_sources_are_drawn_from_as_ever():
    order = PatchOrder(5, 2)
    assert not isinstance(Plain(), NearbySource)
    sample = order.draw(Plain(), 17, (4,))
    expected = np.random.default_rng([5, 17])
    assert sample.image[0] == np.float32(expected.random())


def test_a_source_without_chunks_is_drawn_from_as_ever():
    source = Chunked()
    source.has_chunks = False
    sample = PatchOrder(5, 2).draw(source, 17, (4,))
    expected = np.random.default_rng([5, 17]).random(2).astype(np.float32)
    np.testing.assert_array_equal(sample.image, expected)


@pytest.mark.parametrize("settings", [{"batch": 0}, {"lanes": 0}, {"group": 0}, {"seed": -1}])
def test_orders_that_mean_nothing(settings):
    with pytest.raises(InputError):
        PatchOrder(**({"seed": 0, "batch": 2} | settings))


def test_a_number_below_zero_is_refused():
    with pytest.raises(InputError):
        PatchOrder(0, 1).group_of(-1)


# ---- positions

regions = st.tuples(
    st.integers(-300, 300), st.integers(0, 400), st.integers(1, 90), st.integers(1, 70)
)


@given(st.lists(regions, min_size=1, max_size=3), st.integers(0, 2**32))
def test_positions_lie_inside_and_short_regions_are_centred(axes, seed):
    low, extra, length, chunk = (tuple(axis) for axis in zip(*axes, strict=True))
    stop = tuple(a + e for a, e in zip(low, extra, strict=True))
    rng = np.random.default_rng(seed)
    start = draw_start(rng, rng, Box(low, stop), length, chunk)
    for first, a, b, n in zip(start, low, stop, length, strict=True):
        if b - a >= n:
            assert a <= first <= b - n
        else:
            before, after = a - first, first + n - b
            assert before >= 0
            assert after >= 0
            assert abs(before - after) <= 1


@given(regions, st.integers(0, 2**32))
def test_a_group_stays_in_one_block(axis, seed):
    low, extra, length, chunk = axis
    found = [
        draw_start(
            np.random.default_rng(seed),
            np.random.default_rng(n),
            Box((low,), (low + extra,)),
            (length,),
            (chunk,),
        )[0]
        for n in range(20)
    ]
    block = -(-length // chunk) * chunk
    # Blocks at the ends take a rest shorter than half of one.
    assert max(found) - min(found) < 2 * block


@pytest.mark.parametrize(
    ("low", "stop", "length", "chunk"),
    [(0, 40, 8, 4), (3, 41, 8, 4), (5, 31, 6, 8), (0, 9, 8, 4), (-7, 20, 5, 3), (0, 64, 16, 16)],
)
def test_every_position_is_equally_likely(low, stop, length, chunk):
    """Chi-square over all positions, of patches of many groups; and over pairs of axes."""
    order = PatchOrder(seed=1, batch=1, lanes=1, group=2)
    domain = Box((low, 0), (stop, 30))
    n_positions = stop - length - low + 1
    drawn = np.array(
        [
            draw_start(*order.generators(n), domain, (length, 8), (chunk, 4))
            for n in range(0, 400 * n_positions, 2)  # one a group: members are not independent
        ]
    )
    counts = np.bincount(drawn[:, 0] - low, minlength=n_positions)
    assert len(counts) == n_positions
    if n_positions > 1:
        assert stats.chisquare(counts).pvalue > 1e-3
    pairs = np.histogram2d(drawn[:, 0], drawn[:, 1], bins=(min(4, n_positions), 4))[0]
    if n_positions > 3:
        assert stats.chi2_contingency(pairs).pvalue > 1e-3


def test_members_of_a_group_are_each_uniform_too():
    order = PatchOrder(seed=2, batch=1, lanes=1, group=4)
    domain = Box((0,), (30,))
    for member in range(4):
        drawn = [
            draw_start(*order.generators(4 * g + member), domain, (8,), (4,))[0]
            for g in range(6000)
        ]
        assert stats.chisquare(np.bincount(drawn, minlength=23)).pvalue > 1e-3


def test_every_point_is_equally_likely_and_those_of_a_group_are_near():
    rng = np.random.default_rng(0)
    points = np.unique(np.concatenate([rng.integers(0, 9, (20, 2)), [[50, 3], [51, 3]]]), axis=0)
    order = PatchOrder(seed=4, batch=1, lanes=1, group=3)
    index = {tuple(point): i for i, point in enumerate(points.tolist())}
    counts = np.zeros(len(points))
    for group in range(6000):
        drawn = [
            draw_point(*order.generators(3 * group + n), points, (8, 8), (4, 8)) for n in range(3)
        ]
        assert np.ptp(np.array(drawn), axis=0).max() < 8
        counts[index[drawn[group % 3]]] += 1
    assert stats.chisquare(counts).pvalue > 1e-3


def test_a_group_decodes_a_fraction_of_the_chunks():
    """512³ in chunks of 64³, patches of 128³, a cache that holds the groups that are open."""
    domain, shape, chunks = Box((0,) * 3, (512,) * 3), (128,) * 3, (64,) * 3
    order = PatchOrder(0, 2)

    def touched(start):
        return set(itertools.product(*(range(a // 64, -(-(a + 128) // 64)) for a in start)))

    by_group = collections.defaultdict(set)
    alone = 0
    for n in range(1600):
        place, own = order.generators(n)
        by_group[order.group_of(n)] |= touched(draw_start(place, own, domain, shape, chunks))
        alone += len(touched(draw_start(own, own, domain, shape, chunks)))
    together = sum(len(chunks) for chunks in by_group.values())
    assert alone / 1600 > 25
    assert together / 1600 < 8
