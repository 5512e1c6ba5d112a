"""Progress, tables and colours: drawn where a person looks, silent elsewhere."""

import io
import os
import signal

import pytest

from lamella.cli import console as module
from lamella.cli.console import Console, ConsoleSink, format_duration, table
from lamella.cli.parameters import parse_integers, parse_options, parse_spacing
from lamella.core.errors import InputError, RunCancelledError
from lamella.core.progress import Progress
from lamella.wire.event import LogEvent, WarningEvent


class Screen(io.StringIO):
    def __init__(self, *, is_terminal):
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self):
        return self._is_terminal


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setenv("TERM", "xterm")
    return now


def test_a_terminal_has_one_line_that_is_redrawn_and_goes_away(clock):
    screen = Screen(is_terminal=True)
    sink = ConsoleSink(Console(), stream=screen)
    for done in range(5):
        clock[0] += 1
        sink.emit(Progress("tiles", done, 4, "tiles"))
    text = screen.getvalue()
    assert "\n" not in text
    assert " 50%  2/4 tiles  2.0 s left" in text
    assert text.endswith("\r\x1b[K")


def test_a_log_file_gets_a_line_after_two_seconds_and_then_every_ten(clock):
    screen = Screen(is_terminal=False)
    sink = ConsoleSink(Console(), stream=screen)
    for done in range(30):
        sink.emit(Progress("tiles", done, 30))
        clock[0] += 1
    assert len(screen.getvalue().splitlines()) == 3
    assert "\x1b" not in screen.getvalue()


@pytest.mark.parametrize("quiet", [Console(quiet=True), Console(as_json=True)])
def test_quiet_and_json_draw_nothing(quiet, clock):
    screen = Screen(is_terminal=True)
    ConsoleSink(quiet, stream=screen).emit(Progress("tiles", 1, 4))
    assert screen.getvalue() == ""


def test_warnings_come_through_unless_json(capsys):
    ConsoleSink(Console(quiet=True)).emit(WarningEvent(code="odd", message="strange"))
    assert capsys.readouterr().err == "warning: strange\n"
    ConsoleSink(Console(as_json=True)).emit(WarningEvent(code="odd", message="strange"))
    assert capsys.readouterr().err == ""


def test_lines_for_people_go_to_stderr(capsys):
    ConsoleSink(Console()).emit(LogEvent(message="going on"))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "going on\n")


def test_a_terminal_that_closes_does_not_end_the_work(clock):
    class Closed(Screen):
        def write(self, _text):
            raise BrokenPipeError

    sink = ConsoleSink(Console(), stream=Closed(is_terminal=True))
    for done in range(3):
        clock[0] += 1
        sink.emit(Progress("tiles", done, 4))


def test_the_first_interrupt_asks_and_the_second_insists(capsys):
    before = signal.getsignal(signal.SIGINT)
    with Console().running(on_stop="work is kept") as sink:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(RunCancelledError):
            sink.check()
        assert "stopping after the current step" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_colours_only_where_they_are_welcome(monkeypatch):
    screen = Screen(is_terminal=True)
    monkeypatch.setattr(module.sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Console().is_colored
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Console().is_colored
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not Console().is_colored


def test_tables_align_numbers_to_the_right():
    text = table([("a", 5, None), ("bcd", 1000, 0.123456)], ("name", "n", "share"))
    assert text.splitlines() == ["name     n  share", "a        5", "bcd   1000  0.1235"]


def test_durations():
    assert [format_duration(s) for s in (0.04, 59.6, 61, 7261)] == [
        "0.0 s", "1 min 0 s", "1 min 1 s", "2 h 1 min",
    ]  # fmt: skip


def test_words_become_values():
    assert parse_integers("64x32x16", what="--tile") == (64, 32, 16)
    assert parse_options(("a=1", "b=x=y", "c=null")) == {"a": 1, "b": "x=y", "c": None}
    spacing = parse_spacing("4,2,2", "nm")
    assert spacing is not None
    assert str(spacing) == "4 x 2 x 2 nm"


@pytest.mark.parametrize(
    ("parse", "match"),
    [
        (lambda: parse_integers("64,a", what="--tile"), "--tile '64,a' is not a list"),
        (lambda: parse_integers("64,0,64", what="--tile"), "is not a list"),
        (lambda: parse_options(("method",)), "has no '='"),
        (lambda: parse_options(("a=1", "a=2")), "given twice"),
        (lambda: parse_spacing(None, "nm"), "--unit was given without --spacing"),
    ],
)
def test_words_that_cannot_be_are_refused(parse, match):
    with pytest.raises(InputError, match=match):
        parse()
