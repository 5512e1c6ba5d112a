"""Comparing labels with geometry."""

import json

import numpy as np
import pytest

from lamella.core.errors import GeometryError, InputError
from lamella.evaluation import ComparisonOptions, compare_labels
from lamella.volume.labels import LabelClass, Labels


def labels_of(data, spacing=(2.0, 1.0, 1.0), unit="nm", **fields):
    return Labels.from_array(np.asarray(data, np.uint16), spacing=spacing, unit=unit, **fields)


@pytest.fixture
def cube():
    data = np.zeros((12, 16, 16), np.uint16)
    data[2:8, 2:10, 2:10] = 1
    data[9:11, 11:15, 11:15] = 2
    return data


def test_classes(cube):
    reference = labels_of(cube, classes=(LabelClass(1, "mito"), LabelClass(2, "er")))
    result = compare_labels(labels_of(np.roll(cube, 1, 1)), reference)
    document = result.to_dict()
    assert [row["name"] for row in document["classes"]] == ["mito", "er"]
    assert document["unit"] == "nm"
    assert document["tolerance"] == 2.0
    assert document["classes"][0]["hd95"] == 1.0
    assert document["classes"][0]["nsd"] == 1.0
    assert document["classes"][0]["dice"] == pytest.approx(7 / 8)
    assert "instances" not in document
    json.dumps(document, allow_nan=False)


def test_instances(cube):
    result = compare_labels(labels_of(cube > 0), labels_of(cube), ComparisonOptions(instances=True))
    document = result.to_dict()
    assert document["classes"][0]["name"] == "foreground"
    assert document["classes"][0]["dice"] == 1
    assert document["instances"]["n_merges"] == 1
    assert document["instances"]["n_reference"] == 2
    json.dumps(document, allow_nan=False)


def test_nan_and_infinity_are_null_in_json(cube):
    result = compare_labels(labels_of(cube * 0), labels_of(cube))
    row = result.to_dict()["classes"][0]
    assert row["precision"] is None
    assert row["hd95"] is None
    assert row["recall"] == 0
    assert result.to_values()["classes"][0]["hd95"] == np.inf


def test_ignored_voxels(cube):
    reference = cube.copy()
    reference[:, 8:] = 255
    prediction = np.where(np.arange(16)[:, None] >= 8, 1, cube)
    options = ComparisonOptions(ignore_label=255)
    row = compare_labels(labels_of(prediction), labels_of(reference), options).to_dict()
    assert row["classes"][0]["dice"] == 1
    assert row["classes"][0]["hd95"] == 0


def test_chosen_classes_and_no_surfaces(cube):
    options = ComparisonOptions(classes=[2, 7], surfaces=False)
    document = compare_labels(labels_of(cube), labels_of(cube), options).to_dict()
    assert [row["class"] for row in document["classes"]] == [2, 7]
    assert document["classes"][1]["dice"] is None
    assert "hd95" not in document["classes"][0]


def test_different_shapes_and_spacings_are_named(cube):
    with pytest.raises(GeometryError) as caught:
        compare_labels(labels_of(cube[1:]), labels_of(cube))
    assert "(11, 16, 16)" in caught.value.message
    assert "(12, 16, 16)" in caught.value.message
    with pytest.raises(GeometryError) as caught:
        compare_labels(labels_of(cube, spacing=(4.0, 1.0, 1.0)), labels_of(cube))
    assert "4 x 1 x 1 nm" in caught.value.message
    assert "2 x 1 x 1 nm" in caught.value.message


def test_the_same_spacing_in_another_unit_fits(cube):
    other = labels_of(cube, spacing=(0.002, 0.001, 0.001), unit="um")
    assert compare_labels(other, labels_of(cube)).to_dict()["classes"][0]["dice"] == 1


def test_unknown_spacing_is_taken_from_the_other_side(cube):
    plain = labels_of(cube, spacing=None, unit=None)
    assert compare_labels(plain, labels_of(cube)).unit == "nm"


def test_thousands_of_classes_are_instances():
    many = np.arange(1000).reshape(10, 10, 10)
    with pytest.raises(InputError) as caught:
        compare_labels(labels_of(many), labels_of(many))
    assert "999 different values" in caught.value.message
    assert "--instances" in (caught.value.hint or "")
