"""Draw instances-3d.png: the same damaged slices, linked greedily and by Lamella.

    python docs/concepts/draw_instances_3d.py

A section through simulated nuclei, z downwards. One slice is missing, one nucleus is missing from
one slice, and one slice takes two nuclei for one. A colour is an object; pieces that are torn off
their nucleus are drawn in black.
"""

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lamella.simulation.nuclei import NucleiOptions, draw_nuclei
from lamella.volume.labels import label_color

HERE = Path(__file__).parent
SCALE, GAP, HEAD = 4, 20, 28
TORN = (25, 25, 25)


def load_shared():
    """What the tests of linking share."""
    path = HERE.parents[1] / "tests/instances/linking.py"
    spec = importlib.util.spec_from_file_location("linking", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def damage(labels, y):
    """A missing slice, a missing nucleus, two nuclei taken for one."""
    labels = labels.copy()
    labels[21] = 0
    labels[30][labels[30] == labels[30, y][labels[30, y] > 0][0]] = 0
    row = labels[12, y]
    first, second = list(dict.fromkeys(row[row > 0].tolist()))[:2]
    labels[12][labels[12] == first] = second
    return labels


def picture(found, reference, y):
    """The section as RGB; the largest piece of a nucleus has the nucleus's colour."""
    pairs, counts = np.unique(
        np.stack([reference[found > 0], found[found > 0]]), axis=1, return_counts=True
    )
    color = {}
    for nucleus in np.unique(pairs[0]):
        mine = pairs[0] == nucleus
        color[int(pairs[1][mine][counts[mine].argmax()])] = label_color(int(nucleus))
    image = np.full((*found[:, y].shape, 3), 255, np.uint8)
    for value in np.unique(found[:, y]):
        if value:
            image[found[:, y] == value] = color.get(int(value), TORN)
    return np.kron(image, np.ones((SCALE, SCALE, 1), np.uint8))


def main():
    """Draw and save the picture."""
    shared = load_shared()
    options = NucleiOptions(
        shape=(44, 60, 80), spacing_um=(0.5,) * 3, n_nuclei=40, radius_um=4.5, touching_fraction=0.9
    )
    reference = draw_nuclei(options, seed=4).labels
    y = reference.shape[1] // 2
    seen = damage(reference, y)
    labels = shared.as_slices(seen, seed=0)
    panels = {
        "slices of a 2-D model": seen,
        "stitch3D (greedy)": shared.stitch3d(labels),
        "lamella --instances hybrid": shared.link(labels)[0],
    }
    images = [picture(found, reference, y) for found in panels.values()]
    height, width = images[0].shape[:2]
    sheet = Image.new("RGB", (3 * width + 2 * GAP, height + HEAD), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for k, (name, image) in enumerate(zip(panels, images, strict=True)):
        x = k * (width + GAP)
        sheet.paste(Image.fromarray(image), (x, HEAD))
        draw.rectangle((x, HEAD, x + width - 1, HEAD + height - 1), outline=(120, 120, 120))
        draw.text((x, 6), name, fill=(0, 0, 0), font=font)
    sheet.save(HERE / "instances-3d.png", optimize=True)


if __name__ == "__main__":
    main()
