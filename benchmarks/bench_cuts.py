"""The network is cut for a minute in upload, queue, run and download: the client goes on by itself.

Every cut is done twice: connections break, and connections hang. The labels must be those of a
quiet local run, and no acknowledged byte may be lost or sent again::

    python benchmarks/bench_cuts.py --seconds 60      # nine minutes
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np

import lamella as lm
from lamella.simulation.tomogram import simulate_tomogram
from lamella.testing.cuts import CutOptions, run_with_cuts
from lamella.testing.server import run_server

MODEL = "membrane-3d"
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each cut")
    words = parser.parse_args()
    found: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="lamella-cuts-") as name:
        folder = Path(name)
        simulated = simulate_tomogram((48, 128, 128), seed=1)
        volume = lm.Volume.from_array(simulated.intensity, spacing=(1.0,) * 3, unit="nm")
        image = lm.save(volume, folder / "tomogram.mrc")
        quiet = lm.segment(image, MODEL, run_dir=folder / "quiet.run")
        with run_server(folder / "data", "--workers", "1") as server:
            for is_silent in (False, True):
                options = CutOptions(words.seconds, is_silent)
                place = folder / f"silent-{is_silent}"
                result = run_with_cuts(server, image, MODEL, place, options)
                assert np.array_equal(result.run.labels.load(), quiet.labels.load())
                objects = [(run.folder / "objects.csv").read_bytes() for run in (result.run, quiet)]
                assert objects[0] == objects[1]
                assert not result.lost, result.lost
                assert not result.sent_again, result.sent_again
                for cut in result.cuts:
                    found.append({"is_silent": is_silent, **asdict(cut)})
                    kind = "hang " if is_silent else "break"
                    print(
                        f"connections {kind}  {cut.phase:<9} cut for {cut.lasted_s:5.1f} s,"
                        f" went on {cut.recovered_s:5.1f} s later ({cut.n_tries} tries)",
                        flush=True,
                    )
    print("labels and objects are those of a quiet run; nothing was lost or sent again")
    document = {"seconds": words.seconds, "cuts": found}
    (RESULTS / "cuts.json").write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
