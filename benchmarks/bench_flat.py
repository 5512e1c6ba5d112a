"""Memory of whole commands as volumes grow in z: linking, exporting and restoring must not grow.

Each command runs in a process of its own, on a volume and on one four times as deep; the table
gives the peak of its resident memory.
"""

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

import lamella as lm
from lamella.volume.labels import Labels

RESULT = Path(__file__).parent / "results" / "flat-in-z.json"
DEPTHS = (64, 256)
PLANE = 256


def volumes(folder, depth):
    """Discs on a jittered raster in every slice, and a noisy image of them, as OME-Zarr."""
    rng = np.random.default_rng(0)
    plane = np.zeros((PLANE, PLANE), np.uint32)
    y, x = np.ogrid[:PLANE, :PLANE]
    for n, (cy, cx) in enumerate(
        (12 + 24 * i, 12 + 24 * j) for i in range(PLANE // 24) for j in range(PLANE // 24)
    ):
        plane[(y - cy) ** 2 + (x - cx) ** 2 <= 64] = n + 1
    labels = np.stack([np.where(plane, plane + z % 7, 0) for z in range(depth)]).astype(np.uint32)
    image = rng.poisson(20 + 60 * (labels > 0)).astype(np.uint16)
    like = lm.Volume.from_array(image, axes="zyx", spacing=(2.0, 1.0, 1.0), unit="um")
    paths = folder / f"image-{depth}.ome.zarr", folder / f"labels-{depth}.ome.zarr"
    lm.save(like, paths[0])
    made = Labels(
        data=labels, axes=like.axes, affine=like.affine, unit=like.unit, classes=(),
        is_instance=True,
    )  # fmt: skip
    lm.save(made, paths[1])
    return paths


def peak_mb(words):
    """Peak resident memory of a command, MB."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lamella", *map(str, words), "-q"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{words}: {process.stderr.read().decode()}")
    return usage.ru_maxrss / 1024


def main():
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # A child counts the pages of the process it was forked from: this one has to stay small.
        with ProcessPoolExecutor(1) as pool:
            inputs = {depth: pool.submit(volumes, folder, depth).result() for depth in DEPTHS}
        for what, source, words in (
            ("link", 1, ["link", "IN", "-o", "OUT.ome.zarr"]),
            ("export to MRC", 1, ["convert", "IN", "OUT.mrc", "--dtype", "uint16"]),
            ("export to NIfTI", 1, ["convert", "IN", "OUT.nii.gz"]),
            ("export to NRRD", 1, ["convert", "IN", "OUT.nrrd"]),
            ("export to TIFF", 1, ["convert", "IN", "OUT.ome.tif"]),
            ("restore, non-local means", 0,
             ["restore", "IN", "-o", "OUT.ome.zarr", "--mode", "denoise",
              "--method", "non_local_means"]),
            ("restore, Richardson-Lucy", 0,
             ["restore", "IN", "-o", "OUT.ome.zarr", "--mode", "deblur", "--psf-sigma", "1.5um"]),
        ):  # fmt: skip
            peaks = []
            for depth in DEPTHS:
                names = {"IN": str(inputs[depth][source])}
                out = f"{what.replace(' ', '-').replace(',', '')}-{depth}"
                told = [names.get(w, w.replace("OUT", str(folder / out))) for w in words]
                peaks.append(peak_mb(told))
            rows.append({"what": what, "peak_mb": peaks, "ratio": peaks[1] / peaks[0]})
            print(f"{what:28} {peaks[0]:7.0f} -> {peaks[1]:7.0f} MB   x {rows[-1]['ratio']:.2f}")
    document = {"plane": PLANE, "depths": DEPTHS, "rows": rows}
    RESULT.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
