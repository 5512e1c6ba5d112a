"""Programs of others that tests run: there or not, and packages of npm at fixed versions."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

__all__ = ["fetch_node_packages", "is_ci", "leave_out", "need_programs"]


def need_programs(*names: str) -> None:
    """Skip the test where a program is missing; in CI, where nothing may be left out, fail it.

    Args:
        names: programs; ``"chromium|google-chrome"`` is either.
    """
    missing = [name for name in names if not any(map(shutil.which, name.split("|")))]
    if missing:
        leave_out(f"this needs {', '.join(missing)}: install it")


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
        leave_out(f"npm cannot fetch {lock}/package.json: {done.stderr[-600:]}")
    return folder


def is_ci() -> bool:
    """Whether these tests judge a push."""
    return os.environ.get("CI", "").lower() in ("1", "true", "yes")  # noqa: TID251 - of the tests


def leave_out(reason: str) -> NoReturn:
    """Skip the test on a developer's machine; fail it in CI: one that never runs proves nothing."""
    if is_ci():
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
