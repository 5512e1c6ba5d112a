"""What an engine said when it had finished, kept beside its labels in ``engine.json``.

A run that is stopped while it counts, measures or draws goes on from here: the tiles are not
computed twice.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import LamellaError
from lamella.engines.engine import EngineResult
from lamella.io.format import open_labels, storage_errors
from lamella.volume.labels import Labels
from lamella.wire.document import Document, JsonValue
from lamella.wire.manifest import NoteDoc, RuntimeFact
from lamella.workflows.run_folder import RunFolder, write_bytes, write_text

__all__ = ["ConfidenceFact", "EngineRecord", "read_record", "write_record"]


class ConfidenceFact(Document):
    """The maps an engine left, see :class:`lamella.engines.engine.ConfidenceMaps`."""

    name: str
    measures: tuple[str, ...]
    is_calibrated: bool


class EngineRecord(Document):
    """An :class:`EngineResult` without its labels."""

    format_version: int = 1
    tiles_done: int
    tiles_planned: int
    runtime: RuntimeFact
    options_resolved: dict[str, JsonValue]
    warnings: tuple[NoteDoc, ...]
    confidence: ConfidenceFact | None = None
    columns: tuple[str, ...] = ()
    """Names of further numbers of every instance, kept in ``engine.npz``."""
    is_per_slice: bool = False
    """Whether objects were told apart within slices only."""

    def open_columns(self, folder: RunFolder) -> Mapping[str, NDArray[Any]]:
        """The further numbers, by name, each indexed by the id the engine gave."""
        if not self.columns:
            return {}
        with storage_errors(folder.engine_columns), np.load(folder.engine_columns) as stored:
            return {name: stored[name] for name in self.columns}

    def open_labels(self, folder: RunFolder) -> Labels:
        """The engine's labels, lazy."""
        return open_labels(folder.labels)


def write_record(folder: RunFolder, result: EngineResult) -> EngineRecord:
    """Keep a result; from here on the engine need not run again."""
    options = dict(result.options_resolved)
    check = options.pop("runtime_check", "")
    sure = result.confidence
    if result.columns:
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {name: np.asarray(v) for name, v in result.columns.items()}
        np.savez(buffer, **arrays)
        write_bytes(folder.engine_columns, buffer.getvalue())
    record = EngineRecord.model_validate(
        {
            "tiles_done": result.tiles_done,
            "tiles_planned": result.tiles_planned,
            "runtime": {
                "device": result.device,
                "runtime": result.runtime,
                "precision": result.precision,
                "check": str(check or ""),
            },
            "options_resolved": options,
            "warnings": [{"code": note.code, "message": note.message} for note in result.warnings],
            "columns": list(result.columns),
            "is_per_slice": result.is_per_slice,
            "confidence": None
            if sure is None
            else {
                "name": sure.name,
                "measures": list(sure.measures),
                "is_calibrated": sure.is_calibrated,
            },
        }
    )
    write_text(folder.engine_result, record.to_json())
    return record


def read_record(folder: RunFolder) -> EngineRecord | None:
    """The result an earlier process kept; None where the engine has to run (again)."""
    path: Path = folder.engine_result
    has_labels = folder.labels.exists() or folder.engine_labels.exists()
    if not path.is_file() or not has_labels:
        return None
    try:
        return EngineRecord.read(path)
    except LamellaError:
        return None
