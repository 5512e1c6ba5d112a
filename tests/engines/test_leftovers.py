"""What an earlier job left: reopened where it is whole, removed where it is not wanted."""

import numpy as np

from lamella.engines.leftovers import remove_left, reopen_labels, say_what_changed
from lamella.io.label_store import create_labels
from lamella.testing.engine import RecordingSink
from lamella.volume import Box, Volume


def test_labels_are_reopened_only_where_they_can_be_gone_on_with(tmp_path):
    path = tmp_path / "labels.ome.zarr"
    assert reopen_labels(path) is None
    like = Volume.from_array(np.zeros((4, 8, 8), np.uint8), spacing=(1, 1, 1), unit="nm")
    create_labels(path, like=like, dtype="uint8").write(
        Box((0, 0, 0), (4, 8, 8)), np.ones((4, 8, 8), np.uint8)
    )
    again = reopen_labels(path)
    assert again is not None
    assert again.read(Box((0, 0, 0), (4, 8, 8))).all()
    (path / "pending.json").write_text("{")
    assert reopen_labels(path) is None


def test_folders_and_files_are_removed_as_far_as_they_are_there(tmp_path):
    (tmp_path / "maps" / "0").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    remove_left(tmp_path / "maps", tmp_path / "file", tmp_path / "nothing")
    assert not list(tmp_path.iterdir())


def test_it_is_said_what_changed():
    sink = RecordingSink()
    say_what_changed(sink, ["input", "plan"])
    assert [event.message for event in sink.events] == [
        "starting anew: input, plan changed since the stop"
    ]
