"""HDF5 and npy as other programs write them."""

import json

import h5py
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from lamella.core.errors import AxesError, InputError, LamellaError, UnreadableFileError
from lamella.io import OpenOptions, list_contents, open_volume, save_volume
from lamella.testing.strategies import filled_array
from lamella.volume import LabelClass, Labels, Volume


def noise(*shape, dtype="uint16"):
    return filled_array(shape, dtype, fill="noise", seed=4)


def codes(volume):
    return {note.code for note in volume.notes}


class TestHdf5:
    def test_one_dataset_needs_no_name(self, tmp_path):
        data = noise(4, 5, 6)
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["deep/inside/stack"] = data
            file["table"] = np.arange(10)
            file["text"] = "not an image"
        volume = open_volume(tmp_path / "a.h5")
        assert_array_equal(volume.load(), data)
        assert codes(volume) == {"spacing_missing"}

    def test_several_are_listed(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["one"] = noise(4, 5, 6)
            file["two"] = noise(4, 5, 7)
        with pytest.raises(InputError, match="2 datasets that could be meant") as caught:
            open_volume(tmp_path / "a.h5")
        assert "--dataset" in caught.value.hint
        assert "two (4, 5, 7) uint16" in caught.value.hint
        volume = open_volume(tmp_path / "a.h5", OpenOptions(dataset="/two"))
        assert volume.shape == (4, 5, 7)
        assert [entry.id for entry in list_contents(tmp_path / "a.h5")] == ["one", "two"]
        with pytest.raises(InputError, match="no image dataset 'three'"):
            open_volume(tmp_path / "a.h5", OpenOptions(dataset="three"))

    def test_raw_beside_labels_is_the_image(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["label"] = noise(4, 5, 6)
            file["raw"] = noise(4, 5, 6, dtype="uint8")
        volume = open_volume(tmp_path / "a.h5")
        assert volume.dtype == np.uint8
        assert "dataset_chosen" in codes(volume)

    @pytest.mark.parametrize(
        ("attributes", "spacing", "unit", "code"),
        [
            ({"element_size_um": (0.235, 0.15, 0.15)}, (0.235, 0.15, 0.15), "um", None),
            ({"resolution": (40.0, 4.0, 4.0)}, (40.0, 4.0, 4.0), "nm", "unit_assumed"),
            ({"resolution": (4.0, 4.0, 4.0), "unit": "um"}, (4.0, 4.0, 4.0), "um", None),
            ({"element_size_um": (0.0, 1.0, 1.0)}, (1.0, 1.0, 1.0), "voxel", "spacing_missing"),
            ({"element_size_um": "big"}, (1.0, 1.0, 1.0), "voxel", "spacing_missing"),
        ],
    )
    def test_spacing(self, tmp_path, attributes, spacing, unit, code):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["raw"] = noise(4, 5, 6)
            file["raw"].attrs.update(attributes)
        volume = open_volume(tmp_path / "a.h5")
        assert (volume.spacing.values, volume.unit) == (spacing, unit)
        assert codes(volume) == ({code} if code else set())

    def test_axes_of_ilastik(self, tmp_path):
        data = noise(4, 5, 6, 2)
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["exported_data"] = data
            tags = {"axes": [{"key": key} for key in "zyxc"]}
            file["exported_data"].attrs["axistags"] = json.dumps(tags)
        volume = open_volume(tmp_path / "a.h5")
        assert str(volume.axes) == "czyx"
        assert_array_equal(volume.load(), data.transpose(3, 0, 1, 2))

    def test_ambiguous_axes_are_asked_for(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["raw"] = noise(9, 10, 11, 12)
        with pytest.raises(AxesError, match="does not say"):
            open_volume(tmp_path / "a.h5")
        volume = open_volume(tmp_path / "a.h5", OpenOptions(axes="tzyx"))
        assert str(volume.axes) == "tzyx"

    def test_no_image_at_all(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["numbers"] = np.arange(5)
        with pytest.raises(UnreadableFileError, match="holds no image"):
            open_volume(tmp_path / "a.h5")

    def test_links_to_nowhere_and_loops(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["raw"] = noise(4, 5, 6)
            file["gone"] = h5py.SoftLink("/nothing")
            file["elsewhere"] = h5py.ExternalLink("missing.h5", "/x")
            file.create_group("loop")["back"] = file["/"]
        assert open_volume(tmp_path / "a.h5").shape == (4, 5, 6)

    def test_plantseg_reads_what_is_written(self, tmp_path):
        labels = Labels.from_array(
            noise(4, 5, 6),
            spacing=(235.0, 150.0, 150.0),
            unit="nm",
            classes=(LabelClass(1, "cell"),),
        )
        path = save_volume(labels, tmp_path / "a.h5")
        with h5py.File(path) as file:
            np.testing.assert_allclose(file["label"].attrs["element_size_um"], (0.235, 0.15, 0.15))
        again = open_volume(path)
        assert isinstance(again, Labels)
        assert again.unit == "nm"
        assert again.spacing.values == (235.0, 150.0, 150.0)

    def test_another_programs_spacing_counts(self, tmp_path):
        volume = Volume.from_array(noise(4, 5, 6), spacing=(2, 1, 1), unit="um")
        path = save_volume(volume, tmp_path / "a.h5")
        with h5py.File(path, "r+") as file:
            file["raw"].attrs["element_size_um"] = (4.0, 2.0, 2.0)
        again = open_volume(path)
        assert again.spacing.values == (4.0, 2.0, 2.0)
        assert "record_stale" in codes(again)

    def test_write_is_deterministic(self, tmp_path):
        volume = Volume.from_array(noise(4, 5, 6), spacing=(2, 1, 1), unit="um")
        first = save_volume(volume, tmp_path / "a.h5").read_bytes()
        assert save_volume(volume, tmp_path / "b.h5").read_bytes() == first


class TestNpy:
    @pytest.mark.parametrize("order", ["C", "F"])
    @pytest.mark.parametrize("dtype", ["<u2", ">u2", ">f8", "|b1", "<c8"])
    def test_what_numpy_writes(self, tmp_path, dtype, order):
        data = np.array(noise(4, 5, 6, dtype=np.dtype(dtype).newbyteorder("=").name), order=order)
        np.save(tmp_path / "a.npy", data.astype(dtype, order="K"))
        volume = open_volume(tmp_path / "a.npy")
        assert_array_equal(volume.load(), data)
        assert_array_equal(volume.data[1:3, 2:4, 0:5], data[1:3, 2:4, 0:5])
        assert codes(volume) == {"spacing_missing"}

    def test_numpy_reads_what_is_written(self, tmp_path):
        data = noise(4, 5, 6)
        volume = Volume.from_array(data, spacing=(2, 1, 1), unit="um", origin=(1, 2, 3))
        path = save_volume(volume, tmp_path / "a.npy")
        assert_array_equal(np.load(path), data)
        assert_array_equal(np.load(path, mmap_mode="r"), data)
        assert open_volume(path).affine == volume.affine

    def test_objects_are_never_loaded(self, tmp_path):
        class Bomb:
            def __reduce__(self):
                return (print, ("executed",))

        np.save(tmp_path / "a.npy", np.array([[Bomb()]], dtype=object), allow_pickle=True)
        with pytest.raises(UnreadableFileError, match="pickled objects"):
            open_volume(tmp_path / "a.npy")

    @pytest.mark.parametrize("shape", [(), (5,), (0, 3), (1, 1, 1, 1, 1, 1)])
    def test_no_images(self, tmp_path, shape):
        np.save(tmp_path / "a.npy", np.zeros(shape))
        with pytest.raises(InputError, match="not an image"):
            open_volume(tmp_path / "a.npy")

    def test_records_are_no_images(self, tmp_path):
        np.save(tmp_path / "a.npy", np.zeros((3, 3), [("x", "f4"), ("y", "f4")]))
        with pytest.raises(UnreadableFileError, match="not numbers"):
            open_volume(tmp_path / "a.npy")

    def test_a_header_that_claims_the_world(self, tmp_path):
        np.save(tmp_path / "a.npy", np.zeros((3, 3), np.uint8))
        content = (tmp_path / "a.npy").read_bytes()
        (tmp_path / "a.npy").write_bytes(content.replace(b"(3, 3), }  ", b"(9999999, 99999999), }"))
        with pytest.raises(LamellaError):
            open_volume(tmp_path / "a.npy")

    def test_colors_last(self, tmp_path):
        data = noise(40, 50, 3, dtype="uint8")
        np.save(tmp_path / "a.npy", data)
        volume = open_volume(tmp_path / "a.npy")
        assert str(volume.axes) == "cyx"
        assert "axes_assumed" in codes(volume)
