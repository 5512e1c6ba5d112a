"""How a command that fails says so: a message and a hint, or a problem document with ``--json``."""

import os
import sys
import traceback
from collections.abc import Sequence

import click

from lamella.core.errors import LamellaError, RunCancelledError
from lamella.core.storage import is_disk_full, storage_error

__all__ = [
    "EXIT_BROKEN_PIPE",
    "EXIT_CANCELLED",
    "EXIT_DEFECT",
    "EXIT_INPUT",
    "EXIT_NO",
    "report",
    "wants_debug",
    "wants_json",
]

EXIT_DEFECT = 1
EXIT_INPUT = 2
EXIT_NO = 3
EXIT_CANCELLED = 130
EXIT_BROKEN_PIPE = 141


def wants_json(words: Sequence[str]) -> bool:
    """Whether a command line asks for JSON, known even when it cannot be parsed."""
    ours = words[: words.index("--")] if "--" in words else words
    return "--json" in ours


def wants_debug(words: Sequence[str]) -> bool:
    """Whether tracebacks are wanted."""
    setting = os.environ.get("LAMELLA_DEBUG", "")  # noqa: TID251 - read here, at the edge
    return "--debug" in words[:1] or setting not in ("", "0")


def report(error: BaseException, *, as_json: bool, debug: bool) -> int:
    """Tell on stderr what went wrong: in words, or with ``as_json`` as a problem document.

    Returns:
        The exit code.
    """
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if debug and not isinstance(error, click.ClickException):
        traceback.print_exception(error, file=sys.stderr)
    code, problem = _describe(error)
    if as_json:
        import json

        text = json.dumps(problem, indent=2, ensure_ascii=False, default=str)
    else:
        text = _render(problem)
    click.echo(text, err=True)
    return code


def _describe(error: BaseException) -> tuple[int, dict[str, object]]:
    if isinstance(error, RunCancelledError | KeyboardInterrupt | click.Abort):
        hint = getattr(error, "hint", None) or "run the same command again"
        message = getattr(error, "message", "") or "stopped"
        return EXIT_CANCELLED, _problem("cancelled", message, hint)
    if isinstance(error, OSError) and is_disk_full(error):
        # Anything may write (numba caches its kernels, say): a full disk is never a defect.
        error = storage_error(error)
    if isinstance(error, LamellaError):
        return EXIT_INPUT, _problem(error.code, error.message, error.hint, error.details)
    if isinstance(error, click.ClickException):
        usage = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
        hint = f"{usage} --help" if usage else None
        return EXIT_INPUT, _problem("usage", _sentence(error.format_message()), hint)
    if isinstance(error, MemoryError):
        message = "there is not enough memory for this"
        return EXIT_INPUT, _problem("out_of_memory", message, "use smaller --tile, or a crop")
    text = f"{type(error).__name__}: {error}"
    hint = "this is a defect in Lamella: run again with LAMELLA_DEBUG=1 and report the traceback"
    return EXIT_DEFECT, _problem("internal_error", text, hint)


def _problem(
    code: str, message: str, hint: str | None, details: dict[str, object] | None = None
) -> dict[str, object]:
    return {"code": code, "message": message, "hint": hint, "details": details or {}}


def _sentence(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")


def _render(problem: dict[str, object]) -> str:
    is_stop = problem["code"] == "cancelled"
    head = "stopped" if is_stop else "error"
    message = problem["message"]
    lines = [head if message in ("stopped", "cancelled") else f"{head}: {message}"]
    if problem["hint"]:
        lines.append(f"hint: {problem['hint']}")
    return "\n".join(lines)
