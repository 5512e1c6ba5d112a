"""The OpenAPI document: what FastAPI knows of the routes, and what holds for all of them.

Every operation lists every status that it can answer with, problems included: those of tokens
where it needs one, of documents that are not valid where it takes any, and the server's own.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi.openapi.utils import get_openapi

from lamella.server.problems import ProblemDoc, problems

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["EXAMPLES", "describe"]

_DESCRIPTION = """\
Segmentation of microscopy and CT volumes on a server: upload, queue, watch, download.

Every request but those of health and signed addresses carries a token:
`Authorization: Bearer lam_...`. Errors are problem documents (RFC 9457) with a stable `code` and
a `hint`. Every answer has an `X-Request-ID`, which the server's log has too.
"""
_TAGS = (
    ("uploads", "Resumable uploads: tus 1.0 with creation, checksum, expiration, termination and"
     " concatenation. A finished upload becomes a volume."),
    ("volumes", "Inputs of jobs: uploads, server paths, S3; read by viewers as OME-Zarr."),
    ("jobs", "Segmentations: queued, run, cancelled, retried."),
    ("batches", "Many jobs that are taken together."),
    ("events", "What a job says while it runs: SSE, WebSocket or pages of JSON, numbered."),
    ("artifacts", "What a job left, behind signed addresses that expire."),
    ("models", "What jobs can use, and what can be pulled."),
    ("tokens", "Who may do what."),
    ("health", "Whether the server lives, and what it is."),
)  # fmt: skip
_SEGMENT = {
    "request": {
        "input": {"path": "volume:1f0c2d3e4b5a"},
        "model": "membrane-3d",
        "min_size": {"value": 500, "unit": "nm"},
    },
    "name": "tomogram 12",
    "exports": [".mrc"],
}
EXAMPLES: dict[str, dict[str, Any]] = {
    "create_job": _SEGMENT,
    "create_batch": {
        "name": "monday's tomograms",
        "jobs": [
            {"request": {"input": {"path": f"volume:{name}"}, "model": "membrane-3d"}}
            for name in ("1f0c2d3e4b5a", "9a8b7c6d5e4f")
        ],
    },
    "create_volume": {"name": "scan", "files": [{"path": "scan.mrc", "upload": "5e4f3a2b1c0d"}]},
    "create_token": {"user": "maria", "role": "annotator", "name": "laptop", "expires_s": 2592000},
    "pull_model": {"accept_licence": True},
}
"""Request bodies by operation."""
_SUMMARIES = {
    "append_upload": "Append bytes",
    "ask_upload": "How many bytes are safe",
    "create_upload": "Begin an upload, or join parts",
    "create_volume": "Make a volume",
    "delete_upload": "End an upload",
    "delete_volume": "Remove a volume",
    "describe_upload": "What uploads can do",
    "describe_uploads": "What uploads can do",
    "get_upload": "An upload",
    "get_volume": "A volume",
    "list_uploads": "List uploads",
    "list_volumes": "List volumes",
    "override_upload": "PATCH, HEAD or DELETE by POST",
}
"""What an operation does in a line, where its route does not say it."""
_PROBLEM_EXAMPLE = {
    "type": "https://lamella.readthedocs.io/reference/problems#not_found",
    "title": "Not Found",
    "status": 404,
    "detail": "there is no job '7f3a'",
    "code": "not_found",
    "hint": "GET /api/v1/jobs lists yours",
    "details": {},
    "request_id": "0b9c1d2e3f4a5b6c",
}
_TOKEN_STATUSES = (401, 403, 429)
_INPUT_STATUSES = (413, 422)
_BODY_STATUSES = (400,)
_SERVER_STATUSES = (500, 503, 507)


def describe(app: FastAPI) -> None:
    """Let an application give the complete document."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(app)
        return app.openapi_schema

    app.openapi = openapi


def _complete(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=version("lamella"),
        description=_DESCRIPTION,
        routes=app.routes,
        tags=[{"name": name, "description": text} for name, text in _TAGS],
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        servers=[{"url": "/"}],
        separate_input_output_schemas=app.separate_input_output_schemas,
    )
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["ProblemDoc"] = {**_schema_of_problem(), "example": _PROBLEM_EXAMPLE}
    for operations in document["paths"].values():
        for method, operation in operations.items():
            if method in ("get", "put", "post", "delete", "options", "head", "patch"):
                _complete_operation(operation, method)
    return document


def _schema_of_problem() -> dict[str, Any]:
    schema = ProblemDoc.model_json_schema()
    schema.pop("$defs", None)
    # JSON of any shape: spelled out, pydantic's recursive definition says no more than this.
    schema["properties"]["details"] = {"type": "object", "additionalProperties": True}
    return schema


def _complete_operation(operation: dict[str, Any], method: str) -> None:
    takes_input = operation.get("parameters") or operation.get("requestBody")
    statuses = (
        *_SERVER_STATUSES,
        *(_TOKEN_STATUSES if operation.get("security") else ()),
        *(_INPUT_STATUSES if takes_input else ()),
        *(_BODY_STATUSES if operation.get("requestBody") else ()),
    )
    responses = operation["responses"]
    for status, entry in problems(*statuses).items():
        known = responses.get(str(status))
        is_fastapis = known is not None and "application/json" in known.get("content", {}) and (
            "HTTPValidationError" in str(known)
        )  # fmt: skip
        if known is None or is_fastapis:
            responses[str(status)] = dict(entry)
    _complete_answers(responses, method)
    name = operation.get("operationId", "")
    operation["summary"] = _SUMMARIES.get(name, operation.get("summary", name))
    example = EXAMPLES.get(name)
    if example is not None:
        for content in operation.get("requestBody", {}).get("content", {}).values():
            content["example"] = example


def _complete_answers(responses: dict[str, Any], method: str) -> None:
    for entry in responses.values():
        headers = entry.setdefault("headers", {})
        headers["X-Request-ID"] = _header("Id of the request, as in the server's log.")
        if method == "head":
            entry.pop("content", None)
    if "401" in responses:
        responses["401"]["headers"]["WWW-Authenticate"] = _header("Bearer")
    if "429" in responses:
        responses["429"]["headers"]["Retry-After"] = _header("Seconds to wait.")


def _header(text: str) -> dict[str, Any]:
    return {"description": text, "schema": {"type": "string"}}
