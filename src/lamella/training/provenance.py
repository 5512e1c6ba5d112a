"""What a training was made of: programs, data, machine. Nothing in it needs a version control.

The package's own files are hashed, so that a changed copy is told apart from a release.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lamella.training.source import SourceInfo

__all__ = ["data_hash", "make_provenance", "package_hash"]

_PACKAGES = (
    "lamella", "numpy", "scipy", "torch", "lightning", "monai", "timm",
    "segmentation-models-pytorch", "hydra-core", "tensorstore", "zarr", "numba",
)  # fmt: skip


def make_provenance(info: SourceInfo, *, command: Sequence[str], seed: int) -> dict[str, Any]:
    """The document of one session.

    Args:
        info: of the data.
        command: words the training was started with.
        seed: of the training.
    """
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "seed": seed,
        "versions": _versions(),
        "package_sha256": package_hash(),
        "data_sha256": data_hash(info.fingerprint),
        "data": dict(info.fingerprint),
        "specimens": {split: list(names) for split, names in info.specimens.items()},
        "machine": _machine(),
    }


def package_hash() -> str:
    """SHA-256 over names and contents of the package's files."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.suffix in (".py", ".yaml", ".html"):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def data_hash(fingerprint: Mapping[str, str]) -> str:
    """SHA-256 over what a data source says about its files, in the order of their names.

    Examples:
        >>> data_hash({"a": "1", "b": "2"}) == data_hash({"b": "2", "a": "1"})
        True
    """
    lines = "".join(f"{name}\0{mark}\n" for name, mark in sorted(fingerprint.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _machine() -> dict[str, Any]:
    import torch

    cuda = torch.cuda
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "n_processors": os.cpu_count(),
        "n_threads": torch.get_num_threads(),
        "gpus": [cuda.get_device_name(i) for i in range(cuda.device_count())]
        if cuda.is_available()
        else [],
    }


def _processor() -> str:
    """The processor's name; ``platform`` knows it on some systems only."""
    if sys.platform == "linux":
        try:
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        except OSError:
            lines = []
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
