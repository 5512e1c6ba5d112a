"""Run every benchmark: `make bench`, two hours or more on two cores.

Each script measures Lamella and its peers in the same run, prints a table and writes
``benchmarks/results/<name>.json``. These machines are noisy: read ratios, not seconds.
"""

import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
COMMANDS = (
    ("bench_start.py",),
    ("bench_measurement.py",),
    ("bench_linking.py", "time"),
    ("bench_linking.py", "memory"),
    ("bench_linking.py", "quality"),
    ("bench_restoration.py",),
    ("bench_flat.py",),
    ("bench_nnunet.py", "export"),
    ("bench_nnunet.py", "run"),
    ("bench_patches.py", "read"),
    ("bench_patches.py", "loader"),
    ("bench_patches.py", "step"),
    ("bench_patches.py", "memory"),
    ("bench_inference.py", "time", "--size", "192", "--network", "small"),
    ("bench_inference.py", "time", "--size", "128", "--network", "large"),
    ("bench_inference.py", "time", "--size", "256", "--network", "small", "--repeats", "1"),
    ("bench_inference.py", "preview"),
    ("bench_inference.py", "memory"),
    ("bench_queue.py",),
    ("bench_jobs.py",),
    ("bench_dask.py", "--local"),
    ("bench_server.py", "latency"),
    ("bench_server.py", "overhead"),
    ("bench_server.py", "load"),
    ("bench_uploads.py", "time"),
    ("bench_uploads.py", "memory"),
    ("chaos.py", "--rounds", "50", "--kills", "2"),
    ("chaos.py", "--rounds", "10", "--backend", "engines"),
)


def main():
    failed = []
    for command in COMMANDS:
        print(f"\n== {' '.join(command)}", flush=True)
        began = time.monotonic()
        done = subprocess.run([sys.executable, HERE / command[0], *command[1:]], check=False)
        print(f"   {time.monotonic() - began:.0f} s", flush=True)
        if done.returncode:
            failed.append(" ".join(command))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
