"""Random patches of a chunked volume, as a training reads them, against the peers and the limit.

    python benchmarks/bench_patches.py read                    patches/s, about two minutes
    python benchmarks/bench_patches.py loader                  with two worker processes
    python benchmarks/bench_patches.py step                    how long a 3-D U-Net waits for data
    python benchmarks/bench_patches.py memory                  resident memory over 1,000 steps

The volume: 512³, OME-Zarr 0.4 with chunks of 64³ and zstd level 3; raw is 8-bit and noisy, so it
hardly compresses, labels are two classes of blobs. An *item* is 128³ of raw and of labels.

* The limit of reading: both arrays' touched chunks are read and decoded by two threads, and
  thrown away; nobody who decodes each touched chunk can be faster.
* zarr-python: slices of both arrays.
* cellmap-data needs zarr 2 and so an environment of its own, named by --cellmap-python:
  ``uv venv cm && uv pip install --python cm/bin/python cellmap-data "zarr<3"``; its items are
  float32, ours are compared to them in float32 too.
* Lamella, unordered: independent positions, no cache. In order: groups of 8 patches that share
  chunks, and a cache for half of the decoded volume.

All run in turns, in the same run; ratios are medians over rounds. Where others use the machine,
processor time tells more than the clock. Results go to
benchmarks/results/patches-<what>.json.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results"
SIZE, CHUNK, PATCH = 512, 64, 128
SPACING = 8.0
CACHE = SIZE**3  # bytes: half of raw and labels
GROUPS = ("raw", "labels/mito")


# ---- the volume


def make_volume(folder):
    """Raw and labels as two OME-Zarr groups, unless they are there already."""
    import zarr
    from numcodecs import Zstd

    if (folder / "ready").exists():
        return
    rng = np.random.default_rng(0)
    for group in GROUPS:
        path = folder / "data.zarr" / group
        array = zarr.create_array(
            str(path / "s0"),
            shape=(SIZE,) * 3,
            chunks=(CHUNK,) * 3,
            dtype="u1",
            zarr_format=2,
            compressors=Zstd(3),
            fill_value=0,
            chunk_key_encoding={"name": "v2", "separator": "/"},
        )
        (path / ".zgroup").write_text('{"zarr_format": 2}')
        axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
        steps = [
            {"type": "scale", "scale": [SPACING] * 3},
            {"type": "translation", "translation": [0.0] * 3},
        ]
        level = {"path": "s0", "coordinateTransformations": steps}
        document = {"multiscales": [{"version": "0.4", "axes": axes, "datasets": [level]}]}
        (path / ".zattrs").write_text(json.dumps(document))
        smooth = rng.normal(0, 1, (SIZE // 16 + 2,) * 3).astype(np.float32)
        for z in range(0, SIZE, CHUNK):
            array[z : z + CHUNK] = _slab(smooth, z, group, rng)
    (folder / "ready").write_text("")


def _slab(smooth, z, group, rng):
    from scipy.ndimage import zoom

    part = zoom(smooth[z // 16 : z // 16 + CHUNK // 16 + 1], 16, order=1)
    part = part[:CHUNK, :SIZE, :SIZE]
    if group != "raw":
        return (part > 0.5).astype(np.uint8) + (part > 1)
    noise = rng.normal(0, 25, part.shape).astype(np.float32)
    return np.clip(128 + 30 * part + noise, 0, 255).astype(np.uint8)


def array_path(folder, group):
    return folder / "data.zarr" / group / "s0"


def starts_of(seed, n):
    return np.random.default_rng(seed).integers(0, SIZE - PATCH + 1, (n, 3)).tolist()


# ---- who reads


def limit_reader(folder):
    """Decodes what patches touch, in two threads."""
    from numcodecs import Zstd

    codec = Zstd()
    pool = ThreadPoolExecutor(2)

    def decode(name):
        with open(name, "rb") as stream:  # noqa: PTH123 - the cheapest way
            codec.decode(stream.read())

    def read(start):
        touched = [range(a // CHUNK, -(-(a + PATCH) // CHUNK)) for a in start]
        names = [
            f"{array_path(folder, group)}/{z}/{y}/{x}"
            for group in GROUPS
            for z, y, x in itertools.product(*touched)
        ]
        list(pool.map(decode, names, chunksize=1))

    return lambda seed, n: timed(read, starts_of(seed, n))


def zarr_reader(folder):
    import zarr

    arrays = [zarr.open_array(str(array_path(folder, group)), mode="r") for group in GROUPS]

    def read(start):
        box = tuple(slice(a, a + PATCH) for a in start)
        return [array[box] for array in arrays]

    return lambda seed, n: timed(read, starts_of(seed, n))


def our_reader(folder, *, cache_bytes=0, dtype=None, is_ordered=False):
    from lamella.training.chunk_order import PatchOrder, draw_start
    from lamella.training.patch_reader import PatchReader, ReadOptions
    from lamella.volume.box import Box

    options = ReadOptions(cache_bytes=cache_bytes, threads=2)
    raw, labels = (PatchReader(array_path(folder, g), options=options) for g in GROUPS)
    whole = Box.from_shape(raw.shape)
    order = PatchOrder(0, batch=2)
    numbers = itertools.count()

    def read(start):
        box = Box(tuple(start), tuple(a + PATCH for a in start))
        return raw.read(box, dtype=dtype), labels.read(box)

    def run(seed, n):
        if not is_ordered:
            return timed(read, starts_of(seed, n))
        generators = (order.generators(number) for number in itertools.islice(numbers, n))
        return timed(
            read, [draw_start(*pair, whole, (PATCH,) * 3, raw.chunks) for pair in generators]
        )

    return run


def timed(read, starts):
    """Items a second, and milliseconds of processor an item in this process."""
    began, cpu = time.perf_counter(), time.process_time()
    for start in starts:
        read(start)
    wall = time.perf_counter() - began
    return len(starts) / wall, 1000 * (time.process_time() - cpu) / len(starts)


def next_batches(batches, n):
    """Of batches of two; the work is done by other processes."""
    rate, _ = timed(lambda _: next(batches), range(n // 2))
    return 2 * rate, None


# ---- cellmap-data, in its own environment


class Cellmap:
    """The peer, in a process that answers a line for a line."""

    def __init__(self, python, folder):
        self.process = subprocess.Popen(
            [python, __file__, "serve", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.version = self.process.stdout.readline().strip()
        if not self.version:
            sys.exit(f"cellmap-data does not run in {python}")

    def ask(self, what, seed, n):
        self.process.stdin.write(f"{what} {seed} {n}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def serve_cellmap(folder):
    """Runs where cellmap-data is installed; ``item`` reads in this process, ``loader`` in two."""
    from importlib.metadata import version

    import torch
    from cellmap_data import CellMapDataset

    torch.set_num_threads(2)
    spec = {"shape": (PATCH,) * 3, "scale": (SPACING,) * 3}
    root = folder / "data.zarr"
    data = CellMapDataset(
        str(root / "raw"), f"{root}/labels/[mito]", ["mito"], {"raw": spec}, {"labels": spec},
        force_has_data=True,
    )  # fmt: skip
    item = data[0]
    shapes = [tuple(item[name].shape) for name in ("raw", "labels")]
    assert shapes == [(1, PATCH, PATCH, PATCH)] * 2, shapes
    assert float(item["raw"].std()) > 1, "the peer reads no voxels"
    print("cellmap-data", version("cellmap-data"), flush=True)
    batches = None
    for line in sys.stdin:
        what, seed, n = line.split()
        rng = np.random.default_rng(int(seed))
        if what == "item":
            answer = timed(data.__getitem__, rng.integers(0, len(data), int(n)).tolist())
        else:
            if batches is None:
                batches = cellmap_batches(data)
            answer = next_batches(batches, int(n))
        print(json.dumps(answer), flush=True)


def cellmap_batches(data):
    from cellmap_data import CellMapDataLoader

    indices = np.random.default_rng(0).integers(0, len(data), 10**6).tolist()
    loader = CellMapDataLoader(
        data, batch_size=2, num_workers=2, sampler=indices, prefetch_factor=4
    )
    batches = iter(loader)
    for _ in range(8):
        next(batches)
    return batches


# ---- our loader


class Patches:
    """Items by number, as a data loader's workers draw them; float32 and normalised."""

    def __init__(self, folder, *, is_ordered, cache_bytes, threads=1):
        from lamella.training.chunk_order import PatchOrder
        from lamella.training.patch_reader import PatchReader, ReadOptions

        options = ReadOptions(cache_bytes=cache_bytes, threads=threads)
        self.arrays = [PatchReader(array_path(folder, g), options=options) for g in GROUPS]
        self.order = PatchOrder(0, batch=2)
        self.is_ordered = is_ordered

    def __len__(self):
        return 10**9

    def __getitem__(self, number):
        from lamella.training.chunk_order import draw_start
        from lamella.volume.box import Box

        place, own = self.order.generators(number)
        whole = Box.from_shape(self.arrays[0].shape)
        start = draw_start(
            place if self.is_ordered else own, own, whole, (PATCH,) * 3, self.arrays[0].chunks
        )
        box = Box(start, tuple(a + PATCH for a in start))
        raw = self.arrays[0].read(box, dtype=np.float32)
        raw -= 128
        raw /= 40
        return raw[None], self.arrays[1].read(box)


def batches_of(patches, n_workers=2):
    """An endless iterator of batches of two, read by worker processes."""
    from torch.utils.data import DataLoader

    from lamella.training.patch_reader import worker_context

    loader = DataLoader(
        patches,
        batch_size=2,
        sampler=itertools.count(),
        num_workers=n_workers,
        prefetch_factor=4,
        persistent_workers=True,
        multiprocessing_context=worker_context(["torch"]),
    )
    batches = iter(loader)
    for _ in range(8):
        next(batches)
    return batches


# ---- what is measured


def bench_read(folder, python, rounds):
    runs = {
        "limit": limit_reader(folder),
        "zarr-python": zarr_reader(folder),
        "lamella, unordered": our_reader(folder),
        "lamella, unordered, float32": our_reader(folder, dtype=np.float32),
        "lamella, in order": our_reader(folder, cache_bytes=CACHE, is_ordered=True),
        "lamella, in order, float32": our_reader(
            folder, cache_bytes=CACHE, dtype=np.float32, is_ordered=True
        ),
    }
    with cellmap_of(python, folder) as peer:
        if peer:
            runs["cellmap-data"] = lambda seed, n: peer.ask("item", seed, n)
        rates = in_turns(runs, rounds, n=32)
    wanted = [
        ("lamella, unordered", "limit", 0.95),
        ("lamella, unordered", "zarr-python", 2.0),
        ("lamella, in order", "zarr-python", 6.0),
        ("lamella, unordered, float32", "cellmap-data", 3.5),
        ("lamella, in order, float32", "cellmap-data", 3.5),
    ]
    return report(rates, wanted) | {"opening": bench_opening()}


def bench_loader(folder, python, rounds):
    runs = {}
    kinds = {"unordered": (False, 0), "in order": (True, CACHE)}
    loaders = {
        name: batches_of(Patches(folder, is_ordered=is_ordered, cache_bytes=cache))
        for name, (is_ordered, cache) in kinds.items()
    }
    for name, batches in loaders.items():
        runs[f"lamella, {name}"] = lambda _, n, batches=batches: next_batches(batches, n)
    with cellmap_of(python, folder) as peer:
        if peer:
            runs["cellmap-data"] = lambda seed, n: peer.ask("loader", seed, n)
        # Batches that were read ahead while others ran are not counted.
        rates = in_turns(runs, rounds, n=64, ahead=16)
    wanted = [(f"lamella, {name}", "cellmap-data", 3.5) for name in kinds]
    return report(rates, wanted)


def bench_opening():
    """Seconds to open an array of 10²¹ voxels, and a thousand arrays."""
    import zarr

    from lamella.training.patch_reader import PatchReader

    with tempfile.TemporaryDirectory() as folder:
        zarr.create_array(f"{folder}/a", shape=(10**7,) * 3, chunks=(CHUNK,) * 3, dtype="u1")
        began = time.perf_counter()
        PatchReader(f"{folder}/a")[0, 0, 0]
        one = time.perf_counter() - began
        for _ in range(1000):
            PatchReader(f"{folder}/a")
        many = time.perf_counter() - began - one
    print(f"opening and reading one voxel: {one:.3f} s; opening 1,000 arrays: {many:.3f} s")
    return {"one, with a first voxel, s": one, "1000 arrays, s": many}


def bench_step(folder, n_steps, n_threads):
    """Share of a step in which a 3-D U-Net waits for its next batch."""
    import torch
    from monai.networks.nets import BasicUNet

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if n_threads:
        torch.set_num_threads(n_threads)
    result = {"device": device, "threads": torch.get_num_threads()}
    for name, is_ordered, cache in (("unordered", False, 0), ("in order", True, CACHE)):
        torch.manual_seed(0)
        network = BasicUNet(3, 1, 3, features=(16, 16, 32, 64, 128, 16)).to(device)
        optimiser = torch.optim.AdamW(network.parameters())
        batches = batches_of(Patches(folder, is_ordered=is_ordered, cache_bytes=cache))
        waits, steps = [], []
        for _ in range(n_steps + 1):
            began = time.perf_counter()
            image, labels = next(batches)
            waited = time.perf_counter() - began
            with torch.autocast(device, torch.bfloat16):
                logits = network(image.to(device))
            loss = torch.nn.functional.cross_entropy(logits.float(), labels.to(device).long())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            loss.item()
            waits.append(waited)
            steps.append(time.perf_counter() - began)
        # The first step sets the network up.
        share = sum(waits[1:]) / sum(steps[1:])
        step = statistics.median(steps[1:])
        result[name] = {"share of waiting": share, "step, s": step}
        print(f"{device}, {name}: {step:.2f} s a step, {100 * share:.2f} % of it waiting for data")
    return result


def bench_memory(folder, n_steps):
    """Resident memory of this process and its two workers, at intervals of the steps."""
    import psutil

    batches = batches_of(Patches(folder, is_ordered=True, cache_bytes=CACHE // 2))
    here = psutil.Process()
    rows = []
    for step in range(1, n_steps + 1):
        next(batches)
        if step % (n_steps // 10) == 0:
            children = here.children(recursive=True)
            total = sum(process.memory_full_info().pss for process in (here, *children))
            rows.append((step, total / 2**20))
            print(f"step {step}: {total / 2**20:.0f} MB with {len(children)} processes")
    third = len(rows) // 3
    growth = statistics.median(m for _, m in rows[-third:]) - statistics.median(
        m for _, m in rows[third : 2 * third]
    )
    print(f"from the second third to the last: {growth:+.1f} MB")
    return {"MB by step": rows, "growth, MB": growth}


# ---- around it


@contextlib.contextmanager
def cellmap_of(python, folder):
    if python is None:
        print("cellmap-data is not measured: name its environment with --cellmap-python")
        yield None
        return
    peer = Cellmap(python, folder)
    print(peer.version)
    try:
        yield peer
    finally:
        peer.close()


def in_turns(runs, rounds, *, n, ahead=0):
    """Rates and processor times of each, round by round; one round before is not counted."""
    rates = {name: [] for name in runs}
    names = list(runs)
    for number in range(rounds + 1):
        names = names[1:] + names[:1]
        for name in names:
            if ahead:
                runs[name](number, ahead)
            measured = runs[name](number, n)
            if number:
                rates[name].append(measured)
    return rates


def report(rates, wanted):
    result = {"items/s": {}, "processor, ms an item": {}, "ratios": {}}
    for name, found in rates.items():
        result["items/s"][name] = rate = statistics.median(one for one, _ in found)
        cpu = ""
        if found[0][1] is not None:
            spent = statistics.median(ms for _, ms in found)
            result["processor, ms an item"][name] = spent
            cpu = f"   {spent:6.2f} ms of processor each"
        print(f"    {name:<30} {rate:7.1f} items/s{cpu}")
    for name, peer, goal in wanted:
        if peer not in rates:
            continue
        pairs = list(zip(rates[name], rates[peer], strict=True))
        ratio = statistics.median(ours[0] / theirs[0] for ours, theirs in pairs)
        entry = {"ratio": ratio, "goal": goal}
        less = ""
        if pairs[0][0][1] is not None:
            entry["processor"] = statistics.median(o[1] / t[1] for o, t in pairs)
            less = f", for {entry['processor']:.2f} of the processor time"
        result["ratios"][f"{name} / {peer}"] = entry
        print(f"    {name} / {peer}: {ratio:.2f} times as fast (goal {goal:g}){less}")
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("read", "loader", "step", "memory", "serve"))
    parser.add_argument("folder", nargs="?", type=Path, help="keep the volume there")
    parser.add_argument("--cellmap-python", help="interpreter with cellmap-data")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int, default=0, help="of the network, on the CPU")
    chosen = parser.parse_args()
    if chosen.what == "serve":
        serve_cellmap(chosen.folder)
        return
    python = chosen.cellmap_python or os.environ.get("LAMELLA_CELLMAP_PYTHON")
    with contextlib.ExitStack() as stack:
        folder = chosen.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        make_volume(folder)
        if chosen.what == "read":
            result = bench_read(folder, python, chosen.rounds)
        elif chosen.what == "loader":
            result = bench_loader(folder, python, chosen.rounds)
        elif chosen.what == "step":
            result = bench_step(folder, chosen.steps or 6, chosen.threads)
        else:
            result = bench_memory(folder, chosen.steps or 1000)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"patches-{chosen.what}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
