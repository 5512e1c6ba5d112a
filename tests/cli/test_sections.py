"""Long helps are ordered by what options are about, and leave none out."""

import click
import pytest
from click.testing import CliRunner

from lamella.cli.sections import SEGMENT_SECTIONS
from lamella.cli.segment import command as segment
from lamella.cli.serve import command as serve
from lamella.cli.submit import command as submit


@pytest.mark.parametrize("command", [segment, submit, serve], ids=lambda command: command.name)
def test_every_option_is_listed_once_below_a_heading(command):
    text = CliRunner().invoke(command, ["--help"]).output
    lines = text.splitlines()
    listed = [line.split()[0] for line in lines if line.startswith("  -")]
    flags = [max(p.opts, key=len) for p in command.params if isinstance(p, click.Option)]
    for flag in flags:
        assert any(flag in line.replace(",", " ").split() for line in lines), flag
    assert len(listed) == len(flags) + 1, "the help option is the one besides"
    assert "Options:" not in text


def test_sections_name_parameters_that_exist():
    known = {parameter.name for command in (segment, submit) for parameter in command.params}
    named = [name for names in SEGMENT_SECTIONS.values() for name in names]
    assert set(named) <= known
    assert len(set(named)) == len(named)
