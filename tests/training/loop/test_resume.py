"""A training that was interrupted gives the same weights, bit for bit."""

import pytest
import torch

from lamella.core.errors import InputError, MissingPathError, OutputExistsError, RunCancelledError
from lamella.core.progress import CancelToken
from lamella.training.checkpoint import read_checkpoint
from lamella.training.run import TrainOptions, train_on

HARD = {"steps": 13, "validate_every": 4, "accumulate": 3, "keep_best": 2, "ema_decay": 0.9}


class StopsAt:
    """A sink that cancels after so many reports of training steps."""

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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimiser", ["adamw", "sgd", "radam"])
def test_resumed_is_uninterrupted(
    precision, optimiser, make_config, make_source, make_task, tmp_path
):
    config = make_config(trainer={**HARD, "precision": precision}, optimiser={"kind": optimiser})
    task = make_task(config)
    whole = train_on(config, make_source(), task, tmp_path / "whole")
    for stop in (6, 9, 11):
        with pytest.raises(RunCancelledError, match="stopped at step"):
            train_on(
                config,
                make_source(),
                task,
                tmp_path / "cut",
                TrainOptions(resume=stop > 6),
                sink=StopsAt(stop),
            )
    again = train_on(config, make_source(), task, tmp_path / "cut", TrainOptions(resume=True))
    assert_same(weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut"))
    assert [row.loss for row in whole.history.rows] == pytest.approx(
        [row.loss for row in again.history.rows], rel=1e-6
    )
    first, second = ((p / "model" / "weights.safetensors").read_bytes() for p in
                     (tmp_path / "whole", tmp_path / "cut"))  # fmt: skip
    assert first == second
    assert sorted(p.name for p in (tmp_path / "whole" / "checkpoints").iterdir()) == sorted(
        p.name for p in (tmp_path / "cut" / "checkpoints").iterdir()
    )
