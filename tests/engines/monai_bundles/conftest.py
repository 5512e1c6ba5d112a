"""One small network, taught once what a bright ball is, for all bundles."""

import importlib.util
from pathlib import Path

import nibabel
import numpy as np
import pytest

_SPEC = importlib.util.spec_from_file_location(
    "monai_bundle_kit", Path(__file__).parent / "bundles.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
_KIT = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_KIT)


@pytest.fixture(scope="session")
def kit():
    """The builders of bundles."""
    return _KIT


@pytest.fixture(scope="session")
def weights():
    """State dict of ``kit.NETWORK``."""
    pytest.importorskip("monai")
    return _KIT.train(_KIT.build(_KIT.NETWORK), steps=40)


@pytest.fixture(scope="session")
def balls():
    """Three bright balls in noise, (z, y, x) float32."""
    shape = (30, 44, 38)
    points = np.stack(np.indices(shape), axis=-1)
    image = np.random.default_rng(1).normal(100, 5, shape).astype(np.float32)
    for center in ((8, 12, 10), (20, 30, 25), (15, 10, 30)):
        image[((points - np.array(center)) ** 2).sum(-1) < 36] += 60
    return image


@pytest.fixture(scope="session")
def images(tmp_path_factory, balls):
    """The balls as NIfTI: turned to L, P, S; and with x and y exchanged, on another spacing."""
    folder = tmp_path_factory.mktemp("images")
    turned = {
        "lps": (np.diag([-1.0, -1.0, 1.0]), (1.2, 1.2, 2.0)),
        "swapped": (np.array([[0, 1.0, 0], [-1.0, 0, 0], [0, 0, 1.0]]), (1.0, 1.5, 2.0)),
    }
    for name, (direction, spacing) in turned.items():
        affine = np.eye(4)
        affine[:3, :3] = direction @ np.diag(spacing)
        affine[:3, 3] = (-10, 20, 5)
        nibabel.save(nibabel.Nifti1Image(balls.T, affine), folder / f"{name}.nii.gz")
    return {name: folder / f"{name}.nii.gz" for name in turned}
