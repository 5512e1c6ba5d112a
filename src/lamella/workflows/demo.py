"""The main job on a volume whose labels are known: simulate, segment, compare."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lamella.core.errors import InputError
from lamella.core.places import Places
from lamella.core.progress import Progress, SilentSink
from lamella.io.format import SaveOptions, open_volume, save_volume
from lamella.volume.labels import Labels
from lamella.wire.event import EventSink
from lamella.workflows.api import make_request, run_folder_name
from lamella.workflows.run import Run
from lamella.workflows.run_folder import write_bytes
from lamella.workflows.segment import RunOptions, segment

__all__ = ["DemoResult", "run_demo"]

_SNR = 0.3
_TARGET = "membrane"


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo made and how well it did.

    Attributes:
        tomogram: the simulated tomogram.
        reference: the labels it was simulated with.
        labels: the labels that were found, as MRC.
        run: the run.
        pictures: of the result, and of the reference in the same way.
        dice: of what was found with the reference, 0..1.
        surface_dice: share of the surfaces that agree within one voxel; None where it cannot be
            measured (nothing was found).
        n_objects: objects found.
        n_reference_objects: objects simulated.
    """

    tomogram: Path
    reference: Path
    labels: Path
    run: Run
    pictures: tuple[Path, ...]
    dice: float
    surface_dice: float | None
    n_objects: int
    n_reference_objects: int

    @property
    def preview_s(self) -> float | None:
        """Seconds until the preview could be seen."""
        return self.run.manifest.timings_s.get("preview")


def run_demo(
    folder: Path,
    model: str,
    *,
    shape: tuple[int, ...],
    seed: int,
    sink: EventSink | None = None,
    places: Places | None = None,
) -> DemoResult:
    """Simulate a tomogram, segment it as a user would, and score the result.

    Args:
        folder: receives everything; an earlier demo in it is replaced.
        model: id of a model, or ``classical:METHOD``.
        shape: of the tomogram, (z, y, x).
        seed: of the simulation.
        sink: events and cancellation.
        places: where models and environments lie; the user's own unless given.

    Raises:
        UnknownModelError: when there is no such model.
        StorageError: when the disk is full.
    """
    from lamella.evaluation import ComparisonOptions, compare_labels
    from lamella.measurement.report import overview_png

    listener = sink or SilentSink()
    tomogram, reference_path, n_reference = _simulate(folder, shape, seed, listener)
    labels_path = folder / "labels.mrc"
    run = segment(
        make_request(tomogram, model, {}),
        RunOptions(
            folder / run_folder_name(tomogram, model),
            fresh=True,
            export=labels_path,
            overwrite=True,
            places=places,
        ),
        sink=listener,
    )
    found = _as_mask(run.labels, _target_value(run.labels))
    reference = open_volume(reference_path)
    assert isinstance(reference, Labels), reference
    expected = _as_mask(reference, _target_value(reference))
    listener.emit(Progress("comparing", 0, 1))
    scores = compare_labels(found, expected, ComparisonOptions(classes=(1,)), sink=listener)
    pictures = (folder / "result.png", folder / "reference.png")
    for picture, labels in zip(pictures, (run.labels, reference), strict=True):
        write_bytes(picture, overview_png(open_volume(tomogram), labels))
    surface = float(scores.surfaces[0].surface_dice) if scores.surfaces else float("nan")
    fact = run.manifest.labels
    assert fact is not None, "finished runs have labels"
    return DemoResult(
        tomogram=tomogram,
        reference=reference_path,
        labels=labels_path,
        run=run,
        pictures=pictures,
        dice=float(scores.semantic.dice[0]),
        surface_dice=surface if np.isfinite(surface) else None,
        n_objects=fact.n_objects,
        n_reference_objects=n_reference,
    )


def _simulate(
    folder: Path, shape: tuple[int, ...], seed: int, sink: EventSink
) -> tuple[Path, Path, int]:
    """The tomogram and its reference as files, and how many target objects it has."""
    from lamella.simulation.tomogram import TomogramOptions, simulate_tomogram

    if len(shape) != 3:
        raise InputError(f"a tomogram has three extents, not {len(shape)}")
    sink.check()
    made = simulate_tomogram(
        (shape[0], shape[1], shape[2]), seed=seed, options=TomogramOptions(snr=_SNR)
    )
    folder.mkdir(parents=True, exist_ok=True)
    tomogram, reference = folder / "tomogram.mrc", folder / "reference.ome.zarr"
    save_volume(made.to_volume(), tomogram, SaveOptions(overwrite=True))
    labels = made.to_labels()
    save_volume(labels, reference, SaveOptions(overwrite=True))
    own = made.instances[made.labels == _target_value(labels)]
    return tomogram, reference, len(np.unique(own))


def _target_value(labels: Labels) -> int:
    """The class that is compared: membranes, or everything where no class is called so."""
    for known in labels.classes:
        if _TARGET in known.name.lower():
            return known.value
    return 0


def _as_mask(labels: Labels, value: int) -> Labels:
    data = labels.load()
    mask = (data == value) if value else (data != 0)
    return Labels.like(labels, mask.astype(np.uint8))
