"""A model folder comes back as it was written, or says which file is not the one written."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from lamella.core.errors import MissingPathError, ModelError, OutputExistsError
from lamella.models.export import fold_batch_norms, graph_difference, load_weights
from lamella.models.folder import ModelFolder, write_model_folder
from lamella.networks.registry import build_network
from lamella.wire.card import ClassDoc, ModelCard, NetworkDoc, TrainingDoc

ARGUMENTS = {"in_channels": 1, "out_channels": 2, "widths": [4, 8, 8]}


def card_of(network_id="compact_unet3d", arguments=None, **changes):
    fields = {
        "id": "test-model",
        "title": "Test",
        "description": "A network with random weights.",
        "task": "semantic",
        "axes": "zyx",
        "classes": (ClassDoc(value=0, name="background"), ClassDoc(value=1, name="thing")),
        "network": NetworkDoc(id=network_id, arguments=arguments or ARGUMENTS),
        "n_outputs": 2,
        "tile": (32, 32, 32),
        "divisor": (4, 4, 4),
        "licence": "Apache-2.0",
        "training": TrainingDoc(data="none", data_licence="none", recipe="none"),
    }
    return ModelCard(**(fields | changes))


def random_network(network_id="compact_unet3d", arguments=None):
    torch.manual_seed(0)
    network = build_network(network_id, arguments or ARGUMENTS)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.3, 3)
    return network.eval()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "test-model"
    return write_model_folder(path, card_of(), random_network())


@pytest.fixture
def copy(written, tmp_path):
    import shutil

    return shutil.copytree(written.path, tmp_path / "copy")


def test_round_trip(written):
    opened = ModelFolder.open(written.path)
    assert opened.card == written.card
    assert opened.card.network.n_parameters == sum(
        parameter.numel() for parameter in random_network().parameters()
    )
    assert opened.sha256 == written.sha256
    assert sorted(opened.card.files) == ["network.bin", "network.xml", "weights.safetensors"]
    assert opened.n_bytes == sum(file.stat().st_size for file in written.path.iterdir())


def test_graph_equals_network(written):
    network = written.load_network()
    assert graph_difference(network, written.card, written.openvino_path) < 1e-4


def test_graph_takes_any_extent(written):
    import openvino

    compiled = openvino.Core().compile_model(
        written.openvino_path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    network = written.load_network()
    for shape in ((1, 1, 8, 16, 24), (2, 1, 16, 8, 8)):
        image = np.random.default_rng(0).standard_normal(shape, np.float32)
        with torch.no_grad():
            expected = network(torch.from_numpy(image)).numpy()
        np.testing.assert_allclose(compiled(image)[0], expected, atol=1e-4)


def test_weights_are_half_precision_numbers_and_the_file_is_half_the_size(written):
    from safetensors.numpy import load_file

    state = load_file(str(written.weights_path))
    floats = [value for value in state.values() if value.dtype.kind == "f"]
    assert {value.dtype for value in floats} == {np.dtype(np.float16)}
    n_parameters = written.card.network.n_parameters
    assert (written.path / "network.bin").stat().st_size < 3 * n_parameters


def test_writing_changes_the_network_little_and_folding_not_at_all(tmp_path):
    network, image = random_network(), torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        before = network(image)
        assert fold_batch_norms(network) == 10
        torch.testing.assert_close(network(image), before, atol=1e-4, rtol=1e-4)
        write_model_folder(tmp_path / "m", card_of(), network)
        torch.testing.assert_close(network(image), before, atol=2e-2, rtol=1e-2)


def test_written_weights_are_loaded_bit_for_bit(tmp_path):
    network = random_network()
    folder = write_model_folder(tmp_path / "m", card_of(), network)
    for name, value in folder.load_network().state_dict().items():
        assert torch.equal(value, network.state_dict()[name]), name


@pytest.mark.filterwarnings("default")
def test_networks_of_monai_are_written_too(tmp_path):
    arguments = {"in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}
    for normalisation in ("instance", "batch"):
        wanted = arguments | {"normalisation": normalisation}
        folder = write_model_folder(
            tmp_path / normalisation, card_of("unet3d", wanted), random_network("unet3d", wanted)
        )
        assert graph_difference(folder.load_network(), folder.card, folder.openvino_path) < 1e-4


@pytest.mark.parametrize("name", ["weights.safetensors", "network.bin", "network.xml"])
def test_one_changed_byte_is_caught(copy, name):
    file = copy / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ModelError, match=name):
        ModelFolder.open(copy)
    assert ModelFolder.open(copy, verify=False).card.id == "test-model"


@pytest.mark.parametrize("name", ["weights.safetensors", "network.bin", "network.xml"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(ModelError, match=name):
        ModelFolder.open(copy)


def test_no_folder_no_card_and_a_broken_card(tmp_path, copy):
    with pytest.raises(MissingPathError):
        ModelFolder.open(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"model\.json"):
        ModelFolder.open(tmp_path / "empty")
    (copy / "model.json").write_text('{"id": 3}')
    with pytest.raises(ModelError, match="ModelCard"):
        ModelFolder.open(copy)


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "sub/file", "model.json"])
def test_a_card_names_only_files_beside_it(copy, name):
    document = json.loads((copy / "model.json").read_text())
    document["files"][name] = "0" * 64
    (copy / "model.json").write_text(json.dumps(document))
    with pytest.raises(ModelError, match="no file name"):
        ModelFolder.open(copy)


def test_what_is_there_is_not_replaced_unasked(written):
    with pytest.raises(OutputExistsError):
        write_model_folder(written.path, card_of(), random_network())


def test_a_network_that_is_not_the_cards_leaves_nothing(tmp_path):
    other = build_network("compact_unet3d", ARGUMENTS | {"widths": [4, 16]})
    with pytest.raises(ModelError, match="does not hold the weights"):
        write_model_folder(tmp_path / "m", card_of(), other)
    assert list(tmp_path.iterdir()) == []


def test_a_diverged_network_is_refused(tmp_path):
    network = random_network()
    with torch.no_grad():
        network.head.weight[0] = float("nan")
    with pytest.raises(ModelError, match=r"head\.weight"):
        write_model_folder(tmp_path / "m", card_of(), network)


def test_weights_of_another_network_are_refused(written):
    other = build_network("compact_unet3d", ARGUMENTS | {"widths": [4, 8]})
    with pytest.raises(ModelError, match="unknown"):
        load_weights(other, written.weights_path)


def test_opening_imports_neither_torch_nor_openvino(written):
    code = (
        "import sys; from lamella.models.folder import ModelFolder;"
        f"ModelFolder.open({str(written.path)!r});"
        "assert not {'torch', 'openvino'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
