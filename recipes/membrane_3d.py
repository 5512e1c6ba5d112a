r"""Score and write the starter model ``membrane-3d``: membranes in cryo-electron tomograms.

It is trained in seven stages, each from the weights of the one before::

    lamella train membrane_3d --run-dir A
    lamella train membrane_3d network.start=A/model data.seed=12 optimiser.learning_rate=2e-3 \
        trainer.steps=2600 --run-dir B
    lamella train membrane_3d network.start=B/model data.seed=13 optimiser.learning_rate=1.5e-3 \
        trainer.steps=2200 data.coarse_fraction=0 'trainer.patch=[64,64,64]' --run-dir C
    lamella train membrane_3d network.start=C/model data.seed=14 optimiser.learning_rate=1e-3 \
        trainer.steps=900 data.coarse_fraction=0.4 --run-dir D
    python recipes/average.py C/model D/model --share 0.35 -o CD
    lamella train membrane_3d network.start=CD data.seed=15 optimiser.learning_rate=1e-3 \
        trainer.steps=1300 data.coarse_fraction=0.25 'data.snr=[0.04,0.5]' --run-dir E
    lamella train membrane_3d network.start=E/model data.seed=16 optimiser.learning_rate=1.5e-3 \
        trainer.steps=1600 data.coarse_fraction=0.12 'data.snr=[0.045,0.6]' --run-dir F
    lamella train membrane_3d network.start=F/model data.seed=17 optimiser.learning_rate=1.5e-3 \
        trainer.steps=1400 data.coarse_fraction=0.12 'data.snr=[0.04,0.6]' data.n_samples=90 \
        'data.shape=[128,128,128]' 'trainer.patch=[64,64,64]' --run-dir G
    python recipes/membrane_3d.py G/model -o FOLDER

This script scores a model over conditions the way users run it, and writes the model folder with
the scores in its card. Memory allocation dominates the training on CPUs unless glibc keeps its
memory: MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_MMAP_MAX_=0.

Data: simulated tomograms only (``lamella.simulation.tomogram``), made from seeds; nothing is
downloaded. Those that are scored have seeds from 900 000 and other shapes.

The stages after the third show the network more tomograms averaged over blocks of 2 voxels, as the
coarse preview of a run does: a network that has seen few of them finds little there. Averages over
3 voxels are of no use: the contrast transfer function leaves a bilayer next to no signal at so low
frequencies.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import numpy as np
import torch

from lamella.evaluation.surface import score_surface
from lamella.models.folder import ModelFolder, write_model_folder
from lamella.simulation.tomogram import SimulatedTomogram, TomogramOptions, simulate_tomogram
from lamella.training.simulated.tomograms import COARSE, SPACING_NM, coarse_labels
from lamella.volume.pyramid import downsample_mean
from lamella.wire.card import MetricDoc, ModelCard

TEST_SHAPES = ((96, 128, 112), (80, 144, 96), (128, 96, 120))
TEST_SEED = 900_000
CONDITIONS: tuple[tuple[str, dict[str, object]], ...] = (
    *((f"SNR {snr}", {"snr": snr}) for snr in (0.05, 0.1, 0.2, 0.3, 0.5)),
    ("SNR 0.2, tilts to 45 degrees", {"snr": 0.2, "tilt_range": (-45.0, 45.0)}),
    ("SNR 0.2, defocus 5 um", {"snr": 0.2, "defocus_um": 5.0}),
    ("SNR 0.2, any direction", {"snr": 0.2, "avoids_wedge": False}),
)


def held_out(index: int, snr: float, **changes: object) -> SimulatedTomogram:
    """A test tomogram: seeds and shapes that training never used."""
    return simulate_tomogram(
        TEST_SHAPES[index % len(TEST_SHAPES)],
        seed=TEST_SEED + index,
        options=TomogramOptions(spacing_nm=SPACING_NM, snr=snr, **changes),
    )


@torch.no_grad()
def coarse_dice(network: torch.nn.Module, n_volumes: int) -> float:
    """Mean Dice over held-out tomograms averaged over blocks, as the preview sees them."""
    scores = []
    for index in range(n_volumes):
        made = held_out(index, 0.2)
        image = downsample_mean(made.intensity / made.intensity.std(), (COARSE,) * 3)
        reference = coarse_labels(made.labels, COARSE) == 1
        whole = tuple(slice(0, n - n % 8) for n in image.shape)
        batch = torch.from_numpy(np.ascontiguousarray(image[whole], np.float32))[None, None]
        logits = network(batch.contiguous(memory_format=torch.channels_last_3d))
        scores.append(dice_of((logits[0, 1] > logits[0, 0]).numpy(), reference[whole]))
    return float(np.mean(scores))


def dice_of(found: np.ndarray, reference: np.ndarray) -> float:
    """Dice of two masks."""
    return float(2 * (found & reference).sum() / max(1, found.sum() + reference.sum()))


def compare(found: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Dice, and surface Dice at a tolerance of one voxel."""
    surface = score_surface(found, reference, spacing=(1.0, 1.0, 1.0), tolerance=1.0)
    return dice_of(found, reference), surface.surface_dice


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--volumes", default=6, help="held-out tomograms per condition")
def main(model: Path, output: Path, volumes: int) -> None:
    """Score a model as users run it, and write it with the scores in its card."""
    import lamella

    candidate = ModelFolder.open(model)
    metrics: list[MetricDoc] = []
    for name, conditions in CONDITIONS:
        scores = []
        for index in range(volumes):
            made = held_out(index, **conditions)
            with tempfile.TemporaryDirectory() as folder:
                run = lamella.segment(made.to_volume(), str(model), run_dir=Path(folder) / "run")
                scores.append(compare(run.labels.load() == 1, made.labels == 1))
        click.echo(f"{name:28} " + describe(scores))
        metrics += [
            metric_of(kind, [score[place] for score in scores], name, conditions)
            for place, kind in enumerate(("Dice", "surface Dice at 1 voxel"))
        ]
    network = candidate.load_network().eval()
    coarse = coarse_dice(network, volumes)
    click.echo(f"averaged {COARSE} times (preview): Dice {coarse:.3f}")
    metrics.append(
        MetricDoc(
            name="Dice",
            value=round(coarse, 4),
            data="simulated tomograms of other seeds and shapes, averaged over blocks of 2 voxels",
            n=volumes,
            conditions={"snr": 0.2, "preview_factor": COARSE},
        )
    )
    written = write_model_folder(
        output, shipped_card(candidate.card, tuple(metrics)), network, overwrite=True
    )
    click.echo(f"{written.path}: {written.n_bytes / 1e6:.2f} MB")


def describe(scores: list[tuple[float, float]]) -> str:
    """A line of the table."""
    values = np.asarray(scores)
    mean, least = values.mean(axis=0), values.min(axis=0)
    return f"Dice {mean[0]:.3f} (least {least[0]:.3f})   NSD {mean[1]:.3f} (least {least[1]:.3f})"


def metric_of(
    kind: str, values: list[float], name: str, conditions: dict[str, object]
) -> MetricDoc:
    """A score for the card."""
    return MetricDoc(
        name=kind,
        value=round(float(np.mean(values)), 4),
        data=f"simulated tomograms of other seeds and shapes, {name}",
        n=len(values),
        conditions={key: list(v) if isinstance(v, tuple) else v for key, v in conditions.items()}
        | {"least": round(min(values), 4)},
    )


def shipped_card(card: ModelCard, metrics: tuple[MetricDoc, ...]) -> ModelCard:
    """The card of the last stage, with what the stages together were and the scores."""
    training = card.training.model_copy(
        update={
            "data": "810 tomograms of 112 to 128 voxels a side, simulated by"
            " lamella.simulation.tomogram",
            "recipe": "lamella train membrane_3d, in the seven stages of recipes/membrane_3d.py",
            "steps": 13_000,
            "notes": (
                "Contrast convention: protein dark (low values). Training: SNR 0.04 to 0.6, tilts"
                " to 45..66 degrees about y, defocus 1.5 to 5 um, with and without phase flipping,"
                " membranes in any direction. Never scored on annotated real tomograms. Seven"
                " stages, each from the weights before it,"
                " the fifth from the mean of the third's and fourth's (0.65 to 0.35). A part of the"
                " patches is averaged over blocks of 2 voxels, for the preview."
            ),
        }
    )
    # Sizes vary by more than that from one membrane to the next: 0.87 nm need no resampling.
    changes = {"training": training, "metrics": metrics, "spacing_tolerance": 0.15}
    return card.model_copy(update=changes)


if __name__ == "__main__":
    main()
