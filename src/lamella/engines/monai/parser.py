"""MONAI's own parser on a trusted bundle: here, and only here, its code runs."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamella.core.errors import LamellaError, ModelError
from lamella.core.optional import require
from lamella.engines.monai.network import run_failed

if TYPE_CHECKING:
    from lamella.engines.monai.bundle import Bundle

__all__ = ["as_engine_errors", "build_trusted_network", "opened_parser"]


def build_trusted_network(bundle: Bundle) -> Any:
    """The network that a trusted bundle's configuration builds.

    Raises:
        EngineError: when its code fails.
    """
    with opened_parser(bundle) as parser, as_engine_errors():
        key = "network_def" if "network_def" in parser else "network"
        return parser.get_parsed_content(key, instantiate=True)


@contextlib.contextmanager
def opened_parser(bundle: Bundle) -> Iterator[Any]:
    """MONAI's parser of a bundle, its folder importable for as long as it is used."""
    bundles = require("monai.bundle", extra="monai", purpose="trusted MONAI bundles")
    with _as_folder(bundle) as folder:
        parser = bundles.ConfigParser()
        with as_engine_errors():
            parser.read_config(str(folder / bundle.inference_name))
            parser.read_meta(str(folder / "configs" / "metadata.json"))
        parser["bundle_root"] = str(folder)
        sys.path.insert(0, str(folder))
        try:
            yield parser
        finally:
            sys.path.remove(str(folder))


@contextlib.contextmanager
def _as_folder(bundle: Bundle) -> Iterator[Path]:
    """The bundle as files; a zip is unpacked for the time being."""
    if bundle.path.is_dir():
        yield bundle.path
        return
    with tempfile.TemporaryDirectory(prefix="lamella-bundle-") as made:
        root = Path(made).resolve()
        with zipfile.ZipFile(bundle.path) as archive:
            for name in archive.namelist():
                if not (root / name).resolve().is_relative_to(root):
                    raise ModelError(
                        f"{bundle.path} holds {name!r}, which lies outside of it",
                        hint="do not trust this bundle",
                    )
            archive.extractall(root)
        yield root / bundle.prefix


@contextlib.contextmanager
def as_engine_errors() -> Iterator[None]:
    """Whatever the bundle's code raises is told as its failure, in one sentence."""
    try:
        yield
    except LamellaError:
        raise
    except Exception as error:
        raise run_failed(error) from error
