"""Vertebrae from a CT or from labels, by the Python API: places judged by nibabel and scipy."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import lamella as lm
from lamella.core.errors import (
    EngineError,
    GeometryError,
    InputError,
    LamellaError,
    MissingPathError,
    OutputExistsError,
)
from lamella.core.places import Places
from lamella.io.format import open_labels, open_volume, save_volume
from lamella.volume import Box, LabelClass, Labels, Volume
from lamella.wire.card import ClassDoc
from lamella.wire.vertebrae import VertebraReport

REFERENCE = "medical/totalsegmentator/spine_report/example_ct_report/totalseg.nii.gz"
CT = "medical/totalsegmentator/example_ct.nii.gz"
LEVELS = ["T11", "T12", "L1", "L2", "L3", "L4", "L5", "S1"]


@pytest.fixture
def spine(tmp_path: Path) -> Path:
    """Labels of five vertebrae, NIfTI without names, in TotalSegmentator's values."""
    return _write(_block_labels(), tmp_path / "spine.nii.gz")


def _block_labels(values=(31, 30, 29, 28, 27)) -> Labels:
    data = np.zeros((60, 20, 20), np.uint8)
    for k, value in enumerate(values):
        top = 55 - 11 * k
        data[top - 7 : top, 7:13, 7:13] = value
    return Labels.from_array(data, spacing=(3, 3, 3), unit="mm", frame="RAS", name="spine")


def _write(labels: Labels, path: Path) -> Path:
    """As other programs write: no names of classes."""
    import nibabel as nib

    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    image = nib.Nifti1Image(labels.load().T.astype(np.uint8), affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def _codes(found) -> list[str]:
    return [note.code for note in found.report.warnings]


# --- The reference ------------------------------------------------------------------------------


def test_reference_segmentation_gives_t11_to_s1_where_nibabel_and_scipy_see_them(
    data_dir: Path,
) -> None:
    import nibabel as nib
    from scipy import ndimage

    image = nib.load(data_dir / REFERENCE)
    values = np.asarray(image.dataobj)
    found = lm.detect_vertebrae(data_dir / CT, labels=data_dir / REFERENCE)
    assert [known.level for known in found.vertebrae] == LEVELS
    assert [known.value for known in found.vertebrae] == list(range(33, 25, -1))
    for known in found.vertebrae:
        index = ndimage.center_of_mass(values == known.value)
        expected = nib.affines.apply_affine(image.affine, index)
        assert np.linalg.norm(np.subtract(known.centroid_ras_mm, expected)) < 1e-3
        assert_allclose(known.centroid_lps_mm, expected * (-1, -1, 1), atol=1e-3)
        assert_allclose(known.centroid_voxel_zyx, index[::-1], atol=1e-6)
        assert known.volume_mm3 == pytest.approx((values == known.value).sum() * 27.0)
        assert known.n_components == ndimage.label(values == known.value, np.ones((3, 3, 3)))[1]
        assert known.confidence is None
    assert [known.level for known in found.vertebrae if known.is_incomplete] == ["T11", "T12"]
    assert found.vertebrae[0].borders == ("superior",)
    assert found.report.warnings == ()
    assert "no probabilities" in found.report.confidence_note
    assert found.report.labels.class_map == "file"
    positions = [known.position_mm for known in found.vertebrae]
    assert positions[0] == 0
    assert positions == sorted(positions)


def test_the_refined_map_counts_from_c1(data_dir: Path) -> None:
    path = data_dir / "medical/totalsegmentator/spine_report/test_result"
    found = lm.detect_vertebrae(labels=path / "totalseg_vertebrae_pp_refined.nii.gz")
    assert [known.level for known in found.vertebrae] == LEVELS[1:-1]


def test_dicom_in_dicom_segmentation_out(data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "medical/totalsegmentator"
    found = lm.detect_vertebrae(
        folder / "example_ct_dicom", labels=folder / "example_seg_dicom.nii.gz"
    )
    assert [known.level for known in found.vertebrae] == ["T11", "T12"]
    again = open_labels(found.save(tmp_path / "spine.dcm"))
    assert again.same_grid(open_volume(folder / "example_ct_dicom"))
    assert [known.name for known in again.classes] == ["vertebrae_T12", "vertebrae_T11"]
    assert_array_equal(again.load(), found.labels.load())
    # dcm2niix turned the labels' y axis around: voxel coordinates are the series' own here.
    t11 = found.vertebrae[0]
    index = np.argwhere(again.load() == 33).mean(axis=0)
    assert_allclose(t11.centroid_voxel_zyx, index)


# --- What the labels mean -----------------------------------------------------------------------


def test_labels_without_names_are_taken_for_total_and_it_is_said(spine: Path) -> None:
    found = lm.detect_vertebrae(labels=spine)
    assert [known.level for known in found.vertebrae] == ["L1", "L2", "L3", "L4", "L5"]
    assert _codes(found) == ["class_map_assumed"]
    assert found.report.labels.class_map == "total"
    stated = lm.detect_vertebrae(labels=spine, class_map="total")
    assert _codes(stated) == []


@pytest.mark.parametrize(
    ("name", "first", "level"),
    [("total_v1", 18, "L5"), ("total_v3", 26, "L6"), ("total", 26, "S1")],
)
def test_known_maps(tmp_path: Path, name: str, first: int, level: str) -> None:
    values = tuple(range(first + 4, first - 1, -1))
    path = _write(_block_labels(values), tmp_path / "v.nii.gz")
    found = lm.detect_vertebrae(labels=path, class_map=name)
    assert found.vertebrae[-1].level == level
    assert _codes(found) == []
    hints = [note.code for note in found.report.hints]
    assert hints == (["transitional_anatomy"] if level == "L6" else [])


def test_maps_of_files(spine: Path, tmp_path: Path) -> None:
    for k, document in enumerate(
        (
            {str(value): f"L{32 - value}" for value in range(27, 32)},
            {f"vertebrae_L{32 - value}": value for value in range(27, 32)},
            {"labels": {"background": 0, **{f"L{32 - v}": v for v in range(27, 32)}}},
        )
    ):
        path = tmp_path / f"map{k}.json"
        path.write_text(json.dumps(document))
        found = lm.detect_vertebrae(labels=spine, class_map=str(path))
        assert [known.level for known in found.vertebrae] == ["L1", "L2", "L3", "L4", "L5"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no class map"),
        ("[1, 2]", "no object"),
        ('{"a": {}}', "no value with its name"),
        ('{"1": "L1", "L2": 1}', "twice"),
        ('{"1": "liver"}', "is a vertebra"),
    ],
)
def test_files_that_are_no_maps(spine: Path, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "map.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        lm.detect_vertebrae(labels=spine, class_map=str(path))


def test_maps_that_are_not_there(spine: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingPathError):
        lm.detect_vertebrae(labels=spine, class_map=str(tmp_path / "none.json"))
    with pytest.raises(InputError, match="no class map 'totl'") as caught:
        lm.detect_vertebrae(labels=spine, class_map="totl")
    assert "total_v3" in (caught.value.hint or "")


def test_object_ids_and_other_classes_are_refused() -> None:
    labels = _block_labels()
    with pytest.raises(InputError, match="ids of objects"):
        lm.detect_vertebrae(labels=replace(labels, is_instance=True))
    with pytest.raises(InputError, match="no class of the labels is a vertebra"):
        lm.detect_vertebrae(labels=replace(labels, classes=(LabelClass(31, "liver"),)))


# --- Doubts and borders -------------------------------------------------------------------------


def test_doubts_are_warnings_and_events() -> None:
    class Listener:
        def __init__(self) -> None:
            self.codes: list[str] = []

        def emit(self, event) -> None:
            self.codes.append(getattr(event, "code", ""))

        def check(self) -> None:
            return

    sink = Listener()
    found = lm.detect_vertebrae(
        labels=_block_labels((31, 29, 30, 28, 27)), class_map="total", sink=sink
    )
    assert _codes(found) == ["levels_swapped"]
    assert found.report.warnings[0].levels == ("L2", "L3")
    assert "levels_swapped" in sink.codes


def test_nothing_found_is_a_warning(tmp_path: Path) -> None:
    labels = _block_labels((1, 2, 3, 4, 5))
    found = lm.detect_vertebrae(labels=labels, class_map="total")
    assert found.vertebrae == ()
    assert _codes(found) == ["no_vertebrae"]
    assert found.save(tmp_path / "a.json").exists()
    assert found.save(tmp_path / "a.csv").read_text().count("\n") == 1
    with pytest.raises(InputError, match="no vertebra to draw"):
        found.save(tmp_path / "a.png")


def test_the_margin_decides_what_is_whole() -> None:
    labels = _block_labels()
    assert not any(k.is_incomplete for k in lm.detect_vertebrae(labels=labels).vertebrae)
    found = lm.detect_vertebrae(labels=labels, margin_mm=30.0)
    assert all(known.is_incomplete for known in found.vertebrae)
    assert found.report.margin_mm == 30.0


def test_labels_of_a_part_of_the_image_say_which(tmp_path: Path) -> None:
    whole = _block_labels()
    image = Volume.from_array(
        np.zeros(whole.shape, np.int16), spacing=(3, 3, 3), unit="mm", frame="RAS"
    )
    part = Box((0, 0, 2), (48, 20, 20))  # through L1, from above
    found = lm.detect_vertebrae(image, labels=whole.crop(part), class_map="total", modality="CT")
    assert _codes(found) == ["labels_cover_part"]
    (note,) = found.report.warnings
    assert "72 % of the image" in note.message
    assert "z 0 to 47 of 0 to 59, x 2 to 19 of 0 to 19" in note.message
    assert "(36 mm superior, 6 mm left)" in note.message
    assert found.report.labels.covered_start_zyx == (0, 0, 2)
    assert found.report.labels.covered_stop_zyx == (48, 20, 20)
    (cut, *others) = found.vertebrae
    # What was segmented ends at z = 48, where L1 begins: it is not there at all.
    assert cut.level == "L2"
    assert not cut.is_incomplete
    assert len(others) == 3
    part = Box((0, 0, 0), (51, 20, 20))
    found = lm.detect_vertebrae(image, labels=whole.crop(part), class_map="total", modality="CT")
    assert (found.vertebrae[0].level, found.vertebrae[0].borders) == ("L1", ("superior",))
    whole_found = lm.detect_vertebrae(image, labels=whole, class_map="total", modality="CT")
    assert whole_found.report.warnings == ()
    assert whole_found.report.labels.covered_start_zyx is None


def test_labels_must_lie_on_the_image(data_dir: Path) -> None:
    with pytest.raises(GeometryError, match=r"reach beyond|do not lie"):
        lm.detect_vertebrae(
            data_dir / "medical/totalsegmentator/example_ct_sm.nii.gz", labels=data_dir / REFERENCE
        )


# --- Files --------------------------------------------------------------------------------------


def test_every_format_is_written_and_read_again(data_dir: Path, tmp_path: Path) -> None:
    from PIL import Image

    found = lm.detect_vertebrae(data_dir / CT, labels=data_dir / REFERENCE)
    report = VertebraReport.read(found.save(tmp_path / "spine.json"))
    assert report == found.report
    table = found.save(tmp_path / "spine.csv").read_text().splitlines()
    assert len(table) == 9
    labels = open_labels(found.save(tmp_path / "spine.nii.gz"))
    assert_array_equal(labels.load(), open_labels(data_dir / REFERENCE).load())
    assert labels.class_name(33) == "vertebrae_T11"
    picture = np.asarray(Image.open(found.save(tmp_path / "spine.png")))
    assert_array_equal(picture, found.picture())
    assert found.save(tmp_path / "report", format="json").read_text().startswith("{")
    with pytest.raises(OutputExistsError):
        found.save(tmp_path / "spine.json")
    found.save(tmp_path / "spine.json", overwrite=True)
    with pytest.raises(LamellaError):
        found.save(tmp_path / "spine.docx")
    with pytest.raises(InputError, match="must refer to a DICOM series"):
        found.save(tmp_path / "spine.dcm")


def test_labels_hold_vertebrae_alone(data_dir: Path) -> None:
    whole = data_dir / "medical/totalsegmentator/example_seg.nii.gz"
    found = lm.detect_vertebrae(labels=whole)
    assert set(np.unique(found.labels.load())) == {0, 30, 31, 32, 33}
    assert len(found.labels.classes) == 4


# --- Runs ---------------------------------------------------------------------------------------


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A CT of bright blocks on dark ground."""
    rng = np.random.default_rng(0)
    data = rng.normal(-900, 30, (40, 24, 24))
    data[10:28, 8:16, 8:16] = 900
    volume = Volume.from_array(
        data.astype(np.float32), spacing=(3, 3, 3), unit="mm", frame="RAS", name="scan"
    )
    return save_volume(volume, tmp_path / "scan.nii.gz")


@pytest.fixture
def spine_model(tmp_path: Path):
    """A model that calls what is bright L3."""
    import importlib.util

    where = Path(__file__).parents[1] / "engines" / "lamella_models.py"
    spec = importlib.util.spec_from_file_location("lamella_models_for_spines", where)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    classes = (ClassDoc(value=0, name="background"), ClassDoc(value=1, name="vertebrae_L3"))
    module.make_folder(tmp_path / "spine", classes=classes)
    return tmp_path / "spine"


def test_a_model_is_run_in_a_folder_and_its_run_is_taken_again(
    scan: Path, spine_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "spine.run"
    found = lm.detect_vertebrae(scan, model=str(spine_model), run_dir=folder)
    (known,) = found.vertebrae
    assert known.level == "L3"
    assert_allclose(known.centroid_voxel_zyx, (18.5, 11.5, 11.5), atol=0.5)
    assert found.run is not None
    assert found.run.is_finished
    assert found.report.labels.run == str(folder)
    assert found.report.labels.class_map == "the model"
    for name in ("json", "csv", "png"):
        assert Path(found.report.outputs[name]) == folder / f"vertebrae.{name}"
        assert (folder / f"vertebrae.{name}").stat().st_size > 0
    again = lm.detect_vertebrae(scan, model=str(spine_model), run_dir=folder)
    assert again.run is not None
    assert again.run.was_finished
    assert again.vertebrae == found.vertebrae
    lm.detect_vertebrae(scan, model=str(spine_model), run_dir=folder, fresh=True)


def test_confidence_is_the_runs_and_marked_uncalibrated(
    scan: Path, spine_model: Path, tmp_path: Path
) -> None:
    found = lm.detect_vertebrae(scan, model=str(spine_model), run_dir=tmp_path / "a.run")
    own = found.vertebrae[0].confidence
    if own is None:
        assert "no probabilities" in found.report.confidence_note
    else:
        assert not own.is_calibrated
        assert "uncalibrated" in own.note
        assert all(0 <= value <= 1 for value in own.measures.values())


def test_models_of_other_things_find_no_vertebrae(scan: Path, model_path: Path, tmp_path: Path):
    with pytest.raises(InputError, match="no class of the model is a vertebra"):
        lm.detect_vertebrae(scan, model=str(model_path), run_dir=tmp_path / "a.run")


def test_without_totalsegmentator_the_command_that_installs_it_is_named(
    scan: Path, tmp_path: Path
) -> None:
    places = Places(models=tmp_path / "m", environments=tmp_path / "e")
    with pytest.raises(LamellaError) as caught:
        lm.detect_vertebrae(scan, places=places, run_dir=tmp_path / "a.run")
    assert not isinstance(caught.value, EngineError)
    assert "engines install totalsegmentator" in (caught.value.hint or "")
    assert not (tmp_path / "a.run").exists()


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"modality": "DX", "sop_class": "Digital X-Ray Image Storage"}, "projection"),
        ({"modality": "MR", "sop_class": "MR Image Storage"}, "is MR"),
        ({"modality": "US", "sop_class": "Ultrasound Image Storage"}, "echoes"),
    ],
)
def test_what_is_no_ct_is_refused_before_anything_runs(scan: Path, metadata, reason) -> None:
    volume = replace(open_volume(scan), metadata=metadata)
    with pytest.raises(InputError, match=reason):
        lm.detect_vertebrae(volume)


def test_neither_image_nor_labels() -> None:
    with pytest.raises(InputError, match="neither an image nor a segmentation"):
        lm.detect_vertebrae()


def test_unknown_options_are_named(spine: Path) -> None:
    with pytest.raises(InputError, match="unknown option margins"):
        lm.detect_vertebrae(labels=spine, margins=3)
