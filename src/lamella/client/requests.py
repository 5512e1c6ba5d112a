"""Plain requests of a client, as flows: lists of jobs, uploads, volumes and models."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from lamella.client.answers import document_of
from lamella.client.context import Context
from lamella.client.flow import Flow, Request
from lamella.client.patience import Trouble, ask
from lamella.core.errors import ServerConnectionError
from lamella.wire.document import Document
from lamella.wire.job import JobDoc, JobPage
from lamella.wire.upload import UploadDoc, VolumeDoc

__all__ = ["jobs", "listing", "log", "models", "plain", "remove", "uploads", "volumes"]

T = TypeVar("T")
D = TypeVar("D", bound=Document)
_PAGE = 200


def plain(context: Context, method: str, path: str) -> Flow[Any]:
    """One request; its JSON answer, or None where it has no body."""
    answer = yield from ask(Request(method, path), Trouble(context.patience))
    return answer.json() if answer.content else None


def log(context: Context, job_id: str) -> Flow[str]:
    """The log of a job, for people."""
    request = Request("GET", f"jobs/{job_id}/log", headers={"accept": "text/plain"})
    answer = yield from ask(request, Trouble(context.patience))
    return answer.content.decode("utf-8", "replace")


def jobs(context: Context, limit: int, **filters: str | None) -> Flow[list[JobDoc]]:
    """Jobs, newest first, over as many pages as it takes."""
    found: list[JobDoc] = []
    cursor: str | None = None
    given = {name: value for name, value in filters.items() if value}
    while len(found) < limit:
        params = {**given, "limit": str(min(_PAGE, limit - len(found)))}
        if cursor:
            params["cursor"] = cursor
        answer = yield from ask(Request("GET", "jobs", params=params), Trouble(context.patience))
        page = document_of(JobPage, answer.content, what="list of jobs")
        found += page.jobs
        cursor = page.next_cursor
        if cursor is None:
            break
    return found[:limit]


def uploads(context: Context) -> Flow[list[UploadDoc]]:
    """Uploads, finished or not."""
    return listing((yield from plain(context, "GET", "uploads")), _reader(UploadDoc, "upload"))


def volumes(context: Context) -> Flow[list[VolumeDoc]]:
    """Volumes that jobs can name."""
    return listing((yield from plain(context, "GET", "volumes")), _reader(VolumeDoc, "volume"))


def models(context: Context) -> Flow[list[dict[str, Any]]]:
    """Models of the server, as it describes them."""
    return listing((yield from plain(context, "GET", "models")), dict)


def remove(context: Context, kind: str, name: str) -> Flow[None]:
    """Remove an upload, a volume or a job; one that is gone already is no error."""
    headers = {"tus-resumable": "1.0.0"} if kind == "uploads" else {}
    request = Request("DELETE", f"{kind}/{name}", headers=headers)
    trouble = Trouble(context.patience)
    yield from ask(request, trouble)


def listing(document: Any, read: Callable[[Any], T]) -> list[T]:
    """The items of a list, or of a page that holds one.

    Raises:
        ServerConnectionError: when there is none.
    """
    items = document
    if isinstance(document, dict):
        items = next((value for value in document.values() if isinstance(value, list)), None)
    if not isinstance(items, list):
        raise ServerConnectionError("the server's list is none", hint="is it another version?")
    return [read(item) for item in items]


def _reader(kind: type[D], what: str) -> Callable[[Any], D]:
    return partial(document_of, kind, what=what)
