"""Draw targets.png: what a network is taught of the same cells by each kind of target.

    python docs/concepts/draw_targets.py

Cells that touch, in a patch that cuts some of them. What is hatched is not learnt from.
"""

import colorsys
from pathlib import Path

import edt
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lamella.training.augment import Sample
from lamella.training.configuration import ClassConfig, TaskConfig
from lamella.training.task import build_task
from lamella.volume.labels import label_color

HERE = Path(__file__).parent
SIDE, SCALE, GAP, HEAD = 72, 3, 14, 26
COLUMNS = 4


def cells() -> np.ndarray:
    """Ids of cells, some in contact, some cut by the border; int64 (y, x)."""
    rng = np.random.default_rng(11)
    centers = []
    while len(centers) < 21:
        center = rng.uniform(0, SIDE, 2)
        if all(np.hypot(*(center - other)) > 13 for other in centers):
            centers.append(center)
    points = np.stack(np.indices((SIDE, SIDE)), -1)
    far = np.sqrt(((points[:, :, None] - np.array(centers)) ** 2).sum(-1))
    ids = np.where(far.min(-1) < 9.5, far.argmin(-1) + 1, 0)
    depth = edt.edt(ids.astype(np.uint32), black_border=False)
    return np.where(depth >= 1, ids, 0)


def grey(values: np.ndarray) -> np.ndarray:
    """0 to 1 as RGB."""
    return np.repeat(np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)[..., None], 3, -1)


def directions(flows: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Vectors (2, y, x) as hues."""
    image = np.full((*inside.shape, 3), 20, np.uint8)
    for y, x in np.argwhere(inside & (np.abs(flows).sum(0) > 0.05)):
        hue = (np.arctan2(flows[0, y, x], flows[1, y, x]) / (2 * np.pi)) % 1.0
        image[y, x] = [round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, 0.95)]
    return image


def enlarged(image: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Pixels as squares; what is not valid is hatched."""
    large = np.kron(image, np.ones((SCALE, SCALE, 1), np.uint8))
    if valid is not None:
        y, x = np.indices(large.shape[:2])
        lines = ((y + x) // 2 % 4 == 0) & ~np.kron(valid, np.ones((SCALE, SCALE), bool))
        large[lines] = (213, 94, 0)
    return large


def main() -> None:
    """Draw and save the picture."""
    ids = cells()
    sample = Sample(
        np.zeros((1, *ids.shape), np.float32), ids[None], np.ones((1, *ids.shape), bool)
    )
    encoded = {}
    for kind in ("boundary", "distance", "affinities", "flows"):
        task = build_task(TaskConfig(kind=kind, classes=(ClassConfig(name="cell"),)), "yx")
        encoded[kind] = task.encode(sample)
    colors = np.array([label_color(n) for n in range(ids.max() + 1)], np.uint8)
    boundary, distance, affinities, flows = encoded.values()
    panels = {
        "ids of cells": enlarged(colors[ids]),
        "foreground (all kinds)": enlarged(grey(boundary.values[0])),
        "boundary": enlarged(grey(boundary.values[1]), boundary.valid[1]),
        "distance": enlarged(grey(distance.values[1]), distance.valid[1]),
        "affinity, 1 to the left": enlarged(grey(affinities.values[2]), affinities.valid[2]),
        "affinity, 9 to the left": enlarged(grey(affinities.values[6]), affinities.valid[6]),
        "flows, by direction": enlarged(
            directions(2 * flows.values[1:] - 1, ids > 0), flows.valid[1]
        ),
    }
    wheel = np.stack(np.indices((SIDE, SIDE)), 0) - SIDE / 2
    radius = np.hypot(*wheel)
    key = directions(wheel / np.maximum(radius, 1), (radius < 30) & (radius > 12))
    key[key.sum(-1) == 60] = 255
    panels["key to the directions"] = enlarged(key)
    side, rows = SIDE * SCALE, -(-len(panels) // COLUMNS)
    size = (COLUMNS * (side + GAP) - GAP, rows * (side + HEAD + GAP) - GAP)
    sheet = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for k, (name, image) in enumerate(panels.items()):
        x, y = k % COLUMNS * (side + GAP), k // COLUMNS * (side + HEAD + GAP)
        draw.text((x, y + 5), name, fill=(0, 0, 0), font=font)
        sheet.paste(Image.fromarray(image), (x, y + HEAD))
        if name != "key to the directions":
            box = (x, y + HEAD, x + side - 1, y + HEAD + side - 1)
            draw.rectangle(box, outline=(120, 120, 120))
    sheet.save(HERE / "targets.png", optimize=True)


if __name__ == "__main__":
    main()
