"""Linking slices to objects in 3-D, against Cellpose's stitch3D, on this CPU.

    python benchmarks/bench_linking.py time --repeats 3
    python benchmarks/bench_linking.py memory
    python benchmarks/bench_linking.py quality
    python benchmarks/bench_linking.py verify

stitch3D is the real one where an environment with Cellpose 3 is named (``--cellpose PYTHON``; the
one of ``make``, ``.engines/cellpose3``, is found by itself): it runs in its own process, in turns
with ours, on the same labels. Without one, the small reference of the tests stands in, and the
results say so; ``verify`` shows that both give the same labels.

Machines are shared: where they are busy, seconds of CPU (of all threads together) say more than
seconds. ``time`` and ``memory``: 64 x 1024 x 1024, about 2,000 and 5,000 nuclei a slice, stacked,
numbered anew in every slice. Memory is the peak of what a process allocates (RssAnon):
ours reads a memory-mapped file and writes another, stitch3D works in place in an array.
``quality``: average precision at IoU 0.5 over anisotropies and kinds of damage, each method with
its defaults. Results go to benchmarks/results/linking-*.json.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SHAPE = (64, 1024, 1024)
STEPS = (1, 2, 4, 8)
WORKER = """
import json, sys, threading, time
import numpy as np
import cellpose.utils
cellpose.utils.trange = range
def anonymous():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon"))
cellpose.utils.stitch3D(np.ones((2, 8, 8), np.int32))  # compile
print("ready", flush=True)
for line in sys.stdin:
    source, target = json.loads(line)
    labels = np.load(source).astype(np.int32)
    peak, stop = [0], threading.Event()
    def watch():
        while not stop.wait(0.005):
            peak[0] = max(peak[0], anonymous())
    thread = threading.Thread(target=watch); thread.start()
    began, cpu = time.perf_counter(), time.process_time()
    result = cellpose.utils.stitch3D(labels)
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    stop.set(); thread.join()
    if target:
        np.save(target, result)
    print(json.dumps([took, cpu, peak[0] * 1024]), flush=True)
"""


def load_shared():
    path = HERE.parent / "tests" / "instances" / "linking.py"
    spec = importlib.util.spec_from_file_location("linking", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


shared = load_shared()


# --- The two competitors ------------------------------------------------------------------------


class Cellpose:
    """The real stitch3D in a process of its own."""

    def __init__(self, python):
        self.name = "cellpose.utils.stitch3D"
        self._process = subprocess.Popen(
            [python, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while self._process.stdout.readline().strip() != "ready":
            if self._process.poll() is not None:
                sys.exit(f"{python} has no working Cellpose")

    def run(self, path, target=""):
        """Seconds, seconds of all CPUs, and the peak of memory in bytes."""
        self._process.stdin.write(json.dumps([str(path), str(target)]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.wait()


class Reference:
    """The tests' reference of stitch3D, in this process."""

    name = "reference of stitch3D"

    def run(self, path, target=""):
        labels = np.load(path)
        return measured(lambda: shared.stitch3d(labels), target)

    def close(self):
        pass


def measured(work, target=""):
    peak, stop = [0], threading.Event()

    def anonymous():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("RssAnon"))

    def watch():
        while not stop.wait(0.005):
            peak[0] = max(peak[0], anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    began, cpu = time.perf_counter(), time.process_time()
    result = work()
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    stop.set()
    thread.join()
    if target:
        np.save(target, result)
    return took, cpu, peak[0]


def ours(labels, output):
    from lamella.instances import link_slices

    return link_slices(labels, lambda dtype: output.astype(dtype, copy=False), spacing=(1, 1, 1))


def find_cellpose(named):
    known = named or HERE.parent / ".engines/cellpose3/bin/python"
    return Cellpose(str(known)) if Path(known).exists() else Reference()


# --- Labels -------------------------------------------------------------------------------------


def stacked_nuclei(n_objects, shape=SHAPE, seed=0):
    """Columns of nuclei, one upon the other, that drift; numbered anew in every slice, uint32.

    A nucleus is 16 slices deep and tapers at both ends, so objects begin and end all the time.
    """
    rng = np.random.default_rng(seed)
    side = int(np.sqrt(n_objects))
    step = shape[1] // side
    y, x = np.mgrid[: shape[1], : shape[2]]
    at = np.minimum((y // step) * side + x // step, side * side - 1)
    is_cell = (y // step < side) & (x // step < side)
    phase = rng.uniform(0, 1, side * side)
    labels = np.zeros(shape, np.uint32)
    for z in range(shape[0]):
        drift = 0.08 * step * np.sin(2 * np.pi * (phase + z / 50))
        height = 2 * ((z / 16 + phase) % 1) - 1
        radius = 0.42 * step * np.sqrt(1 - height**2)
        far = (y % step - step / 2 - drift[at]) ** 2 + (x % step - step / 2) ** 2
        numbers = rng.permutation(side * side) + 1
        labels[z] = np.where(is_cell & (far < radius[at] ** 2), numbers[at], 0)
    return labels


def damaged(labels, kind, seed=1):
    """Slices as a 2-D model may leave them."""
    from scipy.ndimage import binary_dilation

    rng = np.random.default_rng(seed)
    labels = labels.copy()
    if kind == "slices missing":
        labels[2:-1:5] = 0
    for plane in labels:
        for value in np.unique(plane[plane > 0]):
            mask = plane == value
            if kind == "objects missing" and rng.random() < 0.1:
                plane[mask] = 0
            elif kind == "objects merged" and rng.random() < 0.1:
                beside = np.unique(plane[binary_dilation(mask, iterations=2) & ~mask])
                plane[mask] = beside[beside > 0][0] if beside.any() else value
            elif kind == "objects split" and rng.random() < 0.1:
                x = np.nonzero(mask)[1]
                plane[mask & (np.arange(plane.shape[1]) > np.median(x))] = plane.max() + 1
    if kind == "slices bad":
        for z in range(3, len(labels) - 1, 7):
            labels[z] = np.roll(labels[z], (9, 11), (0, 1))
    return shared.as_slices(labels)


def branching(shape=(48, 160, 160)):
    """Tubes that part in two, a label in 3-D each."""
    labels = np.zeros(shape, np.uint32)
    y, x = np.mgrid[: shape[1], : shape[2]]
    for k, (cy, cx) in enumerate((a, b) for a in range(20, 160, 40) for b in range(20, 160, 40)):
        for z in range(2, shape[0] - 2):
            apart = 4.5 + max(0, z - shape[0] // 2) * 0.35
            for side, radius in ((-1, 5.0), (1, 4.2)):
                labels[z][(y - cy) ** 2 + (x - cx - side * apart) ** 2 <= radius**2] = k + 1
    return labels


def components_of_slices(labels):
    from lamella.instances import label_components

    return np.stack([label_components(plane).labels for plane in labels])


def references():
    from lamella.simulation.nuclei import NucleiOptions, draw_nuclei

    data = os.environ.get("LAMELLA_TEST_DATA", "")
    if data:
        import h5py

        with h5py.File(Path(data) / "fluorescence/plantseg/sample_ovule.h5") as file:
            yield "ovule", file["label"][...]
    for name, n, radius, touching in (("nuclei", 120, 5.0, 0.5), ("dense nuclei", 400, 4.0, 0.9)):
        options = NucleiOptions(
            shape=(64, 160, 160), spacing_um=(0.5,) * 3, n_nuclei=n, radius_um=radius,
            touching_fraction=touching,
        )  # fmt: skip
        yield name, draw_nuclei(options, seed=3).labels


def predictions():
    """Slices of a simulated volume as the starter model nuclei-2d sees them."""
    import lamella as lm
    from lamella.simulation.nuclei import NucleiOptions, simulate_nuclei

    options = NucleiOptions(
        shape=(48, 192, 192), spacing_um=(0.5,) * 3, n_nuclei=100, touching_fraction=0.5
    )
    image, reference = simulate_nuclei(options, seed=3)
    with tempfile.TemporaryDirectory() as folder:
        run = lm.segment(image, model="nuclei-2d", instances="slices", run_dir=Path(folder) / "run")
        return reference.load(), run.labels.load()


# --- Commands -----------------------------------------------------------------------------------


def run_time(arguments, peer):
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.npy"
        for n in arguments.objects:
            labels = stacked_nuclei(n)
            np.save(path, labels)
            output = np.ones(labels.shape, np.uint32)
            ours(labels[:2], output[:2])  # compile
            work = partial(ours, labels, output)
            found = {"ours": [], "peer": []}
            for _ in range(arguments.repeats):
                found["ours"].append(measured(work)[:2])
                found["peer"].append(peer.run(path)[:2])
            row = {"objects": n}
            for k, name in enumerate(("wall_s", "cpu_s")):
                both = {who: statistics.median(v[k] for v in found[who]) for who in found}
                row[name] = {**both, "ratio": both["peer"] / both["ours"]}
                print(
                    f"{n:6d} objects a slice, {name}: ours {both['ours']:.3f},"
                    f" {peer.name} {both['peer']:.2f}, {row[name]['ratio']:.0f} x",
                    flush=True,
                )
            rows.append(row)
    return rows


def run_memory(arguments, peer):
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "labels.npy", Path(folder) / "ids.npy"
        for n in arguments.objects:
            np.save(source, stacked_nuclei(n))
            np.lib.format.open_memmap(target, "w+", np.uint32, SHAPE)
            command = [sys.executable, __file__, "_ours", str(source), str(target)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            mine, theirs = int(done.stdout), peer.run(source)[2]
            rows.append({"objects": n, "ours": mine, "peer": theirs, "ratio": theirs / mine})
            print(
                f"{n:6d} objects a slice: ours {mine / 1e6:.0f} MB, {peer.name}"
                f" {theirs / 1e6:.0f} MB, {theirs / mine:.1f} x"
            )
    return rows


def run_quality(_arguments, peer):
    kinds = ("none", "objects missing", "slices missing", "objects merged", "objects split",
             "slices bad")  # fmt: skip
    cases = [
        (name, kind, step, reference[step // 2 :: step], None)
        for name, reference in references()
        for kind in kinds
        for step in STEPS
    ]
    reference, labels = predictions()
    cases += [
        (
            "nuclei-2d on nuclei",
            "none",
            step,
            reference[step // 2 :: step],
            labels[step // 2 :: step],
        )
        for step in STEPS
    ]
    tubes = branching()
    cases += [
        ("branching tubes", "none", step, tubes[::step], components_of_slices(tubes[::step]))
        for step in STEPS
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "labels.npy", Path(folder) / "stitched.npy"
        for name, kind, step, expected, given in cases:
            labels = shared.as_slices(expected if given is None else given, seed=0)
            if kind != "none":
                labels = damaged(labels, kind)
            np.save(source, labels)
            peer.run(source, target)
            mine = shared.average_precision(shared.link(labels)[0], expected)
            theirs = shared.average_precision(np.load(target), expected)
            rows.append(
                {"data": name, "damage": kind, "anisotropy": step, "ours": mine, "peer": theirs}
            )
            flag = "" if mine >= theirs else "   <- below"
            print(f"{name:20s} {kind:16s} x{step}  {mine:.3f}  {theirs:.3f}{flag}", flush=True)
    worse = sum(row["ours"] < row["peer"] for row in rows)
    print(f"{len(rows)} cases, {worse} below {peer.name}")
    return rows


def run_verify(_arguments, peer):
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "labels.npy", Path(folder) / "stitched.npy"
        for k in range(20):
            labels = stacked_nuclei(50, (6, 96, 96), seed=k)
            labels[rng.random(6) < 0.3] = 0
            labels[:, : rng.integers(0, 60)] = 0
            labels = shared.as_slices(labels, seed=k)
            np.save(source, labels)
            peer.run(source, target)
            assert np.array_equal(shared.stitch3d(labels), np.load(target)), f"differs for {k}"
    print(f"the reference equals {peer.name} on 20 stacks")
    return [{"stacks": 20, "equal": True}]


def main():
    if sys.argv[1:2] == ["_ours"]:
        source = np.load(sys.argv[2], mmap_mode="r")
        target = np.lib.format.open_memmap(sys.argv[3], "r+")
        ours(source[:1], np.empty((1, *SHAPE[1:]), np.uint32))  # compile
        print(measured(lambda: ours(source, target) and None)[2])
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=("time", "memory", "quality", "verify"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--objects", type=int, nargs="+", default=[2000, 5000])
    parser.add_argument("--cellpose", help="Python of an environment with Cellpose 3.")
    arguments = parser.parse_args()
    commands = {
        "time": run_time, "memory": run_memory, "quality": run_quality, "verify": run_verify,
    }  # fmt: skip
    peer = find_cellpose(arguments.cellpose)
    rows = commands[arguments.command](arguments, peer)
    peer.close()
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / f"linking-{arguments.command}.json"
    target.write_text(json.dumps({"peer": peer.name, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
