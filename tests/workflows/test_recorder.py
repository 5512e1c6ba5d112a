"""Every event is numbered once, survives a crash, and progress does not flood."""

import json

from lamella.core.progress import Progress
from lamella.wire.event import LogEvent, ProgressEvent, StartedEvent, WarningEvent
from lamella.workflows.recorder import Recorder


class Listener:
    def __init__(self):
        self.events = []

    def emit(self, event):
        self.events.append(event)

    def check(self):
        pass


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_events_are_numbered_and_the_file_says_the_same(tmp_path):
    listener = Listener()
    with Recorder(tmp_path / "events.jsonl", listener) as recorder:
        recorder.emit(StartedEvent(run="r", model="m", shape=(1, 2, 3)))
        recorder.emit(LogEvent(message="hello"))
    assert [event.number for event in listener.events] == [1, 2]
    assert [line["number"] for line in lines(tmp_path / "events.jsonl")] == [1, 2]


def test_numbers_go_on_after_a_line_that_was_cut_short(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"number": 1}\n{"number": 2}\n{"numb')
    with Recorder(path, Listener()) as recorder:
        recorder.emit(LogEvent(message="again"))
    assert [line["number"] for line in lines(path)] == [1, 2, 3]


def test_progress_is_thinned_but_its_end_is_not_lost(tmp_path):
    now = [0.0]
    listener = Listener()
    with Recorder(tmp_path / "e", listener, clock=lambda: now[0]) as recorder:
        for done in range(1, 1001):
            now[0] += 0.001
            recorder.emit(Progress("tiles", done, 1000, "tiles"))
    kept = [event for event in listener.events if isinstance(event, ProgressEvent)]
    assert len(kept) < 10
    assert kept[-1].done == 1000


def test_an_eta_is_told_where_the_emitter_has_none(tmp_path):
    now = [0.0]
    listener = Listener()
    with Recorder(tmp_path / "e", listener, clock=lambda: now[0]) as recorder:
        recorder.emit(Progress("tiles", 0, 10))
        now[0] = 2.0
        recorder.emit(Progress("tiles", 5, 10))
    assert [event.eta_s for event in listener.events] == [None, 2.0]


def test_a_warning_is_said_once_and_remembered(tmp_path):
    listener = Listener()
    with Recorder(tmp_path / "e", listener) as recorder:
        for _ in range(3):
            recorder.emit(WarningEvent(code="odd", message="strange"))
    assert len(listener.events) == 1
    assert [note.code for note in recorder.warnings] == ["odd"]


def test_a_diary_that_cannot_be_written_does_not_end_the_run(tmp_path):
    listener = Listener()
    with Recorder(tmp_path / "absent" / "events.jsonl", listener) as recorder:
        recorder.emit(LogEvent(message="still here"))
    assert len(listener.events) == 1
