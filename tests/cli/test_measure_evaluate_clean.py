"""The commands measure, evaluate and clean, from files to answers."""

import json

import numpy as np
import pytest

from lamella.cli import main
from lamella.io.format import open_labels, save_volume
from lamella.volume.labels import Labels
from lamella.volume.volume import Volume

SPACING = (4.0, 2.0, 2.0)


@pytest.fixture
def files(tmp_path):
    data = np.zeros((12, 24, 24), np.uint16)
    data[2:9, 3:12, 3:12] = 1
    data[5, 6, 6] = 0
    data[3:6, 15:20, 15:20] = 2
    data[10, 22, 22] = 2
    moved = np.roll(data, 1, 1)
    paths = {}
    for name, values in {"labels": data, "moved": moved, "cut": data[1:]}.items():
        labels = Labels.from_array(values, spacing=SPACING, unit="nm")
        paths[name] = str(save_volume(labels, tmp_path / f"{name}.nii.gz"))
    image = Volume.from_array(data * 10.0, spacing=SPACING, unit="nm")
    paths["image"] = str(save_volume(image, tmp_path / "image.nii.gz"))
    return paths


def run_json(capsys, *words):
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_measure(files, capsys):
    answer = run_json(capsys, "measure", files["labels"], "--image", files["image"])
    assert answer["unit"] == "nm"
    first = answer["objects"][0]
    assert first["voxels"] == 7 * 9 * 9 - 1
    assert first["volume_nm3"] == first["voxels"] * 16
    assert first["intensity_mean"] == 10
    assert [row["id"] for row in answer["objects"]] == [1, 2]


def test_measure_components_and_csv(files, capsys, tmp_path):
    target = tmp_path / "objects.csv"
    words = ("measure", files["labels"], "--components", "-o", str(target))
    assert run_json(capsys, *words)["n_objects"] == 3
    lines = target.read_text().splitlines()
    assert lines[0].startswith("id,class,voxels,volume_nm3,surface_nm2,")
    assert [line.split(",")[1] for line in lines[1:]] == ["1", "2", "2"]
    assert main(words) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert "3 objects" in capsys.readouterr().out


def test_evaluate(files, capsys):
    answer = run_json(capsys, "evaluate", files["moved"], files["labels"], "--tolerance", "0.002um")
    assert answer["tolerance"] == pytest.approx(2.0)
    assert answer["classes"][0]["hd95"] == 2.0
    assert 0 < answer["classes"][0]["dice"] < 1
    answer = run_json(capsys, "evaluate", files["moved"], files["labels"], "--instances")
    assert answer["instances"]["n_reference"] == 2
    assert main(["evaluate", files["moved"], files["labels"], "--instances"]) == 0
    text = capsys.readouterr().out
    assert "VOI" in text
    assert "HD95 nm" in text


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("evaluate", "cut", "labels"), "(11, 24, 24)"),
        (("evaluate", "labels", "labels", "--tolerance", "near"), "'near'"),
        (("evaluate", "labels", "labels", "--classes", "mito"), "no class 'mito'"),
        (("measure", "image"), "float"),
        (("clean", "labels", "-o", "x.nii.gz"), "nothing to clean"),
        (
            ("clean", "labels", "-o", "x.nii.gz", "--relabel", "--max-hole", "3"),
            "without --fill-holes",
        ),
        (("clean", "labels", "-o", "x.nii.gz", "--min-size", "few"), "'few'"),
    ],
)
def test_bad_input_is_one_clear_error(files, capsys, words, part):
    assert main([files.get(word, word) for word in words]) == 2
    error = capsys.readouterr().err
    assert part in error
    assert "Traceback" not in error


def test_clean(files, capsys, tmp_path):
    target = tmp_path / "clean.nii.gz"
    words = ("--fill-holes", "--min-size", "100nm3", "--keep-largest")
    answer = run_json(capsys, "clean", files["labels"], "-o", str(target), *words)
    assert answer["min_size_voxels"] == 6.25
    before = open_labels(files["labels"])
    cleaned = open_labels(target)
    assert cleaned.affine.is_close(before.affine)
    data, old = cleaned.load(), before.load()
    assert data[5, 6, 6] == 1
    assert data[10, 22, 22] == 0
    changed = data != old
    assert changed.sum() == 2


def test_clean_relabels(files, tmp_path, capsys):
    target = tmp_path / "clean.nii.gz"
    words = ["clean", files["labels"], "-o", str(target), "--instances", "--relabel"]
    assert main([*words, "--min-size", "100"]) == 0
    capsys.readouterr()
    assert np.unique(open_labels(target).load()).tolist() == [0, 1]
