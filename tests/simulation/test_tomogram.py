"""Laws of simulated tomograms: what is stated about them can be measured in them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.core.errors import InputError
from lamella.simulation.tomogram import CLASSES, TomogramOptions, simulate_tomogram

SHAPE = (40, 56, 48)


@pytest.fixture(scope="module")
def example():
    return simulate_tomogram((64, 80, 72), seed=5, options=TomogramOptions(snr=0.3))


def wedge_power_fraction(volume, least, greatest):
    """Share of the power at frequencies no tilt has seen, window against leaking edges."""
    windows = [np.hanning(extent) for extent in volume.shape]
    windowed = (volume - volume.mean()) * windows[0][:, None, None]
    windowed = windowed * windows[1][:, None] * windows[2]
    power = np.abs(np.fft.fftn(windowed)) ** 2
    kz, _, kx = np.meshgrid(*[np.fft.fftfreq(n) for n in volume.shape], indexing="ij")
    # The same direction up to sign: angles in -90..90, a little inside the border.
    angle = np.degrees(np.arctan(np.divide(kz, kx, out=np.full_like(kz, np.inf), where=kx != 0)))
    missing = ((angle < least - 8) | (angle > greatest + 8)) & (np.hypot(kz, kx) > 0.1)
    return power[missing].sum() / power[np.hypot(kz, kx) > 0.1].sum(), missing.mean()


@settings(max_examples=6)
@given(seed=st.integers(0, 10**9), snr=st.floats(0.02, 5))
def test_stated_snr_is_variance_of_signal_over_variance_of_noise(seed, snr):
    made = simulate_tomogram((24, 28, 26), seed=seed, options=TomogramOptions(snr=snr))
    noise = made.intensity.astype(np.float64) - made.signal
    assert made.signal.var(dtype=np.float64) / noise.var() == pytest.approx(snr, rel=1e-3)


@settings(max_examples=5)
@given(seed=st.integers(0, 10**9))
def test_same_seed_same_voxels(seed):
    first, second = (simulate_tomogram((20, 24, 22), seed=seed) for _ in range(2))
    np.testing.assert_array_equal(first.intensity, second.intensity)
    np.testing.assert_array_equal(first.instances, second.instances)


def test_other_seeds_give_other_scenes():
    first, second = (simulate_tomogram(SHAPE, seed=seed) for seed in (1, 2))
    assert (first.labels != second.labels).any()


def test_noise_defocus_and_tilts_do_not_change_the_scene():
    other = TomogramOptions(snr=None, defocus_um=5.0, tilt_range=(-45, 50), is_phase_flipped=True)
    first = simulate_tomogram(SHAPE, seed=3)
    second = simulate_tomogram(SHAPE, seed=3, options=other)
    np.testing.assert_array_equal(first.labels, second.labels)
    np.testing.assert_array_equal(first.instances, second.instances)


def test_without_noise_the_intensity_is_the_signal():
    made = simulate_tomogram(SHAPE, seed=3, options=TomogramOptions(snr=None))
    np.testing.assert_array_equal(made.intensity, made.signal)


@pytest.mark.parametrize("tilts", [(-60.0, 60.0), (-40.0, 50.0)])
@pytest.mark.parametrize("snr", [None, 0.2])
def test_the_wedge_is_missing(tilts, snr):
    options = TomogramOptions(snr=snr, tilt_range=tilts)
    made = simulate_tomogram((64, 64, 64), seed=8, options=options)
    share, of_frequencies = wedge_power_fraction(made.intensity, *tilts)
    assert of_frequencies > 0.15
    assert share < 0.003


def test_all_tilts_leave_no_wedge():
    options = TomogramOptions(tilt_range=(-90.0, 90.0))
    made = simulate_tomogram((64, 64, 64), seed=8, options=options)
    share, of_frequencies = wedge_power_fraction(made.intensity, -60, 60)
    assert share == pytest.approx(of_frequencies, rel=0.3)


def test_wedge_lies_along_the_beam_and_the_tilt_axis_is_y():
    made = simulate_tomogram((64, 64, 64), seed=8, options=TomogramOptions(tilt_range=(-30, 30)))
    turned = made.intensity.transpose(2, 1, 0)
    assert wedge_power_fraction(made.intensity, -30, 30)[0] < 0.01
    assert wedge_power_fraction(turned, -30, 30)[0] > 0.2


def test_what_is_labelled_is_dark(example):
    background = example.signal[example.labels == 0].mean()
    for value, name, _ in CLASSES[1:]:
        inside = example.signal[example.labels == value]
        if inside.size:
            assert inside.mean() < background, name
    membrane = example.signal[example.labels == 1]
    assert membrane.mean() < background - 0.5 * example.signal.std()


def test_membranes_are_five_nanometres_thick():
    for spacing in (0.8, 1.0, 1.6):
        options = TomogramOptions(
            spacing_nm=spacing, snr=None, particle_density=0, microtubule_density=0,
            double_fraction=0, vesicle_radius_nm=(25, 40),
        )  # fmt: skip
        extent = round(96 / spacing)
        made = simulate_tomogram((extent,) * 3, seed=11, options=options)
        wall = made.labels == 1
        # Volume over half the surface, both faces counted by the faces of voxels (a cube's faces
        # count 3/2 of a smooth surface's area, on average over directions).
        faces = sum(
            int(np.diff(wall.astype(np.int8), axis=axis).astype(bool).sum()) for axis in range(3)
        )
        thickness = wall.sum() * spacing**3 / (0.5 * faces / 1.5 * spacing**2)
        assert thickness == pytest.approx(5.0, rel=0.2)


def test_two_leaflets_four_nanometres_apart():
    from lamella.simulation.canvas import Canvas

    canvas = Canvas((8, 8, 161), 0.25)
    distance = np.broadcast_to(
        (np.arange(161, dtype=np.float32) - 80) * np.float32(0.25), canvas.shape
    ).copy()
    from lamella.volume.box import Box

    assert canvas.draw_membrane(Box.from_shape(canvas.shape), distance)
    canvas.finish()
    profile = canvas.density[4, 4]
    peaks = np.flatnonzero((profile[1:-1] > profile[:-2]) & (profile[1:-1] > profile[2:])) + 1
    assert list((peaks - 80) * 0.25) == [-2.0, 2.0]


def test_labels_and_instances_agree(example):
    assert ((example.instances > 0) == (example.labels > 0)).all()
    ids = np.unique(example.instances)
    assert list(ids) == list(range(len(ids)))
    for instance in ids[1:]:
        assert len(np.unique(example.labels[example.instances == instance])) == 1


def test_arrays_are_as_documented(example):
    assert example.intensity.dtype == example.signal.dtype == np.float32
    assert (example.labels.dtype, example.instances.dtype) == (np.uint8, np.uint32)
    assert example.intensity.shape == example.labels.shape == (64, 80, 72)
    assert example.intensity.mean() == pytest.approx(0, abs=1e-3)
    assert example.intensity.std() == pytest.approx(1, abs=1e-3)
    assert example.intensity.base is None
    assert example.labels.base is None


def test_volume_and_labels_carry_spacing_and_classes():
    made = simulate_tomogram((8, 12, 10), seed=0, options=TomogramOptions(spacing_nm=1.3))
    volume, labels = made.to_volume(), made.to_labels()
    assert volume.affine.spacing == (1.3, 1.3, 1.3)
    assert (volume.unit, str(volume.axes)) == ("nm", "zyx")
    assert labels.class_name(1) == "membrane"
    assert made.to_labels(instances=True).is_instance


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 40), (3, 5, 64)])
def test_thin_and_tiny_volumes(shape):
    made = simulate_tomogram(shape, seed=0)
    assert made.intensity.shape == shape
    assert np.isfinite(made.intensity).all()


@pytest.mark.parametrize("seed", range(4))
def test_a_scene_always_has_a_membrane_and_can_have_nothing(seed):
    options = TomogramOptions(membrane_density=0.01)
    assert (simulate_tomogram((48, 64, 64), seed=seed, options=options).labels == 1).any()
    empty = TomogramOptions(
        membrane_density=0, particle_density=0, microtubule_density=0, solute_density=0
    )
    made = simulate_tomogram((16, 16, 16), seed=seed, options=empty)
    assert not made.labels.any()
    assert np.isfinite(made.intensity).all()


def test_gold_is_the_darkest():
    options = TomogramOptions(n_gold=3, snr=None)
    with_gold = simulate_tomogram((64, 64, 64), seed=2, options=options)
    without = simulate_tomogram((64, 64, 64), seed=2, options=TomogramOptions(snr=None))
    assert with_gold.signal.min() < 1.5 * without.signal.min()


@pytest.mark.parametrize(
    "wrong",
    [
        {"snr": 0.0}, {"snr": float("nan")}, {"spacing_nm": -1.0}, {"tilt_range": (60.0, -60.0)},
        {"tilt_range": (-95.0, 60.0)}, {"double_fraction": 1.5}, {"particle_density": -1.0},
        {"vesicle_radius_nm": (40.0, 12.0)}, {"amplitude_contrast": 2.0}, {"voltage_kv": 0.0},
    ],
)  # fmt: skip
def test_impossible_options_are_refused(wrong):
    with pytest.raises(InputError, match=str(next(iter(wrong))).split("_")[0]):
        TomogramOptions(**wrong)


@pytest.mark.parametrize("shape", [(4, 4), (0, 4, 4), (-1, 4, 4), (10**5, 10**5, 10**5)])
def test_impossible_shapes_are_refused(shape):
    with pytest.raises(InputError, match="shape"):
        simulate_tomogram(shape, seed=0)


def test_negative_seeds_are_refused():
    with pytest.raises(InputError, match="seed"):
        simulate_tomogram((4, 4, 4), seed=-1)
