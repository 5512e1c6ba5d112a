"""A look at every voxel of a data set: what there is, and what is wrong with it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lamella.core.errors import LamellaError
from lamella.core.progress import Progress, SilentSink
from lamella.training.pairs.codec import LabelCodec
from lamella.training.pairs.finding import Finding
from lamella.training.pairs.index import PairDoc
from lamella.training.pairs.opening import sha256_of
from lamella.training.pairs.pattern import split_location
from lamella.training.pairs.scan import scan_labels
from lamella.training.pairs.store import PairStore
from lamella.volume.box import Box
from lamella.wire.card import NormalisationDoc
from lamella.wire.request import SpacingDoc

if TYPE_CHECKING:
    from lamella.core.progress import ProgressSink
    from lamella.training.configuration import PairsConfig, TaskConfig
    from lamella.training.pairs.pairing import Pair
    from lamella.volume.volume import Volume

__all__ = ["Survey", "survey_pairs"]

_SLAB_VOXELS = 1 << 22
_TOLERANCE = 0.02
_UNIT_RATIO = 9.0
_SHOWN = 12
_SMALLEST_NM, _LARGEST_NM = 0.01, 1e7


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found.

    Attributes:
        documents: of the pairs that could be read.
        findings: about single pairs.
        hashes: of voxels by location of the image.
    """

    documents: tuple[PairDoc, ...]
    findings: tuple[Finding, ...]
    hashes: dict[str, str] = field(default_factory=dict)


def survey_pairs(
    config: PairsConfig,
    task: TaskConfig,
    pairs: Sequence[Pair],
    *,
    sink: ProgressSink | None = None,
) -> Survey:
    """Read every pair once.

    Args:
        config: how files are understood.
        task: classes.
        pairs: what is read.
        sink: progress and cancellation.
    """
    sink = sink or SilentSink()
    store = PairStore(
        Path(config.root),
        pairs,
        LabelCodec.of(task, config),
        NormalisationDoc(kind="none"),
        channels=config.channels,
        spacing=None if config.spacing is None else config.spacing.to_spacing(),
    )
    documents: list[PairDoc] = []
    findings: list[Finding] = []
    for number, pair in enumerate(pairs):
        sink.check()
        sink.emit(Progress("checking", number, len(pairs), "pairs"))
        try:
            document, found = _look(store, number)
        except LamellaError as error:
            findings.append(_of_error(error, pair))
            continue
        documents.append(document)
        findings += found
    sink.emit(Progress("checking", len(pairs), len(pairs), "pairs"))
    hashes = {document.image: document.voxels_sha256 for document in documents}
    return Survey(tuple(documents), tuple(_joined(findings)), hashes)


def _of_error(error: LamellaError, pair: Pair) -> Finding:
    unknown = error.details.get("unknown_values")
    if unknown is None:
        return Finding("error", error.code, error.message, pair.files, error.hint or "")
    shown = ", ".join(sorted(map(str, unknown), key=lambda word: (len(word), word))[:_SHOWN])
    more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
    labels = tuple(place for _, place in pair.labels)
    text = f"labels hold values that no class names: {shown}{more}"
    return Finding("error", "unknown_values", text, labels, error.hint or "")


def _look(store: PairStore, number: int) -> tuple[PairDoc, list[Finding]]:
    pair = store.pairs[number]
    facts = store.facts(number)
    region = Box.from_shape(facts.shape)
    findings = _about_spacing(store, number)
    digest, more = _about_voxels(store, number, region)
    findings += more
    scan = scan_labels(store, number, region)
    counts = dict(zip(store.codec.balanced, scan.counts, strict=True))
    if not any(scan.counts):
        text = "nothing is known" if scan.n_valid == 0 else "labels hold no class, only background"
        findings.append(
            Finding(
                "warning",
                "empty_labels",
                text,
                (pair.image,),
                "keep it if that is so: it is learnt as background"
                if scan.n_valid
                else "give labels or remove it",
            )
        )
    sizes: dict[str, int] = {}
    hashes: dict[str, str] = {}
    for place in pair.files:
        path = store.root / split_location(place)[0]
        if path.is_file():
            sizes[place], hashes[place] = path.stat().st_size, sha256_of(path)
    known = facts.spacing.unit != "voxel"
    document = PairDoc(
        image=pair.image,
        labels=dict(pair.labels),
        mask=pair.mask,
        specimen=pair.specimen,
        split=pair.split or "",  # type: ignore[arg-type]
        shape=facts.shape if facts.has_z else facts.shape[1:],
        n_channels=facts.n_channels,
        dtype=facts.dtype,
        spacing=SpacingDoc.of(facts.spacing) if known else None,
        class_counts=counts,
        n_valid=scan.n_valid,
        sizes=sizes,
        sha256=hashes,
        voxels_sha256=digest,
    )
    return document, findings


def _about_voxels(store: PairStore, number: int, region: Box) -> tuple[str, list[Finding]]:
    """Hash of shape and voxels (whatever the format), and what is odd about them."""
    pair, facts = store.pairs[number], store.facts(number)
    digest = hashlib.sha256(f"{facts.n_channels} {facts.shape} {facts.dtype}".encode())
    n_bad, low, high = 0, math.inf, -math.inf
    depth, height, width = region.shape
    step = max(1, _SLAB_VOXELS // max(1, height * width))
    for z in range(0, depth, step):
        slab = store.raw(number, Box((z, 0, 0), (min(depth, z + step), height, width)))
        # Layer by layer: the hash must not depend on how many are read at once.
        for layer in range(slab.shape[1]):
            digest.update(np.ascontiguousarray(slab[:, layer]).data)
        if slab.dtype.kind == "f":
            finite = np.isfinite(slab)
            n_bad += int(slab.size - np.count_nonzero(finite))
            slab = slab[finite]
        if slab.size:
            low, high = min(low, float(slab.min())), max(high, float(slab.max()))
    found = []
    if n_bad:
        found.append(
            Finding(
                "warning",
                "not_finite",
                "voxels that are NaN or infinite; they are replaced by the mean",
                (f"{pair.image} ({n_bad})",),
                "mark them as unknown with a mask (data.masks)",
            )
        )
    if low >= high:
        found.append(
            Finding(
                "warning",
                "constant_image",
                "the image has one value everywhere",
                (pair.image,),
                "check how the file was written, or remove it",
            )
        )
    return digest.hexdigest(), found


def _about_spacing(store: PairStore, number: int) -> list[Finding]:
    pair, facts = store.pairs[number], store.facts(number)
    spacing = facts.spacing
    if spacing.unit == "voxel":
        return [
            Finding(
                "note",
                "spacing_missing",
                "the file does not say its spacing",
                (pair.image,),
                "set it with --spacing (data.spacing), if all have the same",
            )
        ]
    sizes_nm = spacing.to("nm").values
    found = []
    if not all(_SMALLEST_NM <= size <= _LARGEST_NM for size in sizes_nm):
        found.append(
            Finding(
                "warning",
                "spacing_unlikely",
                f"a spacing of {spacing} is no microscope's and no scanner's: a wrong unit?",
                (pair.image,),
                "set it with --spacing and --unit",
            )
        )
    for place, labels in store.label_volumes(number):
        found += _disagreement(pair.image, spacing.to("nm").values, place, labels)
        found += _shift(pair.image, store.image_volume(number), place, labels)
    return found


def _shift(image: str, volume: Volume, place: str, labels: Volume) -> list[Finding]:
    """Labels that their header puts elsewhere than their image."""
    if volume.unit != labels.unit or volume.affine.ndim != labels.affine.ndim:
        return []
    # Many programs write no origin at all: only one that was set says something.
    if not any(labels.affine.origin) or not any(volume.affine.origin):
        return []
    offsets = np.abs(np.subtract(volume.affine.origin, labels.affine.origin))
    if (offsets <= 0.5 * np.array(volume.affine.spacing)).all():
        return []
    return [
        Finding(
            "warning",
            "origin_disagrees",
            f"labels lie {offsets.max():.4g} {volume.unit} beside their image, say their headers",
            (image, place),
            "voxels are taken one by one; check that the labels were drawn on this image",
        )
    ]


def _disagreement(
    image: str, ours_nm: Sequence[float], place: str, labels: Volume
) -> list[Finding]:
    if labels.unit == "voxel":
        return []
    theirs_nm = labels.spacing.to("nm").values
    n = min(len(ours_nm), len(theirs_nm))
    ratios = [a / b for a, b in zip(ours_nm[-n:], theirs_nm[-n:], strict=True)]
    worst = max(max(r, 1 / r) for r in ratios)
    if worst <= 1 + _TOLERANCE:
        return []
    text = f"spacing of image and labels differ by a factor of {worst:.4g}"
    if worst >= _UNIT_RATIO:
        text += ": a wrong unit?"
    return [
        Finding(
            "warning",
            "spacing_disagrees",
            text,
            (image, place),
            "voxels are taken one by one; correct the header, or set --spacing",
        )
    ]


def _joined(findings: Sequence[Finding]) -> list[Finding]:
    """Findings that say the same of several files, as one."""
    groups: dict[tuple[str, str, str], Finding] = {}
    for found in findings:
        if found.severity == "error" and found.code != "unknown_values":
            groups[(found.code, found.message, "".join(found.files))] = found
            continue
        key = (found.code, found.message, found.hint)
        held = groups.get(key)
        files = found.files if held is None else (*held.files, *found.files)
        groups[key] = replace(found, files=files)
    return list(groups.values())
