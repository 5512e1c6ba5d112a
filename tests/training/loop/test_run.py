"""A whole training on drawn discs."""

import json

import pytest

from lamella.training.run import train_on


@pytest.fixture
def trained(make_config, make_source, make_task, tmp_path):
    config = make_config()
    return train_on(config, make_source(), make_task(config), tmp_path / "run")


def test_a_training_leaves_everything(trained):
    names = {path.name for path in trained.run_dir.iterdir()}
    assert names >= {
        "config.yaml", "provenance.json", "checkpoints", "metrics.csv", "curves.png",
        "curves.html", "summary.json", "model",
    }  # fmt: skip
    summary = json.loads((trained.run_dir / "summary.json").read_text())
    assert summary["state"] == "finished"
    assert summary["steps"] == summary["steps_planned"] == 12
