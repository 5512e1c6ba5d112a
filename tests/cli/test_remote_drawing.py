"""What people see of work on a server: bars, the queue, lost connections, the table of jobs."""

import io
import re

import pytest

from lamella.cli import console as console_module
from lamella.cli import jobs_table
from lamella.cli.console import Console, ConsoleSink
from lamella.cli.jobs_table import _Layout, _line, _Table
from lamella.cli.remote import Leaving, RemoteSink, queue_text
from lamella.client.patience import Waiting
from lamella.core.progress import Progress
from lamella.wire.event import ProgressEvent, StateEvent
from lamella.wire.job import JobDoc, JobSpec, ProgressDoc
from lamella.wire.problem import Problem
from lamella.wire.request import InputDoc, SegmentRequest

CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|\r")


class Screen(io.StringIO):
    def __init__(self, is_terminal):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def sink(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(
        console_module.shutil, "get_terminal_size", lambda: __import__("os").terminal_size((80, 24))
    )
    return RemoteSink(Console(), stream=Screen(is_terminal=True))


def shown(sink):
    """The line that is seen last."""
    return CONTROL.split(sink.stream.getvalue())[-1]


def job(state="running", **words):
    spec = JobSpec(
        request=SegmentRequest(input=InputDoc(path="volume:v1"), model="membrane-3d"),
        name=words.pop("name", "tomogram.mrc"),
    )
    known = {"id": "1f3a09bc" + "0" * 12, "owner": "me", "spec": spec, "state": state, "attempt": 1}
    return JobDoc(**known, created="2026-01-01T00:00:00+00:00", **words)


def test_megabytes_have_a_rate_and_small_files_a_decimal(sink, clock):
    sink.emit(Progress("upload", 0.0, 8.2, "MB"))
    assert "0.0/8.2 MB" in shown(sink)
    clock[0] += 2
    sink.emit(Progress("upload", 4.1, 8.2, "MB"))
    assert "50%  4.1/8.2 MB  2.0 MB/s  2.0 s left" in shown(sink)
    sink.emit(Progress("download", 0.0, 4100.0, "MB"))
    assert "0/4,100 MB" in shown(sink)


def test_a_lost_connection_is_told_with_its_duration_first(sink, clock):
    sink.emit(Progress("upload", 0.0, 8.0, "MB"))
    sink.emit(Waiting("the connection to a.very.long.name.of.a.server:8443 broke " * 2, 1.0))
    assert shown(sink).startswith("trying again: the connection")
    clock[0] += 75
    sink.emit(Waiting("the connection broke", 9.0))
    assert shown(sink) == "trying again for 1 min 15 s: the connection broke"
    assert all(len(line) < 80 for line in CONTROL.split(sink.stream.getvalue()))
    # What is left is not reckoned with the time when nothing went through.
    sink.emit(Progress("upload", 1.0, 8.0, "MB"))
    clock[0] += 1
    sink.emit(Progress("upload", 2.0, 8.0, "MB"))
    assert "1.0 MB/s  6.0 s left" in shown(sink)


def test_queue_start_and_end_are_shown(sink):
    sink.note("asking https://gpu.lab")
    assert shown(sink) == "asking https://gpu.lab"
    sink.emit(StateEvent(state="queued", position=3, eta_s=130.0, number=1))
    assert shown(sink) == "position 3 in the queue, starts in about 2 min 10 s"
    sink.emit(StateEvent(state="running", attempt=1, number=2))
    assert shown(sink) == "started on the server"
    sink.emit(ProgressEvent(stage="tiles", done=1, total=4, unit="tiles", number=3))
    assert "tiles" in shown(sink)
    sink.emit(StateEvent(state="finished", number=4))
    assert shown(sink) == "finished on the server"
    sink.clear()
    assert shown(sink) == ""


def test_a_log_gets_only_what_is_worth_a_line(clock):
    sink = RemoteSink(Console(), stream=Screen(is_terminal=False))
    sink.note("asking https://gpu.lab")
    sink.emit(StateEvent(state="queued", position=1, number=1))
    sink.emit(StateEvent(state="running", attempt=1, number=2))
    sink.emit(Waiting("the connection broke", 1.0))
    assert sink.stream.getvalue() == ""
    clock[0] += 30
    sink.emit(Waiting("the connection broke", 9.0))
    sink.emit(Waiting("the connection broke", 9.0))
    assert sink.stream.getvalue() == "the connection broke; trying again\n"


@pytest.mark.parametrize("words", [{"as_json": True}, {"quiet": True}])
def test_quiet_is_quiet(words, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    sink = RemoteSink(Console(**words), stream=Screen(is_terminal=True))
    sink.note("asking")
    sink.emit(StateEvent(state="queued", position=3, number=1))
    sink.emit(Waiting("the connection broke", 9.0))
    sink.emit(Progress("upload", 0.0, 8.0, "MB"))
    assert sink.stream.getvalue() == ""


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 100, 200])
def test_no_row_is_wider_than_the_terminal(columns):
    progress = ProgressDoc(stage="tiles", done=13, total=25, unit="tiles", eta_s=75.0)
    jobs = [
        job(progress=progress),
        job("queued", position=12, eta_s=4000.0, name="a quite long name of a tomogram.mrc"),
        job("failed", problem=Problem(code="x", message="the engine has no option " * 9)),
        job("finished", n_objects=1234),
        job(),
    ]
    layout = _Layout.of(jobs, columns)
    lines = [_line(one, layout, Console()) for one in jobs]
    assert all(len(line) <= max(columns, 32) for line in lines)
    if columns >= 60:
        assert "52%" in lines[0]
    if columns >= 100:
        assert "tiles  52% ██████░░░░░░  1 min 15 s left" in lines[0]
        assert "1,234 objects" in lines[3]


def test_those_that_run_come_first_then_the_queue_in_its_order(monkeypatch):
    screen = Screen(is_terminal=True)
    monkeypatch.setattr(jobs_table.click, "echo", lambda text: screen.write(text + "\n"))
    jobs = [
        job("queued", position=2, name="third"),
        job("finished", name="last"),
        job("queued", position=1, name="second"),
        job(name="first"),
    ]
    table = _Table(None, Console(), None)
    table._draw(jobs)
    names = [line.split()[1] for line in screen.getvalue().splitlines()]
    assert names == ["first", "second", "third", "last"]
    table._draw(jobs)
    assert "\x1b[4A\x1b[J" in screen.getvalue(), "drawn over itself"


def test_where_a_job_waits():
    assert queue_text(None, None) == "in the queue"
    assert queue_text(1, 1.0) == "next in the queue"


def test_what_a_stop_says(tmp_path):
    leave = Leaving("https://gpu.lab", folder=tmp_path)
    assert leave.error().message.startswith("no job was queued")
    leave.n_queued = 2
    assert leave.error().message.startswith("2 jobs were queued and go on")
    leave = Leaving("https://gpu.lab", "watch", "1f3a09bc0000")
    assert "left job 1f3a09bc, which goes on at https://gpu.lab" in leave.error().message
    assert "lamella jobs cancel 1f3a09bc" in str(leave.error().hint)
    leave.phase = "download"
    assert "what was downloaded of it is kept" in leave.error().message


def test_the_plain_sink_has_rates_too(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    sink = ConsoleSink(Console(), stream=Screen(is_terminal=True))
    sink.emit(Progress("fingerprint", 0.0, 8.0, "MB"))
    clock[0] += 1
    sink.emit(Progress("fingerprint", 4.0, 8.0, "MB"))
    assert "4.0/8.0 MB  4.0 MB/s" in shown(sink)
