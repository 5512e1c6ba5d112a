"""A folder that a training was killed in, at whichever change to it, can be trained in."""

import shutil
from pathlib import Path

import pytest

from lamella.core.errors import OutputExistsError
from lamella.training.compose import CONFIG_NAME
from lamella.training.run_folder import prepare


class Killed(BaseException):
    """Nobody catches it and tidies up, as nobody does after SIGKILL."""


@pytest.fixture
def killed_at(monkeypatch):
    """Let the n-th change to the disk, counted from 0, be the last one that is not made."""

    def set_up(patch, nth):
        n_done = 0

        def stopping(function):
            def changed(*args, **words):
                nonlocal n_done
                if n_done == nth:
                    raise Killed
                n_done += 1
                return function(*args, **words)

            return changed

        for name in ("mkdir", "replace", "unlink", "write_text"):
            patch.setattr(Path, name, stopping(getattr(Path, name)))
        patch.setattr(shutil, "rmtree", stopping(shutil.rmtree))

    return set_up


def begins(run_dir, config):
    """What a user does: the same command, and where a training is there already, --fresh."""
    try:
        return prepare(run_dir, config, resume=False, fresh=False)
    except OutputExistsError:
        return prepare(run_dir, config, resume=False, fresh=True)


@pytest.mark.parametrize("nth", range(12))
@pytest.mark.parametrize("is_fresh", [False, True])
def test_killed_at_any_change_it_can_be_begun(
    make_config, tmp_path, monkeypatch, killed_at, nth, is_fresh
):
    config, run_dir = make_config(), tmp_path / "run"
    if is_fresh:
        prepare(run_dir, config, resume=False, fresh=False)
        (run_dir / "checkpoints" / "last.ckpt").write_text("x")
        for name in ("summary.json", "metrics.csv", ".summary.json.part"):
            (run_dir / name).write_text("x")
        (run_dir / "notes.txt").write_text("x")
    with monkeypatch.context() as patch:
        killed_at(patch, nth)
        try:
            prepare(run_dir, config, resume=False, fresh=is_fresh)
        except Killed:
            was_killed = True
        else:
            was_killed = False
    assert was_killed or nth >= 4
    assert begins(run_dir, config) is None
    left = {path.name for path in run_dir.iterdir()}
    assert left == {CONFIG_NAME, "checkpoints"} | ({"notes.txt"} if is_fresh else set())
