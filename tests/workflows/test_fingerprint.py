"""Fingerprints depend on the bytes, and on nothing else."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lamella.core.errors import MissingPathError, RunCancelledError
from lamella.core.progress import CancelToken, SilentSink
from lamella.workflows.fingerprint import path_fingerprint, voxel_sha256


@given(hnp.arrays(np.uint16, hnp.array_shapes(min_dims=2, max_dims=3, max_side=6)))
def test_voxels_count_however_they_are_stored(array):
    expected = hashlib.sha256(array.astype("<u2").tobytes()).hexdigest()
    assert voxel_sha256(array) == expected
    assert voxel_sha256(np.asfortranarray(array)) == expected
    assert voxel_sha256(array.astype(">u2")) == expected


@given(st.integers(0, 23), st.integers(1, 255))
def test_one_changed_voxel_changes_it(at, by):
    array = np.zeros((2, 3, 4), np.uint8)
    changed = array.copy()
    changed.flat[at] = by
    assert voxel_sha256(array) != voxel_sha256(changed)


def test_a_file_has_the_hash_of_its_bytes(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"lamella")
    found = path_fingerprint(path)
    assert (found.sha256, found.n_bytes) == (hashlib.sha256(b"lamella").hexdigest(), 7)


def test_a_folder_keeps_its_fingerprint_when_moved_and_loses_it_when_renamed_inside(tmp_path):
    folder = tmp_path / "a"
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "1.png").write_bytes(b"1")
    (folder / "2.png").write_bytes(b"2")
    (folder / ".DS_Store").write_bytes(b"rubbish")
    before = path_fingerprint(folder)
    (folder / ".DS_Store").unlink()
    assert path_fingerprint(folder.rename(tmp_path / "b")) == before
    (tmp_path / "b" / "2.png").rename(tmp_path / "b" / "3.png")
    assert path_fingerprint(tmp_path / "b") != before


def test_nothing_there(tmp_path):
    with pytest.raises(MissingPathError, match="there is nothing at"):
        path_fingerprint(tmp_path / "absent")


def test_it_can_be_cancelled(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    token = CancelToken()
    token.cancel()
    with pytest.raises(RunCancelledError):
        path_fingerprint(tmp_path / "a", SilentSink(token))
