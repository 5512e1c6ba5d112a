"""What is decided, and what a restoration leaves of the input."""

import json
import sys
import tracemalloc

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from lamella.core.errors import (
    AxesError,
    GeometryError,
    InputError,
    MissingDependencyError,
    MissingPathError,
    UnknownModelError,
)
from lamella.core.places import Places
from lamella.restoration.cellpose3 import find_weights
from lamella.restoration.decision import (
    RestoreOptions,
    check_available,
    decide,
    sigma_in_voxels,
)
from lamella.restoration.quality import measure_quality
from lamella.restoration.restore import restore_volume
from lamella.restoration.source import ChannelSource
from lamella.volume import FunctionArray, Labels, Spacing, Volume

NLM = RestoreOptions(mode="denoise", method="non_local_means")


def decision(image, options=None, **fields):
    volume = Volume.from_array(np.asarray(image, np.float32), **fields)
    return decide(measure_quality(volume), ChannelSource(volume), options or RestoreOptions())


def spread(image):
    return float(np.subtract(*np.percentile(image, (99, 1))))


@pytest.mark.parametrize(
    "name", ["confocal BPAE_B", "confocal BPAE_G", "nuclei b4d902d42c93", "serial EM",
             "scanning EM", "simulated nuclei"],
)  # fmt: skip
def test_auto_picks_right(clean_images, name):
    image = clean_images[name]
    noise = np.random.default_rng(0).normal(0, 0.12 * spread(image), image.shape)
    assert decision(image).action == "none"
    assert decision(image + noise).action == "denoise"
    blurred = decision(gaussian_filter(image, 2.5) + 0.04 * noise)
    assert (blurred.action, blurred.method) == ("deblur", "richardson_lucy")
    assert "blurred by" in blurred.why


def test_auto_picks_right_on_the_noisy_confocal_images(confocal):
    assert [decision(noisy).action for _, noisy in confocal.values()] == ["denoise", "denoise"]


def test_both_noisy_and_blurred_is_denoised(clean_images):
    image = clean_images["confocal BPAE_B"]
    noise = np.random.default_rng(0).normal(0, 0.1 * spread(image), image.shape)
    assert decision(gaussian_filter(image, 2) + noise).action == "denoise"


def test_tomograms_are_denoised_in_three_dimensions(tomogram):
    found = decision(tomogram, NLM, spacing=(1, 1, 1), unit="nm")
    assert (found.action, found.is_volumetric) == ("denoise", True)
    assert not decision(tomogram, NLM).is_volumetric
    thick = decision(tomogram, NLM, spacing=(5, 1, 1), unit="nm")
    assert not thick.is_volumetric
    assert "5 times as far apart" in thick.why


def test_without_torch_auto_says_what_it_takes_instead(clean_images, monkeypatch):
    from lamella.restoration import decision as room

    monkeypatch.setattr(room, "is_importable", lambda name: name != "torch")
    image = clean_images["simulated nuclei"]
    noise = np.random.default_rng(0).normal(0, 0.2 * spread(image), image.shape)
    found = decision(image + noise)
    assert found.method == "non_local_means"
    assert "PyTorch is not installed" in found.why


def noisy_volume(shape=(6, 40, 48), **fields):
    rng = np.random.default_rng(0)
    scene = gaussian_filter(rng.normal(size=shape[-2:]), 3)
    image = 500 + 2000 * (scene > 0) + rng.normal(0, 300, shape)
    return Volume.from_array(image.astype(np.uint16), **fields)


def test_geometry_channels_and_record(tmp_path):
    volume = noisy_volume(
        (2, 6, 40, 48), axes="czyx", spacing=(3.0, 0.5, 0.5), unit="um", origin=(1, 2, 3),
        channel_names=("DNA", "actin"),
    )  # fmt: skip
    found = restore_volume(volume, NLM, scratch=tmp_path / "raw")
    assert found.volume.dtype == np.float32
    assert found.volume.shape == volume.shape
    assert found.volume.affine == volume.affine
    assert [c.channel for c in found.channels] == ["DNA", "actin"]
    assert found.channels[0].after.noise_sigma < 0.5 * found.channels[0].before.noise_sigma
    single = restore_volume(volume.select("c", 1), NLM, scratch=tmp_path / "one")
    assert np.array_equal(single.volume.load(), found.volume.load()[1])
    assert np.array_equal(found.volume.data[1, 2:4, 5:9, 7], found.volume.load()[1, 2:4, 5:9, 7])
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert record["is_changed"]
    assert record["channels"][1]["parameters"]["strength"] == 1.0
    assert "non-local means" in found.channels[0].summary


def test_a_clean_image_is_left_as_it_is(tmp_path, clean_images):
    volume = Volume.from_array(clean_images["simulated nuclei"])
    found = restore_volume(volume, RestoreOptions(), scratch=tmp_path / "raw")
    assert not found.is_changed
    assert found.volume is volume
    assert "left as it is" in found.channels[0].summary


def test_memory_does_not_grow_with_depth(tmp_path):
    plane = noisy_volume((1, 160, 160)).load()[0].astype(np.float32)
    options = RestoreOptions(mode="deblur", psf_sigma=Spacing((1, 1, 1), "voxel"), dimensions="2")

    def read(slices):
        n = slices[0].stop - slices[0].start
        return np.repeat(plane[None], n, axis=0)[(slice(None), *slices[1:])]

    def peak(depth):
        volume = Volume.from_array(FunctionArray((depth, 160, 160), np.float32, read))
        tracemalloc.start()
        restore_volume(volume, options, scratch=tmp_path / "raw")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(4)  # what is imported on the way counts once
    assert peak(96) < 1.2 * peak(24)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"mode": "deblur", "method": "non_local_means"}, "no meaning for the mode 'deblur'"),
        ({"mode": "none", "method": "blind_spot"}, "no meaning for the mode 'none'"),
        ({"mode": "denoise", "psf_sigma": Spacing((1, 1, 1), "um")}, "point spread function"),
        ({"mode": "denoise", "strength": 0.0}, "strength 0"),
        ({"mode": "denoise", "model": "denoise_cyto3"}, "restoration model"),
    ],
)
def test_options_that_contradict_each_other(options, word):
    with pytest.raises(InputError, match=word):
        RestoreOptions(**options)


def test_what_cannot_be_restored_is_refused(tmp_path):
    def refused(volume, error, word):
        with pytest.raises(error, match=word):
            restore_volume(volume, NLM, scratch=tmp_path / "raw")

    refused(Labels.from_array(np.ones((32, 32), np.uint8)), InputError, "labels")
    refused(Volume.from_array(np.ones((32, 32))), InputError, "constant")
    refused(Volume.from_array(np.zeros((4, 4))), InputError, "too small")
    refused(Volume.from_array(np.zeros((2, 32, 32)), axes="tyx"), AxesError, "time points")
    image = np.random.default_rng(0).normal(size=(32, 32))
    image[3, 4] = np.inf
    refused(Volume.from_array(image), InputError, "infinite")


def test_a_missing_method_fails_and_is_never_skipped(tmp_path, monkeypatch):
    with pytest.raises(MissingDependencyError):
        check_available(
            RestoreOptions(mode="denoise", method="cellpose3"), Places(environments=tmp_path)
        )
    with pytest.raises(UnknownModelError, match="denoise_cyto3"):
        find_weights("denoise_cyto3", Places(models=tmp_path))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match="torch"):
        check_available(RestoreOptions(mode="denoise", method="blind_spot"), Places())
    with pytest.raises(MissingPathError):
        check_available(RestoreOptions(mode="deblur", psf=tmp_path / "no.tif"), Places())


def test_widths_become_voxels():
    volume = noisy_volume(spacing=(2.0, 0.5, 0.5), unit="um")
    source = ChannelSource(volume)
    assert sigma_in_voxels(Spacing((1, 1, 1), "um"), source) == (0.5, 2.0, 2.0)
    assert sigma_in_voxels(Spacing((1000, 1000, 500), "nm"), source) == (0.5, 2.0, 1.0)
    assert sigma_in_voxels(Spacing((3, 1, 1), "voxel"), source) == (3, 1, 1)
    with pytest.raises(GeometryError, match="not calibrated"):
        sigma_in_voxels(Spacing((1, 1, 1), "um"), ChannelSource(noisy_volume()))
