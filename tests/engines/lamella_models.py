"""Model folders whose "network" is a small graph with known weights; no training, no PyTorch."""

import hashlib

import numpy as np

from lamella.models.folder import ModelFolder
from lamella.wire.card import (
    ClassDoc,
    DecoderDoc,
    ModelCard,
    NetworkDoc,
    NormalisationDoc,
    TrainingDoc,
)


def save_graph(path, n_spatial, weights, bias):
    """A convolution, weights (k, c, …) around each voxel, as an OpenVINO graph."""
    import openvino as ov
    from openvino import opset13 as ops

    weights = np.asarray(weights, np.float32)
    image = ops.parameter([-1, weights.shape[1]] + [-1] * n_spatial, np.float32, name="image")
    pad = [n // 2 for n in weights.shape[2:]]
    one = [1] * n_spatial
    logits = ops.convolution(image, ops.constant(weights), one, pad, pad, one)
    shape = (1, len(bias)) + (1,) * n_spatial
    offset = ops.constant(np.asarray(bias, np.float32).reshape(shape))
    ov.save_model(ov.Model([ops.add(logits, offset)], [image]), str(path), compress_to_fp16=False)


def bright_weights(n_spatial, radius=1, n_channels=1):
    """(2, c, …): background 0, object the mean around each voxel."""
    size = 2 * radius + 1
    weights = np.zeros((2, n_channels) + (size,) * n_spatial)
    weights[1] = 1.0 / (size**n_spatial * n_channels)
    return weights


def make_folder(folder, *, axes="zyx", weights=None, bias=(0.0, -2.0), **card):
    """A folder that finds what is brighter than two standard deviations above the mean."""
    folder.mkdir(parents=True, exist_ok=True)
    n = len(axes)
    path = folder / "network.xml"
    # An empty safetensors file: the graph is all that the engine reads on the CPU.
    (folder / "weights.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    weights = bright_weights(n) if weights is None else np.asarray(weights)
    save_graph(path, n, weights, bias)
    fields = {
        "id": "bright",
        "title": "Bright things",
        "description": "Finds what is bright.",
        "task": "semantic",
        "axes": axes,
        "n_channels": weights.shape[1],
        "classes": (
            ClassDoc(value=0, name="background"),
            ClassDoc(value=1, name="bright", color=(255, 0, 0)),
        ),
        "normalisation": NormalisationDoc(kind="zscore"),
        "network": NetworkDoc(id="none"),
        "n_outputs": len(bias),
        "decoder": DecoderDoc(),
        "tile": (16,) * n,
        "licence": "CC0-1.0",
        "training": TrainingDoc(data="none", data_licence="CC0-1.0", recipe="set by hand"),
        "files": {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for name in ("network.xml", "network.bin", "weights.safetensors")
        },
    }
    (folder / "model.json").write_text(ModelCard(**{**fields, **card}).to_json())
    return ModelFolder.open(folder)
