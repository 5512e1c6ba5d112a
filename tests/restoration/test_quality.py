import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from lamella.core.errors import AxesError, InputError
from lamella.restoration.quality import measure_quality
from lamella.restoration.quality_picture import draw_quality
from lamella.volume import FunctionArray, Labels, Volume

NAMES = (
    "confocal BPAE_B", "confocal BPAE_G", "nuclei 0c6507d493bf", "nuclei b4d902d42c93",
    "nuclei da8ca06ccbb4", "scanning EM", "serial EM", "simulated nuclei",
)  # fmt: skip


def judge(image, **options):
    return measure_quality(Volume.from_array(np.asarray(image), **options))


def spread(image):
    return float(np.subtract(*np.percentile(image, (99, 1))))


def with_noise(image, share, seed=0):
    noise = np.random.default_rng(seed).normal(0, share * spread(image), image.shape)
    return (image + noise).astype(np.float32)


@given(st.sampled_from(NAMES), st.floats(0.02, 0.2), st.floats(1.3, 3), st.integers(0, 9))
def test_more_noise_less_contrast(clean_images, name, share, times, seed):
    image = clean_images[name]
    little, much = (with_noise(image, s, seed) for s in (share, share * times))
    assert judge(image).contrast_to_noise > judge(little).contrast_to_noise
    assert judge(little).contrast_to_noise > judge(much).contrast_to_noise
    assert judge(little).noise_sigma < judge(much).noise_sigma


@given(st.sampled_from(NAMES), st.floats(0.7, 2), st.floats(1.3, 2), st.floats(0, 0.02))
def test_more_blur_less_sharp(clean_images, name, sigma, times, share):
    image = clean_images[name]
    images = [image] + [gaussian_filter(image, s) for s in (sigma, sigma * times)]
    sharp, soft, softer = (judge(with_noise(i, share)).sharpness for i in images)
    assert sharp > soft > softer


@given(st.sampled_from(NAMES), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_gain_and_offset_change_nothing(clean_images, name, gain, offset):
    image = clean_images[name]
    plain, moved = judge(image), judge(image.astype(np.float64) * gain + offset * gain)
    # Grey levels that are whole numbers tie; a gain rounds them apart, and medians of ties move.
    assert moved.contrast_to_noise == pytest.approx(plain.contrast_to_noise, rel=0.04)
    assert moved.sharpness == pytest.approx(plain.sharpness, rel=0.02)
    assert moved.verdict == plain.verdict


@pytest.mark.parametrize("name", NAMES)
def test_noise_is_not_taken_for_detail(clean_images, name):
    """Blurred and noisy has a larger Laplacian than sharp; here it is still the less sharp one."""
    image = clean_images[name]
    worse = judge(with_noise(gaussian_filter(image, 2), 0.1))
    assert worse.sharpness < 0.5 * judge(image).sharpness
    if name.startswith("confocal"):
        assert worse.laplacian_variance > judge(image).laplacian_variance


def test_pure_noise_has_no_contrast_however_bright():
    """The common ratio of mean and standard deviation calls this image excellent."""
    noise = np.random.default_rng(0).normal(0, 200, (256, 256)).astype(np.float32)
    bright = judge(noise + 10_000)
    assert bright.mean_over_std > 30
    assert bright.contrast_to_noise < 0.5
    assert bright.verdict == "noisy"
    assert bright.blur_sigma is None


@pytest.mark.parametrize("name", NAMES)
def test_verdicts_on_clean_noisy_and_blurred(clean_images, name):
    image = clean_images[name]
    assert judge(image).verdict == "clean"
    assert judge(with_noise(image, 0.15)).verdict == "noisy"
    assert judge(with_noise(gaussian_filter(image, 2.5), 0.005)).verdict == "blurred"
    assert judge(gaussian_filter(image, 2.5)).verdict == "blurred"


@pytest.mark.parametrize("name", ["BPAE_B", "BPAE_G"])
def test_verdicts_on_the_confocal_pairs(confocal, name):
    clean, noisy = confocal[name]
    assert (judge(clean).verdict, judge(noisy).verdict) == ("clean", "noisy")
    assert "below 12" in judge(noisy).reason


def test_width_of_a_blur_is_found(clean_images):
    for name in ("confocal BPAE_B", "confocal BPAE_G", "serial EM"):
        found = judge(with_noise(gaussian_filter(clean_images[name], 2.0), 0.01)).blur_sigma
        assert found == pytest.approx(2.0, abs=0.35)


def test_axes_are_told_apart_and_spacing_is_respected():
    rng = np.random.default_rng(0)
    scene = np.kron(rng.random((16, 16, 16)), np.ones((4, 8, 8))).astype(np.float32) * 100
    soft = gaussian_filter(scene, (0, 1, 3)) + rng.normal(0, 0.2, scene.shape).astype(np.float32)
    quality = judge(soft, spacing=(4.0, 0.5, 0.5), unit="um")
    z, y, x = quality.sharpness_zyx
    assert x < y
    assert z is not None
    assert quality.blur_sigma_zyx[2] > quality.blur_sigma_zyx[1]
    assert quality.blur_sigma_physical == pytest.approx(0.5 * quality.blur_sigma)
    assert quality.unit == "um"


def test_bad_slices_are_named():
    rng = np.random.default_rng(1)
    scene = np.kron(rng.random((8, 8)), np.ones((16, 16))) * 100
    stack = (scene + rng.normal(0, 2, (24, *scene.shape))).astype(np.float32)
    stack[5] += rng.normal(0, 20, scene.shape)
    stack[9] = gaussian_filter(scene, 4) + rng.normal(0, 2, scene.shape)
    stack[14] = 7
    stack[19] += 80
    flags = {s.z: s.flags for s in judge(stack).bad_slices}
    assert flags == {5: ("noisy",), 9: ("blurred",), 14: ("empty",), 19: ("bright",)}


def test_a_large_image_is_judged_by_windows_and_by_its_planes():
    rng = np.random.default_rng(2)
    tile = gaussian_filter(rng.random((256, 256)).astype(np.float32), 1) * 100
    image = np.tile(tile, (8, 8))
    reads = []

    def read(slices):
        reads.append(math.prod(s.stop - s.start for s in slices))
        return image[slices]

    lazy = Volume.from_array(FunctionArray(image.shape, np.float32, read))
    quality = measure_quality(lazy)
    assert max(reads) <= 256 * 256
    assert quality.looked_at == "25% of every slice"
    assert quality.noise_sigma == pytest.approx(judge(image[:1024, :1024]).noise_sigma, rel=0.1)


@pytest.mark.parametrize(
    ("image", "axes", "error", "word"),
    [
        (np.full((64, 64), 3.0), "yx", InputError, "constant"),
        (np.zeros((8, 64)), "yx", InputError, "too small"),
        (np.where(np.eye(64) > 0, np.nan, 1.0), "yx", InputError, "NaN"),
        (np.zeros((64, 64), complex), "yx", InputError, "complex"),
        (np.zeros((3, 64, 64)), "tyx", AxesError, "time points"),
        (np.zeros((2, 64, 64)), "cyx", AxesError, "one channel"),
    ],
)
def test_what_cannot_be_judged_is_refused(image, axes, error, word):
    with pytest.raises(error, match=word):
        judge(image, axes=axes)


def test_labels_are_refused():
    labels = Labels.from_array(np.ones((32, 32), np.uint8))
    with pytest.raises(InputError, match="labels"):
        measure_quality(labels)


def test_the_document_is_json_and_the_picture_a_png(clean_images):
    import json

    quality = judge(clean_images["serial EM"])
    assert json.loads(json.dumps(quality.to_dict(), allow_nan=False))["verdict"] == "clean"
    assert "slices" not in quality.to_dict(has_slices=False)
    assert draw_quality(quality, title="EM").startswith(b"\x89PNG")


def test_memory_does_not_grow_with_depth():
    plane = np.random.default_rng(0).normal(100, 5, (160, 160)).astype(np.float32)
    plane[40:80, 40:80] += 60

    def read(slices):
        n = slices[0].stop - slices[0].start
        return np.repeat(plane[None], n, axis=0)[(slice(None), *slices[1:])]

    def peak(depth):
        volume = Volume.from_array(FunctionArray((depth, 160, 160), np.float32, read))
        tracemalloc.start()
        measure_quality(volume)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(4)  # what is imported on the way counts once
    # Samples are kept of every slice, whole slices are not.
    assert peak(512) < peak(64) + 448 * plane.nbytes / 5
