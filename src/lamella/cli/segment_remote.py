"""``lamella segment --server``: the same command, the same answer, computed elsewhere.

All inputs are sent and queued first, so that the server can work on several at once; then each is
watched and brought here in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamella.cli.failure import EXIT_INPUT
from lamella.cli.remote import Leaving, RemoteSink, connect, leaving, short_id
from lamella.cli.segmenting import build_request, run_document, run_text, tell_problem
from lamella.core.errors import InputError, LamellaError, RunCancelledError

if TYPE_CHECKING:
    from lamella.cli.console import Console
    from lamella.client.client import Client, RemoteRun
    from lamella.workflows.run import Run

__all__ = ["segment_remotely"]

Plan = tuple[Path, Path, Path | None]


def segment_remotely(plans: Sequence[Plan], words: dict[str, Any], console: Console) -> int:
    """Segment inputs on a server.

    Args:
        plans: input, run folder here and output of each.
        words: of the command; those about the server are taken out.
        console: where to draw and answer.

    Returns:
        The exit code.
    """
    from lamella.workflows.segment import check_export

    if words.pop("trust"):
        raise InputError(
            "--trust is for models of this machine",
            hint="whoever runs the server decides which models it trusts",
        )
    flags = {"fresh": not words.pop("resume"), "overwrite": words.pop("overwrite")}
    with connect(words) as client:
        leave = Leaving(client.context.server)
        work = _Work(client, console, leave, words, flags)
        with leaving(console, leave) as sink:
            sink.note(f"asking {leave.server}")
            for plan in plans:
                request = build_request(plan[0], words)
                check_export(plan[2], request, overwrite=flags["overwrite"])
            started = [(plan, work.start(plan, sink, len(plans) > 1)) for plan in plans]
            runs = [work.finish(plan, remote, sink) for plan, remote in started]
    done = [(run, job) for run, job in runs if run is not None]
    document: dict[str, Any] = {
        "runs": [
            run_document(run) | {"server": client.context.server, "job": job or None}
            for run, job in done
        ]
    }
    if work.problems:
        document["problems"] = work.problems
    console.answer(document, lambda: "\n".join(run_text(run, console) for run, _ in done))
    return EXIT_INPUT if work.problems else 0


class _Work:
    def __init__(
        self,
        client: Client,
        console: Console,
        leave: Leaving,
        words: dict[str, Any],
        flags: dict[str, bool],
    ) -> None:
        self._client = client
        self._console = console
        self._leave = leave
        self._words = words
        self._flags = flags
        self.problems: list[dict[str, Any]] = []

    def start(self, plan: Plan, sink: RemoteSink, is_one_of_many: bool) -> RemoteRun | None:
        """Upload and queue one input; None where that cannot be done."""
        path, folder, _ = plan
        self._leave.folder = folder
        self._is_one_of_many = is_one_of_many
        if is_one_of_many:
            self._console.say(f"{path}")
        try:
            request = build_request(path, self._words)
            remote = self._client.segment_request(request, folder, sink=sink, **self._flags)
        except LamellaError as error:
            return self._fail(path, error)
        if remote.id:
            sink.clear()
            self._leave.n_queued += 1
            self._console.say(f"job {short_id(remote.id)} on {self._leave.server}")
        return remote

    def finish(
        self, plan: Plan, remote: RemoteRun | None, sink: RemoteSink
    ) -> tuple[Run | None, str]:
        """Watch, download and export one input."""
        from lamella.client.landing import export_labels

        path, _, export = plan
        if remote is None:
            return None, ""
        self._leave.phase, self._leave.job = "watch", remote.id
        try:
            remote.wait(sink)
            self._leave.phase = "download"
            run = remote.download(sink=sink)
            if export is not None:
                overwrite = self._flags["overwrite"]
                run = export_labels(run, export, overwrite=overwrite, sink=sink)
        except LamellaError as error:
            self._fail(path, error)
            return None, ""
        return run, remote.id

    def _fail(self, path: Path, error: LamellaError) -> None:
        # One bad file of many must not cost the others their turn.
        if not self._is_one_of_many or isinstance(error, RunCancelledError):
            raise error
        self.problems.append(tell_problem(path, error, self._console))
