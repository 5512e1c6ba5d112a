"""The licence number of the tasks that TotalSegmentator does not give away.

The number is looked for in the request's option, then in TotalSegmentator's own configuration file
(read, never written). Without one, a licensed task is refused before anything runs; whether a
number is valid is for the package to say.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.core.errors import LicenceError

if TYPE_CHECKING:
    from lamella.core.places import Places
    from lamella.engines.totalsegmentator.package import Task

__all__ = ["HINT", "LICENSED", "OPEN_LICENCE", "WHERE", "find_licence"]

OPEN_LICENCE = "Apache-2.0"
LICENSED = "TotalSegmentator licence, free for non-commercial use"

WHERE = "https://backend.totalsegmentator.com/license-academic/"
"""Where a licence comes from; free for non-commercial use."""
HINT = (
    f"get a number (free for non-commercial use) at {WHERE}, then run with --option licence=FILE,"
    " a file that holds the number"
)


def find_licence(task: Task, given: str | None, places: Places) -> str:
    """Return the licence number for a task, empty for the tasks that need none.

    Args:
        task: what is to be run.
        given: the option: a number, a text file with the number, or a config.json.
        places: where TotalSegmentator keeps its own configuration.

    Raises:
        LicenceError: a licensed task without a number.
    """
    if not task.is_licensed:
        return ""
    number = _given(given) if given else _configured(places.totalsegmentator_home)
    if number:
        return number
    raise LicenceError(
        f"the task {task.name!r} of TotalSegmentator is licensed, and no licence number is"
        " configured here",
        hint=HINT,
        details={"task": task.name, "licence_url": WHERE},
    )


def _given(given: str) -> str:
    path = Path(given).expanduser()
    try:
        is_file = path.is_file()
    except OSError:
        is_file = False
    if not is_file:
        if "/" in given or "\\" in given or path.suffix:
            raise LicenceError(f"the licence file {given} is not there", hint=HINT)
        return given.strip()
    number = _read(path)
    if not number:
        raise LicenceError(f"{given} holds no licence number", hint=HINT)
    return number


def _configured(home: Path | None) -> str:
    return "" if home is None else _read(home / "config.json")


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    if text.startswith("{"):
        try:
            return str(json.loads(text).get("license_number") or "")
        except ValueError:
            return ""
    return "" if path.suffix == ".json" else text.split()[0] if text else ""
