"""Logs: one line an event, as JSON or for people, and never a secret in them.

Whatever a library writes passes through the same filter: tokens, signatures, passwords in
addresses and ``Authorization`` headers are replaced by ``***`` before a handler sees them.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

__all__ = ["JsonFormatter", "Redaction", "TextFormatter", "configure_logging", "redact"]

_SECRETS = (
    # Our tokens: the id stays, so that a line still says which one it was.
    (re.compile(r"(lam_[0-9a-f]{12})_[A-Za-z0-9_-]{20,}"), r"\1_***"),
    (re.compile(r"(?i)(\bbearer[ .])[^\s\"',;]+"), r"\1***"),
    (re.compile(r"(?i)(\bbasic )[A-Za-z0-9+/=]{8,}"), r"\1***"),
    # Signed addresses: ours, and presigned ones of S3.
    (
        re.compile(
            r"(?i)\b((?:signature|x-amz-signature|x-amz-credential|x-amz-security-token|token"
            r"|password|secret|aws_secret_access_key)[\"']?\s*[=:]\s*[\"']?)[^&\s\"',;}]+"
        ),
        r"\1***",
    ),
    (re.compile(r"(/view/)\d+-[A-Za-z0-9_-]+"), r"\1***"),
    (re.compile(r"(://[^/:@\s]*):[^@/\s]+@"), r"\1:***@"),
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_LOUD = ("uvicorn.error", "uvicorn.access", "websockets", "botocore", "s3fs", "distributed")
"""Libraries whose everyday lines are not the server's."""


def redact(text: str) -> str:
    """Text without its secrets.

    Examples:
        >>> redact("GET /artifacts/7/labels.mrc?expires=1&signature=abc")
        'GET /artifacts/7/labels.mrc?expires=1&signature=***'
    """
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


class Redaction(logging.Filter):
    """Takes the secrets out of every record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact message and traceback; every record passes."""
        record.msg, record.args = redact(record.getMessage()), None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = redact(record.exc_text)
        return True


class JsonFormatter(logging.Formatter):
    """A line of JSON: time, level, logger, message, and the facts of requests and changes."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        line: dict[str, Any] = {
            "time": _time(record).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in ("request", "audit"):
            if facts := getattr(record, name, None):
                line[name] = {key: value for key, value in facts.items() if value is not None}
        if record.exc_text:
            line["traceback"] = record.exc_text
        return redact(json.dumps(line, ensure_ascii=False, default=str))


class TextFormatter(logging.Formatter):
    """A line for people; tracebacks below it."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        # What came stands in it, in an address say: it must not look like another line, or move
        # the cursor.
        told = _CONTROL.sub(lambda found: ascii(found[0])[1:-1], record.getMessage())
        if request := getattr(record, "request", None):
            who = request["user"] or "-"
            told = f"{told}  {request['ms']:.0f} ms  {who}@{request['address']}"
            told += f"  {request['request_id']}" if request["status"] >= 400 else ""
        if audit := getattr(record, "audit", None):
            told = f"{told}  by {audit['user'] or 'the server'}"
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        line = f"{_time(record).astimezone():%H:%M:%S}  {level}{told}"
        return f"{line}\n{record.exc_text}" if record.exc_text else line


def configure_logging(
    kind: Literal["auto", "json", "text"], level: str, *, stream: TextIO | None = None
) -> None:
    """Let this process write its log; the door that starts a server calls it, nothing else.

    Args:
        kind: ``auto`` is text on a terminal and JSON elsewhere.
        level: the smallest that is written.
        stream: where to; stderr unless given.
    """
    target = stream or sys.stderr
    is_text = kind == "text" or (kind == "auto" and target.isatty())
    handler = logging.StreamHandler(target)
    handler.addFilter(Redaction())
    handler.setFormatter(TextFormatter() if is_text else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.WARNING)


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)
