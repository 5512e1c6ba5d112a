"""The report: true proportions, the same numbers everywhere, nothing fetched, nothing injected."""

import io
import json
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image

from lamella.measurement import measure_labels
from lamella.measurement.report import ReportSource, make_report, overview_png
from lamella.measurement.report_chart import draw_histogram, short_number, size_histogram
from lamella.measurement.report_projection import draw_projection
from lamella.measurement.report_slices import (
    best_position,
    contrast_limits,
    draw_ortho,
    encode_png,
    nice_length,
)
from lamella.volume import FunctionArray, LabelClass, Labels, Volume

CLASSES = (LabelClass(1, "ribosome", (255, 0, 0)), LabelClass(2, "membrane", (0, 0, 255)))


def labels_of(data, spacing=(2.0, 1.0, 1.0), **fields):
    fields.setdefault("classes", CLASSES)
    return Labels.from_array(data, spacing=spacing[-data.ndim :], unit="nm", **fields)


def two_boxes(shape=(20, 40, 60)):
    data = np.zeros(shape, np.uint8)
    data[8:14, 10:20, 30:50] = 1
    data[11, 30:38, 5:25] = 2
    return data


def source(data=None, **fields):
    labels = labels_of(two_boxes() if data is None else data)
    fields.setdefault("table", measure_labels(labels))
    return ReportSource(title="t", lead="l", labels=labels, is_per_class=True, **fields)


class TestSlices:
    def test_the_position_shows_every_class(self):
        data = two_boxes()
        z, y, x = best_position(labels_of(data))
        assert set(np.unique(data[z])) == {0, 1, 2}
        assert data[:, y].any()
        assert data[:, :, x].any()

    def test_without_foreground_it_is_the_middle(self):
        assert best_position(labels_of(np.zeros((9, 11, 13), np.uint8))) == (4, 5, 6)

    @given(
        st.tuples(*[st.integers(1, 40)] * 3),
        st.tuples(*[st.sampled_from([0.1, 1.0, 7.3, 50.0])] * 3),
    )
    def test_any_grid_can_be_drawn_in_true_proportions(self, shape, spacing):
        data = np.zeros(shape, np.uint8)
        data[shape[0] // 2, shape[1] // 2, shape[2] // 2] = 1
        view = draw_ortho(None, labels_of(data, spacing), width_px=200)
        assert view.image.shape == view.overlay.shape
        assert view.image.shape[1] <= 204
        assert all(0 <= at < n for at, n in zip(view.position, shape, strict=True))

    def test_a_cube_in_space_is_square_on_an_anisotropic_grid(self):
        data = np.ones((10, 40, 40), np.uint8)
        view = draw_ortho(None, labels_of(data, (4.0, 1.0, 1.0)), width_px=406)
        # Three squares of 200 and a gap of 6: the corner is transparent.
        assert view.image.shape[:2] == (406, 406)
        assert (view.image[206:, 206:, 3] == 0).all()
        assert (view.image[:200, :200, 3] == 255).all()

    def test_labels_are_drawn_where_they_are_and_the_image_is_left_alone(self):
        data = np.zeros((1, 100, 100), np.uint8)
        data[0, 20:40, 60:80] = 1
        image = Volume.from_array(np.random.default_rng(0).normal(size=data.shape))
        view = draw_ortho(image, labels_of(data, (1, 1, 1)), width_px=100)
        is_red = view.overlay[..., 0].astype(int) - view.overlay[..., 2] > 40
        assert is_red[22:38, 62:78].all()
        is_red[19:41, 59:81] = False
        assert not is_red.any()
        grey = view.image[..., :3]
        assert (np.ptp(grey[:60], axis=2) == 0).all()

    def test_classes_keep_their_colour(self):
        data = np.full((1, 50, 50), 2, np.uint8)
        view = draw_ortho(None, labels_of(data, (1, 1, 1)), width_px=50)
        assert view.overlay[25, 25, 2] > view.overlay[25, 25, 0]

    def test_coarse_labels_lie_over_a_fine_image(self):
        fine = np.zeros((16, 64, 64), np.float32)
        fine[8:12, 32:48, 32:48] = 1
        coarse = np.zeros((4, 16, 16), np.uint8)
        coarse[2, 8:12, 8:12] = 1
        view = draw_ortho(Volume.from_array(fine), labels_of(coarse, (4, 4, 4)), width_px=300)
        is_bright = view.image[..., 0] > 120
        is_label = view.overlay[..., 0].astype(int) - view.overlay[..., 2] > 40
        both = (is_bright & is_label).sum()
        assert both > 0.8 * is_label.sum()

    def test_memory_does_not_grow_with_the_volume(self):
        shape = (600, 900, 900)
        image = Volume.from_array(
            FunctionArray(
                shape, np.uint8, lambda s: np.full([a.stop - a.start for a in s], 9, "u1")
            )
        )
        tracemalloc.start()
        from lamella.measurement.report_slices import _planes, _read_plane

        labels = Labels(image.data, image.axes, image.affine)
        for plane in _planes(labels, (300, 450, 450)):
            _read_plane(image, plane, (300, 450, 450))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 20e6 < np.prod(shape)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_values_that_are_no_numbers_do_not_spoil_the_contrast(self, bad):
        plane = np.linspace(0, 1, 1000, dtype=np.float32)
        plane[3] = bad
        low, high = contrast_limits([plane])
        assert 0 <= low < high <= 1
        assert contrast_limits([np.full(4, bad)]) == (0.0, 1.0)
        assert contrast_limits([np.full(4, 7.0)]) == (6.5, 7.5)

    @given(st.floats(1e-6, 1e9))
    def test_scale_bars_are_round_and_fit(self, limit):
        length = nice_length(limit)
        assert 0.39 * limit <= length <= limit * 1.0001
        mantissa = length / 10 ** np.floor(np.log10(length) + 1e-9)
        assert min(abs(mantissa - m) for m in (1, 2, 5)) < 1e-6

    def test_pictures_survive_the_png(self):
        picture = np.random.default_rng(0).integers(0, 255, (8, 9, 4), np.uint8)
        assert_array_equal(np.asarray(Image.open(io.BytesIO(encode_png(picture)))), picture)
        grey = np.repeat(picture[..., :1], 3, axis=2)
        assert_array_equal(np.asarray(Image.open(io.BytesIO(encode_png(grey)))), grey[..., 0])


class TestProjection:
    def test_nothing_to_draw(self):
        assert draw_projection(labels_of(np.zeros((5, 6, 7), np.uint8))) is None
        assert draw_projection(labels_of(np.ones((6, 7), np.uint8))) is None
        assert draw_projection(labels_of(np.ones((1, 6, 7), np.uint8))) is None

    def test_what_is_in_front_hides_what_is_behind(self):
        data = np.zeros((40, 40, 40), np.uint8)
        data[10:30, 3:6, 10:30] = 1
        data[10:30, 34:37, 10:30] = 2
        picture = draw_projection(labels_of(data, (1, 1, 1)), size_px=200)
        assert picture is not None
        red = (picture[..., 0].astype(int) - picture[..., 2] > 30).sum()
        blue = (picture[..., 2].astype(int) - picture[..., 0] > 30).sum()
        assert red > blue > 0, "small y is in front"

    def test_a_thin_sheet_of_a_large_volume_does_not_fall_apart(self):
        data = np.zeros((300, 60, 300), np.uint8)
        data[:, 30, :] = 1
        picture = draw_projection(labels_of(data, (1, 1, 1)), size_px=200)
        assert picture is not None
        is_sheet = picture.max(axis=2) > 70
        filled = is_sheet.any(axis=0).sum()
        assert is_sheet.sum() > 0.3 * filled**2


class TestHistogram:
    @given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=200))
    def test_every_size_is_counted_once(self, sizes):
        histogram = size_histogram(sizes)
        assert histogram is not None
        assert sum(histogram.counts) == len(sizes)
        svg = draw_histogram(histogram, label="volume (nm³)")
        assert svg.count("<rect") == len(histogram.counts)
        assert "nan" not in svg

    def test_nothing_and_nonsense(self):
        assert size_histogram([]) is None
        assert size_histogram([0.0, np.nan]) is None

    def test_decades_get_a_logarithmic_axis(self):
        assert size_histogram([1, 10, 1000]).is_log
        assert not size_histogram([1, 2, 3]).is_log

    def test_numbers_are_short(self):
        assert [short_number(v) for v in (0, 0.5, 1234567.8, 3e-9)] == [
            "0",
            "0.5",
            "1,234,568",
            "3e-9",
        ]


class TestPage:
    def test_it_fetches_nothing(self):
        html = make_report(source()).html
        assert not re.search(r"""(src|href)\s*=\s*["'](?!data:)""", html)
        assert "default-src 'none'" in html
        assert "http" not in html.replace("http-equiv", "")

    def test_names_from_files_are_text(self):
        evil = "<script>alert(1)</script>"
        html = make_report(source(warnings=[evil], manifest={"path": evil}, footer=evil)).html
        assert evil not in html
        assert "&lt;script&gt;" in html

    def test_warnings_come_first(self):
        html = make_report(source(warnings=["beware of the spacing"])).html
        assert html.index("beware of the spacing") < html.index("<h2>Slices</h2>")

    def test_json_says_the_same(self):
        data = two_boxes()
        labels = labels_of(data)
        document = json.loads(make_report(source(warnings=["w"])).json)
        rows = {row["class"]: row for row in document["classes"]}
        assert rows["ribosome"]["voxels"] == int((data == 1).sum())
        assert rows["membrane"]["volume (nm³)"] == (data == 2).sum() * labels.spacing.voxel_volume
        assert document["warnings"] == ["w"]
        assert document["position_voxel"] == list(best_position(labels))

    def test_many_objects_are_listed_largest_first_and_counted(self):
        data = np.zeros((4, 60, 60), np.uint32)
        data[1:3, ::3, ::3] = np.arange(1, 401).reshape(20, 20)
        data[0, 0, 0] = 1
        labels = labels_of(data, is_instance=True, classes=(LabelClass(1, "dot"),))
        report = make_report(
            ReportSource(title="t", lead="l", labels=labels, table=measure_labels(labels))
        )
        document = json.loads(report.json)
        assert document["n_objects"] == 400
        assert len(document["largest_objects"]) == 200
        assert document["largest_objects"][0]["id"] == 1
        assert "The 200 largest of 400 objects" in report.html

    def test_an_empty_result_has_a_report_too(self):
        labels = labels_of(np.zeros((4, 5, 6), np.uint8))
        files = make_report(
            ReportSource(title="t", lead="l", labels=labels, table=measure_labels(labels))
        )
        assert "(not found)" in files.html
        assert json.loads(files.json)["largest_objects"] == []

    def test_an_overview_is_a_picture(self):
        data = two_boxes()
        png = overview_png(Volume.from_array(data.astype(np.float32)), labels_of(data))
        width, height = Image.open(io.BytesIO(png)).size
        assert width > height
