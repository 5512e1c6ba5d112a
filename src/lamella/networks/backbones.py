"""Encoders that were tried, each with the heads it works under.

``backbones.tsv`` is written by ``recipes/backbones.py``, which builds every network of timm and of
segmentation_models_pytorch and runs every head over it, with images of several sizes and five
channels. A name that is not in the list may still work, in another version of timm for instance;
building it says so or refuses it.

Examples:
    >>> small = find_backbone("tu-convnext_atto")
    >>> small.family, small.heads
    ('convnext', ('unet', 'fpn', 'pspnet', 'deeplabv3plus', 'upernet'))
    >>> [one.name for one in list_backbones("vgg1[13]")]
    ['vgg11', 'vgg13']
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

__all__ = ["Backbone", "BackboneList", "find_backbone", "list_backbones", "tested_backbones"]

HEADS = ("unet", "fpn", "pspnet", "deeplabv3plus", "upernet", "dpt")


@dataclass(frozen=True, slots=True)
class Backbone:
    """An encoder that passed.

    Attributes:
        name: what ``network.arguments.encoder`` takes.
        family: its architecture.
        n_parameters: of the encoder alone, with three input channels.
        heads: ids of the networks that work over it.
    """

    name: str
    family: str
    n_parameters: int
    heads: tuple[str, ...]

    def __str__(self) -> str:
        """A line of a table."""
        millions = self.n_parameters / 1e6
        return f"{self.name:<48} {self.family:<26} {millions:8.1f} M  {', '.join(self.heads)}"


@dataclass(frozen=True, slots=True)
class BackboneList:
    """What was tried, and with which versions.

    Attributes:
        versions: of the libraries, by name.
        backbones: those that passed, by name.
        failed: those that did not, under any head.
    """

    versions: dict[str, str]
    backbones: dict[str, Backbone]
    failed: frozenset[str]


@cache
def tested_backbones() -> BackboneList:
    """The shipped list."""
    text = files("lamella.networks").joinpath("backbones.tsv").read_text(encoding="utf-8")
    head, _, *rows = text.splitlines()
    versions = dict(part.split("=") for part in head.removeprefix("# ").split())
    found, refused = {}, []
    for row in rows:
        name, family, count, heads = row.split("\t")
        if heads == "-":
            refused.append(name)
            continue
        chosen = tuple(head for head in HEADS if head in heads.split(","))
        found[name] = Backbone(name, family, int(count), chosen)
    return BackboneList(versions, found, frozenset(refused))


def list_backbones(pattern: str = "") -> tuple[Backbone, ...]:
    """Encoders that passed, smallest first within a family.

    Args:
        pattern: as in a shell, searched in names and families (``*swin*``, ``resnet``); empty: all.
    """
    whole = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    chosen = [
        one
        for one in tested_backbones().backbones.values()
        if fnmatch.fnmatch(one.name, whole) or fnmatch.fnmatch(one.family, whole)
    ]
    return tuple(sorted(chosen, key=lambda one: (one.family, one.n_parameters, one.name)))


def find_backbone(name: str) -> Backbone | None:
    """The entry of an encoder, with or without the tag of published weights; None if not listed."""
    return tested_backbones().backbones.get(name.split(".")[0])
