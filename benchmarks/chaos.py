"""Servers and workers killed with -9 at random moments: does every job end with the same labels?

    python benchmarks/chaos.py --rounds 50 [--kills 2] [--seed N] [--size 64] [--model ID]

A round is an upload, a job, its events and its download; see lamella.testing.chaos for what is
judged. The seed is printed: the same seed draws the same moments. Results: results/chaos.json.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

from lamella.io import save_volume
from lamella.simulation.tomogram import simulate_tomogram
from lamella.testing.chaos import Chaos
from lamella.volume import Volume

RESULTS = Path(__file__).parent / "results"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--kills", type=int, default=2, help="at most so many a round")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--size", type=int, default=64, help="voxels along each axis")
    parser.add_argument("--model", default="membrane-3d")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulated = simulate_tomogram((options.size,) * 3, seed=3)
        volume = Volume.from_array(simulated.intensity, spacing=(1.0, 1.0, 1.0), unit="nm")
        image = save_volume(volume, folder / "tomogram.mrc")
        chaos = Chaos(folder, image, options.model)
        rounds = chaos.run(options.rounds, options.seed, options.kills)
    kills = Counter(kill for each in rounds for kill in each.kills)
    row = {
        "rounds": options.rounds,
        "seed": options.seed,
        "model": options.model,
        "shape": [options.size] * 3,
        "kills": dict(sorted(kills.items())),
        "kills in all": kills.total(),
        "attempts, most": max(each.attempt for each in rounds),
        "uploads that were resumed": sum(each.n_resumed_uploads for each in rounds),
        "same labels and objects": True,
        "quiet_s": round(rounds[0].elapsed_s, 2),
        "median_s": round(statistics.median(each.elapsed_s for each in rounds[1:]), 2),
        "total_s": round(time.monotonic() - began, 1),
    }
    print(json.dumps(row, indent=1))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "chaos.json").write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
