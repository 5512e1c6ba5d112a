"""Pictures as cameras, painters and scripts leave them, and folders of them."""

import json

import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.testing import assert_array_equal
from PIL import Image

from lamella.core.errors import AxesError, InputError, NarrowingError, UnreadableFileError
from lamella.io import SaveOptions, open_volume, save_volume
from lamella.io.raster_folder import natural_key
from lamella.testing.strategies import filled_array
from lamella.volume import Labels, Volume


def noise(*shape, dtype="uint8"):
    return filled_array(shape, dtype, fill="noise", seed=4)


def codes(volume):
    return {note.code for note in volume.notes}


@pytest.mark.parametrize(("mode", "samples"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)])
@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_pictures_of_pillow(tmp_path, mode, samples, suffix):
    if suffix == ".bmp" and mode != "L" and mode != "RGB":
        pytest.skip("BMP has no such pictures")
    data = noise(20, 30, samples)
    Image.fromarray(data[..., 0] if samples == 1 else data, mode).save(tmp_path / f"a{suffix}")
    volume = open_volume(tmp_path / f"a{suffix}")
    expected = data[..., 0] if samples == 1 else data.transpose(2, 0, 1)
    assert str(volume.axes) == ("yx" if samples == 1 else "cyx")
    assert_array_equal(volume.load(), expected)


@pytest.mark.parametrize("samples", [1, 3, 4])
def test_16_bits_are_kept(tmp_path, samples):
    data = noise(20, 30, samples, dtype="uint16")
    encoded = imagecodecs.png_encode(data[..., 0] if samples == 1 else data)
    (tmp_path / "a.png").write_bytes(bytes(encoded))
    volume = open_volume(tmp_path / "a.png")
    assert volume.dtype == np.uint16
    assert_array_equal(volume.load(), data[..., 0] if samples == 1 else data.transpose(2, 0, 1))


def test_palettes_keep_their_indices(tmp_path):
    indices = noise(20, 30) % 7
    image = Image.fromarray(indices, "P")
    image.putpalette([v for i in range(256) for v in (i, 255 - i, 7)])
    image.save(tmp_path / "a.png")
    volume = open_volume(tmp_path / "a.png")
    assert_array_equal(volume.load(), indices)
    assert "palette" in codes(volume)


def test_one_bit_is_0_and_255(tmp_path):
    mask = noise(20, 30, dtype="bool")
    Image.fromarray(mask).save(tmp_path / "a.png")
    volume = open_volume(tmp_path / "a.png")
    assert_array_equal(volume.load(), mask * np.uint8(255))
    assert "bilevel" in codes(volume)


def test_grey_stored_as_color_is_grey(tmp_path):
    grey = noise(20, 30)
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(tmp_path / "a.png")
    volume = open_volume(tmp_path / "a.png")
    assert_array_equal(volume.load(), grey)
    assert "grey_as_color" in codes(volume)


def test_jpeg_is_read_and_not_written(tmp_path):
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    volume = open_volume(tmp_path / "a.jpg")
    assert np.abs(volume.load().astype(int) - smooth).max() < 8
    for name in ("b.jpg", "b.bmp"):
        with pytest.raises(InputError, match="not written"):
            save_volume(volume, tmp_path / name)


class TestBids:
    def folder(self, tmp_path, sidecar, content):
        Image.fromarray(noise(8, 9)).save(tmp_path / "sub-1_sample-2_SEM.png")
        (tmp_path / sidecar).write_text(json.dumps(content))
        return open_volume(tmp_path / "sub-1_sample-2_SEM.png")

    @pytest.mark.parametrize("name", ["sub-1_sample-2_SEM.json", "sub-1_SEM.json", "SEM.json"])
    def test_pixel_size(self, tmp_path, name):
        content = {"PixelSize": [0.1, 0.2], "PixelSizeUnits": "um"}
        volume = self.folder(tmp_path, name, content)
        assert (volume.spacing.values, volume.unit) == ((0.2, 0.1), "um")
        assert codes(volume) == {"spacing_from_sidecar"}

    @pytest.mark.parametrize("name", ["sub-2_SEM.json", "sub-1_sample-2_TEM.json", "notes.json"])
    def test_another_pictures_sidecar(self, tmp_path, name):
        content = {"PixelSize": [0.1, 0.1], "PixelSizeUnits": "um"}
        assert self.folder(tmp_path, name, content).unit == "voxel"

    @pytest.mark.parametrize(
        "content", [[], {"PixelSize": "small"}, {"PixelSize": [0, 0]}, {"PixelSize": [1]}]
    )
    def test_nonsense(self, tmp_path, content):
        assert self.folder(tmp_path, "sub-1_SEM.json", content).unit == "voxel"


def test_others_read_what_is_written(tmp_path):
    data = noise(3, 20, 30, dtype="uint8")
    volume = Volume.from_array(data, axes="cyx", spacing=(0.5, 0.25), unit="um")
    path = save_volume(volume, tmp_path / "a.png")
    with Image.open(path) as image:
        image.load()
        assert_array_equal(np.asarray(image), data.transpose(1, 2, 0))
        assert image.info["dpi"] == pytest.approx((25.4 / 0.00025, 25.4 / 0.0005))
    wide = Volume.from_array(noise(20, 30, dtype="uint16"), spacing=(1, 1), unit="nm")
    path = save_volume(wide, tmp_path / "b.png")
    with Image.open(path) as image:
        assert_array_equal(np.asarray(image), wide.load())


def test_resolution_of_specimens_is_spacing(tmp_path):
    Image.fromarray(noise(8, 9)).save(tmp_path / "a.png", dpi=(254_000, 254_000))
    assert open_volume(tmp_path / "a.png").spacing.values == (0.1, 0.1)
    Image.fromarray(noise(8, 9)).save(tmp_path / "b.png", dpi=(300, 300))
    assert open_volume(tmp_path / "b.png").unit == "voxel"


def test_what_pictures_do_not_hold(tmp_path):
    flat = Volume.from_array(noise(8, 9, dtype="float32"))
    with pytest.raises(InputError, match="no float32") as caught:
        save_volume(flat, tmp_path / "a.png")
    assert "OME-TIFF" in caught.value.hint
    with pytest.raises(InputError, match="holds one image"):
        save_volume(Volume.from_array(noise(4, 8, 9)), tmp_path / "a.png")
    with pytest.raises(AxesError):
        save_volume(Volume.from_array(noise(5, 8, 9), axes="cyx"), tmp_path / "a.png")
    labels = Labels.from_array(np.full((8, 9), 70_000, np.uint32))
    with pytest.raises(NarrowingError, match="70000"):
        save_volume(labels, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
    whole = Volume.from_array(np.full((8, 9), 300.0))
    path = save_volume(whole, tmp_path / "a.png", SaveOptions(dtype="uint16"))
    assert_array_equal(open_volume(path).load(), whole.load())


class TestFolder:
    def save(self, folder, names, *, shape=(8, 9), suffix="png"):
        folder.mkdir(exist_ok=True)
        for at, name in enumerate(names):
            path = folder / f"{name}.{suffix}"
            plane = np.full(shape, at + 1, np.uint8)
            if suffix == "tif":
                tifffile.imwrite(path, plane)
            else:
                Image.fromarray(plane).save(path)
        return folder

    @pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
    def test_natural_order(self, tmp_path, suffix):
        names = ["z1", "z2", "z3", "z9", "z10", "z11"]
        self.save(tmp_path / "s", names, suffix=suffix)
        (tmp_path / "s" / "Thumbs.db").write_bytes(b"x")
        (tmp_path / "s" / ".hidden.png").write_bytes(b"x")
        volume = open_volume(tmp_path / "s")
        assert str(volume.axes) == "zyx"
        assert volume.load()[:, 0, 0].tolist() == [1, 2, 3, 4, 5, 6]
        assert_array_equal(volume.data[2:5, 3:4, 1:9], volume.load()[2:5, 3:4, 1:9])
        assert "slice_gaps" in codes(volume)
        gaps = next(note for note in volume.notes if note.code == "slice_gaps")
        assert "4, 5, 6, 7, 8" in gaps.message

    def test_complete_numbering_is_silent(self, tmp_path):
        self.save(tmp_path / "s", [f"a2_z{z:03d}_c1" for z in range(0, 50, 5)])
        assert codes(open_volume(tmp_path / "s")) == {"spacing_missing"}

    def test_other_shapes_are_named(self, tmp_path):
        self.save(tmp_path / "s", ["a1", "a2"])
        self.save(tmp_path / "s", ["a3"], shape=(8, 10))
        with pytest.raises(InputError, match=r"a3\.png is \(8, 10\) uint8, but a1\.png"):
            open_volume(tmp_path / "s")

    def test_several_kinds_are_refused(self, tmp_path):
        self.save(tmp_path / "s", ["a1", "a2"])
        self.save(tmp_path / "s", ["a1"], suffix="tif")
        with pytest.raises(InputError, match="1 TIFF"):
            open_volume(tmp_path / "s")

    def test_stacks_are_no_slices(self, tmp_path):
        (tmp_path / "s").mkdir()
        tifffile.imwrite(tmp_path / "s" / "a.tif", noise(3, 8, 9), photometric="minisblack")
        with pytest.raises(InputError, match="holds 3 images"):
            open_volume(tmp_path / "s")

    def test_one_damaged_slice_is_named(self, tmp_path):
        folder = self.save(tmp_path / "s", ["a1", "a2", "a3"])
        content = (folder / "a2.png").read_bytes()
        (folder / "a2.png").write_bytes(content[: len(content) // 2])
        with pytest.raises(UnreadableFileError, match=r"a2\.png"):
            open_volume(folder)

    def test_color_slices(self, tmp_path):
        (tmp_path / "s").mkdir()
        data = noise(4, 8, 9, 3)
        for z in range(4):
            Image.fromarray(data[z]).save(tmp_path / "s" / f"{z}.png")
        volume = open_volume(tmp_path / "s")
        assert str(volume.axes) == "czyx"
        assert_array_equal(volume.load(), data.transpose(3, 0, 1, 2))

    def test_a_changed_folder_loses_its_record(self, tmp_path):
        volume = Volume.from_array(noise(4, 8, 9), spacing=(2, 1, 1), unit="um")
        path = save_volume(volume, tmp_path / "out", SaveOptions(format="raster"))
        assert open_volume(path).spacing == volume.spacing
        (path / "slice_0003.png").unlink()
        assert open_volume(path).spacing.values[1:] == (1.0, 1.0)
        assert "spacing_suspicious" in codes(open_volume(path))


def test_natural_order_of_any_names():
    assert sorted(["a10b10", "a10b2", "a9", "b1", "10", "9"], key=natural_key) == [
        "9",
        "10",
        "a9",
        "a10b2",
        "a10b10",
        "b1",
    ]
