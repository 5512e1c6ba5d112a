"""What the report of a run says beside its pictures and tables: input, model, time, provenance."""

import math
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.measurement.report import Fact, ReportSource, make_report, percent
from lamella.volume.volume import Volume
from lamella.wire.document import JsonValue
from lamella.wire.manifest import RunManifest
from lamella.workflows.confidence import middle_of
from lamella.workflows.measure import shown_image
from lamella.workflows.objects import ObjectSet
from lamella.workflows.run_folder import RunFolder, write_text
from lamella.workflows.versions import LAMELLA_VERSION

if TYPE_CHECKING:
    from lamella.measurement import ObjectTable

__all__ = ["write_run_report"]


def write_run_report(
    folder: RunFolder,
    image: Volume,
    objects: ObjectSet,
    table: "ObjectTable",
    manifest: RunManifest,
) -> None:
    """Write ``report.html`` and ``report.json`` of a run.

    Args:
        folder: the run.
        image: what was segmented.
        objects: labels and ids.
        table: the objects' measurements.
        manifest: what is known of the run.

    Raises:
        StorageError: when the disk is full.
    """
    source = ReportSource(
        title=f"{manifest.model.id} on {input_name(manifest)}",
        lead=_lead(manifest),
        labels=objects.labels,
        table=table,
        image=shown_image(image),
        ids=objects.ids,
        is_per_class=objects.ids is None,
        facts=_facts(manifest, objects),
        warnings=[note.message for note in manifest.warnings],
        manifest=manifest.model_dump(mode="json"),
        csv_name=folder.objects.name,
        footer=f"Made by Lamella {LAMELLA_VERSION}. For research use.",
    )
    files = make_report(source)
    write_text(folder.report, files.html)
    write_text(folder.path / "report.json", files.json)


def input_name(manifest: RunManifest) -> str:
    """The input's name without its folder."""
    path = manifest.request.input.path
    return Path(path.removeprefix("memory:")).name or path


def _lead(manifest: RunManifest) -> str:
    started = datetime.fromisoformat(manifest.started)
    return f"Segmented on {started.day} {started:%B %Y, %H:%M} UTC"


def _facts(manifest: RunManifest, objects: ObjectSet) -> list[Fact]:
    geometry, labels = manifest.input.geometry, manifest.labels
    assert labels is not None, "the report comes after the labels"
    spacing = geometry.spacing.to_spacing()
    shape = " x ".join(str(n) for n in geometry.shape)
    share = labels.n_foreground_voxels / max(1, math.prod(labels.shape))
    facts = [
        Fact("Input", shape, f"{manifest.input.dtype}, axes {geometry.axes}"),
        Fact(
            "Spacing (z, y, x)" if len(geometry.shape) == 3 else "Spacing (y, x)",
            str(spacing).replace("um", "µm") if spacing.is_calibrated else "not calibrated",
            "" if spacing.is_calibrated else "sizes are in voxels",
        ),
        Fact(
            "Model",
            manifest.model.id,
            " · ".join(
                part
                for part in (
                    f"version {manifest.model.version}" if manifest.model.version else "",
                    f"engine {manifest.model.engine}",
                )
                if part
            ),
        ),
    ]
    if objects.ids is not None:
        kind = "instances" if labels.is_instance else "connected pieces of each class"
        facts.append(Fact("Objects", f"{objects.n_objects:,}", kind))
    else:
        facts.append(Fact("Classes found", str(objects.n_objects)))
    facts.append(Fact("Foreground", percent(share), f"{labels.n_foreground_voxels:,} voxels"))
    if manifest.confidence is not None:
        facts.append(_confidence(manifest.confidence))
    facts.append(_time(manifest))
    runtime = manifest.runtime
    if runtime is not None:
        tiles = f"{manifest.tiles_done} of {manifest.tiles_planned} tiles"
        facts.append(
            Fact(
                "Computed on",
                f"{runtime.device}, {runtime.precision}",
                f"{runtime.runtime}, {tiles}",
            )
        )
    facts.append(Fact("Labels SHA-256", labels.sha256[:12], "whole in the manifest below"))
    return facts


def _confidence(document: dict[str, JsonValue]) -> Fact:
    name, middle = middle_of(document)
    word = "calibrated" if document.get("is_calibrated") else "uncalibrated: it only ranks"
    value = "nothing to tell of" if middle is None else f"{name} {middle:.2f}"
    return Fact("Confidence", value, f"median of the objects, {word}" if name else word)


def _time(manifest: RunManifest) -> Fact:
    preview = manifest.timings_s.get("preview")
    return Fact(
        "Time",
        f"{manifest.elapsed_s:.1f} s",
        "" if preview is None else f"preview after {preview:.1f} s",
    )
