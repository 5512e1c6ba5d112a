"""COCO, GeoJSON, ImageJ regions and coloured pictures become data sets."""

import contextlib
import json

import numpy as np
import pytest
import roifile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from lamella.cli.app import main
from lamella.core.errors import InputError, LamellaError, MissingPathError, OutputExistsError
from lamella.io.format import open_volume
from lamella.training.annotations.coco import run_lengths
from lamella.training.annotations.coco_read import decoded_counts, pixels_of_runs, read_coco
from lamella.training.annotations.convert import ConvertOptions
from lamella.training.annotations.geojson import read_geojson
from lamella.training.annotations.importing import ImportOptions, convert_annotations, recognise
from lamella.training.annotations.shape import covered

SHAPE = (20, 30)
INSTANCES = ConvertOptions(has_instances=True)


def _image(path, shape=SHAPE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)).save(path)
    return path


def _labels(folder, name, kind="labels"):
    return open_volume(folder / kind / f"{name}.tif").load()


# --- COCO ---------------------------------------------------------------------------------------


def _packed(counts):
    """The packing of pycocotools (rleToString in maskApi.c), written down again."""
    text = ""
    for i, count in enumerate(counts):
        x = int(count) - (int(counts[i - 2]) if i > 2 else 0)
        more = True
        while more:
            c = x & 0x1F
            x >>= 5
            more = x != -1 if c & 0x10 else x != 0
            text += chr((c | 0x20 if more else c) + 48)
    return text


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_run_lengths_come_back(pixels):
    counts = run_lengths(pixels)
    assert np.array_equal(pixels_of_runs(counts, pixels.shape), pixels)
    assert decoded_counts(_packed(counts)) == counts


@given(st.lists(st.integers(0, 2**33), min_size=1, max_size=30))
def test_packed_numbers_come_back(counts):
    assert decoded_counts(_packed(counts)) == counts


@given(st.text(max_size=30))
def test_damaged_text_is_refused_or_numbers(text):
    if all(48 <= ord(letter) < 112 for letter in text) and (not text or ord(text[-1]) < 80):
        assert len(decoded_counts(text)) == sum(ord(letter) < 80 for letter in text)
    else:
        with pytest.raises(InputError, match="damaged"):
            decoded_counts(text)


def _coco(tmp_path, annotations, **entry):
    _image(tmp_path / "images/a.png")
    image = {"id": 7, "file_name": "a.png", "height": 20, "width": 30} | entry
    document = {
        "images": [image],
        "categories": [{"id": 3, "name": "cell"}, {"id": 9, "name": "dirt"}],
        "annotations": [{"image_id": 7, "id": i} | a for i, a in enumerate(annotations)],
    }
    (tmp_path / "coco.json").write_text(json.dumps(document))


SQUARE = [2, 2, 6, 2, 6, 6, 2, 6]


def test_coco_polygons_runs_and_crowds(tmp_path):
    blob = np.zeros(SHAPE, bool)
    blob[10:15, 10:20] = True
    counts, crowd = run_lengths(blob), [0, 60, 540]
    _coco(
        tmp_path,
        [
            {"category_id": 3, "segmentation": [SQUARE, [8, 2, 10, 2, 10, 4, 8, 4]]},
            {"category_id": 9, "segmentation": {"size": [20, 30], "counts": counts}},
            {"category_id": 3, "segmentation": [[12, 11, 14, 11, 14, 13, 12, 13]]},
            {"category_id": 3, "iscrowd": 1, "segmentation": {"size": [20, 30], "counts": crowd}},
        ],
    )  # fmt: skip
    made = convert_annotations(tmp_path, tmp_path / "out", options=INSTANCES)
    assert made.n_objects == {"cell": 2, "dirt": 1}
    labels, objects = (_labels(tmp_path / "out", "a", kind) for kind in ("labels", "instances"))
    expected = np.zeros(SHAPE, int)
    expected[:, :3] = 255
    expected[2:6, 2:6] = expected[2:4, 8:10] = 1
    expected[blob] = 2
    expected[11:13, 12:14] = 1
    assert np.array_equal(labels, expected)
    assert objects[2, 2] == objects[3, 9] != 0
    assert objects[12, 13] != objects[10, 10] != objects[2, 2]


def test_packed_runs_in_a_document(tmp_path):
    blob = np.random.default_rng(1).random(SHAPE) > 0.5
    runs = {"size": [20, 30], "counts": _packed(run_lengths(blob))}
    _coco(tmp_path, [{"category_id": 9, "segmentation": runs}])
    convert_annotations(tmp_path / "coco.json", tmp_path / "out")
    assert np.array_equal(_labels(tmp_path / "out", "a") == 1, blob)


@pytest.mark.parametrize(
    ("annotation", "entry", "said"),
    [
        ({"category_id": 4, "segmentation": [SQUARE]}, {}, "category 4"),
        ({"category_id": 3, "bbox": [1, 1, 2, 2]}, {}, "only a box"),
        ({"category_id": 3, "segmentation": [[1, 2, 3]]}, {}, "damaged"),
        ({"category_id": 3, "segmentation": {"size": [20, 30], "counts": [9]}}, {}, "cover 9"),
        ({"category_id": 3, "segmentation": {"size": [2, 3], "counts": [6]}}, {}, "2 x 3"),
        ({"category_id": 3, "segmentation": {"size": [20, 30], "counts": "~"}}, {}, "damaged"),
        ({"category_id": 3, "segmentation": [SQUARE]}, {"height": 21}, "21 x 30"),
        ({"category_id": 3, "segmentation": [SQUARE]}, {"file_name": "b.png"}, "not there"),
    ],
)
def test_bad_coco(tmp_path, annotation, entry, said):
    _coco(tmp_path, [annotation], **entry)
    with pytest.raises(InputError, match=said):
        convert_annotations(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_coco_agrees_with_labelmes_own_labels(data_dir, tmp_path):
    """Labelme paints borders, COCO's outlines are areas: they differ by a rim of half a pixel."""
    source = data_dir / "labelme/examples/instance_segmentation"
    made = convert_annotations(source / "data_dataset_coco", tmp_path / "out", options=INSTANCES)
    names = [line for line in (source / "labels.txt").read_text().split("\n")[1:] if line]
    assert made.n_images == 3
    for name in ("2011_000003", "2011_000006", "2011_000025"):
        reference = np.load(source / f"data_dataset_voc/SegmentationClassNpy/{name}.npy")
        labels = _labels(tmp_path / "out", name)
        for value, label in enumerate(made.classes.names[1:], start=1):
            theirs, ours = reference == names.index(label), labels == value
            if theirs.any():
                assert (theirs & ours).sum() / ((theirs | ours) & (reference >= 0)).sum() > 0.93
        known = reference >= 0
        ours = np.array([names.index(n) for n in made.classes.names])[labels]
        assert (ours == reference)[known].mean() > 0.994


def test_every_document_of_a_foreign_test_suite_gives_a_clear_error(data_dir):
    for path in sorted((data_dir / "labelme/labelme2coco").glob("coco_*.json")):
        with contextlib.suppress(LamellaError):
            files, problems = read_coco(path)
            assert not files
            assert all("not there" in problem.message for problem in problems.values())


# --- GeoJSON ------------------------------------------------------------------------------------


def _feature(kind, coordinates, name=None, **properties):
    if name is not None:
        properties["classification"] = {"name": name, "color": [1, 2, 3]}
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def _ring(x0, y0, x1, y1):
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def test_qupath_areas_holes_and_parts(tmp_path):
    for name in ("slide_a", "slide_b"):
        _image(tmp_path / f"images/{name}.png")
    features = [
        _feature("Polygon", [_ring(2, 2, 12, 12), _ring(4, 4, 8, 8)], "Tumor"),
        _feature("MultiPolygon", [[_ring(15, 2, 18, 4)], [_ring(15, 8, 18, 10)]], "Stroma"),
        _feature("Polygon", [_ring(20, 0, 30, 5)], "Ignore*", objectType="annotation"),
        _feature("Polygon", [_ring(20, 10, 22, 12)], objectType="annotation"),
    ]
    collection = {"type": "FeatureCollection", "features": features}
    (tmp_path / "drawings").mkdir()
    (tmp_path / "drawings/slide_a.geojson").write_text(json.dumps(collection))
    (tmp_path / "drawings/slide_b.geojson").write_text(json.dumps(features[:1]))
    made = convert_annotations(tmp_path, tmp_path / "out", options=INSTANCES)
    assert made.classes.names == ("_background_", "Stroma", "Tumor", "object")
    expected = np.zeros(SHAPE, int)
    expected[2:12, 2:12] = 2
    expected[4:8, 4:8] = 0
    expected[2:4, 15:18] = expected[8:10, 15:18] = 1
    expected[0:5, 20:30] = 255
    expected[10:12, 20:22] = 3
    assert np.array_equal(_labels(tmp_path / "out", "slide_a"), expected)
    objects = _labels(tmp_path / "out", "slide_a", "instances")
    assert objects[2, 15] == objects[8, 15] != 0
    assert made.n_objects == {"Stroma": 1, "Tumor": 2, "object": 1}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"features": [_feature("Point", [1, 2], "a")]}, "is a Point"),
        ({"features": [_feature("Polygon", [[1, 2]], "a")]}, "broken coordinates"),
        ({"features": [_feature("Polygon", [[[1, float("nan")]] * 3], "a")]}, "no number"),
        ({"features": 3}, "no features"),
        ([3], "no features"),
    ],
)
def test_bad_geojson(tmp_path, document, said):
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=said):
        read_geojson(path, SHAPE)


def test_names_of_classes_in_other_places(tmp_path):
    path = tmp_path / "a.geojson"
    square = [_ring(0, 0, 3, 3)]
    path.write_text(
        json.dumps(
            [
                _feature("Polygon", square, classification="axon"),
                _feature("Polygon", square, classification={"names": ["Immune", "CD3"]}),
                _feature("Polygon", square, label="glia"),
                _feature("Polygon", square, type="detection"),
            ]
        )
    )
    shapes = read_geojson(path, SHAPE, unclassified="thing")
    assert [shape.label for shape in shapes] == ["axon", "Immune: CD3", "glia", "thing"]


# --- ImageJ -------------------------------------------------------------------------------------


def _polygon(points, **fields):
    return roifile.ImagejRoi.frompoints(np.array(points, float), **fields)


def test_imagej_regions(tmp_path):
    _image(tmp_path / "cells.tif")
    _image(tmp_path / "more/cells2.tif")
    rois = [
        _polygon([[2, 2], [6, 2], [6, 6], [2, 6]], name="axon-1"),
        _polygon([[10, 2], [14, 2], [14, 6], [10, 6]], name="0004-0012"),
    ]
    rectangle = roifile.ImagejRoi(
        roitype=roifile.ROI_TYPE.RECT, left=20, top=3, right=25, bottom=9, name="0001"
    )
    oval = roifile.ImagejRoi(
        roitype=roifile.ROI_TYPE.OVAL, left=2, top=10, right=12, bottom=18, name="glia 7"
    )
    roifile.roiwrite(tmp_path / "cells_RoiSet.zip", [*rois, rectangle, oval])
    rois[0].tofile(tmp_path / "more/cells2.roi")
    made = convert_annotations(
        tmp_path, tmp_path / "out", ImportOptions(unclassified="other"), INSTANCES
    )
    assert made.classes.names == ("_background_", "axon", "glia", "other")
    labels = _labels(tmp_path / "out", "cells")
    assert np.array_equal(np.argwhere(labels == 1), np.argwhere(np.ones((4, 4))) + 2)
    assert (labels[3:9, 20:25] == 3).all()
    assert (labels[2:6, 10:14] == 3).all()
    assert np.count_nonzero(labels == 2) == pytest.approx(np.pi * 5 * 4, rel=0.05)
    assert len(np.unique(_labels(tmp_path / "out", "cells", "instances"))) == 5
    assert _labels(tmp_path / "out", "more/cells2").sum() == 16


def test_imagej_holes(tmp_path):
    _image(tmp_path / "a.png")
    path = []
    for x0, y0, x1, y1 in ((2, 2, 12, 12), (4, 4, 8, 8)):
        for i, corner in enumerate(_ring(x0, y0, x1, y1)[:-1]):
            path += [min(i, 1), *corner]  # move, then lines
        path.append(4)  # close
    ring = roifile.ImagejRoi(
        roitype=roifile.ROI_TYPE.RECT,
        left=2,
        top=2,
        right=12,
        bottom=12,
        name="glia",
        shape_roi_size=len(path),
        multi_coordinates=np.array(path, np.float32),
    )
    ring.tofile(tmp_path / "a.roi")
    convert_annotations(tmp_path, tmp_path / "out")
    expected = np.zeros(SHAPE, bool)
    expected[2:12, 2:12] = True
    expected[4:8, 4:8] = False
    assert np.array_equal(_labels(tmp_path / "out", "a") == 1, expected)


def test_imagej_says_what_it_cannot_do(tmp_path):
    _image(tmp_path / "a.png")
    line = roifile.ImagejRoi(roitype=roifile.ROI_TYPE.LINE, x1=1, y1=1, x2=5, y2=5, name="l")
    line.tofile(tmp_path / "a.roi")
    with pytest.raises(InputError, match=r"'l' of .* is a line"):
        convert_annotations(tmp_path, tmp_path / "out")
    on_slice = _polygon([[2, 2], [6, 2], [6, 6]], name="x")
    on_slice.position = 4
    on_slice.tofile(tmp_path / "a.roi")
    with pytest.raises(InputError, match="slice 4 of a stack"):
        convert_annotations(tmp_path, tmp_path / "out")
    (tmp_path / "a.roi").write_bytes(b"Iout but not more")
    with pytest.raises(InputError, match="no ImageJ regions"):
        convert_annotations(tmp_path, tmp_path / "out")


# --- colours ------------------------------------------------------------------------------------


def test_colored_pictures(tmp_path, capsys):
    picture = np.zeros((*SHAPE, 3), np.uint8)
    picture[2:5, 2:5] = picture[10:12, 10:12] = (255, 0, 0)
    picture[:, 20:] = (0, 0, 255)
    for name in ("a", "b"):
        _image(tmp_path / f"images/{name}.png")
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / f"masks/{name}_mask.png")
    Image.fromarray(picture).convert("P").save(tmp_path / "masks/b_mask.png")
    words = ["dataset", "convert", str(tmp_path), str(tmp_path / "out"), "--instances", "--json"]
    words += ["--images", "images/*", "--annotations", "masks/*", "--color", "axon=#ff0000"]
    assert main(words) == 2
    assert "#0000ff (33.33%)" in capsys.readouterr().err
    assert main([*words, "--color", "__ignore__=0,0,255"]) == 0
    assert json.loads(capsys.readouterr().out)["n_objects"] == {"axon": 4}
    for name in ("a", "b"):
        labels = _labels(tmp_path / "out", name)
        assert np.array_equal(labels == 1, picture[..., 0] == 255)
        assert np.array_equal(labels == 255, picture[..., 2] == 255)
    assert main([*words[:3], str(tmp_path / "other"), "--color", "a=#ff0000"]) == 2
    assert "--annotations" in capsys.readouterr().err


# --- all of them --------------------------------------------------------------------------------


def test_which_program_it_was(data_dir, tmp_path):
    examples = data_dir / "labelme/examples/instance_segmentation"
    assert recognise(examples / "data_annotated") == "labelme"
    assert recognise(examples / "data_dataset_coco") == "coco"
    _image(tmp_path / "a.png")
    with pytest.raises(InputError, match="no drawings that are known"):
        recognise(tmp_path)
    with pytest.raises(MissingPathError):
        convert_annotations(tmp_path / "none", tmp_path / "out")
    with pytest.raises(OutputExistsError):
        convert_annotations(examples / "data_annotated", tmp_path)


def test_labelme_goes_the_same_way(data_dir, tmp_path, capsys):
    source = data_dir / "labelme/examples/semantic_segmentation/data_annotated"
    assert main(["dataset", "convert", str(source), str(tmp_path / "a"), "-q"]) == 0
    assert main(["labelme", "convert", str(source), str(tmp_path / "b"), "-q"]) == 0
    for path in sorted((tmp_path / "a/labels").iterdir()):
        assert path.read_bytes() == (tmp_path / "b/labels" / path.name).read_bytes()


def test_drawings_without_images_and_volumes(tmp_path):
    _image(tmp_path / "a.png")
    square = json.dumps([_feature("Polygon", [_ring(0, 0, 3, 3)], "x")])
    (tmp_path / "a.geojson").write_text(square)
    (tmp_path / "b.geojson").write_text(square)
    with pytest.raises(InputError, match=r"1 drawing\(s\) without an image: b"):
        convert_annotations(tmp_path, tmp_path / "out")
    (tmp_path / "b.geojson").unlink()
    (tmp_path / "a.png").unlink()
    np.save(tmp_path / "a.npy", np.zeros((3, 20, 30), np.uint8))
    with pytest.raises(InputError, match="axes zyx"):
        convert_annotations(tmp_path, tmp_path / "out")


def test_what_is_converted_can_be_checked_and_trained_on(tmp_path, capsys):
    for name in ("a", "b", "c"):
        path = _image(tmp_path / f"{name}.png", (40, 50))
        noise = np.random.default_rng(ord(name)).integers(0, 255, (40, 50)).astype(np.uint8)
        Image.fromarray(noise).save(path)
        features = [
            _feature("Polygon", [_ring(2, 2, 12, 12)], "axon"),
            _feature("Polygon", [_ring(20, 2, 22, 12)], "Ignore*"),
        ]
        (tmp_path / f"{name}.geojson").write_text(json.dumps(features))
    assert main(["dataset", "convert", str(tmp_path), str(tmp_path / "out"), "-q"]) == 0
    capsys.readouterr()
    assert main(["dataset", "check", str(tmp_path / "out"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["task"]["ignore_values"] == [255]
    assert [row["name"] for row in answer["classes"]] == ["axon"]
    assert answer["pairs"][0]["n_valid"] == 40 * 50 - 20
    assert main(["dataset", "index", str(tmp_path / "out"), "-q"]) == 0


def test_objects_to_train_on_know_what_is_ignored(tmp_path, capsys):
    for name in ("a", "b", "c"):
        noise = np.random.default_rng(ord(name)).integers(0, 255, (40, 50)).astype(np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{name}.png")
        features = [_feature("Polygon", [_ring(n, 2, n + 3, 12)], "axon") for n in (2, 8, 14)]
        features.append(_feature("Polygon", [_ring(20, 2, 22, 12)], "Ignore*"))
        (tmp_path / f"{name}.geojson").write_text(json.dumps(features))
    out = str(tmp_path / "out")
    assert main(["dataset", "convert", str(tmp_path), out, "--instances", "-q"]) == 0
    capsys.readouterr()
    assert main(["dataset", "check", out, "--instances", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["data"]["masks"] == "known/**/*"
    assert answer["pairs"][0]["class_counts"] == {"objects": 90}
    assert answer["pairs"][0]["n_valid"] == 40 * 50 - 20


def test_shapes_lie_where_they_were_drawn(tmp_path):
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps([_feature("Polygon", [_ring(27, 17, 40, 40)], "x")]))
    (shape,) = read_geojson(path, SHAPE)
    expected = np.zeros(SHAPE, bool)
    expected[17:, 27:] = True
    assert np.array_equal(covered(shape, SHAPE), expected)
