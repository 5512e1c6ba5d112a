"""Errors as answers: every one a problem document (RFC 9457) with a stable code and a hint.

::

    {"type": "https://lamella.readthedocs.io/reference/problems#not_found", "title": "Not found",
     "status": 404, "detail": "there is no job 7f3a", "code": "not_found",
     "hint": "GET /api/v1/jobs lists yours", "details": {}, "request_id": "0b9c..."}

What was not foreseen becomes ``internal_error`` without a word of its inside; the log has the
traceback under the same request id.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError
from pydantic import Field
from sqlalchemy.exc import DataError, InterfaceError, OperationalError
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response
from starlette.websockets import WebSocket

from lamella.core.errors import LamellaError
from lamella.server.logs import redact
from lamella.wire.document import Document, JsonValue
from lamella.wire.problem import Problem

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = [
    "MEDIA_TYPE",
    "ProblemDoc",
    "ProtocolError",
    "add_problem_handlers",
    "problem_response",
    "problems",
    "status_of",
    "unforeseen_response",
]

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

_STATUS_BY_CODE = {
    "axes_mismatch": 422,
    "box_out_of_bounds": 422,
    "cancelled": 409,
    "checksum_mismatch": 460,
    "conflict": 409,
    "database_unavailable": 503,
    "device_out_of_memory": 503,
    "device_unavailable": 503,
    "download_failed": 502,
    "forbidden": 403,
    "gone": 410,
    "invalid_geometry": 422,
    "invalid_input": 422,
    "invalid_model": 422,
    "labels_do_not_fit": 422,
    "licence_not_accepted": 403,
    "missing_dependency": 501,
    "not_found": 404,
    "offline": 503,
    "output_exists": 409,
    "quota_exceeded": 413,
    "storage": 507,
    "too_many_requests": 429,
    "unauthenticated": 401,
    "unknown_engine": 404,
    "unknown_format": 422,
    "unknown_id": 404,
    "unknown_model": 404,
    "unreadable_file": 422,
}
_DATABASE_RETRY_S = 5
_TITLES = {460: "Checksum mismatch"}
_CODE_BY_STATUS = {
    400: "bad_request",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    413: "too_large",
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
    429: "too_many_requests",
}
_HINT_BY_STATUS = {
    400: "documents are JSON in UTF-8",
    404: "/api/v1/docs lists every address",
    405: "the Allow header lists the methods of this address",
}
_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
_SECRET_WORDS = ("password", "secret", "token", "signature")


class ProblemDoc(Document):
    """An error, for programs and people."""

    type: str
    """Address of the page that explains the code."""
    title: str
    status: int
    detail: str
    """What came and what was expected."""
    code: str
    """Stable; what programs decide on."""
    hint: str | None = None
    """What to do about it."""
    details: dict[str, JsonValue] = Field(default_factory=dict)
    request_id: str
    """Also in the header X-Request-ID and in the server's log."""


class ProtocolError(LamellaError):
    """A request that HTTP, or a protocol on top of it, has a status of its own for.

    Args:
        status: of the answer.
        message: what came and what was expected.
        code: stable, snake_case.
        hint: what to do about it.
        headers: of the answer.
        details: facts for programs.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        hint: str | None = None,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, hint=hint, details=details)
        self.status = status
        self.headers = dict(headers or {})
        # An answer's code is its own, not its class's.
        self.problem_code = code or _CODE_BY_STATUS.get(status, "bad_request")


def status_of(code: str, *, is_in_body: bool = False) -> int:
    """The status that errors of a code are answered with.

    Args:
        code: of the error.
        is_in_body: whether the request named things in its body: an unknown id is then a mistake
            in the document, not a missing address.

    Examples:
        >>> status_of("not_found"), status_of("unknown_model", is_in_body=True)
        (404, 422)
    """
    if is_in_body and code.startswith("unknown_"):
        return 422
    return _STATUS_BY_CODE.get(code, 500)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """``responses=`` of a route that answers with problems of these statuses.

    Examples:
        >>> sorted(problems(404, 409))
        [404, 409]
    """
    return {status: _response_entry(status) for status in statuses}


def problem_response(
    connection: HTTPConnection,
    problem: Problem,
    *,
    status: int,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem as an answer to a request."""
    document = ProblemDoc(
        type=f"https://lamella.readthedocs.io/reference/problems#{problem.code}",
        title=_title(status),
        status=status,
        # What came is quoted, and somebody may have pasted a token there.
        detail=redact(problem.message),
        code=problem.code,
        hint=problem.hint,
        details=problem.details,
        request_id=getattr(connection.state, "request_id", ""),
    )
    return _AnyText(
        document.model_dump(),
        status_code=status,
        headers=dict(headers or {}),
        media_type=MEDIA_TYPE,
    )


class _AnyText(JSONResponse):
    """JSON whose text may quote what came: halves of characters too, which UTF-8 does not have."""

    def render(self, content: Any) -> bytes:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", "replace")


def add_problem_handlers(app: FastAPI) -> None:
    """Let an application answer every error with a problem."""
    # Starlette has one table for requests and WebSockets; its types have two.
    handlers: dict[type[Exception], Any] = {
        LamellaError: _answer_ours,
        RequestValidationError: _answer_invalid,
        HTTPException: _answer_http,
        # PostgreSQL keeps no NUL, and UTF-8 has no halves of characters.
        DataError: _answer_unkept,
        UnicodeEncodeError: _answer_unkept,
        OperationalError: _answer_unavailable,
        InterfaceError: _answer_unavailable,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


async def _answer_ours(connection: HTTPConnection, error: Exception) -> Response | None:
    assert isinstance(error, LamellaError)
    problem = Problem.from_error(error)
    headers: dict[str, str] = {}
    if isinstance(error, ProtocolError):
        problem = problem.model_copy(update={"code": error.problem_code})
        status, headers = error.status, error.headers
    else:
        is_in_body = connection.scope.get("method") in ("POST", "PUT", "PATCH") and not (
            connection.scope.get("path_params")
        )
        status = status_of(error.code, is_in_body=is_in_body)
    if status == 500:
        # A failing server keeps the facts for its log.
        logger.error("%s: %s", problem.code, problem.message, exc_info=error)
        problem = problem.model_copy(update={"details": {}})
    if status == 401:
        headers.setdefault("WWW-Authenticate", 'Bearer realm="lamella"')
    if (wait := error.details.get("retry_after_s")) is not None:
        headers.setdefault("Retry-After", str(max(1, round(float(wait)))))
    answer = problem_response(connection, problem, status=status, headers=headers)
    return await _deliver(connection, answer)


async def _answer_invalid(connection: HTTPConnection, error: Exception) -> Response | None:
    assert isinstance(error, RequestValidationError)
    found = [_invalid_field(item) for item in error.errors()]
    told = "; ".join(f"{item['where']}: {item['message']}" for item in found[:5])
    problem = Problem(
        code="invalid_input",
        message=f"the request is not valid: {told}",
        hint="correct the named fields; /api/v1/openapi.json describes them, unknown ones are"
        " refused",
        details={"problems": found},  # pyright: ignore[reportArgumentType] - JSON values
    )
    return await _deliver(connection, problem_response(connection, problem, status=422))


async def _answer_unkept(connection: HTTPConnection, error: Exception) -> Response | None:
    logger.warning("%s: a value that cannot be kept was refused", type(error).__name__)
    logger.debug("where it was refused", exc_info=error)
    problem = Problem(
        code="invalid_input",
        message="the request has a value that cannot be kept: text with a NUL or with half a"
        " character, or a number that is too large",
        hint="text is UTF-8 without NUL",
    )
    return await _deliver(connection, problem_response(connection, problem, status=422))


async def _answer_unavailable(connection: HTTPConnection, error: Exception) -> Response | None:
    assert isinstance(error, OperationalError | InterfaceError)
    logger.error("the database does not answer: %s", type(error.orig).__name__, exc_info=error)
    problem = Problem(
        code="database_unavailable",
        message="the server's database does not answer",
        hint="try again in a while; whoever runs the server finds the reason in its log",
    )
    return await _deliver(
        connection,
        problem_response(
            connection, problem, status=503, headers={"Retry-After": str(_DATABASE_RETRY_S)}
        ),
    )


async def _answer_http(connection: HTTPConnection, error: Exception) -> Response | None:
    assert isinstance(error, HTTPException)
    status = error.status_code
    path = connection.url.path
    message = {
        404: f"there is nothing at {path}",
        405: f"{connection.scope.get('method')} is not a method of {path}",
    }.get(status, error.detail or _title(status))
    problem = Problem(
        code=_CODE_BY_STATUS.get(status, "bad_request" if status < 500 else "internal_error"),
        message=message,
        hint=_HINT_BY_STATUS.get(status),
    )
    headers = dict(error.headers or {})
    if status == 405:
        headers["Allow"] = ", ".join(_allowed_methods(connection)) or headers.get("Allow", "")
    return await _deliver(
        connection, problem_response(connection, problem, status=status, headers=headers)
    )


def unforeseen_response(connection: HTTPConnection, error: Exception) -> Response:
    """What is answered where nobody expected the error; the log has its traceback."""
    problem = Problem.from_error(error)
    if problem.code != "internal_error":
        # A full disk, say: known after all.
        return problem_response(connection, problem, status=status_of(problem.code))
    logger.error("%s not foreseen", type(error).__name__, exc_info=error)
    problem = Problem(
        code="internal_error",
        message="the server failed on this request",
        hint="this is a defect in Lamella: please report it with the traceback that the server's"
        " log has under this request_id",
    )
    return problem_response(connection, problem, status=500)


async def _deliver(connection: HTTPConnection, response: Response) -> Response | None:
    """Answer a request by returning; refuse a WebSocket with the same answer."""
    if isinstance(connection, WebSocket):
        await connection.send_denial_response(response)
        return None
    return response


def _invalid_field(item: Mapping[str, Any]) -> dict[str, str]:
    where = ".".join(str(part) for part in item["loc"]) or "request"
    message = str(item["msg"])
    if any(word in where.lower() for word in _SECRET_WORDS):
        message = "not valid"
    return {"where": where, "message": message, "kind": str(item["type"])}


def _allowed_methods(connection: HTTPConnection) -> list[str]:
    """Methods of all routes of the path: Starlette names only those of the first one."""
    from starlette.routing import Match

    return [
        method
        for method in _METHODS
        if any(
            route.matches({**connection.scope, "method": method})[0] is Match.FULL
            for route in connection.app.routes
        )
    ]


def _response_entry(status: int) -> dict[str, Any]:
    return {
        "description": _title(status),
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDoc"}}},
    }


def _title(status: int) -> str:
    try:
        return _TITLES.get(status) or HTTPStatus(status).phrase
    except ValueError:
        return f"Status {status}"
