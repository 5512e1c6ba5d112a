"""A file that is still coming: what is there, its running SHA-256, and where it comes from.

Bytes are in the hands of the system as soon as they are appended, so a killed process loses
nothing that came. The state beside the file (``NAME.state``) says which address gave it, by which
ETag or date, and how long it is to become.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

__all__ = ["PartFile", "PartState", "open_part", "state_path"]

_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PartState:
    """Where the bytes of a part come from.

    Attributes:
        address: who gave them.
        validator: ETag or date of that version; empty where the server told none.
        total: length of the whole file; None where nobody told.
    """

    address: str = ""
    validator: str = ""
    total: int | None = None


def state_path(path: Path) -> Path:
    """Return where the state of a part is kept."""
    return path.with_name(path.name + ".state")


@contextmanager
def open_part(path: Path, check: Callable[[], None]) -> Iterator[PartFile]:
    """Open a part, new or begun; what is there is read once for its hash.

    Args:
        path: the file; its folder exists.
        check: raises when the work should stop.
    """
    path.touch()
    with path.open("r+b", buffering=0) as stream:
        part = PartFile(path, stream, check)
        part.cut(path.stat().st_size)
        yield part


class PartFile:
    """The bytes there so far."""

    def __init__(self, path: Path, stream: BinaryIO, check: Callable[[], None]) -> None:
        self._path = path
        self._stream = stream
        self._check = check
        self._hash = hashlib.sha256()
        self.size = 0
        self.state = _read_state(state_path(path))

    @property
    def sha256(self) -> str:
        """Of all bytes there, hex."""
        return self._hash.hexdigest()

    def cut(self, size: int) -> None:
        """Keep the first ``size`` bytes."""
        self._stream.truncate(size)
        self._hash = hashlib.sha256()
        self._stream.seek(0)
        self.size = 0
        while piece := self._stream.read(_BUFFER_BYTES):
            self._hash.update(piece)
            self.size += len(piece)
            self._check()

    def put(self, position: int, chunk: bytes) -> bool:
        """Bring bytes to a position at or before the end; those that are there already stay.

        From the first byte that differs on, what was there is replaced.

        Returns:
            Whether any byte differed.
        """
        n_there = min(len(chunk), self.size - position)
        assert n_there >= 0, "parts have no holes"
        differs = False
        if n_there:
            self._stream.seek(position)
            there = self._stream.read(n_there)
            if there != chunk[:n_there]:
                n_there = next(i for i, byte in enumerate(there) if byte != chunk[i])
                self.cut(position + n_there)
                differs = True
        self._append(chunk[n_there:])
        return differs

    def write_state(self, state: PartState) -> None:
        """Keep where the bytes come from."""
        if state == self.state:
            return
        self.state = state
        target = state_path(self._path)
        fresh = target.with_name(target.name + ".new")
        fresh.write_text(json.dumps(asdict(state)), encoding="utf-8")
        fresh.replace(target)

    def _append(self, chunk: bytes) -> None:
        self._stream.seek(self.size)
        view = memoryview(chunk)
        while view:
            n_written = self._stream.write(view)
            self._hash.update(view[:n_written])
            self.size += n_written
            view = view[n_written:]


def _read_state(path: Path) -> PartState:
    with suppress(OSError, ValueError, KeyError, TypeError):
        told = json.loads(path.read_text(encoding="utf-8"))
        total = told["total"]
        return PartState(
            str(told["address"]),
            str(told["validator"]),
            total if isinstance(total, int) else None,
        )
    return PartState()
