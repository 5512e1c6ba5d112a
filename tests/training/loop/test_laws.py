"""Laws of the loop: workers, devices, time, memory."""

import time

import numpy as np
import psutil
import pytest
import tifffile
import torch

from lamella.training.compose import compose
from lamella.training.configuration import ScheduleConfig
from lamella.training.patches import PatchNumbers, make_loader
from lamella.training.run import build_data, train_on
from lamella.training.schedule import factor_at
from lamella.training.session import Session
from lamella.training.state import Clock, LoopState


@pytest.fixture
def pairs(tmp_path):
    """Four images with discs, and a configuration that reads them."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:48, :48]
    for i in range(4):
        labels = ((y - rng.integers(10, 38)) ** 2 + (x - rng.integers(10, 38)) ** 2 < 80) * 1
        image = rng.normal(100, 10, labels.shape) + 60 * labels
        for name, array in (("images", image.astype(np.float32)), ("labels", labels)):
            (tmp_path / name).mkdir(exist_ok=True)
            tifffile.imwrite(tmp_path / name / f"{'abcd'[i]}.tif", array.astype(
                np.float32 if name == "images" else np.uint8))  # fmt: skip
    return compose(
        "em2d_semantic",
        [
            f"data.root={tmp_path}", "task.classes=[disc]", "network=compact_unet2d",
            "network.arguments.widths=[4,8]", "trainer.patch=[32,32]", "trainer.batch_size=2",
            "trainer.steps=4", "trainer.validate_every=2", "trainer.devices=cpu",
            "model.tile=[32,32]", "trainer.loggers=[]",
        ],
    )  # fmt: skip


def batches(config, workers, world=1, rank=0):
    from lamella.training.checking import augment_options
    from lamella.training.chunk_order import PatchOrder
    from lamella.training.patches import PatchDataset

    source, task = build_data(config)
    order = PatchOrder(seed=config.seed, batch=2 * world)
    dataset = PatchDataset(source, task, order, (32, 32), augment_options(config))
    numbers = PatchNumbers(12, rank=rank, world=world)
    loader = make_loader(dataset, numbers, batch_size=2, workers=workers)
    found = []
    for epoch in range(2):
        numbers.set_epoch(epoch)
        found += list(loader)
    return found


def test_any_number_of_workers_gives_the_same_patches(pairs):
    alone, two = batches(pairs, 0), batches(pairs, 2)
    assert [b["number"].tolist() for b in alone] == [[i, i + 1] for i in range(0, 24, 2)]
    for a, b in zip(alone, two, strict=True):
        for name in ("number", "image", "values", "valid"):
            assert torch.equal(a[name], b[name])


def test_devices_share_the_patches_of_an_epoch(pairs):
    whole = {int(n) for b in batches(pairs, 0) for n in b["number"]}
    parts = [
        [int(n) for b in batches(pairs, 0, world=2, rank=rank) for n in b["number"]]
        for rank in (0, 1)
    ]
    assert parts[0] == list(range(0, 24, 2))
    assert parts[1] == list(range(1, 24, 2))
    assert set(parts[0]) | set(parts[1]) == whole


def test_an_epoch_starts_where_the_one_before_ended():
    numbers = PatchNumbers(8)
    numbers.first_epoch = 3
    assert list(numbers) == list(range(24, 32))
    numbers.set_epoch(1)
    assert list(numbers) == list(range(32, 40))


def test_waiting_for_data_is_measured(make_task, make_config):
    class Slow(torch.utils.data.Dataset):
        def __getitem__(self, number):
            time.sleep(0.05)
            return {"number": number}

    loader = make_loader(Slow(), PatchNumbers(5), batch_size=1, workers=0)
    list(loader)
    # The first batch does not count: for it, workers have to start.
    assert 0.19 < loader.take_waited() < 10
    assert loader.take_waited() == 0


def test_a_time_limit_ends_in_time_with_the_rate_down(
    make_config, make_source, make_task, tmp_path
):
    config = make_config(trainer={"steps": 1_000_000, "minutes": 0.1, "validate_every": 50})
    began = time.monotonic()
    done = train_on(config, make_source(), make_task(config), tmp_path / "run")
    assert done.summary["ended_by"] == "time"
    assert done.summary["state"] == "finished"
    assert not done.summary["is_reproducible"]
    assert 10 < done.summary["steps"] < 1_000_000
    # Writing the model takes as long as it takes; steps end before the limit.
    assert done.history.rows[-1].time_s < 30
    assert time.monotonic() - began < 60
    rates = [row.learning_rate for row in done.history.rows]
    assert rates[-1] < 0.1 * max(rates)


def test_with_a_time_limit_the_steps_that_fit_into_it_are_expected(make_config, tmp_path):
    config = make_config(trainer={"steps": 1000})
    nothing = dict.fromkeys(("task", "loss", "dataset", "numbers", "loader", "history", "sink"))
    state = LoopState(step=100)
    free = Session(config, tmp_path, **nothing, state=state)
    assert free.expected_steps == 1000
    # 40 of the 57 seconds that steps may take are gone.
    late = Clock(minutes=1.0, before_s=40.0)
    hurried = Session(config, tmp_path, **nothing, state=state, clock=late)
    assert hurried.expected_steps == pytest.approx(142, abs=3)
    begun = Session(config, tmp_path, **nothing, clock=late)
    assert begun.expected_steps == 1000


def test_patience_ends_a_training_that_gets_no_better(
    make_config, make_source, make_task, tmp_path
):
    config = make_config(
        optimiser={"learning_rate": 1e-12},
        trainer={"steps": 100, "validate_every": 2, "patience": 2, "ema_decay": 0},
    )
    done = train_on(config, make_source(), make_task(config), tmp_path / "run")
    assert done.summary["ended_by"] == "patience"
    assert done.summary["steps"] < 100


def test_memory_is_flat_over_a_thousand_steps(make_config, make_source, make_task, tmp_path):
    seen = {}

    class Sink:
        def emit(self, event):
            if getattr(event, "stage", "") == "training" and event.done in (300, 1000):
                seen[event.done] = psutil.Process().memory_info().rss

        def check(self):
            pass

    config = make_config(
        trainer={"steps": 1000, "validate_every": 100, "patch": [16, 16], "batch_size": 1},
        model={"tile": [16, 16], "example": False},
        augmentation={"enabled": False},
    )
    source = make_source()
    source.log = _Nothing()
    train_on(config, source, make_task(config), tmp_path / "run", sink=Sink())
    assert seen[1000] - seen[300] < 16 * 2**20


class _Nothing:
    def append(self, value):
        pass


@pytest.mark.parametrize("kind", ["constant", "cosine", "poly"])
def test_rates_rise_then_fall(kind):
    config = ScheduleConfig(kind=kind, warmup_fraction=0.1, final_fraction=0.05)
    shares = np.linspace(0, 1, 101)
    factors = [factor_at(config, share, 0.01) for share in shares]
    assert 0 < factors[0] <= 0.11
    assert np.all(np.diff(factors[:10]) > 0)
    assert np.all(np.diff(factors[11:]) <= 1e-12)
    assert factors[-1] == pytest.approx(1.0 if kind == "constant" else 0.05)
    assert max(factors) == pytest.approx(1.0)


def test_a_clock_without_limit_counts_steps():
    assert Clock().share(25, 100) == 0.25
    clock = Clock(minutes=1.0, before_s=40.0)
    assert clock.share(1, 100) == pytest.approx(40 / 57, rel=0.01)
    clock.validation_s = 1000.0
    assert clock.budget_s == pytest.approx(0.6 * 60)
