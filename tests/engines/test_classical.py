"""The classical engine: the contract, and the laws of its methods."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal

from lamella.core.errors import InputError
from lamella.engines.classical import method as method_module
from lamella.engines.classical import threshold as threshold_module
from lamella.engines.classical.blob import blob_radii, detect_blobs, draw_blobs
from lamella.engines.classical.descriptor import METHODS
from lamella.engines.classical.filter import smoothed
from lamella.engines.classical.preview import coarse_volume
from lamella.engines.classical.threshold import build_histogram, li_threshold, otsu_threshold
from lamella.testing.engine import EngineContract
from lamella.volume import Volume
from lamella.wire.request import InputDoc, SegmentRequest


def request(model="classical", **options):
    return SegmentRequest(input=InputDoc(path="image"), model=model, options=options)


class TestOtsu(EngineContract):
    engine_id = "classical"

    def make_request(self):
        return request("classical:otsu")

    def changes_for_nothing(self):
        return {"model": "classical:fixed", "options": {"threshold": 60_000}}


class TestWatershedOnImages(EngineContract):
    engine_id = "classical"
    axes = "yx"

    def make_request(self):
        return request(method="watershed", radius=3.0)

    def changes_for_nothing(self):
        return {"options": {"method": "watershed", "threshold": 60_000}}


class TestBlobs(EngineContract):
    engine_id = "classical"

    def make_request(self):
        return request("classical:log", radius=6.0)

    def make_empty_volume(self):
        noise = np.random.default_rng(0).normal(100, 5, (24, 40, 48)).astype(np.float32)
        return Volume.from_array(noise, spacing=(2, 1, 1), unit="nm")

    def changes_for_nothing(self):
        return {"options": {"radius": 6.0, "sensitivity": 0.0}}


class TestThresholds:
    @given(
        arrays(np.uint8, (12, 13), elements=st.integers(0, 255)).filter(lambda a: a.min() < a.max())
    )
    def test_equal_those_of_scikit_image(self, image):
        from skimage.filters import threshold_li, threshold_otsu

        histogram = build_histogram(image)
        reference = threshold_otsu(image, nbins=256)
        # Several limits can separate equally well: what counts is the classes.
        assert_array_equal(image > otsu_threshold(histogram), image > reference)
        assert_allclose(li_threshold(histogram), threshold_li(image), atol=1.0)

    @pytest.mark.parametrize("dtype", ["float32", "int16", "float64"])
    def test_equal_those_of_scikit_image_for_wide_types(self, dtype):
        from skimage.filters import threshold_li, threshold_otsu

        rng = np.random.default_rng(0)
        image = np.where(
            rng.random((80, 80)) < 0.3, rng.normal(900, 50, (80, 80)), rng.normal(200, 60, (80, 80))
        ).astype(dtype)
        histogram = build_histogram(image)
        assert_allclose(otsu_threshold(histogram), threshold_otsu(image, nbins=65536), rtol=0.01)
        assert_allclose(li_threshold(histogram), threshold_li(image), rtol=0.01)

    def test_the_histogram_does_not_depend_on_the_slabs(self, monkeypatch):
        image = np.random.default_rng(0).normal(0, 1, (20, 10, 10)).astype(np.float32)
        whole = build_histogram(image)
        monkeypatch.setattr(threshold_module, "_SLAB_BYTES", 900)
        assert_array_equal(build_histogram(image).counts, whole.counts)

    def test_every_finite_voxel_is_counted_once(self):
        image = np.array([1.0, 2.0, np.nan, np.inf, 3.0], np.float32)
        assert build_histogram(image).counts.sum() == 3

    def test_nothing_finite_is_one_clear_error(self):
        with pytest.raises(InputError, match="no voxel has a finite value"):
            build_histogram(np.full((4, 4), np.nan, np.float32))


class TestLocalOperators:
    @given(
        st.tuples(st.integers(1, 14), st.integers(1, 14), st.integers(1, 14)),
        st.tuples(*[st.floats(0, 2)] * 3),
        st.data(),
    )
    def test_tiled_smoothing_equals_untiled(self, shape, sigma, data):
        image = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
        lazy = smoothed(image, sigma_vox=sigma)
        starts = [data.draw(st.integers(0, n - 1)) for n in shape]
        part = tuple(
            slice(a, data.draw(st.integers(a + 1, n))) for a, n in zip(starts, shape, strict=True)
        )
        assert_array_equal(lazy[part], lazy[...][part])

    def test_smoothing_fills_what_is_not_finite(self):
        image = np.full((9, 9), 5.0, np.float32)
        image[4, 4] = np.nan
        assert_allclose(smoothed(image, sigma_vox=(1, 1), fill=5.0)[...], 5.0, rtol=1e-6)


def ball(shape, center, radius, spacing):
    points = np.stack(np.indices(shape), axis=-1)
    distance = np.linalg.norm((points - np.array(center)) * np.array(spacing), axis=-1)
    return (distance <= radius).astype(np.float32)


class TestBlobDetection:
    @pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 1.0, 1.0)])
    def test_a_ball_is_found_with_its_radius_on_any_grid(self, spacing):
        shape = tuple(round(48 / step) for step in spacing)
        center = tuple(n // 2 for n in shape)
        image = 10 + 50 * ball(shape, center, 8.0, spacing)
        blobs = detect_blobs(image, spacing=spacing, radii=blob_radii(8.0, 1.6), min_contrast=20)
        assert len(blobs) == 1
        assert_allclose(blobs.centers[0], center, atol=0.51)
        assert_allclose(blobs.radii[0], 8.0, rtol=0.2)
        assert_allclose(blobs.contrasts[0], 50, rtol=0.2)

    def test_the_list_does_not_depend_on_the_slabs(self, monkeypatch):
        from lamella.engines.classical import blob as blob_module

        rng = np.random.default_rng(1)
        image = rng.normal(0, 3, (60, 24, 24)).astype(np.float32)
        for center in rng.uniform(4, 20, (6, 3)) * (2.7, 1, 1):
            image += 40 * ball(image.shape, center, 3.0, (1, 1, 1))
        arguments = {"spacing": (1.0,) * 3, "radii": blob_radii(3.0, 1.5), "min_contrast": 15}
        whole = detect_blobs(image, **arguments)
        monkeypatch.setattr(blob_module, "_SLAB_VOXELS", 1)
        slabs = detect_blobs(image, **arguments)
        assert len(whole) >= 4
        assert_array_equal(slabs.centers, whole.centers)
        assert_array_equal(slabs.radii, whole.radii)

    def test_drawn_balls_have_the_right_volume_and_do_not_depend_on_the_region(self):
        spacing = (2.0, 1.0, 1.0)
        image = ball((24, 48, 48), (12, 24, 24), 9.0, spacing)
        blobs = detect_blobs(image, spacing=spacing, radii=(9.0,), min_contrast=0.3)
        labels = draw_blobs(blobs, shape=image.shape, spacing=spacing)
        whole = labels[...]
        assert_allclose((whole > 0).sum(), image.sum(), rtol=0.05)
        assert_array_equal(labels[5:20, 3:30, 10:], whole[5:20, 3:30, 10:])

    def test_equal_neighbours_are_both_kept_and_share_the_space_between(self):
        image = ball((30, 60), (15, 20), 8, (1, 1)) + ball((30, 60), (15, 38), 8, (1, 1))
        blobs = detect_blobs(image, spacing=(1, 1), radii=(8.0,), min_contrast=0.4)
        labels = draw_blobs(blobs, shape=image.shape, spacing=(1, 1))[...]
        assert sorted(np.unique(labels)) == [0, 1, 2]
        assert labels[15, 20] != labels[15, 38]


class TestEngine(EngineContract):
    """Method Li once more through the contract, and what is particular to this engine."""

    engine_id = "classical"

    def make_request(self):
        return request(method="li")

    def changes_for_nothing(self):
        return {"model": "classical:fixed", "options": {"threshold": 60_000.0}}

    def test_dark_objects_are_the_bright_ones_of_the_inverted_image(self, tmp_path):
        volume = self.make_volume()
        inverted = replace(volume, data=1000 - volume.load().astype(np.int32))
        bright = self.run(tmp_path / "bright", volume=volume, options={"method": "otsu"})
        dark = self.run(
            tmp_path / "dark", volume=inverted, options={"method": "otsu", "objects": "dark"}
        )
        assert_array_equal(bright.labels.load() > 0, dark.labels.load() > 0)

    def test_slabs_do_not_show(self, tmp_path, monkeypatch):
        from lamella.engines.classical import engine as engine_module

        rng = np.random.default_rng(0)
        volume = Volume.from_array(rng.normal(0, 1, (300, 40, 40)).astype(np.float32))
        whole = self.run(tmp_path / "whole", volume=volume)
        monkeypatch.setattr(engine_module, "_SLAB_VOXELS", 1)
        slabs = self.run(tmp_path / "slabs", volume=volume)
        assert slabs.tiles_planned > whole.tiles_planned
        assert_array_equal(slabs.labels.load(), whole.labels.load())

    @pytest.mark.parametrize("method", METHODS)
    def test_a_constant_volume_is_one_clear_error(self, tmp_path, method):
        volume = Volume.from_array(np.full((8, 8, 8), 7, np.uint8))
        with pytest.raises(InputError, match="every voxel has the value 7"):
            self.run(
                tmp_path,
                volume=volume,
                options={
                    "method": method,
                    "radius": 3,
                    **({"threshold": 5} if method == "fixed" else {}),
                },
            )

    def test_what_is_not_finite_is_background_and_told(self, tmp_path):
        volume = self.make_volume()
        data = volume.load().astype(np.float32)
        data[0] = np.nan
        result = self.run(tmp_path, volume=replace(volume, data=data))
        assert not result.labels.load()[0].any()
        assert "not_finite" in {note.code for note in result.warnings}

    @pytest.mark.parametrize(
        ("model", "options", "words"),
        [
            ("classical:otzu", {}, "no method 'otzu'"),
            ("classical:li", {"method": "otsu"}, "two methods"),
            ("classical", {"method": "fixed"}, "needs a threshold"),
            ("classical", {"method": "otsu", "threshold": 3}, "takes no threshold"),
            ("classical", {"method": "log"}, "needs the radius"),
            ("classical", {"method": "log", "radius": 0.1}, "smaller than a voxel"),
            ("classical", {"objects": "brite"}, "expected one of bright, dark"),
            ("classical", {"smoothing": "wide"}, "expected a number"),
            ("classical", {"smoothing": -1}, "from 0"),
            ("classical", {"smoothing": float("nan")}, "finite"),
        ],
    )
    def test_options_that_make_no_sense_are_refused(self, tmp_path, model, options, words):
        with pytest.raises(InputError, match=words):
            self.run(tmp_path, model=model, options=options)

    def test_options_may_come_as_text(self, tmp_path):
        result = self.run(tmp_path, options={"method": "fixed", "threshold": "150"})
        assert result.options_resolved["threshold"] == 150.0
        assert result.labels.load().any()

    def test_a_watershed_beyond_the_memory_is_refused_with_a_way_out(self, tmp_path, monkeypatch):
        monkeypatch.setattr(method_module, "_WATERSHED_BYTES_PER_VOXEL", 1 << 40)
        with pytest.raises(InputError, match="GiB") as caught:
            self.run(tmp_path, options={"method": "watershed"})
        assert "components" in caught.value.hint

    def test_the_preview_of_a_large_volume_is_coarse_and_lies_on_it(self):
        volume = Volume.from_array(
            np.zeros((64, 512, 512), np.uint8), spacing=(4.0, 1.0, 1.0), unit="nm"
        )
        coarse = coarse_volume(volume, max_voxels=300_000)
        assert coarse.volume.shape == tuple(
            -(-n // int(f)) for n, f in zip(volume.shape, coarse.factors, strict=True)
        )
        assert np.prod(coarse.volume.shape) <= 300_000
        corner = coarse.volume.affine.apply([-0.5, -0.5, -0.5])
        assert_allclose(corner, volume.affine.apply([-0.5, -0.5, -0.5]))


def test_both_ways_to_the_blob_response_agree():
    from lamella.engines.classical import filter as filter_module

    image = np.random.default_rng(0).normal(0, 1, (40, 40)).astype(np.float32)
    fast = filter_module.blob_response(image, (2.5, 3.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filter_module, "_DIFFERENCE_SIGMA", np.inf)
        exact = filter_module.blob_response(image, (2.5, 3.0))
    assert_allclose(fast[4:-4, 4:-4], exact[4:-4, 4:-4], atol=0.03 * np.abs(exact).max())
