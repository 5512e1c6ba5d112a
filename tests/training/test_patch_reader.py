"""PatchReader: what zarr-python reads, from anywhere, in any process; damage is named."""

import functools
import http.server
import json
import math
import multiprocessing
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
import zarr.codecs
import zarr.storage
from hypothesis import given
from hypothesis import strategies as st
from numcodecs import Blosc, Delta, GZip, Zstd

import lamella
from lamella.core.errors import (
    BoxOutOfBoundsError,
    DownloadError,
    InputError,
    LamellaError,
    MissingPathError,
    UnreadableFileError,
)
from lamella.training.patch_reader import (
    PatchReader,
    ReadOptions,
    open_level,
    worker_context,
)
from lamella.volume import Volume
from lamella.volume.box import Box

SMALL = ReadOptions(cache_bytes=2**20, threads=1)
DTYPES = ("u1", "i1", "<u2", ">i2", "<u4", "<i8", ">u8", "<f2", ">f4", "<f8", "?")
COMPRESSORS = {
    2: (None, Zstd(1), GZip(1), Blosc("zstd"), Blosc("lz4")),
    3: (None, zarr.codecs.ZstdCodec(), zarr.codecs.GzipCodec(), zarr.codecs.BloscCodec()),
}


def make(folder, data, *, chunks=None, zarr_format=3, **settings):
    array = zarr.create_array(
        str(folder),
        shape=data.shape,
        chunks=chunks or tuple(min(4, n) for n in data.shape),
        dtype=data.dtype,
        zarr_format=zarr_format,
        **settings,
    )
    array[...] = data
    return array


def ramp(shape, dtype="u2"):
    return np.arange(math.prod(shape)).reshape(shape).astype(dtype)


@st.composite
def arrays(draw):
    """Settings of an array, and boxes inside it and beyond."""
    n_axes = draw(st.integers(1, 4))
    shape = tuple(draw(st.integers(1, 9)) for _ in range(n_axes))
    inner = tuple(draw(st.integers(1, 5)) for _ in range(n_axes))
    zarr_format = draw(st.sampled_from((2, 3)))
    settings = {
        "shape": shape,
        "chunks": inner,
        "zarr_format": zarr_format,
        "dtype": draw(st.sampled_from(DTYPES)),
        "compressors": draw(st.sampled_from(COMPRESSORS[zarr_format])),
        "fill_value": draw(st.sampled_from((0, 1))),
    }
    if zarr_format == 3 and draw(st.booleans()):
        settings["shards"] = tuple(c * draw(st.integers(1, 3)) for c in inner)
    if zarr_format == 2 and draw(st.booleans()):
        settings["chunk_key_encoding"] = {"name": "v2", "separator": "/"}
    if zarr_format == 2 and draw(st.booleans()):
        settings["order"] = "F"
    corners = [
        sorted(draw(st.lists(st.integers(-1, n + 1), min_size=2, max_size=2))) for n in shape
    ]
    return settings, Box(tuple(a for a, _ in corners), tuple(b for _, b in corners))


@given(arrays(), st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_read_is_the_slice_that_zarr_python_gives(tmp_path_factory, case, seed, n_written):
    settings, box = case
    folder = tmp_path_factory.mktemp("law") / "a"
    array = zarr.create_array(str(folder), **settings)
    rng = np.random.default_rng(seed)
    for _ in range(n_written):
        low = [int(rng.integers(0, n)) for n in array.shape]
        part = tuple(
            slice(a, int(rng.integers(a, n)) + 1) for a, n in zip(low, array.shape, strict=True)
        )
        array[part] = rng.integers(0, 2, array[part].shape).astype(array.dtype)
    reader = PatchReader(folder, options=SMALL)
    assert (reader.shape, reader.chunks) == (array.shape, array.chunks)
    assert reader.dtype == array.dtype.newbyteorder("=")
    if not Box.from_shape(array.shape).contains(box):
        with pytest.raises(BoxOutOfBoundsError):
            reader.read(box)
        return
    if box.is_empty:  # also beyond the array: it asks for nothing
        assert reader.read(box).shape == box.shape
        return
    expected = array[box.slices()]
    found = reader.read(box)
    assert found.dtype == reader.dtype
    assert found.flags.c_contiguous
    assert found.flags.writeable
    np.testing.assert_array_equal(found, expected)
    as_float = reader.read(box, dtype=np.float32)
    np.testing.assert_array_equal(as_float, expected.astype(np.float32))
    mask = reader.missing_mask(box)
    assert mask.shape == box.shape
    assert np.all(expected[mask] == reader.fill_value)
    assert reader.missing(box) == (mask.mean() if mask.size else 0.0)
    assert reader.backend == "tensorstore"
    assert reader.backend_reason == ""


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_fill_values_of_floats_are_kept(tmp_path, zarr_format):
    zarr.create_array(
        str(tmp_path / "a"), shape=(3,), chunks=(2,), dtype="f4", fill_value=np.nan,
        zarr_format=zarr_format,
    )  # fmt: skip
    reader = PatchReader(tmp_path / "a")
    assert np.isnan(reader.read(Box((0,), (3,)))).all()
    assert np.isnan(reader.fill_value)
    assert reader.missing(Box((0,), (3,))) == 1.0


def test_missing_tells_chunks_inside_a_shard(tmp_path):
    array = zarr.create_array(
        str(tmp_path / "a"), shape=(8, 8), chunks=(2, 2), shards=(4, 4), dtype="u1"
    )
    array[:2, :4] = 1
    reader = PatchReader(tmp_path / "a")
    assert reader.missing(Box((0, 0), (2, 4))) == 0.0
    assert reader.missing(Box((0, 0), (4, 4))) == 0.5
    assert reader.missing(Box((1, 1), (3, 2))) == 0.5
    assert reader.missing_mask(Box((1, 3), (3, 5))).tolist() == [[False, True], [True, True]]


def test_several_boxes_at_once(tmp_path):
    data = ramp((9, 9))
    make(tmp_path / "a", data)
    boxes = [Box((0, 0), (9, 9)), Box((4, 4), (4, 8)), Box((3, 1), (5, 8))]
    found = PatchReader(tmp_path / "a").read_many(boxes)
    for box, part in zip(boxes, found, strict=True):
        np.testing.assert_array_equal(part, data[box.slices()])


def test_what_is_read_belongs_to_the_caller(tmp_path):
    make(tmp_path / "a", ramp((8, 8)))
    reader = PatchReader(tmp_path / "a")
    whole = Box((0, 0), (8, 8))
    reader.read(whole)[:] = 9
    np.testing.assert_array_equal(reader.read(whole), ramp((8, 8)))


def test_axes_are_reordered_and_dropped(tmp_path):
    data = ramp((1, 3, 4, 5))
    make(tmp_path / "a", data)
    for reader in (
        PatchReader(tmp_path / "a", keep=(2, 1, 3)),
        PatchReader(tmp_path / "a", keep=(2, 1, 3), options=SMALL),
    ):
        assert reader.shape == (4, 3, 5)
        found = reader.read(Box((1, 0, 2), (3, 3, 5)))
        np.testing.assert_array_equal(found, data[0, :, 1:3, 2:5].transpose(1, 0, 2))
    with pytest.raises(InputError, match="length 3 and cannot be dropped"):
        PatchReader(tmp_path / "a", keep=(2, 3))
    with pytest.raises(InputError, match="axes"):
        PatchReader(tmp_path / "a", keep=(2, 2, 1, 3))


def test_a_reader_is_a_lazy_array_of_a_volume(tmp_path):
    data = ramp((6, 7, 8))
    make(tmp_path / "a", data)
    volume = Volume.from_array(PatchReader(tmp_path / "a"))
    np.testing.assert_array_equal(volume.load(), data)
    np.testing.assert_array_equal(PatchReader(tmp_path / "a")[2, 1:3], data[2, 1:3])


# ---- codecs that tensorstore does not know


def test_an_unknown_codec_falls_back_and_says_why(tmp_path):
    data = ramp((10, 6))
    array = make(tmp_path / "a", data, zarr_format=2, filters=[Delta("u2")], compressors=Zstd(1))
    reader = PatchReader(tmp_path / "a", keep=(1, 0))
    assert reader.backend == "zarr"
    assert "filters are not supported" in reader.backend_reason
    box = Box((1, 2), (5, 9))
    np.testing.assert_array_equal(reader.read(box), data.T[box.slices()])
    assert reader.read(box, dtype="f4").dtype == np.float32
    (Path(array.store.root) / "1.0").unlink()
    reader = PatchReader(tmp_path / "a")
    assert reader.missing(Box((0, 0), (8, 2))) == 0.5
    assert not reader.read(Box((4, 0), (8, 2))).any()


def test_a_damaged_chunk_of_the_fallback_is_named(tmp_path):
    make(tmp_path / "a", ramp((10, 6)), zarr_format=2, filters=[Delta("u2")], compressors=Zstd(1))
    (tmp_path / "a" / "1.0").write_bytes(b"no zstd")
    with pytest.raises(UnreadableFileError, match=r"chunk 1\.0 of .* \(box \[4:8, 0:4\]\)"):
        PatchReader(tmp_path / "a").read(Box((0, 0), (10, 6)))


# ---- archives, levels


def write_zip(path, data, name, zarr_format):
    store = zarr.storage.ZipStore(path, mode="w")
    array = zarr.create_array(
        store, name=name, shape=data.shape, chunks=(4, 4), dtype=data.dtype, zarr_format=zarr_format
    )
    array[...] = data
    store.close()


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_an_array_in_a_zip_archive(tmp_path, zarr_format):
    data = ramp((9, 9))
    write_zip(tmp_path / "a.zip", data, "x/y", zarr_format)
    reader = PatchReader(tmp_path / "a.zip" / "x" / "y")
    np.testing.assert_array_equal(reader.read(Box((1, 2), (7, 9))), data[1:7, 2:9])
    assert reader.backend == "tensorstore"
    with pytest.raises(UnreadableFileError, match="no zarr array"):
        PatchReader(tmp_path / "a.zip" / "z")
    (tmp_path / "b.zip").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(UnreadableFileError, match="zip"):
        PatchReader(tmp_path / "b.zip")


@pytest.mark.parametrize("suffix", [".ome.zarr", ".ome.zarr.zip"])
def test_levels_are_those_of_the_volume(tmp_path, suffix):
    data = np.random.default_rng(0).integers(0, 255, (40, 260, 300), np.uint8)
    path = tmp_path / f"image{suffix}"
    volume = Volume.from_array(data, spacing=(4, 2, 2), unit="nm")
    lamella.save(volume, path)
    for level in (0, 1):
        expected = lamella.open(path, level=level)
        reader = open_level(path, level=level)
        assert reader.shape == expected.shape
        np.testing.assert_array_equal(reader[...], expected.load())
    with pytest.raises(InputError, match="no level 9"):
        open_level(path, level=9)


def test_levels_with_time_and_channels_in_foreign_order(tmp_path):
    data = ramp((1, 2, 5, 6, 7))
    group = zarr.create_group(str(tmp_path / "a.zarr"), zarr_format=2)
    array = group.create_array("s0", shape=data.shape, chunks=(1, 1, 4, 4, 4), dtype=data.dtype)
    array[...] = data
    axes = [
        {"name": "t", "type": "time"},
        {"name": "c", "type": "channel"},
        *({"name": name, "type": "space", "unit": "nanometer"} for name in "xyz"),
    ]
    scale = {"type": "scale", "scale": [1.0, 1.0, 2.0, 2.0, 4.0]}
    level = {"path": "s0", "coordinateTransformations": [scale]}
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": [level]}]
    reader = open_level(tmp_path / "a.zarr")
    volume = lamella.open(tmp_path / "a.zarr")
    assert reader.shape == volume.shape
    np.testing.assert_array_equal(reader[...], volume.load())
    assert open_level(tmp_path / "a.zarr" / "s0").shape == data.shape


# ---- a server


class Server(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, with byte ranges, as a bucket gives them."""

    def log_message(self, *args):
        pass

    def list_directory(self, path):
        self.send_error(404)

    def do_GET(self):
        self.answer()

    def do_HEAD(self):
        self.answer()

    def answer(self):
        path = Path(self.translate_path(self.path.split("?")[0]))
        if "forbidden" in path.parts:
            self.send_error(403)
            return
        if not path.is_file():
            self.send_error(404)
            return
        content, status = path.read_bytes(), 200
        wanted = self.headers.get("Range")
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            size = len(content)
            start = int(first) if first else max(0, size - int(last))
            stop = min(size, int(last) + 1) if first and last else size
            content, status = content[start:stop], 206
        self.send_response(status)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"1"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def served(tmp_path):
    handler = functools.partial(Server, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("settings", [{"zarr_format": 2}, {}, {"shards": (8, 8)}])
@pytest.mark.parametrize("protocol", ["http", "s3"])
def test_arrays_in_a_bucket_and_on_a_web_server(tmp_path, served, settings, protocol):
    data = ramp((9, 9))
    data[:4, :4] = 0
    make(tmp_path / "bucket" / "a" / "s0", data, **settings)
    address = "s3://bucket/a/s0" if protocol == "s3" else f"{served}/bucket/a/s0"
    reader = PatchReader(address, options=ReadOptions(threads=1, endpoint=served))
    np.testing.assert_array_equal(reader.read(Box((0, 2), (7, 9))), data[:7, 2:])
    assert reader.missing(Box((0, 0), (4, 8))) == 0.5
    again = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(again[...], data)
    with pytest.raises(UnreadableFileError, match="no zarr array"):
        PatchReader(address.replace("s0", "s1"), options=reader.options)


def test_the_document_of_amazons_store_is_anonymous():
    from lamella.training.zarr_location import Location

    found = Location.parse("s3://janelia-cosem-datasets/jrc/raw/s0/").kvstore()
    assert found == {
        "driver": "s3",
        "bucket": "janelia-cosem-datasets",
        "path": "jrc/raw/s0/",
        "aws_credentials": {"type": "anonymous"},
    }
    signed = Location.parse("s3://b/k", is_anonymous=False, endpoint="http://here:9000/").kvstore()
    assert signed["aws_credentials"] == {"type": "default"}
    assert signed["endpoint"] == "http://here:9000"


def test_servers_that_refuse_or_are_gone(tmp_path, served, monkeypatch):
    from lamella.training import zarr_location

    monkeypatch.setitem(zarr_location._RETRIES, "max_retries", 1)
    with pytest.raises(LamellaError, match="s0") as caught:
        PatchReader(f"{served}/forbidden/s0")
    assert caught.value.hint
    with pytest.raises(DownloadError, match="cannot be read"):
        PatchReader("http://127.0.0.1:9/s0")


@pytest.mark.parametrize(
    ("address", "words"),
    [("gs://a/b", "gs://"), ("s3:///b", "names no bucket"), ("memory://a", "memory://")],
)
def test_addresses_that_mean_nothing(address, words):
    with pytest.raises(InputError, match=words):
        PatchReader(address)


# ---- damage


@pytest.mark.parametrize(
    ("zarr_format", "key", "compressor"),
    [
        (2, "1.0", Zstd(1)),
        (2, "1.0", Blosc()),
        (2, "1.0", None),
        (3, "c/1/0", zarr.codecs.ZstdCodec()),
        (3, "c/1/0", zarr.codecs.BloscCodec()),
    ],
)
@pytest.mark.parametrize("damage", [b"", b"garbage", "torn"])
def test_a_damaged_chunk_is_named(tmp_path, zarr_format, key, compressor, damage):
    noise = np.random.default_rng(0).integers(0, 9999, (16, 16)).astype("u2")
    make(tmp_path / "a", noise, chunks=(8, 8), zarr_format=zarr_format, compressors=compressor)
    chunk = tmp_path / "a" / key
    chunk.write_bytes(chunk.read_bytes()[:-9] if damage == "torn" else damage)
    reader = PatchReader(tmp_path / "a", options=SMALL)
    with pytest.raises(
        UnreadableFileError, match=r"chunk 1\.0 of .* \(box \[8:16, 0:8\]\)"
    ) as caught:
        reader.read(Box((0, 0), (16, 16)))
    assert str(tmp_path / "a") in str(caught.value)
    assert "tensorstore_spec" not in str(caught.value)
    assert "download" in caught.value.hint
    assert caught.value.details == {"array": str(tmp_path / "a"), "chunk": [1, 0]}
    np.testing.assert_array_equal(reader.read(Box((0, 0), (8, 16))), noise[:8])
    pickle.loads(pickle.dumps(caught.value))


def test_a_damaged_chunk_in_a_shard_is_named(tmp_path):
    make(tmp_path / "a", ramp((8, 8)), chunks=(2, 2), shards=(8, 8))
    shard = tmp_path / "a" / "c" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[3] ^= 255
    shard.write_bytes(content)
    with pytest.raises(UnreadableFileError, match=r"chunk 0\.0 "):
        PatchReader(tmp_path / "a").read(Box((0, 0), (8, 8)))


@given(st.binary(max_size=30), st.integers(0, 60))
def test_any_bytes_give_voxels_or_one_clear_error(tmp_path_factory, content, at):
    folder = tmp_path_factory.mktemp("any") / "a"
    make(folder, ramp((8, 8)), chunks=(8, 8), zarr_format=2, compressors=Zstd(1))
    chunk = folder / "0.0"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:at] + content + whole[at + len(content) :])
    found = None
    try:
        found = PatchReader(folder, options=SMALL)[...]
    except UnreadableFileError as error:
        message = error.message
    assert "chunk 0.0" in message if found is None else found.shape == (8, 8)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ('{"zarr_format": 2, "shape": [2', "is no JSON"),
        ("[]", "no JSON object"),
        ("{}", "describes no array"),
        ('{"shape": [2], "chunks": [2, 2], "dtype": "|u1"}', "describes no array"),
        ('{"shape": [2], "chunks": [0], "dtype": "|u1"}', "describes no array"),
        ('{"shape": 2, "chunks": [1], "dtype": "|u1"}', "describes no array"),
        ('{"shape": [0], "chunks": [1], "dtype": "|u1"}', "no voxels"),
        ('{"shape": [2], "chunks": [1], "dtype": "<c8"}', "not integers or floats"),
        ('{"shape": [2], "chunks": [1], "dtype": [["a", "|u1"]]}', "records"),
    ],
)
def test_damaged_documents(tmp_path, document, words):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".zarray").write_text(document)
    with pytest.raises(InputError, match=words) as caught:
        PatchReader(tmp_path / "a")
    assert str(tmp_path / "a") in str(caught.value)
    assert caught.value.hint


def test_paths_without_an_array(tmp_path):
    with pytest.raises(MissingPathError):
        PatchReader(tmp_path / "none")
    with pytest.raises(UnreadableFileError, match="no zarr array"):
        PatchReader(tmp_path)
    zarr.create_group(str(tmp_path / "g"))
    with pytest.raises(UnreadableFileError, match="group"):
        PatchReader(tmp_path / "g")
    (tmp_path / "r").mkdir()
    document = {
        "zarr_format": 3, "node_type": "array", "shape": [4], "data_type": "uint8",
        "chunk_grid": {"name": "rectilinear", "configuration": {}}, "codecs": [],
    }  # fmt: skip
    (tmp_path / "r" / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="rectilinear"):
        PatchReader(tmp_path / "r")
    with pytest.raises(InputError, match="-1 threads"):
        ReadOptions(threads=-1)


# ---- threads and processes


def test_threads_share_a_reader(tmp_path):
    data = ramp((64, 64))
    make(tmp_path / "a", data, chunks=(8, 8))
    reader = PatchReader(tmp_path / "a", options=ReadOptions(cache_bytes=4096, threads=2))

    def read(seed):
        low = np.random.default_rng(seed).integers(0, 32, 2)
        box = Box((int(low[0]), int(low[1])), (int(low[0]) + 32, int(low[1]) + 32))
        return np.array_equal(reader.read(box), data[box.slices()])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(200)))


@pytest.mark.parametrize("start", [worker_context, lambda: multiprocessing.get_context("spawn")])
def test_processes_open_anew_after_their_parent_has_read(tmp_path, start):
    data = ramp((8, 8))
    make(tmp_path / "a", data)
    reader = PatchReader(tmp_path / "a", options=SMALL)
    box = Box((1, 1), (7, 8))
    expected = reader.read(box)
    with start().Pool(2) as pool:
        for found in pool.map(reader.read, [box] * 4):
            np.testing.assert_array_equal(found, expected)


def test_a_data_loader_with_workers(tmp_path):
    from torch.utils.data import DataLoader

    data = ramp((8, 5), "i4")
    make(tmp_path / "a", data)
    reader = PatchReader(tmp_path / "a", options=SMALL)
    reader.read(Box((0, 0), (8, 5)))
    loader = DataLoader(
        reader,  # type: ignore[arg-type]
        batch_sampler=[[0, 1], [5, 2]],
        num_workers=1,
        multiprocessing_context=worker_context(),
    )
    assert [batch.tolist() for batch in loader] == [data[[0, 1]].tolist(), data[[5, 2]].tolist()]


def run(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


OPEN_THEN_FORK = """
import os, sys
from lamella.training.patch_reader import PatchReader
from lamella.volume.box import Box
reader = PatchReader(sys.argv[1])
assert "tensorstore" not in sys.modules and "zarr" not in sys.modules
child = os.fork()
if child == 0:
    os._exit(0 if reader.read(Box((0, 0), (8, 8))).sum() == 2016 else 3)
assert os.waitpid(child, 0)[1] == 0
reader.read(Box((0, 0), (8, 8)))
child = os.fork()
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(multiprocessing, "get_context"), reason="no processes")
def test_opening_leaves_a_process_free_to_fork_and_a_later_fork_is_warned_of(tmp_path):
    make(tmp_path / "a", ramp((8, 8)))
    done = run(OPEN_THEN_FORK, tmp_path / "a")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("forkserver") == 1


MEMORY = """
import sys, numpy as np
from lamella.training.patch_reader import PatchReader, ReadOptions
from lamella.volume.box import Box
reader = PatchReader(sys.argv[1], options=ReadOptions(cache_bytes=2**22, threads=2))
rng = np.random.default_rng(0)
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
for step in range(600):
    low = tuple(int(v) for v in rng.integers(0, 225, 3))
    reader.read(Box(low, tuple(v + 32 for v in low)), dtype=np.float32)
    if step == 199:
        before = resident()
print((resident() - before) / 2**20)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_stays_within_the_cache(tmp_path):
    rng = np.random.default_rng(0)
    array = zarr.create_array(
        str(tmp_path / "a"), shape=(256,) * 3, chunks=(32,) * 3, dtype="u1", compressors=None
    )
    array[...] = rng.integers(0, 255, array.shape, np.uint8)
    done = run(MEMORY, tmp_path / "a")
    assert done.returncode == 0, done.stderr
    # 16 MiB in all; kept are 4 MiB, and what the allocator has not given back.
    assert float(done.stdout) < 6


def test_an_array_of_any_size_opens_at_once(tmp_path):
    zarr.create_array(
        str(tmp_path / "a"), shape=(10**7,) * 3, chunks=(64,) * 3, dtype="u1", fill_value=3
    )
    began = time.perf_counter()
    reader = PatchReader(tmp_path / "a")
    patch = reader.read(Box((10**6,) * 3, (10**6 + 8,) * 3))
    assert time.perf_counter() - began < 20
    assert (patch == 3).all()
    assert reader.missing(Box((10**6,) * 3, (10**6 + 8,) * 3)) == 1.0
