"""Settings of a server: read once, from a file, the environment and flags, and passed down.

A later source wins: default, file (TOML), environment (``LAMELLA_SERVER_*``), flag. For every
setting it is known where its value came from::

    data_dir = "/srv/lamella"          # server.toml
    LAMELLA_SERVER_PORT=9000           # environment
    lamella serve --workers 4          # flag

Examples:
    >>> found = load_settings(environment={"LAMELLA_SERVER_WORKERS": "3"}, flags={"port": 9000})
    >>> found.settings.workers, found.sources["workers"], found.sources["port"]
    (3, 'environment LAMELLA_SERVER_WORKERS', 'flag --port')
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from lamella.core.errors import InputError, MissingPathError
from lamella.core.registry import nearest_names
from lamella.wire.document import Document

__all__ = ["PREFIX", "FoundSettings", "Settings", "flag_of", "load_settings", "masked"]

PREFIX = "LAMELLA_SERVER_"
_FILE_NAME = "server.toml"
_GIB = 1024**3
_DAY_S = 86_400.0

_BYTES = {"": 1, "B": 1} | {
    name: base**power
    for power, letter in enumerate("KMGT", start=1)
    for name, base in ((f"{letter}B", 1000), (f"{letter}IB", 1024), (letter, 1024))
}
# What a value says that stands for no value.
_NOTHING = {
    "audit_retention_s": "kept for ever",
    "block_min_voxels": "none are cut",
    "database_url": "SQLite in the data folder",
    "max_running_per_user": "no limit",
    "max_total_bytes": "no limit",
    "min_free_bytes": "no limit",
    "rate_limit": "no limit",
    "retention_s": "kept until they are deleted",
    "storage_url": "files in the data folder",
    "user_quota_bytes": "no limit",
    "worker_threads": "a share of the cores",
}
_SECONDS = {"": 1.0, "s": 1.0, "min": 60.0, "h": 3_600.0, "d": _DAY_S}


def _amount(units: Mapping[str, float], *, upper: bool) -> BeforeValidator:
    """Text such as "20GB" or "7d" as the number it means; numbers stay."""

    def parse(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        match = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]*)\s*", value)
        unit = "" if match is None else match[2].upper() if upper else match[2].lower()
        if match is None or unit not in units:
            known = ", ".join(name for name in units if name)
            raise ValueError(f"expected a number and one of {known}; got {value!r}")
        number = float(match[1]) * units[unit]
        return int(number) if upper else number

    return BeforeValidator(parse)


Count = Annotated[int, Field(ge=1)]
Bytes = Annotated[int, Field(ge=0), _amount(_BYTES, upper=True)]
Seconds = Annotated[float, Field(gt=0), _amount(_SECONDS, upper=False)]


def _default_data_dir() -> Path:
    # As the models folder: XDG's place, or its default.
    variables = os.environ  # noqa: TID251 - the edge of the server
    base = variables.get("XDG_DATA_HOME") or variables.get("LOCALAPPDATA")
    return (Path(base) if base else Path.home() / ".local" / "share") / "lamella" / "server"


class Settings(Document):
    """What a server is told. Every setting has a default that works."""

    # What is said below each setting is its help, on the command line and in the manual.
    model_config = ConfigDict(use_attribute_docstrings=True)

    data_dir: Path = Field(default_factory=_default_data_dir)
    """Folder of everything the server keeps: database, keys, uploads, volumes, jobs."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every interface."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8443
    """Port to listen on; 0 for any free one."""
    tls: str = "off"
    """off, self-signed, or the path of a certificate (PEM, with its chain)."""
    tls_key: Path | None = None
    """Private key (PEM) of the certificate."""
    insecure: bool = False
    """Allow plain HTTP beyond this machine: tokens and data can be read on the way."""
    database_url: str = ""
    """postgresql://USER:PASSWORD@HOST/NAME; empty for SQLite in the data folder."""
    storage_url: str = ""
    """s3://BUCKET/PREFIX for volumes and artefacts; empty for files in the data folder."""
    presign: bool = True
    """Send clients straight to S3 with presigned addresses, where storage is S3."""
    scheduler: str = ""
    """Address of a Dask scheduler (tls://HOST:8786) that runs the jobs."""
    cluster: Literal["", "local", "slurm", "pbs", "lsf"] = ""
    """Start Dask workers as jobs of this batch system."""
    cluster_options: dict[str, Any] = Field(default_factory=dict)
    """Options of the cluster, as dask-jobqueue names them."""
    block_min_voxels: Annotated[int, Field(ge=0)] = 2**27
    """Volumes from so many voxels on are cut into blocks that idle workers of the cluster help
    with; 0 to run every job on one worker."""
    workers: Count = 1
    """Worker processes on this machine, where no scheduler or cluster is given."""
    gpus: str = "auto"
    """GPUs to use: auto, none, or their numbers, as 0,1."""
    worker_threads: Annotated[int, Field(ge=0)] = 0
    """Threads of a worker; 0 for its share of the machine's cores."""
    allowed_roots: tuple[str, ...] = ()
    """Folders, or s3://BUCKET/PREFIX, whose files jobs may name without an upload."""
    max_upload_bytes: Bytes = 1024 * _GIB
    """Largest single upload, as 50GB."""
    user_quota_bytes: Bytes = 0
    """What a user's uploads, volumes and results may take together; 0 for no limit."""
    max_total_bytes: Bytes = 0
    """What all users' may take together; 0 for no limit."""
    min_free_bytes: Bytes = 2 * _GIB
    """Uploads and jobs are refused when less than this is free on the disk."""
    upload_expiry_s: Seconds = 7 * _DAY_S
    """Unfinished uploads, and finished ones that nothing uses, are removed after this, as 7d."""
    retention_s: Annotated[float, Field(ge=0), _amount(_SECONDS, upper=False)] = 0.0
    """Finished jobs and unused volumes are removed after this, as 30d; 0 keeps them."""
    audit_retention_s: Annotated[float, Field(ge=0), _amount(_SECONDS, upper=False)] = 0.0
    """Records of who changed what are removed after this, as 365d; 0 keeps them."""
    max_jobs_per_user: Count = 5_000
    """Jobs of a user that may wait."""
    max_running_per_user: Annotated[int, Field(ge=0)] = 0
    """Jobs of a user that may run at once; 0 for no limit."""
    rate_limit: Annotated[float, Field(ge=0)] = 200.0
    """Requests a second of one token, with bursts of five times as many; 0 for no limit."""
    url_lifetime_s: Seconds = 3_600.0
    """How long signed addresses of artefacts and viewers are valid."""
    public_url: str = ""
    """Address under which clients reach the server, where a proxy stands before it."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed."""
    cors_origins: tuple[str, ...] = ()
    """Web pages of other origins that may use the server, as https://viewer.lab.org."""
    shutdown_grace_s: Seconds = 20.0
    """How long requests in flight, and running jobs, have to come to a stop."""
    log_format: Literal["auto", "json", "text"] = "auto"
    """json, text, or auto: text on a terminal."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Smallest level that is logged."""

    @field_validator("data_dir", "tls_key")
    @classmethod
    def _whole_path(cls, path: Path | None) -> Path | None:
        return None if path is None else path.expanduser().absolute()

    @field_validator("gpus")
    @classmethod
    def _gpu_numbers(cls, text: str) -> str:
        if text not in ("auto", "none") and not re.fullmatch(r"\d+(,\d+)*", text):
            raise ValueError(f"expected auto, none or numbers as 0,1; got {text!r}")
        return text

    @field_validator("public_url")
    @classmethod
    def _web_address(cls, address: str) -> str:
        if address and not address.startswith(("http://", "https://")):
            raise ValueError(f"expected http://... or https://..., got {address!r}")
        return address.rstrip("/")

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not re.fullmatch(r"https?://[^/]+", origin):
                raise ValueError(f"expected an origin as https://viewer.lab.org, got {origin!r}")
        return origins

    @property
    def is_tls(self) -> bool:
        """Whether connections are encrypted by the server itself."""
        return self.tls != "off"

    @property
    def is_on_cluster(self) -> bool:
        """Whether jobs run on the workers of a Dask scheduler."""
        return bool(self.scheduler or self.cluster)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            # A name: 127.0.0.1.lab.org may be anywhere.
            return False


@dataclass(frozen=True, slots=True)
class FoundSettings:
    """Settings, and where each value came from.

    Attributes:
        settings: as they are used.
        sources: of every setting by name: ``default``, ``file PATH``, ``environment NAME`` or
            ``flag --name``.
    """

    settings: Settings
    sources: dict[str, str] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, value (secrets masked) and source of every setting."""
        return [
            (name, masked(name, getattr(self.settings, name)), self.sources.get(name, "default"))
            for name in Settings.model_fields
        ]


def load_settings(
    *,
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    path: Path | None = None,
) -> FoundSettings:
    """Put settings together: default, file, environment, flags; the last one wins.

    Args:
        flags: by name; None values were not given.
        environment: variables; those of this process unless given.
        path: of the file; ``LAMELLA_SERVER_CONFIG``, then ``server.toml`` in the data folder
            unless given.

    Raises:
        MissingPathError: the file named is not there.
        InputError: an unknown setting, or a value that is none, with its source.
    """
    variables = os.environ if environment is None else environment  # noqa: TID251 - the edge
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    from_environment = _of_environment(variables)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    path = path or _config_path(variables, given, from_environment)
    if path is not None:
        for name, value in _of_file(path).items():
            values[name], sources[name] = value, f"file {path}"
    for name, text in from_environment.items():
        values[name] = _parsed(name, text)
        sources[name] = f"environment {PREFIX}{name.upper()}"
    for name, value in given.items():
        values[name], sources[name] = value, f"flag {flag_of(name)}"
    return FoundSettings(_validated(values, sources), sources)


def flag_of(name: str) -> str:
    """The flag of a setting; flags that may be repeated name one of many.

    Examples:
        >>> flag_of("rate_limit"), flag_of("allowed_roots")
        ('--rate-limit', '--allow-root')
    """
    special = {
        "allowed_roots": "--allow-root",
        "cors_origins": "--cors-origin",
        "trusted_proxies": "--trusted-proxy",
        "cluster_options": "--cluster-option",
    }
    return special.get(name, "--" + name.replace("_", "-"))


def masked(name: str, value: Any) -> str:
    """A setting's value for people, without the secrets in it.

    Examples:
        >>> masked("database_url", "postgresql://lab:hunter2@db/lamella")
        'postgresql://lab:***@db/lamella'
        >>> masked("user_quota_bytes", 0)
        'no limit'
    """
    if not value and name in _NOTHING:
        return _NOTHING[name]
    if isinstance(value, tuple):
        return ", ".join(masked(name, one) for one in value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(
            f"{key}={'***' if _is_secret(str(key)) else one}" for key, one in value.items()
        ) or "none"  # fmt: skip
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value == "":
        return "none"
    if isinstance(value, int) and name.endswith("_bytes") and value:
        return _size_text(value)
    if isinstance(value, float) and name.endswith("_s") and value:
        return _duration_text(value)
    if isinstance(value, float):
        return f"{value:g}"
    shown = re.sub(r"(://[^/:@\s]*):[^@/\s]+@", r"\1:***@", str(value))
    return re.sub(r"(?i)((?:password|secret|token)=)[^&\s]+", r"\1***", shown)


def _size_text(n_bytes: int) -> str:
    """A size in the largest unit that gives a whole number."""
    for letter, power in (("T", 4), ("G", 3), ("M", 2)):
        for base, unit in ((1024, f"{letter}iB"), (1000, f"{letter}B")):
            if n_bytes % base**power == 0:
                return f"{n_bytes // base**power} {unit}"
    return f"{n_bytes} bytes"


def _duration_text(seconds: float) -> str:
    for unit in ("d", "h", "min"):
        if seconds >= _SECONDS[unit]:
            return f"{seconds / _SECONDS[unit]:g} {unit}"
    return f"{seconds:g} s"


def _is_secret(name: str) -> bool:
    return any(word in name.lower() for word in ("password", "secret", "token", "key"))


def _config_path(
    variables: Mapping[str, str], given: Mapping[str, Any], found: Mapping[str, str]
) -> Path | None:
    if named := variables.get(f"{PREFIX}CONFIG"):
        return Path(named).expanduser()
    data_dir = Path(given.get("data_dir") or found.get("data_dir") or _default_data_dir())
    usual = data_dir.expanduser() / _FILE_NAME
    return usual if usual.is_file() else None


def _of_environment(variables: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for variable, text in variables.items():
        if not variable.startswith(PREFIX) or variable == f"{PREFIX}CONFIG":
            continue
        name = variable.removeprefix(PREFIX).lower()
        _check_known(name, f"the environment variable {variable}")
        found[name] = text
    return found


def _of_file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise MissingPathError(
            f"there is no {path}", hint="check the path of the server's settings"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}", hint='lines are: name = "value"') from None
    for name in values:
        _check_known(name, str(path))
    return values


def _check_known(name: str, where: str) -> None:
    if name in Settings.model_fields:
        return
    near = nearest_names(name, Settings.model_fields)
    raise InputError(
        f"{where} sets {name!r}, which is no setting of the server",
        hint=f"did you mean {' or '.join(near)}?" if near else "lamella serve --show-settings",
    )


def _parsed(name: str, text: str) -> Any:
    """Text of the environment as what the setting holds: lists by commas, tables as JSON."""
    default = Settings.model_fields[name].get_default(call_default_factory=True)
    if isinstance(default, tuple):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if isinstance(default, dict):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{PREFIX}{name.upper()} is not JSON: {error}", hint='as {"queue": "gpu"}'
            ) from None
    return text


def _validated(values: Mapping[str, Any], sources: Mapping[str, str]) -> Settings:
    try:
        return Settings.model_validate(dict(values))
    except ValidationError as invalid:
        first = invalid.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        where = sources.get(name, "default")
        shown = masked(name, values.get(name))
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(
            f"{name} cannot be {shown} ({where}): {message}",
            hint="lamella serve --show-settings lists every setting",
        ) from None
