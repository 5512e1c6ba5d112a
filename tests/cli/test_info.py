"""``lamella info`` on every file there is: right facts or one clear error, never a traceback."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest

from lamella.cli import main
from lamella.io.format import save_volume
from lamella.volume import Affine, Axes, LabelClass, Labels, Volume


def info(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, list[dict[str, Any]]]:
    code = main(["info", "--json", *map(str, words)])
    answer = capsys.readouterr().out
    # Strict: NaN and Infinity are no JSON.
    return code, json.loads(answer, parse_constant=lambda name: pytest.fail(name))


# path: axes, shape, dtype, spacing, unit, orientation
FACTS: dict[str, tuple[str, list[int], str, list[float], str, str]] = {
    "cryoet/tardis/data_type/mrc3D.mrc": (
        "zyx", [78, 64, 32], "uint8", [2.32] * 3, "nm", "+x +y +z",
    ),
    "cryoet/tardis/data_type/tif3D.tif": (
        "zyx", [78, 64, 32], "uint8", [1.0] * 3, "voxel", "+x +y +z",
    ),
    "cryoet/mrcfile/EMD-3197.map.bz2": (
        "zyx", [20, 20, 20], "float32", [1.14] * 3, "nm", "+x +y +z",
    ),
    "cryoet/mrcfile/emd_3197.map.gz": (
        "zyx", [20, 20, 20], "float32", [1.14] * 3, "nm", "+x +y +z",
    ),
    "cryoet/cryocat/tilt_stack.mrc": (
        "zyx", [4, 240, 232], "float32", [1.0] * 3, "voxel", "+x +y +z",
    ),
    "cryoet/cylindra/13pf_MT.tif": (
        "zyx", [36, 206, 94], "uint8", [1.052] * 3, "nm", "+x +y +z",
    ),
    "em/axondeepseg_sem/sub-rat1/micr/sub-rat1_sample-data1_SEM.png": (
        "yx", [924, 1278], "uint8", [0.18] * 2, "um", "+x +y",
    ),
    "em/cellmap_mini/jrc_vnc-a/jrc_vnc-a.zarr/recon-1/em/fibsem-uint8": (
        "zyx", [20, 1024, 1024], "uint8", [50.0, 4.6, 4.6], "nm", "+x +y +z",
    ),
    "em/cellmap_mini/jrc_vnc-a/jrc_vnc-a.zarr/recon-1/labels/groundtruth/crop101/mito": (
        "zyx", [20, 768, 768], "uint32", [50.0, 2.3, 2.3], "nm", "+x +y +z",
    ),
    "fluorescence/plantseg/sample_ovule.h5": (
        "zyx", [32, 128, 128], "uint8", [0.235, 0.15, 0.15], "um", "+x +y +z",
    ),
    "fluorescence/dsb2018_D/420f43d21dba_bright.png": (
        "cyx", [3, 256, 320], "uint8", [1.0] * 2, "voxel", "+x +y",
    ),
    "medical/dcm2niix_ref/totalseg_0.nii.gz": (
        "zyx", [20, 512, 512], "int32", [2.0, 0.9765625, 0.9765625], "mm", "LAS",
    ),
    "medical/totalsegmentator/example_ct_dicom": (
        "zyx", [20, 512, 512], "int16", [2.0, 0.9765625, 0.9765625], "mm", "LPS",
    ),
    "medical/totalsegmentator/example_ct.nii.gz": (
        "zyx", [112, 101, 122], "int32", [3.0] * 3, "mm", "RAS",
    ),
    "medical/pyradiomics/brain1_image.nrrd": (
        "zyx", [25, 256, 256], "int16", [6.5, 0.78125, 0.78125], "mm", "LAS",
    ),
    "odd_formats/pynrrd/BallBinary30x30x30.nhdr": (
        "zyx", [30, 30, 30], "int16", [1.0] * 3, "mm", "LPS",
    ),
    "odd_formats/neuroglancer_testdata/datasource/nifti/example_nifti2.nii.gz": (
        "tzyx", [2, 12, 20, 32], "int16", [2.2, 2.0, 2.0], "mm", "LAS",
    ),
    "odd_formats/viv/fixtures/multi-channel.ome.tif": (
        "cyx", [3, 167, 439], "int8", [1.0] * 2, "voxel", "+x +y",
    ),
}  # fmt: skip


def test_known_files(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, described = info(capsys, "--no-stats", *(data_dir / path for path in FACTS))
    assert code == 0
    for item, (axes, shape, dtype, spacing, unit, orientation) in zip(
        described, FACTS.values(), strict=True
    ):
        name = item["path"]
        assert item["axes"] == axes, name
        assert item["shape"] == shape, name
        assert item["dtype"] == dtype, name
        assert item["spacing"]["unit"] == unit, name
        np.testing.assert_allclose(item["spacing"]["values"], spacing, rtol=1e-4, err_msg=name)
        assert item["orientation"] == orientation, name
        if unit == "voxel":
            assert any(note["code"].startswith("spacing") for note in item["notes"]), name


def _check_sweep(code: int, described: list[dict[str, Any]], files: list[Path]) -> None:
    assert [item["path"] for item in described] == [str(path) for path in files]
    assert code == 2
    for item in described:
        problem = item.get("problem")
        if problem is not None:
            name = item["path"]
            assert problem["code"] != "internal_error", (name, problem)
            assert problem["message"], name
            assert problem["hint"], (name, problem)
            assert "Traceback" not in problem["message"], name
        elif "shape" in item:
            assert min(item["shape"]) > 0
            assert all(value > 0 for value in item["spacing"]["values"])
            assert item["statistics"]["n_voxels"] > 0
        else:
            assert item["contents"], item["path"]


def _files(*folders: Path) -> list[Path]:
    return [p for folder in folders for p in sorted(folder.rglob("*")) if p.is_file()]


@pytest.mark.slow
def test_every_data_file(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("cryoet", "odd_formats", "medical", "em", "fluorescence")
    files = _files(*(data_dir / name for name in names))
    assert len(files) > 1000
    code, described = info(capsys, *files)
    _check_sweep(code, described, files)
    readable = [item for item in described if "shape" in item]
    assert len(readable) > 500
    images = (".mrc", ".rec", ".map", ".tif", ".png", ".jpg", ".nii.gz", ".nrrd", ".h5")
    failed = [
        Path(item["path"]).name
        for item in described
        if "problem" in item and item["path"].endswith(images)
    ]
    # One spatial axis, twice; everything else that is named like an image is read.
    assert sorted(failed) == ["test1d_ascii.nrrd", "test_customFields.nrrd"]


def test_every_file_of_pydicom_and_nibabel(capsys: pytest.CaptureFixture[str]) -> None:
    folders = (
        Path(pydicom.__file__).parent / "data" / "test_files",
        Path(nibabel.__file__).parent / "tests" / "data",
    )
    files = _files(*folders)
    assert len(files) > 200
    code, described = info(capsys, *files)
    _check_sweep(code, described, files)
    by_name = {Path(item["path"]).name: item for item in described}
    assert by_name["example4d.nii.gz"]["shape"] == [2, 24, 96, 128]
    assert by_name["rtdose.dcm"]["shape"] == [15, 10, 10]
    assert by_name["anatomical.nii"]["orientation"] == "LAS"


def test_every_folder(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Folders of slices, DICOM, zarr in all its parts, and folders of nothing in particular."""
    names = ("cryoet", "odd_formats", "medical", "em", "fluorescence")
    chunked = (".ocdbt", ".icechunk")
    folders = [
        p
        for name in names
        for p in sorted((data_dir / name).rglob("*"))
        if p.is_dir() and not any(part.isdigit() or part.endswith(chunked) for part in p.parts)
    ]
    code, described = info(capsys, "--no-stats", *folders)
    assert code == 2
    for item in described:
        if "problem" in item:
            assert item["problem"]["code"] != "internal_error", item
            assert item["problem"]["hint"], item
    by_path = {Path(item["path"]).relative_to(data_dir).as_posix(): item for item in described}
    assert by_path["em/drosophila_vnc/stack1/raw"]["shape"] == [20, 1024, 1024]
    assert by_path["em/cellmap_mini/jrc_vnc-a/jrc_vnc-a.zarr"]["shape"] == [20, 1024, 1024]
    crop = by_path["em/cellmap_mini/jrc_vnc-a/jrc_vnc-a.zarr/recon-1/labels/groundtruth/crop101"]
    assert [entry["id"] for entry in crop["contents"]] == ["mito", "pm"]


def test_folders_of_the_zarr_zoo(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zoo = data_dir / "odd_formats" / "neuroglancer_testdata" / "datasource"
    code, described = info(capsys, zoo / "zarr" / "zarr_v2" / "from_zarr-python" / "data.zarr")
    assert code == 0
    assert [entry["shape"] for entry in described[0]["contents"]][:2] == [[2, 2], [3, 3]]
    assert described[0]["notes"][0]["code"] == "choose"
    code, described = info(capsys, zoo / "n5" / "n5_viewer_multiscale_modern")
    assert code == 2
    assert "N5" in described[0]["problem"]["message"]


def _volume(**fields: Any) -> Volume:
    data = np.arange(4 * 5 * 6, dtype=np.uint16).reshape(4, 5, 6)
    affine = Affine((2.0, 1.5, 1.0), (10.0, 0.0, -3.0), Affine.diagonal((1,) * 3).direction)
    return Volume(data, Axes.parse("zyx"), affine, "nm", **fields)


def test_facts_of_a_volume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_volume(_volume(name="cell"), tmp_path / "cell.ome.zarr")
    code, (item,) = info(capsys, path)
    assert code == 0
    assert item["kind"] == "image"
    assert item["origin"] == [10.0, 0.0, -3.0]
    assert item["extent"] == [8.0, 7.5, 6.0]
    assert item["frame"] == "stage"
    statistics = item["statistics"]
    assert (statistics["min"], statistics["max"], statistics["mean"]) == (0, 119, 59.5)
    assert statistics["source"] == "all voxels"
    assert item["notes"] == []
    _, (item,) = info(capsys, path, "--spacing", "40,20,20", "--unit", "angstrom")
    assert item["spacing"] == {"values": [4.0, 2.0, 2.0], "unit": "nm"}
    _, (item,) = info(capsys, path, "--no-stats")
    assert "statistics" not in item


def test_labels_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volume = _volume()
    labels = Labels.like(volume, volume.load() % 3, classes=(LabelClass(1, "mito"),))
    path = save_volume(labels, tmp_path / "l.ome.zarr")
    _, (item,) = info(capsys, path)
    assert item["kind"] == "labels"
    assert item["classes"] == [{"value": 1, "name": "mito"}]
    assert item["statistics"]["n_nonzero"] == 80
    assert main(["info", str(path)]) == 0
    assert "66.667% foreground" in capsys.readouterr().out


def test_what_is_odd_about_the_voxels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    constant = Volume.from_array(np.full((3, 4), 7, np.uint8))
    broken = Volume.from_array(np.array([[1.0, np.nan], [np.inf, 2.0]], np.float32))
    nothing = Volume.from_array(np.full((3, 4), np.nan, np.float32))
    paths = [
        save_volume(volume, tmp_path / f"{name}.npy")
        for name, volume in (("constant", constant), ("broken", broken), ("nothing", nothing))
    ]
    code, items = info(capsys, *paths)
    assert code == 0
    codes = [[note["code"] for note in item["notes"]] for item in items]
    assert codes[0][-1] == "constant"
    assert codes[1][-1] == "not_finite"
    assert items[1]["statistics"]["n_nan"] == 1
    assert items[1]["statistics"]["n_infinite"] == 1
    assert items[1]["statistics"]["mean"] == 1.5
    assert items[2]["statistics"]["mean"] is None
    assert main(["info", *map(str, paths)]) == 0
    text = capsys.readouterr().out
    assert "all voxels are 7" in text
    assert "no finite voxel" in text


def test_bad_paths_do_not_hide_good_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = save_volume(_volume(), tmp_path / "good.npy")
    empty = tmp_path / "empty.mrc"
    empty.touch()
    code, items = info(capsys, tmp_path / "nothing.tif", good, empty)
    assert code == 2
    assert items[0]["problem"]["code"] == "not_found"
    assert "shape" in items[1]
    assert items[2]["problem"]["code"] == "unreadable_file"
    code = main(["info", str(empty), str(good)])
    text = capsys.readouterr().out
    assert code == 2
    assert "error" in text
    assert "4 x 5 x 6 (zyx)" in text


def test_damaged_voxels_under_a_sound_header(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_volume(_volume(), tmp_path / "cell.ome.zarr")
    (chunk,) = [p for p in (path / "0" / "c").rglob("*") if p.is_file()]
    chunk.write_bytes(b"damaged")
    code, (item,) = info(capsys, path)
    assert code == 2
    assert item["shape"] == [4, 5, 6]
    assert item["problem"]["code"] == "unreadable_file"


def test_text_is_aligned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_volume(_volume(), tmp_path / "cell.ome.zarr")
    assert main(["info", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(path)
    columns = {len(line) - len(line[2:].lstrip().split("  ", 1)[1].lstrip()) for line in lines[1:]}
    assert len(columns) == 1


def test_options_that_make_no_sense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_volume(_volume(), tmp_path / "cell.npy")
    assert main(["info", str(path), "--unit", "nm"]) == 2
    assert "--spacing" in capsys.readouterr().err
    code, (item,) = info(capsys, path, "--level", 3)
    assert code in (0, 2)
    assert "problem" in item or item["shape"] == [4, 5, 6]
