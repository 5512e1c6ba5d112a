"""Models in nnU-Net's own layout: one trained by nnU-Net itself, others with random weights.

nnU-Net reads its folders from the environment when it is first imported, so the trained model is
made by a process of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

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

def main(base, n_epochs, n_iterations):
    raw = base / "raw" / "Dataset901_Balls"
    for name in ("imagesTr", "labelsTr"):
        (raw / name).mkdir(parents=True)
    for case in range(4):
        image, labels = balls(case)
        save(image, raw / "imagesTr" / f"case{case}_0000.nii.gz")
        save(labels, raw / "labelsTr" / f"case{case}.nii.gz")
    (raw / "dataset.json").write_text(json.dumps({
        "channel_names": {"0": "MRI"}, "labels": {"background": 0, "big": 1, "small": 2},
        "numTraining": 4, "file_ending": ".nii.gz"}))
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints, plan_experiments, preprocess)
    extract_fingerprints([901], num_processes=1, check_dataset_integrity=True)
    plan_experiments([901])
    path = base / "preprocessed" / "Dataset901_Balls" / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    full = plans["configurations"]["3d_fullres"]
    full.update(patch_size=[16, 32, 32], batch_size=2, spacing=[2.0, 1.25, 1.25])
    kwargs = full["architecture"]["arch_kwargs"]
    kwargs.update(n_stages=3, features_per_stage=[8, 16, 16],
                  kernel_sizes=[[3, 3, 3]] * 3, strides=[[1, 1, 1], [2, 2, 2], [2, 2, 2]],
                  n_conv_per_stage=[1, 1, 1], n_conv_per_stage_decoder=[1, 1])
    plans["configurations"] = {"3d_fullres": full}
    plans["continue_training"] = False
    path.write_text(json.dumps(plans))
    preprocess([901], configurations=("3d_fullres",), num_processes=(1,))
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    dataset = json.loads((raw / "dataset.json").read_text())

    os.environ["nnUNet_n_proc_DA"] = "0"
    trainer = nnUNetTrainer(plans, "3d_fullres", 0, dataset, torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch = n_epochs, n_iterations
    trainer.num_val_iterations_per_epoch, trainer.initial_lr = 1, 0.02
    trainer.do_split = lambda: (["case0", "case1", "case2", "case3"], ["case3"])
    trainer.run_training()
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))

def balls(seed, shape=(28, 44, 50)):
    rng = np.random.default_rng(seed)
    image = rng.normal(100, 12, shape).astype(np.float32)
    labels = np.zeros(shape, np.uint8)
    grid = np.stack(np.indices(shape), -1) * (2.0, 1.0, 1.0)
    for value, radius, level in ((1, 10.0, 160), (2, 6.0, 60)):
        for _ in range(3):
            center = rng.uniform((8, 8, 8), (48, 36, 42))
            inside = ((grid - center) ** 2).sum(-1) < radius**2
            labels[inside], image[inside] = value, image[inside] - 100 + level
    return image, labels

def save(array, path):
    picture = sitk.GetImageFromArray(array)
    picture.SetSpacing((1.0, 1.0, 2.0))
    sitk.WriteImage(picture, str(path))

if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
"""


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of results of a model that nnU-Net planned, preprocessed and trained."""
    return train(tmp_path_factory.mktemp("nnunet"))


def train(base, n_epochs=1, n_iterations=35):
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
        [sys.executable, str(script), str(base), str(n_epochs), str(n_iterations)],
        env=environment,
        cwd=base,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return base / "results" / "Dataset901_Balls" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
