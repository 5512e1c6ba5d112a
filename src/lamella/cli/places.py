"""Where the command line keeps things."""

from pathlib import Path

from lamella.core.places import Places

__all__ = ["models_folder"]


def models_folder() -> Path:
    """Return the user's models folder, see :meth:`lamella.core.places.Places.of_user`."""
    folder = Places.of_user().models
    assert folder is not None, "the user's places name every folder"
    return folder
