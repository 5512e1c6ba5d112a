r"""Train, score and write the starter model ``membrane-3d``: membranes in cryo-electron tomograms.

    python recipes/membrane_3d.py train --work A --steps 2000 --seed 1
    python recipes/membrane_3d.py train --work B --steps 1200 --seed 2 --rate 2e-3 --volumes 140 \
        --start A/weights.pt
    python recipes/membrane_3d.py train --work C --steps 600 --seed 3 --rate 1e-3 --volumes 70 \
        --start B/weights.pt --coarse-fraction 0.4
    python recipes/membrane_3d.py average --first B --second C --share 0.6 --work D
    python recipes/membrane_3d.py write --work D -o FOLDER

``train`` simulates, trains and keeps a checkpoint every 200 steps; ``write`` scores the last one
over SNR the way users run it, and writes the model folder. Memory allocation dominates the training
on CPUs unless glibc keeps its memory: MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_MMAP_MAX_=0.

Data: simulated tomograms only (``lamella.simulation.tomogram``), made here from seeds; nothing is
downloaded. Training scenes have seeds below 100 000; those that are scored have seeds from 900 000
and other shapes. Every training patch gets new noise: the noise-free tomogram and wedge-shaped
noise are kept apart and mixed at a signal-to-noise ratio drawn per patch.

The last stage also shows the network tomograms averaged over blocks of 2 and 3 voxels, as the
coarse preview of a run does: a network that has only seen 1 nm finds nothing there. At 2 nm it
learns to (Dice 0.86); at 3 nm it does not: the contrast transfer function leaves a bilayer next to
no signal at such low frequencies. The weights of the last two stages are averaged (Wortsman et al.,
WiSE-FT, 2022): almost the preview of the last, without the specks it makes at 1 nm.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import torch

from lamella.evaluation.surface import score_surface
from lamella.models.folder import write_model_folder
from lamella.networks.registry import build_network
from lamella.simulation.tomogram import (
    CLASSES,
    SimulatedTomogram,
    TomogramOptions,
    simulate_tomogram,
)
from lamella.training.simple import LoopOptions, train
from lamella.training.simulated.tomograms import SPACING_NM, draw_options
from lamella.volume.pyramid import downsample_mean
from lamella.wire.card import (
    ClassDoc,
    DecoderDoc,
    MetricDoc,
    ModelCard,
    NetworkDoc,
    NormalisationDoc,
    TrainingDoc,
)
from lamella.wire.request import SpacingDoc

NETWORK = "compact_unet3d"
ARGUMENTS = {"in_channels": 1, "out_channels": 2, "widths": [16, 32, 64, 96]}
POOL_SHAPE = (104, 104, 104)
PATCH = 64
COARSE_FACTORS = (2, 3)
COARSE_EXTENT = 96
"""Voxels of 1 nm that a coarse patch is averaged from: 48 or 32 coarse ones a side."""
COARSE_SHARE = 0.4
"""A coarse voxel is membrane where this share of its block is."""
SNR_RANGE = (0.05, 0.6)
TEST_SHAPES = ((96, 128, 112), (80, 144, 96), (128, 96, 120))
TEST_SEED = 900_000
CONDITIONS: tuple[tuple[str, dict[str, object]], ...] = (
    *((f"SNR {snr}", {"snr": snr}) for snr in (0.05, 0.1, 0.2, 0.3, 0.5)),
    ("SNR 0.2, tilts to 45 degrees", {"snr": 0.2, "tilt_range": (-45.0, 45.0)}),
    ("SNR 0.2, defocus 5 um", {"snr": 0.2, "defocus_um": 5.0}),
    ("SNR 0.2, any direction", {"snr": 0.2, "avoids_wedge": False}),
)


@click.group()
def main() -> None:
    """Train, score and write membrane-3d."""
    torch.set_num_threads(2)


class PatchPool:
    """Simulated tomograms in memory, from which patches with fresh noise are drawn."""

    def __init__(self, n_volumes: int, seed: int, coarse_fraction: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        self._coarse_fraction = coarse_fraction
        self._signals, self._noises, self._labels = [], [], []
        for index in range(n_volumes):
            made = simulate_tomogram(
                POOL_SHAPE, seed=1000 * seed + index, options=draw_options(rng)
            )
            noise = made.intensity - made.signal
            self._signals.append((made.signal / made.signal.std()).astype(np.float16))
            self._noises.append((noise / noise.std()).astype(np.float16))
            self._labels.append(made.labels == 1)

    def __call__(self, rng: np.random.Generator, n: int, /) -> tuple[np.ndarray, np.ndarray]:
        """Images float32 (n, 1, z, y, x) and labels uint8 (n, z, y, x); 1 is membrane."""
        # One factor a batch: its patches have one shape.
        is_coarse = rng.random() < self._coarse_fraction
        factor = int(rng.choice(COARSE_FACTORS)) if is_coarse else 1
        pairs = [self._patch(rng, factor) for _ in range(n)]
        images, labels = zip(*pairs, strict=True)
        return np.stack(images)[:, None], np.stack(labels)

    def _patch(self, rng: np.random.Generator, factor: int) -> tuple[np.ndarray, np.ndarray]:
        extent = PATCH if factor == 1 else COARSE_EXTENT
        index = int(rng.integers(len(self._signals)))
        where = _window(rng, extent)
        if self._labels[index][where].mean() < 0.01:
            where = _window(rng, extent)  # one more try: most patches should show a membrane
        snr = np.exp(rng.uniform(*np.log(SNR_RANGE)))
        signal = self._signals[index][where].astype(np.float32)
        noise = self._noises[index][_window(rng, extent)].astype(np.float32)
        # Mirrored noise is as good as new; any mirror keeps the missing wedge where it is.
        noise = _mirrored(noise, rng.random(3) < 0.5)
        image = np.float32(np.sqrt(snr)) * signal + noise
        image = _filtered(image, rng)
        # As z-scored over the whole tomogram, give or take: patches differ from their tomogram.
        image = image / image.std() * np.float32(np.exp(rng.normal(0, 0.1)))
        image += np.float32(rng.normal(0, 0.1)) - image.mean()
        flips = rng.random(3) < 0.5
        image, labels = averaged(image, self._labels[index][where], factor)
        labels = _mirrored(labels, flips).astype(np.uint8)
        return np.ascontiguousarray(_mirrored(image, flips)), np.ascontiguousarray(labels)


def averaged(image: np.ndarray, labels: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """A tomogram as the coarse preview sees it, and which of its voxels are membrane."""
    if factor == 1:
        return image, labels
    factors = (factor,) * 3
    share = downsample_mean(labels.astype(np.float32), factors)
    return downsample_mean(image, factors), share >= COARSE_SHARE


def _window(rng: np.random.Generator, extent: int) -> tuple[slice, ...]:
    starts = [int(rng.integers(0, n - extent + 1)) for n in POOL_SHAPE]
    return tuple(slice(start, start + extent) for start in starts)


def _mirrored(array: np.ndarray, flips: np.ndarray) -> np.ndarray:
    return array[tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)]


def _filtered(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Tomograms come low-passed to different degrees; a third of the patches are blurred."""
    from scipy.ndimage import gaussian_filter

    if rng.random() < 0.35:
        return gaussian_filter(image, rng.uniform(0.3, 1.0), truncate=3.0)
    return image


@main.command("train")
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--steps", default=2400)
@click.option("--volumes", default=150)
@click.option("--batch", default=2)
@click.option("--seed", default=1)
@click.option("--rate", default=3e-3, help="peak learning rate")
@click.option("--start", type=click.Path(path_type=Path), help="checkpoint to go on from")
@click.option("--coarse-fraction", default=0.0, help="share of batches averaged 2 or 3 times")
def train_command(
    work: Path,
    steps: int,
    volumes: int,
    batch: int,
    seed: int,
    rate: float,
    start: Path | None,
    coarse_fraction: float,
) -> None:
    """Simulate the pool and train."""
    work.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    pool = PatchPool(volumes, seed, coarse_fraction)
    click.echo(f"{volumes} tomograms simulated in {time.monotonic() - began:.0f} s")
    torch.manual_seed(seed)
    network = build_network(NETWORK, ARGUMENTS).to(memory_format=torch.channels_last_3d)
    if start is not None:
        network.load_state_dict(torch.load(start, weights_only=True))
    recent: list[float] = []
    began = time.monotonic()

    def on_step(step: int, loss: float, averaged: torch.nn.Module) -> None:
        recent.append(loss)
        if step % 50 == 0:
            seconds = time.monotonic() - began
            click.echo(f"step {step} loss {np.mean(recent[-50:]):.4f} after {seconds:.0f} s")
        if step % 200 == 0 or step == steps:
            torch.save(averaged.state_dict(), work / "weights.pt")
            (work / "training.json").write_text(
                json.dumps({"steps": step, "of": steps, "seed": seed, "volumes": volumes})
            )
            scores = score_at(averaged, 0.2, n_volumes=2)
            click.echo(f"  held out, SNR 0.2: Dice {scores[0]:.4f} NSD {scores[1]:.4f}")
            for factor in COARSE_FACTORS if coarse_fraction else ():
                coarse = coarse_dice(averaged_network=averaged, factor=factor, n_volumes=2)
                click.echo(f"  averaged {factor} times: Dice {coarse:.4f}")

    options = LoopOptions(
        n_steps=steps, batch_size=batch, learning_rate=rate, precision="bf16", seed=seed
    )
    train(network, pool, options, on_step=on_step)


@main.command("average")
@click.option("--first", type=click.Path(path_type=Path), required=True)
@click.option("--second", type=click.Path(path_type=Path), required=True)
@click.option("--share", default=0.6, help="weight of the second checkpoint")
@click.option("--work", type=click.Path(path_type=Path), required=True)
def average_command(first: Path, second: Path, share: float, work: Path) -> None:
    """Average two checkpoints, and keep the second's account of its training."""
    work.mkdir(parents=True, exist_ok=True)
    a, b = (torch.load(at / "weights.pt", weights_only=True) for at in (first, second))
    mixed = {k: torch.lerp(a[k], b[k], share) if a[k].is_floating_point() else b[k] for k in b}
    torch.save(mixed, work / "weights.pt")
    (work / "training.json").write_text((second / "training.json").read_text())


def held_out(index: int, snr: float, **changes: object) -> SimulatedTomogram:
    """A test tomogram: seeds and shapes that training never used."""
    return simulate_tomogram(
        TEST_SHAPES[index % len(TEST_SHAPES)],
        seed=TEST_SEED + index,
        options=TomogramOptions(spacing_nm=SPACING_NM, snr=snr, **changes),
    )


@torch.no_grad()
def score_at(network: torch.nn.Module, snr: float, n_volumes: int) -> tuple[float, float]:
    """Mean Dice and surface Dice over held-out tomograms, whole volumes at once."""
    scores = []
    for index in range(n_volumes):
        made = held_out(index, snr)
        batch = torch.from_numpy(made.intensity)[None, None]
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(batch.contiguous(memory_format=torch.channels_last_3d))
        scores.append(compare((logits[0, 1] > logits[0, 0]).numpy(), made.labels == 1))
    means = np.mean(scores, axis=0)
    return float(means[0]), float(means[1])


@torch.no_grad()
def coarse_dice(averaged_network: torch.nn.Module, factor: int, n_volumes: int) -> float:
    """Mean Dice over held-out tomograms averaged over blocks, as the preview sees them."""
    scores = []
    for index in range(n_volumes):
        made = held_out(index, 0.2)
        image, reference = averaged(made.intensity / made.intensity.std(), made.labels == 1, factor)
        extent = [n - n % 8 for n in image.shape]
        whole = tuple(slice(0, n) for n in extent)
        batch = torch.from_numpy(np.ascontiguousarray(image[whole], np.float32))[None, None]
        logits = averaged_network(batch.contiguous(memory_format=torch.channels_last_3d))
        found = (logits[0, 1] > logits[0, 0]).numpy()
        pair = found.sum() + reference[whole].sum()
        scores.append(2 * (found & reference[whole]).sum() / max(1, pair))
    return float(np.mean(scores))


def compare(found: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Dice, and surface Dice at a tolerance of one voxel."""
    dice = 2 * (found & reference).sum() / max(1, found.sum() + reference.sum())
    surface = score_surface(found, reference, spacing=(1.0, 1.0, 1.0), tolerance=1.0)
    return float(dice), surface.surface_dice


@main.command("write")
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--volumes", default=12, help="held-out tomograms per condition")
def write_command(work: Path, output: Path, volumes: int) -> None:
    """Write the model folder, score it as users run it, and put the scores into its card."""
    import lamella

    network = build_network(NETWORK, ARGUMENTS)
    network.load_state_dict(torch.load(work / "weights.pt", weights_only=True))
    training = json.loads((work / "training.json").read_text())
    candidate = write_model_folder(
        work / "membrane-3d", card_of(training, ()), network, overwrite=True
    )
    metrics: list[MetricDoc] = []
    for name, conditions in CONDITIONS:
        scores = []
        for index in range(volumes):
            made = held_out(index, **conditions)
            with tempfile.TemporaryDirectory() as folder:
                run = lamella.segment(
                    made.to_volume(), str(candidate.path), run_dir=Path(folder) / "run"
                )
                scores.append(compare(run.labels.load() == 1, made.labels == 1))
        click.echo(f"{name:28} " + describe(scores))
        metrics += [
            metric_of(kind, [score[place] for score in scores], name, conditions)
            for place, kind in enumerate(("Dice", "surface Dice at 1 voxel"))
        ]
    coarse = coarse_dice(network.eval(), 2, volumes)
    click.echo(f"averaged 2 times (preview): Dice {coarse:.3f}")
    metrics.append(
        MetricDoc(
            name="Dice",
            value=round(coarse, 4),
            data="simulated tomograms of other seeds and shapes, averaged over blocks of 2 voxels",
            n=volumes,
            conditions={"snr": 0.2, "preview_factor": 2},
        )
    )
    written = write_model_folder(output, card_of(training, tuple(metrics)), network, overwrite=True)
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


def card_of(training: dict, metrics: tuple[MetricDoc, ...]) -> ModelCard:
    """The card of membrane-3d."""
    return ModelCard(
        id="membrane-3d",
        version="1",
        title="Membranes in cryo-electron tomograms",
        description=(
            "Lipid bilayers (vesicles, sheets, tubules, double membranes) in cryo-electron"
            " tomograms, trained on simulated ones. Protein must be dark: invert tomograms in which"
            " it is bright. Tomograms are resampled to 1 nm. Microtubules, ribosomes and solutes"
            " are background. Membranes that lie flat in the missing wedge leave no signal and are"
            " found only where the shape around them tells of them."
        ),
        task="semantic",
        axes="zyx",
        n_channels=1,
        classes=(
            ClassDoc(value=0, name="background", color=(0, 0, 0)),
            ClassDoc(value=1, name="membrane", color=CLASSES[1][2]),
        ),
        spacing=SpacingDoc(values=(SPACING_NM,) * 3, unit="nm"),
        spacing_tolerance=0.15,
        normalisation=NormalisationDoc(kind="zscore", scope="volume"),
        network=NetworkDoc(id=NETWORK, arguments=ARGUMENTS),
        n_outputs=2,
        decoder=DecoderDoc(kind="argmax"),
        tile=(64, 64, 64),
        overlap_fraction=0.5,
        divisor=(8, 8, 8),
        licence="Apache-2.0",
        training=TrainingDoc(
            data=f"{training['volumes']} tomograms of {POOL_SHAPE[0]} voxels a side, simulated by"
            " lamella.simulation.tomogram",
            data_licence="made by this project, Apache-2.0",
            recipe="recipes/membrane_3d.py",
            seed=training["seed"],
            steps=training["steps"],
            notes=(
                "Contrast convention: protein dark (low values). Training: SNR 0.05 to 0.6, tilts"
                " to 45..66 degrees about y, defocus 1.5 to 5 um, with and without phase flipping,"
                " membranes in any direction. Never scored on annotated real tomograms."
                f" {training.get('notes', '')}".rstrip()
            ),
        ),
        metrics=metrics,
    )


if __name__ == "__main__":
    main()
