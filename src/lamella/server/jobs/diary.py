"""A job's events as lines for people: ``GET /jobs/ID/log``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

__all__ = ["diary_lines"]


def diary_lines(lines: Iterable[tuple[int, str]]) -> Iterator[str]:
    """One line an event that says something; of progress, where a stage begins and ends.

    Examples:
        >>> list(diary_lines([(1, '{"type": "log", "message": "hello", "time_s": 0}')]))
        ['1970-01-01 00:00:00  hello']
    """
    stage = ""
    for _, line in lines:
        event = json.loads(line)
        if event["type"] == "progress":
            is_new = event["stage"] != stage
            stage = event["stage"]
            if event["done"] < event["total"]:
                if is_new:
                    yield f"{_when(event)}  {stage}"
                continue
        if text := _text(event):
            yield f"{_when(event)}  {text}"


def _when(event: dict[str, Any]) -> str:
    return f"{datetime.fromtimestamp(event.get('time_s', 0), UTC):%Y-%m-%d %H:%M:%S}"


def _text(event: dict[str, Any]) -> str:
    match event["type"]:
        case "state":
            attempt = f" (attempt {event['attempt']})" if event.get("attempt") else ""
            place = f", position {event['position']}" if event.get("position") else ""
            told = f": {event['message']}" if event.get("message") else ""
            return f"{event['state']}{attempt}{place}{told}"
        case "started":
            shape = " x ".join(str(n) for n in event["shape"])
            return f"{event['model']} on {shape} voxels"
        case "progress":
            unit = f" {event['unit']}" if event.get("unit") else ""
            return f"{event['stage']}: {event['done']:.4g} of {event['total']:.4g}{unit}"
        case "warning":
            return f"warning ({event['code']}): {event['message']}"
        case "finished":
            n_objects = event.get("n_objects")
            found = "" if n_objects is None else f", {n_objects} objects"
            return f"the run finished in {event['elapsed_s']:.1f} s{found}"
        case "failed":
            return f"the run stopped: {event['problem']['message']}"
        case "log":
            return str(event["message"])
        case _:
            return ""
