"""Train, score and write the starter model ``nuclei-2d``: nuclei in 2-D fluorescence images.

    python recipes/nuclei_2d.py pretrain --work WORK
    python recipes/nuclei_2d.py train    --work WORK --data DSB2018 --fold 0   (and 1, 2)
    python recipes/nuclei_2d.py score    --work WORK --data DSB2018 [--outside IMAGE LABELS]
    python recipes/nuclei_2d.py write    --work WORK --data DSB2018 -o FOLDER

Data: simulated nuclei (``lamella.simulation.nuclei``), and nine fluorescence images of the Data
Science Bowl 2018 (BBBC038, CC0) as ``*_fluor.png`` with ``*_fluor_labels.tif`` beside them. Images
are split by image into three folds; fold k is scored by the network that never saw it. The network
of fold 0 is the one that is shipped, so its three left-out images are a true hold-out.

The network has three sigmoid outputs: foreground, boundary between objects, and distance to the
background relative to the object's largest. The third only guides the training and is left out of
what is shipped; the first two become instances by ``lamella.instances.watershed``.
"""

from __future__ import annotations

import copy
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from torch.nn import functional

from lamella.evaluation.contingency import count_overlaps
from lamella.evaluation.instance import match_objects
from lamella.instances.watershed import WatershedOptions, watershed_instances
from lamella.models.export import round_to_half
from lamella.models.folder import write_model_folder
from lamella.networks.registry import build_network
from lamella.simulation.nuclei import NUCLEUS_COLOR, draw_nuclei
from lamella.training.simulated.nuclei import draw_options
from lamella.wire.card import (
    ClassDoc,
    DecoderDoc,
    MetricDoc,
    ModelCard,
    NetworkDoc,
    NormalisationDoc,
    TrainingDoc,
)

NETWORK = "compact_unet2d"
WIDTHS = [20, 40, 64, 96, 128]
PERCENTILES = (1.0, 99.8)
N_FOLDS = 3
N_SIMULATED = 400
PATCH = 128
BATCH = 16
DECODER = {"foreground_threshold": 0.5, "boundary_threshold": 0.5, "min_size": 16}


@dataclass(frozen=True)
class Example:
    """A normalised image, float32 (y, x), and its instances, int32 (y, x)."""

    name: str
    image: np.ndarray
    labels: np.ndarray


# -- data


def normalised(image: np.ndarray) -> np.ndarray:
    """As the card says: the low percentile becomes 0, the high one 1."""
    low, high = np.percentile(image, PERCENTILES)
    return (image.astype(np.float32) - np.float32(low)) / np.float32(max(high - low, 1e-6))


def read_examples(folder: Path) -> list[Example]:
    """Fluorescence images of DSB2018 with their instances."""
    import tifffile
    from PIL import Image

    return [
        Example(
            path.name.removesuffix("_fluor.png"),
            normalised(np.array(Image.open(path))),
            tifffile.imread(path.with_name(path.stem + "_labels.tif")).astype(np.int32),
        )
        for path in sorted(folder.glob("*_fluor.png"))
    ]


def simulated_examples(n: int, seed: int) -> list[Example]:
    """Nuclei of any size, density, blur and noise; lengths in pixels (spacing 1)."""
    rng = np.random.default_rng(seed)
    examples = []
    for index in range(n):
        options = draw_options(rng, (256, 256))
        made = draw_nuclei(options, seed=seed * 100_003 + index)
        examples.append(
            Example(f"simulated-{index}", normalised(made.image), made.labels.astype(np.int32))
        )
    return examples


def median_diameter(labels: np.ndarray) -> float:
    """Of the objects, in pixels; 20 where there is none."""
    areas = np.bincount(labels.ravel())[1:]
    areas = areas[areas > 0]
    return float(np.median(2 * np.sqrt(areas / np.pi))) if len(areas) else 20.0


def targets(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Foreground, boundary and relative distance, float32 (3, y, x), and the gaps (mask)."""
    import edt

    distance = edt.edt(np.ascontiguousarray(labels, np.uint32), black_border=False)
    largest = np.zeros(int(labels.max()) + 1, np.float32)
    np.maximum.at(largest, labels.ravel(), distance.ravel())
    largest[0] = 1
    foreground = labels > 0
    relative = np.where(foreground, distance / np.maximum(largest[labels], 1e-3), 0)
    upper = _max_filter(np.where(foreground, labels, 0))
    lower = -_max_filter(-np.where(foreground, labels, 10**6))
    gap = (upper > 0) & (lower < 10**6) & (upper != lower)
    boundary = (foreground & (distance <= 1.5)) | gap
    return np.stack([foreground, boundary, relative]).astype(np.float32), gap


def _max_filter(values: np.ndarray) -> np.ndarray:
    pooled = functional.max_pool2d(torch.from_numpy(values.astype(np.float32))[None], 5, 1, 2)
    return pooled[0].numpy()


def patch(
    example: Example, rng: np.random.Generator, *, pad_share: float
) -> tuple[np.ndarray, ...]:
    """Image, targets and pixel weights of a patch whose nuclei have a random size."""
    wanted = math.exp(rng.uniform(math.log(8), math.log(42)))
    scale = float(np.clip(wanted / median_diameter(example.labels), 0.5, 2.2))
    size = min(math.ceil(PATCH / scale), *example.image.shape)
    y, x = (int(rng.integers(0, side - size + 1)) for side in example.image.shape)
    if (example.labels > 0).any() and rng.random() < 0.7:
        ys, xs = np.nonzero(example.labels)
        at = rng.integers(len(ys))
        y = int(np.clip(ys[at] - rng.integers(size), 0, example.image.shape[0] - size))
        x = int(np.clip(xs[at] - rng.integers(size), 0, example.image.shape[1] - size))
    window = np.s_[y : y + size, x : x + size]
    image = torch.from_numpy(example.image[window].copy())[None, None]
    labels = torch.from_numpy(example.labels[window].astype(np.float32))[None, None]
    image = functional.interpolate(
        image, (PATCH, PATCH), mode="bilinear", align_corners=False, antialias=size > PATCH
    )[0, 0].numpy()
    labels = functional.interpolate(labels, (PATCH, PATCH), mode="nearest-exact")[0, 0].numpy()
    if rng.random() < 0.5:
        image, labels = image[::-1], labels[::-1]
    turns = int(rng.integers(4))
    image, labels = np.rot90(image, turns).copy(), np.rot90(labels, turns)
    _, numbered = np.unique(labels.astype(np.int32), return_inverse=True)
    target, gap = targets(numbered.reshape(PATCH, PATCH).astype(np.int32))
    image = disturbed(image, rng).astype(np.float32)
    weights = (1 + 3 * gap).astype(np.float32)
    if pad_share > 0 and rng.random() < pad_share:
        cover_sides(image, weights, rng)
    return image, target, weights


def cover_sides(image: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> None:
    """Put zeros where a tile reaches beyond its image; nothing is asked of the network there."""
    for axis in range(2):
        width = int(rng.integers(1, PATCH // 2))
        covered = slice(0, width) if rng.random() < 0.5 else slice(PATCH - width, PATCH)
        window = (covered, slice(None)) if axis == 0 else (slice(None), covered)
        if rng.random() < 0.7:
            image[window] = 0
            weights[window] = 0


def disturbed(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gamma, gain, offset, uneven light, blur and noise."""
    if rng.random() < 0.8:
        image = np.sign(image) * np.abs(image) ** math.exp(rng.normal(0, 0.35))
    image = image * math.exp(rng.normal(0, 0.25)) + rng.normal(0, 0.05)
    if rng.random() < 0.3:
        y, x = np.mgrid[-1 : 1 : PATCH * 1j, -1 : 1 : PATCH * 1j]
        image = image * (1 + rng.uniform(-0.35, 0.35) * y + rng.uniform(-0.35, 0.35) * x)
    if rng.random() < 0.3:
        from scipy.ndimage import gaussian_filter

        image = gaussian_filter(image, rng.uniform(0.3, 1.5))
    if rng.random() < 0.6:
        sigma = math.exp(rng.uniform(math.log(0.005), math.log(0.12)))
        image = image + rng.normal(0, 1, image.shape) * sigma
    return image


# -- training


def loss_of(logits: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Cross-entropy (gaps count fourfold), soft Dice of two outputs, error of the distance.

    Pixels of weight 0 count nowhere.
    """
    known = (weights > 0).float()
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    per_output = torch.tensor([1.0, 1.5, 1.0]).view(1, 3, 1, 1)
    loss = (entropy * weights[:, None] * per_output).mean()
    probability = torch.sigmoid(logits[:, :2]) * known[:, None]
    wanted = target[:, :2] * known[:, None]
    overlap = (probability * wanted).sum((0, 2, 3))
    total = probability.sum((0, 2, 3)) + wanted.sum((0, 2, 3))
    dice = 1 - (2 * overlap + 1) / (total + 1)
    distance = (torch.sigmoid(logits[:, 2]) - target[:, 2]).abs() * (target[:, 0] * 0.9 + 0.1)
    return loss + 0.5 * dice.sum() + 2 * (distance * known).mean()


def train(
    network: torch.nn.Module,
    pools: list[tuple[float, list[Example]]],
    *,
    steps: int,
    rate: float,
    seed: int,
    pad_share: float,
) -> torch.nn.Module:
    """Train, and return the moving average of the weights, in evaluation mode."""
    rng = np.random.default_rng(seed)
    shares = [share for share, _ in pools]

    def draw() -> list[torch.Tensor]:
        patches = []
        for _ in range(BATCH):
            examples = pools[rng.choice(len(pools), p=shares)][1]
            example = examples[rng.integers(len(examples))]
            patches.append(patch(example, rng, pad_share=pad_share))
        return [torch.from_numpy(np.stack(part)) for part in zip(*patches, strict=True)]

    network = network.to(memory_format=torch.channels_last).train()
    averaged = copy.deepcopy(network).requires_grad_(False)
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps, pct_start=0.1)
    began, losses = time.monotonic(), []
    with ThreadPoolExecutor(1) as background:
        coming = background.submit(draw)
        for step in range(steps):
            images, target, weights = coming.result()
            coming = background.submit(draw)
            batch = images[:, None].contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                logits = network(batch)
            loss = loss_of(logits.float(), target, weights)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimiser.step()
            schedule.step()
            _average(averaged, network, min(0.995, (1 + step) / (10 + step)))
            losses.append(loss.item())
            if (step + 1) % 100 == 0:
                seconds = time.monotonic() - began
                click.echo(f"step {step + 1} loss {np.mean(losses[-100:]):.4f} ({seconds:.0f} s)")
    return averaged.eval()


@torch.no_grad()
def _average(averaged: torch.nn.Module, network: torch.nn.Module, decay: float) -> None:
    current = network.state_dict()
    for name, value in averaged.state_dict().items():
        if value.is_floating_point():
            value.lerp_(current[name], 1 - decay)
        else:
            value.copy_(current[name])


def new_network(n_outputs: int = 3) -> torch.nn.Module:
    """With fresh weights."""
    arguments = {"in_channels": 1, "out_channels": n_outputs, "widths": WIDTHS}
    return build_network(NETWORK, arguments)


def shipped_network(work: Path, fold: int) -> torch.nn.Module:
    """The network of a fold without its third output, weights rounded as they are stored."""
    state = torch.load(work / f"fold{fold}.pt", weights_only=True)
    for name in ("head.weight", "head.bias"):
        state[name] = state[name][:2]
    network = new_network(2).eval()
    network.load_state_dict(state)
    round_to_half(network)
    return network


# -- scores


@torch.no_grad()
def instances_of(network: torch.nn.Module, image: np.ndarray) -> np.ndarray:
    """Instances of a normalised image, uint32 (y, x)."""
    y, x = image.shape
    padded = np.pad(image, ((0, -y % 16), (0, -x % 16)), mode="reflect")
    maps = torch.sigmoid(network(torch.from_numpy(padded)[None, None]))[0, :, :y, :x].numpy()
    options = WatershedOptions(**DECODER)
    return watershed_instances(maps[0], maps[1], spacing=(1.0, 1.0), options=options)


def average_precision(network: torch.nn.Module, example: Example, threshold: float = 0.5) -> float:
    """TP / (TP + FP + FN) at an IoU of ``threshold``."""
    found = instances_of(network, example.image)
    table = count_overlaps(found, example.labels.astype(np.uint32))
    return match_objects(table, threshold).average_precision


def scores_of(work: Path, data: Path) -> dict[str, dict[str, float]]:
    """AP at IoU 0.5 per fold and left-out image."""
    examples = read_examples(data)
    return {
        f"fold{fold}": {
            example.name: average_precision(shipped_network(work, fold), example)
            for example in examples[fold::N_FOLDS]
        }
        for fold in range(N_FOLDS)
        if (work / f"fold{fold}.pt").exists()
    }


# -- commands

WORK = click.option("--work", type=click.Path(path_type=Path), required=True)
DATA = click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)


@click.group()
@click.option("--threads", default=2)
def main(threads: int) -> None:
    """Train, score and write nuclei-2d."""
    torch.set_num_threads(threads)


@main.command("pretrain")
@WORK
@click.option("--steps", default=1500)
def pretrain_command(work: Path, steps: int) -> None:
    """Train on simulated nuclei only: what all folds start from."""
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    pools = [(1.0, simulated_examples(N_SIMULATED, 7))]
    network = train(new_network(), pools, steps=steps, rate=3e-3, seed=1, pad_share=0.0)
    torch.save(network.state_dict(), work / "pretrained.pt")


@main.command("train")
@WORK
@DATA
@click.option("--fold", type=click.IntRange(0, N_FOLDS - 1), required=True)
@click.option("--steps", default=800)
def train_command(work: Path, data: Path, fold: int, steps: int) -> None:
    """Go on with the images of all folds but one, and simulated nuclei."""
    real = [e for index, e in enumerate(read_examples(data)) if index % N_FOLDS != fold]
    torch.manual_seed(0)
    network = new_network()
    network.load_state_dict(torch.load(work / "pretrained.pt", weights_only=True))
    pools = [(0.6, real), (0.4, simulated_examples(N_SIMULATED, 7))]
    network = train(network, pools, steps=steps, rate=1.5e-3, seed=10 + fold, pad_share=0.3)
    torch.save(network.state_dict(), work / f"fold{fold}.pt")


@main.command("score")
@WORK
@DATA
@click.option("--outside", nargs=2, type=click.Path(path_type=Path, exists=True))
def score_command(work: Path, data: Path, outside: tuple[Path, Path] | None) -> None:
    """Score every fold on the images it never saw, and keep the scores for the card."""
    folds = scores_of(work, data)
    every = [score for images in folds.values() for score in images.values()]
    report: dict[str, object] = {"folds": folds, "mean": float(np.mean(every)), "n": len(every)}
    simulated = [average_precision(shipped_network(work, 0), e) for e in simulated_examples(24, 99)]
    report["simulated"] = float(np.mean(simulated))
    if outside is not None:
        report["outside"] = average_precision(shipped_network(work, 0), _outside(*outside))
    (work / "scores.json").write_text(json.dumps(report, indent=1))
    click.echo(json.dumps(report, indent=1))


def _outside(image: Path, labels: Path) -> Example:
    import tifffile

    pixels = tifffile.imread(image)
    return Example(image.stem, normalised(pixels), tifffile.imread(labels).astype(np.int32))


@main.command("write")
@WORK
@click.option("-o", "output", type=click.Path(path_type=Path), required=True)
def write_command(work: Path, output: Path) -> None:
    """Write the network of fold 0 as a model folder, with the scores kept by ``score``."""
    scores = json.loads((work / "scores.json").read_text())
    held_out = scores["folds"]["fold0"]
    folder = write_model_folder(
        output, card_of(scores, held_out), shipped_network(work, 0), overwrite=True
    )
    click.echo(f"{folder.path}: {folder.n_bytes / 1e6:.2f} MB")


def card_of(scores: dict, held_out: dict[str, float]) -> ModelCard:
    """The card, its numbers from ``scores``."""
    name = "AP at IoU 0.5"
    metrics = [
        MetricDoc(
            name=name,
            value=round(float(np.mean(list(held_out.values()))), 4),
            data="DSB2018 fluorescence images left out of this model's training",
            n=len(held_out),
            conditions={image: round(score, 4) for image, score in held_out.items()},
        ),
        MetricDoc(
            name=name,
            value=round(scores["simulated"], 4),
            data="simulated nuclei with other seeds",
            n=24,
        ),
    ]
    if len(scores["folds"]) == N_FOLDS:
        metrics.insert(
            1,
            MetricDoc(
                name=name,
                value=round(scores["mean"], 4),
                data="DSB2018 fluorescence images, each scored by a fold's network that never saw"
                " it (this model is the network of fold 0)",
                n=scores["n"],
            ),
        )
    if "outside" in scores:
        metrics.append(
            MetricDoc(
                name=name,
                value=round(scores["outside"], 4),
                data="StarDist's example image (img2d, 125 nuclei), from another laboratory",
                n=1,
            )
        )
    return ModelCard(
        id="nuclei-2d",
        version="1",
        title="Nuclei in 2-D fluorescence images",
        description=(
            "Instances of bright nuclei on a dark ground (DAPI, Hoechst, H2B): single images, or"
            " slice by slice through a volume. Works on pixels as they come; nuclei should measure"
            " about 8 to 50 pixels across. Bright-field and H&E images were not trained on."
        ),
        task="instance",
        axes="yx",
        n_channels=1,
        classes=(
            ClassDoc(value=0, name="background", color=(0, 0, 0)),
            ClassDoc(value=1, name="nucleus", color=NUCLEUS_COLOR),
        ),
        spacing=None,
        normalisation=NormalisationDoc(
            kind="percentile", scope="volume", low=PERCENTILES[0], high=PERCENTILES[1]
        ),
        network=NetworkDoc(
            id=NETWORK, arguments={"in_channels": 1, "out_channels": 2, "widths": WIDTHS}
        ),
        n_outputs=2,
        decoder=DecoderDoc(kind="boundary_watershed", parameters=DECODER),
        tile=(256, 256),
        overlap_fraction=0.25,
        divisor=(16, 16),
        licence="Apache-2.0",
        citation="Caicedo et al. (2019), doi:10.1038/s41592-019-0612-7 (the images of DSB2018)",
        training=TrainingDoc(
            data="6 fluorescence images of the Data Science Bowl 2018 (BBBC038), and 400 images"
            " simulated by lamella.simulation.nuclei",
            data_licence="CC0 (BBBC038); the simulated images carry no rights",
            recipe="recipes/nuclei_2d.py",
            seed=10,
            steps=2300,
            notes=(
                "Split by image into three folds; left out of this model: "
                + ", ".join(held_out)
                + ". 1500 steps on simulated nuclei, then 800 with 60 % real patches. Nuclei are"
                " rescaled at random so that their median diameter lies between 8 and 42 pixels."
                " Known to call dim, out-of-focus debris a nucleus; a size filter (--min-size)"
                " helps where nuclei are large."
            ),
        ),
        metrics=tuple(metrics),
    )


if __name__ == "__main__":
    main()
