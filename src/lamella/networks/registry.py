"""The networks that a model card may name, and how one is built from its arguments.

Every family is a module with a tuple ``NETWORKS``; the modules import neither torch nor MONAI until
a network is built, so that the list costs nothing. A card gives an id and JSON arguments, never a
class name or a pickle: what can be built is what is listed here.

Example:
    >>> find_network("mednext-s").title
    'MedNeXt S'
    >>> network = build_network(
    ...     "compact_unet3d", {"in_channels": 1, "out_channels": 2, "widths": [4, 8]}
    ... )
    >>> sum(parameter.numel() for parameter in network.parameters()) > 1000
    True
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from lamella.core.errors import MissingDependencyError, ModelError, UnknownIdError
from lamella.core.optional import is_importable
from lamella.core.registry import Registry, nearest_names

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

__all__ = [
    "NetworkDescriptor",
    "UnknownNetworkError",
    "build_network",
    "find_network",
    "list_networks",
    "parse_arguments",
]

_FAMILIES = ("lamella.networks.volumetric", "lamella.networks.semantic2d")


class UnknownNetworkError(UnknownIdError):
    """A network id that no family registers."""

    code = "unknown_network"


@dataclass(frozen=True, slots=True)
class NetworkDescriptor:
    """A network that can be built, told without importing it.

    Attributes:
        id: what a card names, as in ``"mednext-s"``.
        title: name for people.
        axes: spatial axes of its input.
        arguments: frozen dataclass of JSON-like fields (numbers, strings, booleans, tuples of
            them); its ``__post_init__`` may raise ``ValueError`` for values that do not go
            together.
        build: makes the ``torch.nn.Module`` of an ``arguments`` object. Input float
            (n, in_channels, z, y, x) or (n, in_channels, y, x), output logits of the same grid.
        needs: packages that ``build`` imports.
    """

    id: str
    title: str
    axes: Literal["zyx", "yx"]
    arguments: type[Any]
    build: Callable[[Any], nn.Module]
    needs: tuple[str, ...] = ("torch",)

    @property
    def missing(self) -> tuple[str, ...]:
        """Needed packages that are not installed here."""
        return tuple(name for name in self.needs if not is_importable(name))


def list_networks() -> tuple[NetworkDescriptor, ...]:
    """Every network of every family, also those whose packages are not installed."""
    registry = _registry()
    return tuple(registry.get(network_id) for network_id in registry.ids())


def find_network(network_id: str) -> NetworkDescriptor:
    """The descriptor of a network.

    Raises:
        UnknownNetworkError: no such id; the hint names the nearest ones.
    """
    return _registry().get(network_id)


def parse_arguments(network_id: str, arguments: Mapping[str, Any]) -> Any:
    """Check the arguments of a network without building it.

    Args:
        network_id: id in the registry.
        arguments: JSON values by argument name.

    Returns:
        The frozen ``arguments`` dataclass of the network.

    Raises:
        UnknownNetworkError: no such id.
        ModelError: an argument that is unknown, missing, of the wrong type or out of range.
    """
    descriptor = find_network(network_id)
    known = [field.name for field in dataclasses.fields(descriptor.arguments)]
    for name in arguments:
        if name not in known:
            near = nearest_names(name, known)
            raise ModelError(
                f"network {network_id!r} has no argument {name!r}",
                hint=(f"did you mean {' or '.join(near)}? " if near else "")
                + f"its arguments are: {', '.join(known)}",
                details={"network": network_id, "argument": name, "known": known},
            )
    return _validated(descriptor, arguments)


def build_network(network_id: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build a network with fresh weights (seed torch first where that matters).

    Args:
        network_id: id in the registry, as in ``"unet3d"``.
        arguments: JSON values by argument name; see ``find_network(id).arguments``.

    Raises:
        UnknownNetworkError: no such id.
        ModelError: arguments that do not fit the network.
        MissingDependencyError: torch, or the library that holds the network, is not installed.
    """
    descriptor = find_network(network_id)
    checked = parse_arguments(network_id, arguments)
    if descriptor.missing:
        raise MissingDependencyError(
            f"network {network_id!r} needs {', '.join(descriptor.missing)}, not installed here",
            hint='pip install "lamella[train]"',
            details={"network": network_id, "missing": list(descriptor.missing)},
        )
    return descriptor.build(checked)


@cache
def _registry() -> Registry[NetworkDescriptor]:
    registry: Registry[NetworkDescriptor] = Registry("network", error=UnknownNetworkError)
    for family in _FAMILIES:
        for descriptor in import_module(family).NETWORKS:
            registry.register(descriptor.id, descriptor)
    return registry


def _validated(descriptor: NetworkDescriptor, arguments: Mapping[str, Any]) -> Any:
    # Arguments are a JSON document out of a card; pydantic's strict JSON mode takes lists for
    # tuples and nothing else for anything else ("3" is no number, 2.5 is no count).
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(descriptor.arguments).validate_json(
            json.dumps(dict(arguments)), strict=True
        )
    except TypeError as error:
        raise ModelError(
            f"arguments of network {descriptor.id!r} are not JSON values: {error}",
            hint="use numbers, strings, booleans and lists of them",
        ) from None
    except ValidationError as invalid:
        problems = [
            f"{'.'.join(str(part) for part in item['loc']) or 'together'}: {item['msg']}"
            for item in invalid.errors()
        ]
        raise ModelError(
            f"arguments of network {descriptor.id!r} do not fit: {'; '.join(problems[:5])}",
            hint="its arguments are: "
            + ", ".join(field.name for field in dataclasses.fields(descriptor.arguments)),
            details={"network": descriptor.id, "problems": problems},
        ) from None
