"""ONNX graphs are the networks they were made of, on any batch and extent, or are not written."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import ModelError
from lamella.models.onnx_graph import (
    OPSET,
    DynamicPool,
    save_onnx,
    save_torchscript,
    trace_network,
)
from lamella.networks.registry import build_network
from lamella.wire.card import ModelCard

_SPEC = importlib.util.spec_from_file_location(
    "exported_models_onnx", Path(__file__).with_name("exported_models.py")
)
made = importlib.util.module_from_spec(_SPEC)
sys.modules["exported_models_onnx"] = made
_SPEC.loader.exec_module(made)


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    folder = made.make_model(tmp_path_factory.mktemp("models") / "m", "multilabel-3d")
    return trace_network(folder.load_network(), folder.card)


@given(n=st.integers(1, 40), k=st.integers(1, 9))
def test_pools_are_those_of_pytorch(n, k):
    image = torch.rand(1, 2, n, n + 3)
    expected = torch.nn.AdaptiveAvgPool2d((k, k + 1))(image)
    torch.testing.assert_close(DynamicPool((k, k + 1))(image), expected)


def test_any_batch_and_extent(traced, tmp_path):
    difference = save_onnx(traced, tmp_path / "m.onnx")
    assert 0 <= difference < 1e-3
    session = onnxruntime.InferenceSession(
        str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"]
    )
    for shape in ((1, 1, 2, 2, 2), (3, 1, 6, 4, 10)):
        image = np.random.default_rng(0).standard_normal(shape, np.float32)
        with torch.no_grad():
            expected = traced.network(torch.from_numpy(image)).numpy()
        np.testing.assert_allclose(
            session.run(["logits"], {"image": image})[0], expected, rtol=1e-3, atol=1e-4
        )


def test_the_card_is_in_the_metadata(traced, tmp_path):
    save_onnx(traced, tmp_path / "m.onnx")
    model = onnx.load(str(tmp_path / "m.onnx"))
    held = {entry.key: entry.value for entry in model.metadata_props}
    assert ModelCard.model_validate_json(held["lamella.card"]) == traced.card
    assert [opset.version for opset in model.opset_import] == [OPSET]


@pytest.mark.parametrize(
    ("network_id", "arguments", "divisor"),
    [
        ("pspnet", {"encoder": "resnet18"}, 32),
        ("upernet", {"encoder": "resnet18"}, 32),
        # Interpolates its positions in a way that the exporter of traces does not know.
        ("dpt", {"encoder": "tu-vit_tiny_patch16_224"}, 32),
    ],
)
def test_networks_that_look_at_the_whole_image(network_id, arguments, divisor, tmp_path, capfd):
    # PyTorch's exporters keep the bins of the size that was traced: another network elsewhere.
    arguments = {"in_channels": 1, "out_channels": 2, **arguments}
    network = build_network(network_id, arguments)
    card = made.ModelCard(
        id="pools",
        title="Pools",
        description="",
        task="semantic",
        axes="yx",
        classes=(made.ClassDoc(value=0, name="background"),),
        network=made.NetworkDoc(id=network_id, arguments=arguments),
        n_outputs=2,
        tile=(64, 64),
        divisor=(divisor, divisor),
        licence="MIT",
        training=made.TrainingDoc(data="", data_licence="", recipe=""),
    )
    assert save_onnx(trace_network(network, card), tmp_path / "m.onnx") < 1e-3
    assert capfd.readouterr() == ("", "")


def test_a_graph_that_differs_is_refused(traced, tmp_path):
    other = made.make_model(tmp_path / "m", "multilabel-3d").load_network()
    with torch.no_grad():
        next(other.parameters()).mul_(1.5)
    wrong = type(traced)(other, traced.module, traced.card, traced.shapes)
    with pytest.raises(ModelError, match="differs from PyTorch by") as raised:
        save_onnx(wrong, tmp_path / "m.onnx")
    assert raised.value.details["difference"] > 1e-3
    assert not (tmp_path / "m.onnx").exists()
    with pytest.raises(ModelError, match="TorchScript"):
        save_torchscript(wrong, tmp_path / "m.pt")
    assert not (tmp_path / "m.pt").exists()


class Stubborn(torch.nn.Module):
    """What no tracer takes."""

    def forward(self, image):
        raise RuntimeError("no")


def test_a_network_that_cannot_be_traced(traced):
    with pytest.raises(ModelError, match="cannot be traced") as raised:
        trace_network(Stubborn(), traced.card)
    assert "--format zip" in raised.value.hint
