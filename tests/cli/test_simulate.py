"""``lamella simulate``: the reference beside the volume, on the same grid, or one clear error."""

import json
from pathlib import Path

import numpy as np
import pytest

from lamella.cli.app import main
from lamella.cli.simulate import reference_path
from lamella.io.format import open_labels, open_volume

SMALL = ("--shape", "16,24,20", "--seed", "3")


@pytest.mark.parametrize("name", ["t.mrc", "t.ome.zarr", "t.nii.gz", "t.nrrd", "t.ome.tif"])
def test_tomogram_and_reference_share_a_grid(name, tmp_path):
    arguments = ["simulate", "tomogram", "-o", str(tmp_path / name), *SMALL, "--spacing", "1.2"]
    assert main([*arguments, "--instances"]) == 0
    volume = open_volume(tmp_path / name)
    labels = open_labels(reference_path(tmp_path / name, "labels"))
    objects = open_labels(reference_path(tmp_path / name, "instances"))
    assert volume.shape == labels.shape == objects.shape == (16, 24, 20)
    np.testing.assert_allclose(volume.spacing.to("nm").values, 1.2, rtol=1e-5)
    np.testing.assert_allclose(labels.affine.matrix, volume.affine.matrix, rtol=1e-6)
    assert ((np.asarray(labels.load()) > 0) == (np.asarray(objects.load()) > 0)).all()


def test_options_reach_the_simulation(tmp_path, capsys):
    out = tmp_path / "t.npy"
    words = ["--no-noise", "--tilt-range", "-40,50", "--membranes", "0", "--microtubules", "0"]
    assert main(["simulate", "tomogram", "-o", str(out), *SMALL, *words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["labels_path"] == str(tmp_path / "t_labels.npy")
    assert answer["seed"] == 3
    assert 1 not in np.load(tmp_path / "t_labels.npy")


def test_nuclei(tmp_path, capsys):
    out = tmp_path / "n.tif"
    words = ["--shape", "64,64", "--number", "5", "--radius", "4", "--snr", "10", "--json"]
    assert main(["simulate", "nuclei", "-o", str(out), *words]) == 0
    answer = json.loads(capsys.readouterr().out)
    labels = open_labels(tmp_path / "n_labels.tif").load()
    assert answer["n_objects"] == int(np.max(labels)) == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tilt-range", "95"], "tilt range"),
        (["--tilt-range", "a,b"], "not a number"),
        (["--vesicle-radius", "12"], "two numbers"),
        (["--snr", "0"], "snr"),
        (["--shape", "4,4"], "three positive extents"),
        (["--shape", "4,a,4"], "whole numbers"),
        (["--spacing", "-1"], "spacing"),
    ],
)
def test_wrong_options_are_one_clear_error(words, message, tmp_path, capsys):
    assert main(["simulate", "tomogram", "-o", str(tmp_path / "t.mrc"), *words]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_kept(tmp_path, capsys):
    (tmp_path / "t_labels.mrc").write_bytes(b"precious")
    out = str(tmp_path / "t.mrc")
    assert main(["simulate", "tomogram", "-o", out, *SMALL]) == 2
    assert "already there" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["t_labels.mrc"]
    assert main(["simulate", "tomogram", "-o", out, *SMALL, "--overwrite"]) == 0


def test_unknown_suffix_is_told_before_any_work(tmp_path, capsys):
    assert main(["simulate", "tomogram", "-o", str(tmp_path / "t.foo"), *SMALL]) == 2
    assert "t.foo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("out", "beside"),
    [
        ("x.mrc", "x_labels.mrc"),
        ("a.b.nii.gz", "a.b_labels.nii.gz"),
        ("x.ome.zarr", "x_labels.ome.zarr"),
        ("folder", "folder_labels"),
    ],
)
def test_name_of_the_reference(out, beside):
    assert reference_path(Path(out), "labels") == Path(beside)
