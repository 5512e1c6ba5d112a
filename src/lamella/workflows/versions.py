"""Which versions made a result: read from the installed packages, nothing is imported."""

import platform
from importlib.metadata import PackageNotFoundError, version

__all__ = ["LAMELLA_VERSION", "package_versions"]

# Whatever can change a voxel of the result.
_PACKAGES = (
    "numpy",
    "scipy",
    "scikit-image",
    "numba",
    "openvino",
    "torch",
    "connected-components-3d",
    "edt",
    "zarr",
)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


LAMELLA_VERSION: str = _installed("lamella") or "0+unknown"


def package_versions() -> dict[str, str]:
    """Versions of Lamella, Python and the packages a result depends on, those installed."""
    found = {name: _installed(name) for name in _PACKAGES}
    return {
        "lamella": LAMELLA_VERSION,
        "python": platform.python_version(),
        **{name: known for name, known in found.items() if known is not None},
    }
