"""Every Python block in the documentation runs, page by page.

Pages may count on two files in the folder they run in: ``tomogram.mrc`` (48 x 64 x 64, simulated,
1 nm) and ``nuclei.tif`` (2-D, simulated).
"""

import re
from pathlib import Path

import pytest

from lamella.io import save_volume
from lamella.simulation.nuclei import NucleiOptions, draw_nuclei
from lamella.simulation.tomogram import simulate_tomogram
from lamella.volume import Volume

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
PAGES = sorted(
    page
    for page in [*DOCS.rglob("*.md"), DOCS.parent / "README.md"]
    if BLOCK.search(page.read_text())
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs-data")
    tomogram = simulate_tomogram((48, 64, 64), seed=5)
    volume = Volume.from_array(tomogram.intensity, spacing=(1.0, 1.0, 1.0), unit="nm")
    save_volume(volume, folder / "tomogram.mrc")
    nuclei = draw_nuclei(NucleiOptions(shape=(128, 128)), seed=5)
    save_volume(Volume.from_array(nuclei.image, axes="yx"), folder / "nuclei.tif")
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, files, tmp_path, monkeypatch):
    for source in files.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__docs__"}
    for block in BLOCK.findall(page.read_text()):
        exec(compile(block, str(page), "exec"), namespace)
