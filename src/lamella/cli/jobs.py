"""``lamella jobs``: what the user's jobs on a server do, and what comes of them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import format_duration, table
from lamella.cli.parameters import answer_options, console_of
from lamella.cli.remote import (
    Leaving,
    connect,
    find_job,
    job_name,
    leaving,
    queue_text,
    server_options,
    short_id,
)
from lamella.cli.segmenting import run_document, run_text
from lamella.wire.state import JOB_STATES

if TYPE_CHECKING:
    from lamella.wire.job import JobDoc

__all__ = ["command"]


@click.group()
def command() -> None:
    """Jobs on a server: list, watch, cancel, retry and download them.

    A JOB is the beginning of its id, as `lamella jobs list` shows it, or: last.
    """


@command.command("list")
@click.option("--state", type=click.Choice(JOB_STATES), help="Only jobs in this state.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=30, help="At most so many (30).")
@server_options
@answer_options
def list_command(state: str | None, limit: int, **words: Any) -> None:
    """List jobs, newest first."""
    console = console_of(words)
    with connect(words) as client:
        jobs = client.jobs(state=state, limit=limit)
    document = {"jobs": [job.model_dump(mode="json") for job in jobs]}
    console.answer(document, lambda: _listing(jobs))


@command.command("show")
@click.argument("job")
@server_options
@answer_options
def show_command(job: str, **words: Any) -> None:
    """Tell all about one JOB."""
    console = console_of(words)
    with connect(words) as client:
        known = client.job(find_job(client, job)).job
    console.answer(known, lambda: _details(known))


@command.command("watch")
@click.argument("jobs", metavar="[JOB...]", nargs=-1)
@server_options
@answer_options
def watch_command(jobs: tuple[str, ...], **words: Any) -> int:
    """Watch jobs until they end.

    Those named, or all that have not ended.

    Ctrl-C ends the watching, not the jobs.
    """
    from lamella.cli.jobs_table import watch_jobs

    console = console_of(words)
    with connect(words) as client:
        ids = [find_job(client, text) for text in jobs]
        return watch_jobs(client, ids, console)


@command.command("cancel")
@click.argument("jobs", metavar="JOB...", nargs=-1, required=True)
@server_options
@answer_options
def cancel_command(jobs: tuple[str, ...], **words: Any) -> None:
    """Cancel jobs; retry goes on with what is finished."""
    _act("cancel", jobs, words)


@command.command("retry")
@click.argument("jobs", metavar="JOB...", nargs=-1, required=True)
@server_options
@answer_options
def retry_command(jobs: tuple[str, ...], **words: Any) -> None:
    """Let failed or cancelled jobs go on where they stopped."""
    _act("retry", jobs, words)


@command.command("remove")
@click.argument("jobs", metavar="JOB...", nargs=-1, required=True)
@server_options
@answer_options
def remove_command(jobs: tuple[str, ...], **words: Any) -> None:
    """Remove ended jobs and their results."""
    console = console_of(words)
    with connect(words) as client:
        ids = [find_job(client, text) for text in jobs]
        for job_id in ids:
            client.remove("jobs", job_id)
    console.answer({"removed": ids}, "\n".join(f"{short_id(one)}: removed" for one in ids))


@command.command("log")
@click.argument("job")
@server_options
@answer_options
def log_command(job: str, **words: Any) -> None:
    """Print what a JOB said."""
    console = console_of(words)
    with connect(words) as client:
        job_id = find_job(client, job)
        text = client.log(job_id)
    console.answer({"job": job_id, "log": text}, text.rstrip("\n"))


@command.command("download")
@click.argument("job")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path),
    help="Run folder to make; ./NAME.MODEL.run unless given.",
)  # fmt: skip
@server_options
@answer_options
def download_command(job: str, output: Path | None, **words: Any) -> None:
    """Bring a JOB's run folder here.

    Waits for a job that has not ended.
    """
    console = console_of(words)
    with connect(words) as client:
        remote = client.job(find_job(client, job))
        leave = Leaving(client.context.server, "watch", remote.id)
        with leaving(console, leave) as sink:
            remote.wait(sink)
            leave.phase = "download"
            run = remote.download(output, sink=sink)
    document = run_document(run) | {"server": leave.server, "job": remote.id}
    console.answer(document, lambda: run_text(run, console))


@command.command("models")
@server_options
@answer_options
def models_command(**words: Any) -> None:
    """List the models that the server can use."""
    console = console_of(words)
    with connect(words) as client:
        models = client.models()
    here = [one for one in models if one.get("is_here", True)]
    rows = [(one.get("id", ""), one.get("engine", ""), one.get("title", "")) for one in here]
    console.answer({"models": models}, lambda: table(rows, ("id", "engine", "what it segments")))


def _act(verb: str, jobs: tuple[str, ...], words: dict[str, Any]) -> None:
    console = console_of(words)
    with connect(words) as client:
        ids = [find_job(client, text) for text in jobs]
        runs = [client.job(job_id) for job_id in ids]
        done = [run.cancel() if verb == "cancel" else run.retry() for run in runs]
    document = {"jobs": [job.model_dump(mode="json") for job in done]}
    console.answer(document, lambda: "\n".join(f"{short_id(job.id)}: {job.state}" for job in done))


def _listing(jobs: list[JobDoc]) -> str:
    if not jobs:
        return "no jobs"
    rows = [
        (
            short_id(job.id),
            job_name(job),
            job.spec.request.model,
            job.state,
            _remark(job),
            f"{format_duration(age_s(job.created))} ago",
        )
        for job in jobs
    ]
    return table(rows, ("id", "name", "model", "state", "", "queued"))


def _remark(job: JobDoc) -> str:
    """What is worth a few words about a job."""
    if job.state == "queued":
        return queue_text(job.position, job.eta_s)
    if job.state == "running" and job.progress is not None:
        share = job.progress.done / job.progress.total if job.progress.total else 0.0
        return f"{job.progress.stage} {share:.0%}"
    if job.state == "failed" and job.problem is not None:
        return job.problem.message[:60]
    if job.state == "finished" and job.n_objects is not None:
        return f"{job.n_objects:,} objects"
    return ""


def _details(job: JobDoc) -> str:
    request = job.spec.request
    rows: list[tuple[str, object]] = [
        ("job", job.id),
        ("name", job.spec.name),
        ("input", request.input.path),
        ("model", request.model),
        ("state", f"{job.state}  {_remark(job)}".rstrip()),
        ("attempt", job.attempt),
        ("priority", job.spec.priority),
        ("queued", _clock(job.created)),
        ("started", _clock(job.started)),
        ("ended", _clock(job.finished)),
    ]
    if job.problem is not None:
        rows += [("problem", job.problem.message), ("hint", job.problem.hint or "")]
    rows += [("warning", note.message) for note in job.warnings]
    given = request.model_dump(mode="json", exclude_defaults=True, exclude={"input", "model"})
    rows += [("option", f"{name} = {value}") for name, value in given.items()]
    return "\n".join(f"{name:<9} {value}".rstrip() for name, value in rows if value != "")


def age_s(time: str) -> float:
    """Seconds since a time of the server (ISO 8601)."""
    then = datetime.fromisoformat(time)
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return max(0.0, (datetime.now(UTC) - then).total_seconds())


def _clock(time: str | None) -> str:
    if not time:
        return ""
    then = datetime.fromisoformat(time).astimezone()
    return f"{then:%Y-%m-%d %H:%M:%S}  ({format_duration(age_s(time))} ago)"
