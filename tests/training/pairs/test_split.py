"""Specimens stand on one side, unless a person says else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import InputError
from lamella.training.configuration import SplitConfig
from lamella.training.pairs.opening import duplicates
from lamella.training.pairs.pairing import Pair, specimens_of
from lamella.training.pairs.split import assign_splits, groups_of, leakage


def _pairs(*specimens: str) -> list[Pair]:
    counts: dict[str, int] = {}
    pairs = []
    for name in specimens:
        counts[name] = counts.get(name, 0) + 1
        pairs.append(Pair(f"{name}/{counts[name]:02d}.tif", (("", "l"),), specimen=name))
    return pairs


@given(
    st.lists(st.sampled_from("abcdefgh"), min_size=4, max_size=40).filter(
        lambda names: len(set(names)) >= 4
    ),
    st.floats(0.01, 0.4),
    st.floats(0.01, 0.4),
    st.integers(0, 1000),
)
def test_no_specimen_on_both_sides(names, validation, test, seed):
    config = SplitConfig(validation_fraction=validation, test_fraction=test, seed=seed)
    done = assign_splits(_pairs(*names), config)
    groups = groups_of(done)
    assert all(groups.values())
    assert sum(map(len, groups.values())) == len(set(names))
    assert not leakage(done, config)
    assert done == assign_splits(_pairs(*names), config)


def test_patterns_name_specimens_and_files():
    pairs = _pairs("rat1", "rat1", "rat2", "rat3")
    done = assign_splits(pairs, SplitConfig(test=("rat3",), validation=("rat2",)))
    assert [p.split for p in done] == ["train", "train", "validation", "test"]
    only = assign_splits(pairs, SplitConfig(train=("rat1",), validation=("rat2",)))
    assert [p.split for p in only] == ["train", "train", "validation", ""]
    with pytest.raises(InputError, match="two sides"):
        assign_splits(pairs, SplitConfig(test=("rat1/01.tif",)))
    config = SplitConfig(by="file", test=("rat1/01.tif",), validation=("02.tif",))
    by_file = assign_splits(pairs, config)
    assert [p.split for p in by_file] == ["test", "validation", "train", "train"]
    assert [f.code for f in leakage(by_file, config)] == ["leakage_specimen"]


def test_impossible_splits_say_the_way_out():
    with pytest.raises(InputError, match="only 1 specimen") as one:
        assign_splits(_pairs("a", "a", "a"), SplitConfig())
    assert "by=part" in one.value.hint
    with pytest.raises(InputError, match="nothing fits 'rta1'") as typo:
        assign_splits(_pairs("rat1", "rat2"), SplitConfig(test=("rta1",)))
    assert "did you mean rat1?" in typo.value.hint
    with pytest.raises(InputError, match="named for validation and for test"):
        assign_splits(_pairs("a", "b"), SplitConfig(test=("a",), validation=("a",)))
    with pytest.raises(InputError, match="left to train on"):
        assign_splits(_pairs("a", "b"), SplitConfig(test=("*",), validation_fraction=0))
    with pytest.raises(InputError, match="takes no patterns"):
        assign_splits(_pairs("a", "b"), SplitConfig(by="part", test=("a",)))


def test_numbered_slices_are_suspected():
    slices = [Pair(f"raw/{n:02d}.tif", (("", "l"),), specimen=f"raw/{n:02d}") for n in range(8)]
    config = SplitConfig()
    assert [f.code for f in leakage(assign_splits(slices, config), config)] == ["leakage_slices"]
    for name, suspected in (("z_{:02d}", True), ("fly/img{}", True), ("case{}", False)):
        named = [Pair(name.format(n), (("", "l"),), specimen=name.format(n)) for n in range(8)]
        assert bool(leakage(assign_splits(named, config), config)) is suspected
    gaps = [pair for i, pair in enumerate(slices) if i != 3]
    assert not leakage(assign_splits(gaps, config), config)


def test_copies_on_both_sides_are_leakage():
    pairs = assign_splits(_pairs("a", "b", "c"), SplitConfig(validation=("b",)))
    hashes = {"a/01.tif": "x", "b/01.tif": "x", "c/01.tif": "y"}
    assert [f.code for f in duplicates(pairs, hashes)] == ["leakage_duplicate"]
    same_side = {"a/01.tif": "x", "b/01.tif": "y", "c/01.tif": "x"}
    assert [f.code for f in duplicates(pairs, same_side)] == ["duplicate_image"]


def test_specimens():
    assert specimens_of(["a/1.png", "a/2.png"], "") == ["a/1", "a/2"]
    assert specimens_of(["x/s1/m/1.png", "x/s2/m/1.png"], "") == ["s1", "s2"]
    assert specimens_of(["s1/1.png", "s1/deep/1.png", "s2/1.png"], "") == ["s1", "s1/deep", "s2"]
    assert specimens_of(["raw/f1_z.png"], "f[0-9]") == ["f1"]
    with pytest.raises(InputError, match="finds nothing in b"):
        specimens_of(["a1", "b"], "a[0-9]")
    with pytest.raises(InputError, match="no regular expression"):
        specimens_of(["a1"], "(a")
