"""DICOM: order by position, refusals with numbers, dcm2niix, SimpleITK and pydicom as judges."""

from collections.abc import Sequence
from itertools import product
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
from lamella.io import dicom_pixels
from lamella.io.format import OpenOptions, list_contents, open_volume
from lamella.testing.io import ReaderContract

pydicom = pytest.importorskip("pydicom")
sitk = pytest.importorskip("SimpleITK")

_AXIAL = (1, 0, 0, 0, 1, 0)
_SHAPE = (6, 5, 4)
_STORED = np.random.default_rng(4).integers(0, 4000, _SHAPE).astype(np.uint16)


def _dataset(pixels: Any, uid: str = "1.2.3.1", **elements: Any) -> Any:
    """A small CT slice; ``elements`` replace what it has, None removes."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, uid
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = "1.2.3", "1.2"
    dataset.FrameOfReferenceUID = "1.2.9"
    dataset.Modality, dataset.SeriesNumber, dataset.SeriesDescription = "CT", 4, "Thorax 2.0"
    dataset.PatientName, dataset.PatientID = "Muster^Erika", "secret-77"
    dataset.PatientBirthDate, dataset.InstitutionName = "19640812", "Klinikum"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.PixelSpacing = [0.7, 0.5]
    dataset.SliceThickness = 3
    dataset.ImageOrientationPatient = list(_AXIAL)
    dataset.PixelData = pixels.tobytes()
    for name, value in elements.items():
        if value is None:
            del dataset[name]
        else:
            setattr(dataset, name, value)
    return dataset


def _series(
    folder: Path,
    *,
    positions: Sequence[Sequence[float]] | None = None,
    stored: Any = _STORED,
    names: Sequence[str] | None = None,
    uid: str = "1.2.3",
    **elements: Any,
) -> Path:
    """A series of slices, 2 mm apart unless positions are given."""
    folder.mkdir(parents=True, exist_ok=True)
    places = positions or [(-10.0, 20.0, 5.0 + 2.0 * k) for k in range(len(stored))]
    for k, place in enumerate(places):
        dataset = _dataset(
            stored[k % len(stored)],
            f"{uid}.{k + 1}",
            ImagePositionPatient=[float(v) for v in place],
            SeriesInstanceUID=uid,
            InstanceNumber=k + 1,
            **elements,
        )
        name = names[k] if names else f"{k:03d}.dcm"
        dataset.save_as(folder / name, enforce_file_format=True)
    return folder


def _tilted(n: int, shift: float, step: float = 2.0) -> list[tuple[float, float, float]]:
    return [(0.0, shift * k, step * k) for k in range(n)]


class TestDicomFile(ReaderContract):
    format_id = "dicom"
    suffix = ".dcm"

    def make_example(self, folder: Path) -> Path:
        path = folder / "example.dcm"
        dataset = _dataset(_STORED[0], ImagePositionPatient=[0, 0, 0])
        dataset.save_as(path, enforce_file_format=True)
        return path


class TestDicomFolder(ReaderContract):
    format_id = "dicom"
    suffix = ""
    is_folder = True

    def make_example(self, folder: Path) -> Path:
        return _series(folder / "example")


def test_world_and_values(tmp_path: Path) -> None:
    volume = open_volume(_series(tmp_path / "ct"))
    assert str(volume.axes) == "zyx"
    assert volume.unit == "mm"
    assert volume.affine.frame == "RAS"
    assert volume.affine.spacing == (2.0, 0.7, 0.5)
    assert volume.affine.origin == (5.0, -20.0, 10.0)
    assert volume.dtype == np.int16
    assert_array_equal(volume.load(), _STORED.astype(np.int32) - 1024)


@given(
    order=st.permutations(range(6)),
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    numbered=st.permutations(range(6)),
)
def test_order_by_position_whatever_names_and_numbers(
    tmp_path: Path, order: list[int], angles: tuple[float, ...], numbered: list[int]
) -> None:
    """File names and instance numbers are shuffled, planes oblique: ITK agrees on every place."""
    import shutil

    shutil.rmtree(tmp_path / "ct", ignore_errors=True)
    a, b, c = angles
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    turn = turn @ np.array([[np.cos(c), 0, np.sin(c)], [0, 1, 0], [-np.sin(c), 0, np.cos(c)]])
    orientation = [float(f"{v:.10f}") for v in (*turn[:, 0], *turn[:, 1])]
    places = [tuple(float(f"{v:.8f}") for v in turn[:, 2] * 2.5 * k + [3, -7, 11]) for k in order]
    folder = _series(
        tmp_path / "ct",
        positions=places,
        stored=_STORED[list(order)],
        names=[f"{numbered[k]:02d}" for k in range(6)],
        ImageOrientationPatient=orientation,
    )
    volume = open_volume(folder)
    assert_array_equal(volume.load(), _STORED.astype(np.int32) - 1024)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    judged = reader.Execute()
    for index in product((0, 5), (0, 4), (0, 3)):
        there = judged.TransformIndexToPhysicalPoint([int(i) for i in index[::-1]])
        here = volume.affine.apply(index)[::-1] * [-1, -1, 1]
        assert_allclose(here, there, atol=1e-5)
    assert_array_equal(sitk.GetArrayFromImage(judged), volume.load())


def test_row_and_column_spacing_are_not_swapped(tmp_path: Path) -> None:
    folder = _series(tmp_path / "ct", PixelSpacing=[0.25, 0.75])
    assert open_volume(folder).affine.spacing == (2.0, 0.25, 0.75)


def test_slices_that_make_no_grid_are_refused_with_the_numbers(tmp_path: Path) -> None:
    places = [(0.0, 0.0, 2.0 * k) for k in range(6)]
    cases: list[tuple[list[Any], str]] = [
        ([p for k, p in enumerate(places) if k != 3], "1 slices are missing.*2 mm apart, but 4 mm"),
        ([(0, 0, z) for z in (0, 2, 4.5, 6, 9, 10)], "unevenly spaced: 1 to 3 mm, median"),
        (_tilted(6, 0.5), r"tilted by 14\.04 degrees.*0\.5 mm per slice"),
        ([*places[:5], places[4]], "1 of 5 slice positions hold several slices"),
        ([(0, 3.0 * (k % 2), 2.0 * k) for k in range(6)], "shifted sideways by up to 3 mm"),
        ([places[0], places[0], places[1], places[1]], "tells them apart"),
    ]
    for number, (positions, message) in enumerate(cases):
        folder = _series(tmp_path / str(number), positions=positions)
        with pytest.raises(GeometryError, match=message) as caught:
            open_volume(folder)
        assert caught.value.hint
        assert str(folder) in caught.value.message


def test_mixed_series_are_refused_with_the_numbers(tmp_path: Path) -> None:
    folder = _series(tmp_path / "a")
    other = _dataset(
        _STORED[0], "1.2.3.9", ImagePositionPatient=[0, 0, 0],
        ImageOrientationPatient=[1, 0, 0, 0, 0, -1],
    )  # fmt: skip
    other.save_as(folder / "scout.dcm", enforce_file_format=True)
    with pytest.raises(GeometryError, match=r"mixes 2 orientations \(6, 1 slices\)"):
        open_volume(folder)
    other = _dataset(np.zeros((8, 4), np.uint16), "1.2.3.9", ImagePositionPatient=[0, 0, 50])
    other.save_as(folder / "scout.dcm", enforce_file_format=True)
    with pytest.raises(GeometryError, match="6 of 5 x 4, 1 of 8 x 4"):
        open_volume(folder)
    other = _dataset(
        _STORED[0], "1.2.3.9", ImagePositionPatient=[0, 0, 50], PixelSpacing=[1.0, 1.0]
    )
    other.save_as(folder / "scout.dcm", enforce_file_format=True)
    with pytest.raises(GeometryError, match="mixes pixel spacings"):
        open_volume(folder)
    other = _dataset(_STORED[0], "1.2.3.9")
    other.save_as(folder / "scout.dcm", enforce_file_format=True)
    with pytest.raises(GeometryError, match="1 of 7 frames have no position"):
        open_volume(folder)


def _ramp(positions: Sequence[Sequence[float]]) -> Any:
    """Stored values linear in the world: 100 + 40 z + 30 y + 20 x (in mm, LPS)."""
    y, x = np.mgrid[0:9, 0:8]
    return np.stack(
        [100 + 40 * p[2] + 30 * (p[1] + y * 1.0) + 20 * (p[0] + x * 1.0) for p in positions]
    ).astype(np.uint16)


@pytest.mark.parametrize(
    "positions",
    [
        [(0, 0, z) for z in (0, 2, 4, 8, 10)],
        [(0, 0, z) for z in (0, 2, 3, 6, 8, 10)],
        _tilted(6, 0.5),
        _tilted(6, -1.0),
        [(0.5 * k, -0.5 * k, 2.0 * k) for k in range(5)],
    ],
)
def test_resampling_reproduces_a_linear_world(tmp_path: Path, positions: Any) -> None:
    places = [(p[0] + 20.0, p[1] + 20.0, float(p[2])) for p in positions]
    folder = _series(
        tmp_path / "ct",
        positions=places,
        stored=_ramp(places),
        PixelSpacing=[1.0, 1.0],
        RescaleIntercept=0,
        PixelPaddingValue=0,
    )
    with pytest.raises(GeometryError):
        open_volume(folder)
    volume = open_volume(folder, OpenOptions(resample_irregular=True))
    assert "resampled" in [note.code for note in volume.notes]
    assert volume.affine.is_orthogonal
    assert volume.affine.spacing == (2.0, 1.0, 1.0)
    values = volume.load().astype(float)
    index = np.moveaxis(np.indices(volume.shape), 0, -1)
    world = volume.affine.apply(index)[..., ::-1] * [-1, -1, 1]
    expected = 100 + 40 * world[..., 2] + 30 * world[..., 1] + 20 * world[..., 0]
    inside = values != 0
    assert inside.mean() > 0.5
    assert_allclose(values[inside], expected[inside], atol=0.51)
    part = (slice(1, 3), slice(2, 5), slice(1, 4))
    assert_array_equal(volume.data[part], volume.load()[part])


def test_choosing_a_series(tmp_path: Path) -> None:
    _series(tmp_path / "all" / "a")
    _series(tmp_path / "all" / "b" / "c", uid="1.2.5", SeriesNumber=9, SeriesDescription="Lung B60")
    _series(tmp_path / "all" / "d", uid="1.2.6", SeriesNumber=9, SeriesDescription="Lung B30")
    folder = tmp_path / "all"
    with pytest.raises(InputError, match="3 series, and none was chosen") as caught:
        open_volume(folder)
    for text in ("#4  CT  Thorax 2.0  6 x 5 x 4", "Lung B60", "1.2.6"):
        assert text in caught.value.message
    assert "--series" in str(caught.value.hint)
    for wanted, name in (("4", "Thorax 2.0"), ("1.2.5", "Lung B60"), ("b30", "Lung B30")):
        assert open_volume(folder, OpenOptions(series=wanted)).name == name
    for wanted, message in (("9", "2 series .* fit"), ("lung", "2 series"), ("brain", "no series")):
        with pytest.raises(InputError, match=message):
            open_volume(folder, OpenOptions(series=wanted))
    entries = list_contents(folder)
    assert [entry.id for entry in entries] == ["1.2.3", "1.2.5", "1.2.6"]
    assert entries[0].shape == (6, 5, 4)
    assert list_contents(tmp_path / "all" / "a") == ()


def test_other_files_and_copies_are_skipped_with_a_note(tmp_path: Path) -> None:
    folder = _series(tmp_path / "ct", names=[f"IM{k}" for k in range(6)])
    (folder / "notes.txt").write_text("hello")
    (folder / "preview.png").write_bytes(b"\x89PNG")
    (folder / "copy of IM3").write_bytes((folder / "IM3").read_bytes())
    volume = open_volume(folder)
    notes = {note.code: note.message for note in volume.notes}
    assert "notes.txt" in notes["files_skipped"]
    assert notes["copies_skipped"].startswith("1 files")
    assert volume.shape == _SHAPE


def test_time_points_at_each_position(tmp_path: Path) -> None:
    for t in range(3):
        stored = _STORED[::-1] + np.uint16(t)
        _series(
            tmp_path / "mr" / f"{2 - t}",
            stored=stored,
            positions=[(0, 0, 10.0 - 2.0 * k) for k in range(6)],
            TemporalPositionIdentifier=t + 1,
            RescaleIntercept=0,
        )
        for k, path in enumerate(sorted((tmp_path / "mr" / f"{2 - t}").iterdir())):
            dataset = pydicom.dcmread(path)
            dataset.SOPInstanceUID = f"1.2.3.{t}.{k}"
            dataset.save_as(path)
    volume = open_volume(tmp_path / "mr")
    assert str(volume.axes) == "tzyx"
    assert "positions_repeated" in [note.code for note in volume.notes]
    for t in range(3):
        assert_array_equal(volume.load()[t], _STORED + np.uint16(t))


def test_slopes_differ_between_slices(tmp_path: Path) -> None:
    """PET: each slice has its own slope."""
    folder = _series(tmp_path / "pt", RescaleIntercept=0)
    for k, path in enumerate(sorted(folder.iterdir())):
        dataset = pydicom.dcmread(path)
        dataset.RescaleSlope = 0.5 + k
        dataset.save_as(path)
    volume = open_volume(folder)
    assert volume.dtype == np.float32
    assert_allclose(volume.load(), _STORED * (0.5 + np.arange(6))[:, None, None], rtol=1e-6)


def _enhanced(path: Path, positions: Sequence[float], **elements: Any) -> Path:
    """An enhanced multi-frame file, frames in the order of ``positions``."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence as DicomSequence

    dataset = _dataset(
        _STORED[: len(positions)], PixelSpacing=None, ImageOrientationPatient=None,
        RescaleSlope=None, RescaleIntercept=None, SliceThickness=None,
        NumberOfFrames=len(positions),
    )  # fmt: skip

    def item(sequence: str, **values: Any) -> Any:
        inner, outer = Dataset(), Dataset()
        for name, value in values.items():
            setattr(inner, name, value)
        setattr(outer, sequence, DicomSequence([inner]))
        return outer

    shared = Dataset()
    shared.update(item("PixelMeasuresSequence", PixelSpacing=[0.7, 0.5], SliceThickness=3))
    shared.update(item("PlaneOrientationSequence", ImageOrientationPatient=list(_AXIAL)))
    shared.update(item("PixelValueTransformationSequence", RescaleSlope=2, RescaleIntercept=-1000))
    frames = []
    for k, z in enumerate(positions):
        frame = item("PlanePositionSequence", ImagePositionPatient=[1.0, 2.0, float(z)])
        if "segments" in elements:
            frame.update(
                item(
                    "SegmentIdentificationSequence",
                    ReferencedSegmentNumber=elements["segments"][k],
                )
            )
        frames.append(frame)
    dataset.SharedFunctionalGroupsSequence = DicomSequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = DicomSequence(frames)
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_enhanced_multi_frame(tmp_path: Path) -> None:
    path = _enhanced(tmp_path / "e.dcm", (9, 3, 0, 6))
    volume = open_volume(path)
    assert volume.shape == (4, 5, 4)
    assert volume.affine.spacing == (3.0, 0.7, 0.5)
    assert volume.affine.origin == (0.0, -2.0, -1.0)
    assert_array_equal(volume.load(), _STORED[[2, 1, 3, 0]].astype(int) * 2 - 1000)


def test_segments_become_channels(tmp_path: Path) -> None:
    path = _enhanced(tmp_path / "s.dcm", (0, 3, 0, 3), segments=(1, 1, 2, 2))
    volume = open_volume(path)
    assert str(volume.axes) == "czyx"
    assert volume.channel_names == ("segment 1", "segment 2")
    assert_array_equal(volume.load(), _STORED[:4].reshape(2, 2, 5, 4).astype(int) * 2 - 1000)


def test_film_without_positions(tmp_path: Path) -> None:
    dataset = _dataset(
        _STORED, NumberOfFrames=6, ImageOrientationPatient=None, Modality="US", PixelSpacing=None
    )
    path = tmp_path / "film.dcm"
    dataset.save_as(path, enforce_file_format=True)
    volume = open_volume(path)
    assert str(volume.axes) == "tyx"
    assert volume.unit == "voxel"
    assert "spacing_missing" in [note.code for note in volume.notes]
    assert str(open_volume(path, OpenOptions(axes="zyx")).axes) == "zyx"
    with pytest.raises(AxesError):
        open_volume(path, OpenOptions(axes="czyx"))


def test_projection_spacing_is_doubted(tmp_path: Path) -> None:
    dataset = _dataset(
        _STORED[0], PixelSpacing=None, ImagerPixelSpacing=[0.2, 0.1], Modality="DX",
        PhotometricInterpretation="MONOCHROME1", ImageOrientationPatient=None,
    )  # fmt: skip
    dataset.save_as(tmp_path / "dx.dcm", enforce_file_format=True)
    volume = open_volume(tmp_path / "dx.dcm")
    assert volume.affine.spacing == (0.2, 0.1)
    assert {"spacing_at_detector", "monochrome1"} <= {note.code for note in volume.notes}
    assert_array_equal(volume.load(), _STORED[0].astype(int) - 1024)


def test_images_without_positions_make_no_volume(tmp_path: Path) -> None:
    folder = _series(tmp_path / "cr")
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        del dataset.ImagePositionPatient
        dataset.save_as(path)
    with pytest.raises(GeometryError, match="6 images without positions"):
        open_volume(folder)


def test_nothing_about_the_patient_is_copied(tmp_path: Path) -> None:
    volume = open_volume(_series(tmp_path / "ct"))
    told = repr((volume.metadata, volume.name, volume.notes))
    assert volume.metadata["modality"] == "CT"
    for secret in ("Muster", "Erika", "secret-77", "1964", "Klinikum"):
        assert secret not in told


def test_a_slice_decodes_a_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Path] = []
    original = dicom_pixels._stored_frame

    def count(file: Any, index: int) -> Any:
        decoded.append(file.path)
        return original(file, index)

    monkeypatch.setattr(dicom_pixels, "_stored_frame", count)
    volume = open_volume(_series(tmp_path / "ct"))
    assert decoded == []
    for _ in range(3):
        volume.data[2:4, 1:2, :]
    assert len(decoded) == 2


def test_values_beyond_the_stored_bits_do_not_wrap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = _STORED.copy()
    stored[2, 1, 1] = 0xF123
    folder = _series(tmp_path / "ct", stored=stored)
    # The four unused bits (old overlays) are masked ...
    assert open_volume(folder).load()[2, 1, 1] == 0x123 - 1024
    # ... and a decoder that does not is refused, for int16 would wrap.
    monkeypatch.setattr(dicom_pixels, "_stored_frame", lambda file, index: stored[2])
    with pytest.raises(UnreadableFileError, match="12 stored bits"):
        open_volume(folder).load()


def test_truncated_slice_is_found_when_opening(tmp_path: Path) -> None:
    path = tmp_path / "ct.dcm"
    dataset = _dataset(np.zeros((64, 64), np.uint16), ImagePositionPatient=[0, 0, 0])
    dataset.save_as(path, enforce_file_format=True)
    path.write_bytes(path.read_bytes()[:-6000])
    with pytest.raises(UnreadableFileError, match="truncated"):
        open_volume(path)


def test_ct_equals_dcm2niix(data_dir: Path) -> None:
    volume = open_volume(data_dir / "medical" / "totalsegmentator" / "example_ct_dicom")
    judged = open_volume(data_dir / "medical" / "dcm2niix_ref" / "totalseg_0.nii.gz")
    # dcm2niix turns the rows round and moves the origin with them.
    assert_array_equal(volume.load(), judged.load()[:, ::-1])
    corners = np.array(list(product(*[(0, n - 1) for n in volume.shape])))
    turned = corners * [1, -1, 1] + [0, volume.shape[1] - 1, 0]
    assert_allclose(volume.affine.apply(corners), judged.affine.apply(turned), atol=1e-4)
    assert volume.spacing == judged.spacing
    assert volume.dtype == np.int16
    labels = open_volume(data_dir / "medical" / "totalsegmentator" / "example_seg_dicom.nii.gz")
    assert labels.spatial_shape == volume.spatial_shape


# -- every test file of pydicom -------------------------------------------------------------------

_NO_IMAGE = {
    "rtstruct.dcm", "rtplan.dcm", "rtplan_truncated.dcm", "reportsi.dcm", "test-SR.dcm",
    "reportsi_with_empty_number_tags.dcm", "waveform_ecg.dcm", "ExplVR_BigEndNoMeta.dcm",
    "ExplVR_LitEndNoMeta.dcm",
}  # fmt: skip
_DAMAGED = {
    # number of frames "1A"; codestreams that no decoder takes; pixels cut off; no image elements
    "badVR.dcm", "JPEG-lossy.dcm", "JPEG2000-embedded-sequence-delimiter.dcm",
    "MR_truncated.dcm", "UN_sequence.dcm", "meta_missing_tsyntax.dcm", "nested_priv_SQ.dcm",
    "no_meta.dcm", "no_meta_group_length.dcm", "priv_SQ.dcm", "empty_charset_LEI.dcm",
    "DICOMDIR-empty.dcm",
}  # fmt: skip
_SHAPES = {
    "examples_ybr_color.dcm": ("tcyx", (30, 3, 240, 320)),
    "examples_palette.dcm": ("cyx", (3, 350, 800)),
    "image_dfl.dcm": ("yx", (512, 512)),
    "rtdose.dcm": ("zyx", (15, 10, 10)),
    "CT_small.dcm": ("zyx", (1, 128, 128)),
    "liver_1frame.dcm": ("zyx", (1, 512, 512)),
    "JPGExtended.dcm": ("yx", (1024, 256)),
    "693_J2KI.dcm": ("zyx", (1, 512, 512)),
    "SC_rgb_rle_16bit_2frame.dcm": ("tcyx", (2, 3, 100, 100)),
    "MR_small_jpeg_ls_lossless.dcm": ("zyx", (1, 64, 64)),
}


def _pydicom_files() -> list[Path]:
    root = Path(pydicom.__file__).parent / "data" / "test_files"
    return sorted(p for p in root.glob("*.dcm"))


def test_every_file_of_pydicom() -> None:
    files = _pydicom_files()
    assert len(files) > 60
    read = 0
    for path in files:
        if path.name in _NO_IMAGE | _DAMAGED:
            with pytest.raises(LamellaError) as caught:
                open_volume(path, OpenOptions(format="dicom")).load()
            assert caught.value.hint, path.name
            assert len(caught.value.message.splitlines()) == 1, path.name
            assert ("without pixels" in caught.value.message) == (path.name in _NO_IMAGE)
            continue
        volume = open_volume(path)
        values = volume.load()
        assert values.shape == volume.shape
        if path.name in _SHAPES:
            assert (str(volume.axes), volume.shape) == _SHAPES[path.name]
        read += 1
    assert read >= 50


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm",
        "examples_overlay.dcm", "693_J2KI.dcm",
    ],
)  # fmt: skip
def test_values_and_places_as_itk_reads_them(name: str) -> None:
    path = Path(pydicom.__file__).parent / "data" / "test_files" / name
    volume = open_volume(path)
    judged = sitk.ReadImage(str(path))
    assert_allclose(volume.load(), sitk.GetArrayFromImage(judged))
    corner = [n - 1 for n in volume.shape]
    here = volume.affine.apply(corner)[::-1] * [-1, -1, 1]
    assert_allclose(here, judged.TransformIndexToPhysicalPoint(corner[::-1]), atol=1e-4)


@pytest.mark.parametrize("name", ["SC_rgb_rle.dcm", "SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_gdcm_KY.dcm"])
def test_colours_as_pydicom_decodes_them(name: str) -> None:
    path = Path(pydicom.__file__).parent / "data" / "test_files" / name
    volume = open_volume(path)
    assert volume.channel_names == ("R", "G", "B")
    expected = pydicom.pixels.pixel_array(path)
    assert_array_equal(volume.load(), expected.transpose(2, 0, 1))


def test_dicomdirs_and_folders_of_pydicom() -> None:
    root = Path(pydicom.__file__).parent / "data" / "test_files" / "dicomdirtests"
    for name in ("DICOMDIR", "DICOMDIR-bigEnd", "DICOMDIR-implicit", "DICOMDIR-nooffset"):
        with pytest.raises(InputError, match="13 series"):
            open_volume(root / name)
    assert open_volume(root / "98892001" / "CT5N").shape == (5, 16, 16)
    assert open_volume(root / "DICOMDIR", OpenOptions(series="SmartScore")).shape == (5, 16, 16)
    for folder, message in (
        ("98892003/MR700", "mixes 7 orientations"),
        ("98892001/CT2N", "mixes 2 orientations"),
        ("77654033/CT2", "161 slices are missing"),
        ("TINY_ALPHA", "without pixels"),
    ):
        with pytest.raises(LamellaError, match=message):
            open_volume(root / folder)
