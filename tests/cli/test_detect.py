"""``lamella detect vertebrae`` and the options of DICOM segmentations on the command line."""

import json
from pathlib import Path

import numpy as np
import pytest

from lamella.cli.app import main
from lamella.io.format import open_labels, save_volume
from lamella.volume import Box, LabelClass, Labels, Volume

REFERENCE = "medical/totalsegmentator/spine_report/example_ct_report/totalseg.nii.gz"
CT = "medical/totalsegmentator/example_ct.nii.gz"


@pytest.fixture
def spine(tmp_path: Path) -> Path:
    data = np.zeros((60, 20, 20), np.uint8)
    for k, value in enumerate((31, 29, 28)):
        data[45 - 14 * k : 53 - 14 * k, 7:13, 7:13] = value
    labels = Labels.from_array(
        data, spacing=(3, 3, 3), unit="mm", frame="RAS",
        classes=tuple(LabelClass(v, f"vertebrae_L{32 - v}") for v in (31, 30, 29, 28)),
    )  # fmt: skip
    return save_volume(labels, tmp_path / "spine.nrrd")


def test_reference_as_json(data_dir: Path, capsys) -> None:
    words = ["detect", "vertebrae", str(data_dir / CT), "--labels", str(data_dir / REFERENCE)]
    assert main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["format_version"] == 1
    assert [known["level"] for known in report["vertebrae"]][:2] == ["T11", "T12"]
    assert report["vertebrae"][0]["is_incomplete"]
    assert report["vertebrae"][0]["confidence"] is None
    assert "no probabilities" in report["confidence_note"]


def test_people_see_a_table_and_the_doubts(spine: Path, capsys) -> None:
    assert main(["detect", "vertebrae", "--labels", str(spine)]) == 0
    captured = capsys.readouterr()
    assert "3 vertebrae; centres in mm, RAS" in captured.out
    assert "Research use only" in captured.out
    assert "warning: L2 is skipped between L1 and L3" in captured.err


def test_a_segmentation_of_a_part_of_the_ct_is_a_warning(
    spine: Path, tmp_path: Path, capsys
) -> None:
    labels = open_labels(spine)
    part = save_volume(labels.crop(Box((20, 0, 0), (60, 20, 20))), tmp_path / "part.nrrd")
    data = np.full(labels.shape, -900, np.int16)
    image = Volume.from_array(data, spacing=(3, 3, 3), unit="mm", frame="RAS")
    ct = save_volume(image, tmp_path / "ct.nrrd")
    words = ["detect", "vertebrae", str(ct), "--modality", "CT", "--labels", str(part)]
    assert main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["warnings"][0]["code"] == "labels_cover_part"
    assert "67 % of the image (voxels z 20 to 59 of 0 to 59)" in report["warnings"][0]["message"]
    assert report["labels"]["covered_start_zyx"] == [20, 0, 0]
    assert report["labels"]["covered_stop_zyx"] == [60, 20, 20]
    assert main(words) == 0
    error = capsys.readouterr().err
    assert "warning: the labels cover 67 % of the image" in error
    assert "60 mm inferior" in error


def test_outputs_by_suffix(spine: Path, tmp_path: Path, capsys) -> None:
    names = ("a.json", "a.csv", "a.png", "a.nii.gz", "a.ome.zarr")
    outputs = [word for name in names for word in ("-o", str(tmp_path / name))]
    words = ["detect", "vertebrae", "--labels", str(spine), *outputs]
    assert main(words) == 0
    assert all((tmp_path / name).exists() for name in names)
    assert set(np.unique(open_labels(tmp_path / "a.nii.gz").load())) == {0, 28, 29, 31}
    assert main(words) == 2
    assert "already there" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "neither an image nor a segmentation"),
        (["--labels", "L", "--fast"], "takes the place of the model"),
        (["--labels", "L", "--run-dir", "x"], "takes the place of the model"),
        (["L", "--class-map", "total"], "--class-map says what given labels mean"),
        (["--labels", "L", "-o", "a.json", "-o", "b.json", "--format", "csv"], "for one output"),
        (["--labels", "L", "-o", "a.json", "-o", "a.json"], "given twice"),
        (["--labels", "L", "-o", "a.docx"], "no format is written"),
        (["--labels", "L", "-o", "a.dcm"], "must refer to a DICOM series"),
        (["--labels", "L", "--channel", "1"], "but no image"),
        (["--labels", "none.nii.gz"], "there is nothing at"),
        (["--labels", "L", "--class-map", "v9"], "no class map 'v9'"),
    ],
)
def test_bad_input_is_one_clear_error(spine: Path, capsys, words, message) -> None:
    words = [str(spine) if word == "L" else word for word in words]
    assert main(["detect", "vertebrae", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "hint: " in error
    assert "Traceback" not in error


def test_an_x_ray_is_refused_with_the_reason(capsys) -> None:
    from pydicom.data import get_testdata_files

    path = next(name for name in get_testdata_files() if name.endswith("6154"))
    assert main(["detect", "vertebrae", str(path)]) == 2
    assert "projection" in capsys.readouterr().err


def test_pictures_and_micrographs_are_refused(tmp_path: Path, capsys) -> None:
    from PIL import Image

    Image.new("RGB", (20, 20), (200, 30, 60)).save(tmp_path / "a.png")
    assert main(["detect", "vertebrae", str(tmp_path / "a.png"), "--modality", "CT"]) == 2
    assert "colours" in capsys.readouterr().err
    labels = Labels.from_array(np.ones((4, 8, 8), np.uint8), spacing=(50, 4, 4), unit="nm")
    path = save_volume(labels, tmp_path / "cells.mrc")
    assert main(["detect", "vertebrae", str(path)]) == 2
    assert "finer than any scanner" in capsys.readouterr().err


def test_dicom_segmentation_by_convert_and_info(data_dir: Path, tmp_path: Path, capsys) -> None:
    folder = data_dir / "medical/totalsegmentator"
    labels, series = folder / "example_seg_dicom.nii.gz", folder / "example_ct_dicom"
    target = tmp_path / "seg.dcm"
    words = ["convert", str(labels), str(target)]
    assert main(words) == 2
    assert "--source" in capsys.readouterr().err
    assert main([*words, "--source", str(series), "--format", "dicom-seg-labelmap"]) == 0
    assert "anonymised?" in capsys.readouterr().err
    assert main(["info", str(target), "--json"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["format"]) == ("labels", "dicom")
    assert {"value": 5, "name": "liver"} in facts["classes"]
    assert main(["convert", str(target), str(tmp_path / "liver.nrrd"), "--segment", "liver"]) == 0
    assert set(np.unique(open_labels(tmp_path / "liver.nrrd").load())) == {0, 5}
    assert main(["convert", str(target), str(tmp_path / "x.nrrd"), "--segment", "livr"]) == 2
    assert "did you mean liver" in capsys.readouterr().err


def test_segment_writes_a_dicom_segmentation(data_dir: Path, tmp_path: Path, capsys) -> None:
    import highdicom

    series = data_dir / "medical/totalsegmentator/example_ct_dicom"
    target = tmp_path / "seg.dcm"
    words = ["segment", "--model", "classical:otsu", "-o", str(target), "--run-dir"]
    assert main([*words, str(tmp_path / "a.run"), str(series)]) == 0
    made = highdicom.seg.segread(target)
    described = made.get_segment_description(1)
    assert described.algorithm_type.value == "AUTOMATIC"
    assert "classical" in described.algorithm_identification.name
    labels = open_labels(tmp_path / "a.run" / "labels.ome.zarr")
    assert np.array_equal(open_labels(target).load(), labels.load())
    # Any other input is refused before the run begins.
    nifti = data_dir / "medical/totalsegmentator/example_ct_sm.nii.gz"
    other = [*words, str(tmp_path / "b.run"), str(nifti), "--overwrite"]
    assert main(other) == 2
    assert "is NIfTI" in capsys.readouterr().err
    assert not (tmp_path / "b.run").exists()
