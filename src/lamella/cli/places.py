"""Where the command line keeps things: read from the environment here, and passed down."""

import os
from pathlib import Path

__all__ = ["models_folder"]


def models_folder() -> Path:
    """Return the user's models folder.

    ``LAMELLA_MODELS`` where it is set, else ``lamella/models`` in the user's data folder
    (``XDG_DATA_HOME``, ``%LOCALAPPDATA%``, or ``~/.local/share``). It need not exist.
    """
    settings = os.environ  # noqa: TID251 - the command line is the edge
    if named := settings.get("LAMELLA_MODELS"):
        return Path(named).expanduser()
    data = settings.get("XDG_DATA_HOME") or settings.get("LOCALAPPDATA")
    return (Path(data) if data else Path.home() / ".local" / "share") / "lamella" / "models"
