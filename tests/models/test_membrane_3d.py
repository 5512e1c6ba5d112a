"""The shipped membrane model: complete, small, its card honest, its labels good on new scenes."""

from pathlib import Path

import numpy as np
import pytest

import lamella.models
from lamella.models.folder import ModelFolder
from lamella.simulation.tomogram import TomogramOptions, simulate_tomogram

FOLDER = Path(lamella.models.__file__).parent / "starter" / "membrane-3d"


@pytest.fixture(scope="module")
def model():
    return ModelFolder.open(FOLDER)


def membrane_logits(model, image):
    import openvino

    compiled = openvino.Core().compile_model(
        model.openvino_path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return compiled(((image - image.mean()) / image.std())[None, None])[0][0]


def test_is_complete_and_at_most_five_megabytes(model):
    assert model.n_bytes <= 5_000_000
    assert model.card.network.n_parameters <= 1_100_000


def test_card_tells_what_it_was_trained_on_and_how_it_scores_over_snr(model):
    card = model.card
    assert card.licence
    assert card.training.data_licence
    assert card.training.recipe.startswith("lamella train membrane_3d")
    for name, least in (("Dice", 0.80), ("surface Dice at 1 voxel", 0.90)):
        over_snr = {
            metric.conditions["snr"]: metric.value
            for metric in card.metrics
            if metric.name == name and set(metric.conditions) == {"snr", "least"}
        }
        assert {0.1, 0.2, 0.3, 0.5} <= set(over_snr)
        assert all(value >= least for snr, value in over_snr.items() if snr >= 0.1)


@pytest.mark.parametrize("snr", [0.1, 0.5])
def test_finds_membranes_of_tomograms_it_never_saw(model, snr):
    from lamella.evaluation.surface import score_surface

    dice, surface_dice = [], []
    for seed in (910_001, 910_002, 910_003):
        made = simulate_tomogram((64, 88, 80), seed=seed, options=TomogramOptions(snr=snr))
        logits = membrane_logits(model, made.intensity)
        found, reference = logits[1] > logits[0], made.labels == 1
        dice.append(2 * (found & reference).sum() / (found.sum() + reference.sum()))
        score = score_surface(found, reference, spacing=(1.0, 1.0, 1.0), tolerance=1.0)
        surface_dice.append(score.surface_dice)
    assert np.mean(dice) >= 0.80
    assert np.mean(surface_dice) >= 0.90


def test_finds_no_membrane_where_there_is_none(model):
    options = TomogramOptions(snr=0.2, membrane_density=0.0, microtubule_density=3.0)
    made = simulate_tomogram((64, 64, 64), seed=987_654, options=options)
    logits = membrane_logits(model, made.intensity)
    assert (logits[1] > logits[0]).mean() < 1e-3


def test_torch_and_openvino_agree(model):
    torch = pytest.importorskip("torch")
    image = np.random.default_rng(0).standard_normal((32, 40, 48), np.float32)
    image = (image - image.mean()) / image.std()
    with torch.no_grad():
        expected = model.load_network()(torch.from_numpy(image)[None, None]).numpy()[0]
    np.testing.assert_allclose(membrane_logits(model, image), expected, atol=1e-3)
