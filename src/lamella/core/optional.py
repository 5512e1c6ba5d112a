"""Packages that may be absent: asked for where they are needed, with the reason when they lack."""

import importlib
import importlib.util
import sys
from types import ModuleType

from lamella.core.errors import MissingDependencyError

__all__ = ["import_openvino", "is_importable", "require"]


def is_importable(module: str) -> bool:
    """Whether ``module`` is installed, without importing it (nor, for ``a.b``, anything but ``a``).

    Examples:
        >>> is_importable("json"), is_importable("no_such_package_here")
        (True, False)
    """
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional package.

    Args:
        module: dotted import name.
        extra: Lamella's extra that installs it.
        purpose: what it is needed for, as in "training".

    Raises:
        MissingDependencyError: when it cannot be imported; the message says why, the hint how to
            install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{purpose} needs the package {module.split('.')[0]!r}, which cannot be imported here"
            f" ({error})",
            hint=f'pip install "lamella[{extra}]"',
            details={"module": module, "extra": extra},
        ) from error


def import_openvino() -> ModuleType:
    """Import OpenVINO without its usage statistics.

    ``import openvino`` sends an event to its maker and writes an id into the home folder, unless
    ``openvino_telemetry`` cannot be imported; then it falls back to a stub of its own. Lamella
    promises no telemetry, so that package is made unimportable in this process first.

    Raises:
        MissingDependencyError: when OpenVINO is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return require("openvino", extra="torch", purpose="running networks on the CPU")
