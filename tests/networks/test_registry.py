"""The registry builds what it lists, and says clearly what it does not take."""

import subprocess
import sys

import pytest
import torch

from lamella.core.errors import ModelError
from lamella.networks.registry import (
    UnknownNetworkError,
    build_network,
    find_network,
    list_networks,
    parse_arguments,
)

SMALL = {
    "compact_unet3d": {"widths": [4, 8]},
    "unet3d": {"channels": [4, 8, 16], "strides": [2, 2], "n_residual_units": 1},
    "basic_unet3d": {"features": [4, 4, 8, 8, 16, 4]},
    "dynunet": {
        "filters": [4, 8, 8],
        "strides": [1, [1, 2, 2], 2],
        "kernel_sizes": [3, [1, 3, 3], 3],
    },
    "segresnet": {"width": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    "mednext-s": {"width": 4},
    "mednext-b": {"width": 4, "kernel_size": 5},
    "mednext-m": {"width": 4},
    "mednext-l": {"width": 4},
}
IDS_3D = [network.id for network in list_networks() if network.axes == "zyx"]


def small(network_id):
    return {"in_channels": 1, "out_channels": 3} | SMALL[network_id]


def test_every_3d_network_has_a_small_example():
    assert set(IDS_3D) == set(SMALL)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("network_id", IDS_3D)
def test_builds_steps_saves_and_loads(network_id, tmp_path):
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    network = build_network(network_id, small(network_id))
    image = torch.randn(1, 1, 16, 32, 16)
    if network_id == "basic_unet3d":
        image = torch.randn(1, 1, 32, 32, 32)
    labels = torch.randint(0, 3, (1, *image.shape[2:]))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01)
    logits = network(image)
    assert logits.shape == (1, 3, *image.shape[2:])
    torch.nn.functional.cross_entropy(logits, labels).backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    before = [p.detach().clone() for p in network.parameters()]
    optimiser.step()
    assert any((p != old).any() for p, old in zip(network.parameters(), before, strict=True))

    state = {name: value.clone().contiguous() for name, value in network.state_dict().items()}
    save_file(state, str(tmp_path / "weights.safetensors"))
    again = build_network(network_id, small(network_id))
    again.load_state_dict(load_file(str(tmp_path / "weights.safetensors")))
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(image), network.eval()(image))


@pytest.mark.parametrize("network_id", ["unet3d", "basic_unet3d", "dynunet"])
@pytest.mark.parametrize("normalisation", ["instance", "batch", "group"])
def test_normalisations(network_id, normalisation):
    wide = {
        "unet3d": {"channels": [8, 16], "strides": [2]},
        "basic_unet3d": {"features": [8, 8, 8, 8, 8, 8]},
        "dynunet": {"filters": [8, 8, 8], "strides": [1, 2, 2], "kernel_sizes": [3, 3, 3]},
    }[network_id]
    arguments = {"in_channels": 1, "out_channels": 1, "normalisation": normalisation} | wide
    if (network_id, normalisation) == ("unet3d", "group"):
        with pytest.raises(ModelError, match="output layer"):
            build_network(network_id, arguments)
        return
    assert build_network(network_id, arguments) is not None


def test_unknown_network_names_the_nearest():
    with pytest.raises(UnknownNetworkError) as caught:
        build_network("mednext_s", {})
    assert "mednext-s" in caught.value.hint
    assert caught.value.code == "unknown_network"


def test_unknown_argument_names_the_nearest():
    with pytest.raises(ModelError) as caught:
        build_network("unet3d", {"in_channels": 1, "out_channels": 2, "chanels": [1, 2]})
    assert "'chanels'" in caught.value.message
    assert "channels" in caught.value.hint


@pytest.mark.parametrize(
    ("network_id", "arguments", "names"),
    [
        ("unet3d", {"in_channels": 1}, "out_channels"),
        ("unet3d", {"in_channels": "1", "out_channels": 2}, "in_channels"),
        ("unet3d", {"in_channels": 1.5, "out_channels": 2}, "in_channels"),
        ("unet3d", {"in_channels": True, "out_channels": 2}, "in_channels"),
        ("unet3d", {"in_channels": 0, "out_channels": 2}, "in_channels"),
        ("unet3d", {"in_channels": 1, "out_channels": 2, "strides": [2]}, "strides"),
        ("unet3d", {"in_channels": 1, "out_channels": 2, "dropout": 1.0}, "dropout"),
        ("dynunet", {"in_channels": 1, "out_channels": 2, "filters": [8, 8, 8, 8, 8]}, "strides"),
        ("segresnet", {"in_channels": 1, "out_channels": 2, "width": 12}, "width"),
        ("mednext-s", {"in_channels": 1, "out_channels": 2, "kernel_size": 4}, "kernel_size"),
        ("compact_unet3d", {"in_channels": 1, "out_channels": 2, "widths": object()}, "JSON"),
        ("compact_unet3d", {"in_channels": 1, "out_channels": 2, "widths": [8]}, "widths"),
    ],
)
def test_arguments_that_do_not_fit(network_id, arguments, names):
    with pytest.raises(ModelError, match=names):
        parse_arguments(network_id, arguments)


def test_published_sizes_of_mednext():
    """Parameters of kernel 3, millions, as the paper's table 1 gives them."""
    for size, millions in (("s", 5.6), ("b", 10.5), ("m", 17.6), ("l", 61.8)):
        with torch.device("meta"):
            network = build_network(f"mednext-{size}", {"in_channels": 1, "out_channels": 2})
        count = sum(parameter.numel() for parameter in network.parameters()) / 1e6
        assert count == pytest.approx(millions, rel=0.06)


def test_compact_network_is_local():
    """Far from a change the logits do not change: no statistics of the tile."""
    torch.manual_seed(0)
    network = build_network("compact_unet3d", small("compact_unet3d")).eval()
    image = torch.randn(1, 1, 16, 16, 48)
    changed = image.clone()
    changed[..., 40:] = 5.0
    with torch.no_grad():
        torch.testing.assert_close(network(image)[..., :16], network(changed)[..., :16])


def test_listing_imports_no_torch():
    code = (
        "import sys; from lamella.networks.registry import list_networks, parse_arguments;"
        "assert len(list_networks()) > 8;"
        "parse_arguments('unet3d', {'in_channels': 1, 'out_channels': 2});"
        "assert not {'torch', 'monai', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_find_network():
    assert find_network("dynunet").axes == "zyx"
    assert find_network("dynunet").missing == ()
