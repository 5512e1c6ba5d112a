"""The contrast transfer function against its known values."""

import numpy as np
import pytest

from lamella.simulation.microscope import contrast_transfer, electron_wavelength_nm

OPTICS = {
    "defocus_um": 3.0, "voltage_kv": 300.0, "cs_mm": 2.7, "amplitude_contrast": 0.07,
    "b_factor_nm2": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(("voltage_kv", "picometres"), [(100, 3.701), (200, 2.508), (300, 1.969)])
def test_wavelength_of_textbooks(voltage_kv, picometres):
    assert electron_wavelength_nm(voltage_kv) * 1e3 == pytest.approx(picometres, abs=2e-3)


def test_zero_frequency_shows_the_amplitude_contrast_and_protein_is_dark():
    transfer = contrast_transfer(np.zeros(1, np.float32), **OPTICS)
    assert transfer[0] == pytest.approx(-0.07)


def test_first_zero_without_aberration_is_where_the_phase_is_pi():
    optics = OPTICS | {"amplitude_contrast": 0.0, "cs_mm": 0.0}
    zero = 1 / np.sqrt(electron_wavelength_nm(300.0) * 3000.0)
    around = np.array([0.999 * zero, 1.001 * zero], np.float32)
    before, after = contrast_transfer(around, **optics)
    assert before < 0 < after


def test_b_factor_damps_high_frequencies():
    frequency = np.array([0.4], np.float32)
    damped = contrast_transfer(frequency, **(OPTICS | {"b_factor_nm2": 10.0}))
    assert damped[0] == pytest.approx(
        contrast_transfer(frequency, **OPTICS)[0] * np.exp(-10 * 0.16 / 4), rel=1e-4
    )
