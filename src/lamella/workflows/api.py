"""The functions of ``import lamella``: plain calls over the rooms below.

Example::

    volume = lamella.open("tomogram.mrc")
    run = lamella.segment(volume, model="membrane-3d", min_size="500nm3")
    lamella.save(run.labels, "labels.mrc")
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamella.core.errors import InputError
from lamella.io.format import OpenOptions, SaveOptions, open_labels, open_volume, save_volume
from lamella.volume.labels import Labels
from lamella.volume.spacing import Size, Spacing
from lamella.volume.volume import Volume
from lamella.wire.event import EventSink
from lamella.wire.request import InputDoc, SegmentRequest, SizeDoc, SpacingDoc
from lamella.workflows.prepare import input_of_volume
from lamella.workflows.run import Run
from lamella.workflows.segment import RunOptions
from lamella.workflows.segment import segment as run_request

if TYPE_CHECKING:
    from lamella.evaluation import Comparison, Reliability
    from lamella.measurement import ObjectTable

__all__ = [
    "evaluate",
    "input_document",
    "make_request",
    "measure",
    "open_path",
    "open_run",
    "options_of",
    "reliability",
    "run_folder_name",
    "save",
    "segment",
]

Input = str | Path | Volume


def open_path(path: str | Path, **options: Any) -> Volume:
    """Open a volume or labels lazily, whatever the format.

    Args:
        path: file or folder.
        **options: fields of :class:`lamella.OpenOptions`: ``dataset``, ``series``, ``level``,
            ``channel``, ``time``, ``axes``, ``spacing`` (a :class:`lamella.Spacing` or text such as
            ``"4,2,2nm"``), ``resample_irregular``.

    Raises:
        LamellaError: saying what is wrong with the file and what to do.
    """
    if isinstance(options.get("spacing"), str):
        options["spacing"] = Spacing.parse(options["spacing"])
    return open_volume(path, options_of(OpenOptions, options))


def save(volume: Volume, path: str | Path, **options: Any) -> Path:
    """Write a volume or labels in the format of the path's suffix.

    Args:
        volume: what to write.
        path: nothing appears there before it is complete.
        **options: fields of :class:`lamella.SaveOptions`: ``overwrite``, ``dtype``, ``pyramid``,
            ``compress``, ``format``.

    Raises:
        LamellaError: saying what does not fit.
    """
    return save_volume(volume, path, options_of(SaveOptions, options))


def segment(
    source: Input,
    model: str,
    *,
    run_dir: str | Path | None = None,
    sink: EventSink | None = None,
    fresh: bool = False,
    overwrite: bool = False,
    trust: bool = False,
    **options: Any,
) -> Run:
    """Segment a volume or an image.

    Args:
        source: path, or a volume.
        model: model id, model folder, or ``ENGINE:NAME`` such as ``classical:otsu``.
        run_dir: run folder; ``./NAME.MODEL.run`` unless given. The same call again goes on where
            it stopped, and returns the finished run when there is one.
        sink: progress and cancellation.
        fresh: start anew, whatever the folder holds.
        overwrite: run a finished run again.
        trust: run code and pickles that come with the model; only for sources you know.
        **options: fields of :class:`lamella.SegmentRequest` (``instances="watershed"``,
            ``min_size="500nm3"``, ``tile=(64, 64, 64)``, ``tta=True``, ``precision="bf16"``, ...);
            for a path also those of ``input`` (``dataset``, ``channel``, ``spacing``, ...).

    Returns:
        The finished run: ``run.labels``, ``run.objects``, ``run.manifest``, ``run.folder``.

    Raises:
        LamellaError: saying what is wrong and what to do.
    """
    volume = source if isinstance(source, Volume) else None
    request = make_request(source, model, options)
    if request.input.path and not request.input.path.startswith("memory:"):
        volume = None
    folder = Path(run_dir) if run_dir is not None else Path(run_folder_name(source, model))
    return run_request(
        request,
        RunOptions(folder, fresh=fresh, overwrite=overwrite, is_trusted=trust),
        volume=volume,
        sink=sink,
    )


def open_run(folder: str | Path) -> Run:
    """The run of a folder that ``segment`` left.

    Raises:
        MissingPathError: when there is none.
    """
    return Run.open(folder)


def measure(labels: Labels | str | Path, image: Input | None = None) -> "ObjectTable":
    """Measure every object of labels.

    Args:
        labels: labels, or their path.
        image: intensities on the same grid, or their path.

    Returns:
        A table; ``.to_dataframe()`` for pandas, ``.write_csv(path)`` for a file.
    """
    from lamella.measurement import measure_labels

    known = labels if isinstance(labels, Labels) else open_labels(labels)
    return measure_labels(known, None if image is None else _volume(image))


def evaluate(
    prediction: Labels | str | Path, reference: Labels | str | Path, **options: Any
) -> "Comparison":
    """Compare labels with a reference on the same grid.

    Args:
        prediction: labels, or their path.
        reference: what they are compared to, or its path.
        **options: fields of :class:`lamella.evaluation.ComparisonOptions`: ``classes``,
            ``instances``, ``surfaces``, ``tolerance``, ``ignore_label``, ``thresholds``.

    Returns:
        Scores per class, of surfaces and of objects; ``.to_dict()`` gives JSON values.
    """
    from lamella.evaluation import ComparisonOptions, compare_labels

    first, second = (
        known if isinstance(known, Labels) else open_labels(known)
        for known in (prediction, reference)
    )
    return compare_labels(first, second, options=options_of(ComparisonOptions, options))


def reliability(
    run: Run | str | Path, reference: Labels | str | Path, *, ignore_label: int | None = None
) -> "Reliability":
    """Whether the confidence of a run is honest, judged by a reference on the same grid.

    Args:
        run: a finished run made with ``confidence=True``, or its folder.
        reference: true labels, or their path.
        ignore_label: value of the reference where nobody knows.

    Returns:
        The reliability curve of the chosen class's probability, with its expected calibration
        error; of instances whether a voxel belongs to any.

    Raises:
        InputError: for a run without the map ``probability``.
        GeometryError: for a reference on another grid.
    """
    from lamella.workflows.confidence import reliability_of

    known = run if isinstance(run, Run) else Run.open(run)
    truth = reference if isinstance(reference, Labels) else open_labels(reference)
    return reliability_of(known, truth, ignore_label=ignore_label)


def make_request(source: Input, model: str, options: Mapping[str, Any]) -> SegmentRequest:
    """A request from plain values.

    Raises:
        InputError: for a name or value that does not exist.
    """
    from pydantic import ValidationError

    words = dict(options)
    if isinstance(source, Volume):
        document = input_of_volume(source)
    else:
        document = input_document(source, words)
    for name in ("min_size", "seed_distance"):
        if isinstance(words.get(name), str | int | float):
            size = Size.parse(str(words[name]))
            words[name] = SizeDoc(value=size.value, unit=size.unit)
    try:
        return SegmentRequest.model_validate({"input": document, "model": model, **words})
    except ValidationError as invalid:
        raise _input_error(invalid) from None


def run_folder_name(source: Input, model: str) -> str:
    """Name of the run folder that is used unless one is given.

    Examples:
        >>> run_folder_name("data/tomo.ome.zarr", "membrane-3d")
        'tomo.membrane-3d.run'
        >>> run_folder_name("a.mrc", "classical:li")
        'a.classical-li.run'
    """
    if isinstance(source, Volume):
        name = source.path.name if source.path is not None else (source.name or "volume")
    else:
        name = Path(source).absolute().name
    stem = name
    for suffix in (".gz", ".bz2", ".zip", ".zarr", ".ome", ".nii"):
        if stem.lower().endswith(suffix) and len(stem) > len(suffix):
            stem = stem[: -len(suffix)]
    if stem == name:
        stem = Path(name).stem
    word = Path(model).name.replace(":", "-")
    return f"{stem}.{word}.run"


def input_document(source: str | Path, words: dict[str, Any]) -> InputDoc:
    """The document of an input; what describes it is taken out of ``words``.

    Raises:
        InputError: for a value that cannot be used.
    """
    names = set(InputDoc.model_fields) - {"path"}
    chosen = {name: words.pop(name) for name in list(words) if name in names}
    if isinstance(chosen.get("spacing"), str):
        chosen["spacing"] = Spacing.parse(chosen["spacing"])
    if isinstance(chosen.get("spacing"), Spacing):
        chosen["spacing"] = SpacingDoc.of(chosen["spacing"])
    return _validated(InputDoc, {"path": str(source), **chosen})


def _volume(source: Input) -> Volume:
    return source if isinstance(source, Volume) else open_volume(source)


def options_of(kind: type[Any], words: dict[str, Any]) -> Any:
    """A dataclass of options from plain words.

    Raises:
        InputError: for a name that it does not have.
    """
    try:
        return kind(**words)
    except TypeError:
        known = ", ".join(kind.__dataclass_fields__)
        unknown = sorted(set(words) - set(kind.__dataclass_fields__))
        raise InputError(
            f"unknown option {', '.join(unknown)}", hint=f"options are: {known}"
        ) from None


def _validated(kind: type[Any], words: dict[str, Any]) -> Any:
    from pydantic import ValidationError

    try:
        return kind.model_validate(words)
    except ValidationError as invalid:
        raise _input_error(invalid) from None


def _input_error(invalid: Any) -> InputError:
    problems = [
        f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in invalid.errors()
    ]
    return InputError(
        "the request is not valid: " + "; ".join(problems[:4]),
        hint="options are: " + ", ".join(SegmentRequest.model_fields),
        details={"problems": problems},
    )
