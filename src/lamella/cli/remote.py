"""What the commands of a server share: which server, what is drawn, what a Ctrl-C leaves."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lamella.cli.console import Console, ConsoleSink, format_duration
from lamella.cli.parameters import stack_options
from lamella.core.errors import InputError, RunCancelledError

if TYPE_CHECKING:
    from lamella.client.client import Client
    from lamella.wire.job import JobDoc

__all__ = [
    "Leaving",
    "RemoteSink",
    "connect",
    "elsewhere_options",
    "find_job",
    "format_bytes",
    "job_name",
    "leaving",
    "queue_text",
    "server_options",
    "short_id",
]

F = TypeVar("F", bound=Callable[..., Any])

_SHORT = 8
"""Digits of a job's id that people see and type."""
_ACCESS = (
    click.option("--token", help="Of the server; better LAMELLA_TOKEN or `lamella login`."),
    click.option(
        "--pin", metavar="SHA256",
        help="Certificate of a self-signed server, or: first (trust what comes first).",
    ),
    click.option("--insecure", is_flag=True, help="Send the token over http:// all the same."),
)  # fmt: skip
_QUIET_S = 5.0
"""Waits shorter than this are not worth a line in a log."""


def server_options(function: F) -> F:
    """Add the options that say which server, and who asks; see :func:`connect`."""
    text = "The server; LAMELLA_SERVER, or the only one that is known, unless given."
    return stack_options((click.option("--server", metavar="URL", help=text), *_ACCESS), function)


def elsewhere_options(function: F) -> F:
    """Add the same for commands that work here unless a server is named."""
    text = "Do it on this server, not here; see `lamella login`."
    return stack_options((click.option("--server", metavar="URL", help=text), *_ACCESS), function)


def connect(words: dict[str, Any]) -> Client:
    """A client of the server that a command's words name; they are taken out.

    Raises:
        InputError: when it is not clear which, or its address cannot be used.
    """
    from lamella.client.client import Client

    server, token = words.pop("server"), words.pop("token")
    pin, insecure = words.pop("pin"), words.pop("insecure")
    return Client(server, token, pin=pin, insecure=insecure)


def short_id(job_id: str) -> str:
    """The part of an id that people see and may type."""
    return job_id[:_SHORT]


def job_name(job: JobDoc) -> str:
    """What a job is called in lists: the input's name unless it was given one."""
    return job.spec.name or Path(job.spec.request.input.path).name


def find_job(client: Client, text: str) -> str:
    """The whole id of a job from its beginning, or of the newest for ``last``.

    Raises:
        InputError: when none or several begin so.
    """
    if len(text) >= 20 and text != "last":
        return text
    jobs = client.jobs(limit=1000)
    if text == "last" and jobs:
        return jobs[0].id
    found = [job.id for job in jobs if job.id.startswith(text)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError(f"there is no job {text}", hint="`lamella jobs list` shows them")
    raise InputError(
        f"{len(found)} jobs begin with {text}: {', '.join(short_id(one) for one in found[:4])}",
        hint="type more of the id",
    )


def format_bytes(n_bytes: float | None) -> str:
    """A size for people.

    Examples:
        >>> format_bytes(10), format_bytes(3.2e6), format_bytes(41e9)
        ('10 B', '3.2 MB', '41 GB')
    """
    if n_bytes is None:
        return ""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= size:
            value = n_bytes / size
            return f"{value:.1f} {unit}" if value < 10 else f"{value:,.0f} {unit}"
    return f"{n_bytes:.0f} B"


def queue_text(position: int | None, eta_s: float | None) -> str:
    """Where a job waits.

    Examples:
        >>> queue_text(1, None), queue_text(3, 130.0)
        ('next in the queue', 'position 3 in the queue, starts in about 2 min 10 s')
    """
    if position is None:
        return "in the queue"
    text = "next in the queue" if position == 1 else f"position {position} in the queue"
    # An estimate of a second is no news.
    return f"{text}, starts in about {format_duration(eta_s)}" if eta_s and eta_s > 2 else text


@dataclass
class RemoteSink(ConsoleSink):
    """Draws also what only servers say: the queue, and waits for a lost connection."""

    _said: str = ""
    _lost_s: float | None = None

    def emit(self, event: Any, /) -> None:
        """Draw an event; never raises."""
        kind = getattr(event, "type", "progress")
        with self._lock:
            if kind == "waiting":
                self._waiting(event)
                return
            if self._lost_s is not None:
                self._lost_s = None
                # What is left is not reckoned with the time when nothing went through.
                self._stage = ""
                self.clear()
            if kind == "state":
                self._state(event)
            elif kind == "progress" and event.total <= 1 and not event.unit:
                self._work(str(event.stage))
            else:
                super().emit(event)

    def wipe(self) -> None:
        """Take away the ^C that a terminal writes."""
        if self._is_terminal() and not (self.console.quiet or self.console.as_json):
            self._write("\r\x1b[K")
            self._is_drawn = False

    def _work(self, stage: str) -> None:
        """Work of the server that has no measure; worth a line in a log only when it lasts."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._started_s = stage, now
        if self._is_terminal() or now - self._started_s > _QUIET_S:
            self._status(_WORK.get(stage, stage))

    def _state(self, event: Any) -> None:
        if event.state == "queued":
            # A log needs no line about a queue that is passed at once.
            if self._is_terminal() or (event.position or 0) > 1:
                self._status(queue_text(event.position, event.eta_s))
        elif event.state == "interrupted":
            self.clear()
            self.console.say("the run was interrupted on the server; it goes on by itself")
        elif event.state == "running":
            self._said = ""
            self._passing("started on the server")
        elif event.state == "finished":
            self._passing("finished on the server")

    def _passing(self, text: str) -> None:
        """What a terminal shows until there is more to say."""
        if self._is_terminal():
            self._status(text)

    def note(self, text: str) -> None:
        """Show what is done now, where someone looks."""
        with self._lock:
            self._passing(text)

    def _waiting(self, event: Any) -> None:
        now = time.monotonic()
        self._lost_s = now if self._lost_s is None else self._lost_s
        lost_s = now - self._lost_s
        if self._is_terminal():
            # The reason last: a narrow terminal cuts the end off.
            since = f" for {format_duration(lost_s)}" if lost_s > 1 else ""
            self._status(f"trying again{since}: {event.reason}", always=True)
        elif lost_s + event.seconds > _QUIET_S:
            self._status(f"{event.reason}; trying again")

    def _status(self, text: str, *, always: bool = False) -> None:
        """One line that the next one replaces; elsewhere than on a terminal said once."""
        if self.console.quiet or self.console.as_json:
            return
        is_new, self._said = text != self._said, text
        if self._is_terminal():
            if is_new or always or not self._is_drawn:
                width = shutil.get_terminal_size().columns
                self._write("\r\x1b[K" + text[: width - 1])
                self._is_drawn = True
        elif is_new:
            self._write(text + "\n")


_WORK = {"preparing": "the server is looking at the input", "export": "the server writes the file"}


@dataclass
class Leaving:
    """What is said when someone stops a command that works with a server.

    Attributes:
        server: its address.
        phase: ``upload``, ``watch`` or ``download``.
        job: that is watched or downloaded.
        folder: run folder of an upload: it remembers a job that was queued just now, or before.
        n_queued: jobs that the command has queued so far.
    """

    server: str
    phase: str = "upload"
    job: str = ""
    folder: Path | None = None
    n_queued: int = 0

    def error(self) -> RunCancelledError:
        """The error of a stopped command: what goes on, and how to go on."""
        if self.phase == "upload" and self.folder is not None:
            from lamella.client.order import waiting_job

            self.job = waiting_job(self.folder) or ""
            self.phase = "watch" if self.job else "upload"
        job = short_id(self.job)
        if self.phase == "upload":
            others = {0: "no job was queued", 1: "one job was queued and goes on"}
            queued = others.get(self.n_queued, f"{self.n_queued} jobs were queued and go on")
            return RunCancelledError(
                f"{queued}; what was uploaded is kept on the server for a while",
                hint="the same command again goes on",
            )
        if self.phase == "watch":
            return RunCancelledError(
                f"left job {job}, which goes on at {self.server}",
                hint=f"the same command again comes back to it, `lamella jobs cancel {job}` ends"
                " it",
                details={"job": self.job, "server": self.server},
            )
        return RunCancelledError(
            f"job {job} is finished; what was downloaded of it is kept",
            hint="the same command again fetches the rest",
            details={"job": self.job, "server": self.server},
        )


@contextmanager
def leaving(console: Console, leave: Leaving) -> Iterator[RemoteSink]:
    """A sink for work with a server; Ctrl-C leaves at once, since nothing can be lost by it."""
    sink = RemoteSink(console)
    try:
        yield sink
    except KeyboardInterrupt:
        sink.wipe()
        raise leave.error() from None
    finally:
        sink.clear()
