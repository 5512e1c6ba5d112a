"""Spines: ordered by place alone, doubted where labels and places disagree."""

import csv
import io
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lamella.core.errors import AxesError, GeometryError, InputError, RunCancelledError
from lamella.core.progress import SilentSink
from lamella.measurement.spine import Spine, check_spine
from lamella.measurement.spine_curve import arc_positions, order_along, spine_samples
from lamella.measurement.spine_levels import (
    CLASS_MAPS,
    LEVELS,
    class_map,
    level_of,
    levels_between,
    levels_of,
    rank_of,
)
from lamella.measurement.spine_picture import draw_spine, vertebra_color
from lamella.measurement.spine_projection import project_spine
from lamella.measurement.vertebrae import Vertebra, find_vertebrae
from lamella.volume import Affine, Box, Labels, Volume

_COMMON = [level for level in LEVELS if level not in ("T13", "L6")]
_LUMBAR = ["T11", "T12", "L1", "L2", "L3", "L4", "L5", "S1"]


def _points(n: int, *, bend_mm: float = 0.0, step_mm: float = 30.0) -> np.ndarray:
    """Centres along an S-shaped curve, (z, y, x) from the head down."""
    at = np.linspace(0, 1, n)
    return np.stack(
        [
            -step_mm * (n - 1) * at,
            0.3 * bend_mm * np.sin(2 * np.pi * at),
            bend_mm * np.sin(1.5 * np.pi * at),
        ],
        axis=1,
    )


def _spine_labels(
    levels, *, spacing=3.0, step=10, size=6, values=None, gap_at=(), jitter=0.0
) -> tuple[Labels, dict[int, str]]:
    """Blocks from the head (high z) down; ``gap_at``: positions left empty."""
    n = len(levels) + len(gap_at)
    data = np.zeros((n * step + 8, 20, 20), np.uint8)
    meaning: dict[int, str] = {}
    names = iter(levels)
    for k in range(n):
        if k in gap_at:
            continue
        level = next(names)
        value = (values or {}).get(level, rank_of(level) + 1)
        z = data.shape[0] - 4 - (k + 1) * step + (step - size) // 2
        x = 7 + round(jitter * np.sin(k))
        data[z : z + size, 7:13, x : x + 6] = value
        meaning[value] = level
    labels = Labels.from_array(data, spacing=(spacing,) * 3, unit="mm", frame="RAS")
    return labels, meaning


def _checked(levels, **words) -> tuple[tuple[Vertebra, ...], Spine]:
    labels, meaning = _spine_labels(levels, **words)
    found = find_vertebrae(labels, meaning)
    return found, check_spine(found)


def _codes(spine: Spine) -> list[str]:
    return [finding.code for finding in spine.findings if not finding.is_hint]


# --- Levels -------------------------------------------------------------------------------------


def test_levels_are_read_from_names() -> None:
    for name, level in (
        ("vertebrae_C1", "C1"), ("vertebra L5", "L5"), ("T04", "T4"), ("l6", "L6"), ("T13", "T13"),
        ("S1", "S1"), ("vertebrae-T-12", "T12"), ("L3 vertebra", "L3"),
    ):  # fmt: skip
        assert level_of(name) == level
    for name in ("sacrum", "vertebrae", "C8", "T14", "L7", "S2", "rib_left_1", "", "TL1", "L3x"):
        assert level_of(name) is None


def test_class_maps_are_totalsegmentators() -> None:
    assert levels_of(class_map("total"))[26] == "S1"
    assert levels_of(class_map("total"))[50] == "C1"
    assert levels_of(class_map("total_v3"))[26] == "L6"
    assert levels_of(class_map("total_v1"))[18] == "L5"
    assert levels_of(class_map("total_v1"))[41] == "C1"
    assert levels_of(class_map("vertebrae_pp"))[1] == "C1"
    assert levels_of(class_map("vertebrae_pp"))[24] == "L5"
    assert levels_of(class_map("vertebrae_mr"))[25] == "C1"
    assert {len(known) for known in CLASS_MAPS.values()} == {24, 25}
    with pytest.raises(InputError, match="no class map 'v9'"):
        class_map("v9")


def test_variants_are_no_gap() -> None:
    assert levels_between("T12", "L1") == ()
    assert levels_between("L5", "S1") == ()
    assert levels_between("T12", "T13") == ()
    assert levels_between("T11", "T13") == ("T12",)
    assert levels_between("L4", "S1") == ("L5",)


# --- The curve ----------------------------------------------------------------------------------


@given(
    n=st.integers(2, 25),
    bend=st.floats(0, 0.2),
    seed=st.integers(0, 999),
    scale=st.floats(0.5, 1.5),
)
def test_the_order_is_found_whatever_the_bend(n, bend, seed, scale) -> None:
    """A bend of a fifth of the length to each side is a scoliosis that nobody stands with."""
    points = _points(n, bend_mm=bend * 30 * (n - 1), step_mm=30 * scale)
    shuffle = np.random.default_rng(seed).permutation(n)
    order = order_along(points[shuffle])
    assert_array_equal(shuffle[order], np.arange(n))


def test_a_curled_spine_is_followed_where_heights_jump() -> None:
    """A patient curled to three quarters of a circle: heights repeat, the path does not."""
    angle = np.linspace(0.2, 1.5 * np.pi, 22)
    points = np.stack([150 * np.cos(angle), 150 * np.sin(angle), 0 * angle], axis=1)
    by_height = np.argsort(-points[:, 0])
    assert not np.array_equal(by_height, np.arange(22))
    shuffle = np.random.default_rng(3).permutation(22)
    assert_array_equal(shuffle[order_along(points[shuffle])], np.arange(22))


def test_a_lying_spine_is_turned_by_its_labels() -> None:
    points = _points(8)[:, [2, 1, 0]]
    order = order_along(points[::-1], hints=list(range(8))[::-1])
    assert_array_equal(order, np.arange(8)[::-1])


def test_arc_length_is_longer_than_height_and_grows() -> None:
    points = _points(12, bend_mm=60)
    along = arc_positions(points)
    assert along[0] == 0
    assert all(b > a for a, b in pairwise(along))
    chords = np.linalg.norm(np.diff(points, axis=0), axis=1).sum()
    assert along[-1] >= chords - 1e-6
    assert along[-1] > points[0, 0] - points[-1, 0]
    straight = _points(9)
    assert_allclose(arc_positions(straight), 30.0 * np.arange(9), rtol=1e-6)
    assert arc_positions(straight[:1]).tolist() == [0.0]
    assert_allclose(spine_samples(straight[:1], 5), np.repeat(straight[:1], 5, axis=0))


# --- Vertebrae ----------------------------------------------------------------------------------


def test_measures_agree_with_scipy() -> None:
    from scipy import ndimage

    labels, meaning = _spine_labels(_LUMBAR, spacing=2.0)
    data = labels.load()
    for known in find_vertebrae(labels, meaning):
        mask = data == known.value
        assert_allclose(known.centroid_voxel, ndimage.center_of_mass(mask))
        assert_allclose(known.centroid_mm, np.array(known.centroid_voxel) * 2.0)
        assert known.volume_mm3 == mask.sum() * 8
        assert len(known.pieces) == 1
        assert not known.is_incomplete


@given(
    seed=st.integers(0, 99),
    margin=st.floats(0, 20),
    flip=st.tuples(*[st.booleans()] * 3),
)
def test_flipping_the_axes_changes_no_place_and_no_border(seed, margin, flip) -> None:
    """The same voxels counted the other way round: the same millimetres, the same faces."""
    data = np.zeros((12, 10, 9), np.uint8)
    rng = np.random.default_rng(seed)
    start = [int(rng.integers(0, n - 3)) for n in data.shape]
    data[tuple(slice(s, s + 3) for s in start)] = 30
    affine = Affine.diagonal((3.0, 2.0, 1.0), (-5.0, 4.0, 7.0), frame="RAS")
    labels = Labels(data=data, axes=Volume.from_array(data).axes, affine=affine, unit="mm")
    axes = [k for k in range(3) if flip[k]]
    direction = np.diag([-1.0 if f else 1.0 for f in flip])
    origin = affine.apply([n - 1 if f else 0 for n, f in zip(data.shape, flip, strict=True)])
    turned = Labels(
        data=np.flip(data, axes),
        axes=labels.axes,
        affine=Affine(affine.spacing, tuple(origin), tuple(map(tuple, direction)), "RAS"),
        unit="mm",
    )
    (one,) = find_vertebrae(labels, {30: "L2"}, margin_mm=margin)
    (other,) = find_vertebrae(turned, {30: "L2"}, margin_mm=margin)
    assert_allclose(one.centroid_mm, other.centroid_mm, atol=1e-9)
    assert set(one.borders) == set(other.borders)
    assert one.volume_mm3 == other.volume_mm3


def test_borders_are_named_in_the_patient() -> None:
    data = np.zeros((10, 10, 10), np.uint8)
    data[7:, 4:6, :3] = 30
    labels = Labels.from_array(data, spacing=(1, 1, 1), unit="mm", frame="RAS")
    (found,) = find_vertebrae(labels, {30: "L2"})
    assert set(found.borders) == {"superior", "left"}
    assert found.is_incomplete
    data[...] = 0
    data[4:6, 4:6, 4:6] = 30
    assert find_vertebrae(labels, {30: "L2"})[0].borders == ()
    assert len(find_vertebrae(labels, {30: "L2"}, margin_mm=5)[0].borders) == 6


def test_labels_end_where_they_tell_of_nothing_more() -> None:
    data = np.zeros((20, 20, 20), np.uint8)
    data[6:10, 8:12, 8:12] = 30
    labels = Labels.from_array(data, spacing=(1, 1, 1), unit="mm", frame="RAS")
    part = Box((6, 0, 0), (14, 20, 20))
    assert find_vertebrae(labels, {30: "L2"})[0].borders == ()
    assert find_vertebrae(labels, {30: "L2"}, within=part)[0].borders == ("inferior",)
    found = find_vertebrae(labels, {30: "L2"}, within=part, margin_mm=5)
    assert found[0].borders == ("inferior", "superior")


def test_units_are_converted() -> None:
    data = np.zeros((8, 8, 8), np.uint8)
    data[3:5, 3:5, 3:5] = 30
    labels = Labels.from_array(data, spacing=(2000, 2000, 2000), unit="um", frame="RAS")
    (found,) = find_vertebrae(labels, {30: "L2"})
    assert found.volume_mm3 == pytest.approx(64.0)
    assert found.centroid_mm == pytest.approx((7.0, 7.0, 7.0))


def test_labels_without_a_place_in_the_patient_are_refused() -> None:
    data = np.ones((4, 4, 4), np.uint8)
    with pytest.raises(GeometryError, match="where the head is"):
        find_vertebrae(Labels.from_array(data, spacing=(1, 1, 1), unit="mm"), {1: "L1"})
    with pytest.raises(GeometryError, match="how large"):
        find_vertebrae(Labels.from_array(data, frame="RAS"), {1: "L1"})
    with pytest.raises(AxesError, match="one volume"):
        find_vertebrae(
            Labels.from_array(np.ones((2, 4, 4, 4), np.uint8), axes="tzyx", unit="mm"), {1: "L1"}
        )


def test_cancelling() -> None:
    labels, meaning = _spine_labels(_LUMBAR)
    sink = SilentSink()
    sink.token.cancel()
    with pytest.raises(RunCancelledError):
        find_vertebrae(labels, meaning, sink=sink)


# --- Doubts -------------------------------------------------------------------------------------


def test_a_sound_spine_raises_no_doubt() -> None:
    for levels in (_COMMON, _LUMBAR, ["L3"], ["T5", "T6"], _COMMON[3:20]):
        found, spine = _checked(levels, jitter=2)
        assert spine.findings == ()
        assert [found[k].level for k in spine.order] == list(levels)
        assert spine.position_mm[0] == 0
    assert check_spine(()) == Spine((), (), ())


def test_a_level_that_is_missing_is_named_with_its_neighbours() -> None:
    _, spine = _checked(["T11", "T12", "L2", "L3", "L4"], gap_at=(2,))
    (finding,) = spine.findings
    assert finding.code == "level_missing"
    assert finding.levels == ("T12", "L1", "L2")
    assert "L1 is missing between T12 and L2" in finding.message
    assert "room for one vertebra" in finding.message


def test_several_missing_levels() -> None:
    _, spine = _checked(["T8", "T9", "L1", "L2", "L3"], gap_at=(2, 3, 4))
    assert _codes(spine) == ["level_missing"]
    assert "T10, T11 and T12 are missing" in spine.findings[0].message
    assert "3 vertebrae" in spine.findings[0].message


def test_a_level_that_is_skipped_is_another_matter() -> None:
    _, spine = _checked(["T10", "T11", "L1", "L2", "L3", "L4"])
    assert _codes(spine) == ["level_skipped"]
    assert "no room for a vertebra" in spine.findings[0].message
    (hint,) = [finding for finding in spine.findings if finding.is_hint]
    assert hint.code == "transitional_anatomy"
    assert "eleven thoracic" in hint.message


def test_swapped_levels() -> None:
    _, spine = _checked(["T11", "L1", "T12", "L2", "L3"])
    assert "levels_swapped" in _codes(spine)
    (finding,) = [f for f in spine.findings if f.code == "levels_swapped"]
    assert finding.levels == ("T12", "L1")
    assert "their neighbours are T11 and L2" in finding.message
    # Nothing is missing: both are there.
    assert "level_missing" not in _codes(spine)
    assert "level_skipped" not in _codes(spine)


def test_a_double_level() -> None:
    labels, meaning = _spine_labels(["L1", "L2", "L3", "L4", "L5"])
    data = labels.load().copy()
    data[data == rank_of("L4") + 1] = rank_of("L3") + 1
    labels = Labels.from_array(data, spacing=(3, 3, 3), unit="mm", frame="RAS")
    spine = check_spine(find_vertebrae(labels, meaning))
    assert _codes(spine) == ["level_double", "level_missing"]
    assert "L3 is there twice" in spine.findings[0].message
    assert "between L3 and L5" in spine.findings[0].message
    assert "a label that does not fit" in spine.findings[1].message


def test_a_gap_without_a_missing_level() -> None:
    """The labels go on, but a vertebra between them has none."""
    _, spine = _checked(["T12", "L1", "L2", "L3", "L4"], gap_at=(3,))
    assert _codes(spine) == ["spine_gap"]
    assert (
        "L2 and L3 lie" in spine.findings[0].message or "L1 and L2 lie" in spine.findings[0].message
    )


def test_a_label_that_covers_two_vertebrae_is_large() -> None:
    labels, meaning = _spine_labels(["T12", "L1", "L2", "L3", "L4"])
    data = labels.load().copy()
    value = rank_of("L2") + 1
    z = np.argwhere(data == value)[:, 0]
    data[z.min() : z.max() + 7, 7:13, 7:13] = value
    labels = Labels.from_array(data, spacing=(3, 3, 3), unit="mm", frame="RAS")
    found = check_spine(find_vertebrae(labels, meaning)).findings
    assert "level_large" in [finding.code for finding in found]
    assert "L2 is" in next(f for f in found if f.code == "level_large").message


def test_a_crumb_far_off_is_told() -> None:
    labels, meaning = _spine_labels(_LUMBAR)
    data = labels.load().copy()
    data[-6:-4, 17:19, 17:19] = rank_of("L4") + 1
    labels = Labels.from_array(data, spacing=(3, 3, 3), unit="mm", frame="RAS")
    found = find_vertebrae(labels, meaning)
    spine = check_spine(found)
    assert _codes(spine) == ["level_in_pieces"]
    assert spine.findings[0].levels == ("L4",)
    # The order is that of the large pieces all the same.
    assert [found[k].level for k in spine.order] == _LUMBAR
    # A single voxel is a crumb wherever it lies.
    data[data == 0] = 0
    small = labels.load().copy()
    small[-6:-4, 17:19, 17:19] = 0
    small[-5, 18, 18] = rank_of("L4") + 1
    labels = Labels.from_array(small, spacing=(3, 3, 3), unit="mm", frame="RAS")
    assert check_spine(find_vertebrae(labels, meaning)).findings == ()


def test_an_arch_that_came_off_is_no_second_vertebra() -> None:
    data = np.zeros((60, 40, 20), np.uint8)
    for k, value in enumerate((22, 23, 24)):
        data[42 - k * 16 : 50 - k * 16, 22:34, 6:14] = value
        data[42 - k * 16 : 50 - k * 16, 6:12, 6:14] = value
    labels = Labels.from_array(data, spacing=(2, 2, 2), unit="mm", frame="RAS")
    found = find_vertebrae(labels, {22: "L1", 23: "L2", 24: "L3"})
    assert all(len(known.pieces) == 2 for known in found)
    assert "level_double" not in _codes(check_spine(found))


def test_cut_vertebrae_may_fall_into_pieces() -> None:
    data = np.zeros((30, 40, 20), np.uint8)
    data[26:30, 22:34, 6:14] = 22
    data[26:30, 4:12, 6:14] = 22
    data[8:16, 20:34, 6:14] = 23
    labels = Labels.from_array(data, spacing=(2, 2, 2), unit="mm", frame="RAS")
    assert "level_double" not in _codes(check_spine(find_vertebrae(labels, {22: "L1", 23: "L2"})))


def test_variants_are_hints() -> None:
    _, spine = _checked(["L3", "L4", "L5", "L6", "S1"])
    assert _codes(spine) == []
    assert [finding.code for finding in spine.findings] == ["transitional_anatomy"]
    _, spine = _checked(["T11", "T12", "T13", "L1", "L2"])
    assert _codes(spine) == []
    _, spine = _checked(["L2", "L3", "L4", "S1"])
    assert "four lumbar" in next(f for f in spine.findings if f.is_hint).message


@given(missing=st.integers(1, 22), seed=st.integers(0, 9))
def test_every_single_missing_level_is_found(missing, seed) -> None:
    levels = [level for k, level in enumerate(_COMMON[:24]) if k != missing]
    _, spine = _checked(levels, gap_at=(missing,), jitter=seed % 3)
    (finding,) = [f for f in spine.findings if not f.is_hint]
    assert finding.code == "level_missing"
    assert _COMMON[missing] in finding.levels


@given(first=st.integers(0, 22))
def test_every_exchange_of_neighbours_is_found(first) -> None:
    levels = list(_COMMON[:24])
    levels[first], levels[first + 1] = levels[first + 1], levels[first]
    _, spine = _checked(levels)
    assert "levels_swapped" in _codes(spine)
    swapped = next(f for f in spine.findings if f.code == "levels_swapped")
    assert set(swapped.levels) == {levels[first], levels[first + 1]}


# --- Pictures -----------------------------------------------------------------------------------


def test_projections_hang_as_radiologists_hang_them() -> None:
    labels, meaning = _spine_labels(_LUMBAR)
    found = find_vertebrae(labels, meaning)
    image = Volume.from_array(
        np.where(labels.load() > 0, 800, -50).astype(np.int16),
        spacing=(3, 3, 3), unit="mm", frame="RAS",
    )  # fmt: skip
    side, front = project_spine(labels, found, image)
    assert (side.left, side.right, front.left, front.right) == ("A", "P", "R", "L")
    # The head is above: the first vertebra's row is the smallest.
    assert side.centroids[0, 0] == side.centroids[:, 0].min()
    assert side.intensities is not None
    assert side.intensities.max() == 800
    assert set(np.unique(side.labels)) == {0, *meaning}
    for view in (side, front):
        for known, (row, column) in zip(found, view.centroids, strict=True):
            assert view.labels[round(row), round(column)] == known.value


def test_an_asymmetric_patient_is_not_mirrored() -> None:
    """A bright rod on the patient's right and one in front of the spine show on their sides."""
    labels, meaning = _spine_labels(["L1", "L2", "L3"])
    data = np.full(labels.shape, -100, np.int16)
    data[:, 10, 13] = 900  # +x in RAS is right: three voxels beyond the block
    data[:, 14, 10] = 700  # +y is anterior
    image = Volume.from_array(data, spacing=(3, 3, 3), unit="mm", frame="RAS")
    side, front = project_spine(labels, find_vertebrae(labels, meaning), image)
    assert front.intensities is not None
    assert side.intensities is not None
    assert np.argmax(front.intensities[10]) < front.centroids[0, 1]
    assert np.argmax(np.where(side.intensities[10] == 700, 1, 0)) < side.centroids[0, 1]


def test_pictures_are_drawn_with_and_without_image_and_for_one_vertebra() -> None:
    for levels in (_LUMBAR, ["L3"], _COMMON):
        labels, meaning = _spine_labels(levels)
        found = find_vertebrae(labels, meaning)
        for image in (None, labels):
            picture = draw_spine(
                labels, found, image=image, title="x", warnings=["w " * 200], doubtful=[levels[0]]
            )
            assert picture.dtype == np.uint8
            assert picture.shape[2] == 3
            assert 300 < picture.shape[1] < 1500
            for known in found:
                tone = np.array(vertebra_color(known.level))
                assert (np.abs(picture.astype(int) - tone).sum(axis=2) < 12).any(), known.level


def test_neighbours_have_different_colours() -> None:
    for one, other in pairwise(_COMMON):
        assert vertebra_color(one) != vertebra_color(other)


def test_the_table_has_one_row_a_vertebra() -> None:
    from lamella.measurement.spine_table import vertebrae_csv
    from lamella.wire.vertebrae import (
        LevelNoteDoc,
        SpineLabelsFact,
        VertebraConfidenceDoc,
        VertebraDoc,
        VertebraReport,
    )

    known = VertebraDoc(
        level="L1", value=31, centroid_ras_mm=(1, 2, 3), centroid_lps_mm=(-1, -2, 3),
        centroid_voxel_zyx=(4, 5, 6), box_start_zyx=(0, 0, 0), box_stop_zyx=(9, 9, 9),
        n_voxels=10, volume_mm3=270, position_mm=0, is_incomplete=True, borders=("superior",),
        n_components=2,
        confidence=VertebraConfidenceDoc(
            measures={"probability": 0.9}, is_calibrated=False, note="uncalibrated"
        ),
    )  # fmt: skip
    report = VertebraReport(
        labels=SpineLabelsFact(class_map="total"), shape_zyx=(9, 9, 9), spacing_mm_zyx=(3, 3, 3),
        margin_mm=2, vertebrae=(known,), confidence_note="",
        warnings=(LevelNoteDoc(code="level_missing", message="", levels=("T12", "L1")),),
    )  # fmt: skip
    (row,) = csv.DictReader(io.StringIO(vertebrae_csv(report)))
    assert row["level"] == "L1"
    assert float(row["x_lps_mm"]) == -1
    assert row["incomplete"] == "yes"
    assert row["confidence_probability"] == "0.9000"
    assert row["confidence_calibrated"] == "no"
    assert row["warnings"] == "level_missing"
    assert VertebraReport.parse_json(report.to_json(), what="x") == report
