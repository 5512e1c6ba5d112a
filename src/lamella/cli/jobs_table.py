"""A table of jobs that is drawn again and again until all of them have ended."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from lamella.cli.console import Console, format_duration
from lamella.cli.failure import EXIT_INPUT
from lamella.cli.remote import Leaving, RemoteSink, job_name, leaving, queue_text, short_id
from lamella.core.errors import RunCancelledError

if TYPE_CHECKING:
    from lamella.client.client import Client
    from lamella.wire.job import JobDoc, ProgressDoc

__all__ = ["watch_jobs"]

_PAUSE_S = 1.0
_BAR = 12
_ID, _STATE = 8, 11
_WORDS = 44
"""Columns that a stage, its share, its bar and the time left take."""
_FINAL = ("finished", "failed", "cancelled")
_COLORS = {"running": "cyan", "finished": "green", "failed": "red", "cancelled": "magenta"}


def watch_jobs(client: Client, ids: list[str], console: Console) -> int:
    """Show jobs until they have ended.

    Args:
        client: the server.
        ids: which jobs; all that have not ended unless given.
        console: where to draw and answer.

    Returns:
        The exit code: 0 when all have finished.
    """
    leave = Leaving(client.context.server, "watch")
    with leaving(console, leave) as sink:
        # Oldest first: as they run.
        listed = [] if ids else client.jobs(limit=1000)[::-1]
        watched = ids or [job.id for job in listed if job.state not in _FINAL]
        if not watched:
            console.answer({"jobs": []}, "no job is queued or running")
            return 0
        leave.job = watched[0]
        try:
            jobs = _Table(client, console, sink).run(watched)
        except KeyboardInterrupt:
            sink.wipe()
            what = "the job goes on" if len(watched) == 1 else "the jobs go on"
            raise RunCancelledError(
                f"{what} at {leave.server}",
                hint="`lamella jobs watch` shows them again, `lamella jobs cancel ID` ends one",
            ) from None
    for job in jobs:
        if job.state == "failed" and job.problem is not None and _is_live(console):
            # The table had one line for it.
            hint = f" ({job.problem.hint})" if job.problem.hint else ""
            console.warn(f"{short_id(job.id)}: {job.problem.message}{hint}")
    if console.as_json:
        console.answer({"jobs": [job.model_dump(mode="json") for job in jobs]}, "")
    return 0 if all(job.state == "finished" for job in jobs) else EXIT_INPUT


@dataclass
class _Table:
    client: Client
    console: Console
    sink: RemoteSink
    _n_drawn: int = 0
    _said: dict[str, str] = field(default_factory=dict[str, str])

    def run(self, ids: list[str]) -> list[JobDoc]:
        """Draw until all have ended."""
        is_live = _is_live(self.console)
        while True:
            jobs = self._known(ids)
            if is_live:
                self._draw(jobs)
            elif not self.console.as_json:
                self._say_changes(jobs)
            if all(job.state in _FINAL for job in jobs):
                return jobs
            time.sleep(_PAUSE_S)

    def _known(self, ids: list[str]) -> list[JobDoc]:
        from lamella.client.job import show

        patience = self.client.context.patience
        if len(ids) <= 3:
            return [self.client.drive(show(one, patience), self.sink) for one in ids]
        # One request for many; those that have left the list are asked for one by one.
        listed = {job.id: job for job in self.client.jobs(limit=1000)}
        return [
            listed[one] if one in listed else self.client.drive(show(one, patience), self.sink)
            for one in ids
        ]

    def _draw(self, jobs: list[JobDoc]) -> None:
        size = shutil.get_terminal_size()
        # Those that do something first; a table longer than the screen cannot be drawn again.
        order = sorted(jobs, key=lambda job: (_rank(job.state), job.position or 0))
        room = max(3, size.lines - 3)
        shown = order[:room]
        layout = _Layout.of(shown, size.columns)
        lines = [_line(job, layout, self.console) for job in shown]
        if len(order) > room:
            lines.append(f"... and {len(order) - room} more")
        up = f"\x1b[{self._n_drawn}A\x1b[J" if self._n_drawn else ""
        click.echo(up + "\n".join(lines))
        self._n_drawn = len(lines)

    def _say_changes(self, jobs: list[JobDoc]) -> None:
        for job in jobs:
            if self._said.get(job.id) != job.state:
                self._said[job.id] = job.state
                click.echo(
                    f"{short_id(job.id)}  {job_name(job)}  {job.state}  {_progress(job)}".rstrip()
                )


def _is_live(console: Console) -> bool:
    """Whether the table is drawn again and again, rather than changes told line by line."""
    return sys.stdout.isatty() and not (console.as_json or console.quiet)


def _rank(state: str) -> int:
    order = ("running", "cancelling", "interrupted", "queued", "failed", "cancelled", "finished")
    return order.index(state)


@dataclass(frozen=True)
class _Layout:
    """Widths of columns; the last one takes what is left."""

    name: int
    model: int
    room: int

    @classmethod
    def of(cls, jobs: list[JobDoc], columns: int) -> _Layout:
        """Names and models as wide as they are, where the terminal has room for them.

        What a job does comes first: a narrow terminal shortens names, then leaves models out.
        """
        name = min(32, max(len(job_name(job)) for job in jobs))
        model = min(24, max(len(job.spec.request.model) for job in jobs))
        # Id, state and spaces; then a bar with its share and the time left.
        spare = columns - 1 - (_ID + 2 + 2 + _STATE + 1) - _WORDS
        if spare < name + model + 2:
            name = min(name, max(12, spare - model - 2))
        if spare < name + model + 2:
            model = 0
            name = min(name, max(8, spare))
        used = _ID + 2 + name + 2 + (model + 2 if model else 0) + _STATE + 1
        return cls(name, model, max(0, columns - 1 - used))


def _line(job: JobDoc, layout: _Layout, console: Console) -> str:
    """One row, no wider than the terminal.

    ::

        1f3a09bc  tomo.mrc  membrane-3d  running     tiles  52% ██████░░░░░░  10 s left
    """
    cells = [short_id(job.id), _cut(job_name(job), layout.name)]
    if layout.model:
        cells.append(_cut(job.spec.request.model, layout.model))
    state = console.style(f"{job.state:<{_STATE}}", fg=_COLORS.get(job.state))
    said = next((one for one in _versions(job) if len(one) <= layout.room), None)
    if said is None:
        said = _versions(job)[-1][: layout.room]
    return f"{'  '.join(cells)}  {state} {said}".rstrip()


def _cut(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else text[: width - 1] + "…"


def _progress(job: JobDoc) -> str:
    return _versions(job)[0]


def _versions(job: JobDoc) -> list[str]:
    """What there is to say about a job, from the longest way to the shortest."""
    if job.state == "queued":
        text = queue_text(job.position, job.eta_s)
        return [text, text.replace("starts in about", "in"), text.partition(",")[0]]
    if job.state == "running":
        return _running(job.progress)
    if job.state == "failed" and job.problem is not None:
        return [job.problem.message]
    if job.state == "finished" and job.n_objects is not None:
        return [f"{job.n_objects:,} objects"]
    return [""]


def _running(known: ProgressDoc | None) -> list[str]:
    if known is None:
        return ["starting", ""]
    share = min(1.0, known.done / known.total) if known.total else 0.0
    filled = round(share * _BAR)
    bar = "█" * filled + "░" * (_BAR - filled)
    short = f"{known.stage} {share:4.0%}"
    # A second left is no news.
    has_end = known.eta_s is not None and known.eta_s > 1
    left = f"  {format_duration(known.eta_s or 0.0)} left" if has_end else ""
    return [f"{short} {bar}{left}", f"{short}{left}", short, f"{share:.0%}"]
