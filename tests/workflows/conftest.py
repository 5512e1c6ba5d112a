"""Fixtures of whole runs with models made on the spot."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def lamella_models():
    """The module that makes small model folders."""
    path = Path(__file__).parent.parent / "engines" / "lamella_models.py"
    spec = importlib.util.spec_from_file_location("lamella_models", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
