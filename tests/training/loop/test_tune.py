"""Short trials before a training."""

import numpy as np
import pytest

from lamella.core.errors import InputError
from lamella.training.tune import (
    LearningRates,
    draw_learning_rates,
    find_learning_rate,
    overfit_one_batch,
    suggest_rate,
)


def test_a_learning_rate_is_suggested(make_config, make_source, make_task):
    config = make_config()
    found = find_learning_rate(config, make_source(), make_task(config), n_steps=60)
    assert found.suggestion is not None
    assert 1e-4 < found.suggestion < 0.3
    assert found.rates[0] == pytest.approx(1e-6)
    picture = draw_learning_rates(found)
    assert picture.startswith(b"\x89PNG")


def test_noise_alone_suggests_nothing():
    rates = np.geomspace(1e-6, 1, 80).tolist()
    assert suggest_rate(rates, [0.7] * 80) is None
    rising = [0.7 + 0.01 * i for i in range(80)]
    assert suggest_rate(rates, rising) is None
    assert draw_learning_rates(LearningRates(tuple(rates), tuple(rising), None))


def test_what_diverges_is_cut_off(make_config, make_source, make_task):
    config = make_config(optimiser={"kind": "sgd", "max_gradient_norm": 0})
    found = find_learning_rate(config, make_source(), make_task(config), n_steps=60)
    assert len(found.rates) == len(found.losses) <= 60


def test_too_few_steps(make_config, make_source, make_task):
    config = make_config()
    with pytest.raises(InputError, match="too few"):
        find_learning_rate(config, make_source(), make_task(config), n_steps=3)


def test_one_batch_is_learnt_by_heart(make_config, make_source, make_task):
    config = make_config(network={"arguments": {"dropout": 0.0}})
    done = overfit_one_batch(config, make_source(), make_task(config))
    assert done.can_learn
    assert done.losses[-1] < 0.3 * done.losses[0]
    assert done.scores["disc"] > 0.85


def test_a_network_that_cannot_learn_is_told(make_config, make_source, make_task):
    config = make_config(optimiser={"learning_rate": 1e-9})
    done = overfit_one_batch(config, make_source(), make_task(config), n_steps=20)
    assert not done.can_learn
