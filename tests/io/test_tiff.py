"""TIFF as ImageJ, Bio-Formats, tifffile and microscopes write it."""

import contextlib
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.testing import assert_array_equal

from lamella.core.errors import AxesError, InputError, UnreadableFileError
from lamella.io import OpenOptions, SaveOptions, list_contents, open_volume, save_volume
from lamella.testing.strategies import filled_array
from lamella.volume import LabelClass, Labels, Volume


def noise(*shape: int, dtype: str = "uint16") -> Any:
    return filled_array(shape, dtype, fill="noise", seed=4)


def codes(volume: Volume) -> set[str]:
    return {note.code for note in volume.notes}


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "zstd", "packbits", "lzma"])
@pytest.mark.parametrize("tile", [None, (16, 32)])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_compression_tiles_and_byte_order(tmp_path, compression, tile, byteorder):
    data = noise(3, 50, 70)
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        data,
        compression=compression,
        tile=tile,
        byteorder=byteorder,
        rowsperstrip=None if tile else 7,
        predictor=compression in ("zlib", "lzw"),
        photometric="minisblack",
        metadata={"axes": "ZYX"},
    )
    volume = open_volume(path)
    assert str(volume.axes) == "zyx"
    assert_array_equal(volume.load(), data)
    assert_array_equal(volume.data[1:3, 5:40, 30:64], data[1:3, 5:40, 30:64])


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_colors_become_channels(tmp_path, planar, compression):
    data = noise(40, 50, 3, dtype="uint8")
    stored = data if planar == "contig" else data.transpose(2, 0, 1)
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        stored,
        photometric="rgb",
        planarconfig=planar,
        compression=compression,
        rowsperstrip=9,
    )
    volume = open_volume(path)
    assert str(volume.axes) == "cyx"
    assert_array_equal(volume.load(), data.transpose(2, 0, 1))
    assert_array_equal(volume.data[1:2, 3:30, 4:9], data.transpose(2, 0, 1)[1:2, 3:30, 4:9])
    assert "color_samples" in codes(volume)


def test_colors_of_several_channels_are_one_axis(tmp_path):
    data = noise(2, 4, 10, 12, 3, dtype="uint8")
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, data, photometric="rgb", metadata={"axes": "CZYXS"})
    volume = open_volume(path)
    expected = data.transpose(0, 4, 1, 2, 3).reshape(6, 4, 10, 12)
    assert str(volume.axes) == "czyx"
    assert_array_equal(volume.load(), expected)
    assert_array_equal(volume.data[2:5, 1:3, 2:7, 3:4], expected[2:5, 1:3, 2:7, 3:4])


def test_jpeg(tmp_path):
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, smooth, compression="jpeg", tile=(32, 32))
    assert np.abs(open_volume(path).load().astype(int) - smooth).max() < 12


@pytest.mark.parametrize("axes", ["ZYX", "CYX", "TYX", "ZCYX", "CZYX", "TZYX", "TZCYX", "YX"])
def test_axes_by_name_in_any_order(tmp_path, axes):
    shape = tuple({"T": 2, "Z": 4, "C": 3, "Y": 9, "X": 8}[a] for a in axes)
    data = noise(*shape)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, data, photometric="minisblack", metadata={"axes": axes})
    volume = open_volume(path)
    order = sorted(range(len(axes)), key=lambda at: "TCZYX".index(axes[at]))
    assert str(volume.axes) == "".join(axes[at] for at in order).lower()
    assert_array_equal(volume.load(), data.transpose(order))


class TestNamelessAxes:
    def written(self, tmp_path: Path, *shape: int) -> Path:
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, noise(*shape), photometric="minisblack")
        return path

    def test_one_is_z(self, tmp_path):
        volume = open_volume(self.written(tmp_path, 7, 10, 12))
        assert (str(volume.axes), volume.shape) == ("zyx", (7, 10, 12))
        assert "axes_assumed" in codes(volume)

    def test_the_short_one_of_two_is_channels(self, tmp_path):
        volume = open_volume(self.written(tmp_path, 20, 2, 10, 12))
        assert (str(volume.axes), volume.shape) == ("czyx", (2, 20, 10, 12))
        assert "axes_assumed" in codes(volume)

    def test_two_alike_are_asked_for(self, tmp_path):
        path = self.written(tmp_path, 20, 30, 10, 12)
        with pytest.raises(AxesError, match="does not say") as caught:
            open_volume(path)
        assert "--axes" in caught.value.hint
        volume = open_volume(path, OpenOptions(axes="ztyx"))
        assert (str(volume.axes), volume.shape) == ("tzyx", (30, 20, 10, 12))

    def test_the_user_decides(self, tmp_path):
        path = self.written(tmp_path, 7, 10, 12)
        volume = open_volume(path, OpenOptions(axes="tyx"))
        assert str(volume.axes) == "tyx"
        assert "axes_assumed" not in codes(volume)
        for wrong in ("zy", "zzyx", "abc", "zyxc"):
            with pytest.raises(AxesError):
                open_volume(path, OpenOptions(axes=wrong))


class TestSpacing:
    def written(self, tmp_path: Path, **options: Any) -> Volume:
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, noise(3, 10, 12), photometric="minisblack", **options)
        return open_volume(path)

    @pytest.mark.parametrize("word", ["micron", "um", "\\u00B5m", "microns"])
    def test_imagej(self, tmp_path, word):
        volume = self.written(
            tmp_path,
            imagej=True,
            resolution=(1 / 0.15, 1 / 0.15),
            metadata={"axes": "ZYX", "spacing": 0.235, "unit": word},
        )
        assert volume.unit == "um"
        assert volume.spacing.values == (0.235, 0.15, 0.15)
        assert codes(volume) == set()

    def test_imagej_pixels_are_no_unit(self, tmp_path):
        volume = self.written(tmp_path, imagej=True, metadata={"axes": "ZYX", "unit": "pixel"})
        assert volume.unit == "voxel"
        assert codes(volume) == {"spacing_missing"}

    def test_imagej_negative_z(self, tmp_path):
        volume = self.written(
            tmp_path,
            imagej=True,
            resolution=(1.0, 1.0),
            metadata={"axes": "ZYX", "spacing": -2.0, "unit": "nm"},
        )
        assert volume.spacing.values == (2.0, 1.0, 1.0)
        assert "negative_z" in codes(volume)

    def test_imagej_without_z(self, tmp_path):
        volume = self.written(
            tmp_path, imagej=True, resolution=(2.0, 2.0), metadata={"axes": "ZYX", "unit": "um"}
        )
        assert volume.spacing.values == (1.0, 0.5, 0.5)
        assert "spacing_suspicious" in codes(volume)

    def test_ome(self, tmp_path):
        path = tmp_path / "a.ome.tif"
        metadata = {
            "axes": "ZYX",
            "PhysicalSizeX": 4.6,
            "PhysicalSizeXUnit": "nm",
            "PhysicalSizeY": 0.0046,
            "PhysicalSizeZ": 500.0,
            "PhysicalSizeZUnit": "Å",
        }
        tifffile.imwrite(
            path, noise(3, 10, 12), photometric="minisblack", metadata=metadata, ome=True
        )
        volume = open_volume(path)
        assert volume.unit == "nm"
        assert volume.spacing.values == pytest.approx((50.0, 4.6, 4.6))

    def test_centimetres(self, tmp_path):
        volume = self.written(
            tmp_path, resolution=(1e4 / 0.25, 1e4 / 0.25), resolutionunit="CENTIMETER"
        )
        assert str(volume.spacing) == "0.25 x 0.25 x 0.25 um"
        assert "spacing_suspicious" in codes(volume)

    @pytest.mark.parametrize("dpi", [72, 96, 300])
    def test_printers_say_nothing(self, tmp_path, dpi):
        volume = self.written(tmp_path, resolution=(dpi, dpi), resolutionunit="INCH")
        assert volume.unit == "voxel"
        assert {"resolution_for_print", "spacing_missing"} <= codes(volume)


def test_bio_formats_pyramid(tmp_path):
    """SubIFDs, as Bio-Formats and QuPath write them."""
    data = noise(2, 130, 200)
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        common = {"photometric": "minisblack", "tile": (32, 32), "compression": "zlib"}
        metadata = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        writer.write(data, subifds=2, metadata=metadata, **common)
        writer.write(data[:, ::2, ::2], subfiletype=1, metadata=None, **common)
        writer.write(data[:, ::4, ::4], subfiletype=1, metadata=None, **common)
    volume = open_volume(path)
    assert [level.shape for level in volume.levels] == [(2, 65, 100), (2, 33, 50)]
    assert volume.levels[1].spacing.values == (2.0, 2.0)
    assert volume.levels[1].affine.origin == (0.75, 0.75)
    assert_array_equal(volume.levels[0].load(), data[:, ::2, ::2])
    coarse = open_volume(path, OpenOptions(level=2))
    assert_array_equal(coarse.load(), data[:, ::4, ::4])
    assert coarse.levels == ()
    with pytest.raises(InputError, match="no level 3"):
        open_volume(path, OpenOptions(level=3))


def test_own_pyramid(tmp_path):
    data = noise(2, 3, 300, 1100)
    volume = Volume.from_array(data, axes="czyx", spacing=(2, 1, 1), unit="um")
    path = save_volume(volume, tmp_path / "a.ome.tif")
    again = open_volume(path)
    assert_array_equal(again.load(), data)
    assert [level.shape for level in again.levels] == [
        (2, 3, 150, 550),
        (2, 3, 75, 275),
        (2, 3, 38, 138),
    ]
    assert again.levels[0].affine.is_close(again.affine.downsampled((1, 2, 2)))
    mean = data[:, :, :2, :2].astype(float).mean(axis=(2, 3))
    assert np.abs(again.levels[0].data[:, :, 0, 0] - mean).max() <= 0.5


def test_labels_keep_ids_and_classes(tmp_path):
    data = np.zeros((3, 300, 300), np.uint32)
    data[1, 5:290, 7:280] = 4_000_000_000
    classes = (LabelClass(1, "mitochondrion", (255, 0, 0)), LabelClass(2, "Zürich"))
    labels = Labels.from_array(
        data, spacing=(2, 1, 1), unit="nm", classes=classes, is_instance=True
    )
    again = open_volume(save_volume(labels, tmp_path / "a.ome.tif"))
    assert isinstance(again, Labels)
    assert again.classes == classes
    assert again.is_instance
    assert_array_equal(again.load(), data)
    assert set(np.unique(again.levels[0].load())) == {0, 4_000_000_000}


def test_others_read_what_is_written(tmp_path):
    data = noise(2, 5, 40, 50)
    volume = Volume.from_array(data, axes="czyx", spacing=(0.4, 0.2, 0.1), unit="um")
    path = save_volume(volume, tmp_path / "a.ome.tif")
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_ome
        assert tiff.series[0].axes == "CZYX"
        assert_array_equal(tiff.asarray(), data)
        x = tiff.pages[0].tags["XResolution"].value
        assert x[0] / x[1] == pytest.approx(1e5)


def test_several_series_are_listed_and_chosen(tmp_path):
    small, large = noise(20, 30), noise(4, 50, 60)
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        for name, data, axes in (("overview", small, "YX"), ("tissue", large, "ZYX")):
            writer.write(data, photometric="minisblack", metadata={"axes": axes, "Name": name})
    assert [entry.shape for entry in list_contents(path)] == [(20, 30), (4, 50, 60)]
    first = open_volume(path)
    assert_array_equal(first.load(), small)
    assert "several_series" in codes(first)
    for choice in ("1", "tissue"):
        assert_array_equal(open_volume(path, OpenOptions(series=choice)).load(), large)
    with pytest.raises(InputError, match="no series 'kidney'") as caught:
        open_volume(path, OpenOptions(series="kidney"))
    assert "1 (tissue)" in caught.value.hint


def test_lost_pages_are_an_error_not_a_shorter_volume(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for _ in range(5):
            writer.write(noise(40, 50), contiguous=False, metadata=None)
    whole = path.read_bytes()
    for fraction in (0.5, 0.7, 0.9):
        path.write_bytes(whole[: int(fraction * len(whole))])
        with pytest.raises(UnreadableFileError, match="truncated"):
            open_volume(path).load()


def test_tifffiles_stacks_in_one_page(tmp_path):
    data = noise(5, 30, 40)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, data, truncate=True, photometric="minisblack", metadata={"axes": "ZYX"})
    assert_array_equal(open_volume(path).load(), data)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UnreadableFileError, match="truncated"):
        open_volume(path)


def test_imagej_stacks_in_one_page(tmp_path):
    """ImageJ's files above 4 GB: one page, the images one after the other behind it."""
    data = noise(5, 2, 30, 40)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, data, imagej=True, truncate=True, metadata={"axes": "ZCYX"})
    volume = open_volume(path)
    assert str(volume.axes) == "czyx"
    assert_array_equal(volume.load(), data.transpose(1, 0, 2, 3))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UnreadableFileError, match="promises"):
        open_volume(path)


def test_missing_images_are_noted(tmp_path):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, noise(3, 20, 30), photometric="minisblack", metadata={"axes": "ZYX"})
    content = path.read_bytes()
    # As in a set of files of which only this one was copied.
    path.write_bytes(content.replace(b'SizeZ="3"', b'SizeZ="4"'))
    volume = open_volume(path)
    assert volume.shape == (4, 20, 30)
    assert "missing_images" in codes(volume)
    assert not volume.data[3].any()


def test_big_tiff(tmp_path):
    path = tmp_path / "a.btf"
    data = noise(3, 20, 30)
    tifffile.imwrite(path, data, bigtiff=True, photometric="minisblack", metadata={"axes": "ZYX"})
    assert_array_equal(open_volume(path).load(), data)


def test_a_circle_of_pages_ends(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(10, 12), metadata=None)
    content = bytearray(path.read_bytes())
    first = struct.unpack_from("<I", content, 4)[0]
    n = struct.unpack_from("<H", content, first)[0]
    struct.pack_into("<I", content, first + 2 + 12 * n, first)
    path.write_bytes(bytes(content))
    done = threading.Event()

    def work() -> None:
        with contextlib.suppress(UnreadableFileError):
            open_volume(path).load()
        done.set()

    threading.Thread(target=work, daemon=True).start()
    assert done.wait(20)


def test_write_is_deterministic(tmp_path):
    volume = Volume.from_array(noise(3, 20, 30), spacing=(1, 1, 1), unit="nm", name="same")
    first = save_volume(volume, tmp_path / "a.ome.tif").read_bytes()
    assert save_volume(volume, tmp_path / "b.ome.tif").read_bytes() == first


def test_uncompressed_is_mapped_by_others(tmp_path):
    data = noise(3, 20, 30)
    volume = Volume.from_array(data, spacing=(1, 1, 1), unit="nm")
    path = save_volume(volume, tmp_path / "a.tif", SaveOptions(compress=False))
    assert_array_equal(tifffile.memmap(path, mode="r"), data)
