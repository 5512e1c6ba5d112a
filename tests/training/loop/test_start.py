"""A training that starts from a model begins where the model is."""

import json

import pytest

from lamella.training.run import train_on

NETWORK = {"id": "compact_unet2d", "arguments": {"widths": [4, 6, 8]}}


def trained(make_config, make_source, make_task, folder, **words):
    network = {**NETWORK, **words.pop("network", {})}
    config = make_config(network=network, augmentation={"enabled": False}, **words)
    return train_on(config, make_source(), make_task(config), folder)


@pytest.mark.parametrize("half", [True, False])
def test_the_first_step_computes_what_the_model_does(
    make_config, make_source, make_task, tmp_path, half
):
    """With a rate of next to nothing the loss stays where the first training left it."""
    trainer = {"steps": 80, "validate_every": 40, "ema_decay": 0.0}
    first = trained(
        make_config, make_source, make_task, tmp_path / "a", trainer=trainer,
        model={"id": "discs", "tile": [32, 32], "half": half},
    )  # fmt: skip
    second = trained(
        make_config, make_source, make_task, tmp_path / "b",
        trainer={**trainer, "steps": 8, "validate_every": 4},
        network={"start": str(tmp_path / "a" / "model")},
        optimiser={"learning_rate": 1e-7},
    )  # fmt: skip
    reached = sum(row.loss for row in first.history.rows[-20:]) / 20
    begun = sum(row.loss for row in second.history.rows) / 8
    assert first.history.rows[0].loss > 2 * reached, "it did not learn"
    assert begun < 1.3 * reached
    scores = [json.loads((tmp_path / n / "summary.json").read_text())["best_score"] for n in "ab"]
    assert scores[1] == pytest.approx(scores[0], abs=0.02)
