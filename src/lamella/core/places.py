"""Where a user keeps models and engine environments: the one reader of the environment below `cli`.

Everything below takes a :class:`Places` as an argument; only the doors (the command line, the
functions of ``import lamella``, the server) ask for :meth:`Places.of_user`.

Examples:
    >>> Places(models=Path("models")).environments is None
    True
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["ClientPlaces", "Places"]


@dataclass(frozen=True, slots=True)
class Places:
    """Folders and sources of one user. None of the folders need exist.

    Attributes:
        models: where models are stored; None = only the shipped ones.
        environments: where engines have their own environments; None = there are none.
        catalogues: further lists of models that can be pulled: files, folders or http(s) addresses.
        is_offline: whether the network may not be asked for anything.
        nnunet_results: folder in which nnU-Net itself leaves trained models; None = not known.
        totalsegmentator_home: folder in which TotalSegmentator itself keeps weights and its
            licence number; read, never written; None = not known.
    """

    models: Path | None = None
    environments: Path | None = None
    catalogues: tuple[str, ...] = ()
    is_offline: bool = False
    nnunet_results: Path | None = None
    totalsegmentator_home: Path | None = None

    @classmethod
    def of_user(cls) -> Places:
        """The places of whoever runs this process.

        ``LAMELLA_MODELS`` and ``LAMELLA_ENVIRONMENTS`` name the folders; else they are ``models``
        and ``environments`` below ``lamella`` in the user's data folder (``XDG_DATA_HOME``,
        ``%LOCALAPPDATA%``, or ``~/.local/share``). ``LAMELLA_CATALOGUES`` lists catalogues,
        separated by spaces; ``LAMELLA_OFFLINE=1`` forbids the network. ``nnUNet_results`` and
        ``TOTALSEG_HOME_DIR`` (else ``~/.totalsegmentator``) are the engines' own variables.
        """
        settings = os.environ  # noqa: TID251 - the one place that reads it for all doors
        data = settings.get("XDG_DATA_HOME") or settings.get("LOCALAPPDATA")
        base = (Path(data) if data else Path.home() / ".local" / "share") / "lamella"
        models = settings.get("LAMELLA_MODELS")
        environments = settings.get("LAMELLA_ENVIRONMENTS")
        results = settings.get("nnUNet_results")
        totalsegmentator = settings.get("TOTALSEG_HOME_DIR")
        return cls(
            models=Path(models).expanduser() if models else base / "models",
            environments=Path(environments).expanduser() if environments else base / "environments",
            catalogues=tuple(settings.get("LAMELLA_CATALOGUES", "").split()),
            is_offline=settings.get("LAMELLA_OFFLINE", "").lower() not in ("", "0", "false", "no"),
            nnunet_results=Path(results).expanduser() if results else None,
            totalsegmentator_home=Path(totalsegmentator).expanduser()
            if totalsegmentator
            else Path.home() / ".totalsegmentator",
        )


@dataclass(frozen=True, slots=True)
class ClientPlaces:
    """Where a user of servers keeps tokens and unfinished uploads, and what is set for all of them.

    Attributes:
        servers: file of known servers with tokens and certificates; None = none is kept.
        cache: where interrupted uploads are remembered; None = they are not.
        token: used instead of the kept ones; None = not set.
        server: address used where none is named; empty = not set.
    """

    servers: Path | None = None
    cache: Path | None = None
    token: str | None = field(default=None, repr=False)
    server: str = ""

    @classmethod
    def of_user(cls) -> ClientPlaces:
        """The places of whoever runs this process.

        ``lamella/servers.json`` in the user's folder of settings (``XDG_CONFIG_HOME``,
        ``%APPDATA%``, or ``~/.config``), ``lamella`` in that of caches (``XDG_CACHE_HOME``,
        ``%LOCALAPPDATA%``, or ``~/.cache``); ``LAMELLA_TOKEN`` and ``LAMELLA_SERVER``.
        """
        settings = os.environ  # noqa: TID251 - the one place that reads it for all doors
        config = settings.get("XDG_CONFIG_HOME") or settings.get("APPDATA")
        cache = settings.get("XDG_CACHE_HOME") or settings.get("LOCALAPPDATA")
        return cls(
            servers=(Path(config) if config else Path.home() / ".config")
            / "lamella"
            / "servers.json",
            cache=(Path(cache) if cache else Path.home() / ".cache") / "lamella",
            token=settings.get("LAMELLA_TOKEN") or None,
            server=settings.get("LAMELLA_SERVER", ""),
        )
