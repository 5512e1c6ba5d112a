"""Every Python block in the documentation runs, page by page.

Pages may count on two files in the folder they run in: ``tomogram.mrc`` (48 x 64 x 64, simulated,
1 nm) and ``nuclei.tif`` (2-D, simulated). Pages that make a client without an address find a server
that the user has logged in to.
"""

import os
import re
import subprocess
import sys
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


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    from lamella.testing.server import run_server

    with run_server(tmp_path_factory.mktemp("server") / "data", "--workers", "1") as opened:
        yield opened


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, files, tmp_path, monkeypatch, request):
    if re.search(r"lm\.(Async)?Client\(\)", page.read_text()):
        opened = request.getfixturevalue("server")
        for name, value in (
            ("LAMELLA_SERVER", opened.url),
            ("LAMELLA_TOKEN", opened.token),
            ("XDG_CACHE_HOME", str(tmp_path / "cache")),
            ("XDG_CONFIG_HOME", str(tmp_path / "config")),
        ):
            monkeypatch.setenv(name, value)
    for source in files.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__docs__"}
    for block in BLOCK.findall(page.read_text()):
        exec(compile(block, str(page), "exec"), namespace)


def test_the_tutorial_of_the_server_runs(server, tmp_path):
    """Every command of it, in its order, behind the first, which starts the server."""
    text = (DOCS / "tutorials" / "remote.md").read_text()
    first, *commands = re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)
    assert first == "lamella serve\n"
    script = "set -eux\n" + "".join(commands).replace("http://127.0.0.1:8443", server.url)
    variables = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LAMELLA_TOKEN": server.token,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=variables, capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tomogram.mrc: finished\n") == 3
    assert "finished before, nothing to do" in done.stdout
    assert (tmp_path / "second.run" / "labels.ome.zarr").exists()
