"""Labels on disk while a run writes them."""

import errno
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from ome_zarr_models.v05 import ImageLabel

from lamella.core.errors import (
    BoxOutOfBoundsError,
    InputError,
    MissingPathError,
    OutputExistsError,
    RunCancelledError,
    StorageError,
    UnreadableFileError,
)
from lamella.core.progress import CancelToken, SilentSink
from lamella.io.format import open_volume
from lamella.io.label_store import LabelStore, create_labels
from lamella.io.ome_zarr_arrays import iter_blocks, level_factors, shard_shape
from lamella.volume import Affine, Box, LabelClass, Labels, Volume, cover
from lamella.volume.pyramid import downsample_labels

CLASSES = (LabelClass(1, "mito", (10, 20, 30)), LabelClass(2, "Lücke µ"))


def volume_like(shape: tuple[int, ...], **fields: object) -> Volume:
    spacing = (4.0, 2.0, 2.0)[-len(shape) :]
    empty = np.broadcast_to(np.float32(0), shape)
    return Volume.from_array(empty, spacing=spacing, unit="nm", **fields)  # type: ignore[arg-type]


def labels_of(shape: tuple[int, ...], dtype: str = "uint16", high: int = 4) -> np.ndarray:
    return np.random.default_rng(5).integers(0, high, shape).astype(dtype)


def write_all(store: LabelStore, array: np.ndarray) -> None:
    for box in iter_blocks(array.shape, store.unit, array.itemsize, max_bytes=1):
        store.write(box, array[box.slices()])


@given(
    shape=st.lists(st.integers(1, 12), min_size=2, max_size=3).map(tuple),
    chunk=st.integers(2, 9),
    tile=st.integers(4, 11),
    order=st.randoms(use_true_random=False),
)
def test_any_cover_in_any_order_gives_the_whole(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple, chunk: int, tile: int, order: object
) -> None:
    array = labels_of(shape)
    path = tmp_path_factory.mktemp("labels") / "labels.ome.zarr"
    chunks = (chunk,) * len(shape)
    store = create_labels(path, like=volume_like(shape), dtype="uint16", chunks=chunks)
    tiles = list(cover(shape, (tile,) * len(shape), (0,) * len(shape)))
    order.shuffle(tiles)  # type: ignore[attr-defined]
    for part in tiles:
        store.write(part.write, array[part.write.slices()])
    assert_array_equal(store.finish(SilentSink()).load(), array)


def test_finished_labels_are_a_valid_image_that_lies_on_the_input(tmp_path: Path) -> None:
    path = tmp_path / "labels.ome.zarr"
    like = volume_like((20, 300, 280), origin=(5.0, 6.0, 7.0))
    array = labels_of(like.shape)
    store = create_labels(path, like=like, dtype="uint16", classes=CLASSES)
    write_all(store, array)
    labels = store.finish(SilentSink())
    assert isinstance(labels, Labels)
    assert labels.same_grid(like)
    assert labels.affine == like.affine
    assert labels.classes == CLASSES
    assert not labels.is_instance
    factors = level_factors(array.shape, like.affine.spacing, None)[1:]
    assert len(labels.levels) == len(factors) >= 2
    for level, factor in zip(labels.levels, factors, strict=True):
        assert_array_equal(level.load(), downsample_labels(array, factor))
        assert level.affine == like.affine.downsampled(factor)
    group = zarr.open_group(str(path), mode="r")
    checked = ImageLabel.from_zarr(group)
    colors = checked.attributes.ome.image_label.colors
    assert colors is not None
    assert [color.label_value for color in colors] == [1, 2]
    assert group["0"].metadata.dimension_names == ("z", "y", "x")


@pytest.mark.parametrize("frame", ["stage", "RAS"])
def test_oblique_input_keeps_its_geometry(tmp_path: Path, frame: str) -> None:
    turn = ((0.0, -0.6, 0.8), (1.0, 0.0, 0.0), (0.0, 0.8, 0.6))
    affine = Affine((3.0, 0.1, 0.7), (-11.5, 2.25, 9.0), turn, frame)  # type: ignore[arg-type]
    like = Volume(np.zeros((3, 4, 5)), volume_like((3, 4, 5)).axes, affine, "mm")
    store = create_labels(tmp_path / "l.ome.zarr", like=like, dtype="uint8")
    assert store.finish(SilentSink()).affine == affine


@pytest.mark.parametrize("axes", ["cyx", "tczyx"])
def test_channels_and_times_are_left_out(tmp_path: Path, axes: str) -> None:
    shape = (2,) * (len(axes) - 2) + (5, 6)
    spacing = (1.0,) * (3 if "z" in axes else 2)
    like = Volume.from_array(np.zeros(shape), axes=axes, spacing=spacing, unit="um")
    store = create_labels(tmp_path / "l.ome.zarr", like=like, dtype="uint32", is_instance=True)
    labels = store.finish(SilentSink())
    assert labels.shape == like.spatial_shape
    assert labels.is_instance


def test_killed_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "labels.ome.zarr"
    like = volume_like((24, 40, 40))
    array = labels_of(like.shape)
    store = create_labels(
        path, like=like, dtype="uint16", classes=CLASSES, chunks=(8, 16, 16), pyramid=True
    )
    store.write(Box((0, 0, 0), (8, 40, 40)), array[:8])
    store.sync()
    # What a kill in the middle of writing a chunk leaves behind.
    (path / "0" / "c" / "1").mkdir(parents=True)
    (path / "0" / "c" / "1" / "0.deadbeef.partial").write_bytes(b"half")
    with pytest.raises(UnreadableFileError, match="not finished"):
        open_volume(path)
    again = LabelStore.reopen(path)
    assert not again.is_finished
    assert_array_equal(again.read(Box((0, 0, 0), (8, 40, 40))), array[:8])
    again.write(Box((8, 0, 0), (24, 40, 40)), array[8:])
    labels = again.finish(SilentSink())
    assert_array_equal(labels.load(), array)
    assert labels.classes == CLASSES
    assert labels.affine == like.affine
    assert not list(path.rglob("*.partial"))
    assert again.is_finished
    assert not (path / "pending.json").exists()
    assert_array_equal(again.finish(SilentSink()).load(), array)


def test_cancelled_finish_can_be_repeated(tmp_path: Path) -> None:
    path = tmp_path / "labels.ome.zarr"
    like = volume_like((300, 30, 30))
    array = labels_of(like.shape)
    store = create_labels(path, like=like, dtype="uint16")
    write_all(store, array)
    token = CancelToken()
    token.cancel()
    with pytest.raises(RunCancelledError):
        store.finish(SilentSink(token))
    assert not store.is_finished
    assert_array_equal(LabelStore.reopen(path).finish(SilentSink()).load(), array)


def test_reopening_what_is_not_ours(tmp_path: Path) -> None:
    with pytest.raises(MissingPathError):
        LabelStore.reopen(tmp_path / "nothing")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UnreadableFileError):
        LabelStore.reopen(tmp_path / "folder")
    path = tmp_path / "labels.ome.zarr"
    create_labels(path, like=volume_like((4, 4)), dtype="uint8")
    (path / "pending.json").write_text("{")
    with pytest.raises(UnreadableFileError):
        LabelStore.reopen(path)


def test_threads_write_what_one_writes(tmp_path: Path) -> None:
    like = volume_like((32, 48, 48))
    array = labels_of(like.shape)
    store = create_labels(tmp_path / "l.ome.zarr", like=like, dtype="uint16", chunks=(8, 16, 16))
    # Tiles of 5 never end where chunks of 8 do: every write rewrites parts of chunks.
    boxes = [part.write for part in cover(array.shape, (5, 13, 48), (0, 0, 0))]
    failures: list[Exception] = []

    def work(mine: list[Box]) -> None:
        try:
            for box in mine:
                store.write(box, array[box.slices()])
        except Exception as error:  # noqa: BLE001 - handed to the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(boxes[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert_array_equal(store.array[:], array)


def test_full_disk_is_one_error_and_resumable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "labels.ome.zarr"
    store = create_labels(path, like=volume_like((8, 8, 8)), dtype="uint8", chunks=(8, 8, 8))

    def full(*_arguments: object, **_words: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("zarr.storage._local._put", full)
        with pytest.raises(StorageError, match="disk is full") as caught:
            store.write(Box((0, 0, 0), (8, 8, 8)), np.ones((8, 8, 8), np.uint8))
        assert caught.value.hint
    again = LabelStore.reopen(path)
    again.write(Box((0, 0, 0), (8, 8, 8)), np.ones((8, 8, 8), np.uint8))
    assert again.finish(SilentSink()).load().all()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    like = volume_like((8, 8, 8))
    path = tmp_path / "labels.ome.zarr"
    with pytest.raises(InputError, match="float32"):
        create_labels(path, like=like, dtype="float32")
    store = create_labels(path, like=like, dtype="uint8")
    with pytest.raises(OutputExistsError):
        create_labels(path, like=like, dtype="uint8")
    with pytest.raises(BoxOutOfBoundsError):
        store.write(Box((0, 0, 4), (8, 8, 12)), np.ones((8, 8, 8), np.uint8))
    with pytest.raises(InputError, match="fill"):
        store.write(Box((0, 0, 0), (8, 8, 8)), np.ones((8, 8), np.uint8))
    with pytest.raises(InputError, match="uint16"):
        store.write(Box((0, 0, 0), (8, 8, 8)), np.ones((8, 8, 8), np.uint16))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_ids_up_to_the_top_survive(tmp_path: Path, dtype: str) -> None:
    top = np.iinfo(dtype).max
    array = np.zeros((4, 4, 4), dtype)
    array[1, 2, 3] = top
    store = create_labels(
        tmp_path / "l.ome.zarr", like=volume_like((4, 4, 4)), dtype=dtype, is_instance=True
    )
    store.write(Box((0, 0, 0), (4, 4, 4)), array)
    labels = store.finish(SilentSink())
    assert labels.dtype == dtype
    assert int(labels.load().max()) == top
    document = json.loads((tmp_path / "l.ome.zarr" / "zarr.json").read_text())
    colors = document["attributes"]["ome"]["image-label"]["colors"]
    assert [color["label-value"] for color in colors] == [top]


def test_shards_hold_one_band_of_chunks_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shard_shape((512, 512, 512), (64, 64, 64), 4) is None
    huge = (4096, 2048, 2048)
    shards = shard_shape(huge, (64, 64, 64), 4)
    assert shards is not None
    assert shards[0] == 64
    assert np.prod(shards) * 4 <= 64 * 2**20
    assert shard_shape(huge, (64, 64, 64), 4, band_axis=2)[2] == 64  # type: ignore[index]
    monkeypatch.setattr("lamella.io.ome_zarr_arrays._SHARD_FROM", 8)
    like = volume_like((30, 50, 60))
    array = labels_of(like.shape)
    store = create_labels(tmp_path / "l.ome.zarr", like=like, dtype="uint16", chunks=(8, 8, 8))
    assert store.array.shards is not None
    assert store.unit[0] == 8
    write_all(store, array)
    store.sync()
    labels = store.finish(SilentSink())
    assert_array_equal(labels.load(), array)
    ImageLabel.from_zarr(zarr.open_group(str(tmp_path / "l.ome.zarr"), mode="r"))


def test_pyramid_needs_no_more_memory_than_a_block(tmp_path: Path) -> None:
    import tracemalloc

    like = volume_like((512, 256, 256))
    store = create_labels(tmp_path / "l.ome.zarr", like=like, dtype="uint32")
    block = np.ones((64, 256, 256), np.uint32)
    for start in range(0, 512, 64):
        store.write(Box((start, 0, 0), (start + 64, 256, 256)), block + np.uint32(start))
    tracemalloc.start()
    try:
        store.finish(SilentSink())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60e6, f"{peak / 1e6:.0f} MB for {like.nbytes / 1e6:.0f} MB of labels"
