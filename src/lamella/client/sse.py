r"""Server-sent events, parsed as they come (the WHATWG HTML standard, section 9.2.6).

Examples:
    >>> parser = EventParser()
    >>> parser.feed(b'id: 7\nevent: log\ndata: {"a"')
    []
    >>> parser.feed(b': 1}\n\n: heartbeat\n')
    [SentEvent(id='7', event='log', data='{"a": 1}')]
"""

import re
from dataclasses import dataclass

__all__ = ["EventParser", "SentEvent"]

_LINE_END = re.compile(rb"\r\n|\n|\r")
_LONGEST_LINE = 64 * 2**20


@dataclass(frozen=True, slots=True)
class SentEvent:
    """One event; ``id`` is the last one named so far, as the standard has it."""

    id: str
    event: str
    data: str


class EventParser:
    """Turns bytes, however they were cut, into events."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._n_searched = 0
        self._is_first = True
        self._id = ""
        self._event = ""
        self._data: list[str] = []

    def feed(self, data: bytes) -> list[SentEvent]:
        """Events that are complete with these bytes.

        Raises:
            ValueError: for a line that does not end.
        """
        self._rest += data
        events: list[SentEvent] = []
        place, search = 0, self._n_searched
        while (end := _LINE_END.search(self._rest, search)) is not None:
            if end.group() == b"\r" and end.end() == len(self._rest):
                # Its line feed may be on the way.
                break
            event = self._line(bytes(self._rest[place : end.start()]))
            if event is not None:
                events.append(event)
            place = search = end.end()
        del self._rest[:place]
        # A long line comes in many pieces: none of them is searched twice.
        self._n_searched = max(0, len(self._rest) - 1)
        if len(self._rest) > _LONGEST_LINE:
            raise ValueError(f"a line of more than {_LONGEST_LINE} bytes")
        return events

    def _line(self, line: bytes) -> SentEvent | None:
        if self._is_first:
            line = line.removeprefix(b"\xef\xbb\xbf")
            self._is_first = False
        if not line:
            return self._dispatch()
        name, _, value = line.decode("utf-8", "replace").partition(":")
        value = value.removeprefix(" ")
        if name == "id" and "\0" not in value:
            self._id = value
        elif name == "event":
            self._event = value
        elif name == "data":
            self._data.append(value)
        return None

    def _dispatch(self) -> SentEvent | None:
        data, event = self._data, self._event
        self._data, self._event = [], ""
        return SentEvent(self._id, event or "message", "\n".join(data)) if data else None
