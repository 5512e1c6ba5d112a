"""Images whose truth is known: real ones from the data folder, and simulated ones."""

from functools import cache

import numpy as np
import pytest


@cache
def simulated_nuclei(photons=400, seed=1, shape=(192, 192)):
    from lamella.simulation.nuclei import NucleiOptions, draw_nuclei

    options = NucleiOptions(shape=shape, photons=photons, n_nuclei=20)
    return draw_nuclei(options, seed=seed).image.astype(np.float32)


@pytest.fixture(scope="session")
def tomogram():
    """A simulated tomogram at an ordinary noise, float32, (z, y, x)."""
    from lamella.simulation.tomogram import TomogramOptions, simulate_tomogram

    options = TomogramOptions(snr=0.5)
    return simulate_tomogram((16, 96, 96), seed=1, options=options).intensity


@pytest.fixture(scope="session")
def confocal(data_dir):
    """Confocal images by name: (clean, noisy), float32, 512 x 512."""
    import tifffile

    folder = data_dir / "denoising" / "noise2fast"
    return {
        name: tuple(
            tifffile.imread(folder / kind / f"{name}.tif").astype(np.float32)
            for kind in ("Confocal", "Confocal_gaussianpoisson")
        )
        for name in ("BPAE_B", "BPAE_G")
    }


@pytest.fixture(scope="session")
def clean_images(data_dir, confocal):
    """Images that are neither noisy nor blurred, by name; real ones first."""
    import h5py
    from PIL import Image

    found = {f"confocal {name}": pair[0] for name, pair in confocal.items()}
    for name in ("0c6507d493bf", "b4d902d42c93", "da8ca06ccbb4"):
        path = data_dir / "fluorescence" / "dsb2018_D" / f"{name}_fluor.png"
        found[f"nuclei {name}"] = np.asarray(Image.open(path).convert("L"), np.float32)
    sem = data_dir / "em/axondeepseg_sem/sub-rat3/micr/sub-rat3_sample-data10_SEM.png"
    found["scanning EM"] = np.asarray(Image.open(sem).convert("L"), np.float32)[:512, :512]
    with h5py.File(data_dir / "em" / "gala" / "train-image.h5") as file:
        stack = file[next(iter(file))][()]
    found["serial EM"] = stack[len(stack) // 2].astype(np.float32)
    return found | {"simulated nuclei": simulated_nuclei()}
