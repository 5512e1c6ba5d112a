"""The command link, from files to answers."""

import json

import numpy as np
import pytest

from lamella.cli import main
from lamella.io.format import open_labels, save_volume
from lamella.volume.labels import Labels


def labels_file(path, data, **fields):
    labels = Labels.from_array(data, is_instance=True, **fields)
    return str(save_volume(labels, path))


@pytest.fixture
def stack(tmp_path):
    """Two columns; labels swap from slice to slice, the second is missing once."""
    data = np.zeros((9, 24, 40), np.uint16)
    for z in range(9):
        data[z, 4:14, 4:14] = 1 + z % 2
        if z != 4:
            data[z, 8:18, 24:34] = 2 - z % 2
    return labels_file(tmp_path / "slices.nii.gz", data, spacing=(3.0, 1.0, 1.0), unit="um")


def test_link(stack, tmp_path, capsys):
    target = tmp_path / "linked.ome.zarr"
    assert main(["link", stack, "-o", str(target), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["n_objects"], answer["n_gaps_closed"], answer["n_sections"]) == (2, 1, 17)
    linked = open_labels(target)
    assert linked.is_instance
    assert linked.same_grid(open_labels(stack))
    ids = linked.load()
    assert set(np.unique(ids[:, 8, 8])) == {1}
    assert (ids[4, :, 20:] == 0).all()


def test_link_says_what_it_did(stack, tmp_path, capsys):
    target = str(tmp_path / "linked.nii.gz")
    assert main(["link", stack, "-o", target, "--max-distance-z", "1"]) == 0
    assert "3 objects from 17 in 9 slices (0 gaps closed" in capsys.readouterr().out


def test_gaps_can_be_filled(stack, tmp_path, capsys):
    target = str(tmp_path / "linked.nii.gz")
    assert main(["link", stack, "-o", target, "--fill-gaps", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_filled_voxels"] == 100
    assert (open_labels(target).load()[4, 8:18, 24:34] == 2).all()


def test_masks_are_numbered_first(tmp_path, capsys):
    mask = np.zeros((4, 20, 40), np.uint8)
    mask[:, 4:12, 4:12] = mask[:, 4:12, 24:32] = 1
    path = labels_file(tmp_path / "mask.nii.gz", mask)
    target = str(tmp_path / "linked.nii.gz")
    assert main(["link", path, "-o", target, "--components", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_objects"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--min-overlap-ratio", "2"], "min-overlap-ratio"),
        (["--max-distance-z", "0"], "max-distance-z"),
        (["--max-centroid-distance", "nonsense"], "spacing"),
    ],
)
def test_wrong_options(stack, tmp_path, capsys, words, message):
    assert main(["link", stack, "-o", str(tmp_path / "linked.nii.gz"), *words]) == 2
    assert message in capsys.readouterr().err


def test_what_cannot_be_linked(tmp_path, stack, capsys):
    image = labels_file(tmp_path / "image.tif", np.ones((8, 8), np.uint8))
    assert main(["link", image, "-o", str(tmp_path / "out.tif")]) == 2
    assert "nothing to link" in capsys.readouterr().err
    assert main(["link", str(tmp_path / "absent.tif"), "-o", str(tmp_path / "out.tif")]) == 2
    capsys.readouterr()
    assert main(["link", stack, "-o", stack]) == 2
    assert "already there" in capsys.readouterr().err
    bare = labels_file(tmp_path / "bare.npy", np.ones((3, 8, 8), np.uint8))
    words = ["--max-centroid-distance", "2um"]
    assert main(["link", bare, "-o", str(tmp_path / "out.npy"), *words]) == 2
    assert "spacing" in capsys.readouterr().err
