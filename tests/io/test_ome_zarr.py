"""OME-Zarr 0.5 and 0.4: what is written comes back, and outside programs accept it."""

import errno
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import zarr
from numpy.testing import assert_array_equal
from ome_zarr_models import open_ome_zarr, v04, v05

from lamella.core.errors import InputError, LamellaError, NarrowingError, StorageError
from lamella.io.format import OpenOptions, SaveOptions, list_contents, open_volume, save_volume
from lamella.testing.io import FormatContract
from lamella.volume import Affine, Axes, LabelClass, Labels, Note, Volume
from lamella.volume.pyramid import downsample_labels, downsample_mean


class TestOmeZarr(FormatContract):
    format_id = "ome-zarr"
    suffix = ".ome.zarr"
    is_folder = True
    dtypes: ClassVar = (
        "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64",
        "float16", "float32", "float64", "bool",
    )  # fmt: skip
    axes: ClassVar = ("zyx", "yx", "czyx", "tczyx", "cyx", "tyx")
    units: ClassVar = ("nm", "um", "mm", "voxel")
    frames: ClassVar = ("stage", "RAS")
    directions = "rotations"
    keeps_channel_names = True
    keeps_label_classes = True
    tolerance = 1e-9
    # A slab is one chunk (64 planes) thick, and zarr holds its chunks besides.
    memory_shape: ClassVar = (384, 256, 256)


class TestOmeZarr04(FormatContract):
    format_id = "ome-zarr-0.4"
    suffix = ".ome.zarr"
    is_folder = True
    dtypes: ClassVar = ("uint16", "uint8", "int32", "float32", "bool")
    axes: ClassVar = ("zyx", "yx", "tczyx")
    units: ClassVar = ("nm", "um", "mm", "voxel")
    frames: ClassVar = ("stage", "RAS")
    directions = "rotations"
    keeps_channel_names = True
    tolerance = 1e-9
    memory_shape: ClassVar = (384, 256, 256)

    def test_is_declared(self) -> None:
        """Reading is done by ome-zarr: there is a writer only."""

    def test_probe_never_raises(self) -> None:
        """As above."""


class TestOmeZarrArchive(FormatContract):
    format_id = "ome-zarr"
    suffix = ".ome.zarr.zip"
    axes: ClassVar = ("zyx", "czyx")
    keeps_channel_names = True
    tolerance = 1e-9
    memory_shape: ClassVar = (384, 256, 256)


TURN = ((0.0, -0.6, 0.8), (1.0, 0.0, 0.0), (0.0, 0.8, 0.6))
VERSIONS = [("ome-zarr", v05, 3), ("ome-zarr-0.4", v04, 2)]


def noise(shape: tuple[int, ...], dtype: str = "uint16") -> np.ndarray:
    return np.random.default_rng(1).integers(0, 200, shape).astype(dtype)


def save(volume: Volume, path: Path, **options: Any) -> Path:
    return save_volume(volume, path, SaveOptions(**options))


@pytest.mark.parametrize(("format_id", "models", "zarr_format"), VERSIONS)
@pytest.mark.parametrize("axes", ["yx", "zyx", "czyx", "tczyx"])
def test_outside_judge_accepts_images(
    tmp_path: Path, format_id: str, models: Any, zarr_format: int, axes: str
) -> None:
    shape = tuple({"t": 2, "c": 3}.get(name, 40) for name in axes)
    spacing = (4.0, 2.0, 2.0)[-len(axes.strip("tc")) :]
    volume = Volume.from_array(noise(shape), axes=axes, spacing=spacing, unit="nm", name="cell")
    path = save(volume, tmp_path / "i.ome.zarr", format=format_id, pyramid=True)
    group = zarr.open_group(str(path), mode="r", zarr_format=zarr_format)
    image = models.Image.from_zarr(group)
    assert type(open_ome_zarr(group)) is type(image)
    attributes = image.attributes.ome if zarr_format == 3 else image.attributes
    multiscale = attributes.multiscales[0]
    assert [axis.name for axis in multiscale.axes] == list(axes)
    assert multiscale.axes[-1].unit == "nanometer"
    assert multiscale.datasets[0].coordinateTransformations[0].scale[-2:] == [2.0, 2.0]


@pytest.mark.parametrize(("format_id", "models", "zarr_format"), VERSIONS)
def test_outside_judge_accepts_labels(
    tmp_path: Path, format_id: str, models: Any, zarr_format: int
) -> None:
    classes = (LabelClass(1, "mito"), LabelClass(2, "er", (1, 2, 3)))
    labels = Labels.from_array(noise((9, 70, 70), "uint8") % 3, spacing=(2, 1, 1), unit="nm")
    labels = replace(labels, classes=classes)
    path = save(labels, tmp_path / "l.ome.zarr", format=format_id, pyramid=True)
    group = zarr.open_group(str(path), mode="r", zarr_format=zarr_format)
    judged = models.ImageLabel.from_zarr(group)
    attributes = judged.attributes.ome if zarr_format == 3 else judged.attributes
    assert [c.label_value for c in attributes.image_label.colors] == [1, 2]
    assert attributes.image_label.colors[1].rgba == (1, 2, 3, 255)
    again = open_volume(path)
    assert isinstance(again, Labels)
    assert again.classes == classes
    assert_array_equal(again.levels[0].load(), downsample_labels(labels.load(), (1, 2, 2)))


def test_dimension_names_are_those_of_the_axes(tmp_path: Path) -> None:
    volume = Volume.from_array(noise((2, 5, 300, 9)), axes="czyx", spacing=(1, 1, 1), unit="um")
    path = save(volume, tmp_path / "i.ome.zarr")
    for level in ("0", "1"):
        document = json.loads((path / level / "zarr.json").read_text())
        assert document["dimension_names"] == ["c", "z", "y", "x"]


def test_pyramid_follows_the_geometry(tmp_path: Path) -> None:
    data = noise((10, 300, 310))
    volume = Volume.from_array(data, spacing=(50.0, 4.6, 4.6), unit="nm", origin=(3.0, 2.3, 0.1))
    again = open_volume(save(volume, tmp_path / "i.ome.zarr"))
    assert [level.shape for level in again.levels] == [(10, 150, 155), (10, 75, 78), (10, 38, 39)]
    for number, level in enumerate(again.levels, start=1):
        factor = (1, 2**number, 2**number)
        assert level.affine.is_close(volume.affine.downsampled(factor), 1e-9)
    assert_array_equal(again.levels[0].load(), downsample_mean(data, (1, 2, 2)))
    assert not open_volume(save(volume, tmp_path / "flat.ome.zarr", pyramid=False)).levels


def test_oblique_pyramid_lies_where_level_0_lies(tmp_path: Path) -> None:
    affine = Affine((3.0, 0.1, 0.7), (-11.5, 2.25, 9.0), TURN, "RAS")
    volume = Volume(noise((90, 80, 70)), Axes.parse("zyx"), affine, "mm")
    again = open_volume(save(volume, tmp_path / "i.ome.zarr", pyramid=True))
    assert again.affine == affine
    middle = affine.apply([44.5, 39.5, 34.5])
    for level in again.levels:
        ratio = [s / t for s, t in zip(level.affine.spacing, affine.spacing, strict=True)]
        index = [(m + 0.5) / r - 0.5 for m, r in zip((44.5, 39.5, 34.5), ratio, strict=True)]
        np.testing.assert_allclose(level.affine.apply(index), middle, atol=1e-9)


def test_crops_stay_in_register_for_other_programs(tmp_path: Path) -> None:
    """NGFF has no direction: its translations must still tell a crop from the whole."""
    from lamella.volume import Box

    affine = Affine((3.0, 0.1, 0.7), (-11.5, 2.25, 9.0), TURN, "RAS")
    volume = Volume(noise((9, 8, 7)), Axes.parse("zyx"), affine, "mm")
    starts = []
    for name, part in (("a", volume), ("b", volume.crop(Box((2, 3, 4), (9, 8, 7))))):
        path = save(part, tmp_path / f"{name}.ome.zarr")
        document = json.loads((path / "zarr.json").read_text())["attributes"]["ome"]
        transformations = document["multiscales"][0]["datasets"][0]["coordinateTransformations"]
        starts.append(np.array(transformations[1]["translation"]))
    np.testing.assert_allclose(starts[1] - starts[0], np.array([2 * 3.0, 3 * 0.1, 4 * 0.7]))


def test_names_notes_and_instances_come_back(tmp_path: Path) -> None:
    notes = (Note("spacing_suspicious", "the header says 1.0"),)
    labels = Labels.from_array(noise((4, 5, 6)), spacing=(2, 1, 1), unit="nm", name="nuclei")
    labels = replace(labels, notes=notes, is_instance=True, classes=(LabelClass(1, "nucleus"),))
    again = open_volume(save(labels, tmp_path / "other.ome.zarr"))
    assert isinstance(again, Labels)
    assert (again.name, again.notes, again.is_instance) == ("nuclei", notes, True)
    assert again.classes == labels.classes


def test_edited_metadata_wins_over_our_own(tmp_path: Path) -> None:
    volume = Volume.from_array(noise((4, 5, 6)), spacing=(2, 1, 1), unit="nm")
    path = save(volume, tmp_path / "i.ome.zarr")
    text = (path / "zarr.json").read_text()
    document = json.loads(text)
    dataset = document["attributes"]["ome"]["multiscales"][0]["datasets"][0]
    dataset["coordinateTransformations"][0]["scale"] = [5.0, 1.0, 1.0]
    (path / "zarr.json").write_text(json.dumps(document))
    again = open_volume(path)
    assert again.affine.spacing == (5.0, 1.0, 1.0)
    assert [note.code for note in again.notes] == ["metadata_edited"]


def test_channels_have_names_colours_and_windows(tmp_path: Path) -> None:
    data = np.stack([noise((5, 6, 7)), noise((5, 6, 7)) + np.uint16(1000)])
    volume = Volume.from_array(data, axes="czyx", spacing=(1, 1, 1), unit="um")
    volume = replace(volume, channel_names=("DAPI", "GFP"))
    path = save(volume, tmp_path / "i.ome.zarr")
    omero = json.loads((path / "zarr.json").read_text())["attributes"]["ome"]["omero"]
    assert [channel["label"] for channel in omero["channels"]] == ["DAPI", "GFP"]
    assert omero["channels"][1]["window"]["start"] >= 1000
    assert omero["channels"][1]["window"]["end"] <= 1200


def test_type_is_converted_only_if_it_holds(tmp_path: Path) -> None:
    volume = Volume.from_array(noise((4, 5, 6)) + np.uint16(60000))
    with pytest.raises(NarrowingError):
        save(volume, tmp_path / "i.ome.zarr", dtype="uint8")
    assert list(tmp_path.iterdir()) == []
    again = open_volume(save(volume, tmp_path / "i.ome.zarr", dtype="float32"))
    assert again.dtype == np.float32
    assert_array_equal(again.load(), volume.load())


def test_archive_begins_with_its_document(tmp_path: Path) -> None:
    volume = Volume.from_array(noise((4, 5, 6)), spacing=(2, 1, 1), unit="nm")
    for suffix in (".ome.zarr.zip", ".ozx"):
        path = save(volume, tmp_path / f"i{suffix}", format="ome-zarr")
        with zipfile.ZipFile(path) as archive:
            assert archive.namelist()[0] == "zarr.json"
            assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert_array_equal(open_volume(path).load(), volume.load())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["i.ome.zarr.zip", "i.ozx"]


def test_archive_of_a_folder(tmp_path: Path) -> None:
    """People zip the folder itself: its documents lie one level down."""
    volume = Volume.from_array(noise((4, 5, 6)), spacing=(2, 1, 1), unit="nm")
    folder = save(volume, tmp_path / "cell.ome.zarr")
    with zipfile.ZipFile(tmp_path / "sent.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.rglob("*"):
            archive.write(file, file.relative_to(tmp_path))
    again = open_volume(tmp_path / "sent.zip")
    assert_array_equal(again.load(), volume.load())
    assert again.affine == volume.affine


def test_labels_beside_an_image_are_listed_and_chosen(tmp_path: Path) -> None:
    image = Volume.from_array(noise((4, 5, 6)), spacing=(2, 1, 1), unit="nm")
    path = save(image, tmp_path / "i.ome.zarr")
    labels = Labels.from_array(noise((4, 5, 6)), spacing=(2, 1, 1), unit="nm", name="nuclei")
    save(labels, path / "labels" / "nuclei", format="ome-zarr")
    entries = list_contents(path)
    assert [(e.id, e.is_image, e.shape) for e in entries] == [
        (".", True, (4, 5, 6)),
        ("labels/nuclei", False, (4, 5, 6)),
    ]
    assert not isinstance(open_volume(path), Labels)
    for chosen in (
        open_volume(path, OpenOptions(dataset="labels/nuclei")),
        open_volume(path / "labels" / "nuclei"),
    ):
        assert isinstance(chosen, Labels)
        assert_array_equal(chosen.load(), labels.load())
    with pytest.raises(InputError) as caught:
        open_volume(path, OpenOptions(dataset="labels/cells"))
    assert "labels/nuclei" in str(caught.value.hint)


def test_level_is_chosen(tmp_path: Path) -> None:
    volume = Volume.from_array(noise((10, 300, 310)), spacing=(50.0, 4.6, 4.6), unit="nm")
    path = save(volume, tmp_path / "i.ome.zarr")
    whole = open_volume(path)
    level = open_volume(path, OpenOptions(level=1))
    assert level.affine == whole.levels[0].affine
    assert [item.shape for item in level.levels] == [item.shape for item in whole.levels[1:]]
    with pytest.raises(InputError, match="no level 9"):
        open_volume(path, OpenOptions(level=9))
    array = open_volume(path / "1")
    assert array.affine == level.affine
    assert array.unit == "nm"


def test_failed_writing_leaves_nothing_that_looks_like_an_image(tmp_path: Path) -> None:
    """The documents come last: a folder that a kill left behind has no metadata."""
    from lamella.io.ome_zarr_write import write_image

    volume = Volume.from_array(noise((4, 5, 6)))
    path = tmp_path / "half.ome.zarr"

    class StopError(LamellaError):
        pass

    class Sink:
        def emit(self, _progress: object) -> None:
            raise StopError("killed")

        def check(self) -> None:
            return

    with pytest.raises(StopError):
        write_image(volume, path, SaveOptions(sink=Sink()), version="0.5")
    assert not (path / "zarr.json").exists()


@pytest.mark.parametrize("axes", ["zyx", "czyx", "yx"])
def test_narrow_slabs_and_shards_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axes: str
) -> None:
    """What very large volumes do, on a small one."""
    monkeypatch.setattr("lamella.io.ome_zarr_write._SLAB_BYTES", 5000)
    monkeypatch.setattr("lamella.io.ome_zarr_arrays._BLOCK_BYTES", 5000)
    monkeypatch.setattr("lamella.io.ome_zarr_arrays._CHUNK_VOXELS", 512)
    monkeypatch.setattr("lamella.io.ome_zarr_arrays._SHARD_FROM", 8)
    shape = {"zyx": (37, 61, 70), "czyx": (2, 20, 31, 70), "yx": (170, 201)}[axes]
    data = noise(shape)
    spacing = (2.0, 1.0, 1.0)[-len(axes.strip("c")) :]
    volume = Volume.from_array(data, axes=axes, spacing=spacing, unit="nm")
    path = save(volume, tmp_path / "i.ome.zarr", pyramid=True)
    array = zarr.open_array(str(path / "0"), mode="r")
    assert array.shards is not None
    again = open_volume(path)
    assert_array_equal(again.load(), data)
    whole = data
    for fine, level in zip((again, *again.levels), again.levels, strict=False):
        factors = [
            round(s / t) for s, t in zip(level.affine.spacing, fine.affine.spacing, strict=True)
        ]
        whole = downsample_mean(whole, factors)
        assert_array_equal(level.load(), whole)
    v05.Image.from_zarr(zarr.open_group(str(path), mode="r"))


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object, **_words: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("zarr.storage._local._put", full)
    with pytest.raises(StorageError, match="disk is full"):
        save(Volume.from_array(noise((4, 5, 6))), tmp_path / "i.ome.zarr")
    assert list(tmp_path.iterdir()) == []
