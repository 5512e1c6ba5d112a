"""Tiled inference against MONAI and nnU-Net: same network, tiles and overlap, on this CPU.

    python benchmarks/bench_inference.py time --size 192 --network small --repeats 3
    python benchmarks/bench_inference.py preview
    python benchmarks/bench_inference.py memory

Competitors run as they do by default (eager PyTorch, one tile at a time), interleaved in one
process, each followed by the argmax that gives labels. Weights and input are random, which is the
worst case for agreement. Results go to benchmarks/results/inference-*.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from lamella.inference.decode import Argmax
from lamella.inference.execute import Execution, execute
from lamella.inference.layers import GridMap
from lamella.inference.plan import make_plan
from lamella.inference.slab import VolumeSlabs
from lamella.volume import FunctionArray, Volume

RESULTS = Path(__file__).parent / "results"
TILE = (64, 64, 64)
N_CLASSES = 4


class Silent:
    """A listener that hears nothing."""

    def check(self):
        pass

    def tiles(self, done, total, eta_s):
        pass

    def finished(self, box):
        pass


class MemoryLayers:
    """Labels in memory."""

    unit = (32, 128, 128)

    def __init__(self, shape):
        self.array = np.zeros(shape, np.uint8)

    def write(self, box, values):
        self.array[box.slices()] = values

    def sync(self):
        pass


def build_network(kind):
    """``small``: BasicUNet of 1.4 M parameters; ``large``: nnU-Net's PlainConvUNet of 31 M."""
    import torch

    torch.manual_seed(0)
    if kind == "small":
        from monai.networks.nets import BasicUNet

        return BasicUNet(3, 1, N_CLASSES, features=(16, 16, 32, 64, 128, 16)).eval()
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    n = 6
    return PlainConvUNet(
        1,
        n,
        (32, 64, 128, 256, 320, 320),
        torch.nn.Conv3d,
        3,
        ((1, 1, 1),) + ((2, 2, 2),) * (n - 1),
        2,
        N_CLASSES,
        2,
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    ).eval()


def run_lamella(data, runtime):
    """Labels of a volume in memory, by the loop of the engine."""
    plan = make_plan(data.shape, tile=TILE, overlap_fraction=0.5)
    labels = MemoryLayers(data.shape)
    execute(
        Execution(
            plan=plan,
            source=VolumeSlabs(Volume.from_array(data)),
            runtime=runtime,
            decoder=Argmax(N_CLASSES),
            grid=GridMap.make(plan.shape, plan.shape),
            labels=labels,
        ),
        Silent(),
    )
    return labels.array


def run_bare(n_tiles, runtime):
    """The network's own passes and nothing else, kept busy as in the loop."""
    batches = [np.random.default_rng(i).standard_normal((1, 1, *TILE), np.float32) for i in (0, 1)]
    fetch = runtime.submit(batches[0])
    for i in range(1, n_tiles):
        following = runtime.submit(batches[i % 2])
        fetch()
        fetch = following
    fetch()


def run_monai(data, network):
    """MONAI's sliding window with Gaussian weights, then the argmax."""
    import torch
    from monai.inferers import sliding_window_inference

    with torch.inference_mode():
        logits = sliding_window_inference(
            torch.from_numpy(data)[None, None], TILE, 1, network, overlap=0.5, mode="gaussian"
        )
        return logits[0].argmax(0).to(torch.uint8).numpy()


def make_nnunet(network):
    """nnU-Net's predictor on the CPU without mirroring, as ``nnUNetv2_predict`` sets it up."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        use_mirroring=False,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        verbose=False,
        allow_tqdm=False,
    )
    predictor.network = network
    predictor.configuration_manager = SimpleNamespace(patch_size=TILE)
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=N_CLASSES)
    predictor.allowed_mirroring_axes = None

    def run(data):
        logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(data)[None])
        return logits.argmax(0).to(torch.uint8).numpy()

    return run


def bench_time(size, kind, repeats, peers, threads):
    """Seconds of every competitor, interleaved.

    With one thread the CPU seconds of the process are taken instead of the time on the wall: they
    hardly depend on what else runs on the machine, while several threads that wait for each other
    do so all the more.
    """
    import openvino as ov
    import torch

    from lamella.inference.openvino_runtime import OpenVinoOptions, OpenVinoRuntime

    clock = time.process_time if threads == 1 else time.perf_counter
    if threads:
        torch.set_num_threads(threads)
    network = build_network(kind)
    shape = (1, 1, *TILE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = ov.convert_model(network, example_input=torch.zeros(shape), input=[list(shape)])
    fp32 = OpenVinoRuntime(graph.clone(), shape, OpenVinoOptions(n_threads=threads))
    bf16 = OpenVinoRuntime(graph, shape, OpenVinoOptions(precision="bf16", n_threads=threads))
    data = np.random.default_rng(0).standard_normal((size,) * 3).astype(np.float32)
    n_tiles = make_plan(data.shape, tile=TILE, overlap_fraction=0.5).n_tiles
    run_nnunet = make_nnunet(network)
    entries = {
        "monai": lambda: run_monai(data, network),
        "nnunet": lambda: run_nnunet(data),
        "lamella_fp32": lambda: run_lamella(data, fp32),
        "bare_fp32": lambda: run_bare(n_tiles, fp32),
        "lamella_bf16": lambda: run_lamella(data, bf16),
        "bare_bf16": lambda: run_bare(n_tiles, bf16),
    }
    seconds = {name: [] for name in entries}
    labels = {}
    run_lamella(data[:64], fp32)
    run_lamella(data[:64], bf16)
    for repeat in range(repeats):
        for name, entry in entries.items():
            if name in ("monai", "nnunet") and (name not in peers or repeat >= peers[name]):
                continue
            began = clock()
            found = entry()
            seconds[name].append(clock() - began)
            if found is not None:
                labels[name] = found
            print(f"{name} {seconds[name][-1]:.2f} s", flush=True)
    result = summarise(size, kind, n_tiles, seconds, labels)
    result["clock"] = "cpu" if threads == 1 else "wall"
    result["n_threads"] = threads
    result["driver_cpu_seconds"] = driver_seconds(data)
    return result


def driver_seconds(data):
    """CPU seconds of everything but the network: the same loop with logits that cost nothing."""

    class Free(Pointwise):
        logits = np.random.default_rng(0).standard_normal((1, N_CLASSES, *TILE), np.float32)

        def __call__(self, batch):
            return self.logits

    taken = []
    for _ in range(3):
        began = time.process_time()
        run_lamella(data, Free(N_CLASSES))
        taken.append(time.process_time() - began)
    return round(statistics.median(taken), 3)


def summarise(size, kind, n_tiles, seconds, labels):
    """Medians, ratios and agreement."""
    median = {name: statistics.median(v) for name, v in seconds.items() if v}
    result = {
        "size": size,
        "network": kind,
        "n_tiles": n_tiles,
        "n_runs": {name: len(v) for name, v in seconds.items()},
        "seconds": {name: round(v, 3) for name, v in median.items()},
    }
    for precision in ("fp32", "bf16"):
        ours = median[f"lamella_{precision}"]
        pairs = zip(seconds[f"lamella_{precision}"], seconds[f"bare_{precision}"], strict=True)
        overheads = [1 - bare / all_ for all_, bare in pairs]
        result[precision] = {
            "beyond_network_fraction": round(statistics.median(overheads), 4),
            **{
                f"ratio_to_{peer}": round(ours / median[peer], 3)
                for peer in ("monai", "nnunet")
                if peer in median
            },
        }
        if "monai" in labels:
            same = (labels["monai"] == labels[f"lamella_{precision}"]).mean()
            result[precision]["agreement_with_monai"] = round(float(same), 6)
    return result


def bench_preview(size, model):
    """When the preview and the end of a whole run of the engine come, seconds from the call."""
    from lamella.engines.engine import EngineJob
    from lamella.engines.registry import load_engine
    from lamella.models.store import find_model
    from lamella.wire.event import PreviewEvent
    from lamella.wire.request import InputDoc, SegmentRequest

    class Clock:
        first = None

        def emit(self, event):
            if isinstance(event, PreviewEvent) and self.first is None:
                self.first = time.perf_counter()

        def check(self):
            pass

    data = np.random.default_rng(0).standard_normal((size,) * 3).astype(np.float32)
    volume = Volume.from_array(data, spacing=(1, 1, 1), unit="nm")
    request = SegmentRequest(input=InputDoc(path="noise"), model=model)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        job = EngineJob(volume, request, find_model(model), Path(folder))
        result = load_engine("lamella").segment(job, clock)
        whole = time.perf_counter() - began
    return {
        "size": size,
        "model": model,
        "n_tiles": result.tiles_planned,
        "preview_seconds": round(clock.first - began, 3),
        "whole_seconds": round(whole, 3),
        "fraction": round((clock.first - began) / whole, 4),
    }


# -- memory: each case in a process of its own, peak of private memory beyond imports and network


def own_memory_mb(case, shape, n_classes):
    """Peak beyond what was there before the run, MiB, measured in a new process."""
    command = [sys.executable, __file__, "measure", case, ",".join(map(str, shape)), str(n_classes)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output.strip().splitlines()[-1])


def synthetic(shape):
    """An input that is computed where it is read, so that it takes no memory itself."""

    def read(slices):
        z, y, x = (np.arange(s.start, s.stop, dtype=np.float32) for s in slices)
        return np.sin(z)[:, None, None] * np.cos(y)[:, None] + x / shape[2]

    return Volume.from_array(FunctionArray(shape, np.float32, read))


class Pointwise:
    """A network that costs nothing: what is left is the driver."""

    name, device, precision = "pointwise", "cpu", "fp32"
    batch_shape = (1, 1, *TILE)

    def __init__(self, n_outputs):
        self.n_outputs = n_outputs
        self._scale = np.linspace(-1, 1, n_outputs, dtype=np.float32).reshape(1, -1, 1, 1, 1)

    def __call__(self, batch):
        return batch * self._scale


def measure(case, shape, n_classes):
    """Run one case and print its peak, MiB."""
    if case == "monai":
        import torch
        from monai.inferers import sliding_window_inference

        network = torch.nn.Conv3d(1, n_classes, 1)
        data = synthetic(shape).load()
        image = torch.from_numpy(data)[None, None]
        with torch.inference_mode():
            network(image[..., :64, :64, :64])
            peak = _Peak(data.nbytes)
            logits = sliding_window_inference(image, TILE, 1, network, overlap=0.5, mode="gaussian")
            logits[0].argmax(0).to(torch.uint8)
        print(peak.mb())
        return
    with tempfile.TemporaryDirectory() as folder:
        store = disk_labels(Path(folder) / "labels.ome.zarr", shape)
        plan = make_plan(shape, tile=TILE, overlap_fraction=0.5)
        peak = _Peak(0)
        execute(
            Execution(
                plan=plan,
                source=VolumeSlabs(synthetic(shape)),
                runtime=Pointwise(n_classes),
                decoder=Argmax(n_classes),
                grid=GridMap.make(plan.shape, plan.shape),
                labels=store,
            ),
            Silent(),
        )
        print(peak.mb())


def disk_labels(path, shape):
    """Labels as the engine writes them."""
    from lamella.inference.layers import LabelLayers
    from lamella.io.label_store import create_labels

    like = synthetic(shape)
    return LabelLayers(create_labels(path, like=like, dtype=np.uint8, chunks=(32, 128, 128)))


class _Peak:
    """Peak resident memory of this process beyond now; the input counts where it is held."""

    def __init__(self, held_bytes):
        # Writing 5 resets the peak (Linux).
        Path("/proc/self/clear_refs").write_text("5")
        self._before = self._read("VmRSS") - held_bytes / 2**20

    def mb(self):
        return round(self._read("VmHWM") - self._before, 1)

    @staticmethod
    def _read(key):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) / 1024
        raise KeyError(key)


def bench_memory(shapes):
    """Peaks of the loop alone, MiB."""
    cases = {}
    for case, shape, n_classes in shapes:
        name = f"{case} {'x'.join(map(str, shape))} {n_classes} classes"
        cases[name] = own_memory_mb(case, shape, n_classes)
        print(name, cases[name], "MiB", flush=True)
    return cases


MEMORY_CASES = (
    ("lamella", (256, 256, 256), 4),
    ("lamella", (4096, 256, 256), 4),
    ("lamella", (384, 384, 384), 8),
    ("monai", (384, 384, 384), 8),
)


def save(name, result):
    """Write a result beside earlier ones."""
    RESULTS.mkdir(exist_ok=True)
    result = {"n_cpus": os.cpu_count(), "load_average": os.getloadavg()[0], **result}
    path = RESULTS / f"inference-{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(path.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    timing = commands.add_parser("time")
    timing.add_argument("--size", type=int, default=192)
    timing.add_argument("--network", choices=("small", "large"), default="small")
    timing.add_argument("--repeats", type=int, default=3)
    timing.add_argument("--monai", type=int, default=2, help="repeats of MONAI")
    timing.add_argument("--nnunet", type=int, default=1, help="repeats of nnU-Net")
    timing.add_argument("--threads", type=int, help="1 = compare CPU seconds on a busy machine")
    preview = commands.add_parser("preview")
    preview.add_argument("--size", type=int, default=256)
    preview.add_argument("--model", default="membrane-3d")
    commands.add_parser("memory")
    one = commands.add_parser("measure")
    one.add_argument("case")
    one.add_argument("shape")
    one.add_argument("n_classes", type=int)
    arguments = parser.parse_args()
    if arguments.command == "measure":
        shape = tuple(int(n) for n in arguments.shape.split(","))
        measure(arguments.case, shape, arguments.n_classes)
    elif arguments.command == "preview":
        save(f"preview-{arguments.size}", bench_preview(arguments.size, arguments.model))
    elif arguments.command == "memory":
        save("memory", {"peak_mb": bench_memory(MEMORY_CASES)})
    else:
        peers = {"monai": arguments.monai, "nnunet": arguments.nnunet}
        result = bench_time(
            arguments.size, arguments.network, arguments.repeats, peers, arguments.threads
        )
        suffix = f"-{arguments.threads}-thread" if arguments.threads else ""
        save(f"time-{arguments.network}-{arguments.size}{suffix}", result)


if __name__ == "__main__":
    main()
