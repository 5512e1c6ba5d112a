"""Denoising and deblurring: what is gained, against the common methods, and what it costs.

    python benchmarks/bench_restoration.py                    all, about five minutes on two cores
    python benchmarks/bench_restoration.py --quick            without the trained network

**PSNR** is 10 log10(255² / mean square error) of the image as it is: 8-bit range, no affine fit, no
clipping, no rounding. For deblurring the range is p99 - p1 of the clean image instead.

Denoising: the confocal pairs of the data folder (LAMELLA_TEST_DATA/denoising/noise2fast). Only the
noisy image is used. The peer is scikit-image's non-local means at the best of a sweep over strength
and patch (chosen with the clean image, which nobody has), plain and on the stabilised scale.
Deblurring: a Gaussian blur of 2 pixels and noise of 1 % of the range; the peer is scikit-image's
Richardson-Lucy at its best number of iterations. Memory: peak of the process over depth.
Results go to benchmarks/results/restoration.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from lamella.restoration.decision import RestoreOptions
from lamella.restoration.quality import measure_quality
from lamella.restoration.restore import restore_volume
from lamella.restoration.variance import Stabiliser
from lamella.volume import FunctionArray, Spacing, Volume

RESULTS = Path(__file__).parent / "results"
NAMES = ("BPAE_B", "BPAE_G")
BLUR, NOISE = 2.0, 0.01


def psnr(image, truth, span=255.0):
    return float(10 * np.log10(span**2 / np.mean((image.astype(np.float64) - truth) ** 2)))


def pairs():
    import tifffile

    named = os.environ.get("LAMELLA_TEST_DATA")
    if not named:
        sys.exit("set LAMELLA_TEST_DATA to the folder of real test data")
    folder = Path(named) / "denoising" / "noise2fast"
    for name in NAMES:
        yield (
            name,
            *(
                tifffile.imread(folder / kind / f"{name}.tif").astype(np.float32)
                for kind in ("Confocal", "Confocal_gaussianpoisson")
            ),
        )


def ours(image, **options):
    """Restored image, wall and processor seconds."""
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        found = restore_volume(
            Volume.from_array(image), RestoreOptions(**options), scratch=Path(folder) / "raw"
        )
        times = time.perf_counter() - wall, time.process_time() - cpu
        return found.volume.load(), times, found


def best_non_local_means(noisy, clean):
    """The best of a sweep, plain and on the stabilised scale."""
    from skimage.restoration import denoise_nl_means

    stabiliser = Stabiliser.of(measure_quality(Volume.from_array(noisy)).noise)
    stable = stabiliser.stabilise(noisy)
    scale = float(noisy.std())
    best = {"plain": 0.0, "stabilised": 0.0}
    for patch, distance in ((3, 7), (5, 6), (5, 11), (7, 11)):
        sizes = {"patch_size": patch, "patch_distance": distance, "fast_mode": True}
        for share in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2):
            found = denoise_nl_means(noisy, h=share * scale, **sizes)
            best["plain"] = max(best["plain"], psnr(found, clean))
        for h in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.3):
            found = stabiliser.restore(denoise_nl_means(stable, h=h, **sizes))
            best["stabilised"] = max(best["stabilised"], psnr(found, clean))
    return best


def bench_denoising(methods):
    rows = {}
    for name, clean, noisy in pairs():
        row = {"noisy": psnr(noisy, clean), "peer": best_non_local_means(noisy, clean)}
        for method in methods:
            found, (wall, cpu), _ = ours(noisy, mode="denoise", method=method)
            row[method] = {"psnr": psnr(found, clean), "s": wall, "cpu_s": cpu}
        rows[name] = row
        print(
            f"{name}: noisy {row['noisy']:.2f} dB; scikit-image's non-local means at its best"
            f" {row['peer']['plain']:.2f} (stabilised {row['peer']['stabilised']:.2f})"
        )
        for method in methods:
            gain = row[method]["psnr"] - row["noisy"]
            print(
                f"    {method:<16} {row[method]['psnr']:.2f} dB (+{gain:.2f}) in"
                f" {row[method]['s']:.1f} s ({row[method]['cpu_s']:.1f} s of processor)"
            )
    return rows


def bench_deblurring():
    from skimage.restoration import richardson_lucy

    axis = np.arange(-8, 9)
    kernel = np.exp(-(axis[:, None] ** 2 + axis[None] ** 2) / (2 * BLUR**2))
    kernel /= kernel.sum()
    rows = {}
    for name, clean, _ in pairs():
        span = float(np.subtract(*np.percentile(clean, (99, 1))))
        noise = np.random.default_rng(0).normal(0, NOISE * span, clean.shape)
        image = (gaussian_filter(clean, BLUR) + noise).astype(np.float32)
        row = {"blurred": psnr(image, clean, span)}
        width = Spacing((1.0, BLUR, BLUR), "voxel")
        for label, options in (("given", {"psf_sigma": width}), ("estimated", {})):
            found, (wall, _), _ = ours(image, mode="deblur", **options)
            row[label] = {"psnr": psnr(found, clean, span), "s": wall}
        scaled = np.clip((image - image.min()) / np.ptp(image), 1e-6, 1)
        tries = [richardson_lucy(scaled, kernel, num_iter=n) for n in (5, 10, 15, 20, 30)]
        row["peer"] = max(psnr(t * np.ptp(image) + image.min(), clean, span) for t in tries)
        rows[name] = row
        print(
            f"{name}: blurred {row['blurred']:.2f} dB; given blur"
            f" {row['given']['psnr']:.2f}, estimated {row['estimated']['psnr']:.2f};"
            f" scikit-image's Richardson-Lucy at its best {row['peer']:.2f}"
        )
    return rows


def bench_memory(methods):
    """Peak memory of a process of its own, for two depths."""
    rows = {}
    for method in methods:
        peaks = []
        for depth in (64, 256):
            done = subprocess.run(
                [sys.executable, __file__, "--memory", method, str(depth)],
                capture_output=True,
                text=True,
                check=True,
            )
            peaks.append(float(done.stdout))
        rows[method] = dict(zip(("64 slices, MB", "256 slices, MB"), peaks, strict=True))
        print(f"{method}: {peaks[0]:.0f} MB for 64 slices of 256², {peaks[1]:.0f} MB for 256")
    return rows


def print_peak(method, depth):
    """In a child process: restore noise of some depth that is made as it is read."""

    def read(slices):
        rng = np.random.default_rng(slices[0].start)
        shape = tuple(s.stop - s.start for s in slices)
        wave = np.sin(np.arange(slices[2].start, slices[2].stop) / 7)
        return (100 + 50 * wave + rng.normal(0, 20, shape)).astype(np.float32)

    volume = Volume.from_array(
        FunctionArray((depth, 256, 256), np.float32, read), spacing=(1, 1, 1), unit="nm"
    )
    options = {"mode": "denoise", "method": method, "n_steps": 5, "dimensions": "2"}
    if method == "richardson_lucy":
        options |= {"mode": "deblur", "psf_sigma": Spacing((1, 1, 1), "voxel")}
    with tempfile.TemporaryDirectory() as folder:
        restore_volume(volume, RestoreOptions(**options), scratch=Path(folder) / "raw")
    # Not ru_maxrss: it counts the pages of the process that this one was forked from.
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="without the trained network")
    parser.add_argument("--memory", nargs=2, metavar=("METHOD", "DEPTH"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.memory:
        print_peak(chosen.memory[0], int(chosen.memory[1]))
        return
    methods = ["non_local_means"] + ([] if chosen.quick else ["blind_spot"])
    result = {
        "denoising": bench_denoising(methods),
        "deblurring": bench_deblurring(),
        "memory": bench_memory([*methods, "richardson_lucy"]),
    }
    RESULTS.mkdir(exist_ok=True)
    name = "restoration-quick.json" if chosen.quick else "restoration.json"
    (RESULTS / name).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
