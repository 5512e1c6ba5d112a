"""``lamella.detect_vertebrae``: finding vertebrae from plain values.

Example::

    found = lamella.detect_vertebrae("ct_folder")
    [(known.level, known.centroid_ras_mm) for known in found.vertebrae]
    found.save("spine.json"), found.save("spine.dcm")
"""

from pathlib import Path
from typing import Any

from lamella.volume.labels import Labels
from lamella.volume.volume import Volume
from lamella.wire.event import EventSink
from lamella.wire.request import InputDoc
from lamella.workflows.api import input_document, options_of
from lamella.workflows.detect import DetectOptions
from lamella.workflows.detect import detect_vertebrae as detect
from lamella.workflows.spine_detection import SpineDetection

__all__ = ["detect_vertebrae"]


def detect_vertebrae(
    source: str | Path | Volume | None = None,
    *,
    labels: Labels | str | Path | None = None,
    sink: EventSink | None = None,
    run_dir: str | Path | None = None,
    **options: Any,
) -> SpineDetection:
    """Find the vertebrae of a CT: level, place, size, whether they are whole and in order.

    Args:
        source: CT (path or volume); may lack where labels are given.
        labels: a segmentation of it, instead of running a model.
        sink: progress, warnings, cancellation.
        run_dir: folder of the model's run; ``./NAME.MODEL.vertebrae.run`` unless given.
        **options: ``class_map`` (``"total"``, ``"total_v3"``, ``"total_v1"``, a JSON file),
            ``model``, ``engine_options`` (``{"fast": True}``), ``modality``, ``margin_mm``,
            ``device``, ``fresh``; for a path also the options of :func:`open_path`.

    Returns:
        ``.vertebrae``, ``.report`` (warnings and hints too), ``.labels``, ``.picture()``,
        ``.save(path)`` for JSON, CSV, PNG, NIfTI or DICOM SEG.

    Raises:
        LamellaError: saying what is wrong and what to do.
    """
    words = dict(options)
    document: Volume | InputDoc | None = source if isinstance(source, Volume) else None
    if source is not None and not isinstance(source, Volume):
        document = input_document(source, words)
    given = labels if isinstance(labels, Labels) or labels is None else Path(labels)
    folder = None if run_dir is None else Path(run_dir)
    known = options_of(DetectOptions, {"labels": given, "run_dir": folder, **words})
    return detect(document, known, sink=sink)
