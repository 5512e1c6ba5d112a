"""Plain values out of a bundle's configuration, without running any of it.

MONAI's own parser evaluates every text that begins with ``$`` as Python and imports whatever a
``_target_`` names. Here a configuration is data: references (``@network_def::channels``) are
followed, ``$`` is taken off literals (``$(96, 96, 96)``), and anything beyond that is named and
refused.

Examples:
    >>> resolver = Resolver({"size": "$(32, 32)", "net": {"_target_": "UNet", "tile": "@size"}})
    >>> dict(resolver.component("net").arguments)
    {'tile': (32, 32)}
    >>> resolver.value("$open('x')", where="dataset")
    Traceback (most recent call last):
    ...
    lamella.core.errors.ModelError: dataset is code, not a plain value: $open('x')
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lamella.core.errors import ModelError

__all__ = ["Component", "Resolver", "needs_trust"]

TRUST_HINT = (
    "if you trust whoever made this bundle, --trust lets MONAI run its configuration as it is"
)
_NOTES = ("_target_", "_disabled_", "_desc_", "_requires_", "_mode_")
_REFERENCE = re.compile(r"@([\w.-]+(?:(?:::|#)[\w.-]+)*)")
_MAX_DEPTH = 32


def needs_trust(message: str) -> ModelError:
    """The error for what only MONAI itself could make sense of."""
    return ModelError(message, hint=TRUST_HINT)


class _Arguments(Mapping[str, Any]):
    """Arguments by name; each becomes a plain value, or an error, when it is asked for."""

    def __init__(self, resolver: Resolver, node: Mapping[str, Any], where: str) -> None:
        self._resolver = resolver
        self._nodes = {str(key): item for key, item in node.items() if key not in _NOTES}
        self._where = where

    def __getitem__(self, name: str) -> Any:
        return self._resolver.value(self._nodes[name], where=f"{self._where}::{name}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)


@dataclass(frozen=True, slots=True)
class Component:
    """A class of MONAI with its arguments.

    Attributes:
        name: of the class, without its module.
        arguments: plain values by name, made when they are asked for: what nobody asks for may be
            anything.
        where: its place in the configuration, for messages.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""


class Resolver:
    """Follows references within one configuration.

    Args:
        config: as read from JSON or YAML.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def __contains__(self, key: str) -> bool:
        return key in self._config

    def value(self, node: Any, *, where: str, depth: int = 0) -> Any:
        """A plain value: numbers, texts, lists and mappings of them.

        Args:
            node: part of the configuration.
            where: its place, for messages.
            depth: references followed so far.

        Raises:
            ModelError: for code, components, macros, or references that lead nowhere.
        """
        if isinstance(node, str):
            found = self._text(node, where)
            return found if found is node else self.value(found, where=where, depth=_deeper(depth))
        if isinstance(node, list | tuple):
            items = [
                self.value(item, where=f"{where}::{i}", depth=depth) for i, item in enumerate(node)
            ]
            return tuple(items) if isinstance(node, tuple) else items
        if isinstance(node, Mapping):
            if "_target_" in node:
                raise needs_trust(
                    f"{where} is an object ({node['_target_']}), where a plain value was expected"
                )
            return {
                str(key): self.value(item, where=f"{where}::{key}", depth=depth)
                for key, item in node.items()
            }
        return node

    def node(self, node: Any, *, where: str) -> Any:
        """A node with the references at its top followed, its inside left as it is."""
        for _ in range(_MAX_DEPTH):
            if not isinstance(node, str):
                return node
            found = self._text(node, where)
            if found is node:
                return node
            node = found
        raise ModelError(f"{where} of the bundle refers to itself", hint="mend its configuration")

    def component(self, node: Any, *, where: str = "") -> Component | None:
        """A component with plain arguments; None where it is disabled.

        Args:
            node: the mapping itself, or the name of a top-level entry.
            where: its place, for messages.

        Raises:
            ModelError: unless it is a class of MONAI.
        """
        if isinstance(node, str) and node in self._config:
            where, node = where or node, self._config[node]
        found = self.node(node, where=where)
        if not isinstance(found, Mapping) or not isinstance(found.get("_target_"), str):
            raise needs_trust(f"{where} of the bundle names no class by _target_: {_short(found)}")
        if self._is_disabled(found, where):
            return None
        if found.get("_mode_", "default") != "default":
            raise needs_trust(f"{where} of the bundle is not simply built: _mode_ is set")
        target = str(found["_target_"])
        module, _, name = target.rpartition(".")
        if module and module.partition(".")[0] != "monai":
            raise needs_trust(f"{where} of the bundle is {target}, which is no class of MONAI")
        return Component(name, _Arguments(self, found, where), where)

    def components(self, node: Any, *, where: str) -> list[Component]:
        """The enabled members of a ``Compose``, or of a list, in order.

        Raises:
            ModelError: as :meth:`component`.
        """
        found = self.node(node, where=where)
        if isinstance(found, Mapping):
            if str(found.get("_target_", "")).rpartition(".")[2] != "Compose":
                one = self.component(found, where=where)
                return [] if one is None else [one]
            if self._is_disabled(found, where):
                return []
            found = self.node(found.get("transforms", []), where=f"{where}::transforms")
        if found is None:
            return []
        if not isinstance(found, list | tuple):
            raise needs_trust(f"{where} of the bundle is no list of transforms: {_short(found)}")
        members = (
            self.component(item, where=f"{where}::{i}")
            if not _is_compose(self.node(item, where=f"{where}::{i}"))
            else self.components(item, where=f"{where}::{i}")
            for i, item in enumerate(found)
        )
        flat: list[Component] = []
        for member in members:
            flat.extend(member if isinstance(member, list) else [member] if member else [])
        return flat

    def _is_disabled(self, node: Mapping[str, Any], where: str) -> bool:
        given = node.get("_disabled_", False)
        if isinstance(given, str) and given.lower() in ("true", "false"):
            return given.lower() == "true"
        return bool(self.value(given, where=f"{where}::_disabled_"))

    def _text(self, text: str, where: str) -> Any:
        """What a text stands for; the text itself where it is one."""
        if text.startswith("%"):
            raise needs_trust(f"{where} of the bundle takes text from elsewhere: {text}")
        code = text[1:].strip() if text.startswith("$") else text
        reference = _REFERENCE.fullmatch(code)
        if reference is not None:
            return self._lookup(reference.group(1), where)
        if text.startswith("@"):
            raise needs_trust(f"{where} of the bundle is no reference known here: {text}")
        if not text.startswith("$"):
            return text
        try:
            return ast.literal_eval(code)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise needs_trust(f"{where} is code, not a plain value: {_short(text)}") from None

    def _lookup(self, path: str, where: str) -> Any:
        found: Any = self._config
        for part in re.split("::|#", path):
            if isinstance(found, Mapping) and part in found:
                found = found[part]
            elif isinstance(found, list) and part.isdigit() and int(part) < len(found):
                found = found[int(part)]
            else:
                raise ModelError(
                    f"{where} of the bundle refers to @{path}, which its configuration lacks",
                    hint="the bundle is incomplete: get it again",
                )
        return found


def _is_compose(node: Any) -> bool:
    return (
        isinstance(node, Mapping) and str(node.get("_target_", "")).rpartition(".")[2] == "Compose"
    )


def _deeper(depth: int) -> int:
    if depth >= _MAX_DEPTH:
        raise ModelError("a value of the bundle refers to itself", hint="mend its configuration")
    return depth + 1


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else text[:117] + "..."
