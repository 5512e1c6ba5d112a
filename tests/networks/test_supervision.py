"""Deep supervision: several outputs while learning, one afterwards, and no trace in the card."""

import copy
import gc
import io

import pytest
import torch

from lamella.core.errors import InputError, ModelError
from lamella.networks.registry import build_network
from lamella.networks.supervision import inference_network
from lamella.training.losses import DeepSupervision, build_loss
from lamella.training.target import Target

DYNUNET = {"filters": [4, 8, 8, 8], "strides": [1, [1, 2, 2], 2, 2], "kernel_sizes": [3] * 4}
CASES = [
    ("dynunet", DYNUNET, [(32, 32, 16), (32, 16, 8), (16, 8, 4)]),
    *(
        (f"mednext-{size}", {"width": 4, "kernel_size": kernel}, None)
        for size, kernel in (("s", 3), ("b", 5), ("m", 3), ("l", 3))
    ),
]
IDS = [name for name, _, _ in CASES]
HALVES = [(32, 32, 16), (16, 16, 8), (8, 8, 4), (4, 4, 2), (2, 2, 1)]


def build(network_id, more, **arguments):
    torch.manual_seed(0)
    arguments = {"in_channels": 2, "out_channels": 3, "deep_supervision": True, **more, **arguments}
    return arguments, build_network(network_id, arguments)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("network_id", "more", "shapes"), CASES, ids=IDS)
def test_outputs_of_all_levels_learn(network_id, more, shapes):
    _, network = build(network_id, more)
    image = torch.randn(1, 2, 32, 32, 16)
    outputs = network(image)
    assert [tuple(logits.shape[2:]) for logits in outputs] == (shapes or HALVES)
    assert all(logits.shape[:2] == (1, 3) for logits in outputs)
    loss = DeepSupervision(build_loss([{"name": "cross_entropy"}, {"name": "dice"}]))
    loss(outputs, Target.of_classes(torch.randint(0, 3, (1, 32, 32, 16)))).backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("network_id", "more", "shapes"), CASES, ids=IDS)
def test_the_network_of_the_card_gives_the_same_without_the_heads(network_id, more, shapes):
    arguments, network = build(network_id, more)
    image = torch.randn(1, 2, 32, 32, 16)
    slim_arguments, slim = inference_network(network_id, arguments, network.state_dict())
    assert "deep_supervision" not in slim_arguments
    assert not slim.training
    with torch.no_grad():
        expected = network.eval()(image)
        assert isinstance(expected, torch.Tensor)
        torch.testing.assert_close(slim(image), expected, rtol=0, atol=0)
    n_slim, n_all = (sum(p.numel() for p in n.parameters()) for n in (slim, network))
    assert n_slim < n_all
    again_arguments, again = inference_network(network_id, slim_arguments, slim.state_dict())
    assert again_arguments == slim_arguments
    assert set(again.state_dict()) == set(slim.state_dict())


@pytest.mark.filterwarnings("ignore")
def test_nothing_of_a_step_stays_in_the_network():
    _, network = build("dynunet", DYNUNET)
    alive = []
    for _ in range(3):
        network(torch.randn(1, 2, 16, 16, 16))[0].sum().backward()
        gc.collect()
        alive.append(sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects()))
    assert alive[1] == alive[2]
    copy.deepcopy(network)
    torch.save(network.state_dict(), io.BytesIO())


@pytest.mark.filterwarnings("ignore")
def test_weights_of_another_network_are_refused():
    arguments, network = build("mednext-s", {"width": 4})
    state = dict(network.state_dict())
    with pytest.raises(ModelError, match="MedNeXt S"):
        inference_network("mednext-s", arguments | {"width": 8}, state)
    with pytest.raises(ModelError, match="1 are missing"):
        inference_network(
            "mednext-s", arguments, {k: v for k, v in state.items() if k != "stem.weight"}
        )
    with pytest.raises(ModelError, match="1 unknown"):
        inference_network("mednext-s", arguments, state | {"stem.scale": torch.zeros(1)})


@pytest.mark.filterwarnings("ignore")
def test_networks_without_such_heads_pass_through():
    arguments = {"in_channels": 1, "out_channels": 2, "widths": [4, 8]}
    network = build_network("compact_unet2d", arguments)
    slim_arguments, slim = inference_network("compact_unet2d", arguments, network.state_dict())
    assert slim_arguments == arguments
    image = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(slim(image), network.eval()(image))


@pytest.mark.filterwarnings("ignore")
def test_a_volume_that_ends_in_one_voxel_is_refused():
    _, network = build("mednext-s", {"width": 4})
    with pytest.raises(InputError, match="16 x 16 x 16") as caught:
        network(torch.zeros(1, 2, 16, 16, 16))
    assert "32 voxels" in caught.value.hint
