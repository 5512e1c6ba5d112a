"""Serve: check that it is safe, take the port and the folder, run until told to stop.

Stopping is graceful: no new connections, streams end, requests in flight are finished (for
``shutdown_grace_s``), jobs that run are put back into the queue. A second Ctrl-C stops at once;
what is on the disk is enough to go on then too.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lamella.core.errors import ConflictError, InputError, LamellaError, StorageError
from lamella.server.tls import Certificate, prepare_certificate

if TYPE_CHECKING:
    from lamella.server.services import Services
    from lamella.server.settings import Settings

__all__ = ["Started", "check_exposure", "serve"]

_ANY = ("", "0.0.0.0", "::")
_LOCK_NAME = "server.lock"
_BACKLOG = 1024
_MAX_FILES = 65_536
_GC_THRESHOLDS = (20_000, 10, 10)
"""Rubbish in circles is rare here, and what is young is mostly a request's own."""
_SWITCH_S = 0.0005
_GOODBYE_S = 1.5


@dataclass(frozen=True, slots=True)
class Started:
    """A server that answers.

    Attributes:
        url: under which it is reached from this machine.
        urls: every address it can be reached under.
        certificate: None without TLS.
        services: what it works with.
    """

    url: str
    urls: tuple[str, ...]
    certificate: Certificate | None
    services: Services


def check_exposure(settings: Settings) -> None:
    """Refuse to listen beyond this machine without TLS.

    Tokens are always needed; without TLS they and the data can be read on the way.

    Raises:
        InputError: saying what to do.
    """
    if settings.is_tls or settings.insecure or settings.is_loopback:
        return
    raise InputError(
        f"refusing to serve {settings.host}:{settings.port} without TLS: anyone on the network"
        " could read the tokens and the data",
        hint="choose one of\n"
        "  --tls self-signed                     a certificate of its own, pinned by clients\n"
        "  --tls CERT.pem --tls-key KEY.pem      your certificate\n"
        "  --host 127.0.0.1 --public-url URL     behind a proxy that does TLS\n"
        "  --insecure                            as it is, on a network that you trust",
    )


def serve(
    settings: Settings,
    *,
    prepare: Callable[[Services], None] | None = None,
    on_start: Callable[[Started], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        settings: of the server.
        prepare: called before anything starts, with what the server works with.
        on_start: called when it answers.

    Raises:
        InputError: it would not be safe, or the port or the address cannot be had.
        ConflictError: another server works on the same folder.
        StorageError: the data folder cannot be written.
        LamellaError: a part of the server cannot start, such as the connection to a cluster.
    """
    check_exposure(settings)
    _allow_many_files()
    _make_folder(settings.data_dir)
    with _held(settings), _bound(settings) as listener:
        # Under the lock: a certificate that another server gives must not be replaced.
        certificate = prepare_certificate(settings)
        from lamella.server.app import create_app
        from lamella.server.services import open_services

        services = open_services(settings)
        if prepare is not None:
            prepare(services)
        urls = _urls(settings, listener.getsockname()[1])
        server = _server(settings, create_app(settings, services), certificate)
        server.services = services
        server.announce = lambda: (
            on_start(Started(urls[0], urls, certificate, services)) if on_start else None
        )
        # What was imported stays: looking through it for rubbish would stop every answer for 0.1 s.
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        # Uploads keep the event loop and many threads at work. A short request changes threads some
        # twenty times, at each of which it would wait for the interpreter up to 5 ms.
        sys.setswitchinterval(_SWITCH_S)
        server.run(sockets=[listener])
        if server.failure is not None:
            raise server.failure


def _server(settings: Settings, app: Any, certificate: Certificate | None) -> Any:
    """Make the uvicorn server; uvicorn is imported here, when everything else is known to fit."""
    import uvicorn

    class Server(uvicorn.Server):
        """uvicorn's server, that tells when it answers and lets streams end when it stops."""

        services: Services
        announce: Callable[[], None]
        failure: LamellaError | None = None

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            try:
                # Before the application does it, which would only log what went wrong.
                await self.services.start()
            except LamellaError as error:
                self.failure, self.should_exit = error, True
                return
            await super().startup(sockets)
            if self.started:
                self.announce()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # Streams would otherwise keep their connections for the whole grace time.
            self.services.begin_shutdown()
            leaving = asyncio.create_task(_leave_the_silent(self))
            try:
                await super().shutdown(sockets)
            finally:
                leaving.cancel()

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            # uvicorn raises the signals again after a clean stop: a service that was told to stop
            # and did has not failed.
            kinds = (signal.SIGINT, signal.SIGTERM)
            previous = {kind: signal.signal(kind, self.handle_exit) for kind in kinds}
            try:
                yield
            finally:
                for kind, handler in previous.items():
                    signal.signal(kind, handler)

    config = uvicorn.Config(
        app,
        http=_connection(),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies) or None,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_grace_s)),
        timeout_keep_alive=30,
        backlog=_BACKLOG,
        ws_max_size=65_536,
        # Labels in events are compressed already.
        ws_per_message_deflate=False,
        ssl_certfile=certificate.path if certificate else None,
        ssl_keyfile=certificate.key_path if certificate else None,
    )
    return Server(config)


def _allow_many_files() -> None:
    """Take as many open files as the system lets this user have; an upload in flight needs six."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _connection() -> Any:
    if not hasattr(select, "poll"):  # Windows
        return "auto"
    from lamella.server.connection import Connection

    return Connection


def _make_folder(data_dir: Path) -> None:
    """Make the data folder where it is not, for this user alone, and see that it can be used."""
    try:
        # Jobs, names and results are its users' own: nobody else on the machine reads the folder.
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except FileExistsError:
        raise InputError(
            f"the data folder {data_dir} is a file", hint="name a folder with --data-dir"
        ) from None
    except OSError as error:
        raise _no_folder(data_dir, error.strerror or str(error)) from None
    if not os.access(data_dir, os.R_OK | os.W_OK | os.X_OK):
        raise _no_folder(data_dir, "Permission denied")


def _no_folder(data_dir: Path, reason: str) -> StorageError:
    return StorageError(
        f"the data folder {data_dir} cannot be made or written ({reason.lower()})",
        hint="name one that this user may write with --data-dir, or give this one to the user",
    )


async def _leave_the_silent(server: Any) -> None:
    """Drop connections that were closed and stay.

    A client that keeps an idle TLS connection answers no goodbye until it uses it again.
    """
    while True:
        await asyncio.sleep(_GOODBYE_S)
        for connection in list(server.server_state.connections):
            transport = cast("Any", getattr(connection, "transport", None))
            if transport is None or not transport.is_closing():
                continue
            if not transport.get_write_buffer_size():
                transport.abort()


@contextmanager
def _held(settings: Settings) -> Iterator[None]:
    """Be the only server of a data folder: two would start every job twice."""
    from lamella.models import lock

    path = settings.data_dir / _LOCK_NAME

    def refuse() -> None:
        raise ConflictError(
            f"another server works on {settings.data_dir} ({lock.owner_of(path)})",
            hint="stop it, or give this one its own --data-dir",
        )

    with lock.hold(path, on_wait=refuse):
        yield


@contextmanager
def _bound(settings: Settings) -> Iterator[socket.socket]:
    host, port = settings.host, settings.port
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError:
        raise InputError(
            f"{host!r} is no address of this machine",
            hint="--host 127.0.0.1 for this machine only, 0.0.0.0 for every interface",
        ) from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Connections wait in the backlog until the server answers: no client is turned away.
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise _no_port(host, port, error) from None
    listener.set_inheritable(False)
    try:
        yield listener
    finally:
        listener.close()


def _no_port(host: str, port: int, error: OSError) -> InputError:
    if error.errno == errno.EADDRINUSE:
        return InputError(
            f"port {port} of {host} is in use",
            hint="is another server running? choose another with --port, or 0 for any free one",
        )
    if error.errno == errno.EACCES:
        return InputError(
            f"port {port} needs rights that this process does not have",
            hint="choose one from 1024 on",
        )
    return InputError(
        f"{host}:{port} cannot be listened on: {error.strerror}",
        hint="--host 127.0.0.1 for this machine only, 0.0.0.0 for every interface",
    )


def _urls(settings: Settings, port: int) -> tuple[str, ...]:
    scheme = "https" if settings.is_tls else "http"
    hosts = [settings.host]
    if settings.host in _ANY:
        hosts = [socket.gethostname(), "127.0.0.1"]
    urls = [
        f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
        for host in hosts
    ]
    return tuple(dict.fromkeys([settings.public_url, *urls] if settings.public_url else urls))
