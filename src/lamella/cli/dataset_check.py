"""``lamella dataset check|index|split``: is this data set fit to train on, and who judges."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import Console, table
from lamella.cli.dataset_words import data_of, data_options, split_of, split_options
from lamella.cli.failure import EXIT_NO
from lamella.cli.parameters import answer_options, console_of

if TYPE_CHECKING:
    from lamella.training.pairs.check import Report
    from lamella.training.pairs.finding import Finding

__all__ = ["check", "index", "split"]

_COLORS = {"error": "red", "warning": "yellow", "note": "cyan"}
_MANY = 6


@click.command(short_help="Find what is wrong with a data set.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@data_options
@split_options
@answer_options
def check(folder: Path, **words: Any) -> None:
    """Check the images and labels in DIR: pairs, shapes, spacing, values, balance, copies, splits.

    Where things are and what they mean is found out, taken from DIR/dataset.json, or said with
    options. The exit code is 3 when something prevents training.
    """
    console = console_of(words)
    report = _checked(folder, words, console)
    console.answer(report.as_json(), lambda: _text(report, console))
    if not report.is_trainable:
        raise click.exceptions.Exit(EXIT_NO)


@click.command(short_help="Write down what a data set holds.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The document. Default: DIR/dataset.json.",
)
@click.option("--overwrite", is_flag=True, help="Replace the document.")
@data_options
@split_options
@answer_options
def index(folder: Path, *, output: Path | None, overwrite: bool, **words: Any) -> None:
    """Write down what is in DIR, for `lamella train data.index=DIR/dataset.json`.

    The document holds pairs, specimens, splits, shapes, spacings, hashes and counts of classes.
    Paths in it are relative to it. Data that cannot be trained on are refused.
    """
    from lamella.core.errors import OutputExistsError
    from lamella.io.format import storage_errors
    from lamella.training.pairs.finding import raise_errors

    console = console_of(words)
    path = output or (folder / "dataset.json" if folder.is_dir() else folder)
    if path.exists() and not overwrite:
        raise OutputExistsError(
            f"{path} is there already", hint="use --overwrite to write it again"
        )
    report = _checked(folder, words, console, afresh=True)
    raise_errors(report.findings)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        document = report.to_index(path.parent)
        part = path.with_name(f".{path.name}.part")
        part.write_text(document.to_json(), encoding="utf-8")
        part.replace(path)
    for found in report.findings:
        if found.severity == "warning":
            console.warn(found.sentence)
    console.answer(
        {"document": str(path), **report.as_json()},
        lambda: f"{path}: {len(document.pairs)} pairs\n\n{_splits_text(report.as_json())}",
    )


@click.command(short_help="Say who trains, validates and tests.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@split_options
@answer_options
def split(folder: Path, **words: Any) -> None:
    """Write into DIR/dataset.json which specimens train, validate and test; and print them.

    Without patterns a fifth of the specimens is drawn for validation. A specimen never stands on
    two sides, unless --by file says so.
    """
    from dataclasses import replace

    from lamella.core.errors import MissingPathError
    from lamella.io.format import storage_errors
    from lamella.training.configuration import SplitConfig
    from lamella.training.pairs.index import IndexDoc
    from lamella.training.pairs.opening import duplicates
    from lamella.training.pairs.split import assign_splits, groups_of, leakage

    console = console_of(words)
    path = folder / "dataset.json" if folder.is_dir() else folder
    if not path.is_file():
        raise MissingPathError(
            f"there is no {path}", hint=f"write it first: lamella dataset index {folder}"
        )
    document = IndexDoc.read(path)
    config = split_of(words, SplitConfig())
    if config.by == "part":
        raise click.BadParameter(
            "parts of images are no groups; give data.split.by=part to `lamella train`",
            param_hint="--by",
        )
    pairs = assign_splits([replace(entry.to_pair(), split="") for entry in document.pairs], config)
    sides = {pair.image: pair.split for pair in pairs}
    changed = document.model_copy(
        update={
            "pairs": tuple(
                entry.model_copy(update={"split": sides[entry.image]}) for entry in document.pairs
            )
        }
    )
    with storage_errors(path):
        part = path.with_name(f".{path.name}.part")
        part.write_text(changed.to_json(), encoding="utf-8")
        part.replace(path)
    hashes = {entry.image: entry.voxels_sha256 for entry in document.pairs if entry.voxels_sha256}
    findings = [*leakage(pairs, config), *duplicates(pairs, hashes)]
    for found in findings:
        console.warn(found.sentence)
    groups = groups_of(pairs)
    answer = {
        "document": str(path),
        "splits": {name: list(specimens) for name, specimens in groups.items()},
        "n_pairs": {name: sum(pair.split == name for pair in pairs) for name in (*groups, "")},
        "findings": [found.as_json() for found in findings],
    }
    console.answer(answer, lambda: _splits_text(answer))


def _checked(
    folder: Path, words: dict[str, Any], console: Console, *, afresh: bool = False
) -> Report:
    from lamella.training.pairs.check import check_pairs

    config, task, kind = data_of(folder, words)
    config = config.model_copy(update={"split": split_of(words, config.split)})
    if afresh and config.index:
        # What is written anew looks at the folder again.
        from lamella.training.pairs.index import IndexDoc

        path = Path(config.index)
        root = config.root or str(path.parent / IndexDoc.read(path).root)
        config = config.model_copy(update={"index": "", "root": root})
    with console.running() as sink:
        return check_pairs(config, task, kind=kind, sink=sink)


def _text(report: Report, console: Console) -> str:
    config = report.config
    labels = (
        config.labels
        if isinstance(config.labels, str)
        else ", ".join(f"{name}={pattern}" for name, pattern in config.labels.items())
    )
    lines = [f"{len(report.pairs)} pairs in {config.root}"]
    lines.append(
        f"from {config.index}" if config.index else f"images {config.images}, labels {labels}"
    )
    if report.documents:
        lines += ["", _shapes(report), "", _classes(report)]
    if config.split.by == "part":
        lines += ["", _parts_text(report)]
    elif any(pair.split for pair in report.pairs):
        lines += ["", _splits_text(report.as_json())]
    if report.findings:
        lines += ["", *(_finding(found, console) for found in report.findings)]
    verdict = "nothing prevents training" if report.is_trainable else "this cannot be trained on"
    return "\n".join([*lines, "", verdict])


def _shapes(report: Report) -> str:
    groups: dict[tuple[str, str, int, str], int] = {}
    for entry in report.documents:
        shape = " x ".join(str(n) for n in entry.shape)
        spacing = "unknown" if entry.spacing is None else str(entry.spacing.to_spacing())
        key = (shape, entry.dtype, entry.n_channels, spacing)
        groups[key] = groups.get(key, 0) + 1
    rows = [(n, *key) for key, n in sorted(groups.items(), key=lambda item: -item[1])]
    shown = rows[:_MANY]
    text = table(shown, ("images", "voxels", "type", "channels", "spacing"))
    rest = sum(row[0] for row in rows[_MANY:])
    return text + (f"\n... and {rest} of other sizes" if rest else "")


def _classes(report: Report) -> str:
    rows = [
        (
            row["name"],
            row["n_voxels"],
            f"{100 * float(str(row['fraction'])):.3g} %",
            row["n_images"],
        )
        for row in report.classes
    ]
    return table(rows, ("class", "voxels", "of all", "images"))


def _parts_text(report: Report) -> str:
    split = report.config.split
    train = 1 - split.validation_fraction - split.test_fraction
    return (
        f"every image is cut along its longest axis: {_percent(train)} train,"
        f" {_percent(split.validation_fraction)} validation, {_percent(split.test_fraction)} test"
    )


def _percent(share: Any) -> str:
    return f"{100 * share:.3g} %"


def _splits_text(answer: dict[str, Any]) -> str:
    rows = []
    for name, specimens in answer["splits"].items():
        more = f" ... ({len(specimens)})" if len(specimens) > _MANY else ""
        rows.append((name, ", ".join(specimens[:_MANY]) + more if specimens else "-"))
    return table(rows, ("split", "specimens"))


def _finding(found: Finding, console: Console) -> str:
    head = console.style(f"{found.severity}:", fg=_COLORS[found.severity])
    shown = ", ".join(found.files[:_MANY])
    more = f" and {len(found.files) - _MANY} more" if len(found.files) > _MANY else ""
    files = f"\n    in {shown}{more}" if found.files else ""
    return f"{head} {found.message}{files}" + (f"\n    {found.hint}" if found.hint else "")
