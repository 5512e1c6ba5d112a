"""Server-sent events come the same however they are cut."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from lamella.client.sse import EventParser, SentEvent

STREAM = (
    '\ufeffid: 1\nevent: log\ndata: {"a": "ü"}\n\n'
    ": heartbeat\n\n"
    "data:two\ndata: lines\r\n\r\n"
    "id\nevent: x\rdata: 3\r\r"
    "retry: 10\nid: 4\ndata\n\n"
    "data: not ended\n"
).encode()
EVENTS = [
    SentEvent("1", "log", '{"a": "ü"}'),
    SentEvent("1", "message", "two\nlines"),
    SentEvent("", "x", "3"),
    SentEvent("4", "message", ""),
]


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_cuts_do_not_matter(cuts):
    places = [0, *sorted(cuts), len(STREAM)]
    parser = EventParser()
    found = [e for a, b in itertools.pairwise(places) for e in parser.feed(STREAM[a:b])]
    assert found == EVENTS


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", codec="utf-8"))))
def test_lines_come_back(lines):
    text = "".join(f"data: {line}\n" for line in lines) + "\n"
    found = EventParser().feed(text.encode())
    assert [event.data for event in found] == (["\n".join(lines)] if lines else [])
