"""What `lamella dataset check` finds, writes down and splits."""

import json

import numpy as np
import pytest

from lamella.cli.app import main
from lamella.core.errors import InputError, MissingPathError
from lamella.training.configuration import ClassConfig, PairsConfig, SplitConfig, TaskConfig
from lamella.training.pairs.check import check_pairs
from lamella.training.pairs.guess import guess_layout
from lamella.training.pairs.source import PairsSource
from lamella.wire.card import NormalisationDoc


def _codes(report, severity=None):
    return {f.code for f in report.findings if severity in (None, f.severity)}


def test_a_good_data_set(write_set, task):
    report = check_pairs(write_set(6), task())
    assert report.is_trainable
    assert _codes(report) == {"spacing_missing"}
    assert len(report.documents) == 6
    (row,) = report.classes
    assert row["name"] == "thing"
    assert 0.15 < row["fraction"] < 0.3
    assert row["n_images"] == 6
    total = sum(document.class_counts["thing"] for document in report.documents)
    assert row["n_voxels"] == total == sum(row["by_split"].values())


def test_everything_that_can_be_wrong(write_set, write, task, tmp_path):
    config = write_set(12, split=SplitConfig(validation=("images/case1",)))
    root = tmp_path / "set"
    images, labels = root / "images", root / "labels"
    (images / "case1.png").write_bytes((images / "case0.png").read_bytes())
    write(labels / "case2.png", np.zeros((40, 50), np.uint8))
    write(labels / "case3.png", np.full((40, 50), 9, np.uint8))
    (labels / "case4.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    write(images / "case5.png", np.full((40, 50), 7, np.uint8))
    write(labels / "case6.png", np.zeros((40, 49), np.uint8))
    write(images / "case7.png", np.arange(6000, dtype=np.uint8).reshape(40, 50, 3))
    (images / "case8.png").unlink()
    (labels / "case9.png").unlink()
    (images / "case10.png").unlink()
    bad = np.random.default_rng(0).random((40, 50)).astype(np.float32)
    bad[:3] = np.nan
    write(images / "case10.npy", bad)
    report = check_pairs(config, task())
    assert not report.is_trainable
    assert _codes(report, "error") == {
        "unmatched_image",
        "unmatched_labels",
        "unknown_values",
        "unreadable_file",
        "invalid_geometry",
        "channels_differ",
    }
    assert _codes(report, "warning") >= {
        "empty_labels",
        "constant_image",
        "not_finite",
        "leakage_duplicate",
    }
    by_code = {found.code: found for found in report.findings}
    assert by_code["unknown_values"].files == ("labels/case3.png",)
    assert "labels hold values that no class names: 9" in by_code["unknown_values"].message
    assert by_code["empty_labels"].files == ("images/case2.png",)
    assert by_code["leakage_duplicate"].files == ("images/case0.png", "images/case1.png")
    assert by_code["not_finite"].files == ("images/case10.npy (150)",)
    assert all(found.hint for found in report.findings)


def test_copies_are_found_in_other_formats(write_set, write, task, tmp_path):
    from PIL import Image

    config = write_set(4, split=SplitConfig(validation=("images/case3",)))
    pixels = np.asarray(Image.open(tmp_path / "set/images/case0.png"))
    (tmp_path / "set/images/case3.png").unlink()
    write(tmp_path / "set/images/case3.tif", pixels)
    assert "leakage_duplicate" in _codes(check_pairs(config, task()))


def test_classes_that_never_occur(write_set, task):
    report = check_pairs(write_set(), task("semantic", "thing", "nothing"))
    assert "class_never_occurs" in _codes(report, "warning")
    values = TaskConfig(kind="semantic", classes=(ClassConfig(name="x", values=(7,)),))
    config = write_set().model_copy(update={"other_values": "background"})
    assert "no_class_occurs" in _codes(check_pairs(config, values), "error")


def test_wrong_units(tmp_path, task):
    from lamella.io.format import save_volume
    from lamella.volume import Labels, Volume

    array = np.random.default_rng(0).integers(0, 2, (4, 8, 8)).astype(np.uint8)
    for number, (size, drawn) in enumerate([(8, 8), (8, 0.008), (8000, 8000), (8e9, 8e9)]):
        image = Volume.from_array(array + np.uint8(number), spacing=(size,) * 3, unit="nm")
        labels = Labels.from_array(array, spacing=(drawn,) * 3, unit="nm")
        save_volume(image, tmp_path / f"images/{number}.ome.zarr")
        save_volume(labels, tmp_path / f"labels/{number}.ome.zarr")
    report = check_pairs(PairsConfig(root=str(tmp_path)), task())
    by_code = {found.code: found for found in report.findings}
    assert by_code["spacing_disagrees"].files == ("images/1.ome.zarr", "labels/1.ome.zarr")
    assert "wrong unit" in by_code["spacing_disagrees"].message
    assert "wrong unit" in by_code["spacings_differ"].message
    assert by_code["spacing_unlikely"].files == ("images/3.ome.zarr",)


def test_labels_that_lie_elsewhere(tmp_path, task):
    import nibabel

    array = np.random.default_rng(0).integers(0, 2, (6, 7, 8)).astype(np.uint8)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (10, 20, 30)
    mirrored, shifted = affine.copy(), affine.copy()
    mirrored[0, 0] = -2.0
    shifted[:3, 3] += (0, 8, 0)
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for name, drawn in (("a", affine), ("b", mirrored), ("c", shifted)):
        image = nibabel.Nifti1Image(array + np.uint8(ord(name)), affine)
        nibabel.save(image, tmp_path / f"images/{name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(array, drawn), tmp_path / f"labels/{name}.nii.gz")
    report = check_pairs(PairsConfig(root=str(tmp_path)), task())
    by_code = {found.code: found for found in report.findings}
    assert "turned or mirrored" in by_code["invalid_geometry"].message
    assert "labels/b.nii.gz" in by_code["invalid_geometry"].message
    assert by_code["origin_disagrees"].files == ("images/c.nii.gz", "labels/c.nii.gz")


def test_layouts_are_recognised(write_set, write, tmp_path, data_dir):
    config = guess_layout(tmp_path / "set") if write_set() else None
    assert (config.images, config.labels) == ("images/**/*", "labels/**/*")
    nuclei = guess_layout(data_dir / "fluorescence/dsb2018_D")
    assert nuclei.labels == "**/*_labels.*"
    ovule = guess_layout(data_dir / "fluorescence/plantseg")
    assert (ovule.images, ovule.labels) == ("**/*.h5::raw", "**/*.h5::label")
    write(tmp_path / "none/a.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(InputError, match="laid out in no way"):
        guess_layout(tmp_path / "none")
    with pytest.raises(MissingPathError):
        guess_layout(tmp_path / "nowhere")


def test_check_at_the_command_line(write_set, write, tmp_path, capsys):
    write_set(6)
    folder = str(tmp_path / "set")
    assert main(["dataset", "check", folder]) == 0
    text = capsys.readouterr().out
    assert "6 pairs" in text
    assert "nothing prevents training" in text
    write(tmp_path / "set/labels/case1.png", np.full((40, 50), 9, np.uint8))
    words = ["dataset", "check", folder, "--class", "thing=1", "--json"]
    assert main(words) == 3
    answer = json.loads(capsys.readouterr().out)
    assert answer["is_trainable"] is False
    assert answer["findings"][0]["code"] == "unknown_values"
    assert main([*words, "--ignore", "9"]) == 0
    capsys.readouterr()
    assert main(["dataset", "check", str(tmp_path / "nowhere")]) == 2
    assert "no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--class", "a=x"], "--class"),
        (["--color", "a=300,0,0"], "--color"),
        (["--labels", "a/*", "--labels", "b/*"], "names no class"),
        (["--instances", "--multilabel"], "exclude each other"),
        (["--ignore", "3"], "--class"),
        (["--specimen", "(a"], "no regular expression"),
        (["--images", "pictures/*"], "no folder"),
        (["--unit", "nm"], "--spacing"),
        (["--channel", "4"], "0 to 0"),
    ],
)
def test_words_that_make_no_sense(write_set, tmp_path, capsys, words, said):
    write_set(4)
    code = main(["dataset", "check", str(tmp_path / "set"), *words])
    streams = capsys.readouterr()
    assert code in (2, 3)
    assert said in streams.err + streams.out
    assert "Traceback" not in streams.err


def test_index_and_split_and_train_from_them(write_set, task, tmp_path, capsys):
    write_set(8)
    folder = tmp_path / "set"
    assert main(["dataset", "split", str(folder)]) == 2
    assert "dataset index" in capsys.readouterr().err
    words = ["dataset", "index", str(folder), "--class", "thing=1"]
    assert main([*words, "--specimen", "case[0-9]", "--spacing", "4,4", "--unit", "nm"]) == 0
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["dataset", "split", str(folder), "--test", "case[67]", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["splits"]["test"] == ["case6", "case7"]
    assert answer["n_pairs"] == {"train": 5, "validation": 1, "test": 2, "": 0}
    moved = tmp_path / "moved"
    folder.rename(moved)
    config = PairsConfig(index=str(moved / "dataset.json"))
    named = TaskConfig(kind="semantic", classes=(ClassConfig(name="thing", values=(1,)),))
    source = PairsSource(config, named, NormalisationDoc(kind="none"), axes="yx")
    assert source.info.specimens["test"] == ("case6", "case7")
    assert source.info.spacing.values == (4, 4)
    assert len(source._counts) == 8
    sample = source.draw(np.random.default_rng(0), (8, 8))
    assert np.array_equal(sample.image > 200, sample.labels == 1)
    assert main(["dataset", "check", str(moved), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"] == answer["splits"]
    assert main(["dataset", "split", str(moved), "--test", "cse1"]) == 2
    assert "did you mean case1" in capsys.readouterr().err
    (moved / "labels/case2.png").unlink()
    with pytest.raises(InputError, match=r"1 file\(s\) of .* are not there: labels/case2.png"):
        PairsSource(config, task(), NormalisationDoc(), axes="yx")


def test_check_with_a_configuration(write_set, tmp_path, capsys):
    write_set(4)
    mine = tmp_path / "mine.yaml"
    mine.write_text("defaults: [/em2d_semantic, _self_]\ntask: {classes: [bright]}\n")
    words = ["dataset", "check", str(tmp_path / "set"), "--json", "--config"]
    assert main([*words, str(mine)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in answer["classes"]] == ["bright"]
    assert main([*words, "cellmap_cos7"]) == 2
    assert "cellmap index" in capsys.readouterr().err


def test_an_index_that_is_none(tmp_path, task):
    (tmp_path / "dataset.json").write_text('{"pairs": 3}')
    with pytest.raises(InputError, match="not a valid IndexDoc"):
        PairsSource(
            PairsConfig(index=str(tmp_path / "dataset.json")), task(), NormalisationDoc(), axes="yx"
        )


def test_index_refuses_what_cannot_be_trained_on(write_set, write, tmp_path, capsys):
    write_set(3)
    write(tmp_path / "set/labels/case1.png", np.full((40, 50), 9, np.uint8))
    assert main(["dataset", "index", str(tmp_path / "set"), "--class", "thing=1"]) == 2
    assert "labels/case1.png" in capsys.readouterr().err
    assert not (tmp_path / "set/dataset.json").exists()


def test_real_data_sets(data_dir, capsys):
    rats = data_dir / "em/axondeepseg_sem"
    pattern = "derivatives/labels/sub-*/micr/*_SEM_seg-{}-manual.png"
    words = ["dataset", "check", str(rats), "--images", "sub-*/micr/*_SEM.png", "--json"]
    words += ["--labels", "axon=" + pattern.format("axon")]
    words += ["--labels", "myelin=" + pattern.format("myelin")]
    assert main(words) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in answer["classes"]] == ["axon", "myelin"]
    assert answer["pairs"][0]["spacing"] == {"values": [0.18, 0.18], "unit": "um"}
    assert "spacings_differ" in [found["code"] for found in answer["findings"]]
    nuclei = data_dir / "fluorescence/dsb2018_D"
    assert main(["dataset", "check", str(nuclei), "--json"]) == 3
    codes = [found["code"] for found in json.loads(capsys.readouterr().out)["findings"]]
    assert codes[0] == "channels_differ"
    assert main(["dataset", "check", str(nuclei), "--channel", "0", "--json"]) == 0
