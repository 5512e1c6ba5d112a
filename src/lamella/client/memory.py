"""What a client remembers between two processes: where an interrupted upload goes on.

One small JSON file per server and input, in the user's cache. It is replaced whole, so a crash
leaves the old one or the new one; losing it costs time, never data.
"""

import hashlib
import json
import os
import threading
from contextlib import suppress
from pathlib import Path

from lamella.client.source import Identity

__all__ = ["Memory", "forget_old", "open_memory"]

_VERSION = 1
_OLD_S = 60 * 86400


class Memory:
    """Words by name, for one input on one server; kept in a file where there is one.

    Args:
        path: the file; None keeps them in this process only.
        about: what it belongs to; words about anything else are forgotten.
    """

    def __init__(self, path: Path | None = None, about: dict[str, str] | None = None) -> None:
        self._path = path
        self._about = about or {}
        # Parts of an upload are sent at the same time.
        self._lock = threading.Lock()
        self._words: dict[str, str] = self._read()

    def get(self, name: str) -> str | None:
        """A word, or None."""
        with self._lock:
            return self._words.get(name)

    def put(self, name: str, word: str) -> None:
        """Remember a word."""
        with self._lock:
            if self._words.get(name) != word:
                self._words[name] = word
                self._write()

    def drop(self, *prefixes: str) -> None:
        """Forget the words whose names begin so; all without a prefix."""
        with self._lock:
            kept = {
                name: word
                for name, word in self._words.items()
                if prefixes and not name.startswith(prefixes)
            }
            if kept != self._words:
                self._words = kept
                self._write()

    def _read(self) -> dict[str, str]:
        if self._path is None:
            return {}
        # An unreadable memory is none: the upload starts anew.
        with suppress(OSError, ValueError, AttributeError):
            document = json.loads(self._path.read_text(encoding="utf-8"))
            if document.get("version") == _VERSION and document.get("about") == self._about:
                return {str(name): str(word) for name, word in document["words"].items()}
        return {}

    def _write(self) -> None:
        if self._path is None:
            return
        document = {"version": _VERSION, "about": self._about, "words": self._words}
        # A full disk of the cache must not end an upload that needs nothing of it.
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}.new")
            fresh.write_text(json.dumps(document, indent=1), encoding="utf-8")
            fresh.replace(self._path)


def open_memory(cache: Path | None, server: str, identity: Identity) -> Memory:
    """The memory of an input on a server.

    Args:
        cache: the user's folder for such things; None remembers nothing beyond this process.
        server: its address.
        identity: path, size and times of the input: a changed file is another one.
    """
    if cache is None:
        return Memory()
    name = hashlib.sha256(f"{server}\n{identity.path}".encode()).hexdigest()[:32]
    about = {
        "server": server,
        "path": identity.path,
        "size": str(identity.size),
        "state": identity.state,
    }
    return Memory(cache / "uploads" / f"{name}.json", about)


def forget_old(cache: Path, now_s: float) -> None:
    """Remove memories that nobody has used for two months."""
    with suppress(OSError):
        for path in (cache / "uploads").glob("*.json"):
            if now_s - path.stat().st_mtime > _OLD_S:
                path.unlink()
