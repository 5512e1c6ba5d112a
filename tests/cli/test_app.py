"""The command line as a whole: fast, forgiving of typing mistakes, clear when it fails."""

import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from lamella.cli import cli, failure, main
from lamella.cli.app import COMMANDS
from lamella.core.errors import GeometryError, RunCancelledError


def lamella(*words, **options):
    """Run the real command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "lamella", *map(str, words)],
        capture_output=True, text=True, timeout=120, check=False, **options,
    )  # fmt: skip


@pytest.fixture
def failing(monkeypatch):
    """A command that raises what it is given."""

    def install(error):
        @click.command()
        @click.option("--json", "as_json", is_flag=True)
        def command(**_words):
            raise error

        monkeypatch.setattr(type(cli), "get_command", lambda *_: command)

    return install


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)
def test_every_command_can_be_imported_and_explains_itself(entry):
    result = CliRunner().invoke(cli, [entry.name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output


def test_help_lists_every_command_with_a_line():
    result = CliRunner().invoke(cli, ["--help"])
    for entry in COMMANDS:
        assert f"{entry.name} " in result.output
        assert len(entry.name) + len(entry.help) < 66, "the line would be broken at 80 columns"


def test_listing_commands_imports_none_of_them():
    code = (
        "import sys\nfrom lamella.cli import main\nassert main(['--help']) == 0\n"
        "loaded = [n for n in sys.modules if n.startswith('lamella.')]\n"
        "assert not [n for n in loaded if 'workflows' in n or 'cli.segment' in n], loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_mistyped_command_names_its_neighbours(capsys):
    assert main(["segmant", "x.mrc"]) == 2
    assert "did you mean segment?" in capsys.readouterr().err


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("lamella 0")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_call_back(shell, capsys):
    assert main(["completion", shell]) == 0
    assert "_LAMELLA_COMPLETE" in capsys.readouterr().out


def test_completing_a_command_name():
    from click.shell_completion import ShellComplete

    found = ShellComplete(cli, {}, "lamella", "_LAMELLA_COMPLETE").get_completions([], "re")
    assert [item.value for item in found] == ["restore", "resume", "reproduce"]


def test_an_error_is_a_message_and_a_hint(failing, capsys):
    failing(GeometryError("spacing is 0 along z", hint="set it with --spacing"))
    assert main(["info"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: spacing is 0 along z\nhint: set it with --spacing\n"
    assert captured.out == ""


def test_an_error_is_a_document_with_json(failing, capsys):
    failing(GeometryError("spacing is 0 along z", hint="--spacing", details={"axis": "z"}))
    assert main(["info", "--json"]) == 2
    problem = json.loads(capsys.readouterr().err)
    assert problem == {
        "code": "invalid_geometry",
        "message": "spacing is 0 along z",
        "hint": "--spacing",
        "details": {"axis": "z"},
    }


def test_a_defect_is_one_line_and_a_traceback_only_when_asked(failing, capsys, monkeypatch):
    failing(ZeroDivisionError("division by zero"))
    assert main(["info"]) == 1
    text = capsys.readouterr().err
    assert "ZeroDivisionError" in text
    assert "report" in text
    assert "Traceback" not in text
    assert main(["--debug", "info"]) == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("LAMELLA_DEBUG", "1")
    assert main(["info"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RunCancelledError("cancelled", hint="x")])
def test_stopping_is_130_and_says_how_to_go_on(failing, capsys, error):
    failing(error)
    assert main(["info"]) == 130
    text = capsys.readouterr().err
    assert text.lstrip().startswith("stopped")
    assert "hint:" in text


def test_out_of_memory_is_no_defect(failing, capsys):
    failing(MemoryError())
    assert main(["info"]) == 2
    assert "memory" in capsys.readouterr().err


def test_bad_options_are_2(capsys):
    assert main(["segment"]) == 2
    assert "missing argument" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "lamella", "models", "list", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) in (0, failure.EXIT_BROKEN_PIPE)
    assert b"Traceback" not in err
    assert b"BrokenPipe" not in err


def test_it_also_runs_as_a_module():
    done = lamella("--version")
    assert (done.returncode, done.stderr) == (0, "")
