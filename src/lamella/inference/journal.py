"""What of a run is finished: an append-only file of JSON lines.

The first line says what the run is (a *fingerprint* of input, model, options and plan, part by
part, so that a mismatch can be named). Every later line says which layers of which column are on
disk for good. A line is appended only after the layers it names were flushed to disk, and is
itself flushed before the run goes on; a line cut short by a crash is ignored and overwritten.

Examples:
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "journal.jsonl"
    >>> with Journal.start(path, {"model": "m"}) as journal:
    ...     journal.add(0, 32)
    >>> Journal.read(path).finished(0), Journal.read(path).differences({"model": "n"})
    (32, ['model'])
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from lamella.core.storage import sync_folder

__all__ = ["JOURNAL_NAME", "Journal", "JournalState", "digest", "tile_text", "was_left_at"]

JOURNAL_NAME = "journal.jsonl"
"""Name of the journal inside a run folder."""

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class JournalState:
    """A journal as it was found.

    Attributes:
        fingerprint: what the run was, by part; empty when there is no journal.
        layers: per column, the number of label layers that are finished from z = 0 on.
        n_bytes: length of the part that is whole.
    """

    fingerprint: Mapping[str, str] = field(default_factory=dict[str, str])
    layers: Mapping[int, int] = field(default_factory=dict[int, int])
    n_bytes: int = 0

    def finished(self, column: int) -> int:
        """Layers finished in a column."""
        return self.layers.get(column, 0)

    def differences(self, fingerprint: Mapping[str, str]) -> list[str]:
        """Names of the parts in which another run differs."""
        names = sorted({*self.fingerprint, *fingerprint})
        return [n for n in names if self.fingerprint.get(n) != fingerprint.get(n)]


class Journal:
    """An open journal; a context manager."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    @staticmethod
    def read(path: Path) -> JournalState:
        """Read a journal; an absent or unusable one reads as empty."""
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return JournalState()
        fingerprint: dict[str, str] | None = None
        layers: dict[int, int] = {}
        n_bytes = 0
        for line in content.splitlines(keepends=True):
            try:
                entry = json.loads(line) if line.endswith(b"\n") else {}
                if fingerprint is None:
                    if entry["format_version"] != FORMAT_VERSION:
                        break
                    fingerprint = {str(k): str(v) for k, v in entry["fingerprint"].items()}
                else:
                    column = int(entry["column"])
                    layers[column] = max(layers.get(column, 0), int(entry["layers"]))
            except (ValueError, KeyError, TypeError, AttributeError):
                break  # cut short by a crash, or no journal at all
            n_bytes += len(line)
        return JournalState(fingerprint or {}, layers, n_bytes)

    @classmethod
    def start(cls, path: Path, fingerprint: Mapping[str, str]) -> Self:
        """Begin a new journal in place of any other."""
        journal = cls(path.open("wb"))
        journal._append({"format_version": FORMAT_VERSION, "fingerprint": dict(fingerprint)})
        sync_folder(path.parent)
        return journal

    @classmethod
    def go_on(cls, path: Path, state: JournalState) -> Self:
        """Append to a journal after its last whole line."""
        stream = path.open("r+b")
        stream.truncate(state.n_bytes)
        stream.seek(0, os.SEEK_END)
        return cls(stream)

    def add(self, column: int, layers: int) -> None:
        """Record that the first ``layers`` label layers of a column are on disk for good."""
        self._append({"column": column, "layers": layers})

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _append(self, entry: Mapping[str, object]) -> None:
        self._stream.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())


def digest(value: Any) -> str:
    """A part of a fingerprint that is too long to be written out: SHA-256 of its ``repr``.

    Args:
        value: of plain numbers, texts, tuples and data classes; sets and mappings come sorted.
    """
    return hashlib.sha256(repr(value).encode()).hexdigest()


def tile_text(tile: Sequence[int]) -> str:
    """The part ``tile`` of a fingerprint; written out, so that :func:`was_left_at` can tell."""
    return ",".join(map(str, tile))


def was_left_at(run_dir: Path, tile: Sequence[int]) -> bool:
    """Whether the unfinished job of a run folder ran with tiles of this extent."""
    return Journal.read(run_dir / JOURNAL_NAME).fingerprint.get("tile") == tile_text(tile)
