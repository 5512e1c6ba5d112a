"""The class algebra against the worlds it speaks of: one atom a voxel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import InputError
from lamella.training.cellmap.classes import ClassTable

TABLE = ClassTable.read()
ATOMS = sorted(entry.id for entry in TABLE.values() if not entry.is_group)
names = st.sampled_from(sorted(TABLE))


def presence(name, world):
    return np.isin(world, list(TABLE[name].atoms))


def test_the_table_is_the_challenges():
    assert len(TABLE) == 74
    assert len(TABLE.tested) == 48
    tested = [TABLE[name] for name in TABLE.tested]
    assert sum(entry.is_instance for entry in tested) == 10
    assert [e.name for e in TABLE.values() if e.is_instance and not e.is_tested] == ["vim"]
    pairs = [(a, b) for a in TABLE.tested for b in TABLE.tested if a < b and TABLE.overlap(a, b)]
    # No single label volume can hold these: sigmoid channels, or atoms from which groups follow.
    assert ("er", "nuc") in pairs
    assert len(pairs) > 100


def test_groups_are_made_of_atoms():
    for entry in TABLE.values():
        for atom in entry.atoms:
            assert not TABLE[TABLE.name(atom)].is_group


@given(st.lists(names, max_size=6, unique=True), names, st.integers(0, 10**6))
def test_what_is_inferred_is_true(annotated, asked, seed):
    world = np.random.default_rng(seed).choice(ATOMS, 400)
    arrays = {name: presence(name, world) for name in annotated}
    known = TABLE.infer(asked, arrays)
    if known is None:
        return
    truth = presence(asked, world)
    np.testing.assert_array_equal(known.is_present[known.is_known], truth[known.is_known])
    assert not known.is_present[~known.is_known].any()


groups = st.sampled_from(["er", "nuc", "ne", "np", "cell", "chrom", "er_mem_all", "ne_mem_all"])


@given(
    st.lists(names | groups, min_size=1, max_size=4, unique=True),
    names | groups,
    st.integers(0, 10**6),
)
def test_everything_that_follows_is_inferred(annotated, asked, seed):
    world = np.random.default_rng(seed).choice(ATOMS, 60)
    arrays = {name: presence(name, world) for name in annotated}
    known = TABLE.infer(asked, arrays)
    is_known = np.zeros(60, bool) if known is None else known.is_known
    for i in range(60):
        # Worlds that look the same in this voxel to whoever annotated it.
        possible = [
            atom for atom in ATOMS
            if all((atom in TABLE[name].atoms) == arrays[name][i] for name in annotated)
        ]  # fmt: skip
        answers = {atom in TABLE[asked].atoms for atom in possible}
        assert is_known[i] == (len(answers) == 1)


def test_unannotated_is_unknown_not_absent():
    assert TABLE.infer("mito", {}) is None
    assert TABLE.infer("mito", {"something_else": np.zeros(3, bool)}) is None
    known = TABLE.infer("er", {"mito": np.array([True, False])})
    assert known.is_known.tolist() == [True, False]


def test_two_groups_tell_what_they_share():
    both = {"er": np.array([True, True]), "nuc": np.array([True, False])}
    known = TABLE.infer("ne", both)
    assert (known.is_present.tolist(), known.is_known.tolist()) == ([True, False], [True, True])


def test_contradictions_do_not_invent_absence():
    both = {"mito_mem": np.array([True]), "cyto": np.array([True])}
    known = TABLE.infer("mito", both)
    assert known.is_present.tolist() == known.is_known.tolist() == [True]


def test_a_typing_error_names_its_neighbours():
    with pytest.raises(InputError, match="'mitos'") as caught:
        TABLE["mitos"]
    assert "mito" in caught.value.hint
