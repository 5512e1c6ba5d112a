"""Names for paths: no path of the server in anything that leaves it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import UnreadableFileError
from lamella.server.names import PathNames

NAMES = PathNames(
    {
        "/srv/data": "(server)",
        "/srv/data/jobs/a1": "",
        "/srv/data/jobs/a1/run": "",
        "/srv/data/volumes/4f/tomo.mrc": "tomo.mrc",
    }
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot read /srv/data/volumes/4f/tomo.mrc.", "cannot read tomo.mrc."),
        ("/srv/data/volumes/4f/tomo.mrc:", "tomo.mrc:"),
        ("/srv/data/volumes/4f/tomo.mrcs", "(server)/volumes/4f/tomo.mrcs"),
        ("/srv/data/jobs/a1/run/labels.ome.zarr", "labels.ome.zarr"),
        ("in /srv/data/jobs/a1/run", "in "),
        ("/srv/database", "/srv/database"),
        ("/srv/data", "(server)"),
        ("'/srv/data/x'", "'(server)/x'"),
    ],
)
def test_names_stand_for_paths(text, expected):
    assert NAMES.hide(text) == expected


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_what_names_no_path_stays(document):
    assert PathNames({"/srv/\x00never": "x"}).hide(document) == document


@given(st.text("/srvdat.mc'\" ", max_size=60))
def test_hiding_twice_hides_no_more(text):
    once = NAMES.hide(text)
    assert "/srv/data/" not in once
    assert NAMES.hide(once) == once


def test_errors_keep_their_class():
    error = UnreadableFileError(
        "/srv/data/volumes/4f/tomo.mrc is cut", hint="see /srv/data/x", details={"p": ["/srv/data"]}
    )
    hidden = NAMES.hide_error(error)
    assert type(hidden) is UnreadableFileError
    assert (hidden.message, hidden.hint) == ("tomo.mrc is cut", "see (server)/x")
    assert hidden.details == {"p": ["(server)"]}


def test_files_are_rewritten_as_json_writes_paths(tmp_path):
    names = PathNames({'/srv/dätä "x"': "data"})
    path = tmp_path / "a.json"
    for ascii_only in (True, False):
        path.write_text(json.dumps({"p": '/srv/dätä "x"/f'}, ensure_ascii=ascii_only))
        names.hide_in_file(path)
        assert json.loads(path.read_text())["p"] == "data/f"
