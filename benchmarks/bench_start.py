"""How long it takes to start: help, import, and a 64³ volume from the command to labels on disk.

    python benchmarks/bench_start.py

CPU seconds of the whole process for help and import (a noisy machine stretches the clock, not the
work); seconds on the clock for the segmentation, as the user sees it, up to the event that says
the last labels are on disk. Peer: importing MONAI alone. Results: benchmarks/results/start.json.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lamella.io import save_volume
from lamella.simulation.tomogram import simulate_tomogram
from lamella.volume import Volume

RESULTS = Path(__file__).parent / "results"
GOALS = {"help cpu_s": 0.2, "import cpu_s": 0.1, "segment 64 labels_s": 4.0}


def cpu_seconds(command):
    """CPU seconds of a command, its children included, and its seconds on the clock."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    wall = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def labels_after(folder, run):
    """Seconds from the command to the last labels on disk, and to the whole run's end."""
    command = [sys.executable, "-m", "lamella", "segment", str(folder / "t.mrc")]
    began = time.time()
    subprocess.run(
        [*command, "--model", "membrane-3d", "--run-dir", str(folder / run), "--quiet"],
        check=True,
        capture_output=True,
    )
    ended = time.time()
    lines = (folder / run / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    final = [e["time_s"] for e in events if e["type"] == "preview" and e["is_final"]]
    first = [e["time_s"] for e in events if e["type"] == "preview"]
    return first[0] - began, final[-1] - began, ended - began


def main():
    lamella = [sys.executable, "-m", "lamella"]
    rows = {"help cpu_s": [], "import cpu_s": [], "import monai cpu_s": []}
    for repeat in range(6):
        samples = {
            "help cpu_s": [*lamella, "--help"],
            "import cpu_s": [sys.executable, "-c", "import lamella"],
        }
        if repeat < 2:
            samples["import monai cpu_s"] = [sys.executable, "-c", "import monai"]
        for name, command in samples.items():
            cpu, _ = cpu_seconds(command)
            if repeat:  # the first warms the page cache
                rows[name].append(cpu)
    preview, labels, whole = [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulated = simulate_tomogram((64, 64, 64), seed=3)
        volume = Volume.from_array(simulated.intensity, spacing=(1.0, 1.0, 1.0), unit="nm")
        save_volume(volume, folder / "t.mrc")
        for repeat in range(6):
            times = labels_after(folder, f"run-{repeat}")
            if repeat:
                for row, value in zip((preview, labels, whole), times, strict=True):
                    row.append(value)
    rows["segment 64 preview_s"] = preview
    rows["segment 64 labels_s"] = labels
    rows["segment 64 whole_s"] = whole
    medians = {name: round(statistics.median(values), 3) for name, values in rows.items()}
    for name, value in medians.items():
        goal = f"  (goal {GOALS[name]})" if name in GOALS else ""
        print(f"{name:24} {value:8.3f}{goal}")
    RESULTS.mkdir(exist_ok=True)
    document = {"n_cpus": os.cpu_count(), "load_average": os.getloadavg()[0], "medians": medians}
    (RESULTS / "start.json").write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
