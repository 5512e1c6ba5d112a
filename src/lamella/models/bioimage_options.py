"""What a BioImage.io package says that no model card does."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BioimageOptions"]


@dataclass(frozen=True, slots=True)
class BioimageOptions:
    """What a card does not say.

    Attributes:
        authors: names of the model's authors, each with an affiliation behind a comma if wanted.
        licence: SPDX id in place of the card's licence.
        tags: more words to be found by.
    """

    authors: tuple[str, ...] = ()
    licence: str = ""
    tags: tuple[str, ...] = ()
