"""What a training leaves: a model folder that says how good the network is, and on what.

::

    <run_dir>/model/
    ├── model.json                  card: classes, spacing, normalisation, network, training, scores
    ├── weights.safetensors         the averaged weights
    ├── network.xml, network.bin    the same network for OpenVINO
    └── example_input.tif, example_output.tif

Scores are those of the weights as they are stored, rounded to half precision where the model keeps
them so. The temperature is fitted on the validation regions; test regions are scored and nothing
else. ``lamella segment --model RUN`` takes the run folder or the model folder in it.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lamella.core.progress import SilentSink
from lamella.inference.instance_maps import linear_outputs
from lamella.models.export import round_to_half
from lamella.models.folder import ModelFolder, write_model_folder
from lamella.networks.divisor import find_divisor, fitted_tile
from lamella.training.example import labels_of, make_example, write_example
from lamella.training.honesty import BOUNDS, Honesty
from lamella.training.judgement import Judgement, JudgeOptions, judge
from lamella.wire.card import (
    CalibrationDoc,
    MetricDoc,
    ModelCard,
    NetworkDoc,
    TrainingDoc,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from lamella.core.progress import ProgressSink
    from lamella.training.configuration import TrainConfig
    from lamella.training.source import PatchSource
    from lamella.training.task import Task

__all__ = ["MODEL_FOLDER", "Result", "write_result"]

MODEL_FOLDER = "model"
"""Name of the model folder within a run folder."""


@dataclass(frozen=True, slots=True)
class Result:
    """A trained model.

    Attributes:
        folder: the model folder.
        scores: by split, then by class (or ``objects``), then by name of the score; None where a
            class does not occur in the reference.
        warnings: what a person should hear.
        run_dir: folder of the training.
    """

    folder: ModelFolder
    scores: Mapping[str, Mapping[str, Mapping[str, float | None]]]
    warnings: tuple[str, ...]
    run_dir: Path

    @property
    def next_steps(self) -> str:
        """What to do now: command lines."""
        card = self.folder.card
        what = "VOLUME" if card.axes == "zyx" else "IMAGE"
        return "\n".join(
            [
                f"segment with it:  lamella segment {what} --model {self.run_dir}",
                f"look at it:       lamella models show {self.run_dir}",
                f"keep it:          lamella models import {self.folder.path}",
                f"give it away:     lamella models export {self.run_dir} --format bioimageio",
            ]
        )


def write_result(
    config: TrainConfig,
    network: nn.Module,
    source: PatchSource,
    task: Task,
    *,
    run_dir: Path,
    steps_done: int,
    device: torch.device | str,
    sink: ProgressSink | None = None,
) -> Result:
    """Score a trained network, calibrate it and write it as a model folder.

    Args:
        config: as it was resolved.
        network: the averaged weights; changed in place (rounded, moved to the CPU).
        source: its regions judge.
        task: what the network gives.
        run_dir: receives ``model/``; one that is there is replaced.
        steps_done: optimiser steps behind the weights.
        device: scores are taken on.
        sink: progress and cancellation.

    Raises:
        ModelError: weights that are not finite or beyond half precision, or a network that fails.
        RunCancelledError: the sink asked to stop; an earlier ``model/`` is still there.
        StorageError: it cannot be written.
    """
    sink = sink or SilentSink()
    place = torch.device(device)
    arguments, network = _without_training_heads(config, network, source, task)
    network.eval().requires_grad_(False)
    if config.model.half:
        round_to_half(network)
    network.to(place)
    card = _card(config, network, source, task, arguments=arguments, steps=steps_done)
    judgements = _judged(network, source, task, card, place, sink)
    fitted = _calibrated(judgements)
    network.to("cpu")
    spacing = source.info.spacing
    example = (
        make_example(source, card, spacing, seed=config.seed) if config.model.example else None
    )
    warnings = _warnings(judgements, fitted, source)
    card = _completed(card, judgements, fitted, warnings, example.origin if example else "")
    with tempfile.TemporaryDirectory(prefix="lamella-example-") as scratch:
        files: dict[str, Path] = {}
        if example is not None:
            labels = labels_of(network, card, example.volume)
            files = write_example(example, labels, Path(scratch))
        sink.check()
        folder = write_model_folder(
            run_dir / MODEL_FOLDER,
            card,
            network,
            overwrite=True,
            half=config.model.half,
            more_files=files,
        )
    scores = {one.split: one.as_values() for one in judgements}
    return Result(folder, scores, warnings, Path(run_dir))


def _without_training_heads(
    config: TrainConfig, network: nn.Module, source: PatchSource, task: Task
) -> tuple[dict[str, Any], nn.Module]:
    """Arguments for the card and the network they build: without the heads of deep supervision."""
    arguments = {
        **config.network.arguments,
        "in_channels": source.info.n_channels,
        "out_channels": task.n_outputs,
    }
    if not (config.loss.deep_supervision or arguments.get("deep_supervision")):
        return arguments, network
    from lamella.networks.supervision import inference_network

    state = network.state_dict()
    return inference_network(config.network.id, {**arguments, "deep_supervision": True}, state)


def _card(
    config: TrainConfig,
    network: nn.Module,
    source: PatchSource,
    task: Task,
    *,
    arguments: dict[str, Any],
    steps: int,
) -> ModelCard:
    """The card without scores."""
    info, model = source.info, config.model
    wanted = model.tile or config.trainer.patch
    divisor = find_divisor(network, info.n_channels, wanted)
    has_spacing = info.spacing is not None and info.spacing.unit != "voxel"
    names = ", ".join(known.name for known in task.card_classes if known.value)
    return ModelCard(
        id=model.id,
        version=model.version,
        title=model.title or model.id,
        description=model.description or f"Segments {names}.",
        task=task.card_task,
        axes=info.axes,
        n_channels=info.n_channels,
        classes=task.card_classes,
        spacing=info.spacing if has_spacing and not model.use_native_spacing else None,
        normalisation=info.normalisation,
        network=NetworkDoc(id=config.network.id, arguments=arguments),
        n_outputs=task.n_outputs,
        decoder=task.decoder,
        tile=fitted_tile(wanted, divisor),
        overlap_fraction=model.overlap_fraction,
        tta=model.tta,
        divisor=() if set(divisor) == {1} else divisor,
        licence=model.licence,
        citation=model.citation,
        training=TrainingDoc(
            data=info.description or "not described",
            data_licence=info.licence or "unknown",
            recipe=_recipe(config),
            seed=config.seed,
            steps=steps,
            notes=" ".join(part for part in (_splits(source), _start_of(config)) if part),
        ),
    )


def _recipe(config: TrainConfig) -> str:
    trainer, optimiser = config.trainer, config.optimiser
    patch = " x ".join(map(str, trainer.patch))
    batch = trainer.batch_size * trainer.accumulate
    return (
        f"lamella train: {config.network.id}, {config.task.kind}, batches of {batch} patches of"
        f" {patch}, {optimiser.kind} at {optimiser.learning_rate:g}, {config.schedule.kind};"
        " config.yaml of the run says all"
    )


def _start_of(config: TrainConfig) -> str:
    """What published weights the encoder started from, and their licence."""
    if not config.network.pretrained:
        return ""
    from lamella.networks.pretrained import published_weights_of

    # Only the encoder is read, but the network's arguments are checked whole.
    arguments = {**config.network.arguments, "in_channels": 1, "out_channels": 1}
    return published_weights_of(config.network.id, arguments).note


def _splits(source: PatchSource) -> str:
    parts = [
        f"{split}: {_listed(names)}" for split, names in source.info.specimens.items() if names
    ]
    return f"Specimens: {'; '.join(parts)}." if parts else ""


def _listed(names: tuple[str, ...], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _judged(
    network: nn.Module,
    source: PatchSource,
    task: Task,
    card: ModelCard,
    device: torch.device,
    sink: ProgressSink,
) -> list[Judgement]:
    n_axes = len(card.axes)
    spacing = source.info.spacing
    options = JudgeOptions(
        tile=card.tile,
        overlap_fraction=card.overlap_fraction,
        spacing=(1.0,) * n_axes if spacing is None else spacing.values[-n_axes:],
        device=device,
    )
    found: list[Judgement] = []
    for split in ("validation", "test"):
        regions = source.regions(split)
        if regions:
            found.append(
                judge(
                    network,
                    regions,
                    task,
                    options,
                    split=split,
                    sink=sink,
                    sigmoid_outputs=_sigmoid_outputs(card),
                )
            )
    return found


def _sigmoid_outputs(card: ModelCard) -> tuple[int, ...]:
    """Outputs whose probability a run reports, and which are therefore to be honest."""
    kind = card.decoder.kind
    if kind == "argmax":
        return ()
    if kind == "threshold":
        return tuple(range(card.n_outputs))
    has_boundary = kind == "boundary_watershed" and 1 not in linear_outputs(card.decoder, 2)
    return (0, 1) if has_boundary else (0,)


def _calibrated(judgements: list[Judgement]) -> Honesty | None:
    for one in judgements:
        if one.split == "validation" and one.sample is not None:
            return one.sample.fit()
    return None


def _warnings(
    judgements: list[Judgement], fitted: Honesty | None, source: PatchSource
) -> tuple[str, ...]:
    said = list(source.info.warnings)
    splits = {one.split for one in judgements}
    if "validation" not in splits:
        said.append("there is no validation data: the model is not calibrated")
    elif fitted is None:
        said.append("no voxel of the validation data is annotated: the model is not calibrated")
    elif not 1.02 * BOUNDS[0] < fitted.temperature < BOUNDS[1] / 1.02:
        said.append(
            f"the temperature ends at {fitted.temperature:.3g}, the limit of what is tried: the"
            " network has learnt too little, or the annotations are too few"
        )
    if not splits:
        said.append("there is neither validation nor test data: nobody knows how good the model is")
    for one in judgements:
        if one.absent:
            said.append(
                f"{', '.join(one.absent)} never occurs in the {one.split} data: no score is given"
            )
        if one.objects is not None and one.objects.n_reference == 0:
            said.append(f"there is no object in the {one.split} data: objects are not scored")
    return tuple(said)


def _completed(
    card: ModelCard,
    judgements: list[Judgement],
    fitted: Honesty | None,
    warnings: tuple[str, ...],
    origin: str,
) -> ModelCard:
    """The card with scores, calibration and everything a reader has to know."""
    metrics = [metric for one in judgements for metric in one.metrics()]
    calibration = None
    if fitted is not None:
        data = next(one.data for one in judgements if one.split == "validation")
        calibration = CalibrationDoc(temperature=round(fitted.temperature, 4), data=data)
        metrics += [
            MetricDoc(
                name="calibration error",
                value=round(error, 4),
                data=data,
                n=fitted.n,
                conditions={"temperature": temperature, "bins": 15},
            )
            for error, temperature in (
                (fitted.error_before, 1.0),
                (fitted.error_after, calibration.temperature),
            )
        ]
    notes = [card.training.notes, *(f"{text[0].upper()}{text[1:]}." for text in warnings)]
    if origin:
        notes.append(f"The example is a crop of {origin}.")
    training = card.training.model_copy(update={"notes": " ".join(note for note in notes if note)})
    return card.model_copy(
        update={"metrics": tuple(metrics), "calibration": calibration, "training": training}
    )
