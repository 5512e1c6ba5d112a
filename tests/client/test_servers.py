"""Tokens and pins: kept for the user alone, and never sent in the open."""

import json

import pytest

from lamella.client.connect import ConnectOptions, connection
from lamella.client.pinning import normalised
from lamella.client.servers import KnownServer, Servers, is_loopback, server_address
from lamella.core.errors import InputError
from lamella.core.places import ClientPlaces

PIN = "ab" * 32


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("https://gpu.lab:8443", "https://gpu.lab:8443"),
        ("HTTPS://GPU.Lab:8443/", "https://gpu.lab:8443"),
        ("https://gpu.lab/lamella/api/v1/", "https://gpu.lab/lamella"),
        ("gpu.lab", "https://gpu.lab"),
        ("localhost:8765", "http://localhost:8765"),
        ("127.0.0.1:8765", "http://127.0.0.1:8765"),
        ("http://[::1]:80", "http://[::1]:80"),
    ],
)
def test_addresses(text, address):
    assert server_address(text) == address
    assert server_address(address) == address


@pytest.mark.parametrize(
    "text",
    ["", "ftp://a", "https://", "https://a:port", "https://a?x=1", "https://u:p@a", "http://["],
)
def test_what_is_no_address(text):
    with pytest.raises(InputError):
        server_address(text)


def test_loopback():
    assert is_loopback("http://127.0.0.1:1")
    assert not is_loopback("http://127.evil.example")


def test_only_the_user_reads_the_file(tmp_path):
    servers = Servers(tmp_path / "new" / "servers.json")
    assert servers.get("https://a") == KnownServer()
    servers.put("https://a", KnownServer("secret", PIN))
    servers.put("https://b", KnownServer("other"))
    assert servers.get("https://a") == KnownServer("secret", PIN)
    assert servers.path.stat().st_mode & 0o777 == 0o600
    assert servers.remove("https://b")
    assert not servers.remove("https://b")
    servers.path.chmod(0o640)
    with pytest.raises(InputError, match="others on this machine") as caught:
        servers.all()
    assert "chmod 600" in caught.value.hint
    servers.path.chmod(0o600)
    servers.path.write_text("{}")
    with pytest.raises(InputError, match="damaged"):
        servers.all()


def places(tmp_path, **words):
    return ClientPlaces(tmp_path / "servers.json", tmp_path / "cache", **words)


def test_the_nearest_token_counts(tmp_path):
    Servers(tmp_path / "servers.json").put("https://a", KnownServer("kept"))
    plain = ConnectOptions(places=places(tmp_path))
    set_one = ConnectOptions(places=places(tmp_path, token="set"))
    assert connection("https://a", None, plain)[0].token == "kept"
    assert connection("https://a", None, set_one)[0].token == "set"
    assert connection("https://a", "given", set_one)[0].token == "given"
    # The only known server needs no naming.
    assert connection(None, None, plain)[0].url == "https://a"
    named = ConnectOptions(places=places(tmp_path, server="gpu.lab"))
    assert connection(None, None, named)[0].url == "https://gpu.lab"


def test_which_server_must_be_clear(tmp_path):
    options = ConnectOptions(places=places(tmp_path))
    with pytest.raises(InputError, match="none is known"):
        connection(None, None, options)
    for name in "ab":
        Servers(tmp_path / "servers.json").put(f"https://{name}", KnownServer())
    with pytest.raises(InputError, match="2 servers are known"):
        connection(None, None, options)


def test_a_token_does_not_travel_in_the_open(tmp_path):
    with pytest.raises(InputError, match="in the open"):
        connection("http://gpu.lab", "secret", ConnectOptions(places=places(tmp_path)))
    told = ConnectOptions(places=places(tmp_path), insecure=True)
    assert connection("http://gpu.lab", "secret", told)[0].token == "secret"
    assert connection("http://127.0.0.1:1", "secret", ConnectOptions(places=places(tmp_path)))


def test_a_pin_is_kept_once_it_was_met(tmp_path):
    options = ConnectOptions(pin="SHA256:" + ":".join(["AB"] * 32), places=places(tmp_path))
    endpoint, _ = connection("https://a", None, options)
    assert endpoint.pin == PIN
    assert not (tmp_path / "servers.json").exists(), "it may be mistyped"
    endpoint.on_match(PIN)
    again = ConnectOptions(places=places(tmp_path))
    assert connection("https://a", None, again)[0].pin == PIN
    first = ConnectOptions(pin="first", places=places(tmp_path))
    assert connection("https://a", None, first)[0].pin == PIN
    assert connection("https://b", None, first)[0].pin == "first"
    assert json.loads((tmp_path / "servers.json").read_text())["servers"] == {
        "https://a": {"pin": PIN}
    }


@pytest.mark.parametrize("pin", ["", "abc", "zz" * 32, "ab" * 31])
def test_what_is_no_pin(pin):
    with pytest.raises(InputError, match="no SHA-256"):
        normalised(pin)
