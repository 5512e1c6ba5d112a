"""What was found of a spine: the report, the labels, the overview, and the files of all three."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import InputError, OutputExistsError
from lamella.core.progress import SilentSink
from lamella.io.format import SaveOptions, find_writer, save_volume
from lamella.measurement.vertebrae import Vertebra
from lamella.volume.labels import Labels
from lamella.volume.volume import Volume
from lamella.wire.event import EventSink
from lamella.wire.vertebrae import VertebraDoc, VertebraReport
from lamella.workflows.run import Run
from lamella.workflows.run_folder import write_bytes, write_text

__all__ = ["REPORTS", "SpineDetection", "check_output"]

REPORTS: Mapping[str, str] = {".json": "json", ".csv": "csv", ".png": "png"}
"""Suffix → what is written there; every other suffix is one of labels."""


@dataclass(frozen=True, slots=True)
class SpineDetection:
    """What was found.

    Attributes:
        report: levels, places, sizes, doubts.
        labels: the vertebrae alone, with their names, on the image's grid.
        image: the CT, where one was given.
        run: the model's run, where one was made.
    """

    report: VertebraReport
    labels: Labels
    image: Volume | None
    run: Run | None
    _vertebrae: tuple[Vertebra, ...] = ()

    @property
    def vertebrae(self) -> tuple[VertebraDoc, ...]:
        """From the head down."""
        return self.report.vertebrae

    def picture(self) -> NDArray[np.uint8]:
        """The overview, RGB, (rows, columns, 3).

        Raises:
            InputError: when there is no vertebra to draw.
        """
        from lamella.measurement.spine_picture import draw_spine

        if not self._vertebrae:
            raise InputError("there is no vertebra to draw", hint="see the report's warnings")
        n = len(self._vertebrae)
        first, last = self._vertebrae[0].level, self._vertebrae[-1].level
        named = Path(self.report.image or self.report.labels.path).name
        span = first if first == last else f"{first} to {last}"
        return draw_spine(
            self.labels,
            self._vertebrae,
            image=self.image,
            title=f"{named}: {n} {'vertebra' if n == 1 else 'vertebrae'}, {span}",
            warnings=[note.message for note in self.report.warnings],
            doubtful=[level for note in self.report.warnings for level in note.levels],
        )

    def save(
        self,
        path: str | Path,
        *,
        format: str | None = None,  # noqa: A002 - the word of save_volume and --format
        overwrite: bool = False,
        sink: EventSink | None = None,
    ) -> Path:
        """Write the report (``.json``, ``.csv``), the overview (``.png``) or the labels.

        Args:
            path: where to; the suffix says what, unless ``format`` does.
            format: ``json``, ``csv``, ``png``, or a format of labels (``nifti``, ``dicom-seg``).
            overwrite: replace what is there.
            sink: progress and cancellation.

        Raises:
            OutputExistsError: when it is there.
            InputError: when it cannot be written in this format.
        """
        path = Path(path)
        kind = check_output(path, format)
        if kind is None:
            options = SaveOptions(format=format, overwrite=overwrite, sink=sink or SilentSink())
            return save_volume(self.labels, path, options)
        if path.exists() and not overwrite:
            raise OutputExistsError(
                f"{path} is already there", hint="use --overwrite to replace it"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        _WRITERS[kind](self, path)
        return path


def check_output(path: Path, wanted: str | None = None) -> str | None:
    """What is written to a path: ``json``, ``csv`` or ``png``; None for labels, in any format.

    Raises:
        UnknownFormatError: when nothing is written to such a name.
        MissingDependencyError: when its writer needs a package that is not installed.
    """
    if wanted is not None:
        if wanted in _WRITERS:
            return wanted
        find_writer(path, wanted).load()
        return None
    kind = REPORTS.get(path.suffix.lower())
    if kind is None:
        find_writer(path).load()
    return kind


def _write_json(detection: SpineDetection, path: Path) -> None:
    write_text(path, detection.report.to_json())


def _write_csv(detection: SpineDetection, path: Path) -> None:
    from lamella.measurement.spine_table import vertebrae_csv

    write_text(path, vertebrae_csv(detection.report))


def _write_png(detection: SpineDetection, path: Path) -> None:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(detection.picture()).save(stream, "PNG")
    write_bytes(path, stream.getvalue())


_WRITERS: Mapping[str, Callable[[SpineDetection, Path], None]] = {
    "json": _write_json,
    "csv": _write_csv,
    "png": _write_png,
}
