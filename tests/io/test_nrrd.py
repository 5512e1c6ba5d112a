"""NRRD: what every format promises, and SimpleITK and pynrrd as judges."""

import bz2
import gzip
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
from lamella.io.frames import orientation_code
from lamella.testing.io import FormatContract, ReaderContract
from lamella.testing.strategies import volumes
from lamella.volume import LabelClass, Labels, Volume

nrrd = pytest.importorskip("nrrd")
sitk = pytest.importorskip("SimpleITK")

_DATA = np.random.default_rng(5).integers(-3000, 3000, (3, 4, 5)).astype("<i2")
_HEAD = """NRRD0005
# a comment
type: short
dimension: 3
space: {space}
sizes: 5 4 3
space directions: (0.5,0,0) (0,-0.5,0) (0,0,2)
kinds: domain domain domain
endian: little
space origin: (-10,20,5)
"""


class TestNrrd(FormatContract):
    format_id = "nrrd"
    suffix = ".nrrd"
    dtypes = (
        "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64",
        "float32", "float64",
    )  # fmt: skip
    axes = ("zyx", "yx", "tzyx", "czyx", "tczyx", "cyx", "tyx")
    units = ("nm", "um", "mm", "voxel")
    frames = ("stage", "RAS")
    directions = "rotations"
    keeps_channel_names = True
    keeps_label_classes = True


class TestDetached(ReaderContract):
    format_id = "nrrd"
    suffix = ".nhdr"

    def make_example(self, folder: Path) -> Path:
        (folder / "voxels.raw").write_bytes(_DATA.tobytes())
        return _write(folder / "a.nhdr", "encoding: raw\ndata file: voxels.raw\n", b"")

    def test_truncated(self, tmp_path: Path) -> None:
        path = self.make_example(tmp_path)
        (tmp_path / "voxels.raw").write_bytes(_DATA.tobytes()[:-1])
        self._refuses(path)


def _write(path: Path, lines: str, data: bytes, space: str = "left-posterior-superior") -> Path:
    path.write_bytes(_HEAD.format(space=space).encode() + lines.encode() + b"\n" + data)
    return path


@given(data=st.data())
def test_judges_agree_on_world_positions(tmp_path: Path, data: st.DataObject) -> None:
    volume = data.draw(
        volumes(dtypes=("int16",), axes=("zyx",), units=("mm",), frames=("RAS",),
                directions="rotations")
    )  # fmt: skip
    path = save_volume(volume, tmp_path / "drawn.nrrd", SaveOptions(overwrite=True))
    index = np.array([data.draw(st.integers(0, n - 1)) for n in volume.shape])
    here = volume.affine.apply(index)[::-1] * [-1, -1, 1]
    judged = sitk.ReadImage(str(path))
    lps = judged.TransformIndexToPhysicalPoint([int(i) for i in index[::-1]])
    reach = np.abs(volume.affine.origin).max() + np.dot(volume.shape, volume.spacing.values)
    assert_allclose(lps, here, atol=1e-9 * reach)
    assert_array_equal(sitk.GetArrayFromImage(judged), volume.load())
    values, header = nrrd.read(str(path), index_order="C")
    assert_array_equal(values, volume.load())
    assert header["space"] == "left-posterior-superior"


def test_spacing_keeps_every_digit(tmp_path: Path) -> None:
    volume = Volume.from_array(
        np.zeros((2, 3, 4), np.float32), spacing=(0.1, 1 / 3, 23.2e-7), unit="nm"
    )
    again = open_volume(save_volume(volume, tmp_path / "a.nrrd"))
    assert again.affine == volume.affine
    assert again.unit == "nm"


def test_vectors_and_time_as_itk_reads_them(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 255, (3, 4, 5, 6)).astype(np.uint8)
    volume = Volume.from_array(data, axes="czyx", spacing=(3, 2, 1), unit="mm", frame="RAS")
    path = save_volume(volume, tmp_path / "rgb.nrrd")
    judged = sitk.ReadImage(str(path))
    assert judged.GetNumberOfComponentsPerPixel() == 3
    assert_array_equal(sitk.GetArrayFromImage(judged), data.transpose(1, 2, 3, 0))
    assert_allclose(judged.GetSpacing(), (1, 2, 3))


def test_labels_keep_their_classes(tmp_path: Path) -> None:
    labels = Labels.from_array(
        np.array([[[0, 7]]], np.uint32),
        spacing=(1, 1, 1),
        unit="um",
        classes=(LabelClass(7, "Mitochondrium \\n ü", (9, 8, 7)),),
    )
    again = open_volume(save_volume(labels, tmp_path / "l.nrrd"))
    assert isinstance(again, Labels)
    assert again.classes == labels.classes


@pytest.mark.parametrize(
    ("space", "code"),
    [
        ("left-posterior-superior", "LAS"),
        ("LPS", "LAS"),
        ("right-anterior-superior", "RPS"),
        ("RAS", "RPS"),
        ("left-anterior-superior", "LPS"),
        ("3D-right-handed", "+x -y +z"),
    ],
)
def test_spaces(tmp_path: Path, space: str, code: str) -> None:
    path = _write(tmp_path / "a.nrrd", "encoding: raw\n", _DATA.tobytes(), space)
    volume = open_volume(path)
    assert orientation_code(volume.affine) == code
    assert_array_equal(volume.load(), _DATA)
    judged = sitk.ReadImage(str(path))
    if volume.affine.frame == "RAS":
        here = volume.affine.apply([2, 3, 4])[::-1] * [-1, -1, 1]
        assert_allclose(judged.TransformIndexToPhysicalPoint([4, 3, 2]), here)


@pytest.mark.parametrize(
    ("lines", "data"),
    [
        ("encoding: raw\n", _DATA.tobytes()),
        ("encoding: raw\nbyte skip: 7\n", b"1234567" + _DATA.tobytes()),
        ("encoding: raw\nbyteskip: -1\n", b"some other header" + _DATA.tobytes()),
        ("encoding: raw\nline skip: 2\nbyte skip: 1\n", b"a\nb\n!" + _DATA.tobytes()),
        ("encoding: gzip\n", gzip.compress(_DATA.tobytes())),
        ("encoding: gz\nline skip: 1\n", b"skipped\n" + gzip.compress(_DATA.tobytes())),
        ("encoding: gzip\nbyte skip: 3\n", gzip.compress(b"abc" + _DATA.tobytes())),
        ("encoding: gzip\nbyte skip: -1\n", gzip.compress(b"abcd" + _DATA.tobytes())),
        ("encoding: bz2\n", bz2.compress(_DATA.tobytes())),
        ("encoding: text\n", " ".join(str(v) for v in _DATA.ravel()).encode()),
        ("encoding: ascii\n", "\n".join(str(v) for v in _DATA.ravel()).encode()),
        ("encoding: hex\n", _DATA.tobytes().hex().encode()),
    ],
)
def test_encodings(tmp_path: Path, lines: str, data: bytes) -> None:
    volume = open_volume(_write(tmp_path / "a.nrrd", lines, data))
    assert_array_equal(volume.load(), _DATA)
    assert volume.affine.spacing == (2.0, 0.5, 0.5)
    assert volume.affine.origin == (5.0, -20.0, 10.0)


def test_big_endian_is_read_native(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.nrrd", "encoding: raw\n", _DATA.astype(">i2").tobytes())
    path.write_bytes(path.read_bytes().replace(b"endian: little", b"endian: big"))
    volume = open_volume(path)
    assert volume.dtype.isnative
    assert_array_equal(volume.load(), _DATA)


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
@pytest.mark.parametrize("is_list", [True, False])
def test_one_file_per_plane(tmp_path: Path, encoding: str, is_list: bool) -> None:
    for number, plane in enumerate(_DATA, start=1):
        data = plane.tobytes() if encoding == "raw" else gzip.compress(plane.tobytes())
        (tmp_path / f"p{number:03d}.raw").write_bytes(data)
    named = "LIST\np001.raw\np002.raw\np003.raw\n" if is_list else "p%03d.raw 1 3 1\n"
    path = _write(tmp_path / "a.nhdr", f"encoding: {encoding}\ndata file: {named}", b"")
    assert_array_equal(open_volume(path).load(), _DATA)
    (tmp_path / "p002.raw").write_bytes(b"")
    with pytest.raises(UnreadableFileError):
        open_volume(path).load()
    (tmp_path / "p002.raw").unlink()
    with pytest.raises(UnreadableFileError, match=r"p002\.raw"):
        open_volume(path)


@pytest.mark.parametrize("name", ["/etc/hostname", "../secret.raw", "a/../../b.raw", "C:/x.raw"])
def test_data_files_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path / "a.nhdr", f"encoding: raw\ndata file: {name}\n", b"")
    with pytest.raises(InputError, match="outside its own folder"):
        open_volume(path)


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("type: short", "type: block", InputError),
        ("type: short", "typ: short", UnreadableFileError),
        ("sizes: 5 4 3", "sizes: 5 4", UnreadableFileError),
        ("sizes: 5 4 3", "sizes: 5 4 -3", UnreadableFileError),
        ("sizes: 5 4 3", "sizes: 5 4 x", UnreadableFileError),
        ("sizes: 5 4 3", "sizes: 99999999 99999999 99999999", UnreadableFileError),
        ("(0.5,0,0)", "(0,0,0)", GeometryError),
        ("(0.5,0,0)", "(nan,0,0)", GeometryError),
        ("(0.5,0,0)", "(0,0,1)", GeometryError),
        ("(0.5,0,0)", "(1e999,0,0)", GeometryError),
        ("(0.5,0,0)", "(0.5,0)", UnreadableFileError),
        ("(0.5,0,0) (0,-0.5,0) (0,0,2)", "none none none", AxesError),
        ("(-10,20,5)", "(-10,nan,5)", GeometryError),
        ("(-10,20,5)", "-10 20 5", UnreadableFileError),
        ("encoding: raw", "encoding: zrl", InputError),
        ("endian: little", "endian: middle", UnreadableFileError),
        ("dimension: 3", "dimension: 99", UnreadableFileError),
        ("kinds: domain domain domain", "kinds: domain", UnreadableFileError),
        ("space: left-posterior-superior", "space: nowhere", UnreadableFileError),
        ("space: left-posterior-superior", "space: LPST", InputError),
        ("endian: little", "endian: little\nendian: little", UnreadableFileError),
        ("endian: little", "endian: little\nnonsense", UnreadableFileError),
        ("endian: little", "endian: little\nline skip: 900", UnreadableFileError),
    ],
)
def test_invalid_headers(tmp_path: Path, old: str, new: str, error: type[Exception]) -> None:
    path = _write(tmp_path / "a.nrrd", "encoding: raw\n", _DATA.tobytes())
    content = path.read_bytes().decode("latin1")
    assert old in content
    path.write_bytes(content.replace(old, new).encode("latin1"))
    with pytest.raises(error) as caught:
        open_volume(path).load()
    assert isinstance(caught.value, LamellaError)
    assert caught.value.hint
    assert "a.nrrd" in caught.value.message


def test_space_units_and_spacings(tmp_path: Path) -> None:
    lines = 'encoding: raw\nspace units: "um" "um" "um"\n'
    volume = open_volume(_write(tmp_path / "a.nrrd", lines, _DATA.tobytes(), "scanner-xyz"))
    assert (volume.unit, volume.affine.frame) == ("um", "stage")
    head = (
        "NRRD0004\ntype: short\ndimension: 3\nsizes: 5 4 3\nspacings: 100 200 nan\n"
        'units: "nm" "nm" "um"\nencoding: raw\nendian: little\n\n'
    )
    (tmp_path / "b.nrrd").write_bytes(head.encode() + _DATA.tobytes())
    volume = open_volume(tmp_path / "b.nrrd")
    assert volume.unit == "nm"
    assert volume.affine.spacing == (1000.0, 200.0, 100.0)
    assert [note.code for note in volume.notes] == ["spacing_missing"]


def test_four_axes_without_kinds_need_a_word(tmp_path: Path) -> None:
    data = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    head = "NRRD0004\ntype: uchar\ndimension: 4\nsizes: 3 2 2 2\nencoding: raw\n\n"
    path = tmp_path / "a.nrrd"
    path.write_bytes(head.encode() + data.tobytes())
    with pytest.raises(AxesError) as caught:
        open_volume(path)
    assert "--axes" in str(caught.value.hint)
    volume = open_volume(path, OpenOptions(axes="tzyx"))
    assert_array_equal(volume.load(), data)


def test_planar_rgb_and_lists(tmp_path: Path) -> None:
    data = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    head = (
        "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 3 5 4\nkinds: RGB-color domain domain\n"
        "spacings: nan 0.5 0.25\nencoding: raw\n\n"
    )
    path = tmp_path / "a.nrrd"
    path.write_bytes(head.encode() + data.tobytes())
    volume = open_volume(path)
    assert str(volume.axes) == "cyx"
    assert volume.affine.spacing == (0.25, 0.5)
    assert_array_equal(volume.load(), data.transpose(2, 0, 1))


_ODD: dict[str, Any] = {
    "BallBinary30x30x30.nhdr": "ball",
    "BallBinary30x30x30.nrrd": "ball",
    "BallBinary30x30x30_bz2.nrrd": "ball",
    "BallBinary30x30x30_byteskip_minus_one.nhdr": "ball",
    "BallBinary30x30x30_byteskip_minus_one_nifti.nhdr": "ball",
    "BallBinary30x30x30_gz.nrrd": "ball",
    "BallBinary30x30x30_gz_byteskip_minus_one.nrrd": "ball",
    "BallBinary30x30x30_gz_lineskip.nrrd": "ball",
    "BallBinary30x30x30_byteskip_minus_five.nhdr": UnreadableFileError,
    "BallBinary30x30x30_nifti.nhdr": UnreadableFileError,
    "test1d_ascii.nrrd": AxesError,
    "test_customFields.nrrd": AxesError,
    "test2d_ascii.nrrd": (9, 3),
    "test_simple4d_raw.nrrd": (1, 1, 1, 1),
}


@pytest.mark.parametrize("name", sorted(_ODD))
def test_odd_files(data_dir: Path, name: str) -> None:
    folder = data_dir / "odd_formats" / "pynrrd"
    expected = _ODD[name]
    if isinstance(expected, type):
        with pytest.raises(expected) as caught:
            open_volume(folder / name).load()
        assert isinstance(caught.value, LamellaError)
        return
    volume = open_volume(folder / name)
    if expected == "ball":
        ball = np.fromfile(folder / "BallBinary30x30x30.raw", "<i2").reshape(30, 30, 30)
        assert_array_equal(volume.load(), ball)
        assert volume.affine.spacing == (1.0, 1.0, 1.0)
    else:
        assert volume.load().shape == expected


def test_pyradiomics_as_itk_reads_them(data_dir: Path) -> None:
    paths = sorted((data_dir / "medical" / "pyradiomics").glob("*.nrrd"))
    assert len(paths) >= 10
    for path in paths:
        volume = open_volume(path)
        judged = sitk.ReadImage(str(path))
        assert_array_equal(volume.load(), sitk.GetArrayFromImage(judged))
        for corner in ((0, 0, 0), tuple(n - 1 for n in volume.shape)):
            here = volume.affine.apply(corner)[::-1] * [-1, -1, 1]
            there = judged.TransformIndexToPhysicalPoint([int(i) for i in corner[::-1]])
            assert_allclose(here, there, atol=1e-9)


def test_detached_headers_are_not_written(tmp_path: Path) -> None:
    volume = Volume.from_array(np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(InputError, match="one file"):
        save_volume(volume, tmp_path / "a.nhdr")


def test_sheared_directions_survive(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.nrrd", "encoding: raw\n", _DATA.tobytes())
    path.write_bytes(path.read_bytes().replace(b"(0,0,2)", b"(0,0.5,2)"))
    volume = open_volume(path)
    assert "sheared" in [note.code for note in volume.notes]
    again = open_volume(save_volume(replace(volume, notes=()), tmp_path / "b.nrrd"))
    assert again.affine == volume.affine
