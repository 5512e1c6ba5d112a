"""``lamella serve``: a server with nothing to configure, or with everything."""

from __future__ import annotations

import os
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lamella.cli.console import Console, table
from lamella.cli.parameters import stack_options
from lamella.cli.sections import SectionedCommand
from lamella.core.errors import InputError, MissingDependencyError
from lamella.server.settings import Settings, flag_of

if TYPE_CHECKING:
    from lamella.server.run import Started
    from lamella.server.services import Services
    from lamella.server.settings import FoundSettings
    from lamella.server.tls import Certificate

__all__ = ["SECTIONS", "command"]

F = TypeVar("F", bound=Callable[..., Any])

_TOKEN_FILE = "first-token.txt"
_SOON_DAYS = 30
SECTIONS: dict[str, tuple[str, ...]] = {
    "Where it listens": (
        "host", "port", "tls", "tls_key", "insecure", "public_url", "trusted_proxies",
        "cors_origins",
    ),
    "Where it keeps things": (
        "data_dir", "database_url", "storage_url", "presign", "allowed_roots",
    ),
    "What runs the jobs": (
        "workers", "worker_threads", "gpus", "scheduler", "cluster", "cluster_options",
        "block_min_voxels",
    ),
    "Limits (sizes as 50GB, times as 12h)": (
        "max_upload_bytes", "user_quota_bytes", "max_total_bytes", "min_free_bytes",
        "upload_expiry_s", "retention_s", "audit_retention_s", "max_jobs_per_user",
        "max_running_per_user", "rate_limit", "url_lifetime_s", "shutdown_grace_s",
    ),
    "Logs": ("log_format", "log_level"),
}  # fmt: skip
"""Settings by what they are about."""


def _setting_options(function: F) -> F:
    """Add an option per setting, with the setting's own words."""
    options = (
        click.option(*_flags(name), default=None, help=_help(name), **_click_type(name))
        for names in SECTIONS.values()
        for name in names
    )
    return stack_options(options, function)


def _flags(name: str) -> tuple[str, str]:
    flag = flag_of(name)
    if Settings.model_fields[name].default is True:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    return flag, name


def _help(name: str) -> str:
    text = (Settings.model_fields[name].description or "").rstrip(".").replace("\n", " ")
    return f"{text}."


def _click_type(name: str) -> dict[str, Any]:
    field = Settings.model_fields[name]
    default = field.get_default(call_default_factory=True)
    if isinstance(default, bool):
        return {"is_flag": True}
    if isinstance(default, tuple | dict):
        kind = "NAME=VALUE" if isinstance(default, dict) else "TEXT"
        return {"multiple": True, "metavar": kind}
    if typing.get_origin(field.annotation) is typing.Literal:
        return {"type": click.Choice([one for one in typing.get_args(field.annotation) if one])}
    if name.endswith(("_bytes", "_s")):
        return {"metavar": "SIZE" if name.endswith("_bytes") else "TIME"}
    if isinstance(default, Path) or name == "tls_key":
        return {"type": click.Path(path_type=Path), "metavar": "PATH"}
    if isinstance(default, int | float):
        return {"type": type(default), "metavar": "N"}
    return {"metavar": "TEXT"}


@click.command(
    name="serve",
    cls=SectionedCommand,
    sections=SECTIONS,
    epilog="Every setting can also stand in a TOML file (--config, or server.toml in the data"
    " folder) and in the environment (LAMELLA_SERVER_PORT=9000).",
)
@click.option("--config", type=click.Path(path_type=Path), metavar="PATH", help="Settings as TOML.")
@click.option("--show-settings", is_flag=True, help="Show every setting and its source, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Say in one line of JSON where it serves.")
@_setting_options
def command(config: Path | None, show_settings: bool, as_json: bool, **flags: Any) -> None:
    """Serve segmentation to people and scripts: uploads, a queue, previews, results.

    Without options: this machine only, SQLite and files in one folder, one worker process. Ctrl-C
    stops cleanly; jobs that run go on when it is started again.
    """
    from lamella.server.settings import load_settings

    found = load_settings(flags=_given(flags), path=config)
    console = Console(as_json=as_json)
    if show_settings:
        console.answer(_settings_document(found), lambda: _settings_text(found))
        return
    _check_packages()
    from lamella.server.logs import configure_logging
    from lamella.server.run import check_exposure, serve

    check_exposure(found.settings)
    configure_logging(found.settings.log_format, found.settings.log_level)
    if not found.settings.scheduler:
        # What users send and get is read by this user alone, also in a folder that was there
        # before; workers of a scheduler may be another user's.
        os.umask(0o077)
    door = _Door(console, found.settings)
    serve(found.settings, prepare=door.make_first_token, on_start=door.announce)
    console.say("stopped; jobs that were running go on at the next start")


class _Door:
    """Says where the server is, and hands out the first token."""

    def __init__(self, console: Console, settings: Settings) -> None:
        self.console, self.settings = console, settings
        self.token: str | None = None

    def make_first_token(self, services: Services) -> None:
        """Make a token for whoever starts a server that has never had one."""
        if not services.tokens.is_empty():
            return
        from lamella.wire.access import TokenSpec

        spec = TokenSpec(user=_user_name(), role="admin", name="first token")
        made = services.tokens.add(spec)
        services.audit.record(None, action="token.create", target=made.token.id, user=spec.user)
        self.token = made.secret
        if not sys.stdout.isatty():
            # What is not a terminal is a log, and a log is no place for a secret.
            from lamella.server.secret import write_private

            path = self._token_path()
            path.unlink(missing_ok=True)
            write_private(path, f"{made.secret}\n".encode())

    def announce(self, started: Started) -> None:
        """Tell where it serves; the first token, this once."""
        if self.console.as_json:
            import json

            click.echo(json.dumps(self._document(started)))
        else:
            click.echo(self._text(started))
        sys.stdout.flush()

    def _token_path(self) -> Path:
        return self.settings.data_dir / _TOKEN_FILE

    def _document(self, started: Started) -> dict[str, Any]:
        certificate = started.certificate
        is_kept = self.token is not None and self._token_path().is_file()
        return {
            "url": started.url,
            "urls": list(started.urls),
            "fingerprint": certificate.fingerprint if certificate else None,
            "certificate": str(certificate.path) if certificate else None,
            "data_dir": str(self.settings.data_dir),
            "token_file": str(self._token_path()) if is_kept else None,
            "pid": os.getpid(),
        }

    def _text(self, started: Started) -> str:
        from importlib.metadata import version

        settings, bold = self.settings, self.console.style
        others = f"  (also {', '.join(started.urls[1:])})" if started.urls[1:] else ""
        rows = [
            ("data", str(settings.data_dir)),
            ("database", _database(settings)),
            ("jobs run by", _runners(settings)),
            ("manual", f"{started.url}/api/v1/docs"),
        ]
        rows += _certificate_rows(started.certificate)
        if settings.is_loopback and not settings.public_url:
            rows.append(
                ("reached from", "this machine only; by others: --host 0.0.0.0 --tls self-signed")
            )
        rows += [("warning", text) for text in _warnings(settings, started.certificate)]
        lines = [
            f"Lamella {version('lamella')} serves {bold(started.url, bold=True)}{others}",
            *(f"  {name:<12} {value}" for name, value in rows),
        ]
        return "\n".join([*lines, *self._token_lines(started), "", "Ctrl-C stops it.", ""])

    def _token_lines(self, started: Started) -> list[str]:
        if self.token is None:
            return ["", "Tokens: lamella tokens add USER" + self._data_flag()]
        pin = started.certificate.fingerprint if started.certificate else ""
        is_here = self.settings.is_loopback and not self.settings.public_url
        login = f"lamella login {started.url}"
        if pin and started.certificate and started.certificate.is_self_signed:
            login += f" --pin {pin}"
        if not sys.stdout.isatty():
            return ["", f"The first token (admin) is in {self._token_path()}"]
        return [
            "",
            "First token, for you as admin; it is shown this once:",
            "",
            f"    {self.console.style(self.token, fg='cyan')}",
            "",
            "Use it on this machine:" if is_here else "Use it, here or on another machine:",
            "",
            f"    {login}",
            f"    lamella segment tomogram.mrc --model membrane-3d --server {started.url}",
            "",
            f"For others: lamella tokens add USER{self._data_flag()}",
        ]

    def _data_flag(self) -> str:
        is_usual = self.settings.data_dir == Settings().data_dir
        return "" if is_usual else f" --data-dir {self.settings.data_dir}"


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    """What was given: empty lists were not, and pairs become a table."""
    from lamella.cli.parameters import parse_options

    given = {name: value for name, value in flags.items() if value not in (None, ())}
    if pairs := given.get("cluster_options"):
        try:
            given["cluster_options"] = parse_options(pairs)
        except InputError as error:
            raise InputError(
                error.message.replace("--option", "--cluster-option"),
                hint="write --cluster-option queue=gpu",
            ) from None
    return given


def _check_packages() -> None:
    try:
        import fastapi  # noqa: F401 - whether the extra is there
        import sqlalchemy  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"the server's packages are not installed ({error.name} is missing)",
            hint="pip install 'lamella[server]'",
        ) from error


def _user_name() -> str:
    import getpass
    import re

    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        # A container may run under a number that has no name.
        return "admin"
    return re.sub(r"[^A-Za-z0-9._@-]", "_", name)[:64] or "admin"


def _database(settings: Settings) -> str:
    from lamella.server.settings import masked

    return masked("database_url", settings.database_url) if settings.database_url else "SQLite"


def _runners(settings: Settings) -> str:
    if settings.scheduler:
        return f"the Dask scheduler {settings.scheduler}"
    if settings.cluster:
        return f"a Dask cluster ({settings.cluster})"
    n = settings.workers
    gpus = "" if settings.gpus == "none" else f", GPUs: {settings.gpus}"
    return f"{n} worker process{'es' if n > 1 else ''} here{gpus}"


def _certificate_rows(certificate: Certificate | None) -> list[tuple[str, str]]:
    if certificate is None:
        return []
    kind = "self-signed" if certificate.is_self_signed else str(certificate.path)
    made = ", made anew: clients pin it again" if certificate.is_new else ""
    return [
        ("certificate", f"{kind}, until {certificate.expires:%Y-%m-%d}{made}"),
        ("fingerprint", f"SHA-256 {certificate.fingerprint}"),
    ]


def _warnings(settings: Settings, certificate: Certificate | None) -> Iterator[str]:
    from datetime import UTC, datetime

    if settings.insecure and not settings.is_tls and not settings.is_loopback:
        yield "no TLS: tokens and data can be read on the way"
    if certificate is not None:
        days = (certificate.expires - datetime.now(UTC)).days
        if days < _SOON_DAYS:
            yield f"the certificate expires in {days} days"
    for root in settings.allowed_roots:
        if "://" not in root and not Path(root).expanduser().is_dir():
            yield f"--allow-root {root} is no folder of this machine"


def _settings_document(found: FoundSettings) -> dict[str, Any]:
    return {
        "settings": {
            name: {"value": value, "source": source} for name, value, source in found.rows()
        }
    }


def _settings_text(found: FoundSettings) -> str:
    by_name = {row[0]: row for row in found.rows()}
    order = [name for names in SECTIONS.values() for name in names]
    return table([by_name[name] for name in order], ("setting", "value", "from"))
