"""Small data sets of images and labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lamella.training.configuration import (
    ClassConfig,
    PairsConfig,
    SplitConfig,
    TaskConfig,
)


def _write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)
    return path


@pytest.fixture(scope="session")
def write():
    """A function that saves an array as a picture, or as .npy where the suffix says so."""
    return _write


@pytest.fixture(scope="session")
def task():
    """A function that makes a task: its kind, then names of classes."""

    def make(kind: Any = "semantic", *names: str, **fields: Any) -> TaskConfig:
        classes = tuple(ClassConfig(name=name) for name in names or ("thing",))
        return TaskConfig(kind=kind, classes=classes, **fields)

    return make


@pytest.fixture
def write_set(tmp_path):
    """A function that writes images whose labels are 1 where they are above 200."""

    def make(n=4, shape=(40, 50), *, suffix=".png", seed=0, folder="set", **fields) -> PairsConfig:
        rng = np.random.default_rng(seed)
        root = tmp_path / folder
        for number in range(n):
            image = rng.integers(0, 256, shape).astype(np.uint8)
            _write(root / f"images/case{number}{suffix}", image)
            _write(root / f"labels/case{number}{suffix}", (image > 200).astype(np.uint8))
        fields.setdefault("split", SplitConfig(validation_fraction=0.25))
        return PairsConfig(root=str(root), **fields)

    return make
