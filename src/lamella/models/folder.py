"""A model folder: a card, its weights, and the same network as an OpenVINO graph.

::

    membrane-3d/
    ├── model.json            the card (lamella.wire.card.ModelCard), with the files' SHA-256
    ├── weights.safetensors   float16 where the network has floats
    ├── network.xml           OpenVINO graph, any batch and spatial size
    ├── network.bin           its numbers
    ├── example_input.tif     (trained models) an image it may be tried on
    └── example_output.tif    the labels it gives there

Weights and graph hold the same numbers: they are rounded to float16 before either is written,
unless the model is asked to keep float32.
Opening needs neither torch nor OpenVINO.

Example:
    >>> ModelFolder.open(Path("no-such-folder"))
    Traceback (most recent call last):
    ...
    lamella.core.errors.MissingPathError: there is no model folder no-such-folder
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.core.errors import MissingPathError, ModelError, OutputExistsError
from lamella.wire.card import ModelCard

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

__all__ = ["CARD_NAME", "GRAPH_NAME", "WEIGHTS_NAME", "ModelFolder", "write_model_folder"]

CARD_NAME = "model.json"
WEIGHTS_NAME = "weights.safetensors"
GRAPH_NAME = "network.xml"
_GRAPH_DATA_NAME = "network.bin"
_GRAPH = (GRAPH_NAME, _GRAPH_DATA_NAME)


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """An opened model folder.

    Attributes:
        path: the folder.
        card: what the model is and how it is run.
        sha256: of ``model.json``, hex; as the card holds the hashes of all other files, it stands
            for the whole folder.
    """

    path: Path
    card: ModelCard
    sha256: str

    @classmethod
    def open(cls, path: Path | str, *, verify: bool = True) -> ModelFolder:
        """Open a folder and check every file against its hash.

        Args:
            path: the folder.
            verify: False leaves out reading the files, for listings.

        Raises:
            MissingPathError: no such folder.
            ModelError: no card, a card that does not validate, or a file that is missing or not
                the one the card was written with.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise MissingPathError(
                f"there is no model folder {folder}",
                hint="`lamella models list` shows the models that are here",
            )
        card_path = folder / CARD_NAME
        if not card_path.is_file():
            raise ModelError(
                f"{folder} is no model folder: it has no {CARD_NAME}",
                hint="give the folder that holds model.json and weights.safetensors",
            )
        document = card_path.read_bytes()
        card = ModelCard.parse_json(document, what=str(card_path), error=ModelError)
        opened = cls(folder, card, hashlib.sha256(document).hexdigest())
        opened._check_names()
        if verify:
            opened.verify()
        return opened

    @property
    def weights_path(self) -> Path:
        """The weights, safetensors, names as in the network's state dict."""
        return self.path / WEIGHTS_NAME

    @property
    def openvino_path(self) -> Path:
        """The graph; its numbers lie beside it."""
        return self.path / GRAPH_NAME

    @property
    def has_graph(self) -> bool:
        """Whether there is a graph; without one the network runs in PyTorch alone."""
        return GRAPH_NAME in self.card.files

    @property
    def n_bytes(self) -> int:
        """Size of all files of the model."""
        names = (CARD_NAME, *self.card.files)
        return sum((self.path / name).stat().st_size for name in names)

    def verify(self) -> None:
        """Compare every file with its hash in the card.

        Raises:
            ModelError: naming the file that is missing or differs.
        """
        for name, expected in self.card.files.items():
            file = self.path / name
            if not file.is_file():
                raise ModelError(
                    f"model {self.card.id!r} is incomplete: {file} is missing",
                    hint="copy or pull the whole folder again",
                    details={"file": name},
                )
            found = _sha256(file)
            if found != expected.lower():
                raise ModelError(
                    f"model {self.card.id!r} was changed: {file} has SHA-256 {found[:12]}..., the"
                    f" card says {expected[:12]}...",
                    hint="copy or pull the whole folder again",
                    details={"file": name, "expected": expected, "found": found},
                )

    def load_network(self) -> nn.Module:
        """The network with its weights, float32, in evaluation mode (imports torch).

        Raises:
            ModelError: weights that do not fit the network the card names.
            MissingDependencyError: torch is not installed.
        """
        from lamella.models.export import load_weights
        from lamella.networks.registry import build_network

        network = build_network(self.card.network.id, self.card.network.arguments)
        load_weights(network, self.weights_path)
        return network.eval()

    def _check_names(self) -> None:
        files = self.card.files
        has_graph = any(name in files for name in _GRAPH)
        needed = (WEIGHTS_NAME, *(_GRAPH if has_graph else ()))
        lacking = [name for name in needed if name not in files]
        if lacking:
            raise ModelError(
                f"the card of model {self.card.id!r} lists no {', '.join(lacking)}",
                hint="write the folder again with lamella.models.folder.write_model_folder",
            )
        for name in files:
            if Path(name).name != name or name in {CARD_NAME, ".", ".."}:
                raise ModelError(
                    f"the card of model {self.card.id!r} lists {name!r}, which is no file name",
                    hint="a card names only files that lie beside it",
                )


def write_model_folder(
    path: Path | str,
    card: ModelCard,
    network: nn.Module,
    *,
    overwrite: bool = False,
    half: bool = True,
    more_files: Mapping[str, Path] | None = None,
) -> ModelFolder:
    """Write a network as a model folder; it appears under its name when all of it is written.

    The network's numbers are changed in place: batch normalisations are folded into the
    convolutions before them where they follow one directly, and all floats are rounded to float16.
    The graph is run beside the network before anything is kept. Where there can be none, the card's
    notes say why.

    Args:
        path: folder to make.
        card: everything but ``files`` and ``network.n_parameters``, which are filled in.
        network: the network that ``card.network`` names, trained.
        overwrite: replace a folder that is there.
        half: False keeps float32, at twice the size.
        more_files: files that are copied beside the others and hashed like them, by name.

    Raises:
        OutputExistsError: the folder exists.
        ModelError: the network is not the card's, holds NaN or numbers beyond float16, or its
            graph computes something else.
        MissingDependencyError: torch, safetensors or OpenVINO is not installed.
    """
    from lamella.models.export import round_to_half, save_weights

    target = Path(path)
    if target.exists() and not overwrite:
        raise OutputExistsError(
            f"{target} exists", hint="choose another folder, or allow it to be replaced"
        )
    network.eval()
    if half:
        round_to_half(network)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        save_weights(network, card, staging / WEIGHTS_NAME, half=half)
        card, graph = _with_graph(network, card, staging, half=half)
        for name, source in (more_files or {}).items():
            shutil.copyfile(source, staging / name)
        files = {
            name: _sha256(staging / name) for name in (WEIGHTS_NAME, *graph, *(more_files or {}))
        }
        n_parameters = sum(parameter.numel() for parameter in network.parameters())
        complete = card.model_copy(
            update={
                "files": files,
                "network": card.network.model_copy(update={"n_parameters": n_parameters}),
            }
        )
        (staging / CARD_NAME).write_text(complete.to_json(), encoding="utf-8")
        # Temporary folders and safetensors files are private; a model is for everyone here.
        staging.chmod(0o755)
        for name in files:
            (staging / name).chmod(0o644)
        if target.exists():
            shutil.rmtree(target)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return ModelFolder.open(target)


def _with_graph(
    network: nn.Module, card: ModelCard, folder: Path, *, half: bool
) -> tuple[ModelCard, tuple[str, ...]]:
    """Write the graph; returns its files, or none and a card that says why."""
    from lamella.models.export import NoGraphError, save_graph

    try:
        save_graph(network, card, folder / GRAPH_NAME, half=half)
    except NoGraphError as error:
        for name in _GRAPH:
            (folder / name).unlink(missing_ok=True)
        told = f"It runs in PyTorch only: {error.message}."
        notes = f"{card.training.notes} {told}".strip()
        return card.model_copy(
            update={"training": card.training.model_copy(update={"notes": notes})}
        ), ()
    return card, _GRAPH


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
