"""Options that say where a data set's images and labels are, and what the labels mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lamella.cli.parameters import stack_options
from lamella.core.errors import InputError

if TYPE_CHECKING:
    from lamella.training.configuration import PairsConfig, SplitConfig, TaskConfig

__all__ = ["data_of", "data_options", "parse_color", "split_of", "split_options"]

F = TypeVar("F", bound=Callable[..., Any])
_DATA = (
    click.option("--images", metavar="PATTERN", help="Image files, e.g. 'raw/*.tif'."),
    click.option(
        "--labels",
        "labels",
        multiple=True,
        metavar="PATTERN",
        help="Label files, e.g. 'labels/*.png'; CLASS=PATTERN for a mask of each class.",
    ),
    click.option("--masks", metavar="PATTERN", help="Files that are not 0 where labels are known."),
    click.option(
        "--specimen",
        metavar="REGEX",
        help="What in a path names the specimen, e.g. '(sub-[a-z0-9]+)/'. Default: the folder.",
    ),
    click.option(
        "--class",
        "classes",
        multiple=True,
        metavar="NAME[=VALUES]",
        help="A class and its values in label files, e.g. mito=191 or axon=1,3.",
    ),
    click.option("--ignore", "ignored", type=int, multiple=True, help="Value that is unknown."),
    click.option("--threshold", type=float, help="Labels are masks, cut here."),
    click.option(
        "--color",
        "colors",
        multiple=True,
        metavar="NAME=COLOR",
        help="Labels are pictures: colour of a class, e.g. axon=255,0,0 or axon=#ff0000.",
    ),
    click.option(
        "--other-values",
        type=click.Choice(("refuse", "background", "ignore")),
        help="What values stand for that no class names.",
    ),
    click.option("--instances", is_flag=True, help="Label values are ids of objects."),
    click.option("--multilabel", is_flag=True, help="Classes may overlap."),
    click.option(
        "--channel", "channels", type=int, multiple=True, help="Use these channels, from 0."
    ),
    click.option("--spacing", metavar="[Z,]Y,X", help="Replaces the spacing of all files."),
    click.option("--unit", metavar="U", help="Unit of --spacing: nm, um, mm, A."),
    click.option(
        "--config",
        metavar="CONFIG",
        help="Take data and classes from a configuration of `lamella train`.",
    ),
)
_SPLIT = (
    click.option("--train", multiple=True, metavar="PATTERN", help="Specimens to train on."),
    click.option("--validation", multiple=True, metavar="PATTERN", help="Specimens to validate."),
    click.option("--test", multiple=True, metavar="PATTERN", help="Specimens to test on."),
    click.option(
        "--validation-fraction",
        type=click.FloatRange(0, 1),
        metavar="F",
        help="Share of specimens drawn to validate, where none is named. Default: 0.2.",
    ),
    click.option(
        "--test-fraction",
        type=click.FloatRange(0, 1),
        metavar="F",
        help="Share of specimens drawn to test on. Default: 0.",
    ),
    click.option(
        "--by",
        type=click.Choice(("specimen", "file", "part")),
        help="file and part let a specimen stand on both sides; that is reported.",
    ),
    click.option("--seed", type=int, help="Of what is drawn."),
)


def data_options(function: F) -> F:
    """Add the options; see :func:`data_of`."""
    return stack_options(_DATA, function)


def split_options(function: F) -> F:
    """Add the options of a split; see :func:`split_of`."""
    return stack_options(_SPLIT, function)


def data_of(
    folder: Path, words: dict[str, Any]
) -> tuple[PairsConfig, TaskConfig | None, str | None]:
    """What a command's words say about a data set; takes them out of the words.

    Args:
        folder: of the data set, or its ``dataset.json``.
        words: of the command.

    Returns:
        Its configuration, the classes (None where they are to be found out) and the kind of task.

    Raises:
        InputError: for words that contradict each other.
    """
    from lamella.cli.parameters import parse_spacing
    from lamella.wire.request import SpacingDoc

    named = words.pop("config", None)
    spacing = parse_spacing(words.pop("spacing", None), words.pop("unit", None))
    changes: dict[str, Any] = {
        name: value
        for name in ("images", "masks", "specimen", "threshold", "other_values")
        if (value := words.pop(name, None)) is not None
    }
    if channels := words.pop("channels", ()):
        changes["channels"] = channels
    if spacing is not None:
        changes["spacing"] = SpacingDoc.of(spacing)
    if labels := words.pop("labels", ()):
        changes["labels"] = _labels(labels)
    if colors := words.pop("colors", ()):
        changes["colors"] = dict(_named(word, "--color", parse_color) for word in colors)
    kind = _kind(words)
    config, task = _base(folder, named, changes, kind)
    config = config.model_copy(update=changes)
    task = _task(task, config, words, kind)
    return config, task, kind


def split_of(words: dict[str, Any], config: SplitConfig) -> SplitConfig:
    """The split that a command's words ask for; takes them out of the words."""
    changes = {
        name: value
        for name in (
            "train",
            "validation",
            "test",
            "validation_fraction",
            "test_fraction",
            "by",
            "seed",
        )
        if (value := words.pop(name, None)) not in (None, ())
    }
    return config.model_copy(update=changes)


def parse_color(text: str) -> tuple[int, int, int]:
    """A colour, ``255,0,0`` or ``#ff0000``.

    Raises:
        ValueError: when it is none.

    Examples:
        >>> parse_color("#ff8000"), parse_color("0,1,2")
        ((255, 128, 0), (0, 1, 2))
    """
    if text.startswith("#") and len(text) == 7:
        value = int(text[1:], 16)
        return (value >> 16, value >> 8 & 255, value & 255)
    parts = [int(part) for part in text.split(",")]
    if len(parts) != 3 or not all(0 <= part <= 255 for part in parts):
        raise ValueError(text)
    return (parts[0], parts[1], parts[2])


def _base(
    folder: Path, named: str | None, changes: dict[str, Any], kind: str | None
) -> tuple[PairsConfig, TaskConfig | None]:
    """Where the words start from: a configuration, the data set's document, or a usual layout."""
    from lamella.training.configuration import ClassConfig, PairsConfig, TaskConfig
    from lamella.training.pairs.guess import guess_layout
    from lamella.training.pairs.index import IndexDoc

    if named is not None:
        from lamella.training.compose import compose

        found = compose(named, [f"data.root={folder}"])
        if not isinstance(found.data, PairsConfig):
            raise InputError(
                f"the data of {named} are no pairs of files but {found.data.kind}",
                hint="`lamella cellmap index` looks at CellMap data",
            )
        return found.data, found.task
    path = folder / "dataset.json" if folder.is_dir() else folder
    if path.is_file():
        index = IndexDoc.read(path)
        classes = tuple(ClassConfig.model_validate(known) for known in index.classes)
        task = TaskConfig.model_validate(
            {"kind": index.task, "classes": classes, "ignore_values": index.ignore_values}
        )
        config = PairsConfig.model_validate({**index.data, "index": str(path)})
        if {"images", "labels", "masks"} & changes.keys():
            config = config.model_copy(update={"index": "", "root": str(path.parent / index.root)})
        return config, task
    if changes.keys() & {"images", "labels"}:
        return PairsConfig(root=str(folder)), None
    return guess_layout(folder, wants_objects=kind == "boundary"), None


def _task(
    task: TaskConfig | None, config: PairsConfig, words: dict[str, Any], kind: str | None
) -> TaskConfig | None:
    from lamella.training.configuration import ClassConfig, TaskConfig

    classes = tuple(
        ClassConfig(name=name, values=values)
        for name, values in (_class(word) for word in words.pop("classes", ()))
    )
    ignored = words.pop("ignored", ())
    if not classes and isinstance(config.labels, dict) and task is None:
        classes = tuple(ClassConfig(name=name) for name in config.labels)
    if not classes and config.colors and task is None:
        skipped = ("__ignore__", "background", "_background_")
        classes = tuple(ClassConfig(name=name) for name in config.colors if name not in skipped)
    if classes:
        words_kind = kind or (task.kind if task is not None else "semantic")
        return TaskConfig.model_validate(
            {"kind": words_kind, "classes": classes, "ignore_values": ignored}
        )
    if task is None:
        if ignored:
            raise InputError("--ignore needs --class", hint="name the classes too")
        return None
    changes = ({"ignore_values": ignored} if ignored else {}) | ({"kind": kind} if kind else {})
    return task.model_copy(update=changes)


def _kind(words: dict[str, Any]) -> str | None:
    instances, multilabel = words.pop("instances", False), words.pop("multilabel", False)
    if instances and multilabel:
        raise InputError("--instances and --multilabel exclude each other", hint="give one")
    return "boundary" if instances else "multilabel" if multilabel else None


def _labels(words: tuple[str, ...]) -> str | dict[str, str]:
    if len(words) == 1 and "=" not in words[0]:
        return words[0]
    patterns: dict[str, str] = {}
    for word in words:
        name, equals, pattern = word.partition("=")
        if not equals or not name.strip() or not pattern:
            raise InputError(
                f"--labels {word!r} names no class",
                hint="several label patterns need names: --labels axon='masks/*_axon.png'",
            )
        patterns[name.strip()] = pattern
    return patterns


def _class(word: str) -> tuple[str, tuple[int, ...]]:
    if "=" not in word:
        return word.strip(), ()
    return _named(word, "--class", lambda text: tuple(int(v) for v in text.split(",")))


def _named(word: str, option: str, parse: Callable[[str], Any]) -> tuple[str, Any]:
    name, _, text = word.partition("=")
    try:
        value = parse(text)
    except ValueError:
        value = None
    if value is None or not name.strip():
        example = "axon=255,0,0" if option == "--color" else "mito=191"
        raise InputError(
            f"{option} {word!r} cannot be understood", hint=f"write {option} {example}"
        )
    return name.strip(), value
