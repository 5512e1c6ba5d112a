"""Modality: headers decide, statements count where headers are silent, projections are refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import AxesError, GeometryError, InputError
from lamella.io.format import OpenOptions, open_volume
from lamella.io.modality import check_ct_or_mr, find_modality
from lamella.volume import Volume

_CT = "CT Image Storage"


def _hounsfield(shape=(6, 8, 8), low=-1000, high=1200, dtype=np.int16):
    return np.linspace(low, high, int(np.prod(shape))).astype(dtype).reshape(shape)


def _volume(data=None, spacing=(3.0, 1.0, 1.0), unit="mm", **metadata):
    data = _hounsfield() if data is None else data
    return Volume.from_array(
        data, spacing=spacing, unit=unit, frame="RAS", name="scan", metadata=metadata
    )


def test_dicom_of_a_scanner_is_known_by_its_header(data_dir: Path) -> None:
    volume = open_volume(data_dir / "medical/totalsegmentator/example_ct_dicom")
    found = check_ct_or_mr(volume, allowed=("CT",))
    assert found.kind == "CT"
    assert "CT Image Storage" in found.evidence
    assert found.notes == ()


@pytest.mark.parametrize(
    ("tag", "sop_class", "kind", "reason"),
    [
        ("CR", "Computed Radiography Image Storage", "X-ray", "projection"),
        ("DX", "Digital X-Ray Image Storage - For Presentation", "X-ray", "projection"),
        ("RF", "X-Ray Radiofluoroscopic Image Storage", "X-ray", "projection"),
        ("XA", "Enhanced XA Image Storage", "X-ray", "projection"),
        ("MG", "Digital Mammography X-Ray Image Storage - For Processing", "X-ray", "projection"),
        ("MG", "Breast Tomosynthesis Image Storage", "X-ray", "projection"),
        ("", "Enhanced XRF Image Storage", "X-ray", "projection"),
        ("XA", "", "X-ray", "projection"),
        ("US", "Ultrasound Multi-frame Image Storage", "ultrasound", "echoes"),
        ("PT", "Positron Emission Tomography Image Storage", "PET", "tracer"),
        ("NM", "Nuclear Medicine Image Storage", "PET", "tracer"),
        ("SM", "VL Whole Slide Microscopy Image Storage", "micrograph", "cells"),
        ("XC", "VL Photographic Image Storage", "photograph", "surfaces"),
        ("SEG", "Segmentation Storage", "segmentation", "labels"),
        ("CT", "Segmentation Storage", "segmentation", "labels"),
        ("CT", "Secondary Capture Image Storage", "secondary capture", "picture of an image"),
        ("RTDOSE", "RT Dose Storage", "other", "neither"),
    ],
)
def test_what_is_neither_ct_nor_mr_is_refused_with_the_reason(
    tag: str, sop_class: str, kind: str, reason: str
) -> None:
    volume = _volume(modality=tag, sop_class=sop_class)
    assert find_modality(volume).kind == kind
    with pytest.raises(InputError, match=reason) as caught:
        check_ct_or_mr(volume, purpose="the task total")
    assert caught.value.message.startswith("the task total needs CT or MR, but scan is not")
    assert (tag or sop_class) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("stated", ["CT", "MR"])
def test_a_statement_never_turns_an_x_ray_into_ct(stated: str) -> None:
    with pytest.raises(InputError, match="projection"):
        check_ct_or_mr(_volume(modality="DX"), stated)  # type: ignore[arg-type]


def test_a_grey_secondary_capture_may_be_stated() -> None:
    volume = _volume(modality="CT", sop_class="Multi-frame Grayscale Word Secondary Capture")
    found = check_ct_or_mr(volume, "CT")
    assert found.kind == "CT"
    assert [note.code for note in found.notes] == ["modality_stated"]


def test_a_localizer_is_a_projection() -> None:
    volume = _volume(modality="CT", sop_class=_CT, image_type="ORIGINAL, PRIMARY, LOCALIZER")
    with pytest.raises(InputError, match="scout"):
        check_ct_or_mr(volume)


def test_a_contradiction_of_the_header_is_refused() -> None:
    with pytest.raises(InputError, match="contradicts"):
        check_ct_or_mr(_volume(modality="MR", sop_class="MR Image Storage"), "CT")


def test_ct_where_mr_is_needed_is_refused_and_names_what_to_do() -> None:
    with pytest.raises(InputError, match="needs MR, but scan is CT") as caught:
        check_ct_or_mr(_volume(modality="CT", sop_class=_CT), allowed=("MR",))
    assert "trained on CT" in (caught.value.hint or "")


def test_silent_files_with_hounsfield_values_are_taken_as_ct_with_a_warning() -> None:
    assert find_modality(_volume()).kind == "unknown"
    found = check_ct_or_mr(_volume(), allowed=("CT",))
    assert found.kind == "CT"
    assert [note.code for note in found.notes] == ["modality_unknown"]
    assert check_ct_or_mr(_volume()).kind == "CT"
    with pytest.raises(InputError, match="seems to be CT"):
        check_ct_or_mr(_volume(), allowed=("MR",))


def test_silent_files_with_other_values_must_be_stated_for_ct() -> None:
    volume = _volume(_hounsfield(low=0, high=700))
    with pytest.raises(InputError, match="do not look like it"):
        check_ct_or_mr(volume, allowed=("CT",))
    with pytest.raises(InputError, match="CT or MR"):
        check_ct_or_mr(volume)
    assert check_ct_or_mr(volume, "MR").kind == "MR"
    found = check_ct_or_mr(volume, allowed=("MR",))
    assert found.kind == "MR"
    assert [note.code for note in found.notes] == ["modality_unknown"]


@pytest.mark.parametrize(
    ("low", "high", "dtype", "doubt"),
    [(0, 3000, np.uint16, "rescale"), (0, 255, np.uint8, "8 bits"), (-50, 90, np.int16, "no air")],
)
def test_a_ct_without_hounsfield_units_is_doubted(low, high, dtype, doubt) -> None:
    found = find_modality(_volume(_hounsfield(low=low, high=high, dtype=dtype)), "CT")
    assert found.kind == "CT"
    assert [note.code for note in found.notes] == ["values_not_hounsfield"]
    assert doubt in found.notes[0].message


def test_colours_and_micrographs_are_refused_even_when_stated() -> None:
    colours = Volume.from_array(
        np.zeros((3, 4, 8, 8), np.uint8), axes="czyx", spacing=(1, 1, 1), unit="mm"
    )
    with pytest.raises(InputError, match="3 colours"):
        check_ct_or_mr(colours, "CT")
    with pytest.raises(InputError, match="finer than any scanner"):
        check_ct_or_mr(_volume(spacing=(50, 4, 4), unit="nm"), "CT")
    with pytest.raises(InputError, match="cells"):
        check_ct_or_mr(_volume(spacing=(2, 0.5, 0.5), unit="um"))
    # Micrometres alone are no proof: some archives give CT in them.
    assert check_ct_or_mr(_volume(spacing=(3000, 900, 900), unit="um"), "CT").kind == "CT"


def test_single_images_several_volumes_and_unknown_sizes_are_refused() -> None:
    with pytest.raises(AxesError, match="single image"):
        check_ct_or_mr(Volume.from_array(_hounsfield((8, 8)), spacing=(1, 1), unit="mm"), "CT")
    several = Volume.from_array(
        _hounsfield((2, 4, 8, 8)), axes="tzyx", spacing=(1, 1, 1), unit="mm"
    )
    with pytest.raises(AxesError, match="2 along t"):
        check_ct_or_mr(several, "CT")
    with pytest.raises(GeometryError, match="how large"):
        check_ct_or_mr(replace(_volume(), unit="voxel"), "CT")


def test_real_nifti_of_ct_and_mr(data_dir: Path) -> None:
    folder = data_dir / "medical/totalsegmentator"
    scan = open_volume(folder / "example_ct.nii.gz")
    assert check_ct_or_mr(scan, allowed=("CT",)).likely == "CT"
    assert check_ct_or_mr(scan, "CT").notes == ()
    mr = open_volume(folder / "example_mr_sm.nii.gz")
    assert find_modality(mr).likely is None
    assert check_ct_or_mr(mr, allowed=("MR",)).kind == "MR"
    with pytest.raises(InputError):
        check_ct_or_mr(mr, allowed=("CT",))


def test_a_real_x_ray_of_pydicom() -> None:
    from pydicom.data import get_testdata_files

    path = next(name for name in get_testdata_files() if name.endswith("6154"))
    volume = open_volume(path, OpenOptions())
    assert find_modality(volume).kind == "X-ray"
    with pytest.raises(InputError, match="projection"):
        check_ct_or_mr(volume, "CT")


@given(
    low=st.floats(-3e4, 3e4), span=st.floats(0, 6e4), stated=st.sampled_from(["auto", "CT", "MR"])
)
def test_no_values_stop_the_search(low: float, span: float, stated) -> None:
    data = np.linspace(low, low + span, 4 * 4 * 4).astype(np.float32).reshape(4, 4, 4)
    found = find_modality(_volume(data), stated)
    assert found.kind == ("unknown" if stated == "auto" else stated)


def test_not_a_number_is_no_value() -> None:
    data = np.full((3, 4, 4), np.nan, np.float32)
    assert find_modality(_volume(data)).kind == "unknown"
