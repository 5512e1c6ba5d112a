"""Every head over several families of encoders, and every MedNeXt: learnt, saved, loaded elsewhere.

Each network trains a step, is written as a model folder, and is loaded by one fresh process that
knows nothing but the folders; what it predicts there is what it predicted here.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from lamella.core.errors import ModelError
from lamella.models.folder import ModelFolder, write_model_folder
from lamella.networks.registry import build_network, find_network
from lamella.training.losses import DeepSupervision, build_loss
from lamella.training.target import Target
from lamella.wire.card import ClassDoc, ModelCard, NetworkDoc, TrainingDoc

PYRAMIDS = {
    "resnet": "resnet18",
    "efficientnet": "tu-efficientnet_lite0",
    "convnext": "tu-convnext_atto",
    "mobilenetv3": "tu-mobilenetv3_small_050",
    "regnet": "tu-regnetx_002",
}
SWIN = "tu-swin_tiny_patch4_window7_224"
VIT = "tu-vit_tiny_patch16_224"
DEIT = "tu-deit_tiny_patch16_224"
SMALL_UNET = {"decoder_channels": [32, 32, 16, 16, 8]}
CASES = [
    *(("unet", family, SMALL_UNET) for family in PYRAMIDS),
    *(("pspnet", family, {}) for family in PYRAMIDS),
    *(("deeplabv3plus", family, {}) for family in PYRAMIDS),
    *(("upernet", family, {}) for family in PYRAMIDS),
    *(("fpn", family, {}) for family in ("resnet", "convnext")),
]
CHANNELS = (1, 2, 5)
FRESH = """
import json, sys
import numpy as np
import torch
from lamella.models.folder import ModelFolder
torch.set_num_threads(1)
for path in json.loads(sys.stdin.read()):
    folder = ModelFolder.open(path)
    image = torch.from_numpy(np.load(path + "-image.npy"))
    with torch.no_grad():
        np.save(path + "-logits.npy", folder.load_network()(image).numpy())
"""


def card_of(network_id, arguments, tile, divisor):
    axes = find_network(network_id).axes
    return ModelCard(
        id=f"{network_id}-small",
        title="Small",
        description="A step of training.",
        task="semantic",
        axes=axes,
        n_channels=arguments["in_channels"],
        classes=(ClassDoc(value=0, name="background"), ClassDoc(value=1, name="thing")),
        network=NetworkDoc(id=network_id, arguments=arguments),
        n_outputs=2,
        tile=(tile,) * len(axes),
        divisor=(divisor,) * len(axes),
        licence="CC0-1.0",
        training=TrainingDoc(data="noise", data_licence="CC0-1.0", recipe="a step"),
    )


def trained(network_id, arguments, tile, *, folder, divisor=32):
    """Build, train a step, write; the image and the logits lie beside the folder."""
    torch.manual_seed(0)
    arguments = {"in_channels": 1, "out_channels": 2, **arguments}
    network = build_network(network_id, arguments)
    shape = (tile,) * len(find_network(network_id).axes)
    image = torch.randn(2, arguments["in_channels"], *shape)
    labels = (image.mean(1) > 0).long()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)
    loss = DeepSupervision(build_loss([{"name": "cross_entropy"}, {"name": "dice"}]))
    value = loss(network(image), Target.of_classes(labels))
    value.backward()
    before = [p.detach().clone() for p in network.parameters()]
    optimiser.step()
    assert torch.isfinite(value)
    assert any((p != old).any() for p, old in zip(network.parameters(), before, strict=True))
    if arguments.pop("deep_supervision", False):
        from lamella.networks.supervision import inference_network

        arguments, network = inference_network(network_id, arguments, network.state_dict())
    written = write_model_folder(folder, card_of(network_id, arguments, tile, divisor), network)
    with torch.no_grad():
        np.save(f"{folder}-expected.npy", network.eval()(image).numpy())
    np.save(f"{folder}-image.npy", image.numpy())
    return written


def check_in_a_fresh_process(folders):
    paths = [str(folder) for folder in folders]
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FRESH],
        input=json.dumps(paths),
        text=True,
        check=True,
    )
    for path in paths:
        np.testing.assert_allclose(
            np.load(f"{path}-logits.npy"), np.load(f"{path}-expected.npy"), rtol=0, atol=1e-5
        )


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore")
def test_heads_over_families_of_encoders(tmp_path):
    folders = []
    for number, (head, family, more) in enumerate(CASES):
        arguments = {
            "encoder": PYRAMIDS[family],
            "in_channels": CHANNELS[number % len(CHANNELS)],
            **more,
        }
        folders.append(tmp_path / f"{head}-{family}")
        assert trained(head, arguments, 64, folder=folders[-1]).has_graph
    check_in_a_fresh_process(folders)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_heads_over_transformers(tmp_path):
    """Their graphs may hold for one size; then there is none, and the card says so."""
    folders = []
    for head, encoder, more in (
        ("unet", SWIN, SMALL_UNET),
        ("upernet", SWIN, {}),
        ("fpn", VIT, {}),
        ("dpt", VIT, {"fusion_channels": 32, "intermediate_channels": [16, 16, 32, 32]}),
        ("fpn", DEIT, {}),
    ):
        folders.append(tmp_path / f"{head}-{encoder}")
        written = trained(head, {"encoder": encoder, **more}, 64, folder=folders[-1])
        assert written.has_graph == ("PyTorch only" not in written.card.training.notes)
    check_in_a_fresh_process(folders)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_size_of_mednext(tmp_path):
    folders = []
    for size, kernel in (("s", 3), ("s", 5), ("b", 3), ("m", 5), ("l", 3)):
        arguments = {"width": 4, "kernel_size": kernel, "deep_supervision": True}
        folders.append(tmp_path / f"{size}{kernel}")
        written = trained(f"mednext-{size}", arguments, 32, folder=folders[-1], divisor=16)
        assert written.has_graph
        assert "deep_supervision" not in written.card.network.arguments
    check_in_a_fresh_process(folders)


@pytest.mark.filterwarnings("ignore")
def test_one_of_each_kind(tmp_path):
    folders = [tmp_path / name for name in ("convolutions", "transformer", "volume")]
    trained("upernet", {"encoder": "tu-convnext_atto", "in_channels": 3}, 64, folder=folders[0])
    transformer = trained("fpn", {"encoder": VIT}, 64, folder=folders[1])
    trained("mednext-s", {"width": 4, "deep_supervision": True}, 32, folder=folders[2], divisor=16)
    assert transformer.has_graph == ("PyTorch only" not in transformer.card.training.notes)
    check_in_a_fresh_process(folders)


@pytest.mark.filterwarnings("ignore")
def test_a_folder_without_a_graph_is_whole_and_runs(tmp_path):
    """What of a transformer cannot be a graph is segmented by PyTorch."""
    from lamella.engines.engine import EngineJob
    from lamella.engines.lamella.engine import LamellaEngine
    from lamella.testing.engine import RecordingSink
    from lamella.volume import Volume
    from lamella.wire.request import InputDoc, SegmentRequest

    model = trained("unet", {"encoder": SWIN, **SMALL_UNET}, 64, folder=tmp_path / "model")
    assert not model.has_graph
    assert set(model.card.files) == {"weights.safetensors"}
    assert "runs in PyTorch only" in model.card.training.notes
    image = np.random.default_rng(0).normal(size=(80, 100)).astype(np.float32)
    request = SegmentRequest(input=InputDoc(path="noise"), model=model.card.id)
    (tmp_path / "run").mkdir()
    volume = Volume.from_array(image, spacing=(1.0, 1.0), unit="um")
    result = LamellaEngine().segment(
        EngineJob(volume, request, model, tmp_path / "run"), RecordingSink()
    )
    assert result.labels.load().shape == image.shape
    document = (model.path / "model.json").read_text()
    half = document.replace('"weights.safetensors":', '"network.xml": "00", "weights.safetensors":')
    (model.path / "model.json").write_text(half)
    with pytest.raises(ModelError, match=r"lists no network\.bin"):
        ModelFolder.open(model.path)
