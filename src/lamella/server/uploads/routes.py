"""tus 1.0 over HTTP: /uploads."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from lamella.core.errors import LamellaError
from lamella.server.auth import Principal, ServicesDep, require
from lamella.server.body import socket_body
from lamella.server.problems import problems
from lamella.server.services import Services
from lamella.server.uploads import protocol
from lamella.server.uploads.append import Chunk
from lamella.server.uploads.protocol import TusError
from lamella.server.uploads.rows import UploadRecord, no_upload
from lamella.server.uploads.service import NewUpload, Uploads
from lamella.wire.upload import UploadDoc

__all__ = ["router"]

_VERSION_HEADER = "Tus-Version"
_MAX_KEY = 255


class _TusRoute(APIRoute):
    """Every answer, errors too, names the protocol's version and is kept in no cache."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Tus-Resumable"] = protocol.TUS_VERSION
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await super().handle(scope, receive, send_marked)


router = APIRouter(prefix="/uploads", tags=["uploads"], route_class=_TusRoute)

Writer = Annotated[Principal, require("uploads:write")]
TusVersion = Annotated[str | None, Header(alias="Tus-Resumable")]
Offset = Annotated[str | None, Header(alias="Upload-Offset")]
Length = Annotated[str | None, Header(alias="Upload-Length")]
ChecksumHeader = Annotated[str | None, Header(alias="Upload-Checksum")]
ContentType = Annotated[str | None, Header(alias="Content-Type")]


@dataclass(frozen=True, slots=True)
class _AppendHeaders:
    """What a PATCH says about its body."""

    tus_resumable: TusVersion = None
    upload_offset: Offset = None
    upload_length: Length = None
    upload_checksum: ChecksumHeader = None
    content_type: ContentType = None

    @classmethod
    def of_request(cls, request: Request) -> "_AppendHeaders":
        """The same, read by hand."""
        sent = request.headers
        return cls(
            sent.get("tus-resumable"),
            sent.get("upload-offset"),
            sent.get("upload-length"),
            sent.get("upload-checksum"),
            sent.get("content-type"),
        )


_BODY = {
    "requestBody": {
        "required": False,
        "content": {protocol.CONTENT_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    }
}
_NO_CONTENT: dict[str, Any] = {"status_code": 204, "response_class": Response}


@router.options("", operation_id="describe_uploads", **_NO_CONTENT)
@router.options("/{upload_id}", operation_id="describe_upload", **_NO_CONTENT)
def describe(services: ServicesDep) -> Response:
    """What this server's uploads can do: tus version, extensions, largest size, checksums."""
    return Response(
        status_code=204,
        headers={
            _VERSION_HEADER: protocol.TUS_VERSION,
            "Tus-Extension": ",".join(protocol.EXTENSIONS),
            "Tus-Checksum-Algorithm": ",".join(protocol.CHECKSUMS),
            "Tus-Max-Size": str(services.settings.max_upload_bytes),
        },
    )


@router.post(
    "",
    operation_id="create_upload",
    status_code=201,
    response_class=Response,
    openapi_extra=_BODY,
    responses=problems(400, 404, 409, 410, 412, 413, 460, 507),
)
async def create(
    request: Request,
    who: Writer,
    services: ServicesDep,
    tus_resumable: TusVersion = None,
    upload_length: Length = None,
    upload_defer_length: Annotated[str | None, Header(alias="Upload-Defer-Length")] = None,
    upload_metadata: Annotated[str | None, Header(alias="Upload-Metadata")] = None,
    upload_concat: Annotated[str | None, Header(alias="Upload-Concat")] = None,
) -> Response:
    """Create an upload, perhaps with its first bytes, or join finished parts to one."""
    _check_version(tus_resumable)
    uploads: Uploads = services.uploads
    metadata = protocol.parse_metadata(upload_metadata or "")
    concat = None if upload_concat is None else protocol.parse_concat(upload_concat)
    key = _idempotency_key(request)
    if concat is not None and concat.is_final:
        new = NewUpload(who.user, None, metadata, idempotency_key=key)
        record = await uploads.join(new, concat.parts)
        await _note(request, services, "upload.join", record.id)
        return _answer(request, services, 201, record, record.n_bytes or 0)
    n_bytes = _length(upload_length, upload_defer_length)
    new = NewUpload(who.user, n_bytes, metadata, concat is not None, idempotency_key=key)
    record = await run_in_threadpool(uploads.create, new)
    await _note(request, services, "upload.create", record.id)
    offset = await run_in_threadpool(uploads.offset_of, record)
    if _has_body(request) and offset == 0 and record.state == "open":
        record, offset = await _append_first(request, uploads, record)
    record = await uploads.finish_empty(record)
    return _answer(request, services, 201, record, offset)


@router.patch(
    "/{upload_id}",
    operation_id="append_upload",
    openapi_extra=_BODY,
    responses=problems(400, 403, 404, 409, 410, 412, 413, 415, 460, 507),
    **_NO_CONTENT,
)
async def append(
    upload_id: str,
    request: Request,
    who: Writer,
    services: ServicesDep,
    sent: Annotated[_AppendHeaders, Depends()],
) -> Response:
    """Append bytes; the answer's Upload-Offset is on the server's disk."""
    _check_version(sent.tus_resumable)
    kind = sent.content_type or ""
    if kind.partition(";")[0].strip().lower() != protocol.CONTENT_TYPE:
        raise TusError(
            f"expected Content-Type: {protocol.CONTENT_TYPE}, got {kind[:80]!r}",
            status=415,
            hint="the body is the file's bytes, from Upload-Offset on",
        )
    if sent.upload_offset is None:
        raise TusError(
            "the header Upload-Offset is missing",
            hint="it says where the bytes belong; HEAD tells how many are there",
        )
    checksum, length = sent.upload_checksum, sent.upload_length
    chunk = Chunk(
        offset=protocol.parse_number(sent.upload_offset, "Upload-Offset"),
        receive=request.receive,
        waiting=socket_body(request.scope),
        content_length=_content_length(request),
        checksum=None if checksum is None else protocol.parse_checksum(checksum),
        upload_length=None if length is None else protocol.parse_number(length, "Upload-Length"),
    )
    await _check_owner(services, who, upload_id)
    uploads: Uploads = services.uploads
    record, offset = await uploads.append(upload_id, chunk)
    return _answer(request, services, 204, record, offset)


@router.head(
    "/{upload_id}",
    operation_id="ask_upload",
    status_code=200,
    response_class=Response,
    responses=problems(404, 410, 412),
)
async def ask(
    upload_id: str,
    request: Request,
    who: Writer,
    services: ServicesDep,
    tus_resumable: TusVersion = None,
) -> Response:
    """How many bytes are safe. A request that still sends to this upload is ended by it."""
    _check_version(tus_resumable)
    await _check_owner(services, who, upload_id)
    uploads: Uploads = services.uploads
    record, offset = await uploads.ask(upload_id)
    answer = _answer(request, services, 200, record, offset)
    if record.metadata:
        answer.headers["Upload-Metadata"] = protocol.format_metadata(record.metadata)
    if record.n_bytes is None:
        answer.headers["Upload-Defer-Length"] = "1"
    else:
        answer.headers["Upload-Length"] = str(record.n_bytes)
    if record.is_partial:
        answer.headers["Upload-Concat"] = "partial"
    elif record.parts is not None:
        own = _place(request, services, "")
        answer.headers["Upload-Concat"] = "final;" + " ".join(own + one for one in record.parts)
    return answer


@router.delete(
    "/{upload_id}",
    operation_id="delete_upload",
    responses=problems(404, 409, 412),
    **_NO_CONTENT,
)
async def terminate(
    upload_id: str,
    request: Request,
    who: Writer,
    services: ServicesDep,
    tus_resumable: TusVersion = None,
) -> Response:
    """End an upload and remove its bytes; a volume that was made of it stays."""
    _check_version(tus_resumable)
    await _check_owner(services, who, upload_id)
    uploads: Uploads = services.uploads
    await uploads.remove(upload_id)
    await _note(request, services, "upload.delete", upload_id, 204)
    return Response(status_code=204)


@router.post(
    "/{upload_id}",
    operation_id="override_upload",
    openapi_extra=_BODY,
    responses=problems(400, 403, 404, 405, 409, 410, 412, 413, 415, 460, 507),
    **_NO_CONTENT,
)
async def override(
    upload_id: str,
    request: Request,
    who: Writer,
    services: ServicesDep,
    method: Annotated[str | None, Header(alias="X-HTTP-Method-Override")] = None,
) -> Response:
    """PATCH, HEAD or DELETE for clients behind proxies that let only POST pass."""
    version = request.headers.get("tus-resumable")
    match (method or "").strip().upper():
        case "PATCH":
            sent = _AppendHeaders.of_request(request)
            return await append(upload_id, request, who, services, sent)
        case "HEAD":
            return await ask(upload_id, request, who, services, tus_resumable=version)
        case "DELETE":
            return await terminate(upload_id, request, who, services, tus_resumable=version)
        case _:
            raise TusError(
                "POST to an upload needs X-HTTP-Method-Override: PATCH, HEAD or DELETE",
                status=405,
                hint="or send the method itself",
                headers={"Allow": "HEAD, PATCH, DELETE, GET, OPTIONS"},
            )


@router.get("", operation_id="list_uploads")
def list_uploads(
    who: Annotated[Principal, require("volumes:read")],
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> list[UploadDoc]:
    """Your uploads, newest first; an admin sees everybody's."""
    uploads: Uploads = services.uploads
    found = uploads.list(None if who.is_admin else who.user, limit)
    return [one.to_document(uploads.offset_of(one)) for one in found]


@router.get("/{upload_id}", operation_id="get_upload", responses=problems(404))
def get_upload(
    upload_id: str, who: Annotated[Principal, require("volumes:read")], services: ServicesDep
) -> UploadDoc:
    """One upload, finished or not; asking disturbs nobody who sends to it."""
    uploads: Uploads = services.uploads
    record = uploads.get(upload_id)
    if not who.may_see(record.owner):
        raise no_upload(upload_id)
    return record.to_document(uploads.offset_of(record))


async def _append_first(
    request: Request, uploads: Uploads, record: UploadRecord
) -> tuple[UploadRecord, int]:
    """The first bytes, sent with the creation; a creation that fails leaves nothing."""
    told = request.headers.get("upload-checksum")
    try:
        checksum = None if told is None else protocol.parse_checksum(told)
        chunk = Chunk(
            0, request.receive, socket_body(request.scope), _content_length(request), checksum
        )
        return await uploads.append(record.id, chunk)
    except LamellaError:
        await uploads.remove(record.id)
        raise


def _answer(
    request: Request, services: Services, status: int, record: UploadRecord, offset: int
) -> Response:
    headers = {"Upload-Offset": str(offset)}
    if status == 201:
        headers["Location"] = _place(request, services, record.id)
    if record.state == "open":
        headers["Upload-Expires"] = protocol.http_date(record.expires)
    if record.volume is not None:
        headers["Lamella-Volume"] = record.volume
    return Response(status_code=status, headers=headers)


def _place(request: Request, services: Services, upload_id: str) -> str:
    """Whole address of an upload; some clients cannot make one of a path."""
    url = request.url
    base = services.settings.public_url or f"{url.scheme}://{url.netloc}"
    return f"{base}{url.path.partition('/uploads')[0]}/uploads/{upload_id}"


async def _note(
    request: Request, services: Services, action: str, upload_id: str, status: int = 201
) -> None:
    def write() -> None:
        services.audit.record(request, action=action, target=upload_id, status=status)

    await run_in_threadpool(write)


async def _check_owner(services: Services, who: Principal, upload_id: str) -> None:
    if not protocol.is_upload_id(upload_id):
        raise no_upload(upload_id)
    owner = services.uploads.known_owner(upload_id)
    if owner is None:
        owner = await run_in_threadpool(services.uploads.owner_of, upload_id)
    if not who.may_see(owner):
        raise no_upload(upload_id)


def _check_version(told: str | None) -> None:
    if told != protocol.TUS_VERSION:
        got = "it is missing" if told is None else f"got {told[:40]!r}"
        raise TusError(
            f"expected the header Tus-Resumable: {protocol.TUS_VERSION}; {got}",
            status=412,
            hint="files are sent by tus 1.0, as `lamella submit` and lm.Client do; not as a form",
            headers={_VERSION_HEADER: protocol.TUS_VERSION},
        )


def _length(told: str | None, deferred: str | None) -> int | None:
    if told is not None and deferred is None:
        return protocol.parse_number(told, "Upload-Length")
    if told is None and deferred == "1":
        return None
    raise TusError(
        "expected either Upload-Length, or Upload-Defer-Length: 1",
        hint="the size of the file in bytes; deferred, it comes with a later PATCH",
    )


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= _MAX_KEY:
        raise TusError(
            f"Idempotency-Key has {len(key)} characters; 1 to {_MAX_KEY} are allowed",
            hint="any text that no other upload of yours has",
        )
    return key


def _has_body(request: Request) -> bool:
    if _content_length(request) == 0:
        return False
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == protocol.CONTENT_TYPE


def _content_length(request: Request) -> int | None:
    told = request.headers.get("content-length")
    if told is None:
        return None if "transfer-encoding" in request.headers else 0
    return protocol.parse_number(told, "Content-Length")
