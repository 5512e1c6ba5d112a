"""Small CellMap trees, written as the challenge lays its data out."""

import json

import numpy as np
import pytest
import zarr


@pytest.fixture(scope="session")
def write_pyramid():
    """A function that writes a zarr v2 multiscale group; arrays finest first."""
    return _write_pyramid


def _write_pyramid(folder, arrays, *, spacing, origin=(0.0, 0.0, 0.0), unit="nanometer", chunks=8):
    """A zarr v2 multiscale group as the challenge has it; arrays finest first."""
    folder.mkdir(parents=True)
    (folder / ".zgroup").write_text('{"zarr_format": 2}')
    datasets = []
    for k, array in enumerate(arrays):
        made = zarr.create_array(
            str(folder / f"s{k}"), shape=array.shape, dtype=array.dtype, zarr_format=2,
            chunks=(chunks,) * 3, fill_value=0,
        )  # fmt: skip
        made[...] = array
        scale = [s * 2**k for s in spacing]
        shift = [o + (2**k - 1) / 2 * s for o, s in zip(origin, spacing, strict=True)]
        steps = [
            {"type": "scale", "scale": scale},
            {"type": "translation", "translation": shift},
        ]
        datasets.append({"path": f"s{k}", "coordinateTransformations": steps})
    axes = [{"name": name, "type": "space", "unit": unit} for name in "zyx"]
    document = {"multiscales": [{"version": "0.4", "axes": axes, "datasets": datasets}]}
    (folder / ".zattrs").write_text(json.dumps(document))


@pytest.fixture
def root(tmp_path, write_pyramid):
    """One data set: raw 32³ at 8 nm, a crop at 4 nm with mito, er empty, and a merged array."""
    base = tmp_path / "jrc_test" / "jrc_test.zarr" / "recon-1"
    raw = np.random.default_rng(0).integers(1, 255, (32, 32, 32)).astype(np.uint8)
    write_pyramid(base / "em" / "fibsem-uint8", [raw, raw[::2, ::2, ::2]], spacing=(8.0, 8.0, 8.0))
    crop = base / "labels" / "groundtruth" / "crop7"
    mito = np.zeros((16, 16, 16), np.uint32)
    mito[12:14, 12:14, 12:14] = 5
    for name, array in (("mito", mito), ("er", np.zeros_like(mito)), ("all", mito)):
        write_pyramid(crop / name, [array], spacing=(4.0, 4.0, 4.0), origin=(30.0, 62.0, 62.0))
    return tmp_path
