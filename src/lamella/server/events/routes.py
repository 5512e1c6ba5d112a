"""Routes of events: a page of JSON, a stream of server-sent events, a WebSocket."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Depends, Header, Query, Request, Response, WebSocket
from fastapi.concurrency import run_in_threadpool
from starlette.websockets import WebSocketDisconnect, WebSocketState

from lamella.core.errors import InputError
from lamella.server.auth import Principal, ServicesDep, chosen_subprotocol, require
from lamella.server.events.entry import Entry, Previews
from lamella.server.events.hub import Follow, Hub
from lamella.server.events.stream import EventStream
from lamella.server.jobs.owned import owned_job
from lamella.server.problems import problems
from lamella.wire.event import EventPage

__all__ = ["router"]

router = APIRouter(prefix="/jobs", tags=["events"])

_EVENT_STREAM = "text/event-stream"
_MAX_NUMBER = 2**53
_NORMAL, _SERVICE_RESTART = 1000, 1012


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What somebody wants of a job's events."""

    after: Annotated[
        int, Query(ge=0, le=_MAX_NUMBER, description="Number of the last event that is known.")
    ] = 0
    previews: Annotated[
        Previews,
        Query(description="Of previews: nothing, their boxes, or the boxes with their labels."),
    ] = "boxes"
    coalesce: Annotated[
        bool,
        Query(description="Of a stream: leave out superseded progress and previews when behind."),
    ] = True


@dataclass(frozen=True, slots=True)
class _PageWanted:
    """What somebody wants of a page."""

    limit: Annotated[int, Query(ge=1, le=1000, description="Events of a page, at most.")] = 500
    wait_s: Annotated[
        float, Query(ge=0, le=60, description="How long a page waits for its first event.")
    ] = 0


_STREAM_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events: a page, or a stream where the request accepts one.",
        "model": EventPage,
        "content": {_EVENT_STREAM: {"schema": {"type": "string"}}},
    },
    204: {"description": "A stream of a job that has ended, with nothing new after that number."},
}


@router.get(
    "/{job_id}/events", operation_id="list_events", summary="Events of a job",
    response_class=Response, responses={**_STREAM_RESPONSES, **problems(404)},
)  # fmt: skip
async def list_events(
    job_id: str,
    request: Request,
    services: ServicesDep,
    who: Annotated[Principal, require("jobs:read")],
    wanted: Annotated[_Wanted, Depends()],
    page: Annotated[_PageWanted, Depends()],
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """What a job said after event number ``after``, oldest first.

    With ``Accept: text/event-stream`` the answer is a stream that ends after the job has;
    ``Last-Event-ID`` (which browsers send by themselves when they come again) then stands for
    ``after``. Otherwise it is one page that leaves nothing out; with ``wait_s`` it waits for news.
    """
    await run_in_threadpool(owned_job, services, who, job_id)
    hub: Hub = services.hub
    is_stream = _EVENT_STREAM in request.headers.get("accept", "")
    how = Follow(
        after=_number(last_event_id) if is_stream and last_event_id else wanted.after,
        previews=wanted.previews,
        is_coalesced=wanted.coalesce and is_stream,
    )
    if not is_stream:
        entries, last = await hub.page(job_id, how, limit=page.limit, wait_s=page.wait_s)
        state = (await run_in_threadpool(services.jobs.get, job_id)).state
        return Response(_page(entries, last, state), media_type="application/json")
    hub.admit(who.user)
    if await hub.is_over(job_id, how.after):
        # What tells an EventSource of a browser not to come again.
        return Response(status_code=204)
    return EventStream(hub.follow(job_id, who.user, how))


@router.websocket("/{job_id}/events/ws")
async def watch_events(
    websocket: WebSocket,
    job_id: str,
    services: ServicesDep,
    who: Annotated[Principal, require("jobs:read")],
    wanted: Annotated[_Wanted, Depends()],
) -> None:
    """One event a text message, until the job has ended."""
    await run_in_threadpool(owned_job, services, who, job_id)
    hub: Hub = services.hub
    hub.admit(who.user)
    await websocket.accept(subprotocol=chosen_subprotocol(websocket))
    how = Follow(wanted.after, wanted.previews, wanted.coalesce)
    await _serve(websocket, hub.follow(job_id, who.user, how), wanted.after)
    if websocket.client_state is WebSocketState.CONNECTED:
        code = _SERVICE_RESTART if services.is_closing else _NORMAL
        await websocket.close(code)


async def _serve(websocket: WebSocket, pieces: AsyncGenerator[list[Entry]], last: int) -> None:
    async def listen() -> None:
        try:
            while True:
                # Nothing is expected; reading is how the end of the other side is noticed.
                await websocket.receive_text()
        except (WebSocketDisconnect, KeyError, RuntimeError):
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group, aclosing(pieces):
        group.start_soon(listen)
        try:
            async for entries in pieces:
                for entry in entries:
                    await websocket.send_text(entry.line)
                    last = entry.number
                if not entries:
                    await websocket.send_text(json.dumps({"type": "heartbeat", "last": last}))
        except (WebSocketDisconnect, OSError, RuntimeError):
            return
        finally:
            group.cancel_scope.cancel()


def _number(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 16:
        return int(text)
    raise InputError(
        f"Last-Event-ID is the number of an event, got {text[:40]!r}",
        hint="send the id of the last event that came, or leave it out",
    )


def _page(entries: list[Entry], last: int, state: str) -> bytes:
    """An :class:`EventPage`; the lines are JSON already."""
    lines = ",".join(entry.line for entry in entries)
    return f'{{"events":[{lines}],"last":{last},"state":{json.dumps(state)}}}'.encode()
