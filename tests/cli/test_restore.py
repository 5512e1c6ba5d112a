"""quality and restore as a user meets them."""

import json

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from lamella.cli import main
from lamella.io.format import open_volume, save_volume
from lamella.volume.labels import Labels
from lamella.volume.volume import Volume


@pytest.fixture
def scene():
    rng = np.random.default_rng(0)
    return 20 + 180 * (gaussian_filter(rng.normal(size=(72, 80)), 4) > 0)


@pytest.fixture
def noisy(tmp_path, scene):
    rng = np.random.default_rng(1)
    image = np.clip(scene + rng.normal(0, 30, (4, *scene.shape)) + 60, 0, 65535)
    volume = Volume.from_array(image.astype(np.uint16), spacing=(2.0, 0.25, 0.25), unit="um")
    return save_volume(volume, tmp_path / "noisy.ome.tif")


def lamella(capsys, *words):
    capsys.readouterr()
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def answer(capsys, *words):
    code, out, err = lamella(capsys, *words, "--json")
    return code, json.loads(out or err)


def test_quality_says_why(capsys, noisy, tmp_path):
    code, out, _ = lamella(capsys, "quality", noisy, "--picture", tmp_path / "q.png")
    assert code == 0
    for word in ("noisy", "contrast to noise is", "below 12", "misleads", " um"):
        assert word in out
    assert (tmp_path / "q.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = lamella(capsys, "quality", noisy, "--picture", tmp_path / "q.png")
    assert code == 2
    assert "already there" in err


def test_quality_of_several(capsys, noisy, tmp_path):
    bad = tmp_path / "bad.tif"
    bad.write_bytes(b"no picture")
    code, out, err = lamella(capsys, "quality", noisy, bad, noisy)
    assert code == 2
    assert out.count("noisy.ome.tif") == 2
    assert "bad.tif" in err
    code, document = answer(capsys, "quality", noisy)
    assert code == 0
    assert document["images"][0]["verdict"] == "noisy"
    assert len(document["images"][0]["slices"]) == 4
    assert set(document["images"][0]["misleading"]) == {"mean_over_std", "laplacian_variance"}


def test_restore_keeps_the_geometry_and_leaves_a_record(capsys, noisy, tmp_path):
    out, record, picture = (tmp_path / n for n in ("out.nii.gz", "out.json", "out.png"))
    code, text, _ = lamella(
        capsys, "restore", noisy, "-o", out, "--method", "non_local_means",
        "--record", record, "--picture", picture,
    )  # fmt: skip
    assert code == 0
    assert "the image is noisy" in text
    restored, raw = open_volume(out), open_volume(noisy)
    assert restored.same_grid(raw)
    assert restored.dtype == np.float32
    document = json.loads(record.read_text())
    assert document["channels"][0]["action"] == "denoise"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["noisy.ome.tif", "out.nii.gz", "out.json", "out.png"]
    )


def test_restore_to_the_type_of_the_input(capsys, noisy, tmp_path):
    out = tmp_path / "out.ome.tif"
    code, document = answer(
        capsys, "restore", noisy, "-o", out, "--mode", "denoise", "--method", "non_local_means",
        "--dtype", "same",
    )  # fmt: skip
    assert code == 0
    assert document["dtype"] == "uint16"
    assert open_volume(out).dtype == np.uint16


def test_a_picture_stays_a_picture(capsys, tmp_path, scene):
    rng = np.random.default_rng(0)
    colours = np.clip(scene[..., None] + rng.normal(0, 30, (*scene.shape, 3)), 0, 255)
    from PIL import Image

    Image.fromarray(colours.astype(np.uint8)).save(tmp_path / "in.png")
    code, document = answer(
        capsys, "restore", tmp_path / "in.png", "-o", tmp_path / "out.png",
        "--mode", "denoise", "--method", "non_local_means",
    )  # fmt: skip
    assert code == 0, document
    assert [c["action"] for c in document["channels"]] == ["denoise"] * 3
    assert document["dtype"] == "uint8"


def test_deblurring_with_a_physical_width(capsys, tmp_path, scene):
    rng = np.random.default_rng(0)
    image = gaussian_filter(scene.astype(float), 2) + rng.normal(0, 1, scene.shape)
    path = save_volume(
        Volume.from_array(image.astype(np.float32), spacing=(0.25, 0.25), unit="um"),
        tmp_path / "soft.ome.tif",
    )
    code, document = answer(
        capsys, "restore", path, "-o", tmp_path / "out.ome.tif", "--mode", "deblur",
        "--psf-sigma", "0.5um",
    )  # fmt: skip
    assert code == 0, document
    assert document["channels"][0]["parameters"]["sigma_zyx_voxels"] == [0.0, 2.0, 2.0]
    restored = open_volume(tmp_path / "out.ome.tif").load()
    error = [np.mean((i - scene) ** 2) for i in (image, restored)]
    assert error[1] < 10**-0.2 * error[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--mode", "deblur", "--method", "non_local_means"), "no meaning for the mode"),
        (("--mode", "deblur", "--psf-sigma", "0.5um", "--psf", "x.tif"), "both given"),
        (("--mode", "denoise", "--psf-sigma", "2"), "point spread function"),
        (("--mode", "deblur", "--psf", "missing.tif"), "no point spread function"),
        (("--dtype", "rainbow"), "no voxel type"),
        (("--time", "7",), "axis"),
    ],
)  # fmt: skip
def test_bad_options_are_one_clear_error(capsys, noisy, tmp_path, words, said):
    code, out, err = lamella(capsys, "restore", noisy, "-o", tmp_path / "out.tif", *words)
    assert code == 2, out
    assert said in err
    assert "Traceback" not in err
    assert not (tmp_path / "out.tif").exists()


def test_bad_input_is_one_clear_error(capsys, tmp_path):
    def refused(data, said, kind=Volume):
        path = save_volume(kind.from_array(data), tmp_path / f"{abs(hash(said))}.nrrd")
        for words in (("quality", path), ("restore", path, "-o", tmp_path / "out.nrrd")):
            code, _, err = lamella(capsys, *words)
            assert code == 2
            assert said in err
            assert "Traceback" not in err

    holes = np.random.default_rng(0).normal(size=(40, 40))
    holes[4, 5] = np.nan
    refused(np.full((40, 40), 7.0), "constant")
    refused(np.zeros((5, 5)), "too small")
    refused(holes, "NaN")
    labels = Labels.from_array(np.ones((40, 40), np.uint8))
    path = save_volume(labels, tmp_path / "labels.ome.zarr")
    assert lamella(capsys, "restore", path, "-o", tmp_path / "o.nrrd", "--mode", "denoise")[0] == 2


def test_what_is_there_is_not_replaced(capsys, noisy, tmp_path):
    (tmp_path / "out.tif").write_bytes(b"precious")
    code, _, err = lamella(capsys, "restore", noisy, "-o", tmp_path / "out.tif")
    assert code == 2
    assert "--overwrite" in err
    assert (tmp_path / "out.tif").read_bytes() == b"precious"


def test_the_output_is_refused_before_the_work(capsys, noisy, tmp_path):
    code, _, err = lamella(
        capsys, "restore", noisy, "-o", tmp_path / "out.xyz", "--mode", "denoise"
    )
    assert code == 2
    assert "no format is written" in err
