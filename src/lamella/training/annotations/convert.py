"""Drawings of people become data sets: image and label pairs, VOC or COCO.

The layouts are those of :mod:`lamella.training.annotations.writer`. Folders below the source stay
folders. Everything is read and checked before anything is written, and the result appears under its
name when all of it is there.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lamella.core.errors import InputError, LamellaError, OutputExistsError
from lamella.core.progress import Progress, SilentSink
from lamella.io.format import storage_errors
from lamella.training.annotations.classes import IGNORE, ClassList
from lamella.training.annotations.labelme import find_labelme_files, read_labelme
from lamella.training.annotations.rasterise import rasterise
from lamella.training.annotations.writer import ConvertOptions, DataSetWriter, Drawn

if TYPE_CHECKING:
    from lamella.core.progress import ProgressSink

__all__ = ["Conversion", "ConvertOptions", "convert_drawn", "convert_labelme", "read_each"]

D = TypeVar("D", bound=Drawn)


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was made.

    Attributes:
        folder: the data set.
        classes: names and values.
        n_images: images written.
        n_objects: objects per class name, ignored ones left out.
        n_pixels: pixels per class name, background and ignored ones included.
        problems: what was wrong with files that were left out, by path.
    """

    folder: Path
    classes: ClassList
    n_images: int
    n_objects: dict[str, int]
    n_pixels: dict[str, int]
    problems: dict[str, str]


def convert_labelme(
    source: Path,
    target: Path,
    options: ConvertOptions | None = None,
    *,
    sink: ProgressSink | None = None,
) -> Conversion:
    """Convert Labelme files.

    Args:
        source: a folder with everything below it, or one file.
        target: folder to make.
        options: what the data set is to look like.
        sink: progress and cancellation.

    Raises:
        InputError: with every problem of every file at once, unless they are to be skipped.
        OutputExistsError: the target exists.
        StorageError: the disk is full.
    """
    options = options or ConvertOptions()
    check_target(target, options)
    paths = find_labelme_files(source)
    files, problems = read_each(paths, read_labelme, sink)
    root = source if source.is_dir() else source.parent
    return convert_drawn(files, root, target, options, problems=problems, sink=sink)


def convert_drawn(
    files: Sequence[Drawn],
    root: Path,
    target: Path,
    options: ConvertOptions,
    *,
    problems: Mapping[Path, LamellaError] | None = None,
    sink: ProgressSink | None = None,
) -> Conversion:
    """Write a data set out of images with shapes.

    Args:
        files: what was read.
        root: folder that results take their names from.
        target: folder to make.
        options: what the data set is to look like.
        problems: of files that could not be read.
        sink: progress and cancellation.

    Raises:
        InputError: with every problem of every file at once, unless they are to be skipped.
        OutputExistsError: the target exists.
        StorageError: the disk is full.
    """
    listener = sink or SilentSink()
    check_target(target, options)
    wrong = dict(problems or {})
    known = options.classes or ClassList.of(s.label for file in files for s in file.shapes)
    kept = _without_unknown(files, known, wrong)
    if wrong and not (options.skip_bad and kept):
        raise _all_problems(wrong)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        with storage_errors(target):
            writer = DataSetWriter(
                part,
                root,
                known,
                options,
                has_ignored=any(s.label == IGNORE for file in kept for s in file.shapes),
            )
            for done, file in enumerate(kept):
                listener.check()
                listener.emit(Progress("converting", done, len(kept), "images"))
                writer.add(file)
            writer.finish()
            listener.emit(Progress("converting", len(kept), len(kept), "images"))
            part.chmod(0o755)
            if target.exists():
                shutil.rmtree(target)
            part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Conversion(
        target,
        known,
        len(kept),
        writer.n_objects,
        writer.n_pixels,
        {str(path): error.message for path, error in wrong.items()},
    )


def check_target(target: Path, options: ConvertOptions) -> None:
    """Refuse to write over what is there, before anything is read.

    Raises:
        OutputExistsError: the target exists and is not to be replaced.
    """
    if target.exists() and not options.overwrite:
        raise OutputExistsError(f"{target} is there already", hint="use --overwrite to replace it")


def read_each(
    paths: Sequence[Path], read: Callable[[Path], D], sink: ProgressSink | None = None
) -> tuple[list[D], dict[Path, LamellaError]]:
    """Read files one by one.

    Args:
        paths: of files.
        read: reads one.
        sink: progress and cancellation.

    Returns:
        What was read, and what was wrong with the others.
    """
    listener = sink or SilentSink()
    files: list[D] = []
    problems: dict[Path, LamellaError] = {}
    for done, path in enumerate(paths):
        listener.check()
        listener.emit(Progress("reading", done, len(paths), "files"))
        try:
            files.append(read(path))
        except LamellaError as error:
            problems[path] = error
    return files, problems


def _without_unknown(
    files: Sequence[Drawn], known: ClassList, problems: dict[Path, LamellaError]
) -> list[Drawn]:
    """The files whose shapes can all be drawn; the others' problems are written down."""
    kept = []
    for file in files:
        try:
            rasterise(file.shapes, file.image_shape, known)
        except LamellaError as error:
            problems[file.path] = error
        else:
            kept.append(file)
    return kept


def _all_problems(problems: dict[Path, LamellaError]) -> InputError:
    lines = [f"{path}: {error.message}" for path, error in problems.items()]
    shown = "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")
    hints = {error.hint for error in problems.values() if error.hint}
    way_out = hints.pop() if len(hints) == 1 else "correct the files named"
    return InputError(
        f"{len(lines)} file(s) cannot be converted: {shown}",
        hint=f"{way_out}, or leave them out with --skip-bad; nothing was written",
        details={"problems": {str(path): error.message for path, error in problems.items()}},
    )
