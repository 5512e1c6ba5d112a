"""Confidence in reports: bars, the least sure first, and the word for numbers nobody calibrated."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.measurement import measure_labels
from lamella.measurement.report import ReportSource, make_report
from lamella.measurement.report_confidence import least_certain, least_first
from lamella.volume import LabelClass, Labels, Volume


@pytest.fixture
def found():
    """Twelve instances in a volume, the eleventh the least sure; image; table."""
    ids = np.zeros((6, 40, 60), np.uint16)
    for number in range(12):
        y, x = divmod(number, 6)
        ids[1:5, 4 + 18 * y : 14 + 18 * y, 3 + 9 * x : 10 + 9 * x] = number + 1
    labels = Labels.from_array(
        ids, spacing=(2.0, 1.0, 1.0), unit="nm", is_instance=True, classes=(LabelClass(1, "cell"),)
    )
    image = Volume.from_array(
        np.random.default_rng(0).normal(0, 1, ids.shape) + 3 * (ids > 0),
        spacing=(2.0, 1.0, 1.0), unit="nm",
    )  # fmt: skip
    table = measure_labels(labels, image)
    margin = np.linspace(0.5, 0.95, 12)
    margin[10] = 0.125
    table = replace(
        table,
        classes=np.ones(12, np.int64),
        class_names={1: "cell"},
        confidence={"margin": margin, "entropy": 1 - margin},
        is_calibrated=False,
        further={"linking_margin": np.full(12, 0.5)},
    )
    return labels, image, table


@given(st.lists(st.floats(0, 1) | st.just(float("nan")), max_size=20), st.booleans())
def test_the_least_sure_come_first_and_unknown_ones_not_at_all(values, is_doubt):
    array = np.array(values, np.float64)
    order = least_first(array, is_doubt=is_doubt)
    shown = array[order]
    assert len(shown) == np.isfinite(array).sum()
    assert (np.diff(shown) <= 0).all() if is_doubt else (np.diff(shown) >= 0).all()


def test_pages_show_bars_pictures_and_the_word(found):
    labels, image, table = found
    source = ReportSource("t", "l", labels, table, image=image, ids=labels)
    files = make_report(source)
    assert "Least certain objects" in files.html
    assert files.html.count('<ul class="gallery">') == 1
    assert files.html.count("<li><figure>") == 8
    assert files.html.index("11 · cell") < files.html.index("1 · cell</figcaption>")
    assert "uncalibrated" in files.html
    assert '<i style="width: 12.5%">' in files.html
    assert "linking margin" in files.html
    document = json.loads(files.json)
    assert document["confidence"]["least_certain_ids"][:2] == [11, 1]
    assert document["confidence"]["is_calibrated"] is False
    assert document["classes"][0]["margin (mean)"] == pytest.approx(
        table.confidence["margin"].mean()
    )


def test_calibrated_numbers_are_called_so(found):
    labels, image, table = found
    table = replace(table, is_calibrated=True)
    files = make_report(ReportSource("t", "l", labels, table, image=image, ids=labels))
    assert "uncalibrated" not in files.html
    assert "calibrated on held-out data" in files.html


def test_without_confidence_there_is_neither(found):
    labels, image, table = found
    table = replace(table, confidence={}, is_calibrated=None)
    files = make_report(ReportSource("t", "l", labels, table, image=image, ids=labels))
    assert "gallery" not in files.html.split("</style>")[1]
    assert "confidence" not in json.loads(files.json)


@pytest.mark.parametrize("has_image", [True, False])
def test_images_and_strange_objects_are_drawn(has_image):
    ids = np.zeros((50, 70), np.uint8)
    ids[0, 0] = 1  # a single voxel in the corner
    ids[10:12, :] = 2  # longer than a picture is high
    ids[20:40, 20:40] = 3
    ids[24:36, 24:36] = 0  # its middle is not part of it
    labels = Labels.from_array(ids, is_instance=True)
    image = Volume.from_array(np.zeros((50, 70)), axes="yx") if has_image else None
    table = measure_labels(labels, image)
    table = replace(table, confidence={"flow_error": np.array([0.1, 0.9, np.nan])})
    gallery = least_certain(table=table, ids=labels, image=image)
    assert gallery.ids == (2, 1), "the larger the error the less sure"
    assert all(card.picture.png.startswith(b"\x89PNG") for card in gallery.cards)


def test_an_object_whose_middle_slice_misses_it():
    ids = np.zeros((5, 20, 20), np.uint8)
    ids[0, 5:9, 5:9] = 1
    ids[4, 5:9, 5:9] = 1
    labels = Labels.from_array(ids, is_instance=True)
    table = measure_labels(labels)
    table = replace(table, confidence={"margin": np.array([0.4])})
    (card,) = least_certain(table=table, ids=labels, image=None).cards
    assert card.share == pytest.approx(0.4)
