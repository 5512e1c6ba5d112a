"""2-D networks: each head builds over several encoders, keeps the grid, and refuses odd sizes."""

import subprocess
import sys

import pytest
import torch

from lamella.core.errors import InputError, ModelError
from lamella.networks.registry import build_network, find_network, list_networks

HEADS = ("unet", "fpn", "pspnet", "deeplabv3plus", "upernet")
VIT, SWIN = "tu-vit_tiny_patch16_224", "tu-swin_tiny_patch4_window7_224"
ENCODERS = ("resnet18", "mobilenet_v2", "tu-convnext_atto", "tu-mobilenetv3_small_050")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("head", HEADS)
def test_logits_lie_on_the_image_grid(head, encoder):
    network = build_network(head, {"in_channels": 1, "out_channels": 3, "encoder": encoder}).eval()
    with torch.inference_mode():
        logits = network(torch.zeros(1, 1, 64, 96))
    assert tuple(logits.shape) == (1, 3, 64, 96)
    assert torch.isfinite(logits).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("head", ["compact_unet2d", *HEADS])
def test_odd_sizes_are_refused_with_the_sizes_that_fit(head):
    network = build_network(head, {"in_channels": 1, "out_channels": 2}).eval()
    with pytest.raises(InputError, match="50 x 70") as caught, torch.inference_mode():
        network(torch.zeros(1, 1, 50, 70))
    assert "pad it to" in caught.value.hint


def test_compact_unet_keeps_the_grid_and_its_size():
    network = build_network(
        "compact_unet2d", {"in_channels": 2, "out_channels": 3, "widths": [8, 16, 24]}
    ).eval()
    with torch.inference_mode():
        assert tuple(network(torch.zeros(2, 2, 20, 36)).shape) == (2, 3, 20, 36)


def test_compact_unet_is_local_so_tiles_agree_with_the_whole():
    network = build_network(
        "compact_unet2d", {"in_channels": 1, "out_channels": 1, "widths": [4, 8]}
    ).eval()
    image = torch.randn(1, 1, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = network(image)[..., 0:48, :]
        tile = network(image[..., 0:80, :])[..., 0:48, :]
    torch.testing.assert_close(whole, tile, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_an_unknown_encoder_names_its_neighbours():
    with pytest.raises(ModelError, match="unknown encoder 'resnet81'") as caught:
        build_network("unet", {"in_channels": 1, "out_channels": 1, "encoder": "resnet81"})
    assert "resnet18" in caught.value.hint


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("head", ["unet", "pspnet", "deeplabv3plus", "upernet"])
def test_a_plain_transformer_is_refused_by_heads_that_want_a_pyramid(head):
    arguments = {"in_channels": 1, "out_channels": 1, "encoder": "tu-vit_tiny_patch16_224"}
    with pytest.raises(ModelError, match="plain vision transformer") as caught:
        build_network(head, arguments)
    assert "dpt or fpn" in caught.value.hint


@pytest.mark.filterwarnings("ignore")
def test_an_encoder_for_one_size_of_image_is_refused():
    arguments = {"in_channels": 1, "out_channels": 1, "encoder": "tu-coatnet_nano_cc_224"}
    with pytest.raises(ModelError, match="coatnet_nano") as caught:
        build_network("unet", arguments)
    assert "list-backbones" in caught.value.hint


@pytest.mark.filterwarnings("ignore")
def test_an_encoder_that_cannot_be_dilated_names_the_heads_that_fit():
    arguments = {"in_channels": 1, "out_channels": 1, "encoder": SWIN}
    with pytest.raises(ModelError, match="DeepLabV3Plus can't be built") as caught:
        build_network("deeplabv3plus", arguments)
    assert "unet, fpn, pspnet, upernet" in caught.value.hint


@pytest.mark.filterwarnings("ignore")
def test_dpt_is_for_plain_transformers():
    arguments = {"in_channels": 1, "out_channels": 1, "encoder": "resnet18"}
    with pytest.raises(
        ModelError, match="DPT can't be built over the encoder 'resnet18'"
    ) as caught:
        build_network("dpt", arguments)
    assert "unet" in caught.value.hint


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("head", "encoder"),
    [("dpt", VIT), ("fpn", VIT), ("unet", SWIN)],
    ids=["dpt vit", "fpn vit", "unet swin"],
)
def test_transformers_take_images_of_any_size_and_channels(head, encoder):
    network = build_network(head, {"in_channels": 2, "out_channels": 3, "encoder": encoder}).eval()
    with torch.inference_mode():
        for shape in ((64, 96), (160, 32), (224, 224)):
            assert tuple(network(torch.randn(1, 2, *shape)).shape) == (1, 3, *shape)
        with pytest.raises(InputError, match="multiples of 32"):
            network(torch.zeros(1, 2, 48, 64))


def test_decoder_channels_must_match_the_depth():
    with pytest.raises(ModelError, match="decoder_channels"):
        build_network("unet", {"in_channels": 1, "out_channels": 1, "encoder_depth": 4})


def test_every_two_dimensional_network_is_listed():
    listed = {network.id for network in list_networks() if network.axes == "yx"}
    assert listed == {"compact_unet2d", "dpt", *HEADS}
    assert find_network("unet").axes == "yx"


def test_listing_networks_imports_no_torch():
    code = (
        "import sys; from lamella.networks.registry import list_networks; list_networks();"
        "print({'torch', 'timm', 'monai'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
