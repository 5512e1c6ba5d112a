"""Borders that were drawn unlike others are neither learnt nor judged by."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError

from lamella.core.errors import InputError
from lamella.training.configuration import PairsConfig, SplitConfig, UnsureConfig
from lamella.training.pairs.cache import ArrayCache
from lamella.training.pairs.codec import LabelCodec
from lamella.training.pairs.pairing import find_pairs
from lamella.training.pairs.source import PairsSource
from lamella.training.pairs.store import PairStore
from lamella.training.pairs.unsure import UnsureBorder
from lamella.volume.box import Box
from lamella.wire.card import NormalisationDoc

NONE = NormalisationDoc(kind="none")


@given(
    hnp.arrays(np.uint8, (1, 1, 9, 11), elements=st.integers(0, 2)),
    hnp.arrays(bool, (1, 1, 9, 11)),
    st.floats(0.5, 4.0),
)
def test_voxels_near_the_other_class_are_unknown_and_no_others(labels, valid, width):
    known = UnsureBorder((1, 2), width).known(labels, valid)
    places = {n: np.argwhere((labels[0, 0] == n) & valid[0, 0]) for n in (1, 2)}
    expected = valid[0, 0].copy()
    for here, there in ((1, 2), (2, 1)):
        for y, x in places[here]:
            distances = np.hypot(*(places[there] - (y, x)).T)
            expected[y, x] &= not (distances <= width).any()
    assert np.array_equal(known[0, 0], expected)


@pytest.mark.parametrize("values", [[0, 0, 1], [2, 0, 2]])
def test_where_the_two_do_not_meet_all_is_known(values):
    labels = np.array(values, np.uint8).reshape(1, 1, 1, 3)
    assert UnsureBorder((1, 2), 5.0).known(labels, None) is None


@pytest.fixture
def two_class_set(tmp_path, write):
    """Axons (1) of 8 pixels in sheaths (2) of 4 pixels, on background."""
    y, x = np.mgrid[:48, :64]
    radius = np.hypot(y % 32 - 16, x % 32 - 16)
    labels = np.select([radius < 8, radius < 12], [1, 2], 0).astype(np.uint8)
    for number in range(2):
        write(tmp_path / f"images/{number}.png", (labels * 90).astype(np.uint8))
        write(tmp_path / f"labels/{number}.png", labels)
    split = SplitConfig(validation=("0*",))
    return PairsConfig(root=str(tmp_path), split=split), labels


def test_a_box_knows_what_the_whole_image_knows(two_class_set, task):
    """Large images are read box by box: what lies outside of it decides too."""
    config, _ = two_class_set
    config = config.model_copy(update={"unsure": UnsureConfig(between=("axon", "myelin"), width=3)})
    codec = LabelCodec.of(task("semantic", "axon", "myelin"), config)
    pairs, _ = find_pairs(config)

    def store(n_bytes):
        return PairStore(Path(config.root), pairs, codec, NONE, cache=ArrayCache(n_bytes))

    kept, unkept = store(1 << 20), store(64)
    _, whole = kept.labels(0, Box((0, 0, 0), (1, 48, 64)))
    for start in ((0, 0, 0), (0, 10, 13), (0, 20, 31)):
        box = Box(start, (1, start[1] + 17, start[2] + 20))
        labels, valid = unkept.labels(0, box)
        expected = whole[(slice(None), *box.slices())]
        assert np.array_equal(np.ones_like(expected) if valid is None else valid, expected)
        assert np.array_equal(labels, kept.labels(0, box)[0])


def test_patches_and_regions_leave_the_border_out(two_class_set, task):
    config, labels = two_class_set
    unsure = config.model_copy(update={"unsure": UnsureConfig(between=("axon", "myelin"))})
    kind = task("semantic", "axon", "myelin")
    with_all, without = (PairsSource(c, kind, NONE, axes="yx") for c in (config, unsure))
    judged = without.regions("validation")[0].read(Box((0, 0), labels.shape))
    radius = np.hypot(*(np.mgrid[:48, :64] % 32 - 16))
    assert not judged.valid[0][(radius > 7) & (radius < 8.5)].any()
    assert judged.valid[0][radius < 5].all()
    assert judged.valid[0][radius >= 12].all()
    assert with_all.regions("validation")[0].read(Box((0, 0), labels.shape)).valid.all()
    drawn = without.draw(np.random.default_rng(0), (32, 32))
    assert not drawn.valid.all()


@pytest.mark.parametrize(
    ("between", "kind", "says"),
    [
        (("axon", "myelim"), "semantic", "names 'myelim', which is no class"),
        (("axon", "axon"), "semantic", "twice"),
        (("axon", "myelin"), "multilabel", "the task multilabel has none"),
        (("axon", "myelin"), "boundary", "the task boundary has none"),
    ],
)
def test_what_makes_no_sense_is_refused(task, between, kind, says):
    config = PairsConfig(unsure=UnsureConfig(between=between))
    with pytest.raises(InputError, match=says) as found:
        LabelCodec.of(task(kind, "axon", "myelin"), config)
    assert found.value.hint


def test_a_width_is_positive():
    with pytest.raises(ValidationError):
        UnsureConfig(between=("a", "b"), width=0)
