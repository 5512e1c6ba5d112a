"""``lamella convert``: nothing changes on the way, and outside programs read every station."""

import json
from pathlib import Path

import mrcfile
import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import zarr
from numpy.testing import assert_allclose, assert_array_equal
from ome_zarr_models.v05 import Image, ImageLabel

from lamella.cli import main
from lamella.io.format import open_volume, save_volume
from lamella.volume import Affine, Axes, Box, LabelClass, Labels, Volume

STATIONS = ("a.mrc", "b.ome.zarr", "c.nii.gz", "d.nrrd", "e.mrc")


def convert(*words: object) -> int:
    return main(["convert", "--quiet", *map(str, words)])


def run_chain(source: Path, folder: Path) -> list[Path]:
    paths = [source]
    for name in STATIONS[1:]:
        target = folder / name
        assert convert(paths[-1], target) == 0, name
        paths.append(target)
    return paths


def judge(paths: list[Path], voxels: np.ndarray, spacing_zyx_angstrom: tuple[float, ...]) -> None:
    """What mrcfile, ome-zarr-models, nibabel and SimpleITK make of the stations."""
    spacing = np.asarray(spacing_zyx_angstrom)
    _, ome, nifti, nrrd, mrc = paths
    group = zarr.open_group(str(ome), mode="r")
    multiscale = Image.from_zarr(group).attributes.ome.multiscales[0]
    assert_allclose(multiscale.datasets[0].coordinateTransformations[0].scale, spacing / 10)
    assert_array_equal(group["0"][:], voxels)
    image = nib.load(nifti)
    assert_array_equal(np.asarray(image.dataobj).transpose(), voxels)
    in_mm = {"mm": 1e-7, "micron": 1e-4, "unknown": 1e-7}[image.header.get_xyzt_units()[0]]
    assert_allclose(image.header.get_zooms()[::-1], spacing * in_mm, rtol=1e-5)
    itk = SimpleITK.ReadImage(str(nrrd))
    assert_array_equal(SimpleITK.GetArrayFromImage(itk), voxels)
    ratio = np.asarray(itk.GetSpacing()[::-1]) / spacing
    assert_allclose(ratio, ratio[0], rtol=1e-9)
    assert mrcfile.validate(str(mrc))
    with mrcfile.open(mrc) as opened:
        assert_array_equal(opened.data, voxels)
        size = opened.voxel_size
        assert_allclose([size.z, size.y, size.x], spacing, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16", "float32"])
def test_chain_keeps_voxels_and_spacing(tmp_path: Path, dtype: str) -> None:
    voxels = np.random.default_rng(4).integers(-100, 100, (7, 8, 9))
    voxels = (np.abs(voxels) if dtype == "uint16" else voxels).astype(dtype)
    source = tmp_path / "a.mrc"
    with mrcfile.new(source) as made:
        made.set_data(voxels)
        made.voxel_size = (13.48, 13.48, 27.5)
    paths = run_chain(source, tmp_path)
    judge(paths, voxels, (27.5, 13.48, 13.48))
    first = open_volume(source)
    for path in paths:
        again = open_volume(path)
        assert_array_equal(again.load(), voxels, err_msg=path.name)
        assert again.spacing == first.spacing, path.name
        assert again.affine.is_close(first.affine), path.name


@pytest.mark.parametrize(
    "name", ["cryoet/mrcfile/EMD-3197.map", "cryoet/cylindra/beta-tubulin.mrc"]
)
def test_chain_of_real_maps(data_dir: Path, tmp_path: Path, name: str) -> None:
    first = open_volume(data_dir / name)
    paths = run_chain(data_dir / name, tmp_path)
    spacing = tuple(10 * value for value in first.affine.spacing)
    judge(paths, first.load(), spacing)
    last = open_volume(paths[-1])
    assert last.spacing == first.spacing
    assert last.affine.is_close(first.affine, 1e-3)


def test_anatomy_survives_ome_zarr(data_dir: Path, tmp_path: Path) -> None:
    """A CT in LPS and an oblique one go through a format that has no direction."""
    for name in ("medical/pyradiomics/brain1_image.nrrd", "medical/dcm2niix_ref/totalseg_0.nii.gz"):
        source = data_dir / name
        stem = Path(name).name.split(".")[0]
        assert convert(source, tmp_path / f"{stem}.ome.zarr") == 0
        suffix = "".join(source.suffixes)
        target = tmp_path / f"{stem}{suffix}"
        assert convert(tmp_path / f"{stem}.ome.zarr", target) == 0
        before, after = SimpleITK.ReadImage(str(source)), SimpleITK.ReadImage(str(target))
        assert_array_equal(SimpleITK.GetArrayFromImage(after), SimpleITK.GetArrayFromImage(before))
        assert_allclose(after.GetOrigin(), before.GetOrigin(), atol=1e-3)
        assert_allclose(after.GetSpacing(), before.GetSpacing(), rtol=1e-5)
        assert_allclose(after.GetDirection(), before.GetDirection(), atol=1e-5)


def make(tmp_path: Path, dtype: str = "uint16") -> Path:
    data = np.arange(4 * 5 * 6, dtype=dtype).reshape(4, 5, 6)
    volume = Volume(data, Axes.parse("zyx"), Affine.diagonal((2.0, 1.0, 1.0)), "nm", name="cell")
    return save_volume(volume, tmp_path / "cell.ome.zarr")


def test_spacing_is_replaced_and_voxels_are_not(tmp_path: Path) -> None:
    source = make(tmp_path)
    target = tmp_path / "o.ome.tif"
    assert convert(source, target, "--spacing", "30,10,10", "--unit", "angstrom") == 0
    again = open_volume(target)
    assert_allclose(again.affine.spacing, (3.0, 1.0, 1.0))
    assert again.unit == "nm"
    assert_array_equal(again.load(), open_volume(source).load())


def test_types_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make(tmp_path)
    assert convert(source, tmp_path / "o.ome.zarr", "--dtype", "uint8") == 0
    assert open_volume(tmp_path / "o.ome.zarr").dtype == np.uint8
    high = Volume.from_array(np.full((3, 4, 5), 70_000, np.uint32))
    save_volume(high, tmp_path / "high.ome.zarr")
    before = sorted(tmp_path.iterdir())
    capsys.readouterr()
    assert convert(tmp_path / "high.ome.zarr", tmp_path / "h.mrc", "--labels") == 2
    error = capsys.readouterr().err
    assert "70000" in error
    assert "hint:" in error
    assert sorted(tmp_path.iterdir()) == before


def test_output_that_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make(tmp_path)
    target = tmp_path / "o.npy"
    assert convert(source, target) == 0
    assert convert(source, target) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert convert(source, target, "--overwrite") == 0


def test_output_of_unknown_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make(tmp_path)
    assert convert(source, tmp_path / "o.docx") == 2
    assert "hint:" in capsys.readouterr().err
    assert convert(source, tmp_path / "out", "--format", "ome-zarr-0.4") == 0
    assert (tmp_path / "out" / ".zgroup").exists()
    assert_array_equal(open_volume(tmp_path / "out").load(), open_volume(source).load())


def test_labels_get_their_metadata(tmp_path: Path) -> None:
    volume = Volume.from_array(np.ones((4, 5, 6), np.uint8), spacing=(1, 1, 1), unit="um")
    source = save_volume(volume, tmp_path / "mask.npy")
    target = tmp_path / "l.ome.zarr"
    assert convert(source, target, "--labels", "--spacing", "2,1,1", "--unit", "um") == 0
    judged = ImageLabel.from_zarr(zarr.open_group(str(target), mode="r"))
    assert judged.attributes.ome.image_label.colors[0].label_value == 1


def test_labels_stored_as_floats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    source = save_volume(Volume.from_array(whole), tmp_path / "whole.npy")
    assert convert(source, tmp_path / "no.ome.zarr", "--labels") == 2
    assert "--dtype" in capsys.readouterr().err
    assert convert(source, tmp_path / "l.ome.zarr", "--labels", "--dtype", "uint16") == 0
    labels = open_volume(tmp_path / "l.ome.zarr")
    assert isinstance(labels, Labels)
    assert labels.dtype == np.uint16
    assert_array_equal(labels.load(), whole)
    half = save_volume(Volume.from_array(whole / 2), tmp_path / "half.npy")
    assert convert(half, tmp_path / "h.ome.zarr", "--labels", "--dtype", "uint16") == 2
    assert "0.5" in capsys.readouterr().err
    assert not (tmp_path / "h.ome.zarr").exists()


def test_classes_survive_the_chain(tmp_path: Path) -> None:
    data = (np.arange(4 * 5 * 6) % 3).astype(np.uint8).reshape(4, 5, 6)
    like = Volume.from_array(data, spacing=(2, 1, 1), unit="um")
    classes = (LabelClass(1, "mito"), LabelClass(2, "er", (1, 2, 3)))
    save_volume(Labels.like(like, data, classes=classes), tmp_path / "a.ome.zarr")
    assert convert(tmp_path / "a.ome.zarr", tmp_path / "b.nii.gz") == 0
    assert convert(tmp_path / "b.nii.gz", tmp_path / "c.ome.zarr") == 0
    again = open_volume(tmp_path / "c.ome.zarr")
    assert isinstance(again, Labels)
    assert again.classes == classes


def test_a_part_is_chosen(tmp_path: Path) -> None:
    data = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    volume = Volume.from_array(data, axes="czyx", spacing=(1, 1, 1), unit="um")
    source = save_volume(volume, tmp_path / "i.ome.zarr")
    assert convert(source, tmp_path / "one.mrc", "--channel", 1) == 0
    assert_array_equal(open_volume(tmp_path / "one.mrc").load(), data[1].astype(np.uint8))
    assert convert(source, tmp_path / "none.mrc", "--channel", 7) == 2
    large = Volume.from_array(np.ones((300, 8, 8), np.uint8), spacing=(1, 1, 1), unit="um")
    source = save_volume(large, tmp_path / "l.ome.zarr")
    assert convert(source, tmp_path / "l.npy", "--level", 1) == 0
    assert open_volume(tmp_path / "l.npy").shape == open_volume(source).levels[0].shape


def test_answer_as_json_and_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make(tmp_path)
    assert main(["convert", "--json", str(source), str(tmp_path / "o.npy")]) == 0
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert answer["shape"] == [4, 5, 6]
    assert captured.err == ""
    assert main(["convert", str(source), str(tmp_path / "p.npy")]) == 0
    assert "4 x 5 x 6 (zyx) uint16, 2 x 1 x 1 nm" in capsys.readouterr().out


def test_crop_of_a_chain_lies_where_it_was(tmp_path: Path) -> None:
    source = open_volume(make(tmp_path))
    part = save_volume(source.crop(Box((1, 2, 3), (4, 5, 6))), tmp_path / "part.ome.zarr")
    assert convert(part, tmp_path / "part.nrrd") == 0
    assert open_volume(tmp_path / "part.nrrd").affine.origin == (2.0, 2.0, 3.0)
