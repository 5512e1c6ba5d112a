"""Published weights: what is known of them, and how they are fetched (from a prepared cache)."""

import pytest
import torch

from lamella.core.errors import InputError, ModelError, OfflineError
from lamella.networks.pretrained import load_published, published_weights, published_weights_of
from lamella.networks.registry import build_network

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def put(cache, repository, revision, state):
    """Lay weights into the cache as the hub's client does."""
    from safetensors.torch import save_file

    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    save_file({k: v.clone().contiguous() for k, v in state.items()}, snapshot / "model.safetensors")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)


def test_what_is_published_is_told_without_a_network(cache):
    known = published_weights("tu-convnext_atto")
    assert known.licence == "apache-2.0"
    assert known.address.endswith("timm/convnext_atto.d2_in1k")
    assert "licence: apache-2.0" in known.note
    assert published_weights("tu-convnextv2_atto").licence == "cc-by-nc-4.0"
    assert published_weights("resnet18").address.endswith("smp-hub/resnet18.imagenet")


@pytest.mark.parametrize("encoder", ["resnet18", "tu-convnext_atto", "tu-vit_tiny_patch16_224"])
def test_without_a_network_the_way_out_is_told(cache, encoder):
    arguments = {"in_channels": 1, "out_channels": 2, "encoder": encoder}
    network = build_network("fpn", arguments)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(OfflineError, match="could not be fetched from https://hugg") as caught:
        load_published(network, "fpn", arguments)
    assert "network.pretrained=false" in caught.value.hint
    assert all(torch.equal(before[n], v) for n, v in network.state_dict().items())


@pytest.mark.parametrize("n_channels", [1, 3, 4])
def test_weights_of_smp_arrive(cache, n_channels):
    from segmentation_models_pytorch.encoders import encoders, get_encoder

    donor = get_encoder("resnet18", in_channels=3)
    settings = encoders["resnet18"]["pretrained_settings"]["imagenet"]
    # Published files hold the classifier too, which the encoder drops by itself.
    classifier = {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    put(cache, settings["repo_id"], settings["revision"], donor.state_dict() | classifier)
    arguments = {"in_channels": n_channels, "out_channels": 2}
    network = build_network("unet", arguments)
    published = load_published(network, "unet", arguments)
    assert published.encoder == "resnet18"
    found, expected = network.encoder.layer1[0].conv1.weight, donor.layer1[0].conv1.weight
    assert torch.equal(found, expected)
    if n_channels == 1:
        summed = donor.conv1.weight.sum(1, keepdim=True)
        torch.testing.assert_close(network.encoder.conv1.weight, summed)


@pytest.mark.parametrize(
    ("head", "encoder", "name"),
    [
        ("unet", "tu-convnext_atto", "stages.1.blocks.0.mlp.fc1.weight"),
        ("dpt", "tu-vit_tiny_patch16_224", "blocks.3.mlp.fc1.weight"),
    ],
)
def test_weights_of_timm_arrive(cache, head, encoder, name):
    import timm

    donor = timm.create_model(encoder.removeprefix("tu-"))
    known = timm.get_pretrained_cfg(encoder.removeprefix("tu-"))
    state = donor.state_dict()
    put(cache, known.hf_hub_id, "0" * 40, state)
    arguments = {"in_channels": 1, "out_channels": 2, "encoder": encoder}
    network = build_network(head, arguments)
    load_published(network, head, arguments)
    found = network.encoder.state_dict()
    ours = next(k for k in found if k.replace("stages_", "stages.").endswith(name))
    assert torch.equal(found[ours], state[name])


def test_networks_without_an_encoder_are_refused():
    with pytest.raises(InputError, match="'compact_unet2d' has no encoder"):
        published_weights_of("compact_unet2d", {"in_channels": 1, "out_channels": 2})
    with pytest.raises(InputError, match="nobody has published"):
        published_weights("tu-resnetv2_50d")
    with pytest.raises(ModelError, match="unknown encoder"):
        published_weights("tu-resnot")
