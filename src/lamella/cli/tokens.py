"""``lamella tokens``: who may use a server, from its own machine or over the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from lamella.cli.console import Console, table
from lamella.cli.parameters import answer_options, console_of, stack_options

if TYPE_CHECKING:
    from lamella.client.client import Client
    from lamella.server.local import LocalAccess
    from lamella.wire.access import TokenDoc, TokenSecret, TokenSpec

__all__ = ["command"]

F = TypeVar("F", bound=Callable[..., Any])

_WHERE = (
    click.option(
        "--data-dir", type=click.Path(path_type=Path),
        help="Data folder of a server of this machine; its usual one unless given.",
    ),
    click.option("--server", metavar="URL", help="A running server; needs a token of an admin."),
    click.option("--token", help="For --server; better LAMELLA_TOKEN or lamella login."),
    click.option("--pin", metavar="SHA256", help="Certificate of a self-signed --server."),
)  # fmt: skip


class _Tokens(Protocol):
    """Tokens, wherever they are."""

    def add(self, spec: TokenSpec, /) -> TokenSecret: ...

    def list(self, user: str | None, /) -> tuple[TokenDoc, ...]: ...

    def revoke(self, token_id: str, /) -> None: ...


def _where_options(function: F) -> F:
    return stack_options(_WHERE, function)


@click.group(name="tokens")
def command() -> None:
    """Add, list and revoke the tokens of a server.

    On the server's own machine nothing is needed but its data folder; elsewhere --server and an
    admin's token.
    """


@command.command(name="add")
@click.argument("user")
@click.option(
    "--role", type=click.Choice(["viewer", "annotator", "admin"]), default="annotator",
    show_default=True, help="viewer reads, annotator uploads and runs jobs, admin may all.",
)  # fmt: skip
@click.option("--scope", "scopes", multiple=True, help="Only this right of the role; repeatable.")
@click.option("--name", default="", help="What it is for: laptop, nightly script.")
@click.option("--expires", metavar="TIME", help="Valid for this long: 12h, 30d; for ever if not.")
@_where_options
@answer_options
def add_command(
    user: str, role: str, scopes: tuple[str, ...], name: str, expires: str | None, **words: Any
) -> None:
    """Make a token for USER; it is shown this once."""
    from lamella.wire.access import TokenSpec

    console = console_of(words)
    spec = _checked_spec(
        TokenSpec,
        {
            "user": user,
            "role": role,
            "scopes": scopes,
            "name": name,
            "expires_s": None if expires is None else _seconds(expires),
        },
    )
    with _open(words) as tokens:
        made = tokens.add(spec)
    console.answer(made, lambda: _made_text(made, console))


@command.command(name="list")
@click.option("--user", help="Only tokens of this user.")
@click.option("--all", "shows_dead", is_flag=True, help="Revoked and expired ones too.")
@_where_options
@answer_options
def list_command(user: str | None, shows_dead: bool, **words: Any) -> None:
    """List tokens; never their secrets."""
    console = console_of(words)
    with _open(words) as tokens:
        listed = tokens.list(user)
    shown = [one for one in listed if shows_dead or _state(one) == "valid"]
    console.answer(
        {"tokens": [one.model_dump(mode="json") for one in shown]},
        lambda: _listing(shown, n_hidden=len(listed) - len(shown)),
    )


@command.command(name="revoke")
@click.argument("token_ids", metavar="ID...", nargs=-1, required=True)
@_where_options
@answer_options
def revoke_command(token_ids: tuple[str, ...], **words: Any) -> None:
    """End tokens at once; the ID is the part of a token after lam_, or from the list."""
    console = console_of(words)
    ids = [_id_of(text) for text in token_ids]
    with _open(words) as tokens:
        for token_id in ids:
            tokens.revoke(token_id)
    console.answer({"revoked": ids}, "\n".join(f"{one}: revoked" for one in ids))


@contextmanager
def _open(words: dict[str, Any]) -> Iterator[_Tokens]:
    server, data_dir = words.pop("server"), words.pop("data_dir")
    token, pin = words.pop("token"), words.pop("pin")
    if server is None:
        from lamella.server.local import open_local
        from lamella.server.settings import load_settings

        with open_local(load_settings(flags={"data_dir": data_dir}).settings) as access:
            yield _LocalTokens(access)
        return
    if data_dir is not None:
        raise click.UsageError("--data-dir and --server exclude each other")
    from lamella.client.client import Client

    with Client(server, token, pin=pin) as client:
        yield _RemoteTokens(client)


class _LocalTokens:
    """Tokens in a data folder of this machine."""

    def __init__(self, access: LocalAccess) -> None:
        self._access = access

    def add(self, spec: TokenSpec, /) -> TokenSecret:
        made = self._access.tokens.add(spec)
        self._record("token.create", made.token.id)
        return made

    def list(self, user: str | None, /) -> tuple[TokenDoc, ...]:
        return self._access.tokens.list(user=user)

    def revoke(self, token_id: str, /) -> None:
        self._access.tokens.revoke(token_id)
        self._record("token.revoke", token_id)

    def _record(self, action: str, token_id: str) -> None:
        import getpass

        try:
            user = getpass.getuser()
        except (KeyError, OSError):
            user = ""
        self._access.audit.record(
            None, action=action, target=token_id, user=user[:64] or None,
            details={"by": "command line"},
        )  # fmt: skip


class _RemoteTokens:
    """Tokens of a server elsewhere."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def add(self, spec: TokenSpec, /) -> TokenSecret:
        from lamella.client.flow import Request
        from lamella.client.patience import Trouble, ask
        from lamella.wire.access import TokenSecret

        request = Request(
            "POST",
            "tokens",
            headers={"content-type": "application/json"},
            content=spec.model_dump_json().encode(),
        )
        answer = self._client.drive(ask(request, Trouble(self._client.context.patience)))
        return TokenSecret.parse_json(answer.content, what="the server's answer")

    def list(self, user: str | None, /) -> tuple[TokenDoc, ...]:
        from lamella.wire.access import TokenDoc

        listed = [TokenDoc.model_validate(one) for one in self._client.request("GET", "tokens")]
        return tuple(one for one in listed if user in (None, one.user))

    def revoke(self, token_id: str, /) -> None:
        self._client.request("DELETE", f"tokens/{token_id}")


def _checked_spec(kind: type[TokenSpec], values: dict[str, Any]) -> TokenSpec:
    from pydantic import ValidationError

    from lamella.core.errors import InputError

    try:
        return kind.model_validate(values)
    except ValidationError as invalid:
        first = invalid.errors()[0]
        if first["loc"][:1] == ("user",):
            raise InputError(
                f"{values['user']!r} is no name of a user",
                hint="letters, digits and . _ @ -, at most 64",
            ) from None
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{where}: {first['msg']}", hint="lamella tokens add --help") from None


def _seconds(text: str) -> float:
    from pydantic import TypeAdapter, ValidationError

    from lamella.core.errors import InputError
    from lamella.server.settings import Seconds

    try:
        return TypeAdapter(Seconds).validate_python(text)
    except ValidationError:
        raise InputError(f"--expires {text!r} is no time", hint="write 90min, 12h or 30d") from None


def _id_of(text: str) -> str:
    """The id in what somebody pasted: the id, or a whole token."""
    parts = text.split("_")
    return parts[1] if text.startswith("lam_") and len(parts) > 1 else text


def _state(token: TokenDoc) -> str:
    from datetime import UTC, datetime

    if token.is_revoked:
        return "revoked"
    is_over = token.expires and datetime.fromisoformat(token.expires) <= datetime.now(UTC)
    return "expired" if is_over else "valid"


def _made_text(made: TokenSecret, console: Console) -> str:
    token = made.token
    until = f"until {_day(token.expires)}" if token.expires else "until it is revoked"
    return (
        f"Token {token.id} for {token.user} ({token.role}), valid {until}; it is shown this once:\n"
        f"\n    {console.style(made.secret, fg='cyan')}\n\n"
        "Its user runs lamella login URL, or sets LAMELLA_TOKEN."
    )


def _listing(tokens: list[TokenDoc], *, n_hidden: int) -> str:
    more = f"{n_hidden} revoked or expired: --all shows them" if n_hidden else ""
    if not tokens:
        return f"no valid tokens; {more or 'lamella tokens add USER makes one'}"
    rows = [
        (
            one.id, one.user, one.role, one.name, _day(one.created), _day(one.last_used) or "never",
            _day(one.expires) or "never", _state(one),
        )
        for one in tokens
    ]  # fmt: skip
    heads = ("id", "user", "role", "for", "made", "last used", "expires", "state")
    return "\n".join(filter(None, (table(rows, heads), more)))


def _day(text: str | None) -> str:
    from datetime import datetime

    return f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M}" if text else ""
