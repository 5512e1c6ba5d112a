"""An event of a job's log as it is handed out: parsed once, encoded once for all who listen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

__all__ = ["END_STATES", "Entry", "Previews", "entries_of"]

Previews = Literal["none", "boxes", "labels"]
"""What a listener wants of previews: nothing, the boxes, or the boxes with their labels."""

END_STATES = ("finished", "failed", "cancelled")
"""After an event of one of these a job says no more, unless somebody retries it."""


class Entry:
    """One numbered event; immutable but for its caches.

    Args:
        number: of the event within its job.
        line: the event, JSON.
    """

    __slots__ = ("_encoded", "document", "line", "number")

    def __init__(self, number: int, line: str) -> None:
        self.number = number
        self.line = line.rstrip("\n")
        self.document: dict[str, Any] = json.loads(line)
        self._encoded: bytes | None = None

    @property
    def type(self) -> str:
        """The event's type, ``progress`` say."""
        return str(self.document["type"])

    @property
    def is_end(self) -> bool | None:
        """Whether the job has come to its end; None for events that say nothing about it."""
        if self.type != "state":
            return None
        return self.document["state"] in END_STATES

    def encoded(self) -> bytes:
        """As a server-sent event."""
        if self._encoded is None:
            self._encoded = server_sent(self.number, self.type, self.line)
        return self._encoded

    def with_document(self, document: dict[str, Any]) -> Entry:
        """The same event with more in it."""
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
        return Entry(self.number, text)


def server_sent(number: int, kind: str, line: str) -> bytes:
    """A server-sent event; JSON has no line breaks of its own.

    Examples:
        >>> server_sent(7, "log", '{"message":"hello"}').decode().splitlines()
        ['id: 7', 'event: log', 'data: {"message":"hello"}', '']
    """
    return f"id: {number}\nevent: {kind}\ndata: {line}\n\n".encode()


def entries_of(lines: Sequence[tuple[int, str]]) -> list[Entry]:
    """Entries of what a job's log gave."""
    return [Entry(number, line) for number, line in lines]
