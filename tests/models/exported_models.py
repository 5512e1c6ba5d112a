"""Small model folders with random weights, for tests of exports."""

import numpy as np
import torch

from lamella.models.folder import write_model_folder
from lamella.networks.registry import build_network
from lamella.wire.card import (
    ClassDoc,
    DecoderDoc,
    ModelCard,
    NetworkDoc,
    NormalisationDoc,
    TrainingDoc,
)
from lamella.wire.request import SpacingDoc

KINDS = {
    "semantic-2d": {
        "axes": "yx",
        "n_outputs": 3,
        "decoder": DecoderDoc(),
        "normalisation": NormalisationDoc(kind="zscore"),
        "spacing": SpacingDoc(values=(1.1, 0.7), unit="um"),
    },
    "multilabel-3d": {
        "axes": "zyx",
        "n_outputs": 2,
        "decoder": DecoderDoc(kind="threshold", parameters={"threshold": 0.4}),
        "normalisation": NormalisationDoc(kind="percentile", low=1, high=99.5, clip=True),
        "spacing": SpacingDoc(values=(2.0, 1.0, 1.0), unit="nm"),
    },
    "instance-2d": {
        "axes": "yx",
        "n_outputs": 2,
        "task": "instance",
        "decoder": DecoderDoc(kind="boundary_watershed"),
        "normalisation": NormalisationDoc(kind="none"),
    },
    "instance-3d": {
        "axes": "zyx",
        "n_outputs": 4,
        "task": "instance",
        "decoder": DecoderDoc(kind="flows"),
        "normalisation": NormalisationDoc(
            kind="fixed", mean=0.2, std=1.5, low=-3.0, high=3.0, scope="volume"
        ),
    },
}


def make_model(folder, kind, network_id=None, arguments=None, **changes):
    """Write a folder of a kind above."""
    fields = {**KINDS[kind], **changes}
    n = len(fields["axes"])
    network_id = network_id or f"compact_unet{n}d"
    arguments = {
        "in_channels": fields.get("n_channels", 1),
        "out_channels": fields["n_outputs"],
        **({"widths": [4, 8]} if arguments is None else arguments),
    }
    torch.manual_seed(3)
    network = build_network(network_id, arguments)
    card = ModelCard(
        **{
            "id": kind,
            "title": f"Things ({kind})",
            "description": "A network with random weights.",
            "task": "semantic",
            "classes": tuple(
                ClassDoc(value=k, name=name)
                for k, name in enumerate(("background", "mitochondrion", "thing"))
            ),
            "network": NetworkDoc(id=network_id, arguments=arguments),
            "tile": (32, 48, 48)[-n:],
            "divisor": (2,) * n,
            "overlap_fraction": 0.25,
            "licence": "CC BY 4.0",
            "citation": "Doe et al. (2020), doi:10.1234/abc.5",
            "training": TrainingDoc(data="none", data_licence="CC0-1.0", recipe="none"),
            **fields,
        }
    )
    return write_model_folder(folder, card, network)


def image_of(card, shape=(24, 40, 44), seed=0):
    """Intensities with structure, float32."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    shape = shape[-len(card.axes) :]
    smooth = gaussian_filter(rng.standard_normal(shape), 2)
    return (smooth / smooth.std() + rng.normal(0, 0.2, shape)).astype(np.float32)
