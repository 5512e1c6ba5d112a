"""Which label a channel of a bundle's network becomes, and what it is called.

Examples:
    >>> label_classes(Metadata.parse({"network_data_format": {"outputs": {"pred": {
    ...     "num_channels": 2, "channel_def": {"0": "background", "1": "spleen"}}}}}))
    (LabelClass(value=1, name='spleen', color=None),)
"""

from __future__ import annotations

from lamella.engines.monai.bundle import Metadata
from lamella.volume.labels import LabelClass

__all__ = ["has_background", "label_classes"]


def has_background(metadata: Metadata) -> bool:
    """Whether channel 0 is what is nothing else."""
    return metadata.classes.get(0, "").strip().lower() in ("background", "bg", "other")


def label_classes(
    metadata: Metadata, *, n_outputs: int | None = None, is_argmax: bool | None = None
) -> tuple[LabelClass, ...]:
    """The classes of the labels.

    With ``argmax`` channel i is label i and 0 is background; with thresholds channel i is label
    i + 1, unless channel 0 is called background.

    Args:
        metadata: of the bundle.
        n_outputs: channels of the network; as the metadata says unless given.
        is_argmax: whether the largest channel wins; from the names of the channels unless given.
    """
    n = n_outputs or metadata.n_outputs or len(metadata.classes)
    first = 1 if is_argmax or has_background(metadata) else 0
    if is_argmax is None and not metadata.classes and n > 1:
        first = 1
    return tuple(
        LabelClass(
            channel if first else channel + 1, metadata.classes.get(channel, f"class {channel}")
        )
        for channel in range(first, n)
    )
