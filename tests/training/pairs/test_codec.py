"""Values of label files become what a network learns."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lamella.core.errors import InputError
from lamella.training.configuration import ClassConfig, PairsConfig, TaskConfig
from lamella.training.pairs.codec import LabelCodec, half_of

PLACE = {"": "labels/a.png"}


def _encode(task, array, mask=None, **fields):
    codec = LabelCodec.of(task, PairsConfig(**fields))
    wide = np.asarray(array)
    wide = wide.reshape((1,) * (4 - wide.ndim) + wide.shape)
    halves = {"": codec.threshold} if codec.threshold is not None else {}
    return codec.encode({"": wide}, halves, mask, places=PLACE)


@given(hnp.arrays(np.int32, (3, 4), elements=st.sampled_from([0, 7, 9, 300, -5, 70000])))
def test_classes_by_value(array):
    task = TaskConfig(
        kind="semantic",
        classes=(ClassConfig(name="a", values=(7, 70000)), ClassConfig(name="b", values=(300,))),
        ignore_values=(-5, 9),
    )
    labels, valid = _encode(task, array)
    expected = np.zeros(array.shape)
    expected[np.isin(array, (7, 70000))] = 1
    expected[array == 300] = 2
    assert np.array_equal(labels[0, 0], expected)
    known = ~np.isin(array, (-5, 9))
    assert np.array_equal(known, np.ones_like(known) if valid is None else valid[0, 0])


def test_unknown_values_are_refused_with_the_way_out(task):
    with pytest.raises(InputError, match=r"labels/a.png holds values .*: 5 \(2 voxels\)") as found:
        _encode(task(), [[0, 1, 5, 5]])
    assert "other_values" in found.value.hint
    labels, valid = _encode(task(), [[0, 1, 5]], other_values="background")
    assert labels.ravel().tolist() == [0, 1, 0]
    assert valid is None
    _, valid = _encode(task(), [[0, 1, 5]], other_values="ignore")
    assert valid.ravel().tolist() == [True, True, False]
    with pytest.raises(InputError) as mask:
        _encode(task(), np.array([[0, 255, 254, 3]], np.uint8))
    assert "threshold=127" in mask.value.hint


def test_grey_edges_are_cut_at_half(task):
    labels, _ = _encode(task(), np.array([[0, 127, 128, 255]], np.uint8), threshold=127)
    assert labels.ravel().tolist() == [0, 0, 1, 1]
    for largest, half in ((0, 0.5), (1, 0.5), (3, 127.5), (255, 127.5), (300, 32767.5)):
        assert half_of(largest) == half
    assert half_of(0.8, is_float=True) == 0.5


def test_a_mask_a_class(task):
    config = PairsConfig(labels={"axon": "a", "myelin": "m"})
    arrays = {
        "axon": np.array([0, 255, 255, 0], np.uint8).reshape(1, 1, 1, 4),
        "myelin": np.array([0, 0, 200, 90], np.uint8).reshape(1, 1, 1, 4),
    }
    halves, places = dict.fromkeys(arrays, 127.5), {"axon": "a.png", "myelin": "m.png"}
    semantic = LabelCodec.of(task("semantic", "axon", "myelin"), config)
    labels, valid = semantic.encode(arrays, halves, None, places=places)
    assert labels.ravel().tolist() == [0, 1, 2, 0]
    assert valid is None
    overlapping = LabelCodec.of(task("multilabel", "myelin", "nothing", "axon"), config)
    labels, valid = overlapping.encode(arrays, halves, None, places=places)
    assert labels[:, 0, 0].tolist() == [[0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 1, 0]]
    assert valid[:, 0, 0, 0].tolist() == [True, False, True]


def test_colors(task):
    picture = np.zeros((3, 1, 1, 3), np.uint8)
    picture[:, 0, 0, 1], picture[:, 0, 0, 2] = (255, 0, 0), (0, 0, 255)
    colors = {"axon": (255, 0, 0), "__ignore__": (0, 0, 255)}
    codec = LabelCodec.of(task("semantic", "axon"), PairsConfig(colors=colors))
    labels, valid = codec.encode({"": picture}, {}, None, places=PLACE)
    assert labels.ravel().tolist() == [0, 1, 0]
    assert valid.ravel().tolist() == [True, True, False]
    codec = LabelCodec.of(task("semantic", "axon"), PairsConfig(colors={"axon": (255, 0, 0)}))
    with pytest.raises(InputError, match="#0000ff"):
        codec.encode({"": picture}, {}, None, places=PLACE)


def test_ids_and_masks_of_what_is_known(task):
    known = np.array([[[1, 1, 0]]])
    labels, valid = _encode(task("boundary"), [[3, 70000, 5]], known)
    assert labels.ravel().tolist() == [3, 70000, 0]
    assert valid.ravel().tolist() == [True, True, False]
    with pytest.raises(InputError, match="ids above"):
        _encode(task("boundary"), np.array([[2**63]], np.uint64))
    with pytest.raises(InputError, match="-1"):
        _encode(task("boundary"), [[3, -1]])


def test_what_does_not_go_together(task):
    with pytest.raises(InputError, match="needs the ids of objects"):
        LabelCodec.of(task("flows"), PairsConfig(threshold=1))
    with pytest.raises(InputError, match="one class, the task has 2"):
        LabelCodec.of(task("semantic", "a", "b"), PairsConfig(threshold=1))
    with pytest.raises(InputError, match="'axn'") as typo:
        LabelCodec.of(task("semantic", "axon"), PairsConfig(labels={"axn": "x"}))
    assert "did you mean axon" in typo.value.hint
    both = TaskConfig(
        kind="semantic",
        classes=(ClassConfig(name="a", values=(1,)), ClassConfig(name="b", values=(1,))),
    )
    with pytest.raises(InputError, match="given to two classes"):
        LabelCodec.of(both, PairsConfig())
    with pytest.raises(InputError, match="fractions"):
        _encode(task(), np.array([[0.5, 1.0]]))
    with pytest.raises(InputError, match="coloured picture"):
        _encode(task(), np.arange(12, dtype=np.uint8).reshape(3, 1, 2, 2))
