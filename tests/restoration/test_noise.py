import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.restoration.noise import fit_noise_model, noise_sigma, sample_noise
from lamella.restoration.variance import Stabiliser

SCENE = np.kron(np.random.default_rng(5).random((8, 8)), np.ones((24, 24))).astype(np.float32)


def noisy(sigma, seed=0):
    rng = np.random.default_rng(seed)
    return (100 * SCENE + rng.normal(0, sigma, SCENE.shape)).astype(np.float32)


@given(st.floats(0.5, 30), st.integers(0, 100))
def test_sigma_is_that_of_the_noise(sigma, seed):
    assert noise_sigma(noisy(sigma, seed)) == pytest.approx(sigma, rel=0.08)


@given(st.floats(1e-3, 1e3), st.floats(-1e4, 1e4))
def test_gain_scales_and_offset_drops_out(gain, offset):
    plain = noisy(3.0).astype(np.float64)
    moved = (plain * gain + offset * gain).astype(np.float32)
    # float32 itself rounds an offset of ten thousand by a thousandth.
    assert noise_sigma(moved) == pytest.approx(gain * noise_sigma(noisy(3.0)), rel=0.02)


def test_padding_and_saturation_do_not_count():
    padded = np.zeros((300, 300), np.float32)
    padded[:100, :192] = noisy(4.0)[:100]
    assert noise_sigma(padded) == pytest.approx(4.0, rel=0.1)
    assert noise_sigma(np.zeros((20, 20), np.float32)) == 0.0


@given(st.floats(0.5, 20), st.floats(0, 5), st.integers(0, 20))
def test_photon_noise_is_found_with_its_gain(gain, read_noise, seed):
    rng = np.random.default_rng(seed)
    light = np.linspace(3, 150, 256)[None].repeat(256, 0)
    image = (gain * rng.poisson(light) + 100 + rng.normal(0, read_noise, light.shape)).astype("f4")
    model = fit_noise_model(sample_noise(image, n_samples=image.size))
    assert model.gain == pytest.approx(gain, rel=0.12)
    for level in (20, 80, 140):
        truth = np.sqrt(gain**2 * level + read_noise**2)
        assert model.sigma_at(100 + gain * level) == pytest.approx(truth, rel=0.1)


def test_constant_noise_has_no_gain():
    model = fit_noise_model(sample_noise(noisy(5.0), n_samples=10**6))
    assert not model.is_signal_dependent
    assert model.sigma_at(0.0) == model.sigma_at(1e3) == pytest.approx(5.0, rel=0.1)


@given(st.floats(0.2, 20), st.floats(0, 50), st.floats(10, 300))
def test_the_stabilised_scale_has_unit_noise_and_an_unbiased_inverse(gain, variance, photons):
    rng = np.random.default_rng(3)
    image = gain * rng.poisson(photons, 20000) + rng.normal(0, np.sqrt(variance), 20000)
    stabiliser = Stabiliser(gain, variance)
    stable = stabiliser.stabilise(image.astype(np.float32))
    assert stable.std() == pytest.approx(1.0, abs=0.06)
    back = stabiliser.restore(np.full(1, stable.mean(dtype=np.float64), np.float32))
    assert back[0] == pytest.approx(gain * photons, rel=0.02)
