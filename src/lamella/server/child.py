"""The other side of :mod:`lamella.server.background`: one task, from standard input to output."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import traceback

from lamella.wire.problem import Problem

__all__ = ["main"]


def main() -> None:
    """Do the task that standard input names, and write what became of it."""
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    # Whatever a library prints must not end up in the answer.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    request = json.loads(sys.stdin.buffer.read())
    with contextlib.suppress(OSError, AttributeError):
        # Jobs come first.
        os.nice(5)
    problem: Problem | None = None
    result: object = None
    try:
        module, _, function = request["function"].partition(":")
        result = getattr(importlib.import_module(module), function)(request["document"])
    except Exception as error:  # noqa: BLE001 - whatever it was, the server must hear of it
        traceback.print_exc()
        problem = Problem.from_error(error)
    with answer:
        json.dump(
            {
                "result": result,
                "problem": None if problem is None else problem.model_dump(mode="json"),
            },
            answer,
        )
