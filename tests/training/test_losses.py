"""Losses: they leave what nobody annotated alone, and are the field's own elsewhere."""

import functools

import monai.losses
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from lamella.core.errors import InputError
from lamella.training.losses import (
    DeepSupervision,
    bce,
    build_loss,
    cross_entropy,
    dice,
    focal,
    l1,
    mse,
    tversky,
)
from lamella.training.target import Target

N_CLASSES = 3

SOFTMAX = {
    "cross_entropy": cross_entropy,
    "cross_entropy_weighted": functools.partial(cross_entropy, class_weights=(0.5, 1.0, 3.0)),
    "cross_entropy_smooth": functools.partial(cross_entropy, label_smoothing=0.1),
    "focal": focal,
    "dice": dice,
    "dice_background": functools.partial(dice, include_background=True),
    "tversky": tversky,
}
SIGMOID = {
    "bce": bce,
    "bce_weighted": functools.partial(bce, positive_weight=(1.0, 2.0, 5.0)),
    "focal": functools.partial(focal, activation="sigmoid"),
    "dice": functools.partial(dice, activation="sigmoid"),
    "tversky": functools.partial(tversky, activation="sigmoid"),
    "l1": l1,
    "mse": functools.partial(mse, activation="sigmoid"),
}
ALL = [(name, loss, True) for name, loss in SOFTMAX.items()] + [
    (name, loss, False) for name, loss in SIGMOID.items()
]
IDS = [f"{name}-{'classes' if c else 'channels'}" for name, _, c in ALL]


def batch(seed, *, is_classes, share_valid=0.7, spatial=(4, 5)):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((2, N_CLASSES, *spatial), generator=generator)
    if is_classes:
        values = torch.randint(0, N_CLASSES, (2, *spatial), generator=generator)
    else:
        values = torch.randint(0, 2, logits.shape, generator=generator).float()
    valid = torch.rand(values.shape, generator=generator) < share_valid
    return logits, Target(values, valid, is_classes)


def hidden(target):
    """Where logits may have no influence."""
    if target.is_classes:
        return ~target.valid[:, None].expand(-1, N_CLASSES, *target.valid.shape[1:])
    return ~target.valid


@pytest.mark.parametrize(("name", "loss", "is_classes"), ALL, ids=IDS)
@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 0.9]))
def test_what_is_not_valid_has_no_influence(name, loss, is_classes, seed, share):
    logits, target = batch(seed, is_classes=is_classes, share_valid=share)
    mask = hidden(target)
    logits.requires_grad_()
    value = loss(logits, target)
    value.backward()
    assert torch.isfinite(value)
    assert not logits.grad[mask].any()
    # Neither other logits (NaN even) nor other target values there change a bit.
    other = torch.where(mask, torch.full_like(logits, torch.nan), logits.detach())
    assert loss(other, target) == value.detach()
    junk = torch.where(target.valid, target.values, 2 if is_classes else 0.7)
    same = Target(junk.to(target.values.dtype), target.valid, is_classes)
    assert loss(logits.detach(), same) == value.detach()


@pytest.mark.parametrize(("name", "loss", "is_classes"), ALL, ids=IDS)
def test_nothing_valid_is_zero_with_zero_gradient(name, loss, is_classes):
    logits, target = batch(0, is_classes=is_classes, share_valid=0.0)
    logits.requires_grad_()
    value = loss(logits, target)
    value.backward()
    assert value == 0
    assert not logits.grad.any()


@pytest.mark.parametrize(("name", "loss", "is_classes"), ALL, ids=IDS)
def test_half_precision_is_computed_in_single(name, loss, is_classes):
    logits, target = batch(1, is_classes=is_classes)
    value = loss(logits.bfloat16(), target)
    assert value.dtype == torch.float32
    assert value == loss(logits.bfloat16().float(), target)


@pytest.mark.parametrize(("name", "loss", "is_classes"), ALL, ids=IDS)
def test_better_predictions_cost_less(name, loss, is_classes):
    logits, target = batch(2, is_classes=is_classes, share_valid=1.0)
    right = target.as_channels(N_CLASSES).values
    good, bad = 8 * (2 * right - 1), 8 * (1 - 2 * right)
    if name == "l1":
        good, bad = right, right + 9
    assert loss(good, target) < loss(logits, target) < loss(bad, target)


# --- Where everything is valid they are the field's own ------------------------------------------


def test_cross_entropy_is_pytorchs_with_ignore_index():
    logits, target = batch(3, is_classes=True)
    labels = torch.where(target.valid, target.values, -100)
    weights = torch.tensor([0.5, 1.0, 3.0])
    for words, ours in (
        ({}, cross_entropy),
        ({"weight": weights}, SOFTMAX["cross_entropy_weighted"]),
        ({"label_smoothing": 0.1}, SOFTMAX["cross_entropy_smooth"]),
    ):
        torch.testing.assert_close(
            ours(logits, target), functional.cross_entropy(logits, labels, **words)
        )


def test_dice_and_tversky_are_monais():
    logits, target = batch(4, is_classes=True, share_valid=1.0)
    labels = target.values[:, None]
    theirs = monai.losses.DiceLoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1,
        smooth_dr=1,
    )  # fmt: skip
    torch.testing.assert_close(dice(logits, target), theirs(logits, labels))
    theirs = monai.losses.TverskyLoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=True, alpha=0.3, beta=0.7,
        smooth_nr=1, smooth_dr=1,
    )  # fmt: skip
    torch.testing.assert_close(tversky(logits, target), theirs(logits, labels))


def test_focal_is_monais():
    logits, target = batch(5, is_classes=False, share_valid=1.0)
    theirs = monai.losses.FocalLoss(gamma=2.0)(logits, target.values)
    torch.testing.assert_close(SIGMOID["focal"](logits, target), theirs)
    logits, target = batch(6, is_classes=True, share_valid=1.0)
    torch.testing.assert_close(focal(logits, target, gamma=0.0), cross_entropy(logits, target))


def test_a_class_nobody_looked_for_counts_in_no_mean():
    logits, target = batch(7, is_classes=False, share_valid=1.0)
    valid = target.valid.clone()
    valid[:, 2] = False
    masked = Target(target.values, valid, False)
    first = Target(target.values[:, :2], target.valid[:, :2], False)
    for loss in (SIGMOID["dice"], SIGMOID["bce"]):
        torch.testing.assert_close(loss(logits, masked), loss(logits[:, :2], first))


# --- Sums and scales -----------------------------------------------------------------------------


def test_weighted_terms_on_channels():
    loss = build_loss(
        [
            {"name": "bce", "channels": [0, 1]},
            {"name": "mse", "weight": 2.0, "channels": [2], "activation": "sigmoid"},
        ]
    )
    logits, target = batch(8, is_classes=False)
    parts = loss.parts(logits, target)
    assert set(parts) == {"bce", "mse"}
    head = Target(target.values[:, :2], target.valid[:, :2], False)
    tail = Target(target.values[:, 2:], target.valid[:, 2:], False)
    expected = bce(logits[:, :2], head) + 2 * mse(logits[:, 2:], tail, activation="sigmoid")
    torch.testing.assert_close(loss(logits, target), expected)


@pytest.mark.parametrize("is_classes", [True, False])
def test_deep_supervision_takes_nearest_voxels_of_labels_and_masks(is_classes):
    logits, target = batch(9, is_classes=is_classes, spatial=(8, 8))
    loss = functools.partial(dice, activation="softmax" if is_classes else "sigmoid")
    small = logits[..., ::2, ::2]
    part = Target(target.values[..., ::2, ::2], target.valid[..., ::2, ::2], is_classes)
    value = DeepSupervision(loss)([logits, small], target)
    torch.testing.assert_close(value, (loss(logits, target) + 0.5 * loss(small, part)) / 1.5)
    torch.testing.assert_close(DeepSupervision(loss)(logits, target), loss(logits, target))


def test_ignore_values_and_nan_are_not_valid():
    classes = Target.of_classes(torch.tensor([[0, 255, 1]]), ignore_value=255)
    assert classes.valid.tolist() == [[True, False, True]]
    channels = Target.of_channels(torch.tensor([[[0.0, torch.nan, 1.0]]]))
    assert channels.valid.tolist() == [[[True, False, True]]]


# --- Bad input -----------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="no loss 'dise'") as caught:
        build_loss([{"name": "dise"}])
    assert "dice" in caught.value.hint
    with pytest.raises(InputError, match="takes no gama"):
        build_loss([{"name": "focal", "gama": 1}])
    with pytest.raises(InputError, match="no terms"):
        build_loss([])
    logits, target = batch(10, is_classes=True)
    with pytest.raises(InputError, match="class 2"):
        dice(logits[:, :2], target)
    with pytest.raises(InputError, match="channels"):
        bce(logits[:, :2], batch(11, is_classes=False)[1])
    with pytest.raises(InputError, match="one class a voxel"):
        cross_entropy(logits, batch(11, is_classes=False)[1])
    with pytest.raises(InputError, match="mask"):
        Target(torch.zeros(1, 2), torch.zeros(1, 3, dtype=torch.bool), True)
