"""What people read of a model in a BioImage.io package: name, tags, citation, documentation."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Any

from lamella.models.bioimage_tensors import channel_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lamella.wire.card import ModelCard

__all__ = ["citations", "documentation", "name_of", "tags_of", "version_of"]

_DOI = re.compile(r"10\.\d{4,9}/[-._;()/:A-Za-z0-9]+[A-Za-z0-9)]")
_MAX_NAME = 64
_NETWORK_TAGS = {"unet": "unet", "resnet": "resnet", "densenet": "densenet"}
_CONTENT_TAGS = {
    "nucle": "nuclei",
    "cell": "cells",
    "mito": "mitochondria",
    "membrane": "cell-membrane",
    "vessel": "vasculature",
    "neurite": "brain",
    "axon": "brain",
    "tissue": "tissue",
}
_DECODERS = {
    "argmax": "The output holds the probability of every class (softmax); the class of a voxel is"
    " the one with the highest.",
    "threshold": "The output holds the probability of every class for itself (sigmoid); classes"
    " may overlap.",
    "boundary_watershed": "The output holds the probabilities of foreground and of boundaries"
    " between objects (sigmoid). Objects come of a watershed on them, which is not part of this"
    " package's graph; Lamella runs it with the attached `model.json`.",
    "distance_watershed": "The output holds the logit of foreground and the distance to the edge"
    " of an object in 0..1, as the network gives them (apply a sigmoid to the first). Objects come"
    " of a watershed on them, which is not part of this package's graph; Lamella runs it with the"
    " attached `model.json`.",
    "affinities": "The output holds the probability of foreground and, for every offset, that two"
    " voxels belong together (sigmoid). Objects come of a mutex watershed on them, which is not"
    " part of this package's graph; Lamella runs it with the attached `model.json`.",
    "flows": "The output holds the logit of foreground and the components of a vector to the middle"
    " of the object, stored as (v + 1) / 2, as the network gives them. Objects come of following"
    " these vectors, which is not part of this package's graph; Lamella does so with the attached"
    " `model.json`.",
}
_NORMALISATIONS = {
    "zscore": "mean 0 and standard deviation 1",
    "percentile": "percentiles become 0 and 1",
    "fixed": "fixed offset and scale",
    "none": "none",
}


def name_of(card: ModelCard) -> str:
    """A name of letters, digits and the few signs that the format allows."""
    plain = unicodedata.normalize("NFKD", card.title).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9_+\- ()]+", " ", plain).strip() or card.id
    name = re.sub(r"\s+", " ", re.sub(r"[^A-Za-z0-9_+\- ()]+", "-", name))
    if len(name) < 5:
        name = f"{name} segmentation"
    return name[:_MAX_NAME].strip()


def version_of(card: ModelCard) -> str | None:
    """The card's version with three numbers, where it has any.

    Examples:
        "1" becomes "1.0.0"; "spring" becomes None.
    """
    parts = card.version.split(".")
    if not all(part.isdigit() for part in parts) or len(parts) > 3:
        return None
    return ".".join([*(str(int(part)) for part in parts), *["0"] * (3 - len(parts))])


def citations(card: ModelCard) -> list[dict[str, Any]]:
    """Works with a DOI in the card's citation; the format takes no others without a web address."""
    return [
        {"text": piece.strip(), "doi": doi}
        for piece in card.citation.split(";")
        for doi in _DOI.findall(piece)
    ]


def tags_of(card: ModelCard, more: Sequence[str] = ()) -> list[str]:
    """Words that the collection sorts by."""
    words = " ".join((card.id, card.title, *(known.name for known in card.classes))).lower()
    tags = ["lamella", "pytorch", "2d" if card.axes == "yx" else "3d", f"{card.task}-segmentation"]
    tags += [tag for part, tag in _CONTENT_TAGS.items() if part in words]
    tags += [tag for part, tag in _NETWORK_TAGS.items() if part in card.network.id]
    return list(dict.fromkeys([*tags, *more]))


def documentation(card: ModelCard) -> str:
    """The README of a package, Markdown."""
    lines = [f"# {card.title}", "", card.description, "", "## Input", ""]
    spacing = "any: pixels are taken as they come"
    if card.spacing is not None:
        values = " x ".join(f"{value:g}" for value in card.spacing.values)
        spacing = f"{values} {card.spacing.unit} ({', '.join(card.axes)}); resample others first"
    doc = card.normalisation
    lines += [
        f"* axes: {', '.join(card.axes)}; channels: {card.n_channels}",
        f"* spacing: {spacing}",
        f"* normalisation: {_NORMALISATIONS[doc.kind]}, over"
        f" {'the whole image' if doc.scope == 'volume' else 'every slice'}. It is described as"
        " preprocessing, with statistics of the sample that is given: give whole images, not tiles"
        " of them.",
        "",
        "## Output",
        "",
        _DECODERS[card.decoder.kind],
        "",
        f"Channels: {', '.join(channel_names(card))}.",
        "",
    ]
    if card.calibration is not None:
        lines += [
            "Probabilities are honest after logits were divided by"
            f" {card.calibration.temperature:g} (fitted on: {card.calibration.data}); the graph"
            " does not do so.",
            "",
        ]
    lines += ["## Training", "", f"Data: {card.training.data} ({card.training.data_licence})."]
    lines += ["", f"Recipe: {card.training.recipe}.", ""]
    if card.training.notes:
        lines += [card.training.notes, ""]
    lines += ["## Validation", "", *_table(card), ""]
    if card.citation:
        lines += ["## Citation", "", card.citation, ""]
    lines += [
        "## In Lamella",
        "",
        "The attached files are the original model. The package is taken in as it is:",
        "",
        "```bash",
        "lamella models import PACKAGE.zip",
        f"lamella segment IMAGE --model {card.id}",
        "```",
        "",
    ]
    return "\n".join(lines)


def _table(card: ModelCard) -> list[str]:
    if not card.metrics:
        return ["The model was not scored. Compare its labels with your own annotations first."]
    lines = ["| score | value | data | conditions |", "|---|---|---|---|"]
    for metric in card.metrics:
        told = ", ".join(f"{name} {value}" for name, value in metric.conditions.items())
        cells = (metric.name, f"{metric.value:g}", metric.data, told)
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    lines += [
        "",
        "Score it on your own data: `lamella evaluate PREDICTION REFERENCE`.",
    ]
    return lines
