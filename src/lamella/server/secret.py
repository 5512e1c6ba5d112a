"""The server's own secret: one random file in the data folder, and a key for every purpose."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from lamella.core.errors import StorageError

__all__ = ["Secret", "write_private"]

_FILE_NAME = "secret.key"
_N_BYTES = 32


@dataclass(frozen=True, slots=True)
class Secret:
    """What signatures and token hashes are made with; the value never leaves this object."""

    _value: bytes

    def __repr__(self) -> str:
        return "Secret(***)"

    def key(self, purpose: str) -> bytes:
        """A key of 32 bytes for one purpose; keys of two purposes say nothing of each other."""
        return hmac.new(self._value, b"lamella:" + purpose.encode(), hashlib.sha256).digest()

    @classmethod
    def of_folder(cls, data_dir: Path) -> Secret:
        """The secret of a data folder, made when it is first asked for.

        Raises:
            StorageError: the file is not one that this made.
        """
        path = data_dir / _FILE_NAME
        if not path.exists():
            write_private(path, secrets.token_bytes(_N_BYTES))
        value = path.read_bytes()
        if len(value) != _N_BYTES:
            raise StorageError(
                f"{path} has {len(value)} bytes, expected {_N_BYTES}",
                hint="restore it from a backup; without it tokens and signed addresses are void."
                " Delete it to have a new one made",
            )
        return cls(value)


def write_private(path: Path, content: bytes) -> bool:
    """Write a file that only this user reads, whole or not at all; what is there stays.

    Returns:
        Whether it was written: of two processes that try at once, one wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(staging, path)
        except FileExistsError:
            return False
        return True
    finally:
        staging.unlink()
