"""Simulated nuclei: the labels are lawful, the image shows what they say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy import ndimage

from lamella.core.errors import InputError
from lamella.simulation.nuclei import NucleiOptions, draw_nuclei, simulate_nuclei

shapes = st.one_of(
    st.tuples(st.integers(8, 80), st.integers(8, 80)),
    st.tuples(st.integers(4, 16), st.integers(8, 40), st.integers(8, 40)),
)


@st.composite
def any_options(draw):
    return NucleiOptions(
        shape=draw(shapes),
        n_nuclei=draw(st.integers(0, 15)),
        radius_um=draw(st.floats(1.5, 8)),
        elongation=draw(st.floats(1, 2.5)),
        deformation=draw(st.floats(0, 0.2)),
        touching_fraction=draw(st.floats(0, 1)),
    )


class TestLaws:
    @given(any_options(), st.integers(0, 2**32))
    def test_ids_have_no_gaps_and_every_nucleus_is_in_one_piece(self, options, seed):
        made = draw_nuclei(options, seed=seed)
        assert made.labels.dtype == np.uint32
        assert made.image.dtype == np.uint16
        assert made.labels.shape == made.image.shape == options.shape
        ids = np.unique(made.labels)
        assert_array_equal(ids[ids > 0], np.arange(1, made.n_nuclei + 1))
        for nucleus in range(1, made.n_nuclei + 1):
            assert ndimage.label(made.labels == nucleus)[1] == 1

    @given(any_options(), st.integers(0, 2**32))
    def test_the_same_seed_gives_the_same_voxels(self, options, seed):
        first, second = draw_nuclei(options, seed=seed), draw_nuclei(options, seed=seed)
        assert_array_equal(first.image, second.image)
        assert_array_equal(first.labels, second.labels)

    def test_noise_and_optics_do_not_move_the_nuclei(self):
        quiet = draw_nuclei(NucleiOptions(photons=1e6, read_noise=0), seed=4)
        noisy = draw_nuclei(NucleiOptions(photons=5, read_noise=5, haze=0.4), seed=4)
        assert_array_equal(quiet.labels, noisy.labels)
        assert not np.array_equal(quiet.image, noisy.image)

    def test_another_seed_gives_other_nuclei(self):
        labels = [draw_nuclei(NucleiOptions(), seed=seed).labels for seed in (1, 2)]
        assert not np.array_equal(*labels)


class TestWhatIsSeen:
    def test_every_nucleus_is_brighter_than_the_ground(self):
        made = draw_nuclei(NucleiOptions(haze=0, illumination=0), seed=0)
        means = ndimage.mean(made.image, made.labels, np.arange(made.n_nuclei + 1))
        assert (means[1:] > 2 * means[0] - 100).all()

    def test_a_lone_ball_has_the_volume_asked_for_on_an_anisotropic_grid(self):
        options = NucleiOptions(
            shape=(24, 64, 64),
            n_nuclei=60,
            radius_um=4,
            radius_variation=0,
            elongation=1,
            deformation=0,
            touching_fraction=0,
        )
        made = draw_nuclei(options, seed=0)
        sizes = np.bincount(made.labels.ravel())[1:] * np.prod(options.spacing)
        # Nuclei that the border cuts are smaller; those inside are whole.
        assert np.isclose(sizes.max(), 4 / 3 * np.pi * 4**3, rtol=0.03)

    def test_apart_means_apart_and_touching_means_touching(self):
        def n_contacts(fraction):
            options = NucleiOptions(n_nuclei=30, touching_fraction=fraction)
            labels = draw_nuclei(options, seed=3).labels
            left, right = labels[:, :-1], labels[:, 1:]
            return int(((left != right) & (left > 0) & (right > 0)).sum())

        assert n_contacts(0.0) == 0
        assert n_contacts(0.9) > 10

    def test_fewer_photons_are_noisier(self):
        def noise(photons):
            image = draw_nuclei(NucleiOptions(photons=photons), seed=0).image.astype(float)
            return np.abs(np.diff(image, axis=1)).mean() / image.std()

        assert noise(5) > 2 * noise(500)

    def test_uneven_light_darkens_the_field_outwards(self):
        bright, uneven = (
            draw_nuclei(
                NucleiOptions(n_nuclei=0, background=1, illumination=fall, photons=1e5), seed=0
            ).image
            for fall in (0.0, 0.6)
        )
        assert np.ptp(bright[::8, ::8].astype(float)) < 0.1 * bright.mean()
        assert uneven.min() < 0.6 * uneven.max()


class TestAsVolumes:
    def test_image_and_labels_lie_on_one_grid_in_micrometres(self):
        image, labels = simulate_nuclei(NucleiOptions(shape=(6, 32, 32), n_nuclei=3), seed=0)
        assert image.same_grid(labels)
        assert str(image.spacing) == "1.5 x 0.5 x 0.5 um"
        assert labels.is_instance
        assert labels.classes[0].name == "nucleus"

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"shape": (4,)}, "two or three"),
            ({"shape": (0, 5)}, "positive sizes"),
            ({"spacing_um": (1.0, 1.0, 1.0)}, "spacing_um"),
            ({"spacing_um": (0.0, 1.0)}, "spacing_um"),
            ({"psf_sigma_um": (float("nan"), 1.0)}, "psf_sigma_um"),
            ({"radius_um": 0}, "radius_um"),
            ({"photons": -1}, "photons"),
            ({"n_nuclei": -1}, "n_nuclei"),
            ({"elongation": 0.5}, "elongation"),
            ({"deformation": 0.9}, "deformation"),
            ({"touching_fraction": 1.5}, "touching_fraction"),
        ],
    )
    def test_what_cannot_be_simulated_is_refused(self, changes, words):
        with pytest.raises(InputError, match=words):
            NucleiOptions(**changes)

    def test_no_nuclei_is_an_empty_field(self):
        made = draw_nuclei(NucleiOptions(shape=(16, 16), n_nuclei=0))
        assert made.n_nuclei == 0
        assert not made.labels.any()
