"""Packages pass BioImage.io's own test with no network at hand, and come back as the same model."""

import importlib.util
import json
import socket
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

import lamella
from lamella.core.errors import (
    InputError,
    MissingDependencyError,
    ModelError,
    OutputExistsError,
    RunCancelledError,
)
from lamella.core.places import Places
from lamella.core.progress import SilentSink
from lamella.models.adopt import import_model
from lamella.models.bioimage_options import BioimageOptions
from lamella.models.folder import ModelFolder
from lamella.volume import Volume
from lamella.workflows.model_export import example_of, export_graph

# bioimageio.spec and .core leave the files open that they read.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

_SPEC = importlib.util.spec_from_file_location(
    "exported_models", Path(__file__).parents[1] / "models" / "exported_models.py"
)
made = importlib.util.module_from_spec(_SPEC)
sys.modules["exported_models"] = made
_SPEC.loader.exec_module(made)


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    def refuse(*_words, **_more):
        raise AssertionError("nothing is looked up in the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {kind: made.make_model(root / kind, kind) for kind in made.KINDS}


@pytest.fixture(scope="module")
def judgements():
    """What BioImage.io's test said of each package while it was written."""
    import bioimageio.core as core

    judge, said = core.test_description, {}

    def listening(source, **words):
        summary = judge(source, **words)
        said[len(said)] = summary
        return summary

    core.test_description = listening
    yield said
    core.test_description = judge


@pytest.fixture(scope="module")
def packages(models, judgements, tmp_path_factory):
    """One package a kind, written (and validated) on first use."""
    out, written = tmp_path_factory.mktemp("packages"), {}

    def package(kind):
        if kind not in written:
            exported = export_graph(
                str(models[kind].path),
                out,
                "bioimageio",
                Places(),
                SilentSink(),
                options=BioimageOptions(authors=("Jane Doe, A Lab",), tags=("tomography",)),
            )
            written[kind] = exported, judgements[len(judgements) - 1]
        return written[kind]

    return package


@pytest.mark.parametrize("kind", sorted(made.KINDS))
def test_packages_pass_the_validator(packages, kind):
    exported, summary = packages(kind)
    assert exported.path.name == f"{kind}.bioimageio.zip"
    assert summary.status == "passed"
    tested = [detail.name for detail in summary.details if detail.status == "passed"]
    for graph in ("onnx", "torchscript"):
        assert f"Reproduce test outputs from test inputs ({graph})" in tested
        assert (
            f"Run {graph} inference for inputs with batch_size: 2 and size parameter n: 2" in tested
        )


def test_what_was_zipped_is_what_was_judged(packages, tmp_path):
    # Unpacked first: bioimageio.spec leaves zip files open.
    from bioimageio.core import test_description as judge
    from bioimageio.spec import ValidationContext

    with zipfile.ZipFile(packages("semantic-2d")[0].path) as archive:
        archive.extractall(tmp_path)
    with ValidationContext(log_warnings=False, progressbar=False):
        summary = judge(
            tmp_path / "rdf.yaml", devices=["cpu"], expected_type="model", weight_format="onnx"
        )
    assert summary.status == "passed", summary.format_md()


def test_packages_say_what_the_card_says(packages, models):
    with zipfile.ZipFile(packages("semantic-2d")[0].path) as archive:
        document = yaml.safe_load(archive.read("rdf.yaml"))
        names = set(archive.namelist())
    assert document["license"] == "CC-BY-4.0"
    assert document["authors"] == [{"name": "Jane Doe", "affiliation": "A Lab"}]
    assert document["cite"][0]["doi"] == "10.1234/abc.5"
    assert "tomography" in document["tags"]
    assert document["inputs"][0]["axes"][2]["unit"] == "micrometer"
    assert {"model.json", "weights.safetensors", "network.xml", "README.md"} <= names
    assert document["config"]["lamella"]["decoder"]["kind"] == "argmax"
    # An author is named and a DOI cited; a GitHub name would be looked up in the network.
    (warning,) = packages("semantic-2d")[0].warnings
    assert warning.startswith("Missing `maintainers`")


@pytest.mark.parametrize("kind", ["semantic-2d", "instance-3d"])
def test_a_package_comes_back_as_the_same_model(packages, models, kind, tmp_path):
    places = Places(models=tmp_path / "models")
    result = import_model(packages(kind)[0].path, places, SilentSink())
    assert (result.id, result.engine) == (kind, "lamella")
    original, back = models[kind], ModelFolder.open(result.path)
    assert back.sha256 == original.sha256
    image = Volume.from_array(made.image_of(original.card))
    runs = [
        lamella.segment(image, str(folder.path), run_dir=tmp_path / name).labels.load()
        for name, folder in (("a", original), ("b", back))
    ]
    np.testing.assert_array_equal(*runs)


def test_the_packages_prediction_is_lamellas(packages, models, tmp_path):
    """Another program's probabilities give the labels that Lamella gives."""
    from bioimageio.core import create_prediction_pipeline
    from bioimageio.core.digest_spec import create_sample_for_model
    from bioimageio.spec import ValidationContext, load_description

    card = models["semantic-2d"].card
    image = made.image_of(card, (1, 48, 48))
    with zipfile.ZipFile(packages("semantic-2d")[0].path) as archive:
        archive.extractall(tmp_path)
    with ValidationContext(log_warnings=False, progressbar=False):
        description = load_description(tmp_path / "rdf.yaml")
        sample = create_sample_for_model(description, inputs={"image": image[None, None]})
        with create_prediction_pipeline(description, devices=["cpu"]) as pipeline:
            # As the validator does: no border is added to what is one tile.
            sample = pipeline.predict_sample_without_blocking(
                sample, skip_input_padding=True, skip_output_cropping=True
            )
    probabilities = np.asarray(sample.members["prediction"].data)[0]
    run = lamella.segment(
        Volume.from_array(image), str(models["semantic-2d"].path), run_dir=tmp_path / "run"
    )
    assert probabilities.shape == (3, *image.shape)
    assert (probabilities.argmax(0) == run.labels.load()).mean() > 0.999


def test_onnx_of_a_model(models, tmp_path):
    exported = export_graph(
        str(models["multilabel-3d"].path), tmp_path, "onnx", Places(), SilentSink()
    )
    assert exported.path == tmp_path / "multilabel-3d.onnx"
    assert exported.difference is not None
    assert exported.difference < 1e-3
    with pytest.raises(OutputExistsError, match="exists"):
        export_graph(str(models["multilabel-3d"].path), tmp_path, "onnx", Places(), SilentSink())


@pytest.mark.parametrize("kind", ["semantic-2d", "multilabel-3d"])
def test_models_without_example_are_tried_on_simulated_images(models, kind):
    card = models[kind].card
    image = example_of(models[kind])
    assert str(image.axes) == card.axes
    assert image.load().std() > 0


def test_several_channels(tmp_path):
    folder = made.make_model(tmp_path / "m", "semantic-2d", n_channels=2)
    image = example_of(folder)
    assert str(image.axes) == "cyx"
    assert image.shape[0] == 2


# --- what is refused ------------------------------------------------------------------------------


def test_a_licence_that_nobody_knows(tmp_path):
    folder = made.make_model(tmp_path / "m", "semantic-2d", licence="unknown")
    with pytest.raises(ModelError, match="no id of SPDX") as raised:
        export_graph(str(folder.path), tmp_path, "bioimageio", Places(), SilentSink())
    assert "--licence" in raised.value.hint
    with pytest.raises(ModelError, match="SPDX knows no licence 'MY-LICENCE'"):
        export_graph(
            str(folder.path),
            tmp_path,
            "bioimageio",
            Places(),
            SilentSink(),
            options=BioimageOptions(licence="MY-LICENCE"),
        )
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_what_the_validator_refuses_does_not_appear(models, tmp_path, monkeypatch):
    from lamella.models import bioimage

    monkeypatch.setattr(bioimage, "name_of", lambda _card: "no/name")
    with pytest.raises(ModelError, match=r"BioImage\.io's validator refuses the description: name"):
        export_graph(
            str(models["semantic-2d"].path), tmp_path, "bioimageio", Places(), SilentSink()
        )
    assert not list(tmp_path.iterdir())


def test_models_of_other_engines(tmp_path):
    stored = tmp_path / "models" / "nn"
    (stored / "files").mkdir(parents=True)
    record = {"id": "nn", "engine": "nnunet", "files": {}}
    (stored / "record.json").write_text(json.dumps(record))
    with pytest.raises(ModelError, match="engine 'nnunet'") as raised:
        export_graph("nn", tmp_path, "onnx", Places(models=tmp_path / "models"), SilentSink())
    assert "--format zip" in raised.value.hint


def test_names_that_fit_no_format(models, tmp_path):
    with pytest.raises(InputError, match="no name for onnx"):
        export_graph(
            str(models["semantic-2d"].path), tmp_path / "m.zip", "onnx", Places(), SilentSink()
        )


def test_packages_that_are_not_installed(models, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="onnxruntime") as raised:
        export_graph(str(models["semantic-2d"].path), tmp_path, "onnx", Places(), SilentSink())
    assert raised.value.hint == 'pip install "lamella[export]"'


def test_a_cancelled_export_leaves_nothing(models, tmp_path):
    sink = SilentSink()
    sink.token.cancel()
    with pytest.raises(RunCancelledError):
        export_graph(str(models["semantic-2d"].path), tmp_path, "onnx", Places(), sink)
    assert not list(tmp_path.iterdir())
