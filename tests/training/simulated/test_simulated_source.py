"""Simulated training data: the same in every process, never on two sides, labels where they lie."""

import pickle

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from lamella.core.errors import InputError
from lamella.training.configuration import ClassConfig, SimulationConfig, TaskConfig
from lamella.training.simulated.source import SimulatedSource
from lamella.volume.box import Box
from lamella.wire.card import NormalisationDoc

MEMBRANE = TaskConfig(kind="semantic", classes=(ClassConfig(name="membrane"),))
NUCLEI = TaskConfig(kind="boundary", classes=(ClassConfig(name="nucleus"),))
PERCENTILE = NormalisationDoc(kind="percentile", low=1.0, high=99.8)


def tomograms(**changes: object) -> SimulatedSource:
    config = SimulationConfig(
        sample="tomogram", n_samples=2, shape=(48, 48, 48), n_validation=1, n_test=1
    )
    return SimulatedSource(
        config.model_copy(update=changes), MEMBRANE, NormalisationDoc(), axes="zyx"
    )


def nuclei(**changes: object) -> SimulatedSource:
    config = SimulationConfig(sample="nuclei", n_samples=3, shape=(96, 96))
    return SimulatedSource(config.model_copy(update=changes), NUCLEI, PERCENTILE, axes="yx")


@pytest.mark.parametrize(("make", "shape"), [(tomograms, (32, 24, 40)), (nuclei, (64, 48))])
def test_a_patch_is_a_function_of_its_generator(make, shape) -> None:
    source = make()
    again = pickle.loads(pickle.dumps(source))
    for seed in range(3):
        first = source.draw(np.random.default_rng([5, seed]), shape)
        second = again.draw(np.random.default_rng([5, seed]), shape)
        assert first.image.shape == (1, *shape)
        assert first.image.dtype == np.float32
        assert_array_equal(first.image, second.image)
        assert_array_equal(first.labels, second.labels)
        assert first.valid.all()


def test_membranes_differ_from_what_is_around_them() -> None:
    source = tomograms(snr=(20.0, 20.0))
    rng = np.random.default_rng(0)
    samples = [source.draw(rng, (40, 40, 40)) for _ in range(4)]
    image = np.concatenate([s.image.ravel() for s in samples])
    labels = np.concatenate([s.labels.ravel() for s in samples])
    assert set(np.unique(labels)) == {0, 1}, "other classes are background"
    contrast = image[labels == 0].mean() - image[labels == 1].mean()
    assert contrast > 0.2, "membranes are dark"


def test_coarse_patches_show_twice_as_much() -> None:
    fine, coarse = tomograms(), tomograms(coarse_fraction=1.0)
    shape = (24, 24, 24)
    assert coarse.draw(np.random.default_rng(1), shape).image.shape == (1, *shape)
    shares = [
        np.mean([s.draw(np.random.default_rng([k]), shape).labels.mean() for k in range(12)])
        for s in (fine, coarse)
    ]
    assert 0.3 * shares[0] < shares[1] < 3 * shares[0]


def test_validation_samples_are_not_trained_on() -> None:
    source = nuclei(n_validation=2, n_test=2)
    judged = [*source.regions("validation"), *source.regions("test")]
    assert len({region.name for region in judged}) == 4
    whole = Box.from_shape(source.shape)
    images = [region.read(whole).image for region in judged]
    trained = [source.whole(number)[0][None] for number in range(3)]
    for at, image in enumerate(images):
        others = [*trained, *images[:at]]
        assert not any(np.array_equal(image, other) for other in others)
    names = [name for split in source.info.specimens.values() for name in split]
    assert len(set(names)) == 3


def test_a_region_reads_its_parts_as_its_whole() -> None:
    region = nuclei().regions("validation")[0]
    whole = region.read(Box.from_shape(region.shape))
    part = region.read(Box((10, 20), (50, 90)))
    assert_array_equal(part.image, whole.image[:, 10:50, 20:90])
    assert_array_equal(part.labels, whole.labels[:, 10:50, 20:90])
    assert part.labels.dtype == np.int64
    assert whole.labels.max() > 1, "objects keep their ids"


def test_images_are_normalised_as_at_inference() -> None:
    region = nuclei().regions("validation")[0]
    image = region.read(Box.from_shape(region.shape)).image
    low, high = np.percentile(image, (1.0, 99.8))
    assert low == pytest.approx(0.0, abs=0.02)
    assert high == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda: tomograms(shape=(48, 48)), "has 2 numbers"),
        (lambda: tomograms().draw(np.random.default_rng(0), (64, 64, 64)), "larger than"),
        (
            lambda: tomograms(coarse_fraction=0.1).draw(np.random.default_rng(0), (32, 24, 24)),
            "averaged over 2 voxels",
        ),
        (
            lambda: SimulatedSource(
                SimulationConfig(sample="nuclei"), MEMBRANE, PERCENTILE, axes="yx"
            ),
            "single objects",
        ),
        (
            lambda: SimulatedSource(
                SimulationConfig(sample="tomogram"), NUCLEI, PERCENTILE, axes="zyx"
            ),
            "volumes with classes",
        ),
        (
            lambda: SimulatedSource(
                SimulationConfig(sample="tomogram"),
                TaskConfig(kind="semantic", classes=(ClassConfig(name="ribosome"),)),
                PERCENTILE,
                axes="zyx",
            ),
            "no class 'ribosome'",
        ),
    ],
)
def test_what_cannot_be_simulated(work, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        work()
    assert refused.value.hint
