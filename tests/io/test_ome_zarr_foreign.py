"""Zarr that other programs wrote: every version, axes in any order, oddities, damage."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lamella.core.errors import (
    AxesError,
    GeometryError,
    InputError,
    LamellaError,
    UnknownFormatError,
    UnreadableFileError,
)
from lamella.io.format import OpenOptions, list_contents, open_volume
from lamella.volume import LabelClass, Labels, Volume

ZOO = "odd_formats/neuroglancer_testdata/datasource/zarr"
CELLMAP = "em/cellmap_mini/jrc_vnc-a/jrc_vnc-a.zarr"
SPACE = ("z", "y", "x")


def codes(volume: Volume) -> list[str]:
    return [note.code for note in volume.notes]


def noise(shape: tuple[int, ...], dtype: str = "uint16") -> np.ndarray:
    return np.random.default_rng(1).integers(1, 200, shape).astype(dtype)


def outcome_of(path: Path) -> Volume | LamellaError:
    """The volume, or the one error of ours."""
    try:
        return open_volume(path)
    except LamellaError as error:
        return error


def axis(name: str, unit: str | None = "nanometer", kind: str | None = None) -> dict[str, str]:
    kind = kind or {"t": "time", "c": "channel"}.get(name, "space")
    return {"name": name, "type": kind} | ({"unit": unit} if unit and kind == "space" else {})


def make(
    path: Path,
    data: np.ndarray,
    axes: list[Any] | None,
    transformations: list[dict[str, Any]] | None = None,
    *,
    outer: list[dict[str, Any]] | None = None,
    version: str = "0.5",
    **ome: Any,
) -> Path:
    """An image of one level, as another program might write it."""
    zarr_format = 2 if version < "0.5" else 3
    array = zarr.create_array(
        str(path / "0"), shape=data.shape, chunks=data.shape, dtype=data.dtype,
        zarr_format=zarr_format,
    )  # fmt: skip
    array[...] = data
    dataset: dict[str, Any] = {"path": "0"}
    if transformations is not None:
        dataset["coordinateTransformations"] = transformations
    multiscale: dict[str, Any] = {"datasets": [dataset], "name": "other"}
    if axes is not None:
        multiscale["axes"] = axes
    if outer is not None:
        multiscale["coordinateTransformations"] = outer
    document = {"multiscales": [multiscale], **ome}
    if zarr_format == 2:
        multiscale["version"] = version
        (path / ".zgroup").write_text('{"zarr_format": 2}')
        (path / ".zattrs").write_text(json.dumps(document))
    else:
        attributes = {"ome": {"version": version, **document}}
        group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        (path / "zarr.json").write_text(json.dumps(group))
    return path


def scale(*values: float) -> dict[str, Any]:
    return {"type": "scale", "scale": list(values)}


def translation(*values: float) -> dict[str, Any]:
    return {"type": "translation", "translation": list(values)}


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@given(data=st.data())
def test_axes_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, version: str, data: st.DataObject
) -> None:
    names = data.draw(st.sampled_from([("y", "x"), SPACE, ("c", *SPACE), ("t", "c", *SPACE)]))
    order = data.draw(st.permutations(names))
    sizes = {"t": 2, "c": 3, "z": 4, "y": 5, "x": 6}
    spacing = {"t": 1.0, "c": 1.0, "z": 4.0, "y": 0.3, "x": 0.1}
    start = {"t": 0.0, "c": 0.0, "z": -7.5, "y": 0.15, "x": 1e6}
    voxels = noise(tuple(sizes[name] for name in order))
    folder = tmp_path_factory.mktemp("any") / "i.ome.zarr"
    path = make(
        folder,
        voxels,
        [axis(name) for name in order],
        [scale(*(spacing[n] for n in order)), translation(*(start[n] for n in order))],
        version=version,
    )
    volume = open_volume(path)
    assert str(volume.axes) == "".join(names)
    assert volume.affine.spacing == tuple(spacing[n] for n in names if n in SPACE)
    assert volume.affine.origin == tuple(start[n] for n in names if n in SPACE)
    assert volume.unit == "nm"
    assert volume.affine.is_axis_aligned
    assert volume.affine.direction[0][0] == 1.0
    assert_array_equal(volume.load(), voxels.transpose([order.index(n) for n in names]))


@pytest.mark.parametrize(
    ("unit", "value", "expected", "known"),
    [
        ("nanometer", 4.0, 4.0, "nm"),
        ("micrometer", 0.3, 0.3, "um"),
        ("millimeter", 0.7, 0.7, "mm"),
        ("angstrom", 13.48, 1.348, "nm"),
        ("centimeter", 0.25, 2.5, "mm"),
        ("nm", 4.0, 4.0, "nm"),
    ],
)
def test_units(tmp_path: Path, unit: str, value: float, expected: float, known: str) -> None:
    axes = [axis(name, unit) for name in "yx"]
    volume = open_volume(make(tmp_path / "i.zarr", noise((3, 4)), axes, [scale(value, value)]))
    assert volume.unit == known
    assert volume.affine.spacing == (expected, expected)
    assert codes(volume) == []


@pytest.mark.parametrize(
    ("units", "spacing", "unit", "noted"),
    [
        ((None, None), (1.0, 1.0), "voxel", ["spacing_missing"]),
        ((None, None), (4.0, 2.0), "voxel", ["spacing_unit_missing"]),
        (("parsec", "parsec"), (4.0, 2.0), "voxel", ["spacing_unit_unknown"]),
        (("nanometer", None), (4.0, 2.0), "nm", ["spacing_unit_assumed"]),
        (("micrometer", "nanometer"), (4000.0, 2.0), "nm", []),
    ],
)  # fmt: skip
def test_units_that_are_no_help(
    tmp_path: Path, units: tuple, spacing: tuple, unit: str, noted: list[str]
) -> None:
    axes = [axis(name, word) for name, word in zip("yx", units, strict=True)]
    given_spacing = (4.0, 2.0) if units[0] == "micrometer" else spacing
    volume = open_volume(make(tmp_path / "i.zarr", noise((3, 4)), axes, [scale(*given_spacing)]))
    assert volume.unit == unit
    assert_allclose(volume.affine.spacing, spacing)
    assert codes(volume) == noted


def test_transformations_of_both_kinds_are_composed(tmp_path: Path) -> None:
    axes = [axis(name) for name in SPACE]
    path = make(
        tmp_path / "i.zarr",
        noise((3, 4, 5)),
        axes,
        [scale(2, 3, 4), translation(10, 20, 30)],
        outer=[scale(10, 10, 10), translation(1, 2, 3)],
    )
    volume = open_volume(path)
    assert volume.affine.spacing == (20, 30, 40)
    assert volume.affine.origin == (101, 202, 303)


def test_negative_scale_is_a_direction(tmp_path: Path) -> None:
    axes = [axis(name) for name in "yx"]
    volume = open_volume(make(tmp_path / "i.zarr", noise((3, 4)), axes, [scale(-2, 3)]))
    assert volume.affine.spacing == (2, 3)
    assert_allclose(volume.affine.apply([1, 1]), [-2, 3])


def test_zero_scale_is_not_calibrated(tmp_path: Path) -> None:
    axes = [axis(name) for name in "yx"]
    volume = open_volume(make(tmp_path / "i.zarr", noise((3, 4)), axes, [scale(0, 3)]))
    assert volume.unit == "voxel"
    assert "spacing_invalid" in codes(volume)


def test_time_step_is_told(tmp_path: Path) -> None:
    axes = [axis("t") | {"unit": "second"}, axis("y"), axis("x")]
    volume = open_volume(make(tmp_path / "i.zarr", noise((2, 3, 4)), axes, [scale(2.5, 1, 1)]))
    (note,) = volume.notes
    assert note.code == "time_step_ignored"
    assert "2.5 second" in note.message


def test_old_versions(tmp_path: Path) -> None:
    data = noise((1, 2, 3, 4, 5))
    first = open_volume(make(tmp_path / "1.zarr", data, None, version="0.1"))
    assert str(first.axes) == "tczyx"
    assert codes(first) == ["axes_assumed", "spacing_missing"]
    third = open_volume(make(tmp_path / "3.zarr", data[0, 0], list(SPACE), version="0.3"))
    assert str(third.axes) == "zyx"


@pytest.mark.parametrize(
    ("names", "shape", "expected", "noted"),
    [
        (("depth", "height", "width"), (3, 4, 5), "zyx", ["axes_assumed"]),
        (("Z", "Y", "X"), (3, 4, 5), "zyx", []),
        (("angle", "y", "x"), (1, 4, 5), "yx", ["axis_dropped"]),
        (("angle", "y", "x"), (3, 4, 5), "cyx", ["axis_as_channel"]),
    ],
)
def test_axes_of_other_names(
    tmp_path: Path, names: tuple, shape: tuple, expected: str, noted: list[str]
) -> None:
    axes = [axis(n, kind=None if n == "angle" else "space") for n in names]
    if names[0] == "angle":
        axes[0] = {"name": "angle", "type": "angle"}
    path = make(tmp_path / "i.zarr", noise(shape), axes, [scale(*(2.0 for _ in names))])
    volume = open_volume(path)
    assert str(volume.axes) == expected
    assert codes(volume) == noted


def test_axes_that_make_no_image(tmp_path: Path) -> None:
    axes = [axis("c"), {"name": "angle", "type": "angle"}, axis("y"), axis("x")]
    with pytest.raises(AxesError, match="angle"):
        open_volume(make(tmp_path / "a.zarr", noise((2, 3, 4, 5)), axes))
    with pytest.raises(AxesError, match="lack y or x"):
        open_volume(make(tmp_path / "b.zarr", noise((2, 3)), [axis("t"), axis("x")]))
    with pytest.raises(AxesError, match="names 3 axes"):
        open_volume(make(tmp_path / "c.zarr", noise((2, 3)), [axis(n) for n in SPACE]))
    path = make(tmp_path / "d.zarr", noise((2, 3)), [axis("t"), axis("x")])
    assert str(open_volume(path, OpenOptions(axes="xy")).axes) == "yx"


@pytest.mark.parametrize(
    "bad",
    [
        [{"type": "scale", "path": "scales"}],
        [{"type": "displacements", "displacements": "field"}],
        [scale(1, 2)],
        [scale(1, 2, float("nan"))],
        ["scale"],
        [{"type": "affine", "affine": [[1, 2], [3]]}],
        [{"type": "sequence"}],
    ],
)
def test_transformations_that_make_no_grid(tmp_path: Path, bad: list[Any]) -> None:
    path = make(tmp_path / "i.zarr", noise((3, 4, 5)), [axis(n) for n in SPACE], bad)
    with pytest.raises((GeometryError, UnreadableFileError)) as caught:
        open_volume(path)
    assert caught.value.hint


@pytest.mark.parametrize(
    "multiscales",
    [[], [{}], [None], {"datasets": []}, [{"datasets": [{"path": 3}]}], [{"datasets": "0"}], "x",
     [{"datasets": [{"path": "missing"}], "axes": ["y", "x"]}],
     [{"datasets": [{"path": "0"}], "axes": 7}]],
)  # fmt: skip
def test_damaged_multiscales(tmp_path: Path, multiscales: Any) -> None:
    path = make(tmp_path / "i.zarr", noise((3, 4)), ["y", "x"])
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"]["ome"]["multiscales"] = multiscales
    (path / "zarr.json").write_text(json.dumps(document))
    outcome = outcome_of(path)
    if isinstance(outcome, LamellaError):
        assert outcome.hint
    else:
        assert outcome.shape == (3, 4)


def test_levels_that_are_missing_or_out_of_order(tmp_path: Path) -> None:
    path = make(tmp_path / "i.zarr", noise((8, 8)), ["y", "x"], [scale(1, 1)])
    document = json.loads((path / "zarr.json").read_text())
    half = zarr.create_array(str(path / "half"), shape=(4, 4), dtype="uint16")
    half[...] = 3
    listed = document["attributes"]["ome"]["multiscales"][0]["datasets"]
    listed.insert(0, {"path": "half", "coordinateTransformations": [scale(2, 2)]})
    listed.append({"path": "gone", "coordinateTransformations": [scale(4, 4)]})
    (path / "zarr.json").write_text(json.dumps(document))
    volume = open_volume(path)
    assert volume.shape == (8, 8)
    assert [level.shape for level in volume.levels] == [(4, 4)]
    assert {"levels_reordered", "level_missing"} <= set(codes(volume))


def test_foreign_labels_bring_their_classes(tmp_path: Path) -> None:
    document = {
        "colors": [{"label-value": 1, "rgba": [1, 2, 3, 255]}, {"label-value": 2}, "junk"],
        "properties": [{"label-value": 1, "class": "mito"}, {"label-value": 9, "name": "er"}],
    }
    path = make(tmp_path / "l.zarr", noise((3, 4)), ["y", "x"], **{"image-label": document})
    volume = open_volume(path)
    assert isinstance(volume, Labels)
    assert volume.classes == (LabelClass(1, "mito", (1, 2, 3)), LabelClass(9, "er"))
    floats = noise((3, 4), "float32")
    path = make(tmp_path / "f.zarr", floats, ["y", "x"], **{"image-label": document})
    volume = open_volume(path)
    assert not isinstance(volume, Labels)
    assert "labels_not_integer" in codes(volume)


def test_plates_and_series_are_listed_and_chosen(tmp_path: Path) -> None:
    plate = tmp_path / "plate.ome.zarr"
    for well in ("A/1", "B/2"):
        make(plate / well / "0", noise((3, 4)), ["y", "x"])
    (plate / "zarr.json").write_text(
        json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"plate": {}}}})
    )
    assert [entry.id for entry in list_contents(plate)] == ["A/1/0", "B/2/0"]
    with pytest.raises(InputError, match="2 images") as caught:
        open_volume(plate)
    assert "--dataset" in str(caught.value.hint)
    assert open_volume(plate, OpenOptions(dataset="B/2/0")).shape == (3, 4)
    assert open_volume(plate / "A").shape == (3, 4)

    raw = tmp_path / "raw.zarr"
    for series in ("0", "1", "10"):
        make(raw / series, noise((3, 4 + int(series))), ["y", "x"], version="0.4")
    (raw / ".zgroup").write_text('{"zarr_format": 2}')
    (raw / ".zattrs").write_text('{"bioformats2raw.layout": 3}')
    assert [(e.selector, e.id) for e in list_contents(raw)] == [
        ("series", "0"), ("series", "1"), ("series", "10"),
    ]  # fmt: skip
    with pytest.raises(InputError) as caught:
        open_volume(raw)
    assert "--series" in str(caught.value.hint)
    assert open_volume(raw, OpenOptions(series="10")).shape == (3, 14)
    with pytest.raises(InputError, match="no series '7'"):
        open_volume(raw, OpenOptions(series="7"))


def plain(path: Path, shape: tuple[int, ...], **attributes: Any) -> Path:
    array = zarr.create_array(str(path), shape=shape, dtype="uint8", attributes=attributes)
    array[...] = noise(shape, "uint8")
    return path


def test_plain_arrays(tmp_path: Path) -> None:
    bare = open_volume(plain(tmp_path / "a.zarr", (3, 4, 5)))
    assert (str(bare.axes), bare.unit, codes(bare)) == ("zyx", "voxel", ["spacing_missing"])
    four = open_volume(plain(tmp_path / "b.zarr", (2, 3, 4, 5)))
    assert (str(four.axes), codes(four)) == ("czyx", ["axes_assumed", "spacing_missing"])
    turned = open_volume(tmp_path / "a.zarr", OpenOptions(axes="xyz"))
    assert turned.shape == (5, 4, 3)
    assert_array_equal(turned.load(), bare.load().transpose(2, 1, 0))
    with pytest.raises(AxesError, match="1 axes"):
        open_volume(plain(tmp_path / "c.zarr", (7,)))
    with pytest.raises(AxesError):
        open_volume(tmp_path / "a.zarr", OpenOptions(axes="yx"))
    with pytest.raises(AxesError):
        open_volume(tmp_path / "a.zarr", OpenOptions(axes="zzz"))


def test_plain_arrays_with_spacing(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.zarr", (3, 4, 5), voxel_size=[8, 4, 2], translation=[1, 2.5, 3])
    submission = open_volume(path)
    assert submission.affine.spacing == (8, 4, 2)
    assert submission.affine.origin == (1, 2.5, 3)
    assert (submission.unit, codes(submission)) == ("nm", ["unit_assumed"])
    funlib = open_volume(
        plain(
            tmp_path / "b.zarr", (2, 3, 4, 5), voxel_size=[8, 4, 2], offset=[80, 40, 20],
            units=["", "nm", "nm", "nm"], axis_names=["c^", "z", "y", "x"],
        )
    )  # fmt: skip
    assert funlib.affine.origin == (80, 40, 20)
    assert str(funlib.axes) == "czyx"


def test_cellmap_half_voxels_are_exact(data_dir: Path) -> None:
    """PITFALLS: i_raw = (t_l + j * s_l - t_r) / s_r, and half-voxel offsets are normal."""
    root = data_dir / CELLMAP
    raw = open_volume(root / "recon-1/em/fibsem-uint8")
    assert raw.unit == "nm"
    for crop, structure in (("crop101", "mito"), ("crop101", "pm"), ("crop103", "perox")):
        group = root / "recon-1/labels/groundtruth" / crop / structure
        labels = open_volume(group)
        assert isinstance(labels, Labels)
        document = json.loads((group / ".zattrs").read_text())["multiscales"][0]
        for level, dataset in zip((labels, *labels.levels), document["datasets"], strict=True):
            steps, start = (list(t.values())[1] for t in dataset["coordinateTransformations"])
            assert level.affine.spacing == tuple(steps)
            assert level.affine.origin == tuple(start)
        j = np.array([3, 100, 200])
        expected = (np.array(labels.affine.origin) + j * labels.affine.spacing) / 1.0
        assert_allclose(labels.affine.apply(j), expected, rtol=1e-12)
        i_raw = raw.affine.inverse_apply(labels.affine.apply(j))
        assert_allclose(np.abs(i_raw[1:] * 2 % 1 - 0.5), 0.0, atol=1e-6)
    by_dataset = open_volume(root, OpenOptions(dataset="recon-1/labels/groundtruth/crop101/mito"))
    assert by_dataset.affine == open_volume(root / "recon-1/labels/groundtruth/crop101/mito").affine
    level = open_volume(root / "recon-1/em/fibsem-uint8/s1")
    assert level.affine == raw.levels[0].affine


def test_chunks_that_were_never_fetched_are_told(data_dir: Path, tmp_path: Path) -> None:
    raw = open_volume(data_dir / CELLMAP / "recon-1/em/fibsem-uint8")
    (note,) = [n for n in raw.notes if n.code == "chunks_missing"]
    assert "of 512 chunks" in note.message or "chunks are not stored" in note.message
    whole = tmp_path / "i.zarr"
    make(whole, noise((8, 8)), ["y", "x"])
    assert "chunks_missing" not in codes(open_volume(whole))
    (whole / "0" / "c" / "0" / "0").unlink()
    gone = open_volume(whole)
    assert "chunks_missing" in codes(gone)
    assert not gone.load().any()


def test_store_root_opens_its_only_image(data_dir: Path) -> None:
    volume = open_volume(data_dir / CELLMAP)
    assert volume.shape == (20, 1024, 1024)
    assert "dataset_chosen" in codes(volume)
    entries = list_contents(data_dir / CELLMAP)
    assert [e.id for e in entries if e.is_image] == ["recon-1/em/fibsem-uint8"]
    assert len(entries) == 6


ZOO_IMAGES = {
    "ome_zarr/simple_0.4": ((10, 10), (4.0, 30.0), (0.0, 0.0)),
    "ome_zarr/simple_0.5": ((10, 10), (4.0, 30.0), (0.0, 0.0)),
    "ome_zarr/simple_0.5.zip": ((10, 10), (4.0, 30.0), (0.0, 0.0)),
    "ome_zarr/simple_0.5/scale1/image": ((5, 5), (8.0, 60.0), (2.0, 15.0)),
    "ome_zarr/all_0.6/basic/identity.zarr": ((27, 226, 186), (1.0,) * 3, (0.0,) * 3),
    "ome_zarr/all_0.6/basic/scale.zarr": ((27, 226, 186), (4.0, 3.0, 2.0), (0.0,) * 3),
    "ome_zarr/all_0.6/basic/translation.zarr": ((27, 226, 186), (1.0,) * 3, (30.0, 20.0, 10.0)),
    "ome_zarr/all_0.6/basic/sequenceScaleTranslation.zarr": (
        (27, 226, 186), (4.0, 3.0, 2.0), (32.0, 21.0, 10.0),
    ),
    "ome_zarr/all_0.6/simple/affine.zarr": (
        (27, 226, 186), (4.0, 3.0, 2.0), (32.0, 21.0, 10.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ZOO_IMAGES)
def test_zoo_geometry(data_dir: Path, name: str) -> None:
    shape, spacing, origin = ZOO_IMAGES[name]
    volume = open_volume(data_dir / ZOO / name)
    assert volume.shape == shape
    assert volume.affine.spacing == spacing
    assert volume.affine.origin == origin
    assert volume.unit == ("um" if "0.6" in name else "nm")


def test_zoo_voxels(data_dir: Path) -> None:
    for name in ("simple_0.4", "simple_0.5", "simple_0.5.zip"):
        volume = open_volume(data_dir / ZOO / "ome_zarr" / name)
        assert_array_equal(volume.load(), np.arange(100).reshape(10, 10))
        assert [level.shape for level in volume.levels] == [(5, 5), (2, 2)]


def test_zoo_turned_axes(data_dir: Path) -> None:
    folder = data_dir / ZOO / "ome_zarr" / "all_0.6"
    rotated = open_volume(folder / "simple" / "rotation.zarr").affine
    assert_allclose(
        rotated.apply([1, 2, 3]), np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]]) @ [1, 2, 3]
    )
    mapped = open_volume(folder / "axis_dependent" / "mapAxis.zarr").affine
    assert_allclose(mapped.apply([1, 2, 3]), [2, 3, 1])
    world = open_volume(folder / "simple" / "anisotropic_rotation.zarr")
    assert "coordinate_system" in codes(world)
    matrix = np.array([[-0.7071, -0.7071, 0], [0.7071, -0.7071, 0], [0, 0, 1]])
    assert_allclose(world.affine.apply([1, 2, 3]), matrix @ [2, 1, 0.75], atol=1e-9)


@pytest.mark.parametrize("store", ["zarr_v2/from_zarr-python", "zarr_v3/from_zarrita"])
def test_zoo_codecs(data_dir: Path, store: str) -> None:
    """Every array of numbers equals what zarr itself reads; the rest is one error each."""
    folder = data_dir / ZOO / store / "data.zarr"
    n_read = 0
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        volume = outcome_of(path)
        if isinstance(volume, LamellaError):
            assert volume.hint
            is_image = path.name[0] in "23" and not path.name.endswith((".U7", ".O", ".i2.F"))
            assert not is_image, (path.name, volume)
            continue
        voxels = volume.load()
        n_read += 1
        assert volume.dtype.isnative
        assert_array_equal(voxels, zarr.open_array(str(path), mode="r")[...])
    assert n_read >= 7


def test_links_that_a_copy_broke_are_one_error(data_dir: Path) -> None:
    volume = open_volume(data_dir / ZOO / "ome_zarr/all_0.6/basic/scale.zarr")
    with pytest.raises(UnreadableFileError, match="a chunk cannot be read"):
        volume.load()


def test_zips_are_right_or_one_error(data_dir: Path) -> None:
    folder = data_dir / "odd_formats/neuroglancer_testdata/kvstore/zip"
    archives = sorted(folder.rglob("*.zip"))
    assert len(archives) > 20
    for path in archives:
        with pytest.raises((UnreadableFileError, UnknownFormatError)) as caught:
            open_volume(path)
        assert caught.value.hint, path.name


def test_damaged_archive_of_an_image(data_dir: Path, tmp_path: Path) -> None:
    source = data_dir / ZOO / "ome_zarr" / "simple_0.5.zip"
    whole = source.read_bytes()
    path = tmp_path / "cut.zarr.zip"
    path.write_bytes(whole[:-200])
    with pytest.raises(UnreadableFileError, match="zip"):
        open_volume(path)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    with pytest.raises(UnreadableFileError, match="without a zarr"):
        open_volume(tmp_path / "other.zip")


def test_n5_is_refused_by_name(data_dir: Path) -> None:
    folder = data_dir / "odd_formats/neuroglancer_testdata/datasource/n5"
    for name in ("n5_viewer_multiscale_modern", "n5_viewer_multiscale_deprecated"):
        with pytest.raises(UnknownFormatError, match="N5"):
            open_volume(folder / name)


def test_document_stands_for_its_folder(data_dir: Path) -> None:
    folder = data_dir / ZOO / "ome_zarr" / "simple_0.5"
    assert open_volume(folder / "zarr.json").affine == open_volume(folder).affine


def test_opening_reads_no_voxels(data_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(data_dir / ZOO / "ome_zarr" / "simple_0.5", tmp_path / "i.zarr")
    for chunk in (tmp_path / "i.zarr").rglob("c/*/*"):
        if chunk.is_file():
            chunk.chmod(0o644)
            chunk.write_bytes(b"")
    volume = open_volume(tmp_path / "i.zarr")
    assert volume.shape == (10, 10)
    with pytest.raises(UnreadableFileError):
        volume.load()
