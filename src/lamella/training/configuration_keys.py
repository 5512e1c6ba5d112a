"""Every key that a training configuration may have, and what somebody meant who wrote another.

Examples:
    >>> known_keys()["trainer.steps"].type_name
    'int'
    >>> nearest_keys("trainer.step")[0], nearest_keys("lr")[0]
    ('trainer.steps', 'optimiser.learning_rate')
"""

from __future__ import annotations

import difflib
import typing
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from lamella.training.configuration import TrainConfig

__all__ = ["Key", "data_kinds", "documents_of", "known_keys", "nearest_keys", "type_name"]

_USUAL = {
    "accumulate_grad_batches": "trainer.accumulate",
    "amp": "trainer.precision",
    "backbone": "network.arguments.encoder",
    "batch": "trainer.batch_size",
    "ema": "trainer.ema_decay",
    "encoder": "network.arguments.encoder",
    "epochs": "trainer.steps",
    "fp16": "trainer.precision",
    "gpus": "trainer.devices",
    "iterations": "trainer.steps",
    "lr": "optimiser.learning_rate",
    "max_epochs": "trainer.steps",
    "max_steps": "trainer.steps",
    "num_workers": "trainer.workers",
    "patch_size": "trainer.patch",
    "scheduler": "schedule.kind",
    "val_check_interval": "trainer.validate_every",
    "warmup": "schedule.warmup_fraction",
}
"""What other programs call it."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key of the configuration.

    Attributes:
        name: dotted; items of lists and kinds of data have no part of their own.
        owner: the document that holds it, and ``field`` there.
        field: name in that document.
        type_name: of its values, for people.
        default: as JSON value; ``...`` where it must be given.
        is_open: whether anything may follow below it (arguments by name).
    """

    name: str
    owner: type[BaseModel]
    field: str
    type_name: str
    default: Any
    is_open: bool


@cache
def known_keys() -> dict[str, Key]:
    """All keys by dotted name, in the order of the documents."""
    keys: dict[str, Key] = {}
    _collect(TrainConfig, "", keys)
    return keys


@cache
def data_kinds() -> frozenset[str]:
    """Words that tell the kinds of data apart; pydantic puts them into the places of problems."""
    documents = documents_of(TrainConfig.model_fields["data"].annotation)
    return frozenset(str(one.model_fields["kind"].default) for one in documents)


def nearest_keys(name: str, limit: int = 2) -> list[str]:
    """The keys that somebody most likely meant, best first.

    The last part counts most: it is the group that people forget or mistake.
    """
    known = known_keys()
    *_, leaf = name.split(".")
    if leaf in _USUAL:
        return [_USUAL[leaf]]
    same = [key for key in known if key.split(".")[-1] == leaf]
    if same:
        return sorted(same, key=lambda key: -_likeness(key, name))[:limit]
    ranked = sorted(
        known, key=lambda key: -_likeness(key, name) - 2 * _likeness(key.split(".")[-1], leaf)
    )
    close = [
        key
        for key in ranked
        if _likeness(key.split(".")[-1], leaf) >= 0.6 or _likeness(key, name) >= 0.75
    ]
    return close[:limit]


def _likeness(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a.lower(), b.lower()).ratio()


def _collect(document: type[BaseModel], before: str, keys: dict[str, Key]) -> None:
    for field, info in document.model_fields.items():
        name = f"{before}{field}"
        default = ... if info.default is PydanticUndefined else info.default
        if info.default_factory is not None:
            default = info.get_default(call_default_factory=True)
        inner = documents_of(info.annotation)
        if name not in keys:
            keys[name] = Key(
                name,
                document,
                field,
                type_name(info.annotation),
                default,
                _takes_names(info.annotation),
            )
        for each in inner:
            if not before.startswith(f"{name}."):
                _collect(each, f"{name}.", keys)


def _takes_names(annotation: Any) -> bool:
    """Whether a value may be a dictionary whose names are free."""
    if typing.get_origin(annotation) is dict:
        return True
    return any(typing.get_origin(part) is dict for part in typing.get_args(annotation))


def documents_of(annotation: Any) -> list[type[BaseModel]]:
    """Documents that an annotation mentions, through unions, tuples and metadata."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    for part in typing.get_args(annotation):
        found.extend(each for each in documents_of(part) if each not in found)
    return found


def type_name(annotation: Any) -> str:
    """A type for people: ``list of int`` for ``tuple[int, ...]``, the words of a literal."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_name(parts[0])
    if origin is typing.Literal:
        return " | ".join(str(part) for part in parts)
    if origin is tuple:
        inner = [part for part in parts if part is not Ellipsis]
        if Ellipsis in parts:
            return f"list of {type_name(inner[0])}"
        return f"{len(inner)} x {type_name(inner[0])}"
    if origin is dict:
        return f"{type_name(parts[1])} by name"
    if parts:
        names = [type_name(part) for part in parts if part is not type(None)]
        return " | ".join([*names, *(["null"] if type(None) in parts else [])])
    return str(getattr(annotation, "__name__", annotation)).replace("JsonValue", "value")
