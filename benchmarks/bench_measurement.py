"""Measuring and evaluating labels against scikit-image and cc3d, on this CPU.

    python benchmarks/bench_measurement.py --size 256 --repeats 5

Balls on a grid (4,913 objects at 256³) and dense cells of the same grid. Every competitor runs
interleaved with ours in one process; medians count. Marching cubes runs per object on its own box,
as a user of scikit-image writes it, for 300 objects, and is extrapolated to all. "One thread" is
our own time with a single thread; the default uses two. Kernels are compiled before the clock
starts. Results go to benchmarks/results/measurement-SIZE.json.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

from lamella.evaluation import count_overlaps, score_classes, score_instances
from lamella.instances import label_components
from lamella.measurement import MeasureOptions, measure_objects
from lamella.volume.spacing import Spacing

RESULTS = Path(__file__).parent / "results"
STEP, RADIUS = 15, 6
SAMPLE = 300
UNIT = Spacing((1.0, 1.0, 1.0), "um")
THICK = Spacing((4.0, 1.0, 1.0), "um")


def cells(size, shift=0):
    """Dense cubes of STEP voxels, numbered."""
    at = (np.arange(size) + shift) // STEP
    n = size // STEP + 2
    return (at[:, None, None] * n * n + at[None, :, None] * n + at + 1).astype(np.uint32)


def balls(size):
    """A ball in the middle of every cell that is whole."""
    size = size // STEP * STEP
    far = (np.arange(size) % STEP - STEP // 2) ** 2
    inside = far[:, None, None] + far[None, :, None] + far <= RADIUS**2
    return np.where(inside, cells(size), 0).astype(np.uint32)


def skimage_table(labels):
    from skimage.measure import regionprops_table

    return regionprops_table(labels, properties=("label", "area", "bbox", "centroid"))


def skimage_surfaces(labels, spacing, n_objects):
    """Marching cubes per object on its own box."""
    from scipy.ndimage import find_objects
    from skimage.measure import marching_cubes, mesh_surface_area

    found = [(k + 1, box) for k, box in enumerate(find_objects(labels)) if box is not None]
    for value, box in found[:n_objects]:
        mask = np.pad(labels[box] == value, 1).astype(np.float32)
        vertices, faces, _, _ = marching_cubes(mask, 0.5, spacing=spacing)
        mesh_surface_area(vertices, faces)
    return len(found)


def all_four(prediction, reference):
    """Dice, VOI, adapted Rand and average precision from one table."""
    table = count_overlaps(prediction, reference)
    score_classes(table.as_foreground(), [1])
    return score_instances(table, thresholds=(0.5, 0.75, 0.9))


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(jobs, repeats):
    """Median time of every job, run in turns."""
    for work in jobs.values():
        work()
    times = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, work in jobs.items():
            times[name].append(seconds(work))
    return {name: statistics.median(values) for name, values in times.items()}


def bench_objects(size, repeats):
    import cc3d

    labels = balls(size)
    n_objects = len(np.unique(labels)) - 1
    plain = MeasureOptions(surface=False)
    alone = MeasureOptions(n_threads=1)
    result = compare(
        {
            "statistics, lamella": lambda: measure_objects(labels, spacing=UNIT, options=plain),
            "statistics, cc3d": lambda: cc3d.statistics(labels),
            "statistics, scikit-image": lambda: skimage_table(labels),
            "with surfaces, lamella": lambda: measure_objects(labels, spacing=UNIT),
            "with surfaces, lamella, one thread": lambda: measure_objects(
                labels, spacing=UNIT, options=alone
            ),
            "with surfaces, 4:1:1, lamella": lambda: measure_objects(labels, spacing=THICK),
        },
        repeats,
    )
    for name, spacing in (("", UNIT), (", 4:1:1", THICK)):
        part = min(SAMPLE, n_objects)
        spent = seconds(lambda s=spacing, n=part: skimage_surfaces(labels, s.values, n))
        result[f"surfaces{name}, scikit-image (extrapolated)"] = spent * n_objects / part
    result["objects"] = n_objects
    return result


def bench_overlaps(size, repeats):
    from skimage.metrics import adapted_rand_error, variation_of_information

    reference, prediction = cells(size), cells(size, 3)
    return compare(
        {
            "all four, lamella": lambda: all_four(prediction, reference),
            "VOI alone, scikit-image": lambda: variation_of_information(reference, prediction),
            "adapted Rand alone, scikit-image": lambda: adapted_rand_error(reference, prediction),
        },
        repeats,
    )


def bench_components(size, repeats):
    from scipy import ndimage

    mask = balls(size) > 0
    return compare(
        {
            "components, lamella": lambda: label_components(mask),
            "components, scipy": lambda: ndimage.label(mask, np.ones((3, 3, 3))),
        },
        repeats,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    result = {"size": chosen.size, "repeats": chosen.repeats, "seconds": {}}
    for bench in (bench_objects, bench_overlaps, bench_components):
        result["seconds"] |= bench(chosen.size, chosen.repeats)
    s = result["seconds"]
    surfaces = s["with surfaces, lamella"]
    result["times as fast"] = {
        "statistics, as scikit-image": s["statistics, scikit-image"] / s["statistics, lamella"],
        "statistics, as cc3d": s["statistics, cc3d"] / s["statistics, lamella"],
        "surfaces and statistics, as scikit-image's surfaces alone": (
            s["surfaces, scikit-image (extrapolated)"] / surfaces
        ),
        "the same, 4:1:1": (
            s["surfaces, 4:1:1, scikit-image (extrapolated)"] / s["with surfaces, 4:1:1, lamella"]
        ),
        "all four overlap measures, as the fastest single one": (
            min(s["VOI alone, scikit-image"], s["adapted Rand alone, scikit-image"])
            / s["all four, lamella"]
        ),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"measurement-{chosen.size}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
