"""A whole training on drawn discs."""

import json
import logging

import pytest
import torch

from lamella.training.compose import compose
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


def test_metrics_are_a_table(trained):
    lines = (trained.run_dir / "metrics.csv").read_text().splitlines()
    assert lines[0].startswith("step,time_s,loss")
    assert lines[0].endswith(",disc")
    assert [int(line.split(",")[0]) for line in lines[1:]] == list(range(1, 13))
    assert sum(bool(line.split(",")[6]) for line in lines[1:]) == 3


def test_provenance_says_what_it_was_made_of(trained):
    [session] = json.loads((trained.run_dir / "provenance.json").read_text())["sessions"]
    assert session["versions"]["torch"]
    assert len(session["package_sha256"]) == len(session["data_sha256"]) == 64
    assert session["data"] == {"discs": "drawn"}
    assert session["machine"]["n_threads"] >= 1


def test_the_configuration_can_be_composed_again(trained, make_config):
    assert compose(str(trained.run_dir)) == make_config()


def test_the_network_learns(make_config, make_source, make_task, tmp_path):
    config = make_config(
        trainer={"steps": 60, "validate_every": 30, "ema_decay": 0.9},
        network={"arguments": {"dropout": 0.0}},
    )
    result = train_on(config, make_source(), make_task(config), tmp_path / "run")
    first, last = result.history.validations
    assert last.validation_loss < first.validation_loss
    assert result.summary["best_score"] > 0.8
    assert result.result.scores["validation"]["disc"]["iou"] > 0.8
    rates = [row.learning_rate for row in result.history.rows]
    assert max(rates) == pytest.approx(0.02, rel=0.1)
    assert rates[-1] < 0.001


def test_the_working_folder_stays_clean_and_the_process_as_it_was(trained):
    # The folder is checked by a fixture of every test.
    assert not torch.are_deterministic_algorithms_enabled()
    assert logging.getLogger("lightning.pytorch").level != logging.ERROR
