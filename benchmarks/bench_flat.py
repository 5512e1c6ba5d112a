"""Memory of whole commands as volumes grow in z: linking, exporting and restoring must not grow.

    python benchmarks/bench_flat.py                     all, on 64, 256 and 1024 slices of 256²
    python benchmarks/bench_flat.py link --depths 64 256

Each command runs in a process of its own. The table gives the peak of what it allocates (RssAnon)
and of its resident memory (which also counts the pages of files that it has mapped, as long as
nobody else wants the room), both looked at every few milliseconds, and how they grow from the first
depth to the last. Linking keeps a table of its objects: the benchmark's labels have 100 a slice.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

import lamella as lm
from lamella.volume.labels import Labels

RESULT = Path(__file__).parent / "results" / "flat-in-z.json"
DEPTHS = (64, 256, 1024)
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


def peaks_mb(words):
    """Peaks of allocated and of resident memory of a command, MB."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lamella", *map(str, words), "-q"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    peaks = {"RssAnon": 0.0, "VmRSS": 0.0}
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            break
        for line in lines:
            name, _, value = line.partition(":")
            if name in peaks:
                peaks[name] = max(peaks[name], int(value.split()[0]) / 1024)
        time.sleep(0.003)
    if process.wait():
        sys.exit(f"{words}: {process.stderr.read().decode()}")
    return peaks["RssAnon"], peaks["VmRSS"]


COMMANDS = {
    "link": (1, ["link", "IN", "-o", "OUT.ome.zarr"]),
    "export to MRC": (1, ["convert", "IN", "OUT.mrc", "--dtype", "uint16"]),
    "export to NIfTI": (1, ["convert", "IN", "OUT.nii.gz"]),
    "export to NRRD": (1, ["convert", "IN", "OUT.nrrd"]),
    "export to TIFF": (1, ["convert", "IN", "OUT.ome.tif"]),
    "restore, non-local means": (
        0,
        ["restore", "IN", "-o", "OUT.ome.zarr", "--mode", "denoise", "--method", "non_local_means"],
    ),
    "restore, Richardson-Lucy": (
        0, ["restore", "IN", "-o", "OUT.ome.zarr", "--mode", "deblur", "--psf-sigma", "1.5um"],
    ),
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", nargs="?", default="", help="only commands with this in their name")
    parser.add_argument("--depths", type=int, nargs="+", default=list(DEPTHS))
    chosen = parser.parse_args()
    known = json.loads(RESULT.read_text())["rows"] if RESULT.exists() and chosen.part else []
    rows = {row["what"]: row for row in known}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # A child counts the pages of the process it was forked from: this one has to stay small.
        with ProcessPoolExecutor(1) as pool:
            inputs = {d: pool.submit(volumes, folder, d).result() for d in chosen.depths}
        for what, (source, words) in COMMANDS.items():
            if chosen.part not in what:
                continue
            found = []
            for depth in chosen.depths:
                names = {"IN": str(inputs[depth][source])}
                out = f"{what.replace(' ', '-').replace(',', '')}-{depth}"
                told = [names.get(w, w.replace("OUT", str(folder / out))) for w in words]
                found.append(peaks_mb(told))
            allocated, resident = ([round(v, 1) for v in part] for part in zip(*found, strict=True))
            rows[what] = {
                "what": what,
                "depths": chosen.depths,
                "allocated_mb": allocated,
                "resident_mb": resident,
                "ratio": round(allocated[-1] / allocated[0], 3),
            }
            words = " -> ".join(f"{v:.0f}" for v in allocated)
            print(
                f"{what:26} allocated {words} MB (x {rows[what]['ratio']:.2f}), resident"
                f" {' -> '.join(f'{v:.0f}' for v in resident)} MB",
                flush=True,
            )
    ordered = [rows[what] for what in COMMANDS if what in rows]
    RESULT.write_text(json.dumps({"plane": PLANE, "rows": ordered}, indent=1) + "\n")


if __name__ == "__main__":
    main()
