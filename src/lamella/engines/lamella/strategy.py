"""How a network's maps become objects in 3-D: from the request and the card, or refused.

=============  ===========  ==================================================================
strategy       network      objects
=============  ===========  ==================================================================
``none``       any          classes; objects are the workflow's business
``slices``     2-D          of every slice on its own (linked afterwards for ``auto``, ``hybrid``)
``volumetric`` 3-D          decoded in 3-D
``ortho``      2-D          decoded in 3-D from maps averaged over the planes of three axes
=============  ===========  ==================================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from lamella.core.errors import InputError

if TYPE_CHECKING:
    from lamella.wire.card import ModelCard
    from lamella.wire.request import SegmentRequest

__all__ = ["INSTANCE_DECODERS", "Strategy", "resolve_strategy"]

Strategy = Literal["none", "slices", "volumetric", "ortho"]

INSTANCE_DECODERS = ("boundary_watershed", "distance_watershed", "affinities", "flows")
"""Decoders whose maps are made into instances."""
ORTHO_DECODERS = ("boundary_watershed", "distance_watershed")
"""Decoders whose maps mean the same in every plane."""


def resolve_strategy(request: SegmentRequest, card: ModelCard) -> Strategy:
    """Decide how objects are made.

    Raises:
        InputError: for a strategy that the model's network does not allow.
    """
    asked, is_2d = request.instances, card.axes == "yx"
    if asked in ("none", "components"):
        return "none"
    is_instance_model = card.decoder.kind in INSTANCE_DECODERS
    if asked in ("auto", "watershed"):
        if not is_instance_model:
            return "none"
        return "slices" if is_2d else "volumetric"
    if not is_instance_model:
        raise InputError(
            f"--instances {asked} needs a model of single objects; {card.id!r} gives classes",
            hint="use --instances components or watershed",
        )
    if asked == "volumetric":
        if is_2d:
            raise InputError(
                f"--instances volumetric needs a 3-D model; {card.id!r} is 2-D",
                hint="use --instances hybrid or ortho",
            )
        return "volumetric"
    if not is_2d:
        raise InputError(
            f"--instances {asked} needs a 2-D model; {card.id!r} is 3-D",
            hint="leave out --instances, or use --instances volumetric",
        )
    if asked != "ortho":
        return "slices"
    if card.decoder.kind not in ORTHO_DECODERS:
        raise InputError(
            f"--instances ortho averages probabilities of planes; {card.id!r} gives"
            f" {card.decoder.kind}, which depend on the plane",
            hint="use --instances hybrid",
        )
    return "ortho"
