"""The commands of a server, against a real one: jobs, logins, refusals, chaos."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
from commands import MODEL

import lamella as lm
from lamella.cli import main
from lamella.testing.server import run_server


@pytest.fixture
def run(as_user, capsys):
    """A command in this process: what it answers, and what it says besides."""

    def work(*words, code=0):
        capsys.readouterr()
        found = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert found == code, err
        assert "Traceback" not in err
        return out, err

    return work


def test_jobs_from_the_command_line(server, run, tomogram, tmp_path):
    where = ("--server", server.url)
    out, err = run("submit", tomogram, "--model", "classical:li", "--name", "x", *where)
    job = out.split()[0]
    assert f"lamella jobs download {job}" in err
    out, _ = run("jobs", "watch", job, *where)
    assert f"{job}  x  finished" in out
    out, _ = run("jobs", "watch", *where)
    assert out == "no job is queued or running\n"
    out, _ = run("jobs", "list", *where)
    assert out.splitlines()[1].split()[:4] == [job, "x", "classical:li", "finished"]
    out, _ = run("jobs", "list", "--state", "failed", "--json", *where)
    assert all(one["state"] == "failed" for one in json.loads(out)["jobs"])
    out, _ = run("jobs", "show", "last", "--json", *where)
    assert json.loads(out)["id"].startswith(job)
    out, _ = run("jobs", "show", job, *where)
    assert "option" not in out
    out, _ = run("jobs", "log", job, *where)
    assert "finished" in out
    out, _ = run("jobs", "models", *where)
    assert MODEL in out
    folder = tmp_path / "d.run"
    out, _ = run("jobs", "download", job, "-o", folder, *where)
    assert "tomo.mrc: finished" in out
    assert lm.open_run(folder).is_finished
    _, err = run("jobs", "download", job, "-o", folder, *where, code=2)
    assert "holds a run already" in err
    _, err = run("jobs", "cancel", job, *where, code=2)
    assert "is finished" in err
    _, err = run("jobs", "show", "nothing", *where, code=2)
    assert "there is no job nothing" in err
    run("jobs", "remove", job, *where)
    out, _ = run("uploads", "list", *where)
    assert "tomo.mrc" in out
    out, _ = run("uploads", "list", "--json", *where)
    volume = next(one for one in json.loads(out)["volumes"] if one["name"] == "tomo.mrc")
    out, _ = run("uploads", "remove", volume["id"][:8], *where)
    assert "removed" in out
    _, err = run("uploads", "remove", volume["id"][:8], *where, code=2)
    assert "nothing begins with" in err


def test_a_failed_job_is_told_and_costs_the_exit_code(server, run, tomogram, allowed):
    where = ("--server", server.url)
    broken = allowed / "broken.mrc"
    broken.write_bytes(tomogram.read_bytes())
    # It breaks while another job runs, after it was looked at.
    words = ("--model", MODEL, *where, "--json")
    out, _ = run("submit", tomogram, f"server:{broken}", *words)
    first, job = (one["id"] for one in json.loads(out)["jobs"])
    broken.write_bytes(b"nothing")
    out, _ = run("jobs", "watch", first, job, *where, code=2)
    assert f"{job[:8]}  broken.mrc  failed" in out
    out, err = run("jobs", "watch", job[:8], *where, "--json", code=2)
    problem = json.loads(out)["jobs"][0]["problem"]
    assert problem["message"]
    assert err == ""
    out, _ = run("jobs", "show", job, *where)
    assert problem["message"] in out
    assert "model" in out


def test_one_bad_input_of_two_is_told_as_when_it_is_segmented(server, run, tomogram, tmp_path):
    bad = tmp_path / "bad.mrc"
    bad.write_bytes(b"nothing")
    words = (bad, tomogram, "--model", "classical:li", "--server", server.url)
    _, err = run("submit", *words, code=2)
    out, _ = run("submit", *words, "--json", code=2)
    told = json.loads(out)
    assert len(told["jobs"]) == 1
    (problem,) = told["problems"]
    assert problem.keys() == {"input", "code", "message", "hint", "details"}
    assert problem["input"] == str(bad)
    assert problem["hint"]
    assert f"{bad}: {problem['message']} ({problem['hint']})" in err


def test_what_the_server_refuses_is_said_and_nothing_is_left(server, run, tomogram, tmp_path):
    where = ("--server", server.url, "--run-dir", tmp_path / "r.run")
    for words, message in (
        (("--model", "membran-3d"), "did you mean membrane-3d"),
        (("--model", "classical:otzu"), "no method 'otzu'"),
        (("--model", MODEL, "--option", "x=1"), "no option 'x'"),
        (("--model", MODEL, "--trust"), "--trust is for models of this machine"),
        (("--model", MODEL, "--token", "lam_wrong"), "lamella login"),
        (("--model", MODEL, "--pin", "12"), "is no SHA-256 of a certificate"),
        (("--model", MODEL, "-o", tmp_path / "a.xyz"), "a.xyz"),
    ):
        _, err = run("segment", tomogram, *words, *where, code=2)
        assert message in err
        assert not (tmp_path / "r.run").exists()
    _, err = run("segment", tomogram, "--model", MODEL, "--pin", "first", code=2)
    assert "add --server" in err


def test_login_keeps_the_token_for_the_user_alone(server, run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("LAMELLA_TOKEN")
    _, err = run("jobs", "list", "--server", server.url, code=2)
    assert "lamella login" in err
    _, err = run("login", server.url, "--token", "lam_wrong", code=2)
    assert "does not know this token" in err
    out, err = run("login", server.url, "--token", server.token)
    assert "the token works" in out
    assert server.token not in out + err
    path = tmp_path / "lamella" / "servers.json"
    assert path.stat().st_mode & 0o777 == 0o600
    run("jobs", "list")
    out, _ = run("login", server.url, "--token", server.token, "--json")
    assert server.token not in out
    assert json.loads(out)["server"] == server.url
    path.chmod(0o644)
    _, err = run("jobs", "list", code=2)
    assert "chmod 600" in err
    path.chmod(0o600)
    run("login", server.url, "--forget")
    _, err = run("jobs", "list", code=2)
    assert "which server" in err


def test_a_self_signed_server_is_known_by_its_certificate(tmp_path, run, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("LAMELLA_TOKEN")
    with run_server(tmp_path / "data", "--tls", "self-signed", "--workers", "1") as opened:
        token = ("--token", opened.token)
        _, err = run("login", opened.url, *token, code=2)
        assert f"--pin {opened.fingerprint}" in err
        _, err = run("login", opened.url, *token, "--pin", "0" * 64, code=2)
        assert "shows another certificate" in err
        run("login", opened.url, *token, "--pin", opened.fingerprint)
        out, _ = run("jobs", "list")
        assert out == "no jobs\n"
        _, err = run("jobs", "list", "--pin", "1" * 64, code=2)
        assert "shows another certificate" in err
        run("jobs", "list")
        n_asked = opened.log.count("GET /api/v1/jobs")
        # Another server at the same address: nothing is said to it, not even the token.
        opened.kill()
        for name in ("certificate.pem", "key.pem"):
            (opened.data_dir / name).unlink()
        opened.start()
        _, err = run("jobs", "list", code=2)
        assert "either it was renewed, or this is not your server" in err
        assert opened.fingerprint in err
        assert opened.log.count("GET /api/v1/jobs") == n_asked
        run("login", opened.url, *token, "--pin", opened.fingerprint)
        run("jobs", "list")


def test_chaos(tmp_path):
    """A round of the script that is run by hand with fifty."""
    path = Path(__file__).parents[2] / "benchmarks" / "chaos.py"
    spec = importlib.util.spec_from_file_location("chaos", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["chaos"] = module
    spec.loader.exec_module(module)
    chaos = module.Chaos(tmp_path, seed=3)
    try:
        for number in range(int(os.environ.get("LAMELLA_TEST_CHAOS_ROUNDS", "1"))):
            chaos.round(number)
    finally:
        chaos.close()
