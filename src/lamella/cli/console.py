"""What people see: answers on stdout; progress, warnings and hints on stderr.

Examples:
    >>> console = Console(as_json=False, quiet=True)
    >>> console.answer({"n": 1}, "one object")
    one object
"""

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TextIO

import click

from lamella.core.progress import CancelToken

__all__ = ["Console", "ConsoleSink", "format_duration", "table"]

_REDRAW_S = 0.1
"""Shortest time between two drawings of the bar."""
_LINE_S = 10.0
"""Time between two progress lines where there is no terminal to draw on."""
_FIRST_LINE_S = 2.0
"""Time until the first of them in a stage."""
_RATE_S = 0.5
"""Time after which a rate means something."""
_BAR_WIDTH = 24
_LOG_WIDTH = 120


@dataclass
class Console:
    """Where a command writes.

    Args:
        as_json: answer with one JSON document on stdout and draw nothing.
        quiet: draw no progress (answers, warnings and errors still come).
    """

    as_json: bool = False
    quiet: bool = False

    @property
    def is_colored(self) -> bool:
        """Whether colours are welcome on stdout (a terminal, and NO_COLOR is not set)."""
        return _is_colored(sys.stdout)

    def answer(self, document: Any, text: str | Callable[[], str]) -> None:
        """Give the command's answer: ``document`` with ``--json``, else ``text``.

        Args:
            document: JSON values, or anything with ``model_dump``.
            text: what people read, or a function that makes it.
        """
        if self.as_json:
            click.echo(json.dumps(_plain(document), indent=2, ensure_ascii=False, default=str))
        else:
            click.echo(text() if callable(text) else text)

    def say(self, message: str) -> None:
        """A line for people on stderr; nothing with ``--quiet`` or ``--json``."""
        if not (self.as_json or self.quiet):
            click.echo(message, err=True)

    def warn(self, message: str) -> None:
        """A warning on stderr, except with ``--json`` (answers carry warnings as data)."""
        if not self.as_json:
            head = click.style("warning:", fg="yellow") if _is_colored(sys.stderr) else "warning:"
            click.echo(f"{head} {message}", err=True)

    def style(self, text: str, **style: Any) -> str:
        """``text`` in a colour or weight, where colours are welcome."""
        return click.style(text, **style) if self.is_colored else text

    @contextmanager
    def running(self, *, on_stop: str = "") -> Iterator["ConsoleSink"]:
        """A sink for long work that draws progress and turns Ctrl-C into a clean stop.

        The first Ctrl-C asks the work to stop at its next safe point, the second stops at once.

        Args:
            on_stop: said at the first Ctrl-C, besides that it is stopping.
        """
        sink = ConsoleSink(self)
        in_main = threading.current_thread() is threading.main_thread()
        previous = signal.getsignal(signal.SIGINT) if in_main else None

        def interrupt(_signal: int, _frame: Any) -> None:
            if sink.token.is_cancelled:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                raise KeyboardInterrupt
            sink.token.cancel()
            sink.clear()
            sink.interruption(on_stop)

        if in_main:
            signal.signal(signal.SIGINT, interrupt)
        try:
            yield sink
        finally:
            sink.clear()
            if in_main:
                signal.signal(signal.SIGINT, previous)


@dataclass
class ConsoleSink:
    """Draws what long work emits: events of :mod:`lamella.wire.event` and plain ``Progress``.

    On a terminal one line is redrawn; elsewhere a line is written two seconds into a stage and then
    every ten; with ``--quiet`` or ``--json`` nothing is drawn.
    """

    console: Console
    token: CancelToken = field(default_factory=CancelToken)
    stream: TextIO | None = None
    _stage: str = ""
    _started_s: float = 0.0
    _first_done: float = 0.0
    _drawn_s: float = 0.0
    _is_drawn: bool = False
    _lock: Any = field(default_factory=threading.RLock)

    def emit(self, event: Any, /) -> None:
        """Draw an event; never raises."""
        kind = getattr(event, "type", "progress")
        with self._lock:
            if kind == "progress":
                self._progress(event)
            elif kind == "warning":
                self.clear()
                self.console.warn(event.message)
            elif kind == "log":
                self.clear()
                self.console.say(event.message)

    def check(self) -> None:
        """Raise ``RunCancelledError`` after Ctrl-C."""
        self.token.check()

    def interruption(self, message: str) -> None:
        """Say that the work is stopping."""
        text = "stopping after the current step (Ctrl-C again stops at once)"
        self.console.say(f"{text}; {message}" if message else text)

    def clear(self) -> None:
        """Take the bar away, so that a line can be written."""
        with self._lock:
            if self._is_drawn:
                self._write("\r\x1b[K")
                self._is_drawn = False

    def _progress(self, event: Any) -> None:
        if self.console.quiet or self.console.as_json:
            return
        now = time.monotonic()
        is_new = event.stage != self._stage
        if is_new:
            self._stage, self._started_s, self._first_done = event.stage, now, event.done
        is_last = event.done >= event.total
        is_terminal = self._is_terminal()
        if is_terminal:
            is_due = is_new or is_last or now - self._drawn_s >= _REDRAW_S
        else:
            # In a log file a stage of a second is not worth a line.
            since = max(self._drawn_s, self._started_s - _LINE_S + _FIRST_LINE_S)
            is_due = now - since >= _LINE_S
        if not is_due:
            return
        self._drawn_s = now
        width = shutil.get_terminal_size().columns if is_terminal else _LOG_WIDTH
        line = self._line(event, now, width - 1)
        if is_terminal:
            self._write("\r\x1b[K" + line[: width - 1])
            self._is_drawn = True
            if is_last:
                self.clear()
        else:
            self._write(line.strip() + "\n")

    def _line(self, event: Any, now: float, width: int) -> str:
        fraction = 1.0 if event.total <= 0 else min(1.0, event.done / event.total)
        # Whole megabytes say nothing about a small file.
        digits = 1 if event.unit == "MB" and event.total < 100 else 0
        count = f"{event.done:,.{digits}f}/{event.total:,.{digits}f} {event.unit}".rstrip()
        if rate := getattr(event, "bytes_per_s", 0.0) or self._bytes_per_s(event, now):
            count += f"  {rate / 1e6:.1f} MB/s"
        left = getattr(event, "eta_s", None)
        if left is None and fraction > 0 and event.done > self._first_done:
            pace = (now - self._started_s) / (event.done - self._first_done)
            left = pace * (event.total - event.done)
        eta = f"  {format_duration(left)} left" if left is not None and fraction < 1 else ""
        rest = f"{fraction:4.0%}  {count}{eta}"
        # A narrow terminal costs the bar its length, not the reader the numbers.
        n_cells = max(4, min(_BAR_WIDTH, width - len(f"{event.stage:<16}") - len(rest) - 2))
        filled = round(fraction * n_cells)
        return f"{event.stage:<16} {'█' * filled}{'░' * (n_cells - filled)} {rest}"

    def _bytes_per_s(self, event: Any, now: float) -> float:
        """The rate of a stage that counts megabytes, once it has lasted long enough to tell."""
        lasted = now - self._started_s
        if event.unit != "MB" or lasted < _RATE_S or event.done <= self._first_done:
            return 0.0
        return (event.done - self._first_done) * 1e6 / lasted

    def _is_terminal(self) -> bool:
        stream = self.stream or sys.stderr
        return stream.isatty() and os.environ.get("TERM") != "dumb"  # noqa: TID251 - the edge

    def _write(self, text: str) -> None:
        stream = self.stream or sys.stderr
        try:
            stream.write(text)
            stream.flush()
        except (OSError, ValueError):
            # A closed terminal must not end the work it was watching.
            self.console = Console(as_json=self.console.as_json, quiet=True)


def format_duration(seconds: float) -> str:
    """A duration for people.

    Examples:
        >>> format_duration(0.42), format_duration(75), format_duration(4000)
        ('0.4 s', '1 min 15 s', '1 h 6 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def table(rows: Sequence[Sequence[object]], headers: Sequence[str]) -> str:
    """Rows as aligned text; numbers to the right.

    Examples:
        >>> print(table([("a", 5), ("bcd", 10)], ("name", "n")))
        name   n
        a      5
        bcd   10
    """
    cells = [[str(head) for head in headers]] + [[_cell(value) for value in row] for row in rows]
    numeric = [
        bool(rows) and all(isinstance(row[i], int | float) for row in rows)
        for i in range(len(headers))
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in cells
    ]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _plain(document: Any) -> Any:
    if hasattr(document, "model_dump"):
        return document.model_dump(mode="json")
    if isinstance(document, Mapping):
        return {str(key): _plain(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [_plain(value) for value in document]
    return document.item() if hasattr(document, "item") else document


def _is_colored(stream: Any) -> bool:
    settings = os.environ  # noqa: TID251 - the command line is the edge
    return stream.isatty() and not settings.get("NO_COLOR") and settings.get("TERM") != "dumb"
