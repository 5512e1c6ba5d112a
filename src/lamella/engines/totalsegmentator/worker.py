"""TotalSegmentator's end of the line: runs inside its own environment, knows nothing of Lamella.

The package is run as it is, through its own ``totalsegmentator()``; what Lamella wants of it is
asked at a few joints, replaced by name in this process only:

=================================  ============================================================
joint                              why
=================================  ============================================================
``download_pretrained_weights``    nothing is fetched, and no older weights are deleted
``send_usage_stats`` and kin       nothing is sent or counted
``get_output_folder``              weights lie in the model store, dataset by dataset
``nnUNetv2_predict``               a finished part is kept, and taken when the run goes on
``predict_from_files``             in this process: the pools of the original start the worker anew
``_internal_...`` of the predictor  progress and cancellation by the tile
``change_spacing``, ``undo_...``   confidence follows the labels back to the input's grid
``torch.load``                     no code out of a checkpoint, unless the user trusts it
=================================  ============================================================

Requests: ``{"kind": "describe"}`` answers what the installed version can do;
``{"kind": "segment", ...}`` is written by :mod:`lamella.engines.totalsegmentator.engine`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import os
import pickle
import resource
import sys
import tempfile
import types
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, sys.argv[1])
child: Any = import_module("child")

PACKAGE = "TotalSegmentator"


def main(channel: Any) -> None:
    """Answer one request."""
    _settle_in(channel.exchange, channel.request.get("licence", ""))
    if channel.request["kind"] == "describe":
        channel.result(**describe())
    else:
        segment(channel)


def _settle_in(folder: Path, licence: str) -> None:
    """A home, a weights folder and a place for temporary files of this run alone."""
    places = {name: folder / name for name in ("home", "weights", "temporary")}
    for place in places.values():
        place.mkdir(exist_ok=True)
    # The file by which the package learns that it may send nothing.
    config: dict[str, Any] = {
        "totalseg_id": "lamella",
        "send_usage_stats": False,
        "prediction_counter": 0,
        "statistics_disclaimer_shown": True,
    }
    if licence:
        config["license_number"] = licence
    (places["home"] / "config.json").write_text(json.dumps(config), encoding="utf-8")
    os.environ.update(  # noqa: TID251 - the engine's own process
        TOTALSEG_HOME_DIR=str(places["home"]),
        TOTALSEG_WEIGHTS_PATH=str(places["weights"]),
        nnUNet_def_n_proc=str(max(1, min(8, os.cpu_count() or 1))),
    )
    tempfile.tempdir = str(places["temporary"])


def _api() -> Any:
    """The package's main module, with a defect mended.

    On the CPU, ``convert_device_to_string`` of 2.18 gives None, so that tasks whose crop is a task
    of its own (teeth) fail there.
    """
    api: Any = import_module("totalsegmentator.python_api")
    convert = getattr(api, "convert_device_to_string", None)
    if convert is not None:
        api.convert_device_to_string = lambda device: convert(device) or str(device)
    return api


# --- What the installed version can do --------------------------------------------------------


def describe() -> dict[str, Any]:
    """Every task with its classes, and the weights each way of running it needs.

    The weights are found by running the package with its predictor replaced by one that only
    takes notes: no rule of the package is written down a second time.
    """
    registry = import_module("totalsegmentator.registry")
    config = import_module("totalsegmentator.map_tasks_config")
    api = _api()
    tasks = {}
    for task in registry.TASKS:
        raw = config.TASK_CONFIGS.get(task)
        if raw is None or task == "test":
            continue
        with contextlib.suppress(KeyError):
            tasks[task] = {
                "modality": registry.task_modality(task),
                "is_licensed": bool(registry.requires_license(task) or raw.get("commercial")),
                "classes": {str(k): v for k, v in registry.get_task_classes(task).items()},
                "modes": {mode: _variants(api, task, mode) for mode in _modes(raw)},
            }
    return {
        "version": version(PACKAGE),
        "versions": _versions(),
        "arguments": sorted(inspect.signature(api.totalsegmentator).parameters),
        "tasks": tasks,
        "weights": {str(k): _weight(v) for k, v in config.TASK_ID_WEIGHTS_CONFIGS.items()},
        "parts": _parts(),
        "base_url": "https://github.com/wasserth/TotalSegmentator/releases/download",
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in (PACKAGE, "nnunetv2", "torch"):
        with contextlib.suppress(Exception):
            found[name] = version(name)
    return found


def _modes(raw: dict[str, Any]) -> list[str]:
    return list(raw.get("sub_modes", ["default"]))


def _weight(raw: dict[str, Any]) -> dict[str, Any]:
    release = raw.get("version")
    return {
        "folder": str(raw["foldername"]),
        "release": None if release in (None, "TODO") else release,
    }


def _parts() -> dict[str, list[str]]:
    """Class names of each dataset of a task that is made of several, by dataset id."""
    module = vars(import_module("totalsegmentator.map_to_binary"))
    maps = [value for name, value in module.items() if name.startswith("class_map_")]
    parts: dict[str, list[str]] = {}
    for name, part_names in module.items():
        if not name.startswith("map_taskid_to_partname"):
            continue
        for candidates in maps:
            if set(part_names.values()) <= set(candidates):
                for dataset, part in part_names.items():
                    known = parts.setdefault(str(dataset), [])
                    known.extend(v for v in candidates[part].values() if v not in known)
    return parts


def _variants(api: Any, task: str, mode: str) -> dict[str, list[dict[str, Any]]]:
    """Stages by the options that change which weights are needed."""
    classes = import_module("totalsegmentator.map_to_binary").class_map[task]
    roi = {"roi_subset": [next(iter(classes.values()))]}
    wishes: dict[str, dict[str, Any]] = {
        "plain": {},
        "robust_crop": {"robust_crop": True},
        "body_seg": {"body_seg": True},
        "roi_subset": roi,
        "roi_subset+robust_crop": {**roi, "robust_crop": True},
    }
    found = {}
    for name, options in wishes.items():
        notes: list[dict[str, Any]] = []
        with _note_taker(api, notes), contextlib.suppress(ValueError):
            wanted = {"fast": mode == "fast", "fastest": mode == "fastest", **options}
            api.totalsegmentator(_nothing(), None, ml=True, task=task, quiet=True, **wanted)
            found[name] = notes
    return found


def _nothing() -> Any:
    import numpy as np

    nib: Any = import_module("nibabel")

    return nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4))


@contextlib.contextmanager
def _note_taker(api: Any, notes: list[dict[str, Any]]) -> Any:
    """Replace what predicts, loads weights and asks for licences by what only takes notes."""

    def predict(*args: Any, **kwargs: Any) -> tuple[Any, Any, None]:
        datasets = args[2] if len(args) > 2 else kwargs["task_id"]
        spacing = kwargs.get("resample")
        notes.append(
            {
                "datasets": list(datasets) if isinstance(datasets, list) else [datasets],
                "spacing_xyz": [float(spacing)] * 3 if isinstance(spacing, float) else spacing,
                "model": kwargs.get("model"),
                "trainer": kwargs.get("trainer"),
                "plans": kwargs.get("plans") or "nnUNetPlans",
                "folds": kwargs.get("folds"),
                "step": 0.8 if str(kwargs.get("task_name")).startswith("total") else 0.5,
            }
        )
        return _nothing(), _nothing(), None

    stand_in = types.ModuleType("totalsegmentator.nnunet")
    vars(stand_in)["nnUNet_predict_image"] = predict
    known = sys.modules.get("totalsegmentator.nnunet")
    replaced = {
        name: getattr(api, name)
        for name in ("download_pretrained_weights", "show_license_info")
        if hasattr(api, name)
    }
    sys.modules["totalsegmentator.nnunet"] = stand_in
    for name in replaced:
        setattr(api, name, lambda *_: None)
    try:
        yield
    finally:
        for name, value in replaced.items():
            setattr(api, name, value)
        if known is None:
            del sys.modules["totalsegmentator.nnunet"]
        else:
            sys.modules["totalsegmentator.nnunet"] = known


# --- A segmentation -----------------------------------------------------------------------------


def segment(channel: Any) -> None:
    """Segment one volume: the preview first, then the whole."""
    request = channel.request
    api = _api()
    device = _device(channel, request["device"])
    _check_licence(channel, api)
    _guard_checkpoints(channel, is_trusted=request["is_trusted"])
    follower = _sibling("worker_confidence").Follower
    session = _sibling("worker_session").Session(channel, follower)
    session.install(api, import_module("totalsegmentator.nnunet"), device)
    image = _image(channel)
    preview = request["preview"]
    if preview is not None:
        session.begin("preview", preview["stages"], is_coarse=preview["is_coarse"])
        labels = session.run(api, image, device, preview["arguments"])
        _announce(channel, labels, preview)
    session.begin("tiles", request["stages"], measures=request["confidence"])
    labels = session.run(api, image, device, request["arguments"])
    channel.save("labels.npy", labels)
    maps = session.follower.maps
    if maps is not None:
        channel.save("confidence.npy", maps.transpose(0, 3, 2, 1))
    session.tiles.close()
    channel.result(
        has_confidence=maps is not None,
        tiles=session.tiles.done,
        device=device,
        peak_bytes=_peak_bytes(),
        versions=_versions(),
    )


def _announce(channel: Any, labels: Any, preview: dict[str, Any]) -> None:
    """Leave the middle voxel of every block as the coarse labels."""
    import numpy as np

    if preview["keep"] is not None:
        labels = np.where(np.isin(labels, preview["keep"]), labels, 0).astype(labels.dtype)
    picks = [
        np.minimum(np.arange(0, n, f) + f // 2, n - 1)
        for n, f in zip(labels.shape, preview["factors"], strict=True)
    ]
    channel.save("preview.npy", labels[np.ix_(*picks)])
    channel.preview("preview.npy", preview["factors"])


def _device(channel: Any, wanted: str) -> str:
    import torch

    if wanted == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda"):
        number = int(wanted.partition(":")[2] or 0)
        if number >= torch.cuda.device_count():
            channel.fail(
                "device_unavailable",
                f"the device {wanted} is not there for TotalSegmentator: its environment sees"
                f" {torch.cuda.device_count()} GPUs",
                "use --device cpu, or check the driver of the GPU",
            )
        return f"gpu:{number}"
    return wanted


def _check_licence(channel: Any, api: Any) -> None:
    """What the package itself says of the licence number, before minutes are spent."""
    if channel.request["is_licensed"]:
        status, message = api.has_valid_license_offline()
        if status != "yes":
            channel.fail("invalid_input", str(message), channel.request["licence_hint"])


def _guard_checkpoints(channel: Any, *, is_trusted: bool) -> None:
    """Let ``torch.load`` give tensors and plain values only, and tell what is wrong with a file."""
    import numpy as np
    import torch

    original = torch.load
    if not is_trusted:
        scalar = np.float64(0).__reduce__()[0]
        kinds = [type(np.dtype(code)) for code in ("f8", "f4", "f2", "i8", "i4", "u1", "?")]
        # Checkpoints hold NumPy's numbers (losses, scores) beside the tensors.
        allowed = [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *kinds]
        torch.serialization.add_safe_globals(allowed)

    def load(file: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs["weights_only"] = not is_trusted
        try:
            return original(file, *args, **kwargs)
        except pickle.UnpicklingError as error:
            channel.fail(
                "invalid_model",
                f"{file} holds more than tensors and plain values: {str(error).splitlines()[0]}",
                "such a file can run code of its own; if you know where it comes from, use --trust",
            )
        except (RuntimeError, EOFError, ValueError) as error:
            channel.fail(
                "invalid_model",
                f"{file} is damaged: {str(error).splitlines()[0]}",
                "remove these weights and pull or import them again",
            )

    torch.load = load


def _image(channel: Any) -> Any:
    """The volume as the package wants it.

    The package asks two things of an affine: the spacing, and which way each axis runs. It gets
    exactly these, on axes at right angles: headers round directions to 32 bits, which ITK then
    refuses, and a rotated scan is worked on along its own axes anyhow.
    """
    import numpy as np

    nib: Any = import_module("nibabel")
    voxels = channel.load("image.npy").transpose(2, 1, 0)
    orientation = nib.orientations.io_orientation(np.asarray(channel.request["affine_xyz"]))
    affine = np.zeros((4, 4))
    affine[3, 3] = 1.0
    for axis, (world, sign) in enumerate(orientation):
        affine[int(world), axis] = sign * channel.request["spacing_xyz"][axis]
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    return image


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _sibling(name: str) -> Any:
    """Load a file beside this one by its path: no folder of Lamella is on the search path."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"lamella_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    child.serve(main)
