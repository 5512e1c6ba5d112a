"""Denoising and deblurring: what they gain, and that tiles leave no seams."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from lamella.core.errors import InputError, RunCancelledError
from lamella.core.progress import SilentSink
from lamella.restoration.blind_spot import BlindSpotOptions, train_blind_spot
from lamella.restoration.non_local_means import NonLocalMeans
from lamella.restoration.psf import GaussianPsf, MeasuredPsf, estimate_psf, read_psf
from lamella.restoration.quality import measure_quality
from lamella.restoration.richardson_lucy import RichardsonLucy, tune_iterations
from lamella.restoration.source import ChannelSource
from lamella.restoration.tiles import iter_restored
from lamella.restoration.variance import Stabiliser
from lamella.volume import Volume

QUIET = SilentSink()


def psnr(image, truth, span=255.0):
    return 10 * np.log10(span**2 / np.mean((image - truth) ** 2))


def source_of(image):
    return ChannelSource(Volume.from_array(image))


def restored(image, restorer, tile=None):
    parts = [slab for _, slab in iter_restored(source_of(image), restorer, QUIET, tile=tile)]
    return np.concatenate(parts).reshape(image.shape)


def stabiliser_of(image):
    return Stabiliser.of(measure_quality(Volume.from_array(image)).noise)


def scene(shape=(20, 60, 52), seed=0, sigma=6.0):
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.normal(size=shape), [0.5 if n < 24 else 3 for n in shape])
    clean = 100 + 120 * (smooth > 0.3 * smooth.std())
    return clean.astype(np.float32), (clean + rng.normal(0, sigma, shape)).astype(np.float32)


@pytest.fixture(scope="module")
def few_threads():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(image, **options):
    chosen = BlindSpotOptions(**{"n_steps": 30, "device": "cpu", **options})
    return train_blind_spot(source_of(image), stabiliser_of(image), chosen, QUIET)


# --- Non-local means ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["BPAE_B", "BPAE_G"])
def test_non_local_means_gain_on_the_confocal_pairs(confocal, name):
    clean, noisy = confocal[name]
    found = restored(noisy, NonLocalMeans(stabiliser_of(noisy)))
    assert psnr(found, clean) >= psnr(noisy, clean) + 4.0


def test_non_local_means_against_the_common_one(confocal):
    """Ours at its default is no worse than scikit-image's at the best of a sweep."""
    from skimage.restoration import denoise_nl_means

    clean, noisy = confocal["BPAE_G"]
    sweep = [
        denoise_nl_means(noisy, patch_size=5, patch_distance=6, h=h, fast_mode=True)
        for h in (6, 8, 10, 12, 15)
    ]
    best = max(psnr(image, clean) for image in sweep)
    assert psnr(restored(noisy, NonLocalMeans(stabiliser_of(noisy))), clean) >= best


@pytest.mark.parametrize("is_volumetric", [False, True])
def test_non_local_means_does_not_depend_on_tiles(is_volumetric):
    _, noisy = scene()
    restorer = NonLocalMeans(stabiliser_of(noisy), is_volumetric=is_volumetric, patch=3, distance=2)
    whole = restored(noisy, restorer)
    for tile in ((7, 60, 52), (5, 17, 23), (1, 60, 9)):
        assert np.allclose(restored(noisy, restorer, tile), whole, atol=1e-3)


def test_the_third_dimension_helps():
    rng = np.random.default_rng(0)
    clean = np.repeat(scene((40, 48))[0][None], 12, axis=0)
    noisy = (clean + rng.normal(0, 40, clean.shape)).astype(np.float32)
    stable = stabiliser_of(noisy)
    slices = restored(noisy, NonLocalMeans(stable, patch=3, distance=3))
    volume = restored(noisy, NonLocalMeans(stable, is_volumetric=True, patch=3, distance=3))
    assert psnr(volume, clean) > psnr(slices, clean) + 1.0


# --- A network trained on the image itself ------------------------------------------------------


@pytest.mark.usefixtures("few_threads")
@pytest.mark.parametrize("is_volumetric", [False, True])
def test_the_network_does_not_depend_on_tiles(is_volumetric):
    _, noisy = scene((10, 58, 51))
    restorer = train(noisy, is_volumetric=is_volumetric, n_steps=3)
    whole = restored(noisy, restorer)
    for tile in ((4, 24, 16), (10, 58, 20)):
        assert np.allclose(restored(noisy, restorer, tile), whole, atol=0.02)


@pytest.mark.usefixtures("few_threads")
def test_the_same_seed_gives_the_same_network():
    _, noisy = scene((48, 52))
    first, second = train(noisy, n_steps=4), train(noisy, n_steps=4)
    assert first.parameters == second.parameters
    assert np.array_equal(restored(noisy, first), restored(noisy, second))
    other = train(noisy, n_steps=4, seed=1)
    assert other.parameters["network_sha256"] != first.parameters["network_sha256"]


@pytest.mark.usefixtures("few_threads")
def test_the_network_denoises_without_having_seen_a_clean_image():
    clean, noisy = scene((96, 96), sigma=30)
    found = restored(noisy, train(noisy, n_steps=60))
    assert psnr(found, clean) > psnr(noisy, clean) + 2.0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BPAE_B", "BPAE_G"])
def test_the_network_gains_on_the_confocal_pairs(confocal, name):
    clean, noisy = confocal[name]
    found = restored(noisy, train(noisy, n_steps=160))
    assert psnr(found, clean) >= psnr(noisy, clean) + 4.0
    assert psnr(found, clean) >= psnr(restored(noisy, NonLocalMeans(stabiliser_of(noisy))), clean)


@pytest.mark.usefixtures("few_threads")
def test_training_can_be_stopped():
    class Stopping(SilentSink):
        def emit(self, progress, /):
            if progress.done >= 2:
                self.token.cancel()

    _, noisy = scene((40, 40))
    with pytest.raises(RunCancelledError):
        train_blind_spot(
            source_of(noisy), stabiliser_of(noisy), BlindSpotOptions(device="cpu"), Stopping()
        )


def test_a_share_above_one_is_refused():
    with pytest.raises(InputError, match="strength 2"):
        BlindSpotOptions(strength=2.0)


# --- Deblurring ---------------------------------------------------------------------------------


def deblur(image, psf, strength=1.0):
    quality = measure_quality(Volume.from_array(image))
    restorer = RichardsonLucy(psf, float(np.percentile(image, 0.1)), quality.signal, 1, strength)
    n = tune_iterations(source_of(image), restorer, quality.noise, QUIET)
    return RichardsonLucy(psf, restorer.black, restorer.scale, n, strength)


@pytest.mark.parametrize("name", ["confocal BPAE_B", "confocal BPAE_G", "simulated nuclei"])
def test_a_known_blur_is_taken_away(clean_images, name):
    clean = clean_images[name]
    span = np.subtract(*np.percentile(clean, (99, 1)))
    noise = np.random.default_rng(0).normal(0, 0.01 * span, clean.shape)
    image = (gaussian_filter(clean, 2) + noise).astype(np.float32)
    found = restored(image, deblur(image, GaussianPsf((0.0, 2.0, 2.0))))
    assert psnr(found, clean, span) >= psnr(image, clean, span) + 2.0


def test_an_estimated_blur_is_taken_away(clean_images):
    clean = clean_images["confocal BPAE_G"]
    image = gaussian_filter(clean, 2)
    psf = estimate_psf(measure_quality(Volume.from_array(image)))
    assert psf.sigma_zyx[0] == 0
    assert 1.2 < psf.sigma_zyx[1] < 2.1
    found = restored(image, deblur(image, psf))
    assert psnr(found, clean) >= psnr(image, clean) + 2.0


@pytest.mark.parametrize("sigma", [(0.0, 1.5, 1.5), (1.5, 1.0, 1.0)])
def test_deblurring_leaves_no_seams(sigma):
    clean, _ = scene((24, 90, 80))
    noise = np.random.default_rng(0).normal(0, 1, clean.shape)
    image = (gaussian_filter(clean, sigma) + noise).astype(np.float32)
    restorer = RichardsonLucy(GaussianPsf(sigma), float(image.min()), 120.0, 15)
    whole = restored(image, restorer)
    pieces = restored(image, restorer, (8, 40, 33))
    assert np.abs(pieces - whole).max() <= 0.01 * np.ptp(whole)


def test_intensities_are_conserved_and_stay_above_black():
    clean, _ = scene((80, 80))
    image = gaussian_filter(clean, 2)
    restorer = RichardsonLucy(GaussianPsf((0.0, 2.0, 2.0)), 90.0, 120.0, 20, 0.5)
    found = restored(image, restorer)
    assert found.min() >= 90.0
    assert found.mean() == pytest.approx(image.mean(), rel=0.01)


def test_noise_stops_the_iterations():
    clean, _ = scene((96, 96))
    counts = []
    for sigma in (2.0, 8.0, 25.0):
        noise = np.random.default_rng(0).normal(0, sigma, clean.shape)
        image = (gaussian_filter(clean, 1.5) + noise).astype(np.float32)
        counts.append(deblur(image, GaussianPsf((0.0, 1.5, 1.5))).n_iterations)
    assert counts[0] > counts[1] > counts[2]


def test_a_measured_psf_does_what_the_gaussian_does(tmp_path):
    from lamella.io.format import save_volume

    bead = np.zeros((41, 37), np.float32)
    bead[22, 17] = 1
    path = save_volume(
        Volume.from_array(500 * gaussian_filter(bead, 2) + 12), tmp_path / "bead.tif"
    )
    measured = read_psf(path)
    assert measured.kernel.sum() == pytest.approx(1.0)
    assert np.unravel_index(measured.kernel.argmax(), measured.kernel.shape) == tuple(
        n // 2 for n in measured.kernel.shape
    )
    image = gaussian_filter(scene((64, 64))[0], 2)[None]
    gaussian = GaussianPsf((0.0, 2.0, 2.0))
    assert np.allclose(measured.blur(image), gaussian.blur(image), atol=0.5)
    assert isinstance(measured, MeasuredPsf)


def test_what_is_no_psf_is_refused(tmp_path):
    from lamella.io.format import save_volume

    path = save_volume(Volume.from_array(np.ones((9, 9), np.float32)), tmp_path / "flat.tif")
    with pytest.raises(InputError, match="no point spread function"):
        read_psf(path)
    with pytest.raises(InputError, match="cannot be taken away"):
        GaussianPsf((0.0, 50.0, 50.0))
    with pytest.raises(InputError, match="none that could be taken away"):
        GaussianPsf((0.0, 0.1, 0.1))
    with pytest.raises(InputError, match="noise hides"):
        estimate_psf(
            measure_quality(
                Volume.from_array(np.random.default_rng(0).normal(size=(64, 64)).astype("f4"))
            )
        )
