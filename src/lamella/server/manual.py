"""The page ``/api/v1/docs``: every address with what it takes and answers, as plain HTML.

Nothing is loaded from anywhere and nothing runs in the browser, so that it works in a network
without the internet, under the strictest content policy.
"""

from __future__ import annotations

from html import escape
from typing import Any

__all__ = ["render_manual"]

_METHODS = ("get", "post", "put", "patch", "delete", "head", "options")
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #8886; }
details { border: 1px solid #8884; border-radius: 6px; margin: .4rem 0; padding: .4rem .8rem; }
summary { cursor: pointer; } details[open] > summary { margin-bottom: .6rem; }
details > p, details > table { margin: .4rem 0 .6rem; }
code, pre { font: 13px/1.45 ui-monospace, monospace; }
pre { overflow-x: auto; background: #8881; padding: .6rem; border-radius: 6px; }
.method { display: inline-block; min-width: 4.2rem; font-weight: 700; color: #0a7f70; }
.delete { color: #b3261e; } .post, .patch, .put { color: #9a5b00; }
.note { opacity: .75; } table { border-collapse: collapse; } td { padding: .1rem .8rem .1rem 0;
vertical-align: top; }
"""


def render_manual(document: dict[str, Any]) -> str:
    """The page of an OpenAPI document."""
    info = document["info"]
    groups: dict[str, list[str]] = {tag["name"]: [] for tag in document.get("tags", [])}
    # What lists and makes things stands before what one of them takes.
    for path, operations in sorted(document["paths"].items()):
        for method in _METHODS:
            if method in operations:
                operation = operations[method]
                tag = (operation.get("tags") or ["more"])[0]
                groups.setdefault(tag, []).append(_operation(path, method, operation))
    about = {tag["name"]: tag.get("description", "") for tag in document.get("tags", [])}
    sections = "".join(
        f'<h2 id="{escape(name)}">{escape(name)}</h2><p>{escape(about.get(name, ""))}</p>'
        + "".join(entries)
        for name, entries in groups.items()
        if entries
    )
    paragraphs = "".join(f"<p>{_text(part)}</p>" for part in info["description"].split("\n\n"))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(info['title'])} {escape(info['version'])}: HTTP</title>"
        f"<style>{_STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])}</h1>"
        f'<p class="note">version {escape(info["version"])} · '
        '<a href="openapi.json">openapi.json</a></p>'
        f"{paragraphs}{sections}</body></html>"
    )


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    body = f"<p>{_text(operation.get('description', ''))}</p>"
    rows = "".join(_parameter(one) for one in operation.get("parameters", []))
    if rows:
        body += f"<table>{rows}</table>"
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        body += f'<p class="note">takes {escape(kind)}: {_schema_name(content.get("schema"))}</p>'
        if "example" in content:
            import json

            body += f"<pre>{escape(json.dumps(content['example'], indent=2))}</pre>"
    answers = "".join(
        f"<tr><td><code>{escape(status)}</code></td><td>{escape(entry['description'])}</td>"
        f"<td>{_content(entry)}</td></tr>"
        for status, entry in sorted(operation["responses"].items())
    )
    key = "" if operation.get("security") else ' <span class="note">(no token)</span>'
    return (
        f'<details id="{escape(operation.get("operationId", ""))}"><summary>'
        f'<code><span class="method {method}">{method.upper()}</span> {escape(path)}</code> '
        f'<span class="note">{escape(operation.get("summary", ""))}</span>{key}</summary>'
        f"{body}<table>{answers}</table></details>"
    )


def _parameter(one: dict[str, Any]) -> str:
    must = "" if one.get("required") else " (optional)"
    return (
        f"<tr><td><code>{escape(one['name'])}</code></td>"
        f'<td class="note">{escape(one["in"])}{must}</td>'
        f"<td>{_text(one.get('description', ''))}</td></tr>"
    )


def _content(entry: dict[str, Any]) -> str:
    return ", ".join(
        f"{escape(kind)} {_schema_name(content.get('schema'))}"
        for kind, content in entry.get("content", {}).items()
    )


def _schema_name(schema: dict[str, Any] | None) -> str:
    if not schema:
        return ""
    if "$ref" in schema:
        return f"<code>{escape(schema['$ref'].rpartition('/')[2])}</code>"
    if schema.get("type") == "array":
        return f"list of {_schema_name(schema.get('items'))}"
    named = [_schema_name(one) for one in schema.get("anyOf", []) if one.get("type") != "null"]
    return " or ".join(filter(None, named)) or escape(str(schema.get("type", "")))


def _text(text: str) -> str:
    """Escaped text with `code` in its own letters."""
    parts = escape(text, quote=False).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))
