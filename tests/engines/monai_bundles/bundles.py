"""Small MONAI bundles, trained for a second or two, as MONAI's own tools would leave them."""

import copy
import json

import numpy as np

NETWORK = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 2,
    "channels": [4, 8],
    "strides": [2],
    "num_res_units": 1,
    "norm": "instance",
}


def image_transforms(*steps):
    """Loading and channels, then the steps, as ``Compose``."""
    first = [
        {"_target_": "LoadImaged", "keys": "@image_key"},
        {"_target_": "EnsureChannelFirstd", "keys": "@image_key"},
    ]
    last = [{"_target_": "EnsureTyped", "keys": "@image_key"}]
    middle = [{"keys": "@image_key", **step} for step in steps]
    return {"_target_": "Compose", "transforms": [*first, *middle, *last]}


def output_transforms(*steps):
    """The steps, then saving, as ``Compose``."""
    saving = {
        "_target_": "SaveImaged",
        "keys": "pred",
        "output_dir": "@output_dir",
        "output_postfix": "seg",
        "separate_folder": False,
        "resample": False,
    }
    return {
        "_target_": "Compose",
        "transforms": [*({"keys": "pred", **step} for step in steps), saving],
    }


SOFTMAX = {"_target_": "Activationsd", "softmax": True}
SIGMOID = {"_target_": "Activationsd", "sigmoid": True}
ARGMAX = {"_target_": "AsDiscreted", "argmax": True}
THRESHOLD = {"_target_": "AsDiscreted", "threshold": 0.5}


def invert(*, nearest=False):
    return {
        "_target_": "Invertd",
        "transform": "@preprocessing",
        "orig_keys": "@image_key",
        "nearest_interp": nearest,
        "to_tensor": True,
    }


def inference(**changes):
    """An inference configuration as in the model zoo."""
    config = {
        "imports": ["$import glob", "$import torch"],
        "bundle_root": ".",
        "image_key": "image",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "data",
        "datalist": "$list(sorted(glob.glob(@dataset_dir + '/*.nii.gz')))",
        "device": "$torch.device('cpu')",
        "network_def": copy.deepcopy(NETWORK),
        "network": "$@network_def.to(@device)",
        "preprocessing": image_transforms({"_target_": "NormalizeIntensityd"}),
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': i} for i in @datalist]",
            "transform": "@preprocessing",
        },
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": [16, 16, 16],
            "sw_batch_size": 2,
            "overlap": 0.5,
        },
        "postprocessing": output_transforms(SOFTMAX, invert(), ARGMAX),
        # The zoo's bundles leave this to pytorch-ignite's evaluator; the steps are the same.
        "load": "$@network.load_state_dict(torch.load(@bundle_root + '/models/model.pt'))",
        "predict": (
            "$[@postprocessing({**item, 'pred': @inferer(item['image'][None], @network.eval())[0]})"
            " for item in @dataset]"
        ),
        "initialize": ["$torch.set_grad_enabled(False)", "@load"],
        "run": ["@predict"],
    }
    return {**config, **changes}


def metadata(**changes):
    form = {
        "inputs": {
            "image": {
                "type": "image",
                "num_channels": 1,
                "spatial_shape": ["2*n", "2*n", "2*n"],
                "channel_def": {"0": "image"},
            }
        },
        "outputs": {
            "pred": {
                "type": "image",
                "num_channels": 2,
                "channel_def": {"0": "background", "1": "ball"},
            }
        },
    }
    return {
        "version": "0.1.0",
        "monai_version": "1.6.1",
        "name": "Balls",
        "description": "Finds balls.",
        "network_data_format": form,
        **changes,
    }


def write_bundle(folder, weights, *, config=None, meta=None):
    """Write a bundle; ``weights`` is a state dict, or the bytes of a file."""
    import torch

    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "metadata.json").write_text(json.dumps(meta or metadata(), indent=1))
    (folder / "configs" / "inference.json").write_text(json.dumps(config or inference(), indent=1))
    path = folder / "models" / "model.pt"
    if isinstance(weights, bytes):
        path.write_bytes(weights)
    else:
        torch.save(weights, path)
    return folder


def train(network, *, n_axes=3, steps=60, is_sigmoid=False, n_channels=1, seed=0):
    """Teach a network what a bright ball is; its state dict."""
    import torch

    torch.manual_seed(seed)
    torch.set_num_threads(2)
    rng = np.random.default_rng(seed)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    network.train()
    for _ in range(steps):
        shape = (20,) * n_axes
        points = np.stack(np.indices(shape), axis=-1)
        mask = np.zeros(shape, bool)
        for _ in range(2):
            center = rng.integers(0, 20, n_axes)
            mask |= ((points - center) ** 2).sum(-1) < rng.integers(9, 49)
        # Balls fill more of a small image than of a large one: normalised, they are less bright.
        image = rng.normal(0, rng.uniform(0.05, 0.2), shape) + mask * rng.uniform(1.5, 6.0)
        image[rng.random(shape) < 0.02] += 0.5
        image = (image - image.mean()) / image.std()
        batch = torch.from_numpy(np.stack([image] * n_channels)[None].astype(np.float32))
        logits = network(batch)
        target = torch.from_numpy(mask[None].astype(np.int64))
        if is_sigmoid:
            wanted = target[:, None].float().expand_as(logits)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted)
        else:
            loss = torch.nn.functional.cross_entropy(logits, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return {name: value.detach().clone() for name, value in network.eval().state_dict().items()}


def build(definition, seed=0):
    """A network of a ``network_def``."""
    import torch
    from monai.networks import nets

    torch.manual_seed(seed)
    arguments = {k: v for k, v in definition.items() if k != "_target_"}
    return getattr(nets, definition["_target_"])(**arguments)


def run_monai(bundle, image_path, work):
    """Labels as ``monai.bundle`` itself makes them, x first, from the file it saves."""
    import nibabel
    import torch
    from monai.bundle import ConfigWorkflow

    data, out = work / "data", work / "out"
    data.mkdir(parents=True)
    (data / "image.nii.gz").write_bytes(image_path.read_bytes())
    workflow = ConfigWorkflow(
        config_file=str(bundle / "configs" / "inference.json"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="inference",
        bundle_root=str(bundle),
        dataset_dir=str(data),
        output_dir=str(out),
    )
    try:
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    finally:
        torch.set_grad_enabled(True)
    (saved,) = list(out.glob("*.nii.gz"))
    return np.asarray(nibabel.load(saved).dataobj)
