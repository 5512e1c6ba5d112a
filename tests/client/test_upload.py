"""Laws of an upload: whatever happens on the way, the server holds exactly the file."""

import hashlib

import pytest
from fake_server import FakeServer
from hypothesis import given
from hypothesis import strategies as st
from misfortune import KilledError, Machine, misfortunes

from lamella.client.memory import Memory, open_memory
from lamella.client.patience import Patience
from lamella.client.source import FileSource, Identity, Upload, prepare_upload
from lamella.client.upload import UploadOptions, upload_volume
from lamella.core.errors import (
    ChecksumError,
    InputError,
    MissingPathError,
    QuotaError,
    ServerConnectionError,
)

PATIENCE = Patience(chance=lambda: 0.5, n_defects=100)


class Bytes(FileSource):
    """A source in memory."""

    def __init__(self, data):
        self.data = data
        self.size = len(data)

    def read(self, start, count):
        assert 0 <= start <= start + count <= self.size
        return self.data[start : start + count]

    def close(self):
        pass


def upload_of(data, name="a.mrc"):
    return Upload(Bytes(data), name, Identity("/a.mrc", len(data), "x"))


def run_through(machine, upload, memory, options):
    """Run the flow, again after every kill, with what the memory kept."""
    for _ in range(50):
        try:
            return machine.run(upload_volume(upload, memory, PATIENCE, options))
        except KilledError:
            continue
    raise AssertionError("killed more often than there were misfortunes")


@given(
    data=st.binary(max_size=400),
    faults=misfortunes(),
    chunk=st.integers(1, 100),
    n_parts=st.integers(1, 3),
    keeps_cut=st.booleans(),
)
def test_the_server_holds_exactly_the_file(data, faults, chunk, n_parts, keeps_cut):
    server = FakeServer(keeps_cut=keeps_cut)
    machine = Machine(server, list(faults))
    options = UploadOptions(max(1, chunk // 4), chunk, 2 * chunk, n_parts, 50)
    volume = run_through(machine, upload_of(data), Memory(), options)
    held = server.volumes[volume.id]
    assert held["sha256"] == hashlib.sha256(data).hexdigest()
    assert held["n_bytes"] == len(data)
    # A file that is there is not sent again, however often it is asked for.
    n_sent = len([1 for method, _ in server.seen if method == "PATCH"])
    again = run_through(Machine(server, []), upload_of(data), Memory(), options)
    assert again.sha256 == volume.sha256
    assert len([1 for method, _ in server.seen if method == "PATCH"]) == n_sent


@given(
    data=st.binary(min_size=1, max_size=400),
    faults=misfortunes(),
    keeps_cut=st.booleans(),
)
def test_what_was_acknowledged_is_not_sent_again(data, faults, keeps_cut):
    faults = [fault for fault in faults if fault[0] != "gone"]
    machine = Machine(FakeServer(keeps_cut=keeps_cut), faults)
    run_through(machine, upload_of(data), Memory(), UploadOptions(4, 16, 64))
    assert machine.resent == 0
    assert machine.largest <= 64


def test_a_dead_server_ends_patience():
    server = FakeServer()
    machine = Machine(server, [("", 0.0)] * 6 + [("timeout", 0.0)] * 10_000)
    flow = upload_volume(upload_of(bytes(500)), Memory(), PATIENCE, UploadOptions(1, 10, 10))
    with pytest.raises(ServerConnectionError, match="tried again for 9") as caught:
        machine.run(flow)
    assert "again" in caught.value.hint
    assert PATIENCE.total_s <= machine.now_s <= PATIENCE.total_s + 60


def test_a_wrong_address_is_an_error_soon():
    machine = Machine(FakeServer(), [("lost_before", 0.0)] * 10_000)
    patience = Patience(chance=lambda: 0.5)
    flow = upload_volume(upload_of(bytes(500)), Memory(), patience, UploadOptions())
    with pytest.raises(ServerConnectionError):
        machine.run(flow)
    assert machine.now_s < patience.first_s + 20


def test_chunks_that_never_get_through_end_patience_although_the_server_answers():
    server = FakeServer(keeps_cut=False)
    faults = [("", 0.0)] * 3 + [("cut", 0.5), ("", 0.0)] * 5000
    flow = upload_volume(upload_of(bytes(500)), Memory(), PATIENCE, UploadOptions(8, 16, 32))
    with pytest.raises(ServerConnectionError):
        Machine(server, faults).run(flow)


def test_the_chunk_shrinks_on_a_bad_line_and_grows_on_a_good_one():
    sizes = []

    class Watched(Bytes):
        def read(self, start, count):
            sizes.append(count)
            return super().read(start, count)

    upload = Upload(Watched(bytes(4000)), "a.mrc", Identity("/a", 4000, "x"))
    faults = [("", 0.0)] * 3 + [("cut", 0.0), ("", 0.0)] * 3
    memory = Memory()
    memory.put("sha256", hashlib.sha256(bytes(4000)).hexdigest())
    memory.put("fingerprint", memory.get("sha256"))
    machine = Machine(FakeServer(), faults)
    machine.run(upload_volume(upload, memory, PATIENCE, UploadOptions(25, 200, 800)))
    assert sizes[:6] == [200, 400, 200, 100, 50, 100]
    assert max(sizes) == 800


@given(st.integers(100, 100_000), st.integers(0, 5000))
def test_a_chunk_takes_about_a_second_whatever_the_line(bytes_per_s, latency_ms):
    sizes = []

    class Line(Machine):
        def _send(self, request):
            if request.body is not None:
                sizes.append(request.body.count)
                self.now_s += request.body.count / bytes_per_s + latency_ms / 1000
            return super()._send(request)

    data = bytes(40 * bytes_per_s)
    options = UploadOptions(64, 1024, 1 << 20)
    Line(FakeServer(), []).run(upload_volume(upload_of(data), Memory(), PATIENCE, options))
    # The last one is what is left.
    settled = sizes[14:-1]
    limits = [max(64, 0.24 * bytes_per_s), max(64, 2.1 * bytes_per_s)]
    if latency_ms < 200:
        assert all(limits[0] <= size <= limits[1] for size in settled)
    assert sum(sizes) == len(data)


def test_a_file_that_is_not_what_was_announced_is_refused_and_forgotten():
    memory = Memory()
    memory.put("sha256", "0" * 64)
    memory.put("fingerprint", "0" * 64)
    flow = upload_volume(upload_of(b"abc"), memory, PATIENCE, UploadOptions())
    with pytest.raises(ChecksumError, match="announced"):
        Machine(FakeServer(), []).run(flow)
    assert memory.get("sha256") is None


def test_the_servers_no_is_said_in_its_words():
    class Full(FakeServer):
        def _create(self, headers):
            import fake_server

            return fake_server.problem(413, "quota_exceeded", "10 GB of 10 GB are used")

    flow = upload_volume(upload_of(b"abc"), Memory(), PATIENCE, UploadOptions())
    with pytest.raises(QuotaError, match="10 GB of 10 GB"):
        Machine(Full(), []).run(flow)


def test_a_restart_goes_on_and_a_changed_file_starts_anew(tmp_path):
    path = tmp_path / "a.mrc"
    path.write_bytes(bytes(range(200)))
    server = FakeServer()
    options = UploadOptions(10, 10, 10)
    upload = prepare_upload(path)
    first = open_memory(tmp_path / "cache", "https://a", upload.identity)
    with pytest.raises(KilledError):
        Machine(server, [("", 0.0)] * 8 + [("killed", 0.0)]).run(
            upload_volume(upload, first, PATIENCE, options)
        )
    again = open_memory(tmp_path / "cache", "https://a", prepare_upload(path).identity)
    machine = Machine(server, [])
    machine.run(upload_volume(upload, again, PATIENCE, options))
    upload.source.close()
    assert len(server.uploads) == 1
    sent = [seen for seen in server.seen if seen[0] == "PATCH"]
    assert len(sent) == 20 + (0 if len(sent) == 20 else 1)
    # Another server, or another content, has a memory of its own.
    other = open_memory(tmp_path / "cache", "https://b", upload.identity)
    assert other.get("volume") is None
    path.write_bytes(bytes(200))
    changed = open_memory(tmp_path / "cache", "https://a", prepare_upload(path).identity)
    assert changed.get("volume") is None
    upload = prepare_upload(path)
    volume = Machine(server, []).run(upload_volume(upload, changed, PATIENCE, options))
    upload.source.close()
    assert volume.sha256 == hashlib.sha256(bytes(200)).hexdigest()


def test_a_file_that_changes_while_it_is_sent_is_an_error(tmp_path):
    path = tmp_path / "a.mrc"
    path.write_bytes(bytes(100))
    upload = prepare_upload(path)
    path.write_bytes(bytes(99))
    with pytest.raises(InputError, match="changed while"):
        Machine(FakeServer(), []).run(upload_volume(upload, Memory(), PATIENCE, UploadOptions()))
    upload.source.close()


def test_nothing_to_upload(tmp_path):
    with pytest.raises(MissingPathError, match="nothing at"):
        prepare_upload(tmp_path / "none.mrc")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no files"):
        prepare_upload(tmp_path / "empty")


def test_an_unreadable_memory_is_none(tmp_path):
    identity = Identity("/a", 1, "x")
    memory = open_memory(tmp_path, "https://a", identity)
    memory.put("location", "uploads/1")
    file = next((tmp_path / "uploads").iterdir())
    assert open_memory(tmp_path, "https://a", identity).get("location") == "uploads/1"
    for content in (b"", b"\xff\xfe", b"[]", b"{}", b'{"version": 1}'):
        file.write_bytes(content)
        assert open_memory(tmp_path, "https://a", identity).get("location") is None
