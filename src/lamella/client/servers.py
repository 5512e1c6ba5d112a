"""Servers that a user knows: tokens and pins, in one file that only the user may read.

::

    ~/.config/lamella/servers.json      {"version": 1, "servers": {"https://gpu.lab:8443":
                                          {"token": "...", "pin": "..."}}}
"""

import ipaddress
import json
import os
import stat
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from lamella.core.errors import InputError
from lamella.core.storage import storage_error

__all__ = ["KnownServer", "Servers", "is_loopback", "server_address"]

_VERSION = 1


@dataclass(frozen=True, slots=True)
class KnownServer:
    """What is kept about a server.

    Attributes:
        token: the user's, if any.
        pin: SHA-256 of its certificate, where no authority vouches for it.
    """

    token: str | None = field(default=None, repr=False)
    pin: str | None = None


class Servers:
    """The file of known servers.

    Args:
        path: the file; None knows and keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def all(self) -> dict[str, KnownServer]:
        """Servers by address.

        Raises:
            InputError: when others may read the file, or when it is damaged.
        """
        if self.path is None:
            return {}
        try:
            mode = self.path.stat().st_mode
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise storage_error(error, self.path) from error
        if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise InputError(
                f"others on this machine may read the tokens in {self.path}",
                hint=f"chmod 600 {self.path}, and revoke the tokens if others have read them",
            )
        try:
            document = json.loads(text)
            return {
                str(url): KnownServer(entry.get("token"), entry.get("pin"))
                for url, entry in document["servers"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(
                f"{self.path} is damaged",
                hint="remove it and run `lamella login URL` again",
            ) from None

    def get(self, url: str) -> KnownServer:
        """What is known about a server; nothing for a stranger."""
        return self.all().get(url, KnownServer())

    def put(self, url: str, server: KnownServer) -> None:
        """Keep what is known about a server."""
        known = self.all()
        known[url] = server
        self._write(known)

    def remove(self, url: str) -> bool:
        """Forget a server; whether it was known."""
        known = self.all()
        if known.pop(url, None) is None:
            return False
        self._write(known)
        return True

    def _write(self, known: dict[str, KnownServer]) -> None:
        if self.path is None:
            return
        entries = {
            url: {name: value for name, value in asdict(server).items() if value is not None}
            for url, server in known.items()
        }
        text = json.dumps({"version": _VERSION, "servers": entries}, indent=2) + "\n"
        fresh = self.path.with_name(f".{self.path.name}.{os.getpid()}.new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Never readable for others, not even while it is written.
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(text)
            fresh.replace(self.path)
        except OSError as error:
            with suppress(OSError):
                fresh.unlink()
            raise storage_error(error, self.path) from error


def server_address(text: str) -> str:
    """The address of a server, in one spelling.

    Raises:
        InputError: when it is none.

    Examples:
        >>> server_address("HTTPS://GPU.lab:8443/"), server_address("gpu.lab:8443")
        ('https://gpu.lab:8443', 'https://gpu.lab:8443')
        >>> server_address("localhost:8765")
        'http://localhost:8765'
    """
    text = text.strip()
    if "://" not in text:
        host = urlsplit(f"//{text}").hostname or ""
        text = f"{'http' if _is_local_name(host) else 'https'}://{text}"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme.lower() not in ("http", "https") or not host or parts.query or parts.fragment:
        raise InputError(
            f"{text!r} is not the address of a server", hint="write https://gpu.lab:8443"
        )
    if parts.username or parts.password:
        raise InputError(
            "an address with a password in it ends up in logs",
            hint="use a token: `lamella login URL`",
        )
    name = f"[{host}]" if ":" in host else host
    place = name if port is None else f"{name}:{port}"
    path = parts.path.rstrip("/").removesuffix("/api/v1")
    return f"{parts.scheme.lower()}://{place}{path}"


def is_loopback(url: str) -> bool:
    """Whether an address never leaves this machine."""
    return _is_local_name(urlsplit(url).hostname or "")


def _is_local_name(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
