"""DICOM segmentations: highdicom, SimpleITK and pydicom as judges of what we write and read."""

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lamella.core.errors import (
    GeometryError,
    InputError,
    NarrowingError,
    OutputExistsError,
    RunCancelledError,
    UnreadableFileError,
)
from lamella.core.progress import SilentSink
from lamella.io import dicom_seg_write
from lamella.io.dicom_codes import code_of
from lamella.io.format import OpenOptions, SaveOptions, open_labels, open_volume, save_volume
from lamella.testing.io import ReaderContract
from lamella.volume import FunctionArray, LabelClass, Labels, Volume

pydicom = pytest.importorskip("pydicom")
hd = pytest.importorskip("highdicom")
sitk = pytest.importorskip("SimpleITK")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")

_AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
_SHAPE = (5, 8, 6)
_KINDS = ("dicom-seg", "dicom-seg-labelmap")


def _series(
    folder: Path,
    *,
    orientation: tuple[float, ...] = _AXIAL,
    origin: tuple[float, ...] = (-3.0, 4.0, 50.0),
    spacing: tuple[float, float, float] = (2.5, 0.7, 0.5),
    shape: tuple[int, int, int] = _SHAPE,
    series: str = "1.2.3.4",
    **elements: Any,
) -> Path:
    """A CT series along any direction; files are named and numbered against their order."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    folder.mkdir(parents=True, exist_ok=True)
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(row, column)
    for k in range(shape[0]):
        uid = f"{series}.{k + 1}"
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, uid
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, uid
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", series
        dataset.FrameOfReferenceUID = "1.2.9"
        dataset.Modality, dataset.SeriesNumber = "CT", 4
        dataset.SeriesDescription = f"Thorax {series}"
        dataset.PatientName, dataset.PatientID = "Muster^Erika", "id-77"
        dataset.PatientBirthDate, dataset.PatientSex = "19640812", "F"
        dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20240101", "120000", "1"
        dataset.AccessionNumber, dataset.ReferringPhysicianName = "", ""
        dataset.Manufacturer, dataset.InstanceNumber = "Maker", shape[0] - k
        dataset.Rows, dataset.Columns = shape[1:]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
        dataset.PixelRepresentation = 1
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
        dataset.PixelSpacing = [float(spacing[1]), float(spacing[2])]
        dataset.SliceThickness = float(spacing[0])
        dataset.ImageOrientationPatient = [float(v) for v in orientation]
        position = np.array(origin) + normal * spacing[0] * k
        dataset.ImagePositionPatient = [round(float(v), 6) for v in position]
        dataset.PixelData = np.full(shape[1:], k, np.int16).tobytes()
        for name, value in elements.items():
            if value is None:
                del dataset[name]
            else:
                setattr(dataset, name, value)
        dataset.save_as(folder / f"{shape[0] - k:03}.dcm", enforce_file_format=True)
    return folder


def _labels(volume: Volume, values: Any = None, **fields: Any) -> Labels:
    if values is None:
        values = np.zeros(volume.spatial_shape, np.uint8)
        values[1:3, 2:5, 1:4] = 27
        values[3, 5:, 2:] = 33
        values[1, 0, 0] = 4
    classes = (
        LabelClass(27, "vertebrae_L5", (255, 255, 0)),
        LabelClass(33, "vertebrae_T11"),
        LabelClass(4, "kidney_left", (10, 20, 30)),
        LabelClass(9, "never seen"),
    )
    return replace(Labels.like(volume, values, classes=classes), **fields)


def _oblique() -> tuple[float, ...]:
    turn = sitk.VersorTransform((0.3, -0.5, 0.81), 0.6).GetMatrix()
    matrix = np.array(turn).reshape(3, 3)
    return (*matrix[:, 0], *matrix[:, 1])


_DIRECTIONS = {
    "axial": _AXIAL,
    "feet first, prone": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "flipped rows": (1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "coronal": (1.0, 0.0, 0.0, 0.0, 0.0, -1.0),
    "sagittal": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0),
    "oblique": _oblique(),
}


# --- Laws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("direction", _DIRECTIONS)
def test_read_of_write_is_the_same(tmp_path: Path, kind: str, direction: str) -> None:
    volume = open_volume(_series(tmp_path / "ct", orientation=_DIRECTIONS[direction]))
    labels = _labels(volume)
    path = save_volume(labels, tmp_path / "seg.dcm", SaveOptions(format=kind))
    again = open_labels(path)
    assert isinstance(again, Labels)
    assert again.affine == volume.affine
    assert again.unit == "mm"
    assert again.classes == labels.classes
    assert not again.is_instance
    assert again.notes == ()
    assert_array_equal(again.load(), labels.load())


@pytest.mark.parametrize("direction", _DIRECTIONS)
def test_simpleitk_and_highdicom_find_every_voxel_at_the_same_place_in_lps(
    tmp_path: Path, direction: str
) -> None:
    """Frame by frame: pixels decoded by SimpleITK and highdicom, places by ITK's CT geometry."""
    folder = _series(tmp_path / "ct", orientation=_DIRECTIONS[direction])
    labels = _labels(open_volume(folder))
    path = save_volume(labels, tmp_path / "seg.dcm")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    scan = reader.Execute()
    seen = {value: set() for value in (4, 27, 33)}
    frames = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    judge = hd.seg.segread(path)
    dataset = pydicom.dcmread(path)
    by_number = {s.SegmentNumber: s.SegmentLabel for s in dataset.SegmentSequence}
    names = {known.name: known.value for known in labels.classes}
    assert_array_equal(frames.astype(bool), judge.pixel_array.astype(bool))
    shared = dataset.SharedFunctionalGroupsSequence[0]
    orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    row_mm, column_mm = shared.PixelMeasuresSequence[0].PixelSpacing
    for frame, group in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        corner = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        for y, x in np.argwhere(frame):
            lps = corner + orientation[:3] * column_mm * x + orientation[3:] * row_mm * y
            index = scan.TransformPhysicalPointToIndex([float(v) for v in lps])
            seen[names[by_number[number]]].add(tuple(index))
    # Our own volume in ITK's own place: index by physical point, never by array order.
    for value, found in seen.items():
        own = np.argwhere(labels.load() == value)
        ras = labels.affine.apply(own)
        expected = {
            tuple(scan.TransformPhysicalPointToIndex((-float(r), -float(a), float(s))))
            for s, a, r in ras
        }
        assert found == expected


def test_frames_refer_to_the_image_below_them(tmp_path: Path) -> None:
    labels = _labels(open_volume(_series(tmp_path / "ct")))
    dataset = pydicom.dcmread(save_volume(labels, tmp_path / "seg.dcm"))
    assert dataset.StudyInstanceUID == "1.2.3"
    assert dataset.FrameOfReferenceUID == "1.2.9"
    assert dataset.PatientID == "id-77"
    assert dataset.Modality == "SEG"
    assert dataset.SeriesInstanceUID not in ("1.2.3.4", "")
    (series,) = dataset.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == "1.2.3.4"
    assert len(series.ReferencedInstanceSequence) == 5
    for group in dataset.PerFrameFunctionalGroupsSequence:
        z = float(group.PlanePositionSequence[0].ImagePositionPatient[2])
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        assert source.ReferencedSOPInstanceUID == f"1.2.3.4.{round((z - 50) / 2.5) + 1}"


def test_segments_say_what_they_are(tmp_path: Path) -> None:
    volume = open_volume(_series(tmp_path / "ct"))
    labels = _labels(volume)
    told = {"source_path": str(tmp_path / "ct"), "engine": "totalsegmentator", "model": "total"}
    labels = replace(labels, metadata={**told, "model_version": "2.9"})
    judge = hd.seg.segread(save_volume(labels, tmp_path / "seg.dcm"))
    assert [judge.get_segment_description(n).segment_label for n in judge.segment_numbers] == [
        "kidney_left",
        "vertebrae_L5",
        "vertebrae_T11",
    ]
    kidney, lumbar, thoracic = (judge.get_segment_description(n) for n in judge.segment_numbers)
    assert lumbar.segmented_property_category.value == "91723000"
    assert (lumbar.segmented_property_type.value, lumbar.segmented_property_type.meaning) == (
        "49668003",
        "L5 vertebra",
    )
    assert thoracic.segmented_property_type.value == "12989004"
    modifier = kidney.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence
    assert (modifier[0].CodeValue, modifier[0].CodeMeaning) == ("7771000", "Left")
    assert lumbar.algorithm_type.value == "AUTOMATIC"
    assert lumbar.algorithm_identification.name == "totalsegmentator total"
    assert lumbar.algorithm_identification.version == "2.9"
    color = lumbar.RecommendedDisplayCIELabValue
    assert_allclose(
        hd.color.CIELabColor.from_dicom_value(tuple(color)).to_rgb(), (255, 255, 0), atol=2
    )


def test_unknown_origin_is_not_called_automatic(tmp_path: Path) -> None:
    labels = _labels(open_volume(_series(tmp_path / "ct")))
    judge = hd.seg.segread(save_volume(labels, tmp_path / "seg.dcm"))
    described = judge.get_segment_description(1)
    assert described.algorithm_type.value == "SEMIAUTOMATIC"
    assert "unknown" in described.algorithm_identification.name


@settings(max_examples=15)
@given(
    angle=st.floats(-3.1, 3.1),
    axis=st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda v: sum(x * x for x in v) > 0.05),
    spacing=st.tuples(*[st.floats(0.3, 6.0)] * 3),
    origin=st.tuples(*[st.floats(-900, 900)] * 3),
    shape=st.tuples(st.integers(1, 6), st.integers(3, 9), st.integers(3, 9)),
    seed=st.integers(0, 99),
)
def test_any_geometry(tmp_path_factory, angle, axis, spacing, origin, shape, seed) -> None:
    folder = tmp_path_factory.mktemp("any")
    unit = np.array(axis) / np.linalg.norm(axis)
    matrix = np.array(sitk.VersorTransform(unit.tolist(), angle).GetMatrix()).reshape(3, 3)
    directions = (*matrix[:, 0], *matrix[:, 1])
    volume = open_volume(
        _series(
            folder / "ct",
            orientation=tuple(round(float(v), 9) for v in directions),
            origin=tuple(round(v, 3) for v in origin),
            spacing=tuple(round(v, 3) for v in spacing),
            shape=shape,
        )
    )
    values = np.random.default_rng(seed).integers(0, 4, volume.shape).astype(np.uint8)
    values.flat[0] = 3
    path = save_volume(Labels.like(volume, values), folder / "seg.dcm")
    again = open_labels(path)
    assert again.affine == volume.affine
    assert_array_equal(again.load(), values)
    # Without Lamella's record another program's object lies where this one lay, planes cut off.
    bare = pydicom.dcmread(path)
    for tag in [element.tag for element in bare if element.tag.is_private]:
        del bare[tag]
    for item in bare.SegmentSequence:
        for tag in [element.tag for element in item if element.tag.is_private]:
            del item[tag]
    bare.save_as(folder / "bare.dcm", enforce_file_format=True)
    plain = open_labels(folder / "bare.dcm")
    found, first = plain.load(), int(np.argwhere(values)[:, 0].min())
    last = int(np.argwhere(values)[:, 0].max())
    order = {number + 1: value for number, value in enumerate(np.unique(values[values > 0]))}
    renamed = np.vectorize(lambda n: order.get(int(n), 0))(found)
    assert_array_equal(renamed, values[first : last + 1])
    assert_allclose(plain.affine.origin, volume.affine.apply((first, 0, 0)), atol=1e-3)
    if last > first:
        assert_allclose(plain.affine.spacing, volume.affine.spacing, rtol=1e-4)


@pytest.mark.parametrize("flip", [(0,), (1,), (2,), (0, 1, 2)])
def test_labels_of_other_programs_lie_flipped_and_are_put_in_order(tmp_path: Path, flip) -> None:
    volume = open_volume(_series(tmp_path / "ct"))
    values = _labels(volume).load()
    direction = np.array(volume.affine.direction)
    start = [0, 0, 0]
    for axis in flip:
        direction[:, axis] *= -1
        start[axis] = volume.shape[axis] - 1
    affine = replace(
        volume.affine,
        direction=tuple(map(tuple, direction)),
        origin=tuple(volume.affine.apply(start)),
    )
    other = replace(_labels(volume), data=np.flip(values, flip), affine=affine)
    again = open_labels(save_volume(other, tmp_path / "seg.dcm"))
    assert_array_equal(again.load(), values)
    transposed = replace(
        _labels(volume),
        data=values.transpose(2, 0, 1),
        affine=replace(
            volume.affine,
            spacing=tuple(volume.affine.spacing[k] for k in (2, 0, 1)),
            direction=tuple(tuple(row[k] for k in (2, 0, 1)) for row in volume.affine.direction),
        ),
    )
    again = open_labels(save_volume(transposed, tmp_path / "turned.dcm"))
    assert_array_equal(again.load(), values)


def test_labels_of_a_crop_lie_where_they_were(tmp_path: Path) -> None:
    volume = open_volume(_series(tmp_path / "ct"))
    labels = _labels(volume)
    from lamella.volume import Box

    part = labels.crop(Box((1, 2, 1), (3, 6, 5)))
    again = open_labels(save_volume(part, tmp_path / "seg.dcm"))
    expected = np.zeros_like(labels.load())
    expected[1:3, 2:6, 1:5] = labels.load()[1:3, 2:6, 1:5]
    assert_array_equal(again.load(), expected)


def test_enhanced_source_in_one_file(tmp_path: Path) -> None:
    volume = open_volume(_series(tmp_path / "ct"))
    path = save_volume(_labels(volume), tmp_path / "seg.dcm")
    # A multi-frame source: the label map itself, whose frames carry positions and are images too.
    dense = np.ones(volume.shape, np.uint8)
    whole = save_volume(
        Labels.like(volume, dense), tmp_path / "multi.dcm", SaveOptions(format="dicom-seg-labelmap")
    )
    dataset = pydicom.dcmread(whole)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    dataset.Modality = "CT"
    del dataset.SegmentSequence
    dataset.save_as(tmp_path / "enhanced.dcm", enforce_file_format=True)
    labels = _labels(volume)
    again = open_labels(
        save_volume(labels, tmp_path / "o.dcm", SaveOptions(source=tmp_path / "enhanced.dcm"))
    )
    assert again.same_grid(volume)
    assert_array_equal(again.load(), open_labels(path).load())


# --- Real data ----------------------------------------------------------------------------------


def test_real_series_and_its_segmentation(data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "medical/totalsegmentator"
    scan = open_volume(folder / "example_ct_dicom")
    judged = open_labels(folder / "example_seg_dicom.nii.gz")
    sink = _Listener()
    path = save_volume(
        judged, tmp_path / "seg.dcm", SaveOptions(source=folder / "example_ct_dicom", sink=sink)
    )
    # The example was anonymised by blanking its UIDs: said aloud, and the images still referred to.
    assert "source_uids_missing" in [getattr(event, "code", "") for event in sink.seen]
    again = open_labels(path)
    assert again.same_grid(scan)
    image = sitk.ReadImage(str(folder / "example_seg_dicom.nii.gz"))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder / "example_ct_dicom")))
    onto = sitk.Resample(image, reader.Execute(), sitk.Transform(), sitk.sitkNearestNeighbor)
    assert_array_equal(again.load(), sitk.GetArrayFromImage(onto))
    judge = hd.seg.segread(path)
    assert judge.number_of_segments == 31
    # highdicom's own affine is (x, y, z) in LPS, of its own order of axes: one voxel will do.
    volume = judge.get_volume(combine_segments=True, relabel=True)
    own = again.affine.inverse_apply
    index = np.argwhere(volume.array == 7)[:200]
    lps = index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    at = np.rint(own((lps * (-1, -1, 1))[:, ::-1])).astype(int)
    labels = again.load()
    assert (labels[tuple(at.T)] == np.unique(labels)[7]).all()


def test_real_segmentation_of_another_program() -> None:
    """A slice of a liver, made by dcmqi in old SRT codes, without a number of frames."""
    path = pydicom.data.get_testdata_file("liver_1frame.dcm", download=False)
    assert path is not None
    labels = open_labels(path)
    assert labels.class_name(1) == "Liver"
    assert labels.affine.spacing == (1.0, 0.810547, 0.810547)
    assert_allclose(labels.affine.origin, (-128.69, 226.8, 235.2))
    dataset = pydicom.dcmread(path)
    stored = np.unpackbits(np.frombuffer(dataset.PixelData, np.uint8), bitorder="little")
    assert_array_equal(labels.load().ravel(), stored[: 512 * 512])


# --- Segments -----------------------------------------------------------------------------------


def _overlapping(folder: Path, kind: str = "BINARY", *, declare: str | None = None) -> Path:
    source = _series(folder / "ct")
    datasets = [pydicom.dcmread(p) for p in sorted(source.iterdir(), reverse=True)]
    pixels = np.zeros((*_SHAPE, 2), np.uint8)
    pixels[1:3, :4, :4, 0] = 1
    pixels[2:4, 2:, 2:, 1] = 1
    described = [
        hd.seg.SegmentDescription(
            k + 1,
            name,
            pydicom.sr.codedict.codes.SCT.Tissue,
            pydicom.sr.codedict.codes.SCT.Tissue,
            "MANUAL",
        )
        for k, name in enumerate(("tumour", "liver"))
    ]
    made = hd.seg.Segmentation(
        datasets, pixels, kind, described, "1.2.7", 1, "1.2.7.1", 1, "Other", "Other", "1", "1"
    )
    if declare is not None:
        made.SegmentsOverlap = declare
    made.save_as(folder / "other.dcm")
    return folder / "other.dcm"


def test_overlapping_segments_are_refused_or_chosen(tmp_path: Path) -> None:
    path = _overlapping(tmp_path)
    with pytest.raises(InputError, match="'tumour' and 2 'liver' overlap in plane 1") as caught:
        open_volume(path)
    assert "--segment" in (caught.value.hint or "")
    tumour = open_labels(path, OpenOptions(segment="1"))
    assert tumour.classes[0].name == "tumour"
    assert int((tumour.load() == 1).sum()) == 2 * 4 * 4
    liver = open_labels(path, OpenOptions(segment="Liver"))
    assert sorted(np.unique(liver.load())) == [0, 2]
    with pytest.raises(InputError, match="no segment 'lver'") as caught:
        open_volume(path, OpenOptions(segment="lver"))
    assert "did you mean liver" in (caught.value.hint or "")


def test_overlap_that_the_header_denies_is_found_when_read(tmp_path: Path) -> None:
    labels = open_labels(_overlapping(tmp_path, declare="NO"))
    with pytest.raises(InputError, match="overlap"):
        labels.load()


def test_fractional_segmentations_are_probabilities(tmp_path: Path) -> None:
    path = _overlapping(tmp_path, "FRACTIONAL")
    volume = open_volume(path)
    assert str(volume.axes) == "czyx"
    assert volume.channel_names == ("tumour", "liver")
    assert volume.load().max() == 1.0
    with pytest.raises(InputError, match="integers"):
        open_labels(path)


def test_planes_left_out_between_others_are_put_back(tmp_path: Path) -> None:
    path = _overlapping(tmp_path)
    dataset = pydicom.dcmread(path)
    labels = open_labels(path, OpenOptions(segment="1"))
    assert labels.shape == (3, 8, 6)
    assert not labels.load()[2].any()
    assert dataset.NumberOfFrames == 4


def test_a_segmentation_beside_its_series_does_not_hide_it(tmp_path: Path) -> None:
    folder = _series(tmp_path / "ct")
    save_volume(_labels(open_volume(folder)), folder / "seg.dcm")
    assert open_volume(folder).dtype == np.int16
    assert isinstance(open_volume(folder, OpenOptions(series="Segmentation")), Labels)
    # And a second one is still made on the images, not on the first.
    save_volume(_labels(open_volume(folder)), folder / "seg2.dcm")


def test_instances_come_back_as_instances(tmp_path: Path) -> None:
    volume = open_volume(_series(tmp_path / "ct"))
    values = np.arange(np.prod(_SHAPE)).reshape(_SHAPE) % 50
    labels = Labels.like(volume, values.astype(np.uint16), is_instance=True)
    again = open_labels(save_volume(labels, tmp_path / "seg.dcm"))
    assert again.is_instance
    assert_array_equal(again.load(), labels.load())


def test_source_is_found_by_its_grid_among_several_series(tmp_path: Path) -> None:
    study = tmp_path / "study"
    _series(study / "a", series="1.2.3.4")
    _series(study / "b", series="1.2.3.5", spacing=(5.0, 0.7, 0.5))
    labels = replace(_labels(open_volume(study / "b")), metadata={})
    path = save_volume(labels, tmp_path / "seg.dcm", SaveOptions(source=study))
    (series,) = pydicom.dcmread(path).ReferencedSeriesSequence
    assert series.SeriesInstanceUID == "1.2.3.5"
    _series(study / "c", series="1.2.3.6", spacing=(5.0, 0.7, 0.5))
    with pytest.raises(InputError, match="grid of 2 series") as caught:
        save_volume(labels, tmp_path / "seg2.dcm", SaveOptions(source=study))
    assert "--source-series" in (caught.value.hint or "")
    options = SaveOptions(source=study, source_series="1.2.3.6")
    path = save_volume(labels, tmp_path / "seg2.dcm", options)
    assert pydicom.dcmread(path).ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3.6"


# --- Bad input ----------------------------------------------------------------------------------


def _array_labels(values: Any = None, **fields: Any) -> Labels:
    data = np.ones(_SHAPE, np.uint8) if values is None else values
    return Labels.from_array(data, spacing=(1, 1, 1), unit="mm", frame="RAS", **fields)


def test_without_a_series_the_error_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must refer to the DICOM series") as caught:
        save_volume(_array_labels(), tmp_path / "seg.dcm")
    assert "--source" in (caught.value.hint or "")
    nifti = save_volume(_array_labels(), tmp_path / "labels.nii.gz")
    with pytest.raises(InputError, match=r"labels\.nii\.gz is NIfTI"):
        save_volume(open_labels(nifti), tmp_path / "seg.dcm")
    assert [p.name for p in tmp_path.iterdir()] == ["labels.nii.gz"]


def test_without_highdicom_the_extra_is_named(tmp_path: Path, monkeypatch) -> None:
    from lamella.core.errors import MissingDependencyError
    from lamella.io import format as formats

    labels = _labels(open_volume(_series(tmp_path / "ct")))
    is_there = formats.is_importable
    monkeypatch.setattr(formats, "is_importable", lambda n: n != "highdicom" and is_there(n))
    with pytest.raises(MissingDependencyError, match="needs highdicom") as caught:
        save_volume(labels, tmp_path / "seg.dcm")
    assert "lamella[dicom-seg]" in (caught.value.hint or "")


def test_labels_on_another_grid_are_refused_with_the_numbers(tmp_path: Path) -> None:
    source = _series(tmp_path / "ct")
    options = SaveOptions(source=source)
    with pytest.raises(GeometryError, match=r"spacing 1 x 1 x 1 against 2\.5 x 0\.7 x 0\.5 mm"):
        save_volume(_array_labels(), tmp_path / "seg.dcm", options)
    volume = open_volume(source)
    shifted = replace(
        _labels(volume), affine=replace(volume.affine, origin=volume.affine.apply((0, 0.5, 0)))
    )
    with pytest.raises(GeometryError, match=r"up to 0\.5 voxels off"):
        save_volume(shifted, tmp_path / "seg.dcm", options)
    beyond = replace(
        _labels(volume), affine=replace(volume.affine, origin=tuple(volume.affine.apply((0, 3, 0))))
    )
    with pytest.raises(GeometryError, match="reach beyond"):
        save_volume(beyond, tmp_path / "seg.dcm", options)
    staged = replace(_labels(volume), affine=replace(volume.affine, frame="stage"))
    with pytest.raises(GeometryError, match="stage frame"):
        save_volume(staged, tmp_path / "seg.dcm", options)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros(_SHAPE, np.float32), "not intensities"),
        (np.full(_SHAPE, -1000, np.int16), "positive"),
        (np.zeros(_SHAPE, np.uint8), "no voxel is labelled"),
        (np.arange(1200).reshape(5, 8, 30), "1199 objects are too many"),
    ],
)
def test_what_is_no_segmentation_is_refused(tmp_path: Path, data: Any, message: str) -> None:
    source = _series(tmp_path / "ct", shape=data.shape)
    known = open_volume(source)
    volume = replace(known, data=data)
    with pytest.raises(InputError, match=message):
        save_volume(volume, tmp_path / "seg.dcm")
    assert not (tmp_path / "seg.dcm").exists()


def test_too_large_objects_are_refused_before_they_are_made(tmp_path: Path, monkeypatch) -> None:
    labels = _labels(open_volume(_series(tmp_path / "ct")))
    monkeypatch.setattr(dicom_seg_write, "_MOST_BYTES", 20)
    with pytest.raises(InputError, match="3 segments on 5 slices of 8 x 6 take"):
        save_volume(labels, tmp_path / "seg.dcm")


def test_images_of_a_few_pixels_are_refused(tmp_path: Path) -> None:
    volume = open_volume(_series(tmp_path / "ct", shape=(2, 2, 3)))
    labels = Labels.like(volume, np.ones((2, 2, 3), np.uint8))
    with pytest.raises(InputError, match="2 x 3 pixels are too small"):
        save_volume(labels, tmp_path / "seg.dcm")
    path = save_volume(labels, tmp_path / "seg.dcm", SaveOptions(format="dicom-seg-labelmap"))
    assert open_labels(path).load().all()


def test_label_maps_hold_16_bits(tmp_path: Path) -> None:
    volume = open_volume(_series(tmp_path / "ct"))
    values = np.zeros(_SHAPE, np.uint32)
    values[0, 0, 0] = 70000
    options = SaveOptions(format="dicom-seg-labelmap")
    with pytest.raises(NarrowingError, match="70000"):
        save_volume(Labels.like(volume, values), tmp_path / "seg.dcm", options)


def test_images_without_identity_cannot_be_referred_to(tmp_path: Path) -> None:
    folder = _series(tmp_path / "ct", shape=(1, 8, 6))
    path = next(folder.iterdir())
    dataset = pydicom.dcmread(path)
    dataset.SOPInstanceUID = ""
    dataset.file_meta.MediaStorageSOPInstanceUID = ""
    dataset.save_as(path, enforce_file_format=False)
    with pytest.raises(InputError, match="no SOPInstanceUID"):
        save_volume(_labels(open_volume(folder), np.ones((1, 8, 6), np.uint8)), tmp_path / "s.dcm")


def test_blanked_patients_and_uids_are_no_obstacle(tmp_path: Path) -> None:
    blank = dict.fromkeys(
        ("PatientID", "PatientName", "StudyID", "StudyDate", "AccessionNumber", "PatientSex")
    )
    folder = _series(
        tmp_path / "ct", StudyInstanceUID="", SeriesInstanceUID="", FrameOfReferenceUID="", **blank
    )
    labels = _labels(open_volume(folder))
    first, second = (pydicom.dcmread(save_volume(labels, tmp_path / n)) for n in ("a.dcm", "b.dcm"))
    assert first.StudyInstanceUID == second.StudyInstanceUID != ""
    assert first.SOPInstanceUID != second.SOPInstanceUID


def test_tilted_series_are_refused(tmp_path: Path) -> None:
    folder = _series(tmp_path / "ct")
    for k, path in enumerate(sorted(folder.iterdir())):
        dataset = pydicom.dcmread(path)
        dataset.ImagePositionPatient[1] = 4.0 + k
        dataset.save_as(path, enforce_file_format=True)
    volume = open_volume(folder, OpenOptions(resample_irregular=True))
    with pytest.raises(GeometryError, match="tilt"):
        save_volume(Labels.like(volume, np.ones(volume.shape, np.uint8)), tmp_path / "s.dcm")


def test_cancel_and_overwrite(tmp_path: Path) -> None:
    labels = _labels(open_volume(_series(tmp_path / "ct")))
    sink = SilentSink()
    sink.token.cancel()
    with pytest.raises(RunCancelledError):
        save_volume(labels, tmp_path / "seg.dcm", SaveOptions(sink=sink))
    assert not (tmp_path / "seg.dcm").exists()
    save_volume(labels, tmp_path / "seg.dcm")
    with pytest.raises(OutputExistsError):
        save_volume(labels, tmp_path / "seg.dcm")


def test_a_failing_source_leaves_nothing(tmp_path: Path) -> None:
    def fail(slices: Any) -> Any:
        raise UnreadableFileError("the source is damaged")

    volume = open_volume(_series(tmp_path / "ct"))
    broken = replace(_labels(volume), data=FunctionArray(_SHAPE, np.dtype(np.uint8), fail))
    with pytest.raises(UnreadableFileError):
        save_volume(broken, tmp_path / "seg.dcm")
    assert [p.name for p in tmp_path.iterdir()] == ["ct"]


def test_truncated_segmentations(tmp_path: Path) -> None:
    path = save_volume(_labels(open_volume(_series(tmp_path / "ct"))), tmp_path / "seg.dcm")
    whole = path.read_bytes()
    for share in (0.2, 0.6, 0.95):
        (tmp_path / "cut.dcm").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(InputError):
            open_labels(tmp_path / "cut.dcm").load()


def test_a_moved_record_is_stale(tmp_path: Path) -> None:
    """Another program moved the frames: the header counts, and it is said."""
    path = save_volume(_labels(open_volume(_series(tmp_path / "ct"))), tmp_path / "seg.dcm")
    dataset = pydicom.dcmread(path)
    for group in dataset.PerFrameFunctionalGroupsSequence:
        group.PlanePositionSequence[0].ImagePositionPatient[0] += 10.0
    dataset.save_as(path, enforce_file_format=True)
    labels = open_labels(path)
    assert "record_stale" in [note.code for note in labels.notes]
    assert labels.affine.origin[2] == pytest.approx(3.0 - 10.0)


# --- Codes --------------------------------------------------------------------------------------


def test_codes_are_those_of_pydicoms_dictionary() -> None:
    """Every code that pydicom's SNOMED dictionary knows means there what it means here."""
    from pydicom.sr import _concepts_dict

    from lamella.io import dicom_codes

    meanings: dict[str, set[str]] = {}
    for entries in _concepts_dict.concepts["SCT"].values():
        for code, (meaning, _) in entries.items():
            meanings.setdefault(code, set()).add(meaning.lower())
    names = [f"vertebrae_{level}" for level in dicom_codes._VERTEBRAE]
    names += list(dicom_codes._STRUCTURES)
    names += [f"{name}_left" for name in dicom_codes._PAIRED]
    n_known = 0
    for name in names:
        code = code_of(name)
        assert code.is_anatomy, name
        known = meanings.get(code.value)
        if known is None:
            continue
        n_known += 1
        words = set(code.meaning.lower().split()) - {"of", "gland", "heart", "muscle", "artery"}
        assert any(words <= set(other.replace("(", " ").split()) for other in known) or any(
            word in other for word in words for other in known
        ), (name, code, known)
    assert n_known > 60


def test_every_total_class_has_a_code_that_fits() -> None:
    names = ["hip_left", "kidney_cyst_right", "rib_left_1", "vertebrae_L6", "a" * 90, "ß µ"]
    for name in names:
        code = code_of(name)
        assert 0 < len(code.value) <= 16
        assert 0 < len(code.meaning) <= 64
    assert code_of("rib_left_1").side == "left"
    assert code_of("vertebrae_L6").meaning == "Vertebra"
    assert code_of("a" * 90).value != code_of("a" * 91).value
    assert not code_of("vertebrae_C9").is_anatomy


class _Listener(SilentSink):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def emit(self, progress: object, /) -> None:
        self.seen.append(progress)


# --- What every reader promises -----------------------------------------------------------------


class TestBinaryReader(ReaderContract):
    format_id = "dicom"
    suffix = ".dcm"
    kind = "dicom-seg"

    def make_example(self, folder: Path) -> Path:
        path = folder / "example.dcm"
        path.write_bytes(_example(self.kind))
        return path


class TestLabelMapReader(TestBinaryReader):
    kind = "dicom-seg-labelmap"


@cache
def _example(kind: str) -> bytes:
    """Made once: every object has UIDs and times of its own, and a fuzz needs the same bytes."""
    with tempfile.TemporaryDirectory() as name:
        labels = _labels(open_volume(_series(Path(name) / "ct")))
        path = save_volume(labels, Path(name) / "seg.dcm", SaveOptions(format=kind))
        return path.read_bytes()
