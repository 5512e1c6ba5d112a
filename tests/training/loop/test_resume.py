"""A training that was interrupted gives the same weights, bit for bit."""

import pytest
import torch

from lamella.core.errors import (
    InputError,
    MissingPathError,
    OutputExistsError,
    RunCancelledError,
    UnreadableFileError,
)
from lamella.core.progress import CancelToken
from lamella.training.checkpoint import read_checkpoint
from lamella.training.run import TrainOptions, train_on

HARD = {"steps": 13, "validate_every": 4, "accumulate": 3, "keep_best": 2, "ema_decay": 0.9}
RESUME = TrainOptions(resume=True)


class StopsAt:
    """A sink that cancels after so many training steps."""

    def __init__(self, step):
        self.step, self.token, self.events = step, CancelToken(), []

    def emit(self, event):
        self.events.append(event)
        if getattr(event, "stage", "") == "training" and event.done >= self.step:
            self.token.cancel()

    def check(self):
        self.token.check()


def weights_of(run_dir):
    document = read_checkpoint(run_dir / "checkpoints" / "last.ckpt")
    return {name: document[name] for name in ("network", "averaged", "optimiser")}


def assert_same(a, b, at=""):
    if isinstance(a, dict):
        assert a.keys() == b.keys(), at
        for key in a:
            assert_same(a[key], b[key], f"{at}.{key}")
    elif isinstance(a, list | tuple):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{at}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), at
    else:
        assert a == b, at


@pytest.fixture(autouse=True)
def no_model(monkeypatch, request):
    """Models are written in other tests; here only weights are compared."""
    monkeypatch.setattr("lamella.training.work.Work.write", lambda work: _NoResult())


class _NoResult:
    warnings, scores = (), {}

    class folder:  # noqa: N801 - stands for an attribute
        path = "nowhere"


@pytest.mark.parametrize(
    ("precision", "optimiser"),
    [("fp32", "adamw"), ("bf16", "radam")],
)
def test_resumed_is_uninterrupted(
    precision, optimiser, make_config, make_source, make_task, tmp_path
):
    config = make_config(trainer={**HARD, "precision": precision}, optimiser={"kind": optimiser})
    task = make_task(config)
    whole = train_on(config, make_source(), task, tmp_path / "whole")
    for stop in (2, 6, 11):
        with pytest.raises(RunCancelledError, match="stopped at step"):
            train_on(
                config, make_source(), task, tmp_path / "cut",
                TrainOptions(resume=stop > 2), sink=StopsAt(stop),
            )  # fmt: skip
    again = train_on(config, make_source(), task, tmp_path / "cut", RESUME)
    assert_same(weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut"))
    assert [row.loss for row in whole.history.rows] == pytest.approx(
        [row.loss for row in again.history.rows], rel=1e-6
    )
    names = [
        sorted(path.name for path in (tmp_path / which / "checkpoints").iterdir())
        for which in ("whole", "cut")
    ]
    assert names[0] == names[1]
    assert len(names[0]) == 3  # the last one and two best ones


def test_a_training_that_was_stopped_says_how_to_go_on(
    make_config, make_source, make_task, tmp_path
):
    config, run = make_config(), tmp_path / "run"
    with pytest.raises(RunCancelledError) as raised:
        train_on(config, make_source(), make_task(config), run, sink=StopsAt(6))
    assert f"lamella train --resume {run}" in raised.value.hint
    assert "step 4" in raised.value.hint
    summary = (run / "summary.json").read_text()
    assert '"state": "stopped"' in summary


def test_a_finished_training_is_not_trained_again(make_config, make_source, make_task, tmp_path):
    config, source = make_config(), make_source()
    train_on(config, source, make_task(config), tmp_path / "run")
    before = source.n_drawn
    train_on(config, source, make_task(config), tmp_path / "run", RESUME)
    assert source.n_drawn == before


def test_more_steps_go_on_behind_the_old_end(make_config, make_source, make_task, tmp_path):
    config = make_config(trainer={"steps": 4})
    train_on(config, make_source(), make_task(config), tmp_path / "run")
    longer = make_config(trainer={"steps": 8})
    done = train_on(longer, make_source(), make_task(config), tmp_path / "run", RESUME)
    assert done.summary["steps"] == 8


def test_a_folder_with_a_training_is_not_overwritten_unasked(
    make_config, make_source, make_task, tmp_path
):
    config, run = make_config(trainer={"steps": 4}), tmp_path / "run"
    train_on(config, make_source(), make_task(config), run)
    with pytest.raises(OutputExistsError, match="holds a training"):
        train_on(config, make_source(), make_task(config), run)
    other = make_config(trainer={"steps": 4}, optimiser={"learning_rate": 0.5})
    with pytest.raises(InputError, match=r"optimiser.learning_rate was 0.02, is 0.5"):
        train_on(other, make_source(), make_task(config), run, RESUME)
    done = train_on(other, make_source(), make_task(config), run, TrainOptions(fresh=True))
    assert done.summary["state"] == "finished"
    with pytest.raises(MissingPathError, match="no training"):
        train_on(config, make_source(), make_task(config), tmp_path / "none", RESUME)


def test_a_foreign_folder_is_left_alone(make_config, make_source, make_task, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    config = make_config()
    for options in (None, TrainOptions(fresh=True)):
        with pytest.raises(InputError, match="something else"):
            train_on(config, make_source(), make_task(config), tmp_path, options)
    assert (tmp_path / "thesis.txt").is_file()


def test_a_damaged_checkpoint_is_one_clear_error(make_config, make_source, make_task, tmp_path):
    config, run = make_config(trainer={"steps": 4}), tmp_path / "run"
    train_on(config, make_source(), make_task(config), run)
    path = run / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UnreadableFileError, match="no readable checkpoint"):
        train_on(config, make_source(), make_task(config), run, RESUME)
