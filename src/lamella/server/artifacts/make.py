"""What is made of a finished run for those who fetch it: exports, and the list of the archive.

Beside every export ``NAME`` lies ``NAME.json`` with its size and SHA-256, written last: an export
without it is not there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamella.core.errors import InputError, LamellaError
from lamella.core.progress import ProgressSink, SilentSink
from lamella.io.format import SaveOptions, find_writer, save_volume, storage_errors
from lamella.server.artifacts.tar import TarIndex, make_index
from lamella.server.names import PathNames
from lamella.wire.document import Document
from lamella.workflows.run_folder import write_text

if TYPE_CHECKING:
    from lamella.workflows.run import Run

__all__ = [
    "TAR_NAME",
    "ExportFact",
    "check_suffix",
    "export_labels",
    "make_export",
    "pack_run",
    "read_fact",
    "read_index",
]

TAR_NAME = "run.tar"
_MANY_FILES = (".hdr", ".img", ".nhdr")
_READ_BYTES = 2**20


class ExportFact(Document):
    """An export that is complete."""

    n_bytes: int
    sha256: str


def check_suffix(suffix: str) -> None:
    """Refuse a format that labels cannot be exported in as one file.

    Raises:
        UnknownFormatError: when nothing writes files of this suffix.
        InputError: for formats of several files.
        MissingDependencyError: when the server lacks a package for it.
    """
    name = f"labels{suffix}"
    writer = find_writer(Path(name))
    writer.load()
    if writer.is_folder and not suffix.lower().endswith((".zip", ".ozx")):
        raise InputError(
            f"{name} would be a folder, which cannot be fetched as one file",
            hint="ask for .ome.zarr.zip, or fetch run.tar, which holds labels.ome.zarr",
        )
    if suffix.lower().endswith(_MANY_FILES):
        raise InputError(
            f"{name} would be two files, which cannot be fetched as one",
            hint="ask for .nii.gz or .nrrd",
        )


def export_labels(
    run: Run, artifacts: Path, suffix: str, *, source: Path, sink: ProgressSink
) -> Path:
    """Write the labels of a run in the format of a suffix; what is there already stays.

    Args:
        run: finished.
        artifacts: folder of what is exported; whole files only appear in it.
        suffix: with its dot.
        source: the input, for formats that refer to it.
        sink: progress and cancellation.

    Raises:
        LamellaError: when the format cannot hold these labels.
    """
    path = artifacts / f"labels{suffix}"
    if read_fact(path) is not None:
        return path
    options = SaveOptions(sink=sink, source=source if suffix.lower() == ".dcm" else None)
    with storage_errors(path):
        making = artifacts / f".making-{os.getpid()}"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        try:
            made = Path(save_volume(run.labels, making / path.name, options))
            fact = ExportFact(n_bytes=made.stat().st_size, sha256=_sha256(made, sink))
            made.replace(path)
            write_text(_fact_path(path), fact.to_json())
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return path


def make_export(document: Mapping[str, Any]) -> dict[str, Any]:
    """Export on demand; called in a process of its own.

    Args:
        document: ``run``, ``artifacts``, ``source`` (paths), ``suffix``, and what is ``hidden``
            (paths and the names to write for them).
    """
    from lamella.workflows.run import Run

    artifacts = Path(document["artifacts"])
    artifacts.mkdir(parents=True, exist_ok=True)
    run, source = Run.open(document["run"]), Path(document["source"])
    try:
        export_labels(run, artifacts, document["suffix"], source=source, sink=SilentSink())
    except LamellaError as error:
        raise PathNames(document["hidden"]).hide_error(error) from error
    return {}


def pack_run(run_dir: Path, artifacts: Path, prefix: str, *, sink: ProgressSink) -> TarIndex:
    """List what ``run.tar`` of a finished run holds, with its SHA-256; no byte is copied.

    Args:
        run_dir: the run folder.
        artifacts: where the list is left.
        prefix: name of the folder in the archive.
        sink: progress and cancellation.
    """
    index = make_index(run_dir, prefix, exclude=(".lock",), sink=sink)
    write_text(_fact_path(artifacts / TAR_NAME), index.to_json())
    return index


def read_fact(path: Path) -> ExportFact | None:
    """Size and SHA-256 of an export; None while it is not complete."""
    fact = _fact_path(path)
    return ExportFact.read(fact) if fact.is_file() and path.is_file() else None


def read_index(artifacts: Path) -> TarIndex | None:
    """What ``run.tar`` holds; None where it was not packed."""
    path = _fact_path(artifacts / TAR_NAME)
    return TarIndex.read(path) if path.is_file() else None


def _fact_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _sha256(path: Path, sink: ProgressSink) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_READ_BYTES):
            sink.check()
            digest.update(piece)
    return digest.hexdigest()
