"""The requests in the documentation, as they stand there, on a real server: curl and jq."""

import re
import subprocess
from pathlib import Path

import pytest

from lamella.io.format import save_volume
from lamella.simulation.nuclei import NucleiOptions, draw_nuclei
from lamella.testing.outside import need_programs
from lamella.testing.server import run_server
from lamella.volume import Volume

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.M | re.S)
# The first sends what the others look at.
PAGES = (
    "reference/http.md",
    "reference/events.md",
    "how-to/view-from-the-server.md",
    "reference/uploads.md",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where the scripts run, and what they are told."""
    need_programs("bash", "curl", "jq")
    folder = tmp_path_factory.mktemp("pages")
    nuclei = draw_nuclei(NucleiOptions(shape=(24, 64, 64)), seed=3)
    volume = Volume.from_array(nuclei.image, spacing=(2.0, 1.0, 1.0), unit="um")
    save_volume(volume, folder / "tomogram.mrc")
    with run_server(folder / "data", "--gpus", "none") as server:
        told = {"LAMELLA": f"{server.url}/api/v1", "LAMELLA_TOKEN": server.token}
        yield folder, {**server.environment, **told}


def test_every_request_of_the_pages_is_answered(place):
    folder, environment = place
    for page in PAGES:
        blocks = BLOCK.findall((DOCS / page).read_text())
        assert blocks, page
        script = "\n".join(
            ["set -eu -o pipefail", *(f"echo '--- {n}'\n{block}" for n, block in enumerate(blocks))]
        )
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{page}\n{done.stdout}\n{done.stderr}"
    assert (folder / "objects.csv").read_text().startswith("id,")
    assert (folder / "labels.nii.gz").stat().st_size > 100
    run, *_ = folder.glob("*.run")
    assert (run / "manifest.json").is_file()
