"""Models in nnU-Net's own layout: one trained by nnU-Net itself, others with random weights.

nnU-Net reads its folders from the environment when it is first imported, so the trained model is
made by a process of its own.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

SPACING = (2.0, 1.0, 1.0)

PREPARE = """
import json, multiprocessing, os, sys
from multiprocessing.pool import ThreadPool
from pathlib import Path
import numpy as np, SimpleITK as sitk, torch

class Threads:  # a process more would import everything anew
    Pool = ThreadPool
multiprocessing.get_context = lambda method=None: Threads

def main(base, words):
    raw = base / "raw" / "Dataset901_Balls"
    for name in ("imagesTr", "labelsTr"):
        (raw / name).mkdir(parents=True)
    for case in range(4):
        image, labels = balls(case, words, words["shape"])
        save(image, raw / "imagesTr" / f"case{case}_0000.nii.gz", words)
        save(labels, raw / "labelsTr" / f"case{case}.nii.gz", words)
    if "held_out" in words:
        n_each = round(3 * np.prod(words["held_out"]) / np.prod(words["shape"]))
        image, labels = balls(99, words, words["held_out"], n_each)
        save(image, base / "held_out.nii.gz", words)
        save(labels, base / "held_out_labels.nii.gz", words)
    names = ["background"] + [f"kind {n}" for n, _ in enumerate(words["kinds"])]
    (raw / "dataset.json").write_text(json.dumps({
        "channel_names": {"0": "MRI"}, "labels": {name: n for n, name in enumerate(names)},
        "numTraining": 4, "file_ending": ".nii.gz"}))
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints, plan_experiments, preprocess)
    extract_fingerprints([901], num_processes=1, check_dataset_integrity=True)
    plan_experiments([901])
    path = base / "preprocessed" / "Dataset901_Balls" / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    full = plans["configurations"]["3d_fullres"]
    full.update(patch_size=words["patch"], batch_size=2, spacing=words["plan_spacing"])
    kwargs, n = full["architecture"]["arch_kwargs"], len(words["features"])
    kwargs.update(n_stages=n, features_per_stage=words["features"],
                  kernel_sizes=[[3, 3, 3]] * n, strides=[[1, 1, 1]] + [[2, 2, 2]] * (n - 1),
                  n_conv_per_stage=[words["n_conv"]] * n,
                  n_conv_per_stage_decoder=[words["n_conv"]] * (n - 1))
    plans["configurations"] = {"3d_fullres": full}
    plans["continue_training"] = False
    path.write_text(json.dumps(plans))
    preprocess([901], configurations=("3d_fullres",), num_processes=(1,))
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    dataset = json.loads((raw / "dataset.json").read_text())

    os.environ["nnUNet_n_proc_DA"] = "0"
    trainer = nnUNetTrainer(plans, "3d_fullres", 0, dataset, torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch = 1, words["n_iterations"]
    trainer.num_val_iterations_per_epoch, trainer.initial_lr = 1, 0.02
    trainer.do_split = lambda: (["case0", "case1", "case2", "case3"], ["case3"])
    trainer.run_training()
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))

def balls(seed, words, shape, n_each=3):
    rng = np.random.default_rng(seed)
    image = rng.normal(100, 12, shape).astype(np.float32)
    labels = np.zeros(shape, np.uint8)
    grid = np.stack(np.indices(shape), -1) * words["spacing"]
    extent = np.multiply(shape, words["spacing"])
    for value, (radius, level) in enumerate(words["kinds"], 1):
        for _ in range(n_each):
            center = rng.uniform((8, 8, 8), extent - 8)
            inside = ((grid - center) ** 2).sum(-1) < radius**2
            labels[inside], image[inside] = value, image[inside] - 100 + level
    return image, labels

def save(array, path, words):
    picture = sitk.GetImageFromArray(array)
    picture.SetSpacing(words["spacing"][::-1])
    sitk.WriteImage(picture, str(path))

if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
"""
BALLS = {
    "shape": (28, 44, 50),
    "spacing": (2.0, 1.0, 1.0),
    "kinds": [(10.0, 160), (6.0, 60)],  # radius and grey value
    "patch": (16, 32, 32),
    "plan_spacing": (2.0, 1.25, 1.25),
    "features": (8, 16, 16),
    "n_conv": 1,
    "n_iterations": 35,
}


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of results of a model that nnU-Net planned, preprocessed and trained."""
    return train(tmp_path_factory.mktemp("nnunet"))


def train(base, **words):
    """A model of balls that nnU-Net planned, preprocessed and trained; ``words`` as in BALLS.

    With ``held_out``, a shape, there is also an image that it did not see: ``held_out.nii.gz``
    in ``base``, and what is on it in ``held_out_labels.nii.gz``. With ``run_patch`` it is run on
    tiles of another extent than it was trained on, as any fully convolutional network may be.
    """
    script = base / "train.py"
    script.write_text(PREPARE)
    environment = {
        **os.environ,
        "nnUNet_raw": str(base / "raw"),
        "nnUNet_preprocessed": str(base / "preprocessed"),
        "nnUNet_results": str(base / "results"),
        "nnUNet_compile": "false",
        "nnUNet_n_proc_DA": "2",
        "OMP_NUM_THREADS": "2",
    }
    done = subprocess.run(
        [sys.executable, str(script), str(base), json.dumps(BALLS | words)],
        env=environment,
        cwd=base,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    folder = base / "results" / "Dataset901_Balls" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    if "run_patch" in words:
        plans = json.loads((folder / "plans.json").read_text())
        plans["configurations"]["3d_fullres"]["patch_size"] = words["run_patch"]
        (folder / "plans.json").write_text(json.dumps(plans))
    return folder


# --- Models with random weights -----------------------------------------------------------------


def plans_of(configurations, transpose=(0, 1, 2), **more):
    return {
        "dataset_name": "Dataset902_Random",
        "plans_name": "nnUNetPlans",
        "transpose_forward": list(transpose),
        "transpose_backward": [transpose.index(axis) for axis in range(3)],
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "configurations": configurations,
        "foreground_intensity_properties_per_channel": {
            str(channel): {
                "mean": 100.0,
                "std": 30.0,
                "percentile_00_5": 70.0,
                "percentile_99_5": 180.0,
            }
            for channel in range(3)
        },
        **more,
    }


def configuration_of(
    patch, spacing, schemes=("ZScoreNormalization",), masks=None, torch_resampling=False, **more
):
    n = len(patch)
    resampling = {}
    for kind, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        kwargs = {"is_seg": kind == "seg", "force_separate_z": None}
        name = "resample_torch_fornnunet"
        if not torch_resampling:
            name = "resample_data_or_seg_to_shape"
            kwargs |= {"order": order, "order_z": 0}
        resampling[f"resampling_fn_{kind}"] = name
        resampling[f"resampling_fn_{kind}_kwargs"] = kwargs
    return {
        "data_identifier": "nnUNetPlans",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "spacing": list(spacing),
        "normalization_schemes": list(schemes),
        "use_mask_for_norm": list(masks or [False] * len(schemes)),
        **resampling,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 2,
                "features_per_stage": [6, 8],
                "conv_op": f"torch.nn.modules.conv.Conv{n}d",
                "kernel_sizes": [[3] * n] * 2,
                "strides": [[1] * n, [2] * n],
                "n_conv_per_stage": [1, 1],
                "n_conv_per_stage_decoder": [1],
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{n}d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
        **more,
    }


def dataset_of(labels=None, channels=("MRI",), **more):
    return {
        "channel_names": {str(i): name for i, name in enumerate(channels)},
        "labels": labels or {"background": 0, "one": 1, "two": 2},
        "numTraining": 4,
        "file_ending": ".nii.gz",
        **more,
    }


def write_model(folder, plans, dataset, *, folds=("0",), mirror=None, seed=0, **more):
    """A trained configuration with random weights, as nnU-Net's trainer would have left it."""
    from lamella.engines.nnunet.classes import ClassRule

    name = folder.name.rpartition("__")[2]
    settings = dict(plans["configurations"][name])
    rule = ClassRule.parse(dataset)
    n_inputs = len(dataset["channel_names"])
    if settings.get("previous_stage"):
        n_inputs += len(rule.foreground)
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    architecture = settings["architecture"]
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    for number, fold in enumerate(folds):
        torch.manual_seed(100 * seed + number)
        network = get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            n_inputs,
            rule.n_outputs,
            allow_init=True,
            deep_supervision=False,
        )
        n_axes = len(settings["patch_size"])
        (folder / f"fold_{fold}").mkdir()
        torch.save(
            {
                "network_weights": network.state_dict(),
                "trainer_name": "nnUNetTrainer",
                "init_args": {"configuration": name, "fold": number, "plans": plans},
                "inference_allowed_mirroring_axes": tuple(range(n_axes))
                if mirror is None
                else mirror,
                "_best_ema": np.float64(0.5),
                "logging": {"ema_fg_dice": [np.float64(0.25), np.float32(0.5)]},
                **more,
            },
            folder / f"fold_{fold}" / "checkpoint_final.pth",
        )
    return folder


def image_of(shape=(16, 36, 32), seed=5, channels=1, margin=0):
    """Blobs of several levels in noise; a margin of zeros around, and a hole of zeros inside."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    image = np.stack(
        [gaussian_filter(rng.normal(size=shape), [n / 16 for n in shape]) for _ in range(channels)]
    )
    image = 110 + 400 * image + rng.normal(0, 2, image.shape)
    if margin:
        outside = np.ones(shape, bool)
        outside[tuple(slice(margin, n - margin - 1) for n in shape)] = False
        middle = tuple(slice(n // 2 - 1, n // 2 + 2) for n in shape)
        image[:, outside] = 0
        image[(slice(None), *middle)] = 0
    return image.astype(np.float32)


# --- The judge ----------------------------------------------------------------------------------


def theirs(folders, image, spacing, *, tta=False, previous=None, exact=False, **options):
    """Labels that nnU-Net gives; exact: with its sums in float32 instead of half precision.

    Args:
        folders: of configurations, averaged as ``nnUNetv2_ensemble`` does.
        image: (c, z, y, x).
        spacing: (z, y, x).
        previous: labels of the first stage.
    """
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()):
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        kind = exact_predictor() if exact else nnUNetPredictor
        shares = []
        for folder in folders:
            predictor = kind(
                use_mirroring=tta, device=torch.device("cpu"), allow_tqdm=False, **options
            )
            initialise(predictor, folder)
            given = None if previous is None else previous[None].astype(np.int16)
            labels = predictor.predict_single_npy_array(
                image,
                {"spacing": list(spacing)},
                given,
                save_or_return_probabilities=len(folders) > 1,
            )
            if len(folders) == 1:
                return np.asarray(labels)
            shares.append(labels[1])
        return np.asarray(
            predictor.label_manager.convert_probabilities_to_segmentation(np.mean(shares, axis=0))
        )


def initialise(predictor, folder):
    """What ``initialize_from_trained_model_folder`` does, without importing every trainer."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(str(folder / "plans.json"))
    dataset = json.loads((folder / "dataset.json").read_text())
    paths = sorted(folder.glob("fold_*/checkpoint_final.pth"))
    checkpoints = [torch.load(path, weights_only=False) for path in paths]
    settings = plans.get_configuration(checkpoints[0]["init_args"]["configuration"])
    network = get_network_from_plans(
        settings.network_arch_class_name,
        settings.network_arch_init_kwargs,
        settings.network_arch_init_kwargs_req_import,
        determine_num_input_channels(plans, settings, dataset),
        plans.get_label_manager(dataset).num_segmentation_heads,
        deep_supervision=False,
    )
    predictor.manual_initialization(
        network,
        plans,
        settings,
        [one["network_weights"] for one in checkpoints],
        dataset,
        "nnUNetTrainer",
        checkpoints[0]["inference_allowed_mirroring_axes"],
    )


def exact_predictor():
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian

    class Exact(nnUNetPredictor):
        @torch.inference_mode()
        def _internal_predict_sliding_window_return_logits(self, data, slicers, do_on_device=True):
            weights = compute_gaussian(
                tuple(self.configuration_manager.patch_size),
                sigma_scale=1 / 8,
                value_scaling_factor=10,
                device=torch.device("cpu"),
            ).float()
            total = torch.zeros((self.label_manager.num_segmentation_heads, *data.shape[1:]))
            weight = torch.zeros(data.shape[1:])
            for place in slicers:
                logits = self._internal_maybe_mirror_and_predict(data[place][None])[0]
                total[place] += logits * weights
                weight[place[1:]] += weights
            return total / weight

    return Exact


def threshold_model(folder, level=3.0):
    """A model that finds what is brighter than some standard deviations: every weight by hand."""
    settings = configuration_of((8, 16, 16), (2.0, 1.0, 1.0))
    arguments = settings["architecture"]["arch_kwargs"]
    arguments |= {"norm_op": None, "norm_op_kwargs": None, "features_per_stage": [2, 2]}
    write_model(
        folder,
        plans_of({"3d_fullres": settings}),
        dataset_of({"background": 0, "bright": 1}),
    )
    path = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    weights = checkpoint["network_weights"]
    for name, value in weights.items():
        value.zero_()
        middle = (1,) * 3
        if name.startswith(("encoder.stages.0", "decoder.encoder.stages.0")):
            if name.endswith(("conv.weight", "all_modules.0.weight")):
                value[(0, 0, *middle)] = 1
        elif name.startswith("decoder.stages.0") and value.ndim == 5:
            value[(0, 2, *middle)] = 1  # channels of the skip come behind those from below
        elif name.startswith("decoder.seg_layers.0"):
            if value.ndim == 5:
                value[1, 0] = 1
            else:
                value[1] = -level
    torch.save(checkpoint, path)
    return folder
