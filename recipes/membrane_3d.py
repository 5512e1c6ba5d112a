"""Train, score and write the starter model ``membrane-3d``: membranes in cryo-electron tomograms.

    python recipes/membrane_3d.py train  --work WORK          # simulates, trains, keeps checkpoints
    python recipes/membrane_3d.py score  --work WORK          # prints the table over SNR
    python recipes/membrane_3d.py write  --work WORK -o FOLDER

Data: simulated tomograms only (``lamella.simulation.tomogram``), made here from seeds; nothing is
downloaded. Training scenes have seeds below 100 000; those that are scored have seeds from 900 000
and other shapes. Every training patch gets new noise: the noise-free tomogram and wedge-shaped
noise are kept apart and mixed at a signal-to-noise ratio drawn per patch.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import numpy as np
import torch

from lamella.networks.registry import build_network
from lamella.simulation.tomogram import TomogramOptions, simulate_tomogram
from lamella.training.simple import LoopOptions, train

NETWORK = "compact_unet3d"
ARGUMENTS = {"in_channels": 1, "out_channels": 2, "widths": [16, 32, 64, 96]}
SPACING_NM = 1.0
POOL_SHAPE = (104, 104, 104)
PATCH = 64
SNR_RANGE = (0.05, 0.6)
TEST_SHAPES = ((96, 128, 112), (80, 144, 96), (128, 96, 120))
TEST_SEED = 900_000
TEST_SNRS = (0.05, 0.1, 0.2, 0.3, 0.5)


@click.group()
def main() -> None:
    """Train, score and write membrane-3d."""
    torch.set_num_threads(2)


def scene_options(rng: np.random.Generator) -> TomogramOptions:
    """A microscope and a sample drawn as widely as tomograms differ."""
    tilt = rng.uniform(45, 66)
    return TomogramOptions(
        spacing_nm=SPACING_NM,
        snr=1.0,
        tilt_range=(-tilt, tilt + rng.uniform(-4, 4)),
        defocus_um=rng.uniform(1.5, 5.0),
        amplitude_contrast=rng.uniform(0.05, 0.12),
        b_factor_nm2=rng.uniform(2.0, 12.0),
        is_phase_flipped=bool(rng.random() < 0.3),
        membrane_density=rng.uniform(0.8, 2.5),
        particle_density=rng.uniform(0.0, 2.0),
        microtubule_density=rng.uniform(0.0, 2.0),
        solute_density=rng.uniform(0.3, 2.0),
        double_fraction=rng.uniform(0.0, 0.4),
        vesicle_radius_nm=(11.0, 55.0),
        n_gold=int(rng.random() < 0.15),
    )


class PatchPool:
    """Simulated tomograms in memory, from which patches with fresh noise are drawn."""

    def __init__(self, n_volumes: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._signals, self._noises, self._labels = [], [], []
        for index in range(n_volumes):
            made = simulate_tomogram(POOL_SHAPE, seed=index, options=scene_options(rng))
            noise = made.intensity - made.signal
            self._signals.append((made.signal / made.signal.std()).astype(np.float16))
            self._noises.append((noise / noise.std()).astype(np.float16))
            self._labels.append(made.labels == 1)

    def __call__(self, rng: np.random.Generator, n: int, /) -> tuple[np.ndarray, np.ndarray]:
        """Images float32 (n, 1, z, y, x) and labels uint8 (n, z, y, x); 1 is membrane."""
        pairs = [self._patch(rng) for _ in range(n)]
        images, labels = zip(*pairs, strict=True)
        return np.stack(images)[:, None], np.stack(labels)

    def _patch(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        index = int(rng.integers(len(self._signals)))
        where = _window(rng)
        if self._labels[index][where].mean() < 0.01:
            where = _window(rng)  # one more try: most patches should show a membrane
        snr = np.exp(rng.uniform(*np.log(SNR_RANGE)))
        signal = self._signals[index][where].astype(np.float32)
        noise = self._noises[index][_window(rng)].astype(np.float32)
        # Mirrored noise is as good as new; any mirror keeps the missing wedge where it is.
        noise = _mirrored(noise, rng.random(3) < 0.5)
        image = np.float32(np.sqrt(snr)) * signal + noise
        image = _filtered(image, rng)
        # As z-scored over the whole tomogram, give or take: patches differ from their tomogram.
        image = image / image.std() * np.float32(np.exp(rng.normal(0, 0.1)))
        image += np.float32(rng.normal(0, 0.1)) - image.mean()
        flips = rng.random(3) < 0.5
        labels = _mirrored(self._labels[index][where], flips).astype(np.uint8)
        return np.ascontiguousarray(_mirrored(image, flips)), np.ascontiguousarray(labels)


def _window(rng: np.random.Generator) -> tuple[slice, ...]:
    starts = [int(rng.integers(0, extent - PATCH + 1)) for extent in POOL_SHAPE]
    return tuple(slice(start, start + PATCH) for start in starts)


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
@click.option("--start", type=click.Path(path_type=Path), help="checkpoint to go on from")
def train_command(
    work: Path, steps: int, volumes: int, batch: int, seed: int, start: Path | None
) -> None:
    """Simulate the pool and train."""
    work.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    pool = PatchPool(volumes, seed)
    click.echo(f"{volumes} tomograms simulated in {time.monotonic() - began:.0f} s")
    torch.manual_seed(seed)
    network = build_network(NETWORK, ARGUMENTS).to(memory_format=torch.channels_last_3d)
    if start is not None:
        network.load_state_dict(torch.load(start, weights_only=True))
    recent: list[float] = []

    def on_step(step: int, loss: float, averaged: torch.nn.Module) -> None:
        recent.append(loss)
        if step % 50 == 0:
            rate = (time.monotonic() - began) / step
            click.echo(f"step {step} loss {np.mean(recent[-50:]):.4f} ({rate:.2f} s/step)")
        if step % 200 == 0 or step == steps:
            torch.save(averaged.state_dict(), work / "weights.pt")
            (work / "training.json").write_text(
                json.dumps({"steps": step, "of": steps, "seed": seed, "volumes": volumes})
            )
            scores = score_at(averaged, 0.2, n_volumes=2)
            click.echo(f"  held out, SNR 0.2: Dice {scores[0]:.4f} NSD {scores[1]:.4f}")

    options = LoopOptions(
        n_steps=steps, batch_size=batch, learning_rate=3e-3, precision="bf16", seed=seed
    )
    train(network, pool, options, on_step=on_step)


def held_out(index: int, snr: float) -> tuple[np.ndarray, np.ndarray]:
    """A test tomogram, z-scored float32, and its membrane mask."""
    made = simulate_tomogram(
        TEST_SHAPES[index % len(TEST_SHAPES)],
        seed=TEST_SEED + index,
        options=TomogramOptions(spacing_nm=SPACING_NM, snr=snr),
    )
    return made.intensity, made.labels == 1


@torch.no_grad()
def membrane_mask(network: torch.nn.Module, image: np.ndarray) -> np.ndarray:
    """What the network calls membrane, whole volume at once."""
    batch = torch.from_numpy((image - image.mean()) / image.std())[None, None]
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(batch.contiguous(memory_format=torch.channels_last_3d))
    return (logits[0, 1] > logits[0, 0]).numpy()


def score_at(network: torch.nn.Module, snr: float, n_volumes: int) -> tuple[float, float]:
    """Mean Dice and mean surface Dice at one voxel over held-out tomograms."""
    scores = []
    for index in range(n_volumes):
        image, reference = held_out(index, snr)
        found = membrane_mask(network, image)
        scores.append((dice(found, reference), surface_dice(found, reference, 1.0)))
    means = np.mean(scores, axis=0)
    return float(means[0]), float(means[1])


def dice(found: np.ndarray, reference: np.ndarray) -> float:
    """Twice the overlap over the sum of sizes."""
    return float(2 * (found & reference).sum() / max(1, found.sum() + reference.sum()))


def surface_dice(found: np.ndarray, reference: np.ndarray, tolerance: float) -> float:
    """Share of both surfaces' voxels that lie within ``tolerance`` voxels of the other surface."""
    from scipy.ndimage import binary_erosion, distance_transform_edt

    surfaces = [mask & ~binary_erosion(mask, border_value=1) for mask in (found, reference)]
    if not all(surface.any() for surface in surfaces):
        return 0.0
    away = [distance_transform_edt(~surface) for surface in surfaces]
    close = (away[1][surfaces[0]] <= tolerance).sum() + (away[0][surfaces[1]] <= tolerance).sum()
    return float(close / sum(int(surface.sum()) for surface in surfaces))


if __name__ == "__main__":
    main()
