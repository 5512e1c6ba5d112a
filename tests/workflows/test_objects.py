"""Objects of a run, against the plain in-memory functions: whatever is asked, they agree."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from lamella.core.progress import SilentSink
from lamella.instances import fill_holes, keep_largest, label_components
from lamella.io.format import save_volume
from lamella.volume import LabelClass, Labels
from lamella.wire.request import InputDoc, SegmentRequest, SizeDoc
from lamella.workflows.objects import make_objects, restore_engine_labels
from lamella.workflows.run_folder import RunFolder

CLASSES = (LabelClass(1, "a"), LabelClass(2, "b"))


def blobs(seed, shape=(9, 14, 15)):
    """Random classes in lumps, uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice([0, 0, 0, 1, 2], size=[-(-n // 3) for n in shape]).astype(np.uint8)
    fine = np.kron(coarse, np.ones((3, 3, 3), np.uint8))[tuple(slice(n) for n in shape)]
    fine[rng.random(fine.shape) < 0.05] = 0
    return np.ascontiguousarray(fine)


def made(folder, data, **fields):
    """Run the step on labels that an engine is supposed to have left."""
    is_instance = fields.pop("is_instance", False)
    found = Labels.from_array(
        data, spacing=(2.0, 1.0, 1.0), unit="nm", classes=CLASSES, is_instance=is_instance
    )
    run = RunFolder(folder)
    if not run.labels.exists():
        save_volume(found, run.labels)
    from lamella.io.format import open_labels

    request = SegmentRequest(input=InputDoc(path="x"), model="m", **fields)
    return run, make_objects(run, request, open_labels(run.labels), SilentSink())


@given(
    seed=st.integers(0, 10_000),
    instances=st.sampled_from(["auto", "components"]),
    min_size=st.sampled_from([None, 1, 20, 60, 10_000]),
    largest=st.booleans(),
    holes=st.booleans(),
)
def test_whatever_is_asked_it_is_what_the_plain_functions_give(
    tmp_path_factory, seed, instances, min_size, largest, holes
):
    data = blobs(seed)
    run, objects = made(
        tmp_path_factory.mktemp("run"),
        data,
        instances=instances,
        min_size=None if min_size is None else SizeDoc(value=min_size),
        keep_largest=largest,
        fill_holes=holes,
    )
    expected = fill_holes(data) if holes else data
    if min_size is not None:
        pieces = label_components(expected)
        sizes = np.bincount(pieces.labels.ravel())
        expected = np.where(sizes[pieces.labels] >= min_size, expected, 0).astype(data.dtype)
    if largest:
        expected = keep_largest(expected)
    components = label_components(expected)
    assert_array_equal(objects.ids.load() > 0, expected > 0)
    assert_array_equal(objects.ids.load(), components.labels)
    assert_array_equal(objects.class_of, components.classes)
    final = objects.labels.load()
    assert_array_equal(final, components.labels if instances == "components" else expected)
    assert objects.n_objects == components.count
    assert objects.n_foreground == (final > 0).sum()
    assert objects.max_id == final.max()
    restore_engine_labels(run)
    from lamella.io.format import open_labels

    assert_array_equal(open_labels(run.labels).load(), data)


def test_instances_of_an_engine_keep_their_ids_unless_some_go(tmp_path):
    data = np.zeros((4, 6, 8), np.uint32)
    data[0, 0, :5], data[2, 2, :3], data[3, 5, 0] = 7, 90_000, 12
    _, kept = made(tmp_path / "a", data, is_instance=True)
    assert sorted(np.unique(kept.labels.load())) == [0, 7, 12, 90_000]
    assert (kept.n_objects, kept.max_id, kept.n_foreground) == (3, 90_000, 9)
    _, fewer = made(tmp_path / "b", data, is_instance=True, min_size=SizeDoc(value=2))
    assert_array_equal(np.unique(fewer.labels.load(), return_counts=True)[1], [184, 5, 3])
    assert fewer.max_id == 2


def test_without_objects_classes_are_counted(tmp_path):
    _, objects = made(tmp_path, blobs(1), instances="none")
    assert objects.ids is None
    assert (objects.n_objects, objects.max_id) == (2, 2)


@pytest.mark.parametrize("instances", ["auto", "components", "watershed"])
def test_stopping_at_any_step_leaves_the_engines_labels(tmp_path, instances):
    class Stop(SilentSink):
        def __init__(self, after):
            super().__init__()
            self.left = after

        def check(self):
            self.left -= 1
            if self.left < 0:
                self.token.cancel()
            super().check()

    from lamella.core.errors import RunCancelledError
    from lamella.io.format import open_labels

    data = blobs(3)
    run, whole = made(tmp_path / "whole", data, instances=instances, min_size=SizeDoc(value=20))
    expected = whole.labels.load()
    run = RunFolder(tmp_path / "cut")
    found = Labels.from_array(data, spacing=(2.0, 1.0, 1.0), unit="nm", classes=CLASSES)
    save_volume(found, run.labels)
    request = SegmentRequest(
        input=InputDoc(path="x"), model="m", instances=instances, min_size=SizeDoc(value=20)
    )
    for after in range(50):
        restore_engine_labels(run)
        labels = open_labels(run.labels)
        assert_array_equal(labels.load(), data)
        try:
            result = make_objects(run, request, labels, Stop(after))
        except RunCancelledError:
            continue
        assert_array_equal(result.labels.load(), expected)
        return
    pytest.fail("never came to an end")
