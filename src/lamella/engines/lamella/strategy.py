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
from lamella.core.memory import available_bytes
from lamella.engines.lamella.descriptor import LAMELLA
from lamella.engines.lamella.object_grid import decoded_voxels
from lamella.engines.options import resolve_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lamella.volume.volume import Volume
    from lamella.wire.card import ModelCard
    from lamella.wire.request import SegmentRequest

__all__ = [
    "INSTANCE_DECODERS",
    "Strategy",
    "check_decoder_memory",
    "check_offsets",
    "resolve_strategy",
]

Strategy = Literal["none", "slices", "volumetric", "ortho"]

INSTANCE_DECODERS = ("boundary_watershed", "distance_watershed", "affinities", "flows")
"""Decoders whose maps are made into instances."""
ORTHO_DECODERS = ("boundary_watershed", "distance_watershed")
"""Decoders whose maps mean the same in every plane."""
DIRECTED_DECODERS = ("affinities", "flows")
"""Decoders whose maps change their meaning in a mirror."""
BYTES_PER_VOXEL = 48
"""What decoding a volume whole holds per voxel, all temporary arrays together."""


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


def check_decoder_memory(request: SegmentRequest, card: ModelCard, volume: Volume) -> None:
    """Refuse objects in 3-D where what is decoded at once does not fit.

    Raises:
        InputError: with the numbers and a way out.
    """
    if resolve_strategy(request, card) != "volumetric":
        return
    options = resolve_options(LAMELLA.id, LAMELLA.options, request.options)
    n_voxels = decoded_voxels(volume.spatial_shape, options)
    n_bytes, available = BYTES_PER_VOXEL * n_voxels, available_bytes()
    if available is not None and n_bytes > available:
        raise InputError(
            f"finding objects in {n_voxels:.3g} voxels at once needs about"
            f" {n_bytes / 1e9:.0f} GB of memory; {available / 1e9:.0f} GB are free",
            hint="find them in smaller blocks with --option object_block=192, or use"
            " --instances components, which needs little memory",
        )


def check_offsets(card: ModelCard, shape: Sequence[int], network_shape: Sequence[int]) -> None:
    """Refuse affinities on another grid than the network's: their offsets are in its voxels.

    Raises:
        InputError: naming both grids.
    """
    if card.decoder.kind == "affinities" and tuple(shape) != tuple(network_shape):
        raise InputError(
            f"the model {card.id!r} tells which of its own voxels belong together; the input of"
            f" {' x '.join(map(str, shape))} voxels would be resampled to"
            f" {' x '.join(map(str, network_shape))}",
            hint="resample the input to the model's spacing first, or choose another model",
        )
