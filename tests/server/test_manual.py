"""The manual of ``/api/v1/docs``: complete, and nothing in it is loaded from anywhere."""

import re

import pytest
from starlette.testclient import TestClient

from lamella.server.app import PREFIX
from lamella.server.manual import render_manual


@pytest.fixture
def quiet(app):
    return TestClient(app)


def test_it_names_every_operation(app, quiet):
    page = quiet.get(f"{PREFIX}/docs")
    assert page.headers["content-type"].startswith("text/html")
    document = app.openapi()
    for path, operations in document["paths"].items():
        assert path in page.text
        for operation in operations.values():
            assert f'id="{operation["operationId"]}"' in page.text
            assert operation["summary"] in page.text.replace("&#x27;", "'")
            assert operation["description"], operation["operationId"]


def test_it_loads_nothing_and_runs_nothing(quiet):
    page = quiet.get(f"{PREFIX}/docs")
    assert not re.search(r"<(script|link|img|iframe|object|embed|form|base)\b", page.text)
    assert not re.search(r"""(src|srcset|action|onclick|onload)=|@import|url\(""", page.text)
    assert re.findall(r'href="([^"]*)"', page.text) == ["openapi.json"]
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert quiet.get("/", follow_redirects=False).headers["location"] == f"{PREFIX}/docs"


def test_what_stands_in_the_document_is_text():
    page = render_manual(
        {
            "info": {"title": "<b>", "version": "1", "description": "a `<i>` b"},
            "tags": [{"name": "<script>", "description": "<script>alert(1)</script>"}],
            "paths": {
                "/<x>": {
                    "get": {
                        "tags": ["<script>"],
                        "operationId": '"><script>',
                        "summary": "<script>",
                        "description": "<script>",
                        "parameters": [{"name": "<script>", "in": "query"}],
                        "responses": {"200": {"description": "<script>"}},
                    }
                }
            },
        }
    )
    assert "<script" not in page
    assert "<i>" not in page
    assert "<x>" not in page
