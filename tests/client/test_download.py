"""Laws of a download: the file is whole and right, and what came does not come again."""

import hashlib

import pytest
from fake_server import FakeServer
from hypothesis import given
from hypothesis import strategies as st
from misfortune import KilledError, Machine, MemoryPart, misfortunes

from lamella.client.download import download
from lamella.client.flow import Response
from lamella.client.patience import Patience
from lamella.core.errors import ChecksumError, MissingPathError
from lamella.models.part import open_part

PATIENCE = Patience(chance=lambda: 0.5, n_defects=100)
ADDRESS = "jobs/j1/artifacts/run.tar"


def server_with(data):
    server = FakeServer()
    Machine(server, []).server.jobs["j1"] = None
    server.artifacts["run.tar"] = data
    return server


@given(data=st.binary(max_size=500), faults=misfortunes(20), piece=st.integers(1, 200))
def test_the_file_comes_whole_and_once(data, faults, piece):
    server = server_with(data)
    machine = Machine(server, list(faults), piece=piece)
    part = MemoryPart()
    while True:
        try:
            found = machine.run(download(ADDRESS, part, PATIENCE))
        except KilledError:
            continue
        break
    assert found == hashlib.sha256(data).hexdigest()
    assert bytes(part.data) == data
    assert part.n_come == len(data)


def test_a_file_that_changed_on_the_server_is_fetched_anew():
    server = server_with(b"first version")
    part = MemoryPart()
    with pytest.raises(KilledError):
        Machine(server, [("", 0.0), ("", 0.0), ("killed", 0.0)], piece=4).run(
            download(ADDRESS, part, PATIENCE)
        )
    assert part.data == b"firs"
    server.artifacts["run.tar"] = b"another, longer version"
    Machine(server, []).run(download(ADDRESS, part, PATIENCE))
    assert part.data == b"another, longer version"


def test_damage_is_found_and_mended_once():
    class Damaging(FakeServer):
        n = 0

        def _artifact(self, name, headers):
            status, known, data = super()._artifact(name, headers)
            self.n += 1
            return status, known, (b"X" + data[1:]) if self.n <= self.n_bad else data

    for n_bad in (1, 2):
        server = Damaging()
        server.n_bad = n_bad
        server.jobs["j1"] = None
        server.artifacts["run.tar"] = b"all is well"
        part = MemoryPart()
        if n_bad == 1:
            Machine(server, []).run(download(ADDRESS, part, PATIENCE))
            assert part.data == b"all is well"
        else:
            with pytest.raises(ChecksumError, match="came twice"):
                Machine(server, []).run(download(ADDRESS, part, PATIENCE))


def test_a_signed_address_elsewhere_does_not_see_the_token():
    asked = []

    class Redirecting(Machine):
        def _send(self, request):
            asked.append((request.path, request.has_token))
            if request.path == ADDRESS:
                return Response(307, {"location": "https://s3.example/x?sign=1"}, b"", 0.0)
            return Response(200, {"content-length": "3", "etag": '"s3"'}, b"abc", 0.0)

    part = MemoryPart()
    Redirecting(server_with(b""), []).run(download(ADDRESS, part, PATIENCE))
    assert part.data == b"abc"
    assert asked == [(ADDRESS, True), ("https://s3.example/x?sign=1", False)]


@pytest.mark.parametrize("content", [b"abc", b"axc"])
def test_what_comes_from_elsewhere_is_what_the_server_announced(content):
    class Redirecting(Machine):
        def _send(self, request):
            if request.path == ADDRESS:
                tag = f'"{hashlib.sha256(b"abc").hexdigest()}"'
                return Response(307, {"location": "https://s3.example/x", "etag": tag}, b"", 0.0)
            return Response(200, {"content-length": "3", "etag": '"s3"'}, content, 0.0)

    machine = Redirecting(server_with(b""), [])
    if content == b"abc":
        machine.run(download(ADDRESS, MemoryPart(), PATIENCE))
    else:
        with pytest.raises(ChecksumError, match="came twice"):
            machine.run(download(ADDRESS, MemoryPart(), PATIENCE))


def test_an_export_that_is_still_made_is_waited_for():
    answers = [202, 202, 200]

    class Making(Machine):
        def _send(self, request):
            return Response(answers.pop(0), {"content-length": "3"}, b"abc", self.now_s)

    part = MemoryPart()
    Making(server_with(b""), []).run(download(ADDRESS, part, PATIENCE))
    assert part.data == b"abc"


def test_no_such_file():
    server = FakeServer()
    with pytest.raises(MissingPathError, match="no such job"):
        Machine(server, []).run(download(ADDRESS, MemoryPart(), PATIENCE))


def test_a_part_on_disk_goes_on(tmp_path):
    server = server_with(bytes(range(250)))
    path = tmp_path / "run.tar"
    with open_part(path, lambda: None) as part, pytest.raises(KilledError):
        Machine(server, [("", 0.0), ("", 0.0), ("killed", 0.0)], piece=100).run(
            download(ADDRESS, part, PATIENCE)
        )
    assert path.stat().st_size == 100
    with open_part(path, lambda: None) as part:
        Machine(server, []).run(download(ADDRESS, part, PATIENCE))
    assert path.read_bytes() == bytes(range(250))
