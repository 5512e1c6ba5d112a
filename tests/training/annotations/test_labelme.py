"""Labelme files become the arrays that Labelme's own converters make of them."""

import base64
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import lamella as lm
from lamella.core.errors import InputError, LamellaError
from lamella.training.annotations.classes import ClassList
from lamella.training.annotations.coco import coco_annotation, run_lengths
from lamella.training.annotations.convert import ConvertOptions, convert_labelme
from lamella.training.annotations.labelme import read_labelme
from lamella.training.annotations.rasterise import gather_objects, rasterise
from lamella.training.annotations.shape import KINDS, Shape, covered

NAMES = ("2011_000003", "2011_000006", "2011_000025")
CELLS = ClassList.parse("__ignore__\n_background_\na\nb\n")


def examples(data_dir, kind):
    return data_dir / "labelme" / "examples" / f"{kind}_segmentation"


def write(folder, shapes, *, name="one", image=None, **changes):
    """A Labelme file and its image."""
    folder.mkdir(parents=True, exist_ok=True)
    if image is None:
        image = Image.fromarray(np.zeros((20, 30), np.uint8))
    image.save(folder / f"{name}.png")
    width, height = image.size
    document = {
        "version": "5.7.0", "flags": {}, "shapes": shapes, "imagePath": f"{name}.png",
        "imageData": None, "imageHeight": height, "imageWidth": width,
    } | changes  # fmt: skip
    path = folder / f"{name}.json"
    path.write_text(json.dumps(document))
    return path


def square(label="a", start=2, stop=8, **more):
    return {
        "label": label, "points": [[start, start], [stop, stop]], "shape_type": "rectangle",
        "group_id": None, "flags": {},
    } | more  # fmt: skip


# --- Against the peer's own results --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["semantic", "instance"])
def test_voc_arrays_are_labelmes_own(data_dir, tmp_path, kind):
    source = examples(data_dir, kind)
    classes = ClassList.parse((source / "labels.txt").read_text())
    options = ConvertOptions("voc", classes, has_instances=kind == "instance")
    convert_labelme(source / "data_annotated", tmp_path / "out", options)
    names = (tmp_path / "out" / "class_names.txt").read_text().split("\n")
    expected = (source / "data_dataset_voc" / "class_names.txt").read_text().split("\n")
    assert [name for name in names if name] == [name for name in expected if name]
    for what in ("Class", "Object") if kind == "instance" else ("Class",):
        for name in NAMES:
            part = f"Segmentation{what}Npy/{name}.npy"
            ours, theirs = (
                np.load(root / part) for root in (tmp_path / "out", source / "data_dataset_voc")
            )
            assert ours.dtype == theirs.dtype
            assert (ours == theirs).mean() >= 0.9999
            picture = f"Segmentation{what}/{name}.png"
            with (
                Image.open(tmp_path / "out" / picture) as one,
                Image.open(source / "data_dataset_voc" / picture) as two,
            ):
                assert (np.asarray(one) == np.asarray(two)).mean() >= 0.9999


def test_coco_objects_are_labelmes_own(data_dir, tmp_path):
    source = examples(data_dir, "instance")
    classes = ClassList.parse((source / "labels.txt").read_text())
    convert_labelme(source / "data_annotated", tmp_path / "out", ConvertOptions("coco", classes))
    found = []
    for root in (tmp_path / "out", source / "data_dataset_coco"):
        document = json.loads((root / "annotations.json").read_text())
        images = {image["id"]: image["file_name"] for image in document["images"]}
        found.append(
            {
                (images[a["image_id"]], a["category_id"], a["area"], tuple(a["bbox"]))
                for a in document["annotations"]
            }
        )
        assert document["categories"][15]["name"] == "person"
    assert found[0] == found[1]


def test_pairs_hold_classes_ignored_pixels_and_objects(data_dir, tmp_path):
    source = examples(data_dir, "instance")
    classes = ClassList.parse((source / "labels.txt").read_text())
    made = convert_labelme(
        source / "data_annotated",
        tmp_path / "out",
        ConvertOptions("pairs", classes, has_instances=True),
    )
    assert (made.n_images, made.n_objects["person"]) == (3, 6)
    labels = lm.open(tmp_path / "out" / "labels" / "2011_000003.tif")
    theirs = np.load(source / "data_dataset_voc" / "SegmentationClassNpy" / "2011_000003.npy")
    np.testing.assert_array_equal(labels.load(), np.where(theirs < 0, 255, theirs))
    assert {known.value: known.name for known in labels.classes}[15] == "person"
    objects = lm.open(tmp_path / "out" / "instances" / "2011_000003.tif").load()
    assert np.unique(objects).tolist() == [0, 1, 2, 3]
    document = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert (document["ignore_value"], document["classes"]["5"]) == (255, "bottle")


def test_every_kind_of_shape_of_a_current_file(data_dir, tmp_path):
    source = data_dir / "labelme" / "examples" / "primitives"
    file = read_labelme(source / "primitives.json")
    assert {shape.kind for shape in file.shapes} >= {"mask", "point", "linestrip", "circle"}
    drawing = rasterise(file.shapes, file.image_shape, ClassList.of(s.label for s in file.shapes))
    assert len(np.unique(drawing.classes)) == len({shape.label for shape in file.shapes}) + 1


# --- Laws ----------------------------------------------------------------------------------------


coordinate = st.floats(-20, 50, allow_nan=False)


@st.composite
def shapes(draw):
    kind = draw(st.sampled_from([k for k in KINDS if k != "mask"]))
    n = KINDS[kind].least + (draw(st.integers(0, 3)) if KINDS[kind].most is None else 0)
    points = tuple((draw(coordinate), draw(coordinate)) for _ in range(n))
    group = draw(st.none() | st.integers(0, 2))
    return Shape(draw(st.sampled_from(["a", "b", "__ignore__"])), kind, points, group)


@given(st.lists(shapes(), max_size=6))
def test_the_last_shape_lies_on_top(found):
    drawing = rasterise(found, (20, 30), CELLS)
    rest = np.ones((20, 30), bool)
    for shape in reversed(found):
        pixels = covered(shape, (20, 30)) & rest
        assert (drawing.classes[pixels] == CELLS.value(shape.label)).all()
        rest &= ~pixels
    assert not drawing.classes[rest].any()
    assert not drawing.objects[rest].any()


@given(st.lists(shapes(), max_size=8))
def test_one_object_for_each_label_and_group(found):
    objects = gather_objects(found)
    assert sum(len(known.shapes) for known in objects) == len(found)
    assert [known.number for known in objects] == list(range(1, len(objects) + 1))
    keys = [(s.label, s.group_id) for s in found if s.group_id is not None]
    n_single = sum(s.group_id is None for s in found)
    assert len(objects) == len(set(keys)) + n_single


@given(shapes())
def test_run_lengths_give_the_pixels_back(shape):
    pixels = covered(shape, (20, 30))
    counts = run_lengths(pixels)
    assert sum(counts) == pixels.size
    flat = np.repeat(np.arange(len(counts)) % 2, counts).astype(bool)
    np.testing.assert_array_equal(flat.reshape((20, 30), order="F"), pixels)
    annotation = coco_annotation(gather_objects([shape])[0], (20, 30), category=1)
    if not pixels.any():
        assert annotation is None
        return
    x, y, width, height = map(int, annotation["bbox"])
    assert annotation["area"] == pixels.sum() == pixels[y : y + height, x : x + width].sum()


@given(st.integers(-5, 25), st.integers(-5, 35), st.integers(1, 12), st.integers(1, 12))
def test_a_mask_is_pasted_at_its_place(y, x, height, width):
    mask = np.random.default_rng(height * 100 + width).random((height, width)) > 0.5
    shape = Shape("a", "mask", ((x, y), (x + width - 1, y + height - 1)), mask=mask)
    big = np.zeros((60, 70), bool)
    big[y + 10 : y + 10 + height, x + 10 : x + 10 + width] = mask
    np.testing.assert_array_equal(covered(shape, (20, 30)), big[10:30, 10:40])


# --- What people's folders hold ------------------------------------------------------------------


def test_folders_below_and_windows_paths(tmp_path):
    write(tmp_path / "src" / "deep", [square()], imagePath="..\\elsewhere\\one.png")
    write(tmp_path / "src", [square("b")], name="two")
    made = convert_labelme(tmp_path / "src", tmp_path / "out")
    assert made.n_images == 2
    assert (tmp_path / "out" / "labels" / "deep" / "one.tif").is_file()
    assert (tmp_path / "out" / "images" / "two.png").is_file()


def test_an_embedded_image_is_written(tmp_path):
    picture = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30).astype(np.uint8))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    path = write(
        tmp_path / "src", [square()], imageData=base64.b64encode(stream.getvalue()).decode()
    )
    path.with_suffix(".png").unlink()
    convert_labelme(tmp_path / "src", tmp_path / "out")
    image = lm.open(tmp_path / "out" / "images" / "one.png").load()
    np.testing.assert_array_equal(image.squeeze(), np.asarray(picture))


def test_a_turned_image_is_put_upright(tmp_path):
    stored = np.zeros((30, 20, 3), np.uint8)
    stored[:, :5] = 255
    image = Image.fromarray(stored)
    exif = image.getexif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    folder = tmp_path / "src"
    folder.mkdir()
    image.save(folder / "one.jpg", exif=exif, quality=100)
    document = {
        "shapes": [square()], "imagePath": "one.jpg", "imageHeight": 20, "imageWidth": 30,
    }  # fmt: skip
    (folder / "one.json").write_text(json.dumps(document))
    convert_labelme(folder, tmp_path / "out")
    labels = lm.open(tmp_path / "out" / "labels" / "one.tif")
    assert labels.shape == (20, 30)
    with Image.open(tmp_path / "out" / "images" / "one.png") as upright:
        assert upright.size == (30, 20)
        assert np.asarray(upright)[:4].mean() > 200


def test_old_files_without_kind_or_size(tmp_path):
    shape = {"label": "a", "points": [[1, 1], [9, 1], [9, 9]]}
    write(tmp_path / "src", [shape], imageHeight=None, imageWidth=None)
    made = convert_labelme(tmp_path / "src", tmp_path / "out")
    assert made.n_pixels["a"] > 20


def test_the_same_call_twice_needs_overwrite(tmp_path):
    write(tmp_path / "src", [square()])
    convert_labelme(tmp_path / "src", tmp_path / "out")
    with pytest.raises(LamellaError, match="already"):
        convert_labelme(tmp_path / "src", tmp_path / "out")
    convert_labelme(tmp_path / "src", tmp_path / "out", ConvertOptions(overwrite=True))


# --- Bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shapes_", "changes", "match"),
    [
        ([square(shape_type="spline")], {}, "unknown kind 'spline'"),
        ([square(points=[[1, 1]])], {}, "has 1 points, expected 2"),
        ([square(points=[[1, 1], [None, 2]])], {}, "shape 1 is broken"),
        ([square(points=[[1, 1], [float("nan"), 2]])], {}, "no number"),
        ([{"points": [[1, 1]]}], {}, "shape 1 is broken"),
        ([square(shape_type="mask")], {}, "holds no picture"),
        ([square()], {"imageHeight": 99}, "drawn on an image of 99"),
        ([square()], {"imagePath": "gone.png"}, "gone.png"),
        ([square()], {"imageData": "%%%"}, "damaged"),
        ([square("c")], {}, "'c' is not in the list"),
    ],
)
def test_bad_files_are_refused_by_name_and_nothing_is_written(tmp_path, shapes_, changes, match):
    write(tmp_path / "src", shapes_, **changes)
    with pytest.raises(InputError, match=match) as caught:
        convert_labelme(tmp_path / "src", tmp_path / "out", ConvertOptions(classes=CELLS))
    assert "one.json" in caught.value.message
    assert "--skip-bad" in caught.value.hint
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_bad_files_can_be_left_out(tmp_path):
    write(tmp_path / "src", [square()])
    (tmp_path / "src" / "broken.json").write_text("{")
    made = convert_labelme(tmp_path / "src", tmp_path / "out", ConvertOptions(skip_bad=True))
    assert made.n_images == 1
    assert "no JSON" in next(iter(made.problems.values()))


def test_a_folder_without_drawings(tmp_path):
    (tmp_path / "coco.json").write_text('{"images": []}')
    with pytest.raises(InputError, match="no Labelme files"):
        convert_labelme(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "match"),
    [("", "empty"), ("a\na\n", "more than once"), ("a\n__ignore__\n", "middle")],
)
def test_bad_lists_of_classes(text, match):
    with pytest.raises(InputError, match=match):
        ClassList.parse(text)
