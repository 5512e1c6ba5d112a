"""One run in blocks: two workers against one, each on a core of its own; the same labels.

    python benchmarks/bench_dask.py                 512³ on Dask workers, about half an hour
    python benchmarks/bench_dask.py --local         on processes of `--block-workers` as well
    python benchmarks/bench_dask.py --size 256      sooner

Both cuts are the same, slabs of a quarter of the depth, so the tiles that blocks share are run
equally often. ``job`` is the run from request to report, ``blocks`` the stage that is shared out.
Workers are real ones: a scheduler and `dask worker` processes, pinned to a core each.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import lamella as lm
from lamella.core.progress import SilentSink
from lamella.jobs.batch_system import ClusterOptions
from lamella.jobs.blocks import DaskBlocks, LocalBlocks
from lamella.simulation.tomogram import simulate_tomogram
from lamella.testing.dask import run_dask
from lamella.wire.request import InputDoc, SegmentRequest
from lamella.workflows.blocks import BlockOptions
from lamella.workflows.segment import RunOptions, segment

RESULTS = Path(__file__).parent / "results"
PIECE = 128
N_SLABS = 4


def tomogram(path, size):
    """A simulated piece again and again, mirrored at the seams: large, and made in a moment."""
    piece = simulate_tomogram((PIECE,) * 3, seed=1).intensity
    n = -(-size // PIECE)
    whole = np.pad(piece, [(0, (n - 1) * PIECE)] * 3, mode="symmetric")[:size, :size, :size]
    volume = lm.Volume.from_array(whole, spacing=(1.0, 1.0, 1.0), unit="nm")
    return lm.save(volume, path)


class Stages(SilentSink):
    """When the tiles of the run began and ended."""

    def __init__(self):
        super().__init__()
        self.began = self.ended = 0.0

    def emit(self, event):
        if getattr(event, "stage", "") == "tiles":
            now = time.monotonic()
            self.began = self.began or now
            self.ended = now


@contextmanager
def dask_workers(folder, n_workers):
    """A cluster of one-core workers."""
    with (
        run_dask(folder, n_workers) as site,
        DaskBlocks(ClusterOptions(scheduler=site.address)) as runner,
    ):
        runner._client.wait_for_workers(n_workers, timeout=120)
        cores = sorted(os.sched_getaffinity(0))
        pids = runner._client.run(os.getpid)
        for core, pid in zip(cores, sorted(pids.values()), strict=False):
            # All threads, those that are there already too.
            subprocess.run(
                ["taskset", "-a", "-p", "-c", str(core), str(pid)],
                check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        yield runner


@contextmanager
def local_workers(folder, n_workers):
    yield LocalBlocks(n_workers, n_threads=1)


WAYS = {"dask": dask_workers, "local": local_workers}


def measure(path, way, n_workers, size):
    """Seconds of the job and of its blocks, and what came out."""
    request = SegmentRequest(
        input=InputDoc(path=str(path)),
        model="membrane-3d",
        preview=False,
        precision="fp32",
        options={"threads": 1},
    )
    depth = -(-size // N_SLABS)
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "cluster").mkdir()
        with WAYS[way](Path(place) / "cluster", n_workers) as runner:
            stages = Stages()
            began = time.monotonic()
            cut = BlockOptions(runner, (depth, size, size))
            run = segment(request, RunOptions(Path(place) / "a.run", blocks=cut), sink=stages)
            job_s = time.monotonic() - began
        return {
            "job_s": round(job_s, 2),
            "blocks_s": round(stages.ended - stages.began, 2),
            "sha256": run.manifest.labels.sha256,
            "blocks": run.manifest.options_resolved["blocks"],
            "tiles": run.manifest.tiles_done,
            "timings_s": dict(run.manifest.timings_s),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--local", action="store_true")
    parser.add_argument("--out", type=Path)
    words = parser.parse_args()
    ways = ["dask", "local"] if words.local else ["dask"]
    result = {"size": words.size, "cores": os.cpu_count(), "ways": {}}
    with tempfile.TemporaryDirectory() as place:
        path = tomogram(Path(place) / "tomogram.mrc", words.size)
        rows = {(way, n): [] for way in ways for n in (1, 2)}
        for _ in range(words.repeats):
            for way, n in rows:
                found = measure(path, way, n, words.size)
                rows[way, n].append(found)
                print(f"{way:6} {n} worker(s): {found}", flush=True)
    hashes = {found["sha256"] for each in rows.values() for found in each}
    assert len(hashes) == 1, "the labels differ"
    print(f"\n{'':6} {'one':>9} {'two':>9} {'ratio':>6}   labels")
    for way in ways:
        facts = {"runs": {str(n): rows[way, n] for n in (1, 2)}}
        for what in ("job", "blocks"):
            one, two = (
                statistics.median(found[f"{what}_s"] for found in rows[way, n]) for n in (1, 2)
            )
            facts[f"{what}_ratio"] = round(one / two, 3)
            print(f"{way:6} {one:7.1f} s {two:7.1f} s {one / two:6.2f}   the same ({what})")
        result["ways"][way] = facts
    name = "dask.json" if words.size == 512 else f"dask-{words.size}.json"
    out = words.out or RESULTS / name
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
