"""A run cut into blocks: planned here, segmented by any number of processes, finished here.

::

    open_blocks ─▶ which are in the journal? ─▶ the others, anywhere ─▶ journal ─▶ finish
    (statistics,     blocks.jsonl                 run_block              one line    (pyramid,
     plan, preview)                                                      a block      objects)

The engine promises that labels do not depend on the cut (:class:`~lamella.engines.engine.
BlockEngine`); who runs the blocks is somebody else's matter (:class:`BlockRunner`). A block that is
in the journal is on disk. A block that fails makes the run fail, and is named; the others stay, and
the next run of the same request goes on with what is missing.
"""

import json
import math
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from pydantic import TypeAdapter

from lamella.core.errors import InputError, LamellaError, RunCancelledError, RunError
from lamella.core.places import Places
from lamella.core.progress import SilentSink
from lamella.engines.engine import (
    BlockCut,
    BlockEngine,
    BlockRun,
    Engine,
    EngineJob,
    EngineResult,
)
from lamella.engines.registry import load_engine
from lamella.engines.tile_events import TileEvents
from lamella.volume.box import Box
from lamella.wire.event import EventSink, LogEvent, ProgressEvent
from lamella.wire.problem import Problem
from lamella.wire.request import SegmentRequest
from lamella.workflows.block_journal import JOURNAL_NAME, BlockJournal

__all__ = [
    "BlockOptions",
    "BlockRunner",
    "check_cut",
    "left_in_blocks",
    "run_block",
    "segment_blocks",
]

STOP_NAME = "blocks.stop"
PROGRESS_NAME = "blocks.progress"
FUNCTION = "lamella.workflows.blocks:run_block"
_CHECK_S = 0.25
_TELL_S = 1.0
_LATE_S = 20.0
_BLOCKS_PER_WORKER = 2
_PLACES = TypeAdapter(Places)
"""Places as JSON, and back."""


class BlockRunner(Protocol):
    """Runs a function on documents, somewhere.

    Contract:
        * every document is answered exactly once, in any order, with what the function returned or
          with the error that kept it from returning;
        * a document whose worker died is run again, a few times;
        * closing the iterator takes back what has not begun.
    """

    @property
    def n_workers(self) -> int:
        """How many run at once."""
        ...

    def run(
        self, function: str, documents: Mapping[int, Mapping[str, Any]]
    ) -> Iterator[tuple[int, Mapping[str, Any] | BaseException] | None]:
        """Answers as they come; None every moment in which there is none.

        Args:
            function: ``package.module:name``, called with a document, returns a document.
            documents: by number, JSON.
        """
        ...


@dataclass(frozen=True, slots=True)
class BlockOptions:
    """How a volume is cut and who segments the blocks.

    Attributes:
        runner: who runs them.
        extent: of a block, (z, y, x) voxels, rounded to whole files of the labels; None = so that
            every worker gets two.
        min_voxels: smaller volumes, and what cannot be cut, are segmented in one piece in this
            process; None = whatever cannot be cut is refused.
    """

    runner: BlockRunner
    extent: tuple[int, int, int] | None = None
    min_voxels: int | None = None


def segment_blocks(
    engine: Engine, job: EngineJob, options: BlockOptions, sink: EventSink
) -> EngineResult:
    """Segment a volume block by block; the labels are those of ``engine.segment``.

    Args:
        engine: a :class:`~lamella.engines.engine.BlockEngine`, unless ``options.min_voxels`` says
            that a run in one piece is as good.
        job: what to do; its input must be a file that all workers can open.
        options: how it is cut, and who runs the blocks.
        sink: events and cancellation.

    Raises:
        InputError: for an engine, an input or an extent that cannot be cut.
        RunError: when a block failed; names it. What is finished stays.
        RunCancelledError: when the sink says so. What is finished stays.
    """
    if options.min_voxels is not None and not _is_worth_it(engine, job, options):
        return engine.segment(job, sink)
    check_cut(engine, job)
    assert isinstance(engine, BlockEngine), "checked above"
    n_workers = options.runner.n_workers
    cut = BlockCut(options.extent, n_blocks=_BLOCKS_PER_WORKER * n_workers)
    run = engine.open_blocks(job, cut, sink)
    facts = {"n": len(run.boxes), "extent": list(run.boxes[0].shape), "workers": n_workers}
    while True:
        with BlockJournal.open(_journal_of(job, run), run, is_resumed=job.resume) as journal:
            _Session(run, job, engine.descriptor.id, options.runner, journal, sink).run_all()
        if run.then is None:
            break
        run = run.then()
    result = run.finish()
    return replace(result, options_resolved={**result.options_resolved, "blocks": facts})


def left_in_blocks(run_dir: Path) -> BlockOptions | None:
    """How to go on in this process alone with what a run in blocks has left; None: nothing is."""
    try:
        lines = (run_dir / JOURNAL_NAME).read_text(encoding="utf-8").splitlines()
        first = json.loads(lines[0])["blocks"][0]
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None
    if len(lines) < 2:
        return None
    z, y, x = (int(stop) - int(start) for start, stop in zip(first[:3], first[3:], strict=True))
    return BlockOptions(_ThisProcess(), (z, y, x))


def run_block(document: Mapping[str, Any]) -> dict[str, Any]:
    """Segment one block; this is what workers call.

    Returns:
        ``{"problem": ...}`` where it failed for a reason that can be told, else ``{}``.
    """
    from lamella.workflows.prepare import prepare

    try:
        request = SegmentRequest.model_validate(document["request"])
        places = _PLACES.validate_python(document["places"])
        prepared = prepare(request, None, SilentSink(), places=places, has_fingerprint=False)
        engine = load_engine(str(document["engine"]), places)
        assert isinstance(engine, BlockEngine), "the process that planned has looked"
        job = EngineJob(
            volume=prepared.volume,
            request=request,
            model=prepared.model,
            run_dir=Path(document["run_dir"]),
            resume=True,
            places=places,
            is_trusted=bool(document["is_trusted"]),
        )
        box = Box(tuple(document["start"]), tuple(document["stop"]))
        sink = _WorkerSink(job.run_dir, document["session"], int(document["number"]))
        engine.run_block(job, document["plan"], box, sink)
    except LamellaError as error:
        return {"problem": Problem.from_error(error).model_dump(mode="json")}
    return {}


def check_cut(engine: Engine, job: EngineJob) -> None:
    """Refuse, before anything runs, what cannot be cut into blocks.

    Raises:
        InputError: for an engine, an input or a request; with a way out.
    """
    if not isinstance(engine, BlockEngine):
        raise InputError(
            f"the engine {engine.descriptor.id!r} cannot cut a volume into blocks",
            hint="leave out --block-workers, --scheduler and --cluster",
        )
    engine.check_blocks(job)
    if job.request.input.path.startswith("memory:"):
        raise InputError(
            "an array in memory cannot be cut into blocks for other processes",
            hint="save it first, and name the file",
        )
    if job.request.restore is not None:
        raise InputError(
            "a restoration and blocks do not go together",
            hint="restore the volume first with `lamella restore`, then segment the result",
        )


# --- Private helpers ----------------------------------------------------------------------------


@dataclass
class _Session:
    """One process's work on the blocks of a run."""

    run: BlockRun
    job: EngineJob
    engine_id: str
    runner: BlockRunner
    journal: BlockJournal
    sink: EventSink
    began: float = field(default_factory=time.monotonic)
    n_here: int = 0
    told: float = 0.0
    has_wondered: bool = False

    def run_all(self) -> None:
        waiting = [n for n in range(len(self.run.boxes)) if n not in self.journal.done]
        n_kept = len(self.run.boxes) - len(waiting)
        if n_kept:
            text = f"going on: {n_kept} of {len(self.run.boxes)} blocks are on disk already"
            self.sink.emit(LogEvent(message=text))
        self.tell()
        if not waiting:
            return
        session = uuid.uuid4().hex
        stop = self.job.run_dir / STOP_NAME
        stop.unlink(missing_ok=True)
        self.forget()
        answers = self.runner.run(FUNCTION, {n: self.document(n, session) for n in waiting})
        try:
            for answer in answers:
                self.sink.check()
                if answer is not None:
                    self.take(*answer)
                elif time.monotonic() - self.told > _TELL_S:
                    self.tell()
                    self.wonder()
        except BaseException:
            # Blocks that are being run elsewhere end at their next tile.
            stop.write_text(session)
            raise
        finally:
            close = getattr(answers, "close", None)
            if close is not None:
                close()
            self.forget()

    def forget(self) -> None:
        """Remove what workers said of blocks that they had begun."""
        shutil.rmtree(self.job.run_dir / PROGRESS_NAME, ignore_errors=True)

    def document(self, number: int, session: str) -> dict[str, Any]:
        """What a worker is told."""
        box = self.run.boxes[number]
        return {
            "engine": self.engine_id,
            "request": self.job.request.model_dump(mode="json"),
            "places": _PLACES.dump_python(self.job.places, mode="json"),
            "is_trusted": self.job.is_trusted,
            "run_dir": str(self.job.run_dir.absolute()),
            "plan": dict(self.run.document),
            "start": list(box.start),
            "stop": list(box.stop),
            "session": session,
            "number": number,
        }

    def take(self, number: int, answer: Mapping[str, Any] | BaseException) -> None:
        """Note a finished block, or fail for it."""
        if isinstance(answer, BaseException):
            problem = Problem.from_error(answer)
        elif "problem" in answer:
            problem = Problem.model_validate(answer["problem"])
        else:
            self.journal.add(number)
            self.n_here += self.run.counts[number]
            self.tell(number)
            return
        box = self.run.boxes[number]
        place = " x ".join(f"{a}-{b}" for a, b in zip(box.start, box.stop, strict=True))
        which = "" if self.run.stage == "tiles" else f" of the stage {self.run.stage!r}"
        raise RunError(
            f"block {number + 1} of {len(self.run.boxes)}{which} (voxels {place}, z y x) failed:"
            f" {problem.message}",
            hint=problem.hint or "run the same request again: finished blocks are kept",
            details={
                "block": number,
                "stage": self.run.stage,
                "start": list(box.start),
                "stop": list(box.stop),
                "problem": problem.model_dump(mode="json"),
            },
        )

    def tell(self, number: int | None = None) -> None:
        """Report how many tiles are done, and the labels of a block that is."""
        counts = self.run.counts
        begun = self.begun()
        n_done, n_tiles = sum(counts[n] for n in self.journal.done) + begun, sum(counts)
        n_here = self.n_here + begun
        self.told = time.monotonic()
        pace = (self.told - self.began) / n_here if n_here else None
        eta_s = None if pace is None else pace * (n_tiles - n_done)
        unit = "tiles" if self.run.stage == "tiles" else "blocks"
        self.sink.emit(
            ProgressEvent(stage=self.run.stage, done=n_done, total=n_tiles, unit=unit, eta_s=eta_s)
        )
        if number is not None:
            n_axes = len(self.job.volume.spatial_shape)
            events = TileEvents(self.sink, labels=self.run.labels, n_axes=n_axes)
            events.finished(self.run.boxes[number])

    def wonder(self) -> None:
        """Say once that nobody seems to work."""
        is_late = time.monotonic() - self.began > _LATE_S
        if not self.has_wondered and is_late and not self.n_here and not self.begun():
            self.has_wondered = True
            text = "no worker has finished a tile yet: are there any, and are they free?"
            self.sink.emit(LogEvent(message=text))

    def begun(self) -> int:
        """Tiles that are done of blocks that are not, as far as workers have said."""
        n_tiles = 0
        for path in (self.job.run_dir / PROGRESS_NAME).glob("*"):
            with suppress(OSError, ValueError):
                number, done = int(path.name), int(path.read_text())
                n_tiles += 0 if number in self.journal.done else min(done, self.run.counts[number])
        return n_tiles


class _ThisProcess:
    """Runs one document after the other in a thread of this process."""

    n_workers = 1

    def run(
        self, function: str, documents: Mapping[int, Mapping[str, Any]]
    ) -> Iterator[tuple[int, Mapping[str, Any] | BaseException] | None]:
        assert function == FUNCTION, "nothing else is run here"
        with ThreadPoolExecutor(1, thread_name_prefix="block") as pool:
            for number, document in documents.items():
                task = pool.submit(run_block, document)
                while not wait([task], timeout=_CHECK_S).done:
                    yield None
                yield number, task.exception() or task.result()


class _WorkerSink:
    """Tells and asks by files: they reach workers wherever these see the run folder."""

    def __init__(self, run_dir: Path, session: str, number: int) -> None:
        self._path = run_dir / STOP_NAME
        self._session = session
        self._next = 0.0
        self._progress = run_dir / PROGRESS_NAME / str(number)
        self._told = time.monotonic()

    def emit(self, event: Any, /) -> None:
        """Leave the number of tiles for the process that planned; drop all else."""
        now = time.monotonic()
        if not isinstance(event, ProgressEvent) or now - self._told < _TELL_S:
            return
        self._told = now
        # Nothing depends on it: a folder that is gone, or a full disk, shows elsewhere.
        with suppress(OSError):
            self._progress.parent.mkdir(exist_ok=True)
            self._progress.write_text(f"{event.done:.0f}")

    def check(self) -> None:
        """Raise once the process that planned has given up."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _CHECK_S
        try:
            asked = self._path.read_text()
        except FileNotFoundError:
            return
        if asked == self._session:
            raise RunCancelledError("the run was stopped")


def _is_worth_it(engine: Engine, job: EngineJob, options: BlockOptions) -> bool:
    """Whether a volume is large, somebody helps, and it can be cut."""
    n_voxels = math.prod(job.volume.spatial_shape)
    if n_voxels < (options.min_voxels or 0) or options.runner.n_workers < 2:
        return False
    try:
        check_cut(engine, job)
    except InputError:
        return False
    return True


def _journal_of(job: EngineJob, run: BlockRun) -> Path:
    """A journal a stage."""
    return job.run_dir / (JOURNAL_NAME if run.stage == "tiles" else f"blocks.{run.stage}.jsonl")
