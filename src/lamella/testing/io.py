"""What every reader and writer promises, as a pytest class to inherit.

Examples:
    A format proves itself by saying what it keeps::

        class TestNrrd(FormatContract):
            format_id = "nrrd"
            suffix = ".nrrd"
            dtypes = ("uint8", "int16", "float32")
            units = ("nm", "um", "mm")
            directions = "rotations"
"""

import errno
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from lamella.core.errors import (
    NarrowingError,
    OutputExistsError,
    RunCancelledError,
    StorageError,
    UnreadableFileError,
)
from lamella.core.progress import CancelToken, Progress
from lamella.io.format import SaveOptions, open_volume, save_volume
from lamella.testing.io_reader import MANY, ReaderContract
from lamella.testing.strategies import Directions, filled_array, volumes
from lamella.volume import Affine, Axes, Frame, FunctionArray, LabelClass, Labels, Unit, Volume

__all__ = ["FormatContract", "ReaderContract"]


class FormatContract(ReaderContract):
    """What every format that is read and written promises: ``read(write(x)) = x``.

    Attributes:
        dtypes: kept exactly.
        axes: kept exactly; the first is used for examples.
        units: kept exactly.
        converted_units: written in another unit of the format, so the grid survives, not the word.
        frames: kept exactly.
        directions: how freely the axes may run.
        keeps_origin: whether the first voxel's place is stored.
        keeps_channel_names: whether they come back.
        keeps_label_classes: whether names and colours of classes come back.
        narrowing: (dtype, value) pairs that must be refused with ``NarrowingError``.
        tolerance: of the affine, in voxels.
        is_streaming: whether writing needs less memory than the volume.
        memory_shape: shape for the memory tests; 24 MB of uint16.
    """

    dtypes: ClassVar[tuple[str, ...]] = ("uint8", "uint16", "float32")
    axes: ClassVar[tuple[str, ...]] = ("zyx",)
    units: ClassVar[tuple[Unit, ...]] = ("nm", "um", "mm")
    converted_units: ClassVar[tuple[Unit, ...]] = ()
    frames: ClassVar[tuple[Frame, ...]] = ("stage",)
    directions: ClassVar[Directions] = "identity"
    keeps_origin: ClassVar[bool] = True
    keeps_channel_names: ClassVar[bool] = False
    keeps_label_classes: ClassVar[bool] = False
    narrowing: ClassVar[tuple[tuple[str, int], ...]] = ()
    tolerance: ClassVar[float] = 1e-3
    is_streaming: ClassVar[bool] = True
    memory_shape: ClassVar[tuple[int, ...]] = (192, 256, 256)

    def make_example(self, folder: Path) -> Path:
        """A small volume of noise in the format's first type and axes."""
        return self.save(self._small(), folder / f"example{self.suffix}", overwrite=True)

    def save(self, volume: Volume, path: Path, **options: Any) -> Path:
        """Write in this format, whatever the suffix."""
        return save_volume(volume, path, SaveOptions(format=self.format_id, **options))

    @MANY
    @given(data=st.data())
    def test_read_of_write_is_the_same(self, tmp_path: Path, data: st.DataObject) -> None:
        volume = data.draw(
            volumes(
                dtypes=self.dtypes,
                axes=self.axes,
                units=self.units + self.converted_units,
                frames=self.frames,
                directions=self.directions,
                has_origin=self.keeps_origin,
            )
        )
        path = self.save(volume, tmp_path / f"drawn{self.suffix}", overwrite=True)
        again = open_volume(path, self.open_options(path))
        assert str(again.axes) == str(volume.axes)
        assert again.shape == volume.shape
        assert again.dtype == volume.dtype
        assert_array_equal(again.load(), volume.load())
        if volume.unit in self.units:
            assert again.unit == volume.unit
        assert again.affine.frame == volume.affine.frame
        assert again.same_grid(volume, self.tolerance), (again.affine, volume.affine)

    def test_writing_twice_gives_the_same(self, tmp_path: Path) -> None:
        """What was read is a valid volume to write: the second generation equals the first."""
        first = open_volume(self.make_example(tmp_path))
        path = self.save(first, tmp_path / f"second{self.suffix}")
        second = open_volume(path)
        assert_array_equal(second.load(), first.load())
        assert second.affine == first.affine
        assert second.unit == first.unit

    def test_channel_names(self, tmp_path: Path) -> None:
        if not self.keeps_channel_names:
            pytest.skip("the format has no channel names")
        axes = next(a for a in self.axes if "c" in a)
        shape = tuple(2 if name == "c" else 3 for name in axes)
        data = filled_array(shape, self.dtypes[0], fill="ramp", seed=0)
        volume = Volume.from_array(
            data, axes=axes, spacing=(1.0,) * (3 if "z" in axes else 2), unit=self.units[0]
        )
        volume = replace(volume, channel_names=("DAPI", "GFP 488 µm"))
        path = self.save(volume, tmp_path / f"named{self.suffix}")
        assert open_volume(path).channel_names == ("DAPI", "GFP 488 µm")

    def test_labels(self, tmp_path: Path) -> None:
        dtype = next((d for d in ("uint16", "uint8", "int16") if d in self.dtypes), None)
        if dtype is None:
            pytest.skip("the format holds no integers")
        small = self._small(dtype)
        shared = {name: getattr(small, name) for name in Volume.__dataclass_fields__}
        classes = (LabelClass(1, "mitochondrion", (255, 0, 0)), LabelClass(2, "Zürich µ"))
        labels = Labels(**shared, classes=classes, is_instance=True)
        path = self.save(labels, tmp_path / f"labels{self.suffix}")
        again = open_volume(path)
        assert_array_equal(again.load(), small.load())
        if self.keeps_label_classes:
            assert isinstance(again, Labels)
            assert again.classes == classes
            assert again.is_instance

    def test_ids_that_do_not_fit(self, tmp_path: Path) -> None:
        if not self.narrowing:
            pytest.skip("every id fits")
        for dtype, value in self.narrowing:
            small = self._small("uint8")
            data = np.ones(small.shape, dtype)
            data[(-1,) * data.ndim] = value
            path = tmp_path / f"narrow{self.suffix}"
            with pytest.raises(NarrowingError) as caught:
                self.save(replace(small, data=data), path)
            assert str(value) in caught.value.message
            assert caught.value.hint
            assert list(tmp_path.iterdir()) == []

    def test_refuses_to_overwrite(self, tmp_path: Path) -> None:
        path = self.make_example(tmp_path)
        before = self.load(path)
        with pytest.raises(OutputExistsError, match="already there"):
            self.save(self._small(seed=9), path)
        assert_array_equal(self.load(path), before)
        self.save(self._small(seed=9), path, overwrite=True)
        assert_array_equal(self.load(path), self._small(seed=9).load())

    def test_nothing_is_left_when_the_source_fails(self, tmp_path: Path) -> None:
        def fail(slices: tuple[slice, ...]) -> NDArray[Any]:
            raise UnreadableFileError("the source is damaged", hint="copy it again")

        small = self._small()
        broken = replace(small, data=FunctionArray(small.shape, small.dtype, fail))
        with pytest.raises(UnreadableFileError, match="the source is damaged"):
            self.save(broken, tmp_path / f"out{self.suffix}")
        assert list(tmp_path.iterdir()) == []

    def test_nothing_is_left_when_the_disk_is_full(self, tmp_path: Path) -> None:
        def fail(slices: tuple[slice, ...]) -> NDArray[Any]:
            raise OSError(errno.ENOSPC, "No space left on device")

        small = self._small()
        broken = replace(small, data=FunctionArray(small.shape, small.dtype, fail))
        with pytest.raises(StorageError, match="the disk is full"):
            self.save(broken, tmp_path / f"out{self.suffix}")
        assert list(tmp_path.iterdir()) == []

    def test_failure_keeps_what_was_there(self, tmp_path: Path) -> None:
        path = self.make_example(tmp_path)
        before = self.load(path)

        def fail(slices: tuple[slice, ...]) -> NDArray[Any]:
            raise UnreadableFileError("the source is damaged", hint="copy it again")

        small = self._small()
        broken = replace(small, data=FunctionArray(small.shape, small.dtype, fail))
        with pytest.raises(UnreadableFileError):
            self.save(broken, path, overwrite=True)
        assert_array_equal(self.load(path), before)
        assert [p.name for p in tmp_path.iterdir() if ".partial" in p.name] == []

    def test_cancelled(self, tmp_path: Path) -> None:
        sink = _CancelledSink()
        with pytest.raises(RunCancelledError):
            self.save(self._small(), tmp_path / f"out{self.suffix}", sink=sink)
        assert list(tmp_path.iterdir()) == []

    def test_progress_ends_at_the_total(self, tmp_path: Path) -> None:
        sink = _RecordingSink()
        self.save(self._small(), tmp_path / f"out{self.suffix}", sink=sink)
        assert sink.seen, "writing a volume reports progress"
        assert sink.seen[-1].done == sink.seen[-1].total

    def test_writing_streams(self, tmp_path: Path) -> None:
        if not self.is_streaming:
            pytest.skip("the format is written in one piece")
        volume = self._large()
        path = tmp_path / f"large{self.suffix}"
        peak = _peak_bytes(lambda: self.save(volume, path, compress=False, pyramid=False))
        assert peak < 0.8 * volume.nbytes, f"{peak / 2**20:.0f} MB to write a lazy volume"

    def test_a_slice_costs_a_slice(self, tmp_path: Path) -> None:
        if not self.is_lazy:
            pytest.skip("the format is read in one piece")
        volume = self._large()
        path = tmp_path / f"large{self.suffix}"
        self.save(volume, path, compress=False, pyramid=False)

        def read_one_plane() -> None:
            opened = open_volume(path)
            assert_array_equal(opened.data[3:4], volume.data[3:4])

        read_one_plane()  # imports and caches
        assert _peak_bytes(read_one_plane, repeats=3) < 0.4 * volume.nbytes

    def _small(self, dtype: str | None = None, seed: int = 3) -> Volume:
        axes = Axes.parse(self.axes[0])
        shape = tuple(2 if name in "tc" else {"z": 5, "y": 9, "x": 12}[name] for name in axes.names)
        data = filled_array(shape, dtype or self.dtypes[0], fill="noise", seed=seed)
        n = axes.n_spatial
        affine = Affine.diagonal((4.0, 2.5, 2.0)[-n:], frame=self.frames[0])
        return Volume(data=data, axes=axes, affine=affine, unit=self.units[0], name="small")

    def _large(self) -> Volume:
        dtype = "uint16" if "uint16" in self.dtypes else self.dtypes[0]
        axes = Axes.parse(self.axes[0])
        # As many bytes whatever the type: the limits are fractions of it.
        shape = (self.memory_shape[0] * 2 // np.dtype(dtype).itemsize, *self.memory_shape[1:])
        plane = filled_array(shape[1:], dtype, fill="noise", seed=1)

        def read(slices: tuple[slice, ...]) -> NDArray[Any]:
            return np.stack([plane[slices[1:]]] * (slices[0].stop - slices[0].start))

        return Volume(
            data=FunctionArray(shape, dtype, read),
            axes=axes,
            affine=Affine.diagonal((1.0,) * axes.n_spatial, frame=self.frames[0]),
            unit=self.units[0],
        )


class _RecordingSink:
    def __init__(self) -> None:
        self.seen: list[Progress] = []

    def emit(self, progress: Progress) -> None:
        self.seen.append(progress)

    def check(self) -> None:
        return


class _CancelledSink(_RecordingSink):
    def check(self) -> None:
        token = CancelToken()
        token.cancel()
        token.check()


def _peak_bytes(work: Callable[[], object], *, repeats: int = 1) -> int:
    """Python's and numpy's allocations at their highest, in bytes; mapped files do not count.

    Threads that other tests left behind allocate too, now and then: with repeats the smallest peak
    stands, as what the work itself needs is needed every time.
    """
    peaks: list[int] = []
    for _ in range(repeats):
        tracemalloc.start()
        try:
            work()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return min(peaks)
