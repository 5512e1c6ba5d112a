"""What engines in a process of their own promise besides what every engine does.

Examples:
    An engine names where it keeps the path of its worker::

        class TestCellpose3(IsolatedEngineContract):
            engine_id = "cellpose3"
            worker = "lamella.engines.cellpose.session:WORKER"

            def make_request(self): ...
            def make_model(self): ...
"""

from __future__ import annotations

import os
import shutil
import signal
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from lamella.core.errors import DeviceMemoryError, EngineError, InputError, RunCancelledError
from lamella.engines.engine import LABELS_NAME, EngineJob, EngineResult
from lamella.testing.engine import EngineContract, RecordingSink
from lamella.volume import Volume
from lamella.wire.event import PreviewEvent, ProgressEvent, WarningEvent

__all__ = ["IsolatedEngineContract"]


class IsolatedEngineContract(EngineContract):
    """What engines in a process of their own promise besides.

    Starting such an engine takes seconds, so the plain job is run once for all tests that only
    look at its result.

    Attributes:
        worker: ``module:NAME`` of the constant that holds the path of the worker's file.
    """

    worker: ClassVar[str]
    _kept: ClassVar[tuple[EngineResult, RecordingSink, Path] | None] = None

    @pytest.fixture(autouse=True)
    def _kept_folder(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        self._factory = tmp_path_factory

    def run(
        self,
        folder: Path,
        *,
        volume: Volume | None = None,
        sink: RecordingSink | None = None,
        **changes: Any,
    ) -> EngineResult:
        """Segment a volume in a new run folder; the plain job only once, unless it is ``b``."""
        own = self.make_volume()
        is_plain = not changes and folder.name != "b"
        if not is_plain or (volume is not None and not _are_equal(volume, own)):
            return super().run(folder, volume=volume, sink=sink, **changes)
        if type(self)._kept is None:
            told, home = RecordingSink(), self._factory.mktemp("kept") / "run"
            type(self)._kept = (super().run(home, volume=volume, sink=told), told, home)
        kept = type(self)._kept
        assert kept is not None, "it has just been made"
        result, told, home = kept
        shutil.copytree(home, folder, dirs_exist_ok=True)
        if sink is not None:
            sink.events.extend(told.events)
        return result

    def start(self, folder: Path, sink: RecordingSink, *, resume: bool = False) -> EngineResult:
        """Segment in any case, and go on where ``resume``."""
        folder.mkdir(parents=True, exist_ok=True)
        job = EngineJob(
            volume=self.make_volume(),
            request=self.make_request(),
            model=self.make_model(),
            run_dir=folder,
            resume=resume,
        )
        return self.load().segment(job, sink)

    def wrap_worker(
        self, monkeypatch: pytest.MonkeyPatch, folder: Path, before: str, *, is_run: bool = True
    ) -> Path:
        """Put a program before the engine's worker; returns the file that holds its process id."""
        module_name, _, constant = self.worker.partition(":")
        module = import_module(module_name)
        real = Path(getattr(module, constant))
        pid = folder / "worker.pid"
        program = (
            "import os, pathlib, runpy, sys\n"
            f"pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\n{before}\n"
        )
        if is_run:
            program += f"runpy.run_path({str(real)!r}, run_name='__main__')\n"
        wrapper = folder / "wrapper.py"
        wrapper.write_text(program, encoding="utf-8")
        monkeypatch.setattr(module, constant, wrapper)
        return pid

    def test_cancelling_stops_it_without_finished_labels(self, tmp_path: Path) -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            pid = self.wrap_worker(monkeypatch, tmp_path, "")
            with pytest.raises(RunCancelledError):
                self.start(tmp_path / "run", _ActingSink(cancels=True))
        assert not (tmp_path / "run" / LABELS_NAME / "zarr.json").exists()
        assert not _is_running(int(pid.read_text()))

    def test_chatter_on_standard_output_is_harmless(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.wrap_worker(monkeypatch, tmp_path, _CHATTER)
        disturbed = self.start(tmp_path / "disturbed", RecordingSink())
        assert_array_equal(disturbed.labels.load(), self.run(tmp_path / "plain").labels.load())

    def test_an_error_crosses_the_boundary_with_its_hint(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.wrap_worker(monkeypatch, tmp_path, _FAILING, is_run=False)
        with pytest.raises(InputError, match="the moon is full") as caught:
            self.start(tmp_path / "run", RecordingSink())
        assert caught.value.hint == "wait a week"

    def test_a_killed_worker_fails_the_run_and_nothing_else_and_the_run_goes_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pid = self.wrap_worker(monkeypatch, tmp_path, "")
        with pytest.raises(EngineError, match="SIGKILL") as caught:
            self.start(tmp_path / "run", _ActingSink(pid=pid))
        assert caught.value.hint
        assert not (tmp_path / "run" / LABELS_NAME / "zarr.json").exists()
        resumed = self.start(tmp_path / "run", RecordingSink(), resume=True)
        assert_array_equal(resumed.labels.load(), self.run(tmp_path / "plain").labels.load())

    def test_a_device_out_of_memory_is_tried_once_more_and_said(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.wrap_worker(monkeypatch, tmp_path, _OUT_OF_MEMORY.format(flag=str(tmp_path / "flag")))
        sink = RecordingSink()
        result = self.start(tmp_path / "run", sink)
        assert result.tiles_done == result.tiles_planned
        told = [event.message for event in sink.events if isinstance(event, WarningEvent)]
        assert any("memory" in message for message in told), told

    def test_a_device_that_stays_out_of_memory_is_one_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.wrap_worker(monkeypatch, tmp_path, _OUT_OF_MEMORY.format(flag=""))
        with pytest.raises(DeviceMemoryError):
            self.start(tmp_path / "run", RecordingSink())


class _ActingSink(RecordingSink):
    """Cancels, or kills the worker, once real work has been reported."""

    def __init__(self, *, cancels: bool = False, pid: Path | None = None) -> None:
        super().__init__()
        self._cancels = cancels
        self._pid = pid
        self._has_begun = False

    def emit(self, event: Any, /) -> None:
        """Keep an event; act at the second step that follows the preview."""
        super().emit(event)
        if isinstance(event, PreviewEvent):
            self._has_begun = True
        is_step = isinstance(event, ProgressEvent) and 1 <= event.done < event.total
        if not (self._has_begun and is_step):
            return
        if self._pid is not None and not self._cancels:
            os.kill(int(self._pid.read_text()), signal.SIGKILL)
            self._pid = None
        self.cancel_at = 0 if self._cancels else None


_CHILD = "sys.path.insert(0, sys.argv[1])\nimport child\n"
_CHATTER = """
import threading
print("chatter before anything", flush=True)
def chatter():
    while True:
        try:
            os.write(1, b'{"type": "progress"} no message\\n')
            print("{}", flush=True)
        except OSError:
            return
        threading.Event().wait(0.05)
threading.Timer(1.0, chatter).start()
"""
_FAILING = f"""{_CHILD}
child.serve(lambda channel: channel.fail("invalid_input", "the moon is full", "wait a week"))
"""
_OUT_OF_MEMORY = (
    _CHILD
    + """
class OutOfMemoryError(RuntimeError):
    pass
def fail(channel):
    raise OutOfMemoryError("CUDA out of memory")
flag = {flag!r}
if not flag or not os.path.exists(flag):
    if flag:
        open(flag, "w").close()
    child.serve(fail)
"""
)


def _are_equal(one: Volume, other: Volume) -> bool:
    return one.shape == other.shape and bool(np.array_equal(one.load(), other.load()))


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
