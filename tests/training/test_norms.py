"""What a training starts from computes the same as the model it was taken from."""

import copy

import pytest
import torch
from torch import nn

from lamella.models.export import fold_batch_norms, round_to_half
from lamella.networks.compact import CompactUNet
from lamella.training.norms import folded_norms, unfold_norms


def trained(n_spatial, seed=0):
    """A network whose normalisations have seen data and are no identity."""
    torch.manual_seed(seed)
    network = CompactUNet(n_spatial, 1, 2, widths=(4, 6, 8))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.2, 3.0)
            nn.init.normal_(module.bias)
    network.train()
    with torch.no_grad():
        for batch in batches(n_spatial, 60, seed=seed + 1):
            network(batch)
    return network.eval()


def batches(n_spatial, n, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (4, 1, *(32,) * n_spatial) if n_spatial == 2 else (4, 1, *(16,) * 3)
    return [2 + 3 * torch.randn(shape, generator=generator) for _ in range(n)]


@torch.no_grad()
def off(network, reference, images):
    """Share of the reference's variance that a network's outputs miss."""
    expected = reference(images)
    return float((network(images) - expected).square().mean() / expected.var())


@pytest.mark.parametrize("n_spatial", [2, 3])
@pytest.mark.parametrize("store", [fold_batch_norms, round_to_half])
def test_inference_is_unchanged_and_training_resembles_it(n_spatial, store):
    reference = trained(n_spatial)
    stored = copy.deepcopy(reference)
    store(stored)
    images = batches(n_spatial, 1, seed=99)[0]
    assert off(stored.eval(), reference, images) < 1e-4
    assert off(copy.deepcopy(stored).train(), reference, images) > 0.2, "nothing to mend"
    before = stored(images)
    assert unfold_norms(stored, batches(n_spatial, 8, seed=5)) == 10
    torch.testing.assert_close(stored.eval()(images), before, rtol=1e-4, atol=1e-4)
    assert off(stored.train(), reference, images) < 0.02
    assert not folded_norms(stored)


def test_statistics_are_those_that_were_folded_away():
    reference = trained(2)
    stored = copy.deepcopy(reference)
    fold_batch_norms(stored)
    unfold_norms(stored, batches(2, 8, seed=5))
    for own, other in zip(stored.modules(), reference.modules(), strict=True):
        if isinstance(other, nn.BatchNorm2d):
            assert torch.allclose(own.weight, other.weight.abs(), rtol=0.15)
            assert torch.allclose(own.bias, other.bias, atol=0.3)


def test_what_is_fresh_or_not_folded_is_left_alone():
    fresh, whole = CompactUNet(2, 1, 2, widths=(4, 6)), trained(2)
    for network in (fresh, whole):
        before = copy.deepcopy(network.state_dict())
        assert unfold_norms(network, iter(())) == 0
        assert all(torch.equal(before[name], v) for name, v in network.state_dict().items())


def test_the_mode_is_as_it_was():
    network = trained(2)
    fold_batch_norms(network)
    network.train()
    unfold_norms(network, batches(2, 1, seed=1))
    assert network.training
