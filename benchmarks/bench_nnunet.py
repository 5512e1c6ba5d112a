"""The engine for nnU-Net models against nnU-Net's own commands: same model, same image, this CPU.

    python benchmarks/bench_nnunet.py export --repeats 3
    python benchmarks/bench_nnunet.py run --size 128 --repeats 3

``export``: 20 classes from 128³ to 192³, resampled and reduced to labels; time interleaved in one
process, memory beyond the logits themselves in a process each. ``run``: whole commands from file to
file, ``nnUNetv2_predict_from_modelfolder`` and ``lamella segment``, interleaved; memory is the
highest sum over a command's processes. The model is one that nnU-Net itself plans, preprocesses and
trains first, for a minute or two; the image is one that it did not see. Where labels differ is
traced: nnU-Net runs once more with its sums in float32 instead of half precision.
Results go to benchmarks/results/nnunet-*.json.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results"
HELPERS = Path(__file__).parent.parent / "tests" / "engines" / "nnunet"


def helpers():
    """The builders of models that the tests use."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("nnunet_models", HELPERS / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def status_mb(field):
    """A field of this process's status, such as VmRSS or VmHWM (highest so far), MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


def extra_mb(run):
    """Memory at its highest while something runs, beyond what was held before, MB."""
    before = status_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far starts anew
    run()
    return status_mb("VmHWM") - before


# --- Resampling and reducing --------------------------------------------------------------------


def logits_of(n_classes, size):
    """Smooth logits, as a trained network gives them, float16 as nnU-Net keeps them."""
    from scipy.ndimage import zoom

    rng = np.random.default_rng(0)
    coarse = rng.normal(0, 3, (n_classes, size // 8, size // 8, size // 8)).astype(np.float32)
    logits = np.empty((n_classes, size, size, size), np.float16)
    for channel, values in enumerate(coarse):
        logits[channel] = zoom(values, 8, order=1)
    return logits


def nnunet_export(n_classes, size, target):
    """A function that exports logits as nnU-Net does."""
    with contextlib.redirect_stdout(io.StringIO()):
        from nnunetv2.inference.export_prediction import (
            convert_predicted_logits_to_segmentation_with_correct_shape as convert,
        )
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    nn = helpers()
    ratio = target / size
    settings = nn.configuration_of((64, 64, 64), (ratio,) * 3)
    plans = PlansManager(nn.plans_of({"3d_fullres": settings}))
    labels = {"background": 0} | {f"class {i}": i for i in range(1, n_classes)}
    manager = plans.get_label_manager(nn.dataset_of(labels))
    shape = (target,) * 3
    properties = {
        "spacing": (1.0, 1.0, 1.0),
        "shape_after_cropping_and_before_resampling": shape,
        "shape_before_cropping": shape,
        "bbox_used_for_cropping": [[0, target]] * 3,
    }
    configuration = plans.get_configuration("3d_fullres")

    def export(logits):
        return convert(logits, plans, configuration, manager, properties, num_threads_torch=2)

    return export


def lamella_export(n_classes, size, target):
    """A function that exports logits band by band, as they would leave the tile loop."""
    from lamella.engines.nnunet.export import make_output_grid, one_blas_thread
    from lamella.engines.nnunet.resample import Rule
    from lamella.inference.decode import Argmax
    from lamella.inference.outlet import LabelSink, Place, ResamplingOutlet
    from lamella.volume.box import Box

    class Memory:
        unit = (32, target, target)

        def __init__(self):
            self.array = np.zeros((target,) * 3, np.uint8)

        def write(self, box, values):
            self.array[box.slices()] = values

        def sync(self):
            pass

    class NoJournal:
        def add(self, column, layers):
            pass

    shape = (target,) * 3
    whole = Box.from_shape(shape)
    grid = make_output_grid(shape, whole, (size,) * 3, Rule(order=1), None)
    output = Box((0, 0), shape[1:])

    def export(logits):
        memory = Memory()
        sink = LabelSink(
            Place(grid, output, 0, (NoJournal(), 0)), Argmax(n_classes), (memory, None)
        )
        opened = ResamplingOutlet(grid, output, first_layer=0, sink=sink, n_threads=2)
        with one_blas_thread(), opened as outlet:
            for z in range(0, size, 4):
                outlet.put(logits[:, z : z + 4].astype(np.float32), z)
        return memory.array

    return export


def bench_export(words):
    n_classes, size, target = words.classes, words.size or 128, words.target
    if words.child:
        export = {"nnunet": nnunet_export, "lamella": lamella_export}[words.child]
        run = export(n_classes, size, target)
        logits = logits_of(n_classes, size)
        print(json.dumps({"mb": extra_mb(lambda: run(logits))}))
        return
    logits = logits_of(n_classes, size)
    theirs, ours = (make(n_classes, size, target) for make in (nnunet_export, lamella_export))
    times = {"nnunet": [], "lamella": []}
    for _ in range(words.repeats):
        for name, run in (("nnunet", theirs), ("lamella", ours)):
            began = time.perf_counter()
            result = run(logits)
            times[name].append(time.perf_counter() - began)
            if name == "nnunet":
                expected = result
    memory = {
        name: json.loads(
            subprocess.run(
                [
                    *(sys.executable, __file__, "export", "--child", name),
                    *("--size", str(size), "--target", str(target)),
                    *("--classes", str(n_classes)),
                ],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.splitlines()[-1]
        )["mb"]
        for name in times
    }
    report(
        "export",
        {name: statistics.median(values) for name, values in times.items()},
        memory,
        {"agreement": float(np.mean(expected == result)), "classes": n_classes},
    )


# --- Whole runs ---------------------------------------------------------------------------------


def watched(command, environment):
    """Run a command; its time and the highest sum of memory over its processes, MB."""
    import psutil

    began = time.perf_counter()
    process = psutil.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    highest = 0
    while process.poll() is None:
        total = 0
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += one.memory_info().rss
        highest = max(highest, total)
        time.sleep(0.05)
    output = process.stdout.read().decode()
    assert process.returncode == 0, output[-3000:]
    return time.perf_counter() - began, highest / 2**20


def train(nn, base, words):
    """A model of balls told apart by their grey value, and how long its making took."""
    began = time.perf_counter()
    model = nn.train(
        base,
        shape=(80, 80, 80),
        spacing=(1.0, 1.0, 1.0),
        kinds=[(8.0, 200 + 60 * kind) for kind in range(words.classes - 1)],
        patch=(32, 32, 32),
        run_patch=(64, 64, 64),
        plan_spacing=(1.25, 1.25, 1.25),
        features=[words.features * 2**stage for stage in range(5)],
        n_conv=2,
        n_iterations=words.iterations,
        held_out=(words.size or 128,) * 3,
    )
    return model, time.perf_counter() - began


def compare(command, own, exact, truth):
    """How far labels agree, and what of the difference is nnU-Net's rounding."""
    differs = command != own
    # Voxels whose label nnU-Net itself changes with its precision.
    traced = float(np.mean((command != exact)[differs])) if differs.any() else 1.0
    return {
        "agreement": float(np.mean(~differs)),
        "agreement_float32": float(np.mean(own == exact)),
        "agreement_of_nnunet_with_itself": float(np.mean(command == exact)),
        "difference_traced": traced,
        "classes_found": len(np.unique(command)),
        "right": float(np.mean(command == truth)),
        "foreground": float(np.mean(truth > 0)),
    }


def bench_run(words):
    import SimpleITK as sitk  # noqa: N813 - its usual name

    nn = helpers()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "training").mkdir()
        model, trained_s = train(nn, base / "training", words)
        print(f"trained for {trained_s:.0f} s, all told", flush=True)
        (base / "in").mkdir()
        source = base / "in" / "case_0000.nii.gz"
        source.symlink_to(base / "training" / "held_out.nii.gz")
        environment = {**os.environ, "nnUNet_n_proc_DA": "2"}
        bin_folder = Path(sys.executable).parent
        peer = [
            *(bin_folder / "nnUNetv2_predict_from_modelfolder", "-i", base / "in"),
            *("-o", base / "out", "-m", model, "-f", "0", "--disable_tta", "-device", "cpu"),
            *("-npp", "1", "-nps", "1", "--disable_progress_bar"),
        ]
        own = [
            *(bin_folder / "lamella", "segment", source, "--model", f"nnunet:{model}"),
            *("-o", base / "own.nii.gz", "--run-dir", base / "run", "--overwrite", "--fresh"),
        ]
        times, memory = {"nnunet": [], "lamella": []}, {"nnunet": [], "lamella": []}
        for _ in range(words.repeats):
            for name, command in (("nnunet", peer), ("lamella", own)):
                took, highest = watched([str(part) for part in command], environment)
                times[name].append(took)
                memory[name].append(highest)
        image, truth, command_labels, own_labels = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
            for path in (
                source,
                base / "training" / "held_out_labels.nii.gz",
                base / "out" / "case.nii.gz",
                base / "own.nii.gz",
            )
        )
        exact = nn.theirs([model], image[None], (1.0, 1.0, 1.0), exact=True)
        phases = json.loads((base / "run" / "manifest.json").read_text())["timings_s"]
    report(
        "run",
        {name: statistics.median(values) for name, values in times.items()},
        {name: statistics.median(values) for name, values in memory.items()},
        {
            **compare(command_labels, own_labels, exact, truth),
            "size": len(image),
            "classes": words.classes,
            "iterations": words.iterations,
            "trained_s": trained_s,
            "phases_s": phases,
        },
    )


def report(name, seconds, megabytes, more):
    """Print and keep a comparison."""
    document = {
        "seconds": seconds,
        "time_ratio": seconds["lamella"] / seconds["nnunet"],
        "megabytes": megabytes,
        "memory_ratio": megabytes["lamella"] / megabytes["nnunet"],
        **more,
    }
    print(f"{name}: nnU-Net {seconds['nnunet']:.2f} s, {megabytes['nnunet']:.0f} MB;", end=" ")
    print(f"lamella {seconds['lamella']:.2f} s, {megabytes['lamella']:.0f} MB;", end=" ")
    print(f"ratios {document['time_ratio']:.2f} and {document['memory_ratio']:.2f};", end=" ")
    print(f"{more['agreement']:.6f} of voxels equal")
    if "agreement_float32" in more:
        print(
            f"   {more['agreement_float32']:.6f} equal to nnU-Net with float32 sums, to which its"
            f" command is equal in {more['agreement_of_nnunet_with_itself']:.6f};"
            f" {more['difference_traced']:.0%} of the difference is this rounding"
        )
        print(
            f"   the command finds {more['classes_found']} of {more['classes']} classes,"
            f" {more['right']:.4f} of voxels right ({1 - more['foreground']:.4f} are background)"
        )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"nnunet-{name}.json").write_text(json.dumps(document, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["export", "run"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", type=int, help="of the network's grid, or of the image")
    parser.add_argument("--target", type=int, default=192)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--features", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=150, help="of training, for run")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    words = parser.parse_args()
    {"export": bench_export, "run": bench_run}[words.what](words)


if __name__ == "__main__":
    main()
