"""Which blocks of a run are on disk: a line says what the blocks are, then one line a block.

A block is named only once its labels survive a crash, so whatever is named here is there. A line
that a crash cut short counts for nothing; another cut, or anything else that the labels depend on,
begins a new journal.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lamella.engines.engine import BlockRun

__all__ = ["JOURNAL_NAME", "BlockJournal"]

JOURNAL_NAME = "blocks.jsonl"


class BlockJournal:
    """Which blocks are on disk: a line says what the blocks are, then one line a block."""

    def __init__(self, path: Path, done: set[int], n_bytes: int) -> None:
        self.done = done
        self._stream = path.open("r+b" if n_bytes else "wb")
        self._stream.truncate(n_bytes)
        self._stream.seek(0, os.SEEK_END)

    @classmethod
    def open(cls, path: Path, run: BlockRun, *, is_resumed: bool) -> "BlockJournal":
        """Go on with the journal of the same blocks, or begin a new one."""
        header = {
            "format_version": 1,
            "identity": run.document["identity"],
            "blocks": [[*box.start, *box.stop] for box in run.boxes],
        }
        done: set[int] = set()
        n_bytes = 0
        if is_resumed and path.exists():
            for line in path.read_bytes().splitlines(keepends=True):
                try:
                    entry = json.loads(line) if line.endswith(b"\n") else {}
                    if n_bytes:
                        done.add(int(entry["block"]))
                    elif entry != header:
                        break
                except (ValueError, KeyError, TypeError):
                    break  # cut short by a crash
                n_bytes += len(line)
        journal = cls(path, done, n_bytes)
        if not n_bytes:
            journal._append(header)
        return journal

    def add(self, number: int) -> None:
        """Record that a block is on disk for good."""
        self._append({"block": number})
        self.done.add(number)

    def __enter__(self) -> "BlockJournal":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def _append(self, entry: Mapping[str, Any]) -> None:
        self._stream.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())
