"""The commands of a server, against a real one: jobs, logins, refusals, chaos."""

import importlib.util
import json
import os
import sys
from pathlib import Path

from commands import MODEL, done, lamella

import lamella as lm


def test_jobs_from_the_command_line(server, home, tomogram, tmp_path):
    where = ("--server", server.url)
    out, _ = done(
        lamella(home, "submit", tomogram, "--model", "classical:li", "--name", "x", *where)
    )
    job = out.split()[0]
    out, _ = done(lamella(home, "jobs", "watch", job, *where))
    assert f"{job}  x  finished" in out
    out, _ = done(lamella(home, "jobs", "list", *where))
    assert out.splitlines()[1].startswith(f"{job}  x     classical:li")
    out, _ = done(lamella(home, "jobs", "show", "last", "--json", *where))
    assert json.loads(out)["id"].startswith(job)
    out, _ = done(lamella(home, "jobs", "log", job, *where))
    assert "finished" in out
    folder = tmp_path / "d.run"
    out, _ = done(lamella(home, "jobs", "download", job, "-o", folder, *where))
    assert "tomo.mrc: finished" in out
    assert lm.open_run(folder).is_finished
    _, err = done(lamella(home, "jobs", "cancel", job, *where), 2)
    assert "is finished" in err
    _, err = done(lamella(home, "jobs", "show", "nothing", *where), 2)
    assert "there is no job nothing" in err
    done(lamella(home, "jobs", "remove", job, *where))
    out, _ = done(lamella(home, "uploads", "list", "--json", *where))
    volumes = json.loads(out)["volumes"]
    assert volumes
    out, _ = done(lamella(home, "uploads", "remove", volumes[0]["id"][:8], *where))
    assert "removed" in out


def test_what_the_server_refuses_is_said_and_nothing_is_left(server, home, tomogram, tmp_path):
    where = ("--server", server.url, "--run-dir", tmp_path / "r.run")
    for words, message in (
        (("--model", "membran-3d"), "did you mean membrane-3d"),
        (("--model", "classical:otzu"), "no method 'otzu'"),
        (("--model", MODEL, "--option", "x=1"), "no option 'x'"),
        (("--model", MODEL, "--trust"), "--trust is for models of this machine"),
        (("--model", MODEL, "--token", "lam_wrong"), "lamella login"),
        (("--model", MODEL, "-o", tmp_path / "a.xyz"), "a.xyz"),
    ):
        _, err = done(lamella(home, "segment", tomogram, *words, *where), 2)
        assert message in err
        assert not (tmp_path / "r.run").exists()
    _, err = done(lamella(home, "segment", tomogram, "--model", MODEL, "--pin", "first"), 2)
    assert "add --server" in err


def test_login_keeps_the_token_for_the_user_alone(server, home, tmp_path):
    home = {**home, "XDG_CONFIG_HOME": str(tmp_path)}
    token = home.pop("LAMELLA_TOKEN")
    _, err = done(lamella(home, "jobs", "list", "--server", server.url), 2)
    assert "lamella login" in err
    _, err = done(lamella(home, "login", server.url, "--token", "lam_wrong"), 2)
    assert "does not know this token" in err
    out, _ = done(lamella(home, "login", server.url, "--token", token))
    assert "the token works" in out
    path = tmp_path / "lamella" / "servers.json"
    assert path.stat().st_mode & 0o777 == 0o600
    done(lamella(home, "jobs", "list"))
    done(lamella(home, "login", server.url, "--forget"))
    _, err = done(lamella(home, "jobs", "list"), 2)
    assert "which server" in err


def test_chaos(tmp_path):
    """A few rounds of the script that is run by hand with fifty."""
    path = Path(__file__).parents[2] / "benchmarks" / "chaos.py"
    spec = importlib.util.spec_from_file_location("chaos", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["chaos"] = module
    spec.loader.exec_module(module)
    chaos = module.Chaos(tmp_path, seed=3)
    try:
        for number in range(int(os.environ.get("LAMELLA_TEST_CHAOS_ROUNDS", "2"))):
            chaos.round(number)
    finally:
        chaos.close()
