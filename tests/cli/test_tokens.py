"""``lamella tokens``: made once, listed without secrets, ended; here, and on a running server."""

import json
import re

import pytest

from lamella.cli import main
from lamella.server.database import open_server_database
from lamella.server.local import open_local
from lamella.server.secret import Secret
from lamella.server.settings import Settings
from lamella.testing.server import run_server


@pytest.fixture
def data_folder(tmp_path):
    """The folder of a server that has run."""
    settings = Settings(data_dir=tmp_path / "data")
    settings.data_dir.mkdir()
    Secret.of_folder(settings.data_dir)
    open_server_database(settings).close()
    return settings.data_dir


@pytest.fixture
def tokens(data_folder, capsys):
    """Run ``lamella tokens``: exit code, what it answers and what it says."""

    def run(*words):
        code = main(["tokens", *words, "--data-dir", str(data_folder)])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def made(tokens, *words):
    code, out, _ = tokens("add", *words, "--json")
    assert code == 0
    return json.loads(out)


def test_one_is_made_and_shown_this_once(tokens, data_folder):
    code, out, _ = tokens("add", "maria", "--name", "laptop", "--expires", "30d")
    assert code == 0
    assert "for maria (annotator), valid until" in out
    secret = re.search(r"lam_[0-9a-f]{12}_[\w-]{43}", out)[0]
    code, out, _ = tokens("list")
    assert code == 0
    assert secret not in out
    assert secret.split("_")[1] in out
    assert "laptop" in out
    with open_local(Settings(data_dir=data_folder)) as access:
        assert access.tokens.verify(secret).user == "maria"
        assert access.audit.list()[0]["action"] == "token.create"


def test_roles_and_scopes(tokens):
    token = made(tokens, "eve", "--role", "viewer", "--scope", "jobs:read")["token"]
    assert token["role"] == "viewer"
    assert token["scopes"] == ["jobs:read"]
    assert token["expires"] is None


def test_ended_by_id_or_by_the_token_itself_and_hidden_then(tokens):
    first, second, kept = (made(tokens, user) for user in ("a", "b", "c"))
    code, out, _ = tokens("revoke", first["token"]["id"], second["secret"])
    assert code == 0
    assert second["secret"] not in out
    _, out, _ = tokens("list", "--json")
    assert [one["user"] for one in json.loads(out)["tokens"]] == ["c"]
    _, out, _ = tokens("list")
    assert "2 revoked or expired: --all shows them" in out
    _, out, _ = tokens("list", "--all", "--user", "a")
    assert "revoked" in out
    assert kept["token"]["id"] not in out


def test_no_tokens_is_said(tokens):
    _, out, _ = tokens("list")
    assert "no valid tokens" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["add", "maria dot"], "is no name of a user"),
        (["add", "maria", "--expires", "soon"], "write 90min, 12h or 30d"),
        (["add", "maria", "--expires", "300000d"], "expires_s"),
        (["add", "maria", "--scope", "jobs:wrte"], "did you mean jobs:write"),
        (["add", "maria", "--scope", "tokens:manage"], "does not have the scope"),
        (["add", "maria", "--role", "root"], "viewer"),
        (["revoke", "000000000000"], "lamella tokens list shows the ids"),
        (["list", "--server", "http://127.0.0.1:9"], "exclude each other"),
    ],
)
def test_what_is_wrong_is_one_clear_error(tokens, words, told):
    code, _, err = tokens(*words)
    assert code == 2
    assert told in err
    assert "Traceback" not in err


def test_a_folder_of_no_server_is_told_and_not_made_into_one(tmp_path, capsys):
    assert main(["tokens", "list", "--data-dir", str(tmp_path / "none")]) == 2
    told = capsys.readouterr().err
    assert "no server keeps its data in" in told
    assert "lamella serve" in told
    assert not (tmp_path / "none").exists()


def test_the_same_on_a_running_server_that_notices_what_is_done_beside_it(tmp_path, capsys):
    with run_server(tmp_path / "data", "--tls", "self-signed") as server:
        there = ["--server", server.url, "--token", server.token, "--pin", server.fingerprint]
        assert main(["tokens", "add", "maria", "--json", *there]) == 0
        secret = json.loads(capsys.readouterr().out)["secret"]
        as_maria = [*there[:2], "--token", secret, *there[4:]]
        assert main(["tokens", "list", *as_maria]) == 2
        assert "tokens:manage" in capsys.readouterr().err
        # Ended by the command line beside the server: dead there within two seconds.
        here = ["--data-dir", str(server.data_dir)]
        assert main(["tokens", "revoke", secret, *here]) == 0
        assert main(["tokens", "list", "--user", "maria", "--all", *there]) == 0
        assert "revoked" in capsys.readouterr().out
        assert main(["tokens", "list", *there[:4], "--pin", "ab" * 32]) == 2
        assert server.token not in capsys.readouterr().err
