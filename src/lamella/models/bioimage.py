"""A model as a BioImage.io package, judged by BioImage.io's own validator before it appears.

::

    <id>.bioimageio.zip
    ├── rdf.yaml                        description, format 0.5
    ├── weights.onnx, weights.pt        ONNX and TorchScript: no code has to be trusted
    ├── test_input.npy, test_output.npy what the validator reproduces
    ├── sample_input.tif ...            the same for people
    ├── README.md, cover.png
    └── model.json, weights.safetensors, network.xml ...    the model folder, attached

``lamella models import`` takes the attached folder back, bit by bit. Nothing is looked up in the
network: the description holds no web address.
"""

from __future__ import annotations

import contextlib
import shutil
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import ModelError
from lamella.core.optional import require
from lamella.models.archive import write_zip
from lamella.models.bioimage_cover import cover_png
from lamella.models.bioimage_tensors import (
    INPUT_ID,
    OUTPUT_ID,
    extents_of,
    input_axes,
    output_axes,
    postprocessing,
    preprocessing,
)
from lamella.models.bioimage_words import (
    citations,
    documentation,
    name_of,
    tags_of,
    version_of,
)
from lamella.models.folder import CARD_NAME
from lamella.models.onnx_graph import OPSET, save_onnx, save_torchscript, trace_network
from lamella.models.spdx import spdx_id

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from lamella.core.progress import ProgressSink
    from lamella.models.bioimage_options import BioimageOptions
    from lamella.models.folder import ModelFolder
    from lamella.volume.labels import Labels

__all__ = ["TestTensors", "check_terms", "write_bioimage"]

_PURPOSE = "writing a BioImage.io package"
_YAMLS = ("bioimageio.yaml", "rdf.yaml")
"""What the description is called, depending on the version of bioimageio.spec."""
_MAX_DESCRIPTION = 1024


@dataclass(frozen=True, slots=True)
class TestTensors:
    """What the validator reproduces.

    Attributes:
        image: intensities as they come from a file, float32, (1, c, *spatial).
        prediction: what comes of it after postprocessing, float32, (1, k, *spatial), by PyTorch.
        labels: made of the prediction, for the cover.
    """

    __test__ = False  # pytest would take the class for one of tests

    image: NDArray[np.float32]
    prediction: NDArray[np.float32]
    labels: Labels


def check_terms(folder: ModelFolder, options: BioimageOptions) -> str:
    """The SPDX id of the model's licence.

    Raises:
        ModelError: it has none that BioImage.io knows.
        MissingDependencyError: bioimageio.spec is not installed.
    """
    licence = spdx_id(options.licence or folder.card.licence)
    generic = _import("bioimageio.spec.generic.v0_3")
    try:
        generic.LicenseId(licence)
    except ValueError:
        raise ModelError(
            f"SPDX knows no licence {licence!r}",
            hint="choose one of https://spdx.org/licenses: --licence CC-BY-4.0, for example",
        ) from None
    return licence


def write_bioimage(
    folder: ModelFolder,
    network: nn.Module,
    tensors: TestTensors,
    options: BioimageOptions,
    *,
    staging: Path,
    target: Path,
    sink: ProgressSink,
) -> tuple[str, ...]:
    """Write and validate a package.

    Args:
        folder: the model.
        network: of the folder, on the CPU.
        tensors: an image and what the model gives on it.
        options: authors, licence, tags.
        staging: an empty folder for its files.
        target: the zip; it must not be there.
        sink: cancellation.

    Returns:
        What BioImage.io would like better: its warnings.

    Raises:
        ModelError: the graphs compute something else, or the validator finds an error.
        MissingDependencyError: bioimageio.core, onnx or onnxruntime is not installed.
    """
    import tifffile

    spec = _import("bioimageio.spec")
    _import("bioimageio.core")
    licence = check_terms(folder, options)
    traced = trace_network(network, folder.card)
    save_onnx(traced, staging / "weights.onnx")
    sink.check()
    save_torchscript(traced, staging / "weights.pt")
    np.save(staging / "test_input.npy", tensors.image)
    np.save(staging / "test_output.npy", tensors.prediction)
    for name, tensor in (("input", tensors.image), ("output", tensors.prediction)):
        # For people to look at: ImageJ wants (z, c, y, x).
        ordered = tensor[0].swapaxes(0, 1) if tensor.ndim == 5 else tensor[0]
        tifffile.imwrite(staging / f"sample_{name}.tif", ordered, imagej=True)
    (staging / "README.md").write_text(documentation(folder.card), encoding="utf-8")
    (staging / "cover.png").write_bytes(cover_png(tensors.image[0], tensors.labels))
    attached = (CARD_NAME, *folder.card.files)
    for name in attached:
        shutil.copyfile(folder.path / name, staging / name)
    document = _document(folder, options, licence, attached)
    sink.check()
    with _quiet(), spec.ValidationContext(root=staging, log_warnings=False, progressbar=False):
        description = spec.build_description(
            document, context=spec.get_validation_context().replace(file_name=_YAMLS[0])
        )
        _check(description.validation_summary, "description")
        packed = staging / "package"
        spec.save_bioimageio_package_as_folder(description, output_path=packed)
    sink.check()
    told = _validated(next(packed / name for name in _YAMLS if (packed / name).is_file()))
    sink.check()
    write_zip(target, [(path.name, path) for path in packed.iterdir()])
    return told


def _document(
    folder: ModelFolder, options: BioimageOptions, licence: str, attached: tuple[str, ...]
) -> dict[str, Any]:
    card = folder.card
    torch = require("torch", extra="torch", purpose=_PURPOSE)
    extents = extents_of(card)
    version = version_of(card)
    return {
        "type": "model",
        "format_version": _import(
            "bioimageio.spec.model.v0_5"
        ).ModelDescr.implemented_format_version,
        "name": name_of(card),
        "description": card.description[:_MAX_DESCRIPTION],
        "authors": [_author(name) for name in options.authors],
        "cite": citations(card),
        "license": licence,
        "tags": tags_of(card, options.tags),
        "documentation": {"source": "README.md"},
        "covers": [{"source": "cover.png"}],
        "attachments": [{"source": name} for name in attached],
        **({"version": version} if version else {}),
        "inputs": [
            {
                "id": INPUT_ID,
                "description": "intensities as they are",
                "axes": input_axes(card, extents),
                "data": {"type": "float32"},
                "test_tensor": {"source": "test_input.npy"},
                "sample_tensor": {"source": "sample_input.tif"},
                "preprocessing": preprocessing(card),
            }
        ],
        "outputs": [
            {
                "id": OUTPUT_ID,
                "description": "one channel an output of the network",
                "axes": output_axes(card, extents),
                "data": {"type": "float32"},
                "test_tensor": {"source": "test_output.npy"},
                "sample_tensor": {"source": "sample_output.tif"},
                "postprocessing": postprocessing(card),
            }
        ],
        "weights": {
            "torchscript": {
                "source": "weights.pt",
                "pytorch_version": str(torch.__version__).partition("+")[0],
                "comment": "traced; any batch, and extents as described",
            },
            "onnx": {
                "source": "weights.onnx",
                "opset_version": OPSET,
                "parent": "torchscript",
            },
        },
        "config": {
            "bioimageio": {
                "model_parameter_count": card.network.n_parameters,
                "task": f"{card.task} segmentation",
                "target_structure": [known.name for known in card.classes if known.value],
            },
            "lamella": {
                "card": CARD_NAME,
                "network": card.network.id,
                "decoder": card.decoder.model_dump(mode="json"),
            },
        },
    }


def _author(text: str) -> dict[str, str]:
    """A name, and an affiliation behind a comma."""
    name, _, affiliation = (part.strip() for part in text.partition(","))
    # No GitHub name: the validator would look it up in the network.
    known = {"affiliation": affiliation} if affiliation else {}
    return {"name": name.replace("/", " "), **known}


def _validated(description: Path) -> tuple[str, ...]:
    """Run BioImage.io's test of a package that is unpacked; returns its warnings.

    Raises:
        ModelError: what it found.
    """
    core, spec = _import("bioimageio.core"), _import("bioimageio.spec")
    with _quiet(), spec.ValidationContext(log_warnings=False, progressbar=False):
        summary = core.test_description(description, devices=["cpu"], expected_type="model")
    _check(summary, "package")
    found = [
        ": ".join([*([".".join(map(str, entry.loc))] if entry.loc else []), _first_line(entry.msg)])
        for detail in summary.details
        for entry in detail.warnings
        # What went well is told as a warning of the lowest kind.
        if entry.severity > spec.summary.INFO
    ]
    return tuple(dict.fromkeys(found))


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else ""


def _check(summary: Any, what: str) -> None:
    if summary.status != "failed":
        return
    found = [
        f"{'.'.join(map(str, entry.loc)) or what}: {entry.msg}"
        for detail in summary.details
        for entry in detail.errors
    ]
    raise ModelError(
        f"BioImage.io's validator refuses the {what}: {'; '.join(found[:3])}",
        hint="correct what it names in the model's card; or export with --format zip",
        details={"problems": found},
    )


def _import(module: str) -> Any:
    return require(module, extra="export", purpose=_PURPOSE)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The validator logs by a library of its own to the terminal, which is the caller's."""
    logger = require("loguru", extra="export", purpose=_PURPOSE).logger
    logger.disable("bioimageio")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.enable("bioimageio")
