"""What a worker does for a job: the same run as on the command line, in the job's own folder.

::

    JOB/run/          the run folder, as `lamella segment` leaves it
    JOB/artifacts/    labels in the formats asked for, and the list of what run.tar holds

Whatever a run says or writes names its input as its owner does; no path of the server leaves it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from lamella.core.errors import LamellaError
from lamella.core.places import Places
from lamella.core.progress import Progress
from lamella.server.artifacts.make import export_labels, pack_run
from lamella.server.names import PathNames
from lamella.wire.document import Document
from lamella.wire.event import RunEvent, StartedEvent
from lamella.wire.manifest import RunManifest
from lamella.wire.request import SegmentRequest
from lamella.workflows.blocks import BlockOptions
from lamella.workflows.run_folder import RunFolder
from lamella.workflows.segment import RunOptions, segment

if TYPE_CHECKING:
    from lamella.jobs.work import JobContext
    from lamella.workflows.run import Run

__all__ = ["NamedPath", "SegmentWork", "run_segment"]

_PAUSE_S = 0.25
_TEXTS = ("*.json", "*.jsonl", "*.html")


class NamedPath(Document):
    """A file or folder of the server, and what its owner calls it."""

    path: str
    name: str


class SegmentWork(Document):
    """What a worker is given; made by the server when the job's turn has come."""

    request: SegmentRequest
    """As it was asked for."""
    input: NamedPath
    """What ``request.input.path`` stands for."""
    psf: NamedPath | None = None
    """What ``request.restore.psf`` stands for."""
    exports: tuple[str, ...] = ()
    """Suffixes."""
    hidden: dict[str, str] = Field(default_factory=dict)
    """Folders of the server, and what is written in their place."""
    models: str | None = None
    environments: str | None = None
    is_offline: bool = False
    block_min_voxels: int = 0
    """Volumes from here on are cut into blocks for idle workers of the cluster; 0 = none are."""

    def resolved(self) -> SegmentRequest:
        """The request with paths that can be opened here."""
        update: dict[str, Any] = {
            "input": self.request.input.model_copy(update={"path": self.input.path})
        }
        if self.request.restore is not None and self.psf is not None:
            psf = {"psf": self.psf.path}
            update["restore"] = self.request.restore.model_copy(update=psf)
        return self.request.model_copy(update=update)

    def names(self, folder: Path) -> PathNames:
        """What to write for paths."""
        named = [item for item in (self.input, self.psf) if item is not None]
        return PathNames(
            {
                **self.hidden,
                str(folder): "",
                str(folder / "run"): "",
                **{item.path: item.name for item in named},
            }
        )

    def places(self) -> Places:
        """Where models and environments lie."""
        user = Places.of_user()
        return Places(
            models=None if self.models is None else Path(self.models),
            environments=None if self.environments is None else Path(self.environments),
            is_offline=self.is_offline or user.is_offline,
            nnunet_results=user.nnunet_results,
            totalsegmentator_home=user.totalsegmentator_home,
        )


def run_segment(document: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """Segment; the function of jobs of the kind ``segment``.

    Args:
        document: a :class:`SegmentWork`.
        context: the job's folder, where to report, and whether to stop.

    Returns:
        ``n_objects``, ``warnings`` and ``summary``, JSON values.

    Raises:
        LamellaError: of the kind that fits, without any path of the server.
        RunCancelledError: when the job was cancelled; it can be retried and goes on.
    """
    work = SegmentWork.model_validate(document)
    names = work.names(context.folder)
    try:
        return _run(work, context, _Sink(context, names), names)
    except LamellaError as error:
        raise names.hide_error(error) from error


def _run(work: SegmentWork, context: JobContext, sink: _Sink, names: PathNames) -> dict[str, Any]:
    run_dir = context.folder / "run"
    options = RunOptions(run_dir, places=work.places(), blocks=_blocks(work, context))
    run = segment(work.resolved(), options, sink=sink)
    _tidy(run, work, names)
    artifacts = context.folder / "artifacts"
    artifacts.mkdir(exist_ok=True)
    for suffix in work.exports:
        export_labels(run, artifacts, suffix, source=Path(work.input.path), sink=sink)
    pack_run(run_dir, artifacts, f"{context.job_id}.run", sink=sink)
    return _result(run.manifest)


def _blocks(work: SegmentWork, context: JobContext) -> BlockOptions | None:
    """Help for a large volume, where this is a worker of a cluster."""
    if not work.block_min_voxels:
        return None
    from lamella.jobs.idle_blocks import idle_blocks

    runner = idle_blocks(context.resources)
    return None if runner is None else BlockOptions(runner, min_voxels=work.block_min_voxels)


# --- What is said -------------------------------------------------------------------------------


@dataclass(slots=True)
class _Sink:
    """Passes events on without paths of the server, and progress now and then."""

    context: JobContext
    names: PathNames
    stage: str = ""
    told: float = 0.0

    def emit(self, event: Any, /) -> None:
        """Report an event or a plain ``Progress``."""
        if isinstance(event, RunEvent):
            self.context.emit(self._named(event))
        elif self._is_due(event):
            self.context.emit(event)

    def check(self) -> None:
        """Raise if the job should stop."""
        self.context.check()

    def _is_due(self, progress: Progress) -> bool:
        """Whether to tell: what the run itself says was thinned by its recorder already."""
        now = time.monotonic()
        is_news = progress.stage != self.stage or progress.done >= progress.total
        if not is_news and now - self.told < _PAUSE_S:
            return False
        self.stage, self.told = progress.stage, now
        return True

    def _named(self, event: RunEvent) -> RunEvent:
        if isinstance(event, StartedEvent):
            event = event.model_copy(update={"run": f"{self.context.job_id}.run"})
        values = event.model_dump(mode="json")
        hidden = self.names.hide(values)
        return event if hidden == values else type(event).model_validate(hidden)


def _tidy(run: Run, work: SegmentWork, names: PathNames) -> None:
    """Let the run folder name things as their owner does; safe to repeat."""
    folder = RunFolder(run.folder)
    manifest = run.manifest
    asked = work.request
    request = manifest.request.model_copy(
        update={"input": manifest.request.input.model_copy(update={"path": asked.input.path})}
    )
    if manifest.request.restore is not None and asked.restore is not None:
        restore = manifest.request.restore.model_copy(update={"psf": asked.restore.psf})
        request = request.model_copy(update={"restore": restore})
    named = manifest.model_copy(
        update={
            "request": request,
            "input": manifest.input.model_copy(update={"path": work.input.name}),
        }
    )
    if named != manifest:
        folder.write_manifest(named)
    for pattern in _TEXTS:
        for path in sorted(run.folder.glob(pattern)):
            names.hide_in_file(path)


def _result(manifest: RunManifest) -> dict[str, Any]:
    labels = manifest.labels
    assert labels is not None, "finished runs have labels"
    return {
        "n_objects": labels.n_objects,
        "warnings": [note.model_dump(mode="json") for note in manifest.warnings],
        "summary": {
            "labels_sha256": labels.sha256,
            "shape": list(labels.shape),
            "dtype": labels.dtype,
            "is_instance": labels.is_instance,
            "n_foreground_voxels": labels.n_foreground_voxels,
            "model": manifest.model.id,
            "model_version": manifest.model.version,
            "device": "" if manifest.runtime is None else manifest.runtime.device,
            "elapsed_s": manifest.elapsed_s,
            "timings_s": dict(manifest.timings_s),
        },
    }
