"""A table of jobs that is drawn again and again until all of them have ended."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lamella.cli.console import Console, format_duration
from lamella.cli.failure import EXIT_INPUT
from lamella.cli.remote import Leaving, RemoteSink, leaving, queue_text, short_id
from lamella.core.errors import RunCancelledError

if TYPE_CHECKING:
    from lamella.client.client import Client
    from lamella.wire.job import JobDoc

__all__ = ["watch_jobs"]

_PAUSE_S = 1.0
_BAR = 12
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
        watched = ids or [job.id for job in client.jobs(limit=1000) if job.state not in _FINAL]
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
        is_live = sys.stdout.isatty() and not (self.console.as_json or self.console.quiet)
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
        order = sorted(jobs, key=lambda job: _rank(job.state))
        room = max(3, size.lines - 3)
        shown = order[:room]
        widths = (
            min(28, max(len(_name(job)) for job in shown)),
            min(20, max(len(job.spec.request.model) for job in shown)),
        )
        lines = [_line(job, widths, self.console, size.columns) for job in shown]
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
                    f"{short_id(job.id)}  {_name(job)}  {job.state}  {_progress(job)}".rstrip()
                )


def _rank(state: str) -> int:
    order = ("running", "cancelling", "interrupted", "queued", "failed", "cancelled", "finished")
    return order.index(state)


def _line(job: JobDoc, widths: tuple[int, int], console: Console, columns: int) -> str:
    """One row, no wider than the terminal.

    ::

        1f3a09bc  tomo.mrc  membrane-3d  running     tiles ██████░░░░░░  52%  10 s left
    """
    state = console.style(f"{job.state:<11}", fg=_COLORS.get(job.state))
    name, model = _cut(_name(job), widths[0]), _cut(job.spec.request.model, widths[1])
    head = f"{short_id(job.id)}  {name}  {model}  "
    rest = _progress(job)
    room = max(0, columns - len(head) - 12)
    return f"{head}{state} {rest[:room]}".rstrip()


def _cut(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else text[: width - 1] + "…"


def _progress(job: JobDoc) -> str:
    if job.state == "queued":
        return queue_text(job.position, job.eta_s)
    if job.state == "running" and job.progress is not None:
        known = job.progress
        share = min(1.0, known.done / known.total) if known.total else 0.0
        filled = round(share * _BAR)
        left = f"  {format_duration(known.eta_s)} left" if known.eta_s is not None else ""
        return f"{known.stage} {'█' * filled}{'░' * (_BAR - filled)} {share:4.0%}{left}"
    if job.state == "failed" and job.problem is not None:
        return job.problem.message
    if job.state == "finished" and job.n_objects is not None:
        return f"{job.n_objects:,} objects"
    return ""


def _name(job: JobDoc) -> str:
    return job.spec.name or Path(job.spec.request.input.path).name
