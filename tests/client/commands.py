"""`lamella` as processes, and what makes two runs the same."""

import subprocess
import sys
import time

import numpy as np

from lamella.testing.processes import heeding_interrupts

MODEL = "membrane-3d"


def lamella(home, *words):
    """Start a command; ``home`` are its variables."""
    return subprocess.Popen(
        [sys.executable, "-m", "lamella", *map(str, words)],
        env=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=heeding_interrupts,
    )  # fmt: skip


def done(process, code=0):
    """Its answer and what it said besides, once it has ended as it should."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return out, err


def wait_for(condition, process, limit_s=60):
    """Wait until something happens while a process runs."""
    end = time.monotonic() + limit_s
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def same(run, local):
    """A remote run is a local one, file by file and word by word."""
    assert np.array_equal(run.labels.load(), local.labels.load())
    assert (run.folder / "objects.csv").read_bytes() == (local.folder / "objects.csv").read_bytes()
    assert run.manifest.labels == local.manifest.labels
    assert run.manifest.input == local.manifest.input
    assert run.manifest.request == local.manifest.request
    assert run.manifest.options_resolved == local.manifest.options_resolved
    assert run.manifest.warnings == local.manifest.warnings
    names = {path.name for path in run.folder.iterdir()}
    assert names == {path.name for path in local.folder.iterdir()}
    # No trace of the way there.
    for path in run.folder.glob("*.json*"):
        assert "volume:" not in path.read_text()
