"""Published weights of encoders, fetched by the clients of timm and segmentation_models_pytorch.

Nothing is fetched unless a configuration says ``network.pretrained: true``. Weights have licences
of their own, some of which forbid commercial use; :func:`published_weights` tells what is known
without fetching anything, and a model that starts from them should say so.

Examples:
    >>> found = published_weights("tu-convnext_atto")
    >>> found.address, found.licence
    ('https://huggingface.co/timm/convnext_atto.d2_in1k', 'apache-2.0')
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lamella.core.errors import InputError, ModelError, OfflineError
from lamella.networks.encoders import (
    PREFIX,
    build_plain_encoder,
    check_encoder_name,
    encoder_options,
    has_one_stride,
)
from lamella.networks.registry import parse_arguments

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

__all__ = ["PublishedWeights", "load_published", "published_weights", "published_weights_of"]

_WAY_OUT = (
    "run it once where the network is, and copy the folder of the Hugging Face cache"
    " (~/.cache/huggingface, or HF_HOME); or train without: network.pretrained=false"
)


@dataclass(frozen=True, slots=True)
class PublishedWeights:
    """Where weights come from.

    Attributes:
        encoder: whose they are.
        address: page that describes them.
        licence: as their page says it; ``unknown`` where it does not.
    """

    encoder: str
    address: str
    licence: str

    @property
    def note(self) -> str:
        """A sentence for a model's card."""
        return (
            f"The encoder {self.encoder} started from the weights of {self.address}"
            f" (licence: {self.licence})."
        )


def published_weights(name: str) -> PublishedWeights:
    """What is published for an encoder.

    Args:
        name: as in ``network.arguments.encoder``; timm's may name a tag, as in
            ``tu-convnext_tiny.fb_in22k``.

    Raises:
        ModelError: no such encoder.
        InputError: nothing is published for it.
    """
    check_encoder_name(name)
    address, licence = _of_timm(name) if name.startswith(PREFIX) else _of_smp(name)
    if not address:
        raise InputError(
            f"network.pretrained: nobody has published weights of the encoder {name!r}",
            hint="choose another encoder, or network.pretrained=false",
        )
    return PublishedWeights(name, address, licence or "unknown")


def load_published(
    network: nn.Module, network_id: str, arguments: Mapping[str, Any]
) -> PublishedWeights:
    """Give a network's encoder its published weights, for any number of input channels.

    Where images do not have three channels, the filters of the first layer are summed or repeated,
    as timm and segmentation_models_pytorch do it.

    Args:
        network: built from ``arguments``; changed in place.
        network_id: id in the registry.
        arguments: of the network.

    Raises:
        InputError: a network without an encoder, or an encoder without published weights.
        OfflineError: weights that cannot be fetched from here, with the way out.
        ModelError: weights that do not fit.
    """
    published = published_weights_of(network_id, arguments)
    name = published.encoder
    encoder: Any = network.encoder
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            donor = _fetch(name, encoder, int(arguments["in_channels"]))
    except Exception as error:  # whatever the hub's client raises
        raise OfflineError(
            f"the weights of the encoder {name!r} could not be fetched from {published.address}:"
            f" {_first_line(error)}",
            hint=_WAY_OUT,
        ) from error
    try:
        encoder.load_state_dict(donor.state_dict())
    except RuntimeError as error:
        raise ModelError(
            f"the published weights of the encoder {name!r} do not fit this network:"
            f" {_first_line(error)}",
            hint="use its usual depth, or network.pretrained=false",
        ) from error
    return published


def published_weights_of(network_id: str, arguments: Mapping[str, Any]) -> PublishedWeights:
    """What is published for the encoder of a network.

    Raises:
        InputError: a network without an encoder, or nothing is published for it.
    """
    name = getattr(parse_arguments(network_id, arguments), "encoder", None)
    if name is None:
        raise InputError(
            f"network.pretrained: network {network_id!r} has no encoder with published weights",
            hint="use unet, fpn, pspnet, deeplabv3plus, upernet or dpt; or"
            " network.pretrained=false",
        )
    return published_weights(str(name))


def _of_timm(name: str) -> tuple[str, str]:
    import timm

    known = timm.get_pretrained_cfg(name.removeprefix(PREFIX))
    if known is None or not known.has_weights:
        return "", ""
    if known.hf_hub_id:
        tag = f".{known.tag}" if known.tag else ""
        hub_id = str(known.hf_hub_id)
        page = f"{hub_id}{known.architecture}{tag}" if hub_id.endswith("/") else hub_id
        return f"https://huggingface.co/{page}", str(known.license or "")
    return str(known.url or ""), str(known.license or "")


def _of_smp(name: str) -> tuple[str, str]:
    from segmentation_models_pytorch.encoders import encoders

    known = encoders[name]["pretrained_settings"].get("imagenet")
    return (f"https://huggingface.co/{known['repo_id']}", "") if known else ("", "")


def _fetch(name: str, encoder: Any, in_channels: int) -> nn.Module:
    """An encoder like the given one, with the published weights."""
    if name.startswith(PREFIX) and has_one_stride(name):
        depth = len(encoder.out_channels)
        return build_plain_encoder(name, in_channels, depth, is_pretrained=True)
    from segmentation_models_pytorch.encoders import get_encoder

    return get_encoder(
        name,
        in_channels=in_channels,
        depth=int(encoder._depth),
        weights=True if name.startswith(PREFIX) else "imagenet",
        **encoder_options(name),
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
