"""A file comes whole and right, or one error says why; what was there is not fetched again."""

import hashlib
import json
import random
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import DownloadError, OfflineError, RunCancelledError, StorageError
from lamella.core.progress import CancelToken
from lamella.models.download import TransferSettings, Watcher, fetch_file
from lamella.models.part import open_part, state_path
from lamella.wire.catalogue import DownloadDoc

CONTENT = random.Random(0).randbytes(200_000)
SHA = hashlib.sha256(CONTENT).hexdigest()
N = len(CONTENT)


def doc(*, sha256=SHA, n_bytes=N):
    return DownloadDoc(name="weights.bin", sha256=sha256, n_bytes=n_bytes)


@pytest.fixture
def part(tmp_path):
    return tmp_path / "weights.bin.part"


@pytest.fixture
def full(server):
    server.files["weights.bin"] = CONTENT
    return server


@pytest.fixture
def fetch(full, part, fast):
    def run(file=None, *addresses, **more):
        watcher = Watcher(**{k: more.pop(k) for k in tuple(more) if k.startswith(("on", "check"))})
        where = addresses or (full.url("weights.bin"),)
        more.setdefault("settings", fast)
        return fetch_file(file or doc(), part, where, watcher, **more)

    return run


# --- laws ---------------------------------------------------------------------------------------

HARMLESS = st.one_of(
    st.tuples(st.just("drop"), st.integers(0, N - 1)),
    st.tuples(st.sampled_from(["status"]), st.sampled_from([500, 502, 503, 429, 408])),
    st.tuples(st.just("hang_up"), st.just(0)),
)
WILD = st.one_of(
    HARMLESS,
    st.tuples(st.just("corrupt"), st.integers(0, N - 1)),
    st.tuples(
        st.sampled_from(
            ["no_range", "wrong_range", "claims_more", "claims_less", "sends_more", "chunked"]
        ),
        st.just(0),
    ),
)


def faults_of(wild_server, pairs):
    return [
        wild_server.Fault(kind, at=value, status=value if kind == "status" else 500)
        for kind, value in pairs
    ]


@given(pairs=st.lists(HARMLESS, max_size=8), knows_hash=st.booleans())
def test_interruptions_never_cost_a_byte(wild_server, tmp_path_factory, fast, pairs, knows_hash):
    folder = tmp_path_factory.mktemp("pull")
    file = doc() if knows_hash else doc(sha256=None, n_bytes=None)
    patient = TransferSettings(timeout_s=10, attempts=20, sleep=fast.sleep)
    with wild_server.WildServer({"w": CONTENT}, faults_of(wild_server, pairs)) as server:
        got = fetch_file(file, folder / "p", (server.url("w"),), Watcher(), settings=patient)
        # Every byte of the file was sent exactly once, each request beginning where the last ended.
        assert server.n_sent == N
    assert (folder / "p").read_bytes() == CONTENT
    assert got.sha256 == SHA
    assert got.n_bytes_moved == N


@given(pairs=st.lists(WILD, max_size=10), can_range=st.booleans(), has_etag=st.booleans())
def test_whatever_a_server_does_the_end_is_the_file_or_a_clear_error(
    wild_server, tmp_path_factory, fast, pairs, can_range, has_etag
):
    folder = tmp_path_factory.mktemp("pull")
    with wild_server.WildServer(
        {"w": CONTENT}, faults_of(wild_server, pairs), can_range=can_range, has_etag=has_etag
    ) as server:
        failure = None
        try:
            fetch_file(doc(), folder / "p", (server.url("w"),), Watcher(), settings=fast)
        except DownloadError as error:
            failure = error
    if failure is not None:
        assert "weights.bin could not be fetched" in failure.message
        assert failure.hint
        return
    assert (folder / "p").read_bytes() == CONTENT


@given(data=st.data())
def test_a_file_that_changes_between_attempts_is_never_a_mixture(
    wild_server, tmp_path_factory, fast, data
):
    """Without a published hash, only ETags and dates tell versions apart."""
    folder = tmp_path_factory.mktemp("pull")
    versions = [CONTENT, CONTENT[:50_000] + b"new" + CONTENT[50_003:], CONTENT[: N // 2]]
    pairs = data.draw(
        st.lists(st.tuples(st.integers(0, 2), st.integers(0, N // 2 - 1)), min_size=1, max_size=5)
    )
    with wild_server.WildServer({"w": CONTENT}, has_etag=data.draw(st.booleans())) as server:

        def sleep(_s):
            server.files["w"] = versions[pairs.pop(0)[0]] if pairs else server.files["w"]

        server.faults = [wild_server.Fault("drop", at=at) for _, at in pairs]
        patient = TransferSettings(timeout_s=10, attempts=20, first_wait_s=0.1, sleep=sleep)
        file = doc(sha256=None, n_bytes=None)
        fetch_file(file, folder / "p", (server.url("w"),), Watcher(), settings=patient)
    assert (folder / "p").read_bytes() in versions


@given(
    there=st.integers(0, N),
    spoiled=st.none() | st.integers(0, N - 1),
    can_range=st.booleans(),
)
def test_any_part_that_is_there_becomes_the_file(
    wild_server, tmp_path_factory, fast, there, spoiled, can_range
):
    folder = tmp_path_factory.mktemp("pull")
    begun = bytearray(CONTENT[:there])
    if spoiled is not None and spoiled < there:
        begun[spoiled] ^= 255
    (folder / "p").write_bytes(begun)
    is_good = bytes(begun) == CONTENT[:there]
    with wild_server.WildServer({"w": CONTENT}, can_range=can_range) as server:
        fetch_file(doc(), folder / "p", (server.url("w"),), Watcher(), settings=fast)
        if is_good and can_range:
            assert server.n_sent == N - there
    assert (folder / "p").read_bytes() == CONTENT


# --- one bad day after the other ----------------------------------------------------------------


def test_a_whole_part_asks_nobody(fetch, full, part):
    part.write_bytes(CONTENT)
    assert fetch(is_offline=True).n_bytes_moved == 0
    assert full.log == []


def test_goes_on_where_it_stopped_with_the_etag(fetch, full, wild_server):
    full.faults = [wild_server.Fault("drop", at=70_000)]
    fetch()
    assert [(one.start, one.status) for one in full.log] == [(0, 200), (70_000, 206)]
    assert full.log[1].if_range == full.etag(CONTENT)


def test_a_wrong_byte_costs_one_whole_file_and_no_more(fetch, full, wild_server):
    full.faults = [wild_server.Fault("corrupt", at=99_999)]
    fetch()
    assert full.n_sent == 2 * N


def test_a_server_that_is_always_wrong_is_asked_twice_and_named(fetch, full, part, wild_server):
    full.always = wild_server.Fault("corrupt", at=5)
    with pytest.raises(DownloadError, match="gave a file with SHA-256") as caught:
        fetch()
    assert full.n_sent == 2 * N
    assert full.url("weights.bin") in caught.value.message
    assert part.stat().st_size == 0, "nothing wrong is kept"


def test_with_a_mirror_a_wrong_file_comes_from_there_next(fetch, full, wild_server):
    with wild_server.WildServer({"weights.bin": CONTENT}) as mirror:
        full.always = wild_server.Fault("corrupt", at=5)
        got = fetch(None, full.url("weights.bin"), mirror.url("weights.bin"))
        assert got.address == mirror.url("weights.bin")
        assert (full.n_sent, mirror.n_sent) == (N, N)


def test_the_next_mirror_goes_on_with_what_the_first_gave(fetch, full, wild_server):
    full.faults = [wild_server.Fault("drop", at=120_000)] + [wild_server.Fault("hang_up")] * 5
    with wild_server.WildServer({"weights.bin": CONTENT}) as mirror:
        fetch(None, full.url("weights.bin"), mirror.url("weights.bin"))
        assert (full.n_sent, mirror.n_sent) == (120_000, N - 120_000)


@pytest.mark.parametrize("status", [401, 403, 404, 410, 451])
def test_an_answer_that_will_not_change_is_not_asked_for_again(fetch, full, wild_server, status):
    full.always = wild_server.Fault("status", status=status)
    with pytest.raises(DownloadError, match=f"answered {status}"):
        fetch()
    assert len(full.log) == 1


@pytest.mark.parametrize("status", [500, 503, 429])
def test_an_answer_that_may_change_is_asked_for_five_times(fetch, full, wild_server, status):
    full.always = wild_server.Fault("status", status=status)
    with pytest.raises(DownloadError, match=f"answered {status}"):
        fetch()
    assert len(full.log) == 5


def test_waits_grow_have_jitter_and_obey_the_server(full, part, wild_server):
    slept = []
    patience = TransferSettings(timeout_s=10, sleep=slept.append, chance=lambda: 0.5)
    full.faults = [
        wild_server.Fault("status", status=503),
        wild_server.Fault("status", status=503),
        wild_server.Fault("status", status=429, headers=(("Retry-After", "7"),)),
    ]
    fetch_file(doc(), part, (full.url("weights.bin"),), Watcher(), settings=patience)
    assert sum(slept) == pytest.approx(1 + 2 + 7)


def test_a_server_that_asks_for_an_hour_is_left(fetch, full, wild_server):
    full.always = wild_server.Fault("status", status=503, headers=(("Retry-After", "3600"),))
    with pytest.raises(DownloadError, match="asks to wait 3,600 s"):
        fetch()
    assert len(full.log) == 1


def test_a_date_in_retry_after_is_understood(fetch, full, wild_server):
    date = "Fri, 31 Dec 2100 23:59:59 GMT"
    full.always = wild_server.Fault("status", status=503, headers=(("Retry-After", date),))
    with pytest.raises(DownloadError, match="asks to wait"):
        fetch()


def test_a_silent_server_is_left_and_what_it_gave_kept(fetch, full, part, wild_server):
    full.faults = [wild_server.Fault("stall", at=60_000)]
    began = time.monotonic()
    fetch(settings=TransferSettings(timeout_s=2, sleep=lambda _s: None))
    assert time.monotonic() - began < 30
    assert full.n_sent == N
    assert part.read_bytes() == CONTENT


def test_another_length_than_the_catalogues_is_refused_before_a_byte_is_kept(fetch, full, part):
    with pytest.raises(DownloadError, match="catalogue says 199,999"):
        fetch(doc(n_bytes=N - 1))
    assert part.stat().st_size == 0


def test_more_than_the_catalogue_says_without_hash_is_refused(fetch, full, part, wild_server):
    full.always = wild_server.Fault("chunked")
    with pytest.raises(DownloadError, match="sends more than 150,000 bytes"):
        fetch(doc(sha256=None, n_bytes=150_000))
    assert part.stat().st_size == 0


def test_a_compressed_reply_is_not_the_file(fetch, full, part, wild_server):
    full.faults = [wild_server.Fault("compressed")]
    fetch()
    assert part.read_bytes() == CONTENT
    assert full.log[1].start == 0


def test_without_any_length_or_hash_nothing_is_believed(fetch, full, wild_server):
    full.always = wild_server.Fault("no_length")
    with pytest.raises(DownloadError, match="how long the file is"):
        fetch(doc(sha256=None, n_bytes=None))


def test_a_server_without_ranges_repeats_and_the_longer_part_stays(fetch, full, part, wild_server):
    full.can_range = False
    full.faults = [wild_server.Fault("drop", at=150_000), wild_server.Fault("drop", at=20_000)]
    fetch()
    assert [one.n_sent for one in full.log] == [150_000, 20_000, N]


def test_416_on_a_part_that_is_longer_than_the_file(fetch, full, part):
    part.write_bytes(CONTENT + b"more")
    fetch(doc(n_bytes=None))
    assert [one.status for one in full.log] == [416, 200]
    assert part.read_bytes() == CONTENT


def test_an_etag_that_changes_while_the_bytes_do_not_costs_one_repeat(fetch, full, part):
    part.write_bytes(CONTENT[:90_000])
    state = {"address": full.url("weights.bin"), "validator": '"old"', "total": N}
    state_path(part).write_text(json.dumps(state))
    fetch()
    assert [one.n_sent for one in full.log] == [N]
    assert part.read_bytes() == CONTENT


@pytest.mark.parametrize("content", ["", "{", "[]", '{"address": 1}', '{"total": "x"}'])
def test_a_damaged_state_is_no_state(fetch, full, part, content):
    part.write_bytes(CONTENT[:1000])
    state_path(part).write_text(content)
    fetch()
    assert part.read_bytes() == CONTENT


def test_no_server_is_a_clear_error(fetch):
    with pytest.raises(DownloadError, match="refused the connection"):
        fetch(None, "http://127.0.0.1:9/weights.bin")


def test_a_name_nobody_knows_and_an_address_that_is_none(fetch):
    with pytest.raises(DownloadError, match=r"not known|lost|cannot be used"):
        fetch(None, "http://no-such-host.invalid/weights.bin")
    with pytest.raises(DownloadError, match="no web address"):
        fetch(None, "gopher://old/weights.bin")


def test_no_address_at_all(part, fast):
    with pytest.raises(DownloadError, match="no address is known"):
        fetch_file(doc(), part, (), Watcher(), settings=fast)


def test_offline_names_the_file_and_how_to_bring_it(fetch, full):
    with pytest.raises(OfflineError, match=r"weights\.bin is not here") as caught:
        fetch(is_offline=True)
    assert "--from" in caught.value.hint
    assert full.log == []


def test_from_a_file_of_this_machine_offline(fetch, tmp_path, part):
    source = tmp_path / "a b.bin"
    source.write_bytes(CONTENT)
    assert fetch(None, source.as_uri(), is_offline=True).sha256 == SHA
    assert part.read_bytes() == CONTENT
    assert source.read_bytes() == CONTENT


@pytest.mark.parametrize("content", [b"", CONTENT[:-1], CONTENT[:-1] + b"!"])
def test_a_wrong_file_of_this_machine_is_refused(fetch, tmp_path, content):
    source = tmp_path / "w.bin"
    source.write_bytes(content)
    with pytest.raises(DownloadError, match=r"catalogue says|SHA-256"):
        fetch(None, str(source))


def test_a_file_that_is_none(fetch, tmp_path):
    with pytest.raises(DownloadError, match="there is no such file"):
        fetch(None, str(tmp_path / "gone"))
    with pytest.raises(DownloadError, match="cannot be read"):
        fetch(None, str(tmp_path))


def test_cancelled_while_the_server_is_silent(full, part, wild_server):
    full.always = wild_server.Fault("stall", at=50_000)
    token = CancelToken()
    seen = []

    def told(done, _total):
        seen.append(done)
        if done == 50_000:
            token.cancel()

    began = time.monotonic()
    with pytest.raises(RunCancelledError):
        fetch_file(doc(), part, (full.url("weights.bin"),), Watcher(token.check, told))
    assert time.monotonic() - began < 2, "the silence of 30 s is not waited for"
    assert part.stat().st_size == 50_000
    full.always = wild_server.Fault()
    fetch_file(doc(), part, (full.url("weights.bin"),), Watcher())
    assert full.n_sent == N


def test_proxies_of_the_environment_are_used(full, part, fast, monkeypatch):
    """The proxy is asked for the whole address, and the server itself is never looked up."""
    address = "http://nowhere.invalid/weights.bin"
    full.files[address] = CONTENT
    monkeypatch.setenv("http_proxy", full.url(""))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    fetch_file(doc(), part, (address,), Watcher(), settings=fast)
    assert [one.path for one in full.log] == [address]
    assert part.read_bytes() == CONTENT


def test_a_redirect_is_followed_with_its_range(fetch, full, wild_server, part):
    part.write_bytes(CONTENT[:40_000])
    to = (("Location", full.url("weights.bin")),)
    full.faults = [wild_server.Fault("status", status=302, headers=to)]
    fetch()
    assert full.n_sent == N - 40_000


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://host/x"])
def test_a_redirect_out_of_the_web_is_refused(fetch, full, wild_server, to):
    full.always = wild_server.Fault("status", status=302, headers=(("Location", to),))
    with pytest.raises(DownloadError):
        fetch()


def test_redirects_in_a_circle_end(fetch, full, wild_server):
    to = (("Location", full.url("weights.bin")),)
    full.always = wild_server.Fault("status", status=302, headers=to)
    with pytest.raises(DownloadError):
        fetch()


def test_a_full_disk_is_told_and_the_part_kept(full, part, monkeypatch):
    import errno

    from lamella.models.part import PartFile

    write = PartFile.put

    def put(self, position, chunk):
        # However the network cut the pieces: what fits is written, as a disk does.
        room = max(0, 100_000 - position)
        differs = write(self, position, chunk[:room])
        if len(chunk) > room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return differs

    monkeypatch.setattr(PartFile, "put", put)
    with pytest.raises(StorageError, match="disk is full") as caught:
        fetch_file(doc(), part, (full.url("weights.bin"),), Watcher())
    assert "what came is kept" in caught.value.hint
    kept = part.stat().st_size
    assert 0 < kept < N
    monkeypatch.undo()
    fetch_file(doc(), part, (full.url("weights.bin"),), Watcher())
    assert full.log[-1].start == kept


def test_a_folder_that_may_not_be_written_is_told(full, tmp_path):
    with pytest.raises(StorageError):
        fetch_file(doc(), tmp_path / "none" / "p", (full.url("weights.bin"),), Watcher())


# --- the part itself ----------------------------------------------------------------------------


@given(
    there=st.binary(max_size=60),
    position=st.integers(0, 60),
    chunk=st.binary(max_size=60),
)
def test_put_leaves_what_is_equal_and_replaces_from_the_first_difference(
    tmp_path_factory, there, position, chunk
):
    position = min(position, len(there))
    path = tmp_path_factory.mktemp("part") / "p"
    path.write_bytes(there)
    with open_part(path, lambda: None) as part:
        differs = part.put(position, chunk)
        overlap = there[position : position + len(chunk)]
        assert differs == (overlap != chunk[: len(overlap)])
        expected = there[:position] + chunk
        if not differs and len(expected) < len(there):
            expected = there
        assert part.sha256 == hashlib.sha256(expected).hexdigest()
        assert part.size == len(expected)
    assert path.read_bytes() == expected


def test_https_is_verified(tmp_path, part, fast):
    """A server with a certificate nobody signed gives nothing."""
    import ssl
    import subprocess
    import threading
    from http.server import HTTPServer, SimpleHTTPRequestHandler

    made = subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
            *("-subj", "/CN=localhost", "-keyout", tmp_path / "k.pem", "-out", tmp_path / "c.pem"),
        ],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("openssl is not installed")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "c.pem", tmp_path / "k.pem")
    server = HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)
    server.handle_error = lambda *_: None
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        address = f"https://localhost:{server.server_port}/weights.bin"
        with pytest.raises(DownloadError, match="certificate cannot be trusted"):
            fetch_file(doc(), part, (address,), Watcher(), settings=fast)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert not Path(part).stat().st_size
