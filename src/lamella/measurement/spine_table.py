"""Vertebrae as a table: one row a vertebra, one unit a column, for spreadsheets."""

import csv
import io

from lamella.wire.vertebrae import VertebraReport

__all__ = ["vertebrae_csv"]

_MEASURES = ("probability", "margin", "entropy", "tta_spread")


def vertebrae_csv(report: VertebraReport) -> str:
    """The vertebrae of a report as CSV with a header line.

    Measures that nobody has get no column; a vertebra's doubts are joined in ``warnings``.
    """
    measures = [
        name
        for name in _MEASURES
        if any(known.confidence and name in known.confidence.measures for known in report.vertebrae)
    ]
    columns = [
        "level", "label",
        *(f"{axis}_ras_mm" for axis in "xyz"), *(f"{axis}_lps_mm" for axis in "xyz"),
        *(f"{axis}_voxel" for axis in "zyx"),
        "volume_mm3", "n_voxels", "position_mm", "incomplete", "borders", "n_components",
        *(f"confidence_{name}" for name in measures), "confidence_calibrated", "warnings",
    ]  # fmt: skip
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    for known in report.vertebrae:
        own = known.confidence
        doubts = [note.code for note in report.warnings if known.level in note.levels]
        writer.writerow(
            [
                known.level,
                known.value,
                *(f"{value:.3f}" for value in known.centroid_ras_mm),
                *(f"{value:.3f}" for value in known.centroid_lps_mm),
                *(f"{value:.3f}" for value in known.centroid_voxel_zyx),
                f"{known.volume_mm3:.1f}",
                known.n_voxels,
                f"{known.position_mm:.2f}",
                "yes" if known.is_incomplete else "no",
                " ".join(known.borders),
                known.n_components,
                *(f"{own.measures[n]:.4f}" if own and n in own.measures else "" for n in measures),
                "" if own is None else "yes" if own.is_calibrated else "no",
                " ".join(dict.fromkeys(doubts)),
            ]
        )
    return stream.getvalue()
