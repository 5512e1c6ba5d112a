"""Weights of TotalSegmentator's datasets, made by hand: real folders, real networks, no training.

A network of two stages passes the intensity on, and its last layer cuts it at thresholds: a class
is what is brighter than its own threshold and darker than the next one. Everything else is as the
package has it: names of folders, plans, checkpoints, the number of classes.
"""

import json
from pathlib import Path

import numpy as np

PATCH = (16, 16, 16)
_SHIFT = 12.0
_SHARPNESS = 3.0


def make_dataset(
    results: Path,
    folder: str,
    trainer: str,
    n_classes: int,
    thresholds: dict[int, float],
    *,
    spacing: float = 3.0,
    model: str = "3d_fullres",
    patch: tuple[int, int, int] = PATCH,
) -> Path:
    """Write one dataset below ``results``.

    Args:
        results: where Dataset folders lie.
        folder: such as Dataset297_TotalSegmentator_total_3mm_1559subj.
        trainer: part of the name of the folder below.
        n_classes: without the background.
        thresholds: smallest intensity of each class that is ever found, in HU.
        spacing: of the network, mm.
        model: configuration.
        patch: tile.
    """
    path = results / folder / f"{trainer}__nnUNetPlans__{model}"
    (path / "fold_0").mkdir(parents=True)
    architecture = _architecture()
    (path / "plans.json").write_text(
        json.dumps(_plans(folder, spacing, patch, model, architecture))
    )
    labels = {"background": 0} | {f"class_{k}": k for k in range(1, n_classes + 1)}
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": labels,
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    (path / "dataset.json").write_text(json.dumps(dataset))
    save_checkpoint(
        path / "fold_0" / "checkpoint_final.pth",
        {
            "network_weights": _weights(architecture, n_classes, thresholds),
            "trainer_name": trainer,
            "init_args": {"configuration": model, "fold": 0},
            "inference_allowed_mirroring_axes": None,
            # Numbers of NumPy are in every checkpoint of nnU-Net.
            "logging": {"ema_fg_dice": [np.float64(0.5)]},
            "current_epoch": 1,
        },
    )
    return results / folder


def save_checkpoint(path: Path, checkpoint: object) -> None:
    """Write a checkpoint as nnU-Net does."""
    import torch

    torch.save(checkpoint, path)


def _architecture() -> dict:
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 2,
            "features_per_stage": [2, 2],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3], [3, 3, 3]],
            "strides": [[1, 1, 1], [2, 2, 2]],
            "n_conv_per_stage": [1, 1],
            "n_conv_per_stage_decoder": [1],
            "conv_bias": True,
            "norm_op": None,
            "norm_op_kwargs": None,
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _plans(
    name: str,
    spacing: float,
    patch: tuple[int, int, int],
    model: str,
    architecture: dict,
) -> dict:
    image = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    labels = {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None}
    scores = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    resampling = "resample_data_or_seg_to_shape"
    return {
        "dataset_name": name,
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "experiment_planner_used": "ExperimentPlanner",
        "foreground_intensity_properties_per_channel": {
            "0": {
                "mean": 0.0,
                "std": 100.0,
                "percentile_00_5": -1000.0,
                "percentile_99_5": 1000.0,
                "min": -1000.0,
                "max": 1000.0,
                "median": 0.0,
            }
        },
        "configurations": {
            model: {
                "data_identifier": f"nnUNetPlans_{model}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": list(patch),
                "spacing": [spacing] * 3,
                "median_image_size_in_voxels": [64.0, 64.0, 64.0],
                "normalization_schemes": ["CTNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": resampling,
                "resampling_fn_data_kwargs": image,
                "resampling_fn_seg": resampling,
                "resampling_fn_seg_kwargs": labels,
                "resampling_fn_probabilities": resampling,
                "resampling_fn_probabilities_kwargs": scores,
                "architecture": architecture,
                "batch_dice": False,
            }
        },
    }


def _weights(architecture: dict, n_classes: int, thresholds: dict[int, float]) -> dict:
    """Zeros but for one path: intensity in, through the skip, to the last layer."""
    import torch
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    kwargs = dict(architecture["arch_kwargs"])
    kwargs |= {"conv_op": torch.nn.Conv3d, "nonlin": torch.nn.LeakyReLU}
    network = PlainConvUNet(1, num_classes=n_classes + 1, deep_supervision=False, **kwargs)
    with torch.no_grad():
        for value in network.parameters():
            value.zero_()
        first = network.encoder.stages[0][0].convs[0].conv
        first.weight[0, 0, 1, 1, 1] = 1.0
        first.bias[0] = _SHIFT
        # The decoder sees what came up from below (two channels) and then the skip.
        second = network.decoder.stages[0].convs[0].conv
        second.weight[0, 2, 1, 1, 1] = 1.0
        last = network.decoder.seg_layers[-1]
        last.bias[1:] = -50.0
        total = 0.0
        for step, (label, threshold) in enumerate(
            sorted(thresholds.items(), key=lambda e: e[1]), 1
        ):
            total += threshold / 100.0 + _SHIFT
            last.weight[label, 0, 0, 0, 0] = _SHARPNESS * step
            last.bias[label] = -_SHARPNESS * total
    return {name: value.clone() for name, value in network.state_dict().items()}
