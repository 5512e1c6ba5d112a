"""Arrays in files for the time of a command: what is read is what was written."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import BoxOutOfBoundsError, StorageError
from lamella.io.scratch import ScratchArray
from lamella.volume.source import LazyArray


@given(data=st.data())
def test_it_holds_what_an_array_would(tmp_path_factory, data):
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    dtype = data.draw(st.sampled_from([np.uint32, np.uint64, np.float32]))
    expected = np.zeros(shape, dtype)
    array = ScratchArray(tmp_path_factory.mktemp("scratch") / "a", shape, dtype)
    for value in range(3):
        start = data.draw(st.integers(0, shape[0]))
        stop = data.draw(st.integers(start, shape[0]))
        block = np.arange(expected[start:stop].size).reshape(-1, *shape[1:]) + value
        array[start:stop] = expected[start:stop] = block
    index = tuple(
        slice(*sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n))))) for n in shape
    )
    np.testing.assert_array_equal(array[index], expected[index])
    np.testing.assert_array_equal(array[0], expected[0])
    assert isinstance(array, LazyArray)


def test_parts_of_slices_are_not_written(tmp_path):
    array = ScratchArray(tmp_path / "a", (3, 4), np.uint8)
    with pytest.raises(BoxOutOfBoundsError, match="whole slices"):
        array[0:1, 1:2] = 1


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(StorageError):
        ScratchArray(tmp_path / "nowhere" / "a", (3, 4), np.uint8)
