"""Programs of others that tests run: there or not, and packages of npm at fixed versions."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["fetch_node_packages", "need_programs"]


def need_programs(*names: str) -> None:
    """Skip the test where a program is missing; in CI, where nothing may be left out, fail it.

    Args:
        names: programs; ``"chromium|google-chrome"`` is either.
    """
    missing = [name for name in names if not any(map(shutil.which, name.split("|")))]
    if missing:
        _leave_out(f"this needs {', '.join(missing)}: install it")


def fetch_node_packages(lock: Path, folder: Path) -> Path:
    """What ``package-lock.json`` names, of exactly these versions and hashes.

    Args:
        lock: folder with ``package.json`` and ``package-lock.json``.
        folder: where ``node_modules`` is made.

    Returns:
        ``folder``.
    """
    need_programs("node", "npm")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(lock / name, folder)
    done = subprocess.run(
        ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", folder],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    if done.returncode:
        _leave_out(f"npm cannot fetch {lock}/package.json: {done.stderr[-600:]}")
    return folder


def _leave_out(reason: str) -> None:
    is_ci = os.environ.get("CI", "")  # noqa: TID251 - of the tests
    if is_ci.lower() in ("1", "true", "yes"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
