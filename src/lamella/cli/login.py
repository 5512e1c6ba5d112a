"""``lamella login``: keep the token and the certificate of a server."""

import sys
from dataclasses import replace
from typing import Any

import click

from lamella.cli.parameters import answer_options, console_of
from lamella.core.errors import InputError, UnauthenticatedError

__all__ = ["command"]


@click.command()
@click.argument("url")
@click.option("--token", help="Asked for, without showing it, unless given; - reads it from stdin.")
@click.option(
    "--pin", metavar="SHA256",
    help="Certificate of a self-signed server, or: first (trust what comes first).",
)  # fmt: skip
@click.option("--insecure", is_flag=True, help="Send the token over http:// all the same.")
@click.option("--forget", is_flag=True, help="Remove what is kept about the server.")
@answer_options
def command(url: str, token: str | None, pin: str | None, forget: bool, **words: Any) -> None:
    """Check a token with the server at URL and keep it, for you alone.

    Afterwards commands need no --token and no --pin, and with one server no --server.
    """
    from lamella.client.client import Client
    from lamella.client.flow import Request
    from lamella.client.patience import Trouble, ask
    from lamella.client.servers import Servers, server_address
    from lamella.core.places import ClientPlaces

    console = console_of(words)
    places = ClientPlaces.of_user()
    servers = Servers(places.servers)
    address = server_address(url)
    if forget:
        if not servers.remove(address):
            raise InputError(f"nothing is kept about {address}", hint="check the address")
        console.answer({"server": address, "is_known": False}, f"{address} is forgotten")
        return
    with Client(address, pin=pin, insecure=words["insecure"]) as stranger:
        # Before anyone types a secret: is it there, and is it the right one?
        request = Request("GET", "version", has_token=False)
        version = stranger.drive(ask(request, Trouble(stranger.context.patience))).json()
    secret = _secret(token, places.token)
    with Client(address, token=secret, insecure=words["insecure"]) as client:
        try:
            client.jobs(limit=1)
        except UnauthenticatedError as error:
            raise UnauthenticatedError(
                f"{address} does not know this token",
                hint="ask whoever runs the server: `lamella tokens add NAME` makes one",
            ) from error
        pin = servers.get(address).pin
    servers.put(address, replace(servers.get(address), token=secret))
    document = {"server": address, "is_known": True, "pin": pin, "file": str(servers.path)}
    known = f"Lamella {version.get('version', '')} at {address}".replace("  ", " ")
    console.answer(document, f"{known}: the token works and is kept in {servers.path}")


def _secret(given: str | None, from_environment: str | None) -> str:
    if given == "-":
        given = sys.stdin.readline()
    asked = given or from_environment or click.prompt("token", hide_input=True, err=True)
    secret = str(asked).strip()
    if not secret or not secret.isascii() or any(c.isspace() for c in secret):
        raise InputError("that is no token", hint="a token begins with lam_ and has no spaces")
    return secret
