"""What leaves the server says what users call things, never where they lie on its disks.

Examples:
    >>> names = PathNames({"/srv/data/volumes/4f/tomo.mrc": "tomo.mrc", "/srv/data": "(server)"})
    >>> names.hide("cannot read /srv/data/volumes/4f/tomo.mrc")
    'cannot read tomo.mrc'
    >>> names.hide({"where": ["/srv/data/jobs/a1/run"]})
    {'where': ['(server)/jobs/a1/run']}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lamella.core.errors import LamellaError

__all__ = ["PathNames"]

# A path ends where a name could not go on: /data is not part of /database, but of "/data."
_END = r"(?![\w-]|\.\w)"


class PathNames:
    """Replaces paths of the server in texts and documents.

    Args:
        names: what to write for a path; an empty name takes the slash behind the path with it.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = {path.rstrip("/"): name for path, name in names.items() if path.rstrip("/")}
        # Longest first: a file within a folder has a name of its own.
        paths = sorted(self._names, key=len, reverse=True)
        self._pattern = re.compile(
            "|".join(
                re.escape(path) + (_END if self._names[path] else f"(?:/|{_END})") for path in paths
            )
            or r"(?!)"
        )

    def hide(self, value: Any) -> Any:
        """A text, or a document (JSON values) with its texts, without those paths."""
        if isinstance(value, str):
            return self._pattern.sub(lambda found: self._names[found[0].rstrip("/")], value)
        if isinstance(value, Mapping):
            return {key: self.hide(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(item) for item in value]
        return value

    def hide_error(self, error: LamellaError) -> LamellaError:
        """The same error without those paths."""
        return type(error)(
            self.hide(error.message),
            hint=None if error.hint is None else self.hide(error.hint),
            details=self.hide(error.details),
        )

    def hide_in_file(self, path: Path) -> None:
        """Rewrite a text file that names such a path; whole or not at all."""
        text = path.read_text("utf-8")
        hidden = self._as_in_json().hide(text)
        if hidden == text:
            return
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(hidden, "utf-8")
        partial.replace(path)

    def _as_in_json(self) -> PathNames:
        """The same for paths as they are, and as JSON writes them (quotes, umlauts)."""
        names = dict(self._names)
        for path, name in self._names.items():
            for ascii_only in (True, False):
                written = json.dumps(path, ensure_ascii=ascii_only)[1:-1]
                names[written] = json.dumps(name, ensure_ascii=ascii_only)[1:-1]
        return PathNames(names)
