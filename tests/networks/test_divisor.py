"""Divisors are what networks and their traces take, found without asking how they are made."""

import pytest
import torch

from lamella.core.errors import ModelError
from lamella.networks.divisor import find_divisor, fitted_tile
from lamella.networks.registry import build_network


@pytest.mark.parametrize(
    ("network_id", "arguments", "tile", "divisor"),
    [
        ("compact_unet2d", {"widths": [4, 4, 4, 4]}, (64, 64), (8, 8)),
        ("compact_unet3d", {"widths": [2, 2, 2]}, (16, 64, 64), (4, 4, 4)),
        ("unet", {"encoder": "resnet18"}, (64, 64), (32, 32)),
        (
            "dynunet",
            {
                "filters": [4, 4, 4],
                "strides": [1, [1, 2, 2], 2],
                "kernel_sizes": [3, 3, 3],
            },
            (16, 32, 32),
            (2, 4, 4),
        ),
        # Pads odd extents, by a decision that its trace does not hold.
        ("basic_unet3d", {"features": [4, 4, 4, 4, 4, 4]}, (32, 32, 32), (16, 16, 16)),
    ],
)
def test_divisors(network_id, arguments, tile, divisor):
    network = build_network(network_id, {"in_channels": 1, "out_channels": 2, **arguments})
    network.train()
    assert find_divisor(network, 1, tile) == divisor
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())


class OneSize(torch.nn.Module):
    """A network for images of 48 x 48 alone."""

    def __init__(self, size):
        super().__init__()
        self.size = size
        self.convolution = torch.nn.Conv2d(1, 2, 1)

    def forward(self, image):
        if image.shape[-1] != self.size or image.shape[-2] != self.size:
            raise ValueError(f"only {self.size}")
        return self.convolution(image)


def test_a_network_of_one_size_is_fixed_to_it():
    # Its trace takes anything, the network does not.
    assert find_divisor(OneSize(48), 1, (48, 48)) == (48, 48)


def test_a_network_that_fails_on_its_tile():
    with pytest.raises(ModelError, match="fails on a tile of 40 x 40: only 48"):
        find_divisor(OneSize(48), 1, (40, 40))


def test_tiles_grow_to_fit():
    assert fitted_tile((31, 64, 65), (1, 32, 32)) == (31, 64, 96)
