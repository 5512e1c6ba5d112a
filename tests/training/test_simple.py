"""The plain training loop: its loss against arithmetic, its runs against each other."""

import numpy as np
import pytest
import torch

from lamella.core.errors import InputError, RunCancelledError
from lamella.core.progress import SilentSink
from lamella.training.simple import LoopOptions, segmentation_loss, train


def draw_blobs(rng, n):
    labels = (rng.random((n, 8, 8)) < 0.4).astype(np.uint8)
    noise = rng.normal(0, 0.3, labels.shape)
    return (labels + noise).astype(np.float32)[:, None], labels


def small_network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
        torch.nn.Conv2d(4, 2, 1),
    )  # fmt: skip


def test_perfect_logits_cost_nothing():
    labels = torch.tensor([[[0, 1], [1, 0]]])
    logits = torch.stack([(labels == value) * 40.0 for value in (0, 1)], dim=1)
    assert float(segmentation_loss(logits, labels)) == pytest.approx(0, abs=1e-6)


def test_uniform_logits_cost_what_arithmetic_says():
    labels = torch.tensor([[[0, 1], [1, 0]]])
    loss = segmentation_loss(torch.zeros(1, 2, 2, 2), labels)
    # ln 2, and 1 - (2 * 0.5 * 2 + 1) / (0.5 * 4 + 2 + 1)
    assert float(loss) == pytest.approx(np.log(2) + 1 - 3 / 5)


def test_ignored_voxels_count_nowhere():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 4, 4, 4), torch.randint(0, 3, (2, 4, 4, 4))
    labels[:, :2] = 255
    changed = logits.clone()
    changed[:, :, :2] += torch.randn(2, 3, 2, 4, 4)
    first, second = (segmentation_loss(x, labels, ignore_label=255) for x in (logits, changed))
    assert float(first) == pytest.approx(float(second))
    nothing = segmentation_loss(
        logits, torch.full_like(labels, 255), ignore_label=255, dice_weight=0
    )
    assert float(nothing) == 0


def test_training_lowers_the_loss_and_ends_in_evaluation_mode():
    network = small_network()
    log = train(network, draw_blobs, LoopOptions(n_steps=60, batch_size=4, learning_rate=0.02))
    assert np.mean(log.losses[-5:]) < 0.6 * np.mean(log.losses[:5])
    assert not network.training
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_same_seed_same_weights(precision):
    networks = [small_network() for _ in range(2)]
    for network in networks:
        train(network, draw_blobs, LoopOptions(n_steps=5, seed=3, precision=precision))
    first, second = (network.state_dict() for network in networks)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_steps_are_reported_and_can_be_stopped():
    heard = []
    train(
        small_network(), draw_blobs, LoopOptions(n_steps=3),
        on_step=lambda step, _loss, averaged: heard.append((step, averaged.training)),
    )  # fmt: skip
    assert heard == [(1, False), (2, False), (3, False)]
    sink = SilentSink()
    sink.token.cancel()
    with pytest.raises(RunCancelledError):
        train(small_network(), draw_blobs, LoopOptions(n_steps=3), sink=sink)


def test_a_loss_that_is_no_number_stops_the_training():
    def draw_nothing(rng, n):
        images, labels = draw_blobs(rng, n)
        return images * np.float32("nan"), labels

    with pytest.raises(InputError, match="loss"):
        train(small_network(), draw_nothing, LoopOptions(n_steps=3))


@pytest.mark.parametrize("wrong", [{"n_steps": 0}, {"n_steps": 1, "ema_decay": 1.0}])
def test_impossible_options(wrong):
    with pytest.raises(InputError):
        LoopOptions(**wrong)
