"""Runtimes: OpenVINO and PyTorch agree, pipelines keep their order, mirrors average."""

import warnings

import numpy as np
import pytest

from lamella.core.errors import DeviceError, ModelError
from lamella.inference import openvino_runtime
from lamella.inference.openvino_runtime import (
    OpenVinoOptions,
    OpenVinoRuntime,
    has_precision,
    not_converted,
    usable_precision,
)
from lamella.inference.runtime import (
    Difference,
    Mirrored,
    Pipelined,
    Runtime,
    as_pipelined,
    compare,
)

SHAPE = (1, 2, 8, 10, 12)


def batches(n, shape=SHAPE):
    return [np.random.default_rng(i).standard_normal(shape).astype(np.float32) for i in range(n)]


@pytest.fixture
def graph():
    """A convolution with uneven weights, (1, 2, …) → (1, 3, …)."""
    import openvino as ov
    from openvino import opset13 as ops

    weights = np.random.default_rng(9).standard_normal((3, 2, 3, 3, 3)).astype(np.float32)
    image = ops.parameter([-1, 2, -1, -1, -1], np.float32)
    one = [1] * 3
    return ov.Model([ops.convolution(image, ops.constant(weights), one, one, one, one)], [image])


def test_submitted_batches_come_back_in_order(graph):
    runtime = OpenVinoRuntime(graph, SHAPE)
    assert isinstance(runtime, Pipelined)
    assert runtime.n_outputs == 3
    assert runtime.precision == "fp32"
    alone = [runtime(batch) for batch in batches(5)]
    pending, results = [], []
    for batch in batches(5):
        pending.append((batch, runtime.submit(batch)))
        if len(pending) == runtime.n_in_flight:
            results.append(pending.pop(0)[1]().copy())
    results.extend(fetch().copy() for _, fetch in pending)
    np.testing.assert_array_equal(results, alone)


def test_a_graph_that_does_not_keep_the_extent_is_refused(graph):
    from openvino import Model
    from openvino import opset13 as ops

    image = ops.parameter([-1, 2, -1, -1, -1], np.float32)
    pooled = ops.max_pool(image, [2] * 3, [1] * 3, [0] * 3, [0] * 3, [2] * 3).output(0)
    with pytest.raises(ModelError, match="same extent"):
        OpenVinoRuntime(Model([pooled], [image]), SHAPE)


def test_bf16_is_close_where_the_cpu_has_it(graph):
    if not has_precision("bf16"):
        pytest.skip("this CPU has no bf16")
    full = OpenVinoRuntime(graph.clone(), SHAPE)
    reduced = OpenVinoRuntime(graph, SHAPE, OpenVinoOptions(precision="bf16", n_threads=1))
    (batch,) = batches(1)
    difference = compare(reduced(batch), full(batch))
    assert difference.agreement > 0.9
    assert difference.relative < 0.1
    assert "agree" in str(difference)


class Uneven:
    """Adds a ramp along x: not symmetric, so mirrored copies differ."""

    name, device, precision, n_outputs, batch_shape = "uneven", "cpu", "fp32", 1, (1, 1, 2, 3, 4)

    def __call__(self, batch):
        return batch + np.arange(4, dtype=np.float32)


def test_mirrored_copies_are_averaged_in_place():
    mirrored = Mirrored(Uneven(), axes=(2, 4))
    assert isinstance(mirrored, Runtime)
    assert mirrored.n_copies == 4
    (batch,) = batches(1, (1, 1, 2, 3, 4))
    np.testing.assert_allclose(mirrored(batch), batch + 1.5, rtol=1e-6)


def test_plain_runtimes_are_wrapped():
    runtime = as_pipelined(Uneven())
    (batch,) = batches(1, (1, 1, 2, 3, 4))
    assert runtime.n_in_flight == 1
    np.testing.assert_array_equal(runtime.submit(batch)(), runtime(batch))


def test_one_channel_is_compared_by_sign():
    reference = np.array([[[-1.0, 1.0]]], np.float32)
    assert compare(reference * -1, reference).agreement == 0.0
    assert compare(reference * 2, reference).agreement == 1.0


@pytest.fixture
def network():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv3d(2, 4, 3, padding=1),
        torch.nn.InstanceNorm3d(4, affine=True),
        torch.nn.LeakyReLU(),
        torch.nn.Conv3d(4, 3, 1),
    )


def test_torch_equals_openvino(network):
    import openvino as ov
    import torch

    from lamella.inference.torch_runtime import TorchRuntime

    runtime = TorchRuntime(network, SHAPE)
    assert runtime.n_outputs == 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of every shape it fixes
        converted = ov.convert_model(network.eval(), example_input=torch.zeros(SHAPE))
    other = OpenVinoRuntime(converted, SHAPE)
    (batch,) = batches(1)
    assert compare(other(batch), runtime(batch)).relative < 1e-4


def test_torch_in_bf16(network):
    from lamella.inference.torch_runtime import TorchOptions, TorchRuntime

    runtime = TorchRuntime(network, SHAPE, TorchOptions(precision="bf16", n_threads=2))
    (batch,) = batches(1)
    logits = runtime(batch)
    assert logits.dtype == np.float32
    assert compare(logits, TorchRuntime(network, SHAPE)(batch)).relative < 0.1


@pytest.mark.parametrize("device", ["cuda:99", "mps:0", "quantum"])
def test_devices_that_are_not_there(network, device):
    from lamella.inference.torch_runtime import TorchOptions, TorchRuntime

    with pytest.raises(DeviceError):
        TorchRuntime(network, SHAPE, TorchOptions(device=device))


def test_a_torch_network_that_shrinks_is_refused(network):
    import torch

    from lamella.inference.torch_runtime import TorchRuntime

    with pytest.raises(ModelError, match="same extent"):
        TorchRuntime(torch.nn.Conv3d(2, 3, 3), SHAPE)


@pytest.mark.parametrize(
    ("precision", "relative", "agreement", "is_acceptable"),
    [
        ("fp32", 0.02, 0.999, True),
        ("fp32", 0.03, 1.0, False),
        ("fp32", 0.0, 0.998, False),
        ("bf16", 5.0, 0.98, True),
        ("fp16", 0.0, 0.979, False),
    ],
)
def test_how_far_a_runtime_may_be_from_the_reference(precision, relative, agreement, is_acceptable):
    difference = Difference(max_abs=2 * relative, spread=2.0, agreement=agreement)
    assert difference.is_acceptable(precision) == is_acceptable
    note = difference.as_note(precision)
    assert note.code == "runtime_differs"
    assert f"OpenVINO in {precision}" in note.message
    assert str(difference) in note.message


def test_a_precision_that_the_cpu_lacks_becomes_fp32_aloud(monkeypatch):
    assert usable_precision("fp32") == ("fp32", ())
    monkeypatch.setattr(openvino_runtime, "has_precision", lambda wanted: wanted == "fp32")
    precision, (note,) = usable_precision("bf16")
    assert precision == "fp32"
    assert note.message == "this CPU does not compute in bf16; fp32 is used"


def test_what_a_network_cannot_be_converted_for_is_told_in_one_line():
    assert "(no such layer)" in not_converted(RuntimeError("no such layer\nat line 3")).message
    assert "(TypeError)" in not_converted(TypeError()).message
