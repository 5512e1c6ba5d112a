"""Registries and optional packages: errors that name the way out."""

import pytest

from lamella.core.errors import MissingDependencyError, RunCancelledError, UnknownModelError
from lamella.core.optional import is_importable, require
from lamella.core.progress import CancelToken, Progress, ProgressSink, SilentSink
from lamella.core.registry import Registry


def test_an_unknown_id_names_the_nearest():
    registry = Registry("model", error=UnknownModelError)
    registry.register("membrane-3d", 1)
    registry.register("nuclei-2d", 2)
    with pytest.raises(UnknownModelError, match="membran3d") as caught:
        registry.get("membran3d")
    assert "did you mean membrane-3d" in caught.value.hint


def test_an_id_is_taken_once():
    registry = Registry("thing")
    registry.register("a", 1)
    with pytest.raises(ValueError, match="registered twice"):
        registry.register("a", 2)


def test_a_missing_package_says_how_to_install_it():
    assert not is_importable("no_such_package_here")
    with pytest.raises(MissingDependencyError, match="reading tea leaves needs") as caught:
        require("no_such_package_here", extra="tea", purpose="reading tea leaves")
    assert caught.value.hint == 'pip install "lamella[tea]"'


def test_cancelling_stops_at_the_next_check():
    token = CancelToken()
    sink = SilentSink(token)
    assert isinstance(sink, ProgressSink)
    sink.check()
    token.cancel()
    with pytest.raises(RunCancelledError):
        sink.check()


def test_progress_of_nothing_is_done():
    assert Progress("x", 0, 0).fraction == 1.0
    assert Progress("x", 1, 4).fraction == 0.25
