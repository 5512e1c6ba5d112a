"""Runs Cellpose 3 or 4 inside its own environment; knows nothing of Lamella but ``child``.

Slices: the worker asks for work until there is none; each answer names an image (y, x, c), already
normalised, and gets labels and, where asked for, two maps of confidence. Ortho: the three planes'
flows go to ``flows_0.npy`` ... below the state folder, a fixed number of planes at a time, so that
an interrupted run goes on with the same batches; then one pass of the dynamics in 3-D.

Both versions are driven below ``eval``, which hides progress, guesses axes and, for an unknown
name, runs another model than the one asked for.
"""

# What is imported here lies in the engine's environment, and `fail` never returns.
# pyright: reportMissingImports=false, reportOptionalMemberAccess=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import importlib
import pickle
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import child

PLANES_AT_ONCE = 16
MAX_SIZE_FRACTION = 0.4
"""Objects above this share of the image are taken for background, as Cellpose does."""

# run_3D of both versions: planes across, the axes back, and which flows a plane's two are.
TRANSPOSED = ((0, 1, 2, 3), (1, 0, 2, 3), (2, 0, 1, 3))
BACK = ((0, 1, 2), (1, 0, 2), (1, 2, 0))
FLOWS = ((1, 2), (0, 2), (0, 1))


class Runner:
    """A loaded network and how it is run."""

    def __init__(self, channel):
        import torch

        self.channel = channel
        self.request = channel.request
        self.is_v3 = self.request["version"] == 3
        if self.request["threads"]:
            torch.set_num_threads(self.request["threads"])
        self.device = self._device(torch)
        self.precision = self._precision()
        self.weights = self._weights()
        state = self._state(torch)
        self.model = self._load(state)
        self._check(state)

    # -- the model

    def _device(self, torch):
        wanted = self.request["device"]
        if wanted == "auto":
            wanted = "cuda" if torch.cuda.is_available() else "cpu"
        if wanted.startswith("cuda") and not torch.cuda.is_available():
            self.channel.fail(
                "device_unavailable",
                "CUDA was asked for, but PyTorch sees no CUDA device",
                "run with --device cpu",
            )
        try:
            return torch.device(wanted)
        except RuntimeError:
            self.channel.fail(
                "device_unavailable", f"unknown device {wanted!r}", "use cpu, cuda or cuda:N"
            )

    def _precision(self):
        wanted = self.request["precision"]
        if wanted != "auto":
            return wanted
        return "fp32" if self.is_v3 or self.device.type == "cpu" else "bf16"

    def _weights(self):
        if self.request["weights"]:
            return Path(self.request["weights"])
        # Only with --option download=true: the host says so by allowing the network.
        from cellpose import models

        try:
            return Path(models.cache_model_path(self.request["file"]))
        except OSError as error:
            self.channel.fail(
                "download_failed",
                f"the weights {self.request['file']!r} could not be fetched: {error}",
                "fetch the file elsewhere, then: lamella models import FILE",
            )

    def _state(self, torch):
        try:
            state = torch.load(self.weights, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            self.channel.fail(
                "invalid_model",
                f"{self.weights} holds more than weights (pickled code), and is not opened",
                "take the model from where it was published, and save its state_dict only",
            )
        except (RuntimeError, EOFError, OSError, ValueError) as error:
            self.channel.fail(
                "invalid_model",
                f"{self.weights} is truncated or damaged: {str(error).splitlines()[0]}",
                "fetch or copy it again",
            )
        if not isinstance(state, dict):
            self.channel.fail("invalid_model", f"{self.weights} holds no weights by name")
        return {name.removeprefix("module."): value for name, value in state.items()}

    def _load(self, state):
        from cellpose import models

        if self.is_v3:
            first = state.get("downsample.down.res_down_0.conv.conv_0.2.weight")
            self.n_channels = 2 if first is None else int(first.shape[1])
            # Conversion to MKL-DNN's layout, batch by batch, costs more than it brings.
            return models.CellposeModel(
                device=self.device,
                pretrained_model=str(self.weights),
                nchan=self.n_channels,
                mkldnn=False,
            )
        self.n_channels = 3
        _size_sam(state)
        return models.CellposeModel(
            device=self.device,
            pretrained_model=str(self.weights),
            use_bfloat16=self.precision == "bf16",
        )

    def _check(self, state):
        """Cellpose loads what fits and leaves the rest at random; that is no model."""
        wanted = self.model.net.state_dict()
        free = ("diam_mean", "diam_labels", "num_batches_tracked")
        missing = [
            name
            for name, value in wanted.items()
            if not name.endswith(free)
            and tuple(getattr(state.get(name), "shape", ())) != tuple(value.shape)
        ]
        if missing:
            self.channel.fail(
                "invalid_model",
                f"{self.weights} does not fit Cellpose {self.request['version']}:"
                f" {len(missing)} of {len(wanted)} tensors are missing or of another shape, such"
                f" as {missing[0]}",
                "models of other versions, and of transformers, cannot be run by this engine",
            )

    # -- running it

    def rescale(self):
        """How much images are enlarged so that objects are as large as in training."""
        diameter = self.request["diameter"]
        if self.is_v3:
            return float(self.model.diam_mean) / float(diameter or self.model.diam_labels)
        return 30.0 / float(diameter) if diameter else 1.0

    def pad_channels(self, image):
        """Cellpose 3 takes two channels, the second of zeros where there is none."""
        import numpy as np

        lacking = self.n_channels - image.shape[-1] if self.is_v3 else 0
        if lacking <= 0:
            return np.asarray(image)
        return np.pad(image, [(0, 0)] * (image.ndim - 1) + [(0, lacking)])

    def network(self):
        """Arguments of the network's driver that are the same everywhere."""
        return {
            "batch_size": self.request["batch"],
            "augment": self.request["mirrors"],
            "tile_overlap": self.request["overlap"],
            "bsize": self.request["tile"],
        }

    def thresholds(self, shape, rescale):
        """Arguments of the dynamics."""
        return {
            "niter": self.request["niter"] or max(1, int(200 / rescale)),
            "cellprob_threshold": self.request["cellprob_threshold"],
            "flow_threshold": self.request["flow_threshold"],
            "min_size": self.request["min_size"],
            "max_size_fraction": MAX_SIZE_FRACTION,
        }

    def check_finite(self, *arrays):
        """A network that gives NaN gives objects of nothing."""
        import numpy as np

        if not all(np.isfinite(array).all() for array in arrays):
            self.channel.fail(
                "invalid_model",
                "the network gives values that are not finite (NaN or infinity)",
                "its training diverged, or the precision does not suffice: try --precision fp32",
            )

    def plane(self, image):
        """Labels of a slice, its flows and the logit of its cell probability."""
        import numpy as np

        rescale = self.rescale()
        x = self.pad_channels(image)[None]
        flows, logit, _ = self.model._run_net(
            x, rescale=rescale, resample=True, do_3D=False, **self.network()
        )
        self.check_finite(flows, logit)
        masks = self.model._compute_masks(
            x.shape, flows, logit, do_3D=False, **self.thresholds(x.shape, rescale)
        )
        masks = np.asarray(masks, np.uint32).reshape(image.shape[:2])
        return masks, flows.reshape(2, *masks.shape), logit.reshape(masks.shape)


def main(channel):
    """Load the model, tell about it, and do what is asked for."""
    channel.log("loading the model")
    runner = Runner(channel)
    channel.ask(
        "ready",
        device=str(runner.device),
        precision=runner.precision,
        weights=str(runner.weights),
        diameter=float(runner.request["diameter"] or _diameter(runner)),
    )
    if channel.request["mode"] == "ortho":
        _slices(runner)
        _ortho(runner)
    else:
        _slices(runner)
    channel.result()


def _diameter(runner):
    return runner.model.diam_labels if runner.is_v3 else 30.0


def _slices(runner):
    channel = runner.channel
    while True:
        task = channel.ask("slice")
        if task["image"] is None:
            return
        masks, flows, logit = runner.plane(channel.load(task["image"]))
        facts = {}
        if task["confidence"]:
            facts["maps"] = channel.save("maps.npy", _confidence(masks, flows, logit, runner))
        channel.block((0, 0), masks.shape, channel.save("labels.npy", masks), **facts)


def _confidence(masks, flows, logit, runner):
    """Probability of what was chosen, and how far flows are from those of the objects; uint8."""
    import numpy as np

    probability = 1 / (1 + np.exp(-np.asarray(logit, np.float32)))
    probability = np.where(masks > 0, probability, 1 - probability)
    error = np.zeros(int(masks.max()) + 1, np.float32)
    if masks.any():
        error[1:] = _flow_errors(masks, flows, runner)
    maps = np.stack([probability, np.clip(error, 0, 1)[masks]])
    return np.rint(255 * maps).astype(np.uint8)


def _flow_errors(masks, flows, runner):
    import numpy as np
    from cellpose import dynamics

    labels = masks.astype(np.int32)
    if masks.ndim == 2:
        if runner.is_v3:
            from cellpose import metrics

            return metrics.flow_error(labels, flows, runner.device)[0]
        return dynamics.flow_error(labels, flows, runner.device)[0]
    again = dynamics.masks_to_flows_gpu_3d(labels, device=runner.device)
    # Version 4 returns the centres as well.
    again = np.asarray(again[0] if isinstance(again, tuple) else again)
    # Sums of two planes' flows have no length of their own: directions are compared.
    length = np.sqrt((flows**2).sum(0))
    difference = ((again - flows / np.maximum(length, 1e-6)) ** 2).sum(0)
    counts = np.bincount(labels.ravel())[1:]
    return np.bincount(labels.ravel(), weights=difference.ravel())[1:] / np.maximum(counts, 1)


def _ortho(runner):
    """Flows of planes along all three axes, summed, then the dynamics in 3-D."""
    import numpy as np

    channel, request = runner.channel, runner.request
    volume = channel.load("volume.npy")
    rescale, anisotropy = runner.rescale(), request["anisotropy"]
    image = _resized_image(runner.pad_channels(volume), rescale, anisotropy, runner.is_v3)
    state = Path(request["state"])
    for axis in range(3):
        _flows_along(runner, image, axis, state / f"flows_{axis}.npy")
    shape = image.shape[:3]
    del image
    channel.progress("finding objects", 0, 1, "volumes")
    flows = _summed(state, shape)
    flows = _resized_flows(flows, volume.shape[:3], rescale, runner.is_v3)
    logit = flows[..., -1]
    vectors = np.ascontiguousarray(flows[..., :-1].transpose(3, 0, 1, 2))
    runner.check_finite(vectors, logit)
    if request["flow3D_smooth"] > 0:
        from scipy.ndimage import gaussian_filter

        vectors = gaussian_filter(vectors, (0, *[request["flow3D_smooth"]] * 3))
    channel.check()
    from cellpose import dynamics

    masks = dynamics.resize_and_compute_masks(
        vectors,
        logit,
        do_3D=True,
        device=runner.device,
        **runner.thresholds(volume.shape, rescale),
    )
    masks = np.asarray(masks, np.uint32).reshape(volume.shape[:3])
    facts = {}
    if request["confidence"]:
        facts["maps"] = channel.save("maps.npy", _confidence(masks, vectors, logit, runner))
    channel.block((0, 0, 0), masks.shape, channel.save("labels.npy", masks), **facts)
    channel.progress("finding objects", 1, 1, "volumes")


def _flows_along(runner, image, axis, path):
    """Run the network on all planes across an axis; what is done already stays."""
    import numpy as np
    from cellpose import core

    channel, request = runner.channel, runner.request
    planes = image.transpose(TRANSPOSED[axis])
    shape = (*planes.shape[:3], 3)
    done = request["done"][axis] if path.exists() else 0
    mode = "r+" if done else "w+"
    store = np.lib.format.open_memmap(path, mode=mode, dtype=np.float32, shape=shape)
    for start in range(0, shape[0], PLANES_AT_ONCE):
        stop = min(start + PLANES_AT_ONCE, shape[0])
        if stop <= done:
            continue
        channel.check()
        found, _ = core.run_net(runner.model.net, planes[start:stop], **runner.network())
        store[start:stop] = found[..., -3:]
        store.flush()
        channel.ask("planes", axis=axis, done=stop, total=shape[0])
    del store


def _summed(state, shape):
    import numpy as np

    total = np.zeros((*shape, 4), np.float32)
    for axis in range(3):
        part = np.load(state / f"flows_{axis}.npy", mmap_mode="r")
        for index, flow in enumerate(FLOWS[axis]):
            total[..., flow] += part[..., index].transpose(BACK[axis])
        total[..., -1] += part[..., -1].transpose(BACK[axis])
    return total


def _resized_image(image, rescale, anisotropy, is_v3):
    """As ``CellposeModel._run_net`` of each version does it."""
    from cellpose import transforms

    if rescale == 1.0 and anisotropy == 1.0:
        return image
    z, y, x = image.shape[:3]
    if not is_v3:
        shape = (int(z * anisotropy * rescale), int(y * rescale), int(x * rescale))
        return transforms.resize_image_3d(image, shape, no_channels=False)
    if rescale != 1.0:
        image = transforms.resize_image(image, Ly=int(y * rescale), Lx=int(x * rescale))
    turned = transforms.resize_image(
        image.transpose(1, 0, 2, 3), Ly=int(z * anisotropy * rescale), Lx=int(x * rescale)
    )
    return turned.transpose(1, 0, 2, 3)


def _resized_flows(flows, shape, rescale, is_v3):
    from cellpose import transforms

    z, y, x = shape
    if tuple(flows.shape[:3]) == tuple(shape):
        return flows
    if not is_v3:
        return transforms.resize_image_3d(flows, tuple(shape), no_channels=False)
    if rescale != 1.0:
        flows = transforms.resize_image(flows, Ly=y, Lx=x)
    if flows.shape[0] != z:
        turned = transforms.resize_image(flows.transpose(1, 0, 2, 3), Ly=z, Lx=x)
        flows = turned.transpose(1, 0, 2, 3)
    return flows


def _size_sam(state):
    """Let Cellpose build its network as large as the weights are, not always as ViT-L.

    Widths, depth and which blocks attend to all tokens are read from the weights; heads are 64 wide
    in ViT-B and ViT-L.
    """
    # The package's attribute of this name is a function.
    builder = importlib.import_module("segment_anything.build_sam")
    from cellpose import vit

    patch = state.get("encoder.patch_embed.proj.weight")
    blocks = {name.split(".")[2] for name in state if name.startswith("encoder.blocks.")}
    if patch is None or not blocks:
        return
    width, depth = int(patch.shape[0]), len(blocks)
    if (width, depth) == (1024, 24):
        return

    # Blocks with windows of 14 tokens have 27 relative positions.
    positions = "encoder.blocks.{}.attn.rel_pos_h"
    wide = [
        n for n in range(depth) if getattr(state.get(positions.format(n)), "shape", (0,))[0] > 27
    ]

    def build(checkpoint=None):
        return builder._build_sam(
            encoder_embed_dim=width,
            encoder_depth=depth,
            encoder_num_heads=max(1, width // 64),
            encoder_global_attn_indexes=wide,
            checkpoint=checkpoint,
        )

    vit.sam_model_registry = {**vit.sam_model_registry, "vit_l": build}


if __name__ == "__main__":
    child.serve(main)
