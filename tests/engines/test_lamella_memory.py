"""A device whose memory is too small: smaller tiles, once, said aloud, and still resumable."""

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from lamella.core.errors import DeviceError, DeviceMemoryError, RunCancelledError
from lamella.engines.engine import EngineJob
from lamella.engines.lamella import engine as engine_module
from lamella.engines.lamella.engine import LamellaEngine
from lamella.engines.lamella.opening import Opened
from lamella.inference.journal import Journal
from lamella.inference.torch_runtime import TorchRuntime
from lamella.testing.engine import RecordingSink
from lamella.volume import Volume
from lamella.wire.event import LogEvent, ProgressEvent, WarningEvent
from lamella.wire.request import InputDoc, SegmentRequest

sys.path.insert(0, str(Path(__file__).parent))
from lamella_models import make_folder

sys.path.pop(0)


class Small:
    """A runtime whose device holds batches of so many voxels, after some that it let pass."""

    def __init__(self, inner, n_voxels, n_passes):
        self._inner, self._n_voxels, self._n_passes = inner, n_voxels, n_passes
        self.name, self.device, self.precision = inner.name, "cuda:0", inner.precision
        self.batch_shape, self.n_outputs = inner.batch_shape, inner.n_outputs

    def __call__(self, batch):
        self._n_passes -= 1
        if batch.size > self._n_voxels and self._n_passes < 0:
            raise DeviceMemoryError(f"{self.device} has too little memory", hint="smaller --tile")
        return self._inner(batch)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("model"), divisor=(4, 4, 4))


@pytest.fixture
def device(monkeypatch):
    """Sets how many voxels the device holds, and how many batches it lets pass before."""

    def hold(n_voxels, n_passes=0):
        real = engine_module.open_runtime.__wrapped__

        def opening(*arguments):
            opened = real(*arguments)
            runtime = Small(opened.runtime, n_voxels, n_passes)
            return Opened(runtime, opened.version, opened.check, opened.notes)

        opening.__wrapped__ = real
        monkeypatch.setattr(engine_module, "open_runtime", opening)

    first = engine_module.open_runtime

    def plain(*arguments):
        return first(*arguments)

    plain.__wrapped__ = first
    monkeypatch.setattr(engine_module, "open_runtime", plain)
    return hold


def volume():
    return Volume.from_array(np.random.default_rng(0).normal(0, 2, (64, 24, 24)).astype(np.float32))


def segment(model, run_dir, *, resume=False, sink=None, **fields):
    run_dir.mkdir(parents=True, exist_ok=True)
    request = SegmentRequest(input=InputDoc(path="image"), model="bright", **fields)
    job = EngineJob(volume(), request, model, run_dir, resume)
    return LamellaEngine().segment(job, sink or RecordingSink())


@pytest.mark.parametrize("n_passes", [0, 1, 9])
def test_smaller_tiles_once_and_aloud(model, device, tmp_path, n_passes):
    expected = segment(model, tmp_path / "small", tile=(8, 8, 8)).labels.load()
    device(8**3, n_passes)
    sink = RecordingSink()
    result = segment(model, tmp_path / "run", sink=sink)
    assert_array_equal(result.labels.load(), expected)
    assert result.options_resolved["tile"] == [8, 8, 8]
    (note,) = [note for note in result.warnings if note.code == "smaller_tile"]
    assert "8 x 8 x 8 are used instead of 16 x 16 x 16" in note.message
    assert "too little memory" in note.message
    assert [e for e in sink.events if isinstance(e, WarningEvent) and e.code == note.code]
    assert [e for e in sink.events if isinstance(e, LogEvent) and e.message == note.message]
    journal = Journal.read(tmp_path / "run" / "journal.jsonl")
    assert journal.fingerprint["tile"] == "8,8,8"
    assert journal.finished(0) == 64


def test_only_once(model, device, tmp_path):
    device(4**3)
    with pytest.raises(DeviceMemoryError, match="too little memory"):
        segment(model, tmp_path)


def test_a_tile_that_cannot_be_halved_is_an_error_at_once(model, device, tmp_path):
    device(0)
    sink = RecordingSink()
    with pytest.raises(DeviceError) as caught:
        segment(model, tmp_path, tile=(4, 4, 4), sink=sink)
    assert caught.value.code == "device_out_of_memory"
    assert not [event for event in sink.events if isinstance(event, WarningEvent)]


def test_an_interrupted_run_goes_on_with_the_smaller_tiles(model, device, tmp_path):
    device(8**3, n_passes=9)
    whole = segment(model, tmp_path / "whole")

    class StopsHalfway(RecordingSink):
        def emit(self, event, /):
            super().emit(event)
            if isinstance(event, ProgressEvent) and event.stage == "tiles":
                is_small = event.total > 100
                if is_small and event.done > 0.7 * event.total:
                    raise RunCancelledError("stopped")

    with pytest.raises(RunCancelledError):
        segment(model, tmp_path / "run", sink=StopsHalfway())
    done = Journal.read(tmp_path / "run" / "journal.jsonl").finished(0)
    assert 0 < done < 64
    sink = RecordingSink()
    again = segment(model, tmp_path / "run", resume=True, sink=sink)
    assert_array_equal(again.labels.load(), whole.labels.load())
    messages = [event.message for event in sink.events if isinstance(event, LogEvent)]
    assert any("as before the stop" in message for message in messages)
    assert any(f"{done} of 64 layers" in message for message in messages)
    assert not any("starting anew" in message for message in messages)


def test_pytorch_says_when_its_memory_is_too_small():
    torch = pytest.importorskip("torch")

    class Greedy(torch.nn.Module):
        def forward(self, image):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DeviceMemoryError, match="batch of shape") as caught:
        TorchRuntime(Greedy(), (1, 1, 4, 4, 4))
    assert "--tile" in caught.value.hint
