"""What may be imported when: checked in fresh processes, by module names, never by a clock."""

import subprocess
import sys

import pytest

HEAVY = {
    "numba",
    "h5py",
    "highdicom",
    "monai",
    "napari",
    "nibabel",
    "openvino",
    "pandas",
    "pydicom",
    "scipy",
    "skimage",
    "tifffile",
    "torch",
    "zarr",
}


def modules_after(code: str) -> set[str]:
    """Top-level modules loaded once ``code`` has run in a fresh interpreter."""
    program = f"{code}\nimport sys\nprint(*sorted(n.split('.')[0] for n in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_lamella_loads_nothing_heavy():
    assert not modules_after("import lamella") & (HEAVY | {"numpy", "pydantic", "click"})


def test_help_loads_nothing_heavy():
    code = (
        "from click.testing import CliRunner\nfrom lamella.cli import cli\n"
        "assert CliRunner().invoke(cli, ['--help']).exit_code == 0"
    )
    assert not modules_after(code) & (HEAVY | {"numpy", "pydantic"})


@pytest.mark.parametrize(
    "room",
    [
        "core.errors",
        "volume",
        "wire.manifest",
        "io",
        "io.mrc",
        "io.ome_zarr",
        "io.dicom",
        "instances.components",
        "instances.watershed",
        "evaluation.semantic",
        "measurement.objects",
        "inference.execute",
        "engines.lamella",
        "workflows.segment",
    ],
)
def test_no_room_of_the_light_path_reaches_torch(room):
    assert not modules_after(f"import lamella.{room}") & {"torch", "monai", "timm", "fastapi"}


def test_the_public_names_resolve():
    code = "import lamella\nfor name in lamella.__all__: getattr(lamella, name)"
    assert "torch" not in modules_after(code)
