"""Coalescing: whoever hears less ends where it would have ended with everything."""

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lamella.server.events.coalesce import coalesce
from lamella.server.events.entry import Entry

N = 6


@st.composite
def boxes(draw):
    pairs = [sorted(draw(st.tuples(st.integers(0, N), st.integers(0, N)))) for _ in range(2)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


@st.composite
def documents(draw):
    kind = draw(st.sampled_from(["progress", "preview", "state", "log", "warning", "finished"]))
    if kind == "progress":
        stage = draw(st.sampled_from("ab"))
        return {"type": kind, "stage": stage, "done": draw(st.integers(0, 9)), "total": 9}
    if kind == "preview":
        start, stop = draw(boxes())
        is_final = draw(st.booleans())
        return {"type": kind, "box_start": start, "box_stop": stop, "is_final": is_final}
    return {"type": kind, "state": draw(st.sampled_from(["queued", "running", "finished"]))}


def entries_of(documents):
    return [
        Entry(number, json.dumps({**document, "number": number}))
        for number, document in enumerate(documents, 1)
    ]


def end_state(entries):
    """What a listener knows after these events: its canvas, its bars, and all it must not miss."""
    canvas = np.zeros((N, N), int)
    is_final = np.zeros((N, N), bool)
    progress: dict[str, dict] = {}
    told = []
    for entry in entries:
        document = entry.document
        if entry.type == "preview":
            where = tuple(
                slice(a, b)
                for a, b in zip(document["box_start"], document["box_stop"], strict=True)
            )
            paints = np.ones_like(is_final[where]) if document["is_final"] else ~is_final[where]
            canvas[where][paints] = entry.number
            if document["is_final"]:
                is_final[where] = True
        elif entry.type == "progress":
            progress[document["stage"]] = document
        else:
            told.append(document)
    last = next((e.document for e in reversed(entries) if e.type == "progress"), None)
    return canvas.tolist(), is_final.tolist(), progress, last, told


@given(st.lists(documents(), max_size=40))
def test_the_coalesced_stream_ends_in_the_state_of_the_whole(items):
    whole = entries_of(items)
    assert end_state(coalesce(whole)) == end_state(whole)


@given(st.lists(documents(), max_size=40))
def test_numbers_rise_and_nothing_is_invented(items):
    whole = entries_of(items)
    kept = coalesce(whole)
    numbers = [entry.number for entry in kept]
    assert numbers == sorted(set(numbers))
    assert {id(entry) for entry in kept} <= {id(entry) for entry in whole}


@given(st.lists(documents(), max_size=40))
def test_only_progress_and_previews_are_dropped(items):
    whole = entries_of(items)
    kept = coalesce(whole)
    dropped = {entry.type for entry in whole if entry not in kept}
    assert dropped <= {"progress", "preview"}
    # The newest event always comes: its number is where the listener goes on.
    assert not whole or kept[-1] is whole[-1]


@given(st.lists(documents(), max_size=40), st.integers(0, 40))
def test_pieces_are_coalesced_as_well_as_the_whole(items, cut):
    whole = entries_of(items)
    pieces = [*coalesce(whole[:cut]), *coalesce(whole[cut:])]
    assert end_state(pieces) == end_state(whole)


def test_a_pass_over_everything_drops_the_boxes_before_it():
    boxes = [
        {"type": "preview", "box_start": [i, 0], "box_stop": [i + 1, N], "is_final": True}
        for i in range(N)
    ]
    everything = {"type": "preview", "box_start": [0, 0], "box_stop": [N, N], "is_final": True}
    assert len(coalesce(entries_of([*boxes, everything]))) == 1
