"""From an address and a token to a connection: what is given, what is kept, what is refused."""

from dataclasses import dataclass, replace

from lamella.client.context import Context
from lamella.client.patience import Patience
from lamella.client.pinning import FIRST, normalised
from lamella.client.servers import Servers, is_loopback, server_address
from lamella.client.transport import Endpoint
from lamella.client.upload import UploadOptions
from lamella.core.errors import InputError
from lamella.core.places import ClientPlaces
from lamella.workflows.versions import LAMELLA_VERSION

__all__ = ["ConnectOptions", "connection"]


@dataclass(frozen=True, slots=True)
class ConnectOptions:
    """How a server is reached.

    Attributes:
        pin: SHA-256 of its certificate, or ``first``; kept for the next time.
        insecure: send a token over a network without TLS.
        patience_s: seconds without an answer before a call gives up.
        n_parts: parts of a large upload that are sent at the same time.
        places: where tokens and unfinished uploads are kept; the user's own unless given.
    """

    pin: str | None = None
    insecure: bool = False
    patience_s: float | None = None
    n_parts: int = 1
    places: ClientPlaces | None = None


def connection(
    url: str | None, token: str | None, options: ConnectOptions
) -> tuple[Endpoint, Context]:
    """A server, as it is spoken to.

    Args:
        url: its address; the set one, or the only known one, unless given.
        token: the user's; else ``LAMELLA_TOKEN``, else the kept one.
        options: the rest.

    Raises:
        InputError: when it is not clear which server, or when a token would travel in the open.
    """
    places = options.places or ClientPlaces.of_user()
    servers = Servers(places.servers)
    address = _address(url, places, servers)
    known = servers.get(address)
    secret = token or places.token or known.token
    if secret and address.startswith("http:") and not is_loopback(address) and not options.insecure:
        raise InputError(
            f"the token would travel to {address} in the open",
            hint="use https://, or --insecure within a network that you trust",
        )
    pin = known.pin if options.pin is None else normalised(options.pin)
    if pin == FIRST and known.pin is not None:
        pin = known.pin

    def keep(found: str) -> None:
        # Only what was met: a pin that was mistyped must not replace the one that is right.
        if found != known.pin:
            servers.put(address, replace(servers.get(address), pin=found))

    base = Patience()
    limit = base.total_s if options.patience_s is None else options.patience_s
    patience = replace(base, total_s=limit, first_s=min(base.first_s, limit))
    endpoint = Endpoint(address, secret, pin, keep, f"lamella/{LAMELLA_VERSION}")
    upload = UploadOptions(n_parts=options.n_parts)
    return endpoint, Context(address, patience, places.cache, upload)


def _address(url: str | None, places: ClientPlaces, servers: Servers) -> str:
    if url or places.server:
        return server_address(url or places.server)
    known = list(servers.all())
    if len(known) == 1:
        return known[0]
    found = f"{len(known)} servers are known: {', '.join(known)}" if known else "none is known"
    raise InputError(
        f"which server? {found}",
        hint="give --server URL, set LAMELLA_SERVER, or run `lamella login URL` once",
    )
