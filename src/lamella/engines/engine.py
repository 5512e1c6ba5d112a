"""The contract between a workflow and whatever segments a volume.

An *engine* turns one volume into labels on disk. It is listed by an :class:`EngineDescriptor`
that is plain data, so that engines whose libraries are missing still appear, with the reason; its
code is imported by :func:`load_engine` only when a job runs.

The engine's duties (``lamella.testing.engine.EngineContract`` checks them):

* labels lie on the input's grid: same spatial shape, spacing, origin and direction;
* they are written below ``job.run_dir`` as ``labels.ome.zarr``, never held whole in memory unless
  the method leaves no other way, in which case the engine says so with a warning;
* ``sink.check()`` is called at least once a tile, and raises ``RunCancelledError`` once cancelled;
* a descriptor with ``has_preview`` emits a ``PreviewEvent`` of the whole volume before the first
  full-resolution tile;
* the same job twice gives the same labels where ``is_deterministic``;
* zero objects is a warning in the result, never silence.

Example:
    >>> from lamella.engines.engine import Availability
    >>> Availability(is_available=False, reason="nnunetv2 is not installed").reason
    'nnunetv2 is not installed'
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from lamella.core.places import Places

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from lamella.models.folder import ModelFolder
    from lamella.models.foreign import ForeignModel
    from lamella.volume.box import Box
    from lamella.volume.labels import Labels
    from lamella.volume.volume import Note, Volume
    from lamella.wire.event import EventSink
    from lamella.wire.request import SegmentRequest

LABELS_NAME = "labels.ome.zarr"
"""Name of the labels inside a run folder."""

PREVIEW_NAME = "preview.ome.zarr"
"""Name of the coarse labels inside a run folder."""

CONFIDENCE_NAME = "confidence.zarr"
"""Name of the confidence maps inside a run folder."""

Plane = Literal["zyx", "yx"]
Product = Literal["semantic", "instance"]
Device = Literal["cpu", "cuda", "mps"]
OptionKind = Literal["bool", "int", "float", "text", "choice"]


@dataclass(frozen=True, slots=True)
class OptionDescriptor:
    """One option of an engine, as listed by ``lamella engines list`` and checked before a run.

    Attributes:
        name: the key of ``SegmentRequest.options``.
        kind: the type of its value; ``choice`` is a text out of ``choices``.
        default: value when the request does not name it; None means "decided from the data", and
            the value decided is written to ``EngineResult.options_resolved``.
        description: one sentence, with the unit where there is one.
        choices: allowed texts of a ``choice``.
        minimum: smallest value of a number, inclusive.
        maximum: largest value of a number, inclusive.
    """

    name: str
    kind: OptionKind
    default: bool | int | float | str | None
    description: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True, slots=True)
class EngineDescriptor:
    """What an engine can do, told without importing it.

    Attributes:
        id: the name requests use, such as ``"classical"``.
        title: the name people read.
        description: one sentence.
        module: dotted module with a ``build_engine()`` function, imported when a job runs.
        axes: spatial axes it can work on; ``"yx"`` engines run over the slices of a volume.
        produces: kinds of labels it can give.
        needs: importable modules without which it can't run.
        extra: the extra of ``pip install "lamella[...]"`` that brings ``needs``.
        devices: devices it can use, preferred one last.
        needs_model: whether a job must name a model.
        has_preview: whether it gives labels of the whole volume from a coarse level first.
        is_resumable: whether an interrupted job goes on where it stopped.
        is_deterministic: whether two equal jobs on the CPU give equal labels.
        device_memory_bytes: least memory the device should have, None when it needs little.
        options: the keys of ``SegmentRequest.options`` that it understands; empty with
            ``takes_any_option`` False means none.
        takes_any_option: True when a foreign engine checks its options itself.
        environment: name of the isolated environment it runs in; empty for this process.
        model_module: light module with ``find_model(reference, places) -> ForeignModel``; empty
            for engines that run Lamella model folders, or no models.
        confidence: measures it can leave as maps, see :class:`ConfidenceMaps`.
        memory_bytes_per_voxel: what a run needs beyond the network, in bytes per voxel of the
            input; None where memory does not grow with the input.
        strategies: values of ``SegmentRequest.instances`` that it knows of ``slices``, ``hybrid``,
            ``volumetric`` and ``ortho``; None for an engine that checks them itself.
    """

    id: str
    title: str
    description: str
    module: str
    axes: tuple[Plane, ...]
    produces: tuple[Product, ...]
    needs: tuple[str, ...] = ()
    extra: str = ""
    devices: tuple[Device, ...] = ("cpu",)
    needs_model: bool = True
    has_preview: bool = False
    is_resumable: bool = False
    is_deterministic: bool = True
    device_memory_bytes: int | None = None
    options: tuple[OptionDescriptor, ...] = ()
    takes_any_option: bool = False
    environment: str = ""
    model_module: str = ""
    confidence: tuple[str, ...] = ()
    memory_bytes_per_voxel: float | None = None
    strategies: tuple[str, ...] | None = None

    @property
    def has_uncertainty(self) -> bool:
        """Whether it can tell how sure it is."""
        return bool(self.confidence)


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether an engine can run here, and why not.

    Attributes:
        is_available: True when every needed module can be found.
        reason: why not, in one sentence; empty when available.
        hint: what to do about it.
    """

    is_available: bool
    reason: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class EngineJob:
    """One piece of work for an engine.

    Attributes:
        volume: the opened input, lazy, with its geometry; spacing overrides are already applied.
        request: the request as the caller wrote it; the engine resolves what is left open.
        model: the opened model folder, or the foreign model that ``model_module`` found; None
            for an engine that needs none.
        run_dir: an existing folder of this run; labels and journal go below it.
        resume: True when finished tiles of an earlier, equal job in ``run_dir`` may be kept.
        places: where models and environments lie.
        is_trusted: whether the user vouches for the model: only then may code or pickles that come
            with it be run.
    """

    volume: Volume
    request: SegmentRequest
    model: ModelFolder | ForeignModel | None
    run_dir: Path
    resume: bool = False
    places: Places = field(default_factory=Places)
    is_trusted: bool = False


@dataclass(frozen=True, slots=True)
class ConfidenceMaps:
    """How sure an engine was of every voxel: an array in the run folder.

    A plain zarr array, uint8 with 255 = 1.0, axes (m, [z,] y, x), one map a measure:

    * ``probability``: of the chosen class;
    * ``margin``: best minus second best probability;
    * ``entropy``: of the classes' probabilities over log k, 0 = sure;
    * ``tta_spread``: standard deviation of the chosen class's probability over mirrored copies;
    * ``flow_error``: mean squared difference between predicted and recomputed flows, cut at 1.

    Attributes:
        measures: the maps, in order.
        is_calibrated: whether probabilities were made honest on held-out data (temperature).
        name: of the array, below the run folder.
    """

    measures: tuple[str, ...]
    is_calibrated: bool
    name: str = CONFIDENCE_NAME


@dataclass(frozen=True, slots=True)
class EngineResult:
    """What an engine leaves.

    Attributes:
        labels: lazy labels on the input's grid, stored at ``run_dir/labels.ome.zarr``.
        tiles_done: tiles finished, those kept from an earlier run included.
        tiles_planned: tiles of the plan; a result with fewer done is not a finished run.
        device: the device used, such as ``"cpu"`` or ``"cuda:0"``.
        runtime: what ran the network, such as ``"openvino"``; the engine's id where there is none.
        precision: ``"fp32"``, ``"bf16"``, ``"fp16"`` or ``"exact"`` for integer methods.
        options_resolved: every option with the value used, defaults and decided ones included.
        warnings: what the user must know about this result.
        confidence: how sure it was; None unless the request asks for it.
        columns: further numbers of every instance for the table of objects, by name; each array
            is indexed by the id, entry 0 unused (how well slices were linked, for example).
        is_per_slice: whether instances were told apart within slices only (their ids are unique
            all the same); the workflow links them where the request asks for it.
    """

    labels: Labels
    tiles_done: int
    tiles_planned: int
    device: str
    runtime: str
    precision: str
    options_resolved: Mapping[str, object] = field(default_factory=dict)
    warnings: tuple[Note, ...] = ()
    confidence: ConfidenceMaps | None = None
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    is_per_slice: bool = False


@dataclass(frozen=True, slots=True)
class BlockCut:
    """How a volume is to be cut.

    Attributes:
        extent: of a block, (z, y, x) voxels, rounded to whole files of the labels; None = decided
            by the engine.
        n_blocks: about so many, where the extent is left to the engine and the volume is large
            enough for them.
    """

    extent: tuple[int, int, int] | None = None
    n_blocks: int = 1


class BlockRun(Protocol):
    """A job that was cut into blocks, where it is planned and finished."""

    @property
    def document(self) -> Mapping[str, Any]:
        """What a worker needs to know beside the job, as JSON.

        ``document["identity"]`` is the same only where all labels would be.
        """
        ...

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Of the labels that the blocks write, (z, y, x); they partition the input."""
        ...

    @property
    def counts(self) -> tuple[int, ...]:
        """Tiles of every block."""
        ...

    @property
    def stage(self) -> str:
        """What the blocks are for, as progress names it: ``tiles``, then perhaps ``instances``."""
        ...

    @property
    def then(self) -> Callable[[], BlockRun] | None:
        """Plans further blocks, once all of these are on disk; None: only finish is left."""
        ...

    @property
    def labels(self) -> str | None:
        """Name of the labels, in the run folder, that are final block by block; None: none are."""
        ...

    def finish(self) -> EngineResult:
        """Make the result; called in the process that planned, once every block is on disk."""
        ...


@runtime_checkable
class BlockEngine(Protocol):
    """An engine that can have blocks of a volume segmented by several processes.

    Contract:
        * the labels do not depend on how the volume is cut, nor on who runs which block when;
        * blocks never write to the same file; a block that is run twice is the same twice;
        * once ``run_block`` has returned, its labels survive a crash.
    """

    def check_blocks(self, job: EngineJob) -> None:
        """Refuse, before anything runs, what cannot be cut.

        Raises:
            InputError: with a way out.
        """
        ...

    def open_blocks(self, job: EngineJob, cut: BlockCut, sink: EventSink) -> BlockRun:
        """Look at the input, plan blocks, and make room for labels."""
        ...

    def run_block(
        self, job: EngineJob, document: Mapping[str, Any], box: Box, sink: EventSink
    ) -> None:
        """Segment one block; called in any process that sees the run folder.

        Raises:
            EngineError: when this process would give other labels than the one that planned.
        """
        ...


@runtime_checkable
class Engine(Protocol):
    """Segments volumes.

    Contract:
        * ``segment`` may be called again on the same object; jobs share no state;
        * errors are ``LamellaError`` subclasses; ``RunCancelledError`` passes through.
    """

    @property
    def descriptor(self) -> EngineDescriptor:
        """What this engine can do."""
        ...

    def segment(self, job: EngineJob, sink: EventSink) -> EngineResult:
        """Segment ``job.volume`` and write the labels below ``job.run_dir``.

        Args:
            job: what to do.
            sink: receives preview, progress and warning events, and is asked for cancellation.

        Returns:
            Lazy labels and what was done.

        Raises:
            InputError: options or volume that the engine can't work with.
            RunCancelledError: the caller cancelled.
            EngineError: the engine failed for a reason of its own.
        """
        ...
