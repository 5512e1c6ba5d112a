"""Several data sets as one."""

import pickle

import numpy as np
import pytest

from lamella.core.errors import AxesError, InputError
from lamella.training.configuration import (
    MixtureConfig,
    ModelConfig,
    NetworkConfig,
    TrainConfig,
    TrainerConfig,
)
from lamella.training.mixture import MixtureSource
from lamella.training.pairs.source import PairsSource
from lamella.training.sources import build_source
from lamella.wire.card import NormalisationDoc


def _config(data, task, patch=(8, 8)):
    return TrainConfig(
        model=ModelConfig(id="x"),
        task=task,
        data=data,
        network=NetworkConfig(id="unet"),
        normalisation=NormalisationDoc(kind="none"),
        trainer=TrainerConfig(patch=patch),
    )


def test_parts_are_drawn_by_weight(write_set, write, task, tmp_path):
    for number in range(3):
        write(tmp_path / f"flat/images/{number}.png", np.full((20, 20), number, np.uint8))
        write(tmp_path / f"flat/labels/{number}.png", np.ones((20, 20), np.uint8))
    flat = write_set(0, folder="flat", description="flat", licence="CC0-1.0")
    mixed = MixtureConfig(parts=(write_set(description="noise"), flat), weights=(1, 3))
    source = build_source(_config(mixed, task()))
    assert source.info.description == "noise; flat"
    assert source.info.licence == "CC0-1.0"
    assert source.info.specimens["validation"][0].startswith("1:")
    copy = pickle.loads(pickle.dumps(source))
    n_flat = 0
    for n in range(200):
        sample = source.draw(np.random.default_rng([0, n]), (8, 8))
        again = copy.draw(np.random.default_rng([0, n]), (8, 8))
        assert np.array_equal(sample.image, again.image)
        n_flat += np.ptp(sample.image) == 0
    assert 125 < n_flat < 175
    assert len(source.regions("validation")) == 2


def test_parts_that_do_not_fit(write_set, write, task, tmp_path):
    for number in range(3):
        picture = np.arange(1200, dtype=np.uint8).reshape(20, 20, 3)
        write(tmp_path / f"color/images/{number}.png", picture)
        write(tmp_path / f"color/labels/{number}.png", np.ones((20, 20), np.uint8))
    color = write_set(0, folder="color")
    with pytest.raises(InputError, match="n_channels of part 1 is 1, of part 2 3"):
        build_source(_config(MixtureConfig(parts=(write_set(), color)), task()))
    with pytest.raises(InputError, match="no parts"):
        MixtureSource([])


def test_copies_in_two_parts_are_leakage(write_set, task):
    first = write_set(4, folder="a", seed=1)
    second = write_set(4, folder="b", seed=1)
    swapped = second.model_copy(
        update={"split": second.split.model_copy(update={"validation": ("images/case[012]",)})}
    )
    source = build_source(_config(MixtureConfig(parts=(first, swapped)), task()))
    assert any("same image stands on several sides" in text for text in source.info.warnings)


def test_the_patch_says_how_many_axes(write_set, task):
    source = build_source(_config(write_set(), task()))
    assert isinstance(source, PairsSource)
    assert source.info.axes == "yx"
    with pytest.raises(AxesError, match="4 numbers"):
        build_source(_config(write_set(), task(), (1, 2, 3, 4)))
