"""nnU-Net v2 models on any volume: look → first stage → tiles → labels, band by band.

The labels are those of ``nnUNetv2_predict`` on the same model and image; its preprocessing, tile
positions, weights, mirroring and resampling are computed voxel for voxel, but streaming: no array
of the size of the volume is held, and the logits of all classes least of all. What differs is
precision: sums are float32 here, half there.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from lamella.core.errors import InputError, ModelError
from lamella.engines.engine import (
    CONFIDENCE_NAME,
    LABELS_NAME,
    ConfidenceMaps,
    EngineResult,
)
from lamella.engines.nnunet.checkpoint import read_postprocessing
from lamella.engines.nnunet.classes import ClassRule
from lamella.engines.nnunet.descriptor import NNUNET
from lamella.engines.nnunet.models import trained_folders
from lamella.engines.nnunet.postprocess import postprocess
from lamella.engines.nnunet.preview import show_preview
from lamella.engines.nnunet.settings import Chosen, Settings, choose, resolve
from lamella.engines.nnunet.stage import Paths, Stage, StageWish
from lamella.engines.nnunet.survey import Survey, survey
from lamella.engines.tile_events import QuietSink
from lamella.inference.journal import JOURNAL_NAME, Journal
from lamella.inference.slab import VolumeSlabs
from lamella.models.foreign import ForeignModel
from lamella.volume.labels import Labels
from lamella.volume.volume import Note
from lamella.wire.event import WarningEvent

if TYPE_CHECKING:
    from pathlib import Path

    from lamella.engines.engine import EngineDescriptor, EngineJob
    from lamella.engines.nnunet.folder import TrainedFolder
    from lamella.wire.event import EventSink

__all__ = ["NnunetEngine", "build_engine"]

# Hidden, and taken away with the run's other leftovers when it starts anew.
WORK_NAME = ".nnunet.partial"


def build_engine() -> NnunetEngine:
    """Return the engine; the name every engine's module offers."""
    return NnunetEngine()


class NnunetEngine:
    """Runs trained folders and exported zips of nnU-Net v2."""

    @property
    def descriptor(self) -> EngineDescriptor:
        """What this engine can do."""
        return NNUNET

    def segment(self, job: EngineJob, sink: EventSink) -> EngineResult:
        """Segment a volume; see :class:`lamella.engines.engine.Engine`.

        Raises:
            InputError: options, spacing or intensities that cannot be used.
            AxesError: a volume that does not fit the model.
            ModelError: a model that is incomplete, damaged, or not to be trusted.
            RunCancelledError: the caller cancelled; finished layers are kept.
            EngineError: the network failed.
            StorageError: labels cannot be written.
        """
        if not isinstance(job.model, ForeignModel):
            raise InputError(
                "the engine 'nnunet' needs a model of nnU-Net",
                hint="name it as nnunet:FOLDER, nnunet:FILE.zip or nnunet:DatasetXXX_Name",
            )
        return _Run(job, job.model, sink).segment()


class _Run:
    """One job from beginning to end."""

    def __init__(self, job: EngineJob, model: ForeignModel, sink: EventSink) -> None:
        self._job = job
        self._model = model
        self._sink = sink
        self._notes: list[Note] = []
        self._done = self._planned = 0
        self._settings: Settings
        self._settings, named = resolve(job.request, is_trusted=job.is_trusted)
        folders = trained_folders(model)
        self._chosen = choose(folders, named, self._settings, job.volume)
        _refuse_other_tiles(job, self._chosen[-1].folder)
        self._rule = _common_rule(self._chosen)
        self._steps = self._postprocessing()
        self._work = job.run_dir / WORK_NAME
        self._has_preview = self._settings.has_preview and not self._is_begun()

    def segment(self) -> EngineResult:
        self._sink.check()
        seen = survey(VolumeSlabs(self._job.volume), self._sink)
        if all(one.minimum == one.maximum for one in seen.channels):
            raise InputError(
                f"every voxel of the input is {seen.channels[0].minimum:g}: there is nothing to"
                " segment",
                hint="check that the right data set, channel and level were opened",
            )
        members: list[Path] = []
        for chosen in self._chosen[:-1]:
            path = self._work / f"{chosen.folder.name}.npy"
            self._member(chosen, seen, path)
            members.append(path)
        stage = self._final(self._chosen[-1], seen, tuple(members))
        labels = self._finish(stage)
        result = self._result(stage, labels)
        shutil.rmtree(self._work, ignore_errors=True)
        return result

    def _warn(self, *notes: Note) -> None:
        for note in notes:
            if note not in self._notes:
                self._notes.append(note)
                self._sink.emit(WarningEvent(code=note.code, message=note.message))

    # -- stages

    def _final(self, chosen: Chosen, seen: Survey, members: tuple[Path, ...]) -> Stage:
        run_dir = self._job.run_dir
        paths = Paths(
            run_dir / LABELS_NAME, run_dir / JOURNAL_NAME, run_dir / CONFIDENCE_NAME, self._work
        )
        previous = self._previous(chosen, seen)
        wish = StageWish(
            self._job, chosen, self._settings, self._rule, seen, "labels", paths, previous, members
        )
        return self._run_stage(wish)

    def _member(self, chosen: Chosen, seen: Survey, path: Path) -> None:
        paths = Paths(path, path.with_suffix(".jsonl"), self._work / "none", self._work)
        previous = self._previous(chosen, seen)
        self._run_stage(
            StageWish(
                self._job, chosen, self._settings, self._rule, seen, "member", paths, previous
            )
        )

    def _previous(self, chosen: Chosen, seen: Survey) -> Labels | None:
        """Labels of the first stage of a cascade, run unless they are there already."""
        before = chosen.previous
        if before is None:
            return None
        path = self._work / f"{before.folder.name}.ome.zarr"
        paths = Paths(path, path.with_suffix(".jsonl"), self._work / "none", self._work)
        rule = ClassRule.parse(before.folder.dataset)
        if (path / "zarr.json").is_file() and self._job.resume:
            from lamella.io.format import OpenOptions
            from lamella.io.ome_zarr import read

            known = read(path, OpenOptions())
            assert isinstance(known, Labels), "written as labels"
            return known
        wish = StageWish(
            self._job,
            before,
            self._settings,
            rule,
            seen,
            "stage",
            paths,
            self._previous(before, seen),
        )
        stage = self._run_stage(wish)
        store = stage.target.store
        assert store is not None, "a stage leaves labels"
        return store.finish(QuietSink(self._sink))

    def _run_stage(self, wish: StageWish) -> Stage:
        stage = Stage(wish, self._sink)
        self._warn(*stage.opened.notes)
        on_retry = getattr(stage.opened.runtime, "on_retry", False)
        if on_retry is None:
            stage.opened.runtime.on_retry = lambda text: self._warn(  # type: ignore[attr-defined]
                Note("device_out_of_memory", text)
            )
        if self._has_preview:
            self._has_preview = False
            show_preview(stage, wish.rule, self._job.volume, self._job.run_dir, self._sink)
        count = stage.run()
        self._done += count.done
        self._planned += count.planned
        return stage

    def _is_begun(self) -> bool:
        """Whether an earlier process got beyond the preview."""
        if not self._job.resume:
            return False
        journals = [self._job.run_dir / JOURNAL_NAME, *self._work.glob("*.jsonl")]
        return any(Journal.read(path).layers for path in journals)

    # -- the end

    def _postprocessing(self) -> tuple:
        if not self._settings.postprocesses:
            return ()
        folder = self._chosen[-1].folder
        node = folder.postprocessing() if len(self._chosen) == 1 else None
        if node is None:
            raise ModelError(
                f"{folder.root} has no crossval_results_folds_*/postprocessing.pkl"
                if len(self._chosen) == 1
                else "post-processing of ensembles is not known here",
                hint="run without --option postprocess=true; --keep-largest does much the same",
            )
        return read_postprocessing(node, is_trusted=self._settings.is_trusted)

    def _finish(self, stage: Stage) -> Labels:
        store = stage.target.store
        assert store is not None, "the last stage leaves labels"
        if self._steps and not store.is_finished:
            postprocess(store, self._steps, self._sink.check)
        if store.array.nchunks_initialized == 0 or not _has_any(store):
            self._warn(Note("no_objects", "nothing was found: every voxel is background"))
        return store.finish(QuietSink(self._sink))

    def _result(self, stage: Stage, labels: Labels) -> EngineResult:
        runtime = stage.opened.runtime
        options = self._settings.as_options()
        folder = stage.wish.chosen.folder
        options |= {
            "configuration": " + ".join(chosen.title for chosen in self._chosen),
            "folds": ",".join(self._chosen[-1].folds),
            "unit": stage.unit,
            "tile": list(folder.settings["patch_size"]),
            "model_spacing": list(stage.layout.target),
            "network_shape": list(stage.layout.network_shape),
            "crop": [list(stage.layout.crop.start), list(stage.layout.crop.stop)],
            "transpose": list(stage.layout.transpose),
            "columns": len(stage.target.plan.columns),
            "runtime": runtime.name,
            "runtime_check": stage.opened.check,
        }
        confidence = ConfidenceMaps(stage.measures, is_calibrated=False) if stage.measures else None
        return EngineResult(
            labels=labels,
            tiles_done=self._done,
            tiles_planned=self._planned,
            device=runtime.device,
            runtime=runtime.name,
            precision=runtime.precision,
            options_resolved=options,
            warnings=tuple(self._notes),
            confidence=confidence,
        )


def _has_any(store: object) -> bool:
    """Whether some chunk on disk holds a label: empty ones are not always left out."""
    array = store.array  # type: ignore[attr-defined]
    depth = store.unit[0]  # type: ignore[attr-defined]
    return any(bool(array[z : z + depth].any()) for z in range(0, array.shape[0], depth))


def _common_rule(chosen: tuple[Chosen, ...]) -> ClassRule:
    rules = [ClassRule.parse(one.folder.dataset) for one in chosen]
    for one, rule in zip(chosen, rules, strict=True):
        if (rule.values, rule.has_regions) != (rules[0].values, rules[0].has_regions):
            raise ModelError(
                f"{chosen[0].folder.name} and {one.folder.name} have different classes:"
                f" {dict(rules[0].named_values)} and {dict(rule.named_values)}",
                hint="only models of the same data set can be averaged",
            )
    return rules[0]


def _refuse_other_tiles(job: EngineJob, folder: TrainedFolder) -> None:
    tile = job.request.tile
    patch = tuple(int(n) for n in folder.settings["patch_size"])
    if tile is not None and tuple(tile)[-len(patch) :] != patch:
        raise InputError(
            f"tile {tuple(tile)}: the patch of an nnU-Net model is part of it, here {patch}",
            hint="leave out --tile; --option step_size sets how far tiles lie apart",
        )
