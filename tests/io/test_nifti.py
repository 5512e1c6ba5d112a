"""NIfTI: what every format promises, and nibabel and SimpleITK as judges."""

import gzip
import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lamella.core.errors import (
    AxesError,
    GeometryError,
    InputError,
    LamellaError,
    UnreadableFileError,
)
from lamella.io.format import OpenOptions, SaveOptions, open_volume, save_volume
from lamella.io.nifti_labels import label_table
from lamella.testing.io import FormatContract
from lamella.testing.strategies import volumes
from lamella.volume import Affine, LabelClass, Labels, Volume

nib = pytest.importorskip("nibabel")
sitk = pytest.importorskip("SimpleITK")

_ALL = (
    "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64",
)  # fmt: skip


class TestNifti(FormatContract):
    format_id = "nifti"
    suffix = ".nii"
    dtypes = _ALL
    axes = ("zyx", "yx", "tzyx", "czyx", "tczyx", "cyx", "tyx")
    units = ("nm", "um", "mm", "voxel")
    frames = ("stage", "RAS")
    directions = "rotations"
    keeps_channel_names = True
    keeps_label_classes = True


class TestNiftiGz(TestNifti):
    suffix = ".nii.gz"
    is_lazy = False


def _world_xyz(volume: Volume, index_zyx: Any) -> Any:
    """World position in (x, y, z) RAS."""
    return volume.affine.apply(index_zyx)[..., ::-1]


def _save_nib(path: Path, data: Any, affine: Any, **fields: Any) -> Path:
    image = nib.Nifti1Image(data, affine)
    for name, value in fields.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def _oblique() -> Any:
    angle = 0.3
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn * [-0.9765625, 0.9765625, 2.0]
    affine[:3, 3] = [249.5, -120.25, 33.0]
    return affine


@given(data=st.data())
def test_judges_agree_on_world_positions(tmp_path: Path, data: st.DataObject) -> None:
    volume = data.draw(
        volumes(dtypes=("int16",), axes=("zyx",), units=("mm",), frames=("RAS",),
                directions="rotations")
    )  # fmt: skip
    path = save_volume(volume, tmp_path / "drawn.nii", SaveOptions(overwrite=True))
    index = np.array([data.draw(st.integers(0, n - 1)) for n in volume.shape])
    here = _world_xyz(volume, index)
    reach = np.abs(volume.affine.origin).max() + np.dot(volume.shape, volume.spacing.values)
    image = nib.load(path)
    there = nib.affines.apply_affine(image.affine, index[::-1])
    assert_allclose(there, here, atol=1e-6 * reach)
    assert_array_equal(np.asarray(image.dataobj).T, volume.load())
    judged = sitk.ReadImage(str(path))
    lps = judged.TransformIndexToPhysicalPoint([int(i) for i in index[::-1]])
    assert_allclose(np.array(lps) * [-1, -1, 1], here, atol=3e-6 * reach)
    assert_array_equal(sitk.GetArrayFromImage(judged), volume.load())


@pytest.mark.parametrize("frame", ["RAS", "stage"])
def test_judges_accept_stage_nanometres(tmp_path: Path, frame: Any) -> None:
    volume = Volume.from_array(
        np.arange(60, dtype=np.uint16).reshape(3, 4, 5),
        spacing=(10.0, 5.5, 5.5),
        unit="nm",
        origin=(100.0, 200.0, 300.0),
        frame=frame,
    )
    path = save_volume(volume, tmp_path / "em.nii.gz")
    image = nib.load(path)
    assert_allclose(image.header.get_zooms(), (5.5e-6, 5.5e-6, 1e-5), rtol=1e-6)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert_allclose(image.get_sform(), image.get_qform(), atol=1e-12)
    assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), volume.load())
    again = open_volume(path)
    assert again.affine == volume.affine
    assert again.unit == "nm"


def test_nan_and_all_labels_types_survive(tmp_path: Path) -> None:
    labels = Labels.from_array(
        np.array([[[0, 1], [2**63 + 5, 2**64 - 1]]], np.uint64),
        spacing=(1, 1, 1),
        unit="um",
        classes=(LabelClass(1, "Zellkern é", (1, 2, 3)),),
        is_instance=True,
    )
    again = open_volume(save_volume(labels, tmp_path / "ids.nii.gz"))
    assert isinstance(again, Labels)
    assert again.is_instance
    assert again.classes == labels.classes
    assert_array_equal(again.load(), labels.load())
    assert again.dtype == np.uint64


def test_record_is_ignored_once_another_program_moved_the_volume(tmp_path: Path) -> None:
    volume = Volume.from_array(np.zeros((3, 4, 5), np.uint8), spacing=(2, 1, 1), unit="um")
    path = save_volume(volume, tmp_path / "a.nii")
    image = nib.load(path)
    moved = image.affine.copy()
    moved[0, 3] += 0.5
    image = nib.Nifti1Image(np.asarray(image.dataobj), moved, image.header)
    nib.save(image, tmp_path / "b.nii")
    again = open_volume(tmp_path / "b.nii")
    assert again.unit == "mm"
    assert again.affine.origin == (0.0, 0.0, 0.5)
    assert "record_stale" in [note.code for note in again.notes]


def test_oblique_spacing_is_exact(tmp_path: Path) -> None:
    path = _save_nib(tmp_path / "o.nii", np.zeros((4, 5, 6), np.int16), _oblique())
    volume = open_volume(path)
    assert volume.affine.spacing == (2.0, 0.9765625, 0.9765625)
    assert_allclose(volume.affine.matrix[:3, :3][::-1, ::-1], _oblique()[:3, :3], rtol=1e-6)


def test_decimal_spacing_is_what_was_written(tmp_path: Path) -> None:
    path = _save_nib(tmp_path / "d.nii", np.zeros((4, 5, 6), np.int16), np.diag([0.1, 0.1, 0.3, 1]))
    assert open_volume(path).affine.spacing == (0.3, 0.1, 0.1)


@pytest.mark.parametrize(
    ("code", "unit", "factor"), [(2, "mm", 1), (3, "um", 1), (1, "mm", 1000), (0, "mm", 1)]
)
def test_units(tmp_path: Path, code: int, unit: str, factor: float) -> None:
    path = _save_nib(
        tmp_path / "u.nii", np.zeros((4, 5, 6), np.int16), np.diag([2, 2, 3, 1]), xyzt_units=code
    )
    volume = open_volume(path)
    assert volume.unit == unit
    assert volume.affine.spacing == (3 * factor, 2 * factor, 2 * factor)
    assert ("unit_assumed" in [n.code for n in volume.notes]) == (code == 0)


def test_forms_that_disagree_are_noted_with_the_distance(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.diag([2.0, 2, 2, 1]))
    other = np.diag([2.0, 2, 2, 1])
    other[0, 3] = 7.5
    image.set_qform(other, 1)
    image.set_sform(np.diag([2.0, 2, 2, 1]), 1)
    nib.save(image, tmp_path / "x.nii")
    volume = open_volume(tmp_path / "x.nii")
    note = next(n for n in volume.notes if n.code == "forms_disagree")
    assert "7.5" in note.message
    assert volume.affine.origin == (0.0, 0.0, 0.0)


def test_qform_alone_and_no_form_at_all(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), None)
    image.set_qform(_oblique(), 1)
    image.set_sform(None, 0)
    nib.save(image, tmp_path / "q.nii")
    volume = open_volume(tmp_path / "q.nii")
    assert_allclose(volume.affine.matrix[:3, :3][::-1, ::-1], _oblique()[:3, :3], atol=1e-5)
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), None)
    image.header["pixdim"][1:4] = 1.5, 2.5, 3.5
    nib.save(image, tmp_path / "n.nii")
    volume = open_volume(tmp_path / "n.nii")
    assert volume.affine == Affine.diagonal((3.5, 2.5, 1.5), frame="RAS")
    assert "orientation_missing" in [n.code for n in volume.notes]
    # Programs differ on where such axes run (ITK: LPS, nibabel: LAS), hence the note.
    judged = sitk.ReadImage(str(tmp_path / "n.nii"))
    assert_allclose(judged.GetSpacing(), (1.5, 2.5, 3.5))


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_spacing_without_value(tmp_path: Path, value: float) -> None:
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), None)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    image.header["pixdim"][1:4] = 2.0, value, 3.0
    path = tmp_path / "p.nii"
    with path.open("wb") as stream:
        image.header["vox_offset"] = 352
        image.header["magic"] = b"n+1"
        image.header.write_to(stream)
        stream.write(b"\0" * (352 - stream.tell() + 240))
    volume = open_volume(path)
    assert volume.affine.spacing == (3.0, 1.0, 2.0)
    assert "spacing_missing" in [n.code for n in volume.notes]


@pytest.mark.parametrize("bad", ["nan", "singular", "zero"])
def test_impossible_affine(tmp_path: Path, bad: str) -> None:
    path = _save_nib(tmp_path / "b.nii", np.zeros((4, 5, 6), np.int16), np.diag([2, 2, 3, 1]))
    content = bytearray(path.read_bytes())
    row = {"nan": (np.nan, 0, 0, 0), "singular": (0, 2, 0, 0), "zero": (0, 0, 0, 0)}[bad]
    content[280:296] = struct.pack("<4f", *row)
    content[252:254] = b"\0\0"
    path.write_bytes(bytes(content))
    with pytest.raises(GeometryError) as caught:
        open_volume(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_scaled_lazily(tmp_path: Path) -> None:
    data = np.arange(-60, 60, dtype=np.int16).reshape(4, 5, 6)
    image = nib.Nifti1Image(data, np.eye(4))
    image.header.set_slope_inter(0.5, 3.0)
    nib.save(image, tmp_path / "s.nii")
    # nibabel rescales what it saves; the file's own numbers decide.
    judged = np.asarray(nib.load(tmp_path / "s.nii").dataobj)
    volume = open_volume(tmp_path / "s.nii")
    assert volume.dtype == np.float32
    assert_allclose(volume.load(), judged.T, rtol=1e-6)
    assert_array_equal(volume.data[1:2, 2:4], volume.load()[1:2, 2:4])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd"])
def test_what_is_read_may_be_changed(tmp_path: Path, suffix: str) -> None:
    data = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path = save_volume(Volume.from_array(data.copy()), tmp_path / f"a{suffix}")
    volume = open_volume(path)
    values = volume.load()
    values[:] = 0
    assert_array_equal(volume.load(), data)


def test_whole_scale_keeps_integers(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(120, dtype=np.uint16).reshape(4, 5, 6), np.eye(4))
    path = tmp_path / "hu.nii"
    nib.save(image, path)
    content = bytearray(path.read_bytes())
    content[112:120] = struct.pack("<2f", 1.0, -1024.0)
    path.write_bytes(bytes(content))
    volume = open_volume(path)
    assert volume.dtype == np.int32
    assert volume.load()[0, 0, 0] == -1024
    assert_array_equal(volume.load(), np.asarray(nib.load(path).dataobj).T)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".img", ".hdr"])
def test_versions_orders_pairs(tmp_path: Path, order: str, version: int, ending: str) -> None:
    data = np.random.default_rng(0).integers(0, 1000, (4, 5, 6)).astype("i2")
    is_pair = ending in (".img", ".hdr")
    name = f"Nifti{version}" + ("Pair" if is_pair else "Image")
    header = getattr(nib, f"Nifti{version}Header")(endianness=order)
    header.set_data_dtype(data.dtype)
    image = getattr(nib, name)(data, _oblique(), header)
    nib.save(image, tmp_path / f"v{'.img' if is_pair else ending}")
    volume = open_volume(tmp_path / f"v{ending}")
    assert_array_equal(volume.load(), data.T)
    assert volume.dtype == np.dtype("i2")
    assert_allclose(volume.affine.matrix[:3, 3][::-1], _oblique()[:3, 3])


def test_half_a_pair(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(np.zeros((4, 5, 6), np.int16), np.eye(4)), tmp_path / "v.img")
    (tmp_path / "v.img").unlink()
    with pytest.raises(UnreadableFileError, match=r"\.img file"):
        open_volume(tmp_path / "v.hdr")


def test_analyze(tmp_path: Path) -> None:
    data = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
    image = nib.AnalyzeImage(data, np.diag([-2.0, 3, 4, 1]))
    nib.save(image, tmp_path / "a.img")
    volume = open_volume(tmp_path / "a.hdr")
    assert_array_equal(volume.load(), data.T)
    assert volume.affine.spacing == (4.0, 3.0, 2.0)
    assert "orientation_missing" in [n.code for n in volume.notes]


def test_rgb_becomes_channels(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 255, (4, 5, 6, 3)).astype(np.uint8)
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    packed = data.copy().view(kind).reshape(4, 5, 6)
    nib.save(nib.Nifti1Image(packed, np.eye(4)), tmp_path / "c.nii.gz")
    volume = open_volume(tmp_path / "c.nii.gz")
    assert str(volume.axes) == "czyx"
    assert volume.channel_names == ("R", "G", "B")
    assert_array_equal(volume.load(), data.transpose(3, 2, 1, 0))


@pytest.mark.parametrize(
    ("shape", "intent", "axes", "given"),
    [
        ((4, 5, 6, 1), 0, "zyx", None),
        ((4, 5, 6, 7), 0, "tzyx", None),
        ((4, 5, 6, 7), 0, "czyx", "czyx"),
        ((4, 5, 6, 7), 1007, "czyx", None),
        ((4, 5, 6, 1, 3), 1007, "czyx", None),
        ((4, 5, 6, 2, 3), 0, "tczyx", None),
        ((4, 5), 0, "yx", None),
        ((4, 5, 6), 0, "tyx", "tyx"),
    ],
)
def test_axes(tmp_path: Path, shape: Any, intent: int, axes: str, given: str | None) -> None:
    data = np.random.default_rng(0).integers(0, 1000, shape).astype("i2")
    path = _save_nib(tmp_path / "x.nii", data, np.diag([1.0, 2, 3, 1]), intent_code=intent)
    volume = open_volume(path, OpenOptions(axes=given))
    assert str(volume.axes) == axes
    expected = data.squeeze().T if axes != "tczyx" else data.T.swapaxes(0, 1)
    assert_array_equal(volume.load(), expected)
    assert volume.affine.spacing == (3.0, 2.0, 1.0)[-volume.axes.n_spatial :]


def test_too_many_axes_and_complex(tmp_path: Path) -> None:
    path = _save_nib(tmp_path / "x.nii", np.zeros((2, 2, 2, 2, 2, 2), np.int16), np.eye(4))
    with pytest.raises(AxesError, match="more than one axis"):
        open_volume(path)
    path = _save_nib(tmp_path / "z.nii", np.zeros((2, 2, 2), np.complex64), np.eye(4))
    with pytest.raises(InputError, match="complex64"):
        open_volume(path)


def test_claimed_size_takes_no_memory(tmp_path: Path) -> None:
    path = _save_nib(tmp_path / "x.nii", np.zeros((4, 5, 6), np.int16), np.eye(4))
    content = bytearray(path.read_bytes())
    content[40:56] = struct.pack("<8h", 3, 32767, 32767, 32767, 1, 1, 1, 1)
    path.write_bytes(bytes(content))
    with pytest.raises(UnreadableFileError, match="describes"):
        open_volume(path)
    (tmp_path / "x.nii.gz").write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(UnreadableFileError, match="describes"):
        open_volume(tmp_path / "x.nii.gz")


def test_large_extents_become_nifti2(tmp_path: Path) -> None:
    volume = Volume.from_array(np.zeros((2, 2, 40_000), np.uint8), spacing=(1, 1, 1), unit="nm")
    path = save_volume(volume, tmp_path / "long.nii")
    assert isinstance(nib.load(path), nib.Nifti2Image)
    assert open_volume(path).shape == (2, 2, 40_000)


def test_pairs_are_not_written(tmp_path: Path) -> None:
    volume = Volume.from_array(np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(InputError, match="one file"):
        save_volume(volume, tmp_path / "a.img")
    assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_sheared_affine_is_kept_and_noted(tmp_path: Path) -> None:
    affine = np.array([[1, 0, 0.4, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]])
    path = _save_nib(tmp_path / "s.nii", np.zeros((4, 5, 6), np.int16), affine, qform_code=0)
    volume = open_volume(path)
    assert "sheared" in [n.code for n in volume.notes]
    assert_allclose(volume.affine.matrix[:3, :3][::-1, ::-1], affine[:3, :3], atol=1e-7)
    again = open_volume(save_volume(replace(volume, notes=()), tmp_path / "again.nii"))
    assert again.same_grid(volume)


_NIBABEL = Path(nib.__file__).parent / "tests" / "data"
_EXPECTED = {
    "anatomical.nii": ("zyx", (25, 41, 33)),
    "example4d.nii.gz": ("tzyx", (2, 24, 96, 128)),
    "example_nifti2.nii.gz": ("tzyx", (2, 12, 20, 32)),
    "functional.nii": ("tzyx", (20, 3, 21, 17)),
    "reoriented_anat_moved.nii": ("zyx", (22, 26, 21)),
    "resampled_anat_moved.nii": ("zyx", (3, 21, 17)),
    "standard.nii.gz": ("zyx", (7, 5, 4)),
}


@pytest.mark.parametrize("name", sorted(_EXPECTED))
def test_nibabels_own_images(name: str) -> None:
    volume = open_volume(_NIBABEL / name)
    axes, shape = _EXPECTED[name]
    assert (str(volume.axes), volume.shape) == (axes, shape)
    image = nib.load(_NIBABEL / name)
    assert_allclose(volume.load(), np.asarray(image.dataobj).T, rtol=1e-6)
    matrix = np.eye(4)
    matrix[:3, :3] = volume.affine.matrix[:3, :3][::-1, ::-1]
    matrix[:3, 3] = volume.affine.matrix[:3, 3][::-1]
    assert_allclose(matrix, image.affine, atol=1e-5)


def test_every_other_file_of_nibabel_is_one_clear_error() -> None:
    refused = 0
    for path in sorted(_NIBABEL.iterdir()):
        if path.is_dir() or path.name in _EXPECTED or path.suffix in (".dcm", ".mnc"):
            continue
        with pytest.raises(LamellaError) as caught:
            open_volume(path, OpenOptions(format="nifti"))
        assert caught.value.hint, path.name
        refused += 1
    assert refused > 40


def test_rgb_of_real_data(data_dir: Path) -> None:
    found = 0
    for path in sorted((data_dir / "medical").rglob("*.nii.gz")):
        volume = open_volume(path)
        judged = nib.load(path)
        expected = np.asarray(judged.dataobj)
        if expected.dtype.names:
            expected = np.stack([expected[name] for name in expected.dtype.names], 0)
            expected = np.moveaxis(expected, 0, -1)
            assert volume.channel_names[:3] == ("R", "G", "B")
            assert_array_equal(volume.load(), expected.transpose(3, 2, 1, 0))
            found += 1
        else:
            assert volume.shape == expected.T.shape
        corner = np.array(volume.spatial_shape) - 1
        there = nib.affines.apply_affine(judged.affine, corner[::-1])
        assert_allclose(_world_xyz(volume, corner), there, atol=1e-3)
    assert found >= 1


def test_class_names_of_other_programs(data_dir: Path) -> None:
    """TotalSegmentator leaves a label table in the header: names and colours come along."""
    folder = data_dir / "medical" / "totalsegmentator"
    labels = open_volume(folder / "spine_report" / "example_ct_report" / "totalseg.nii.gz")
    assert isinstance(labels, Labels)
    assert labels.class_name(33) == "vertebrae_T11"
    assert labels.classes[0] == LabelClass(26, "vertebrae_S1", (0, 0, 255))


def test_damaged_label_tables_are_ignored() -> None:
    table = (
        b'<LabelTable><Label Key="x">a</Label><Label Key="2" Red="9" Green="0" Blue="0">b</Label>'
    )
    assert label_table(table + b"</LabelTable>") == ()
    assert label_table(table) == ()
