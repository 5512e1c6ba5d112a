"""``lamella train``: from a configuration and annotated images to a model."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import Console, format_duration, table
from lamella.cli.failure import EXIT_NO
from lamella.cli.parameters import answer_options, console_of

if TYPE_CHECKING:
    from lamella.training.configuration import TrainConfig
    from lamella.training.run import TrainResult

__all__ = ["command"]

_CONFIG_FILE = "config.yaml"


@click.command()
@click.argument("config", required=False)
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--run-dir", type=click.Path(path_type=Path),
    help="Folder of the training; ./MODEL.training unless given.",
)  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with the training in the run folder.")
@click.option("--fresh", is_flag=True, help="Delete what a training left in the run folder.")
@click.option("--minutes", type=float, help="End within so many minutes (trainer.minutes).")
@click.option("--print-config", is_flag=True, help="Print the whole configuration, and stop.")
@click.option("--list-configs", is_flag=True, help="List configurations and pieces, and stop.")
@click.option(
    "--list-backbones", is_flag=True, help="List encoders of 2-D networks (by a pattern)."
)
@click.option(
    "--find-learning-rate", is_flag=True, help="Try rising learning rates and suggest one."
)
@click.option(
    "--overfit-one-batch", is_flag=True, help="Learn one batch by heart: can it learn at all?"
)
@answer_options
def command(
    config: str | None,
    changes: Sequence[str],
    *,
    run_dir: Path | None,
    resume: bool,
    fresh: bool,
    **words: Any,
) -> int:
    """Train a model as CONFIG says: the name of a shipped configuration, a YAML file, or the
    folder of a training.

    KEY=VALUE changes it: trainer.steps=500 sets a value, network=mednext_s takes another piece.
    Ctrl-C stops cleanly, and --resume goes on exactly.

    \b
      lamella train em2d_semantic data.root=FOLDER task.classes=[mitochondrion]
      lamella train --resume em2d-semantic.training
    """  # noqa: D205, D301 - click joins the lines and reads \b
    console = console_of(words)
    if words["list_configs"]:
        return _list_configs(console)
    if words["list_backbones"]:
        return _list_backbones(console, config or "")
    if config is None:
        raise click.UsageError(
            "which configuration? `lamella train --list-configs` lists them",
            ctx=click.get_current_context(),
        )
    if resume and fresh:
        raise click.UsageError(
            "--resume and --fresh exclude each other", ctx=click.get_current_context()
        )
    from lamella.training.compose import compose, to_yaml

    minutes = words["minutes"]
    more = () if minutes is None else (f"trainer.minutes={minutes}",)
    composed = compose(config, (*changes, *more))
    if words["print_config"]:
        console.answer(composed, lambda: to_yaml(composed).rstrip())
        return 0
    folder = run_dir or _run_dir(config, composed)
    if words["find_learning_rate"]:
        return _find_learning_rate(composed, folder, console)
    if words["overfit_one_batch"]:
        return _overfit_one_batch(composed, console)
    return _train(composed, folder, console, resume=resume, fresh=fresh)


def _run_dir(config: str, composed: TrainConfig) -> Path:
    """The folder of a training that was named, or one beside where the command runs."""
    named = Path(config)
    if named.is_dir():
        return named
    if named.name == _CONFIG_FILE and (named.parent / "checkpoints").is_dir():
        return named.parent
    return Path(f"{composed.model.id}.training")


def _train(
    config: TrainConfig, folder: Path, console: Console, *, resume: bool, fresh: bool
) -> int:
    from lamella.core.places import Places
    from lamella.training.run import TrainOptions, train

    options = TrainOptions(
        resume=resume, fresh=fresh, places=Places.of_user(), command=tuple(sys.argv)
    )
    with console.running(on_stop="what is done until the last validation is kept") as sink:
        done = train(config, folder, options, sink=sink)
    if done.result is not None:
        console.answer(_document(done), lambda: _text(done, console))
    return 0


def _document(done: TrainResult) -> dict[str, Any]:
    return {"run": str(done.run_dir), **done.summary}


def _text(done: TrainResult, console: Console) -> str:
    from lamella.training.sparkline import chart

    assert done.result is not None
    summary = done.summary
    lines = [console.style(f"{done.run_dir}: trained {summary['steps']:,} steps in"
                           f" {format_duration(summary['time_s'])}", bold=True)]  # fmt: skip
    if summary["ended_by"] == "time":
        lines[0] += f" (of {summary['steps_planned']:,}: the time was over)"
    elif summary["ended_by"] == "patience":
        lines[0] += f" (of {summary['steps_planned']:,}: nothing got better)"
    share = summary["data_time_share"]
    if share is not None:
        lines.append(f"{summary['step_s']:.2f} s a step, {share:.1%} of it waiting for data")
    scores = [row.score for row in done.history.validations]
    for title, values in (
        ("loss", [row.loss for row in done.history.rows]),
        ("mean IoU, validation", scores),
    ):
        if len(values) > 1:
            lines += ["", title, *chart(values, height=5)]
    rows = [
        (split, name, *(one.get(key) for key in ("iou", "dice", "precision", "recall")))
        for split, classes in done.result.scores.items()
        for name, one in classes.items()
        if name != "background" and one.get("iou") is not None
    ]
    if rows:
        lines += ["", table(rows, ("data", "class", "IoU", "Dice", "precision", "recall"))]
    lines += ["", f"curves: {done.run_dir / 'curves.html'}", done.result.next_steps]
    return "\n".join(lines)


def _find_learning_rate(config: TrainConfig, folder: Path, console: Console) -> int:
    from lamella.training.run import build_data
    from lamella.training.tune import draw_learning_rates, find_learning_rate

    source, task = build_data(config)
    with console.running(on_stop="nothing is written") as sink:
        found = find_learning_rate(config, source, task, sink=sink)
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "learning_rate.png"
    picture.write_bytes(draw_learning_rates(found))
    document = {
        "suggestion": found.suggestion,
        "now": config.optimiser.learning_rate,
        "picture": str(picture),
        "rates": found.rates,
        "losses": found.losses,
    }
    if found.suggestion is None:
        text = (
            f"the loss never fell, whatever the learning rate: see {picture}\n"
            "look at the data first: --overfit-one-batch tells whether anything can be learnt"
        )
    else:
        text = (
            f"suggested: optimiser.learning_rate={found.suggestion:.1e}"
            f" (now {config.optimiser.learning_rate:.1e})\npicture: {picture}"
        )
    console.answer(document, text)
    return 0 if found.suggestion is not None else EXIT_NO


def _overfit_one_batch(config: TrainConfig, console: Console) -> int:
    from lamella.training.run import build_data
    from lamella.training.sparkline import chart
    from lamella.training.tune import overfit_one_batch

    source, task = build_data(config)
    with console.running(on_stop="nothing is written") as sink:
        done = overfit_one_batch(config, source, task, sink=sink)
    first, last = done.losses[0], done.losses[-1]
    document = {
        "can_learn": done.can_learn, "steps": len(done.losses), "first_loss": first,
        "last_loss": last, "iou": done.scores, "losses": done.losses,
    }  # fmt: skip
    scores = ", ".join(f"{name} {value:.3f}" for name, value in done.scores.items())
    verdict = (
        console.style("the network can learn this", fg="green")
        if done.can_learn
        else console.style("the network does not learn even one batch", fg="red")
        + ": look at labels and classes (lamella dataset check), then at the learning rate"
        " (--find-learning-rate)"
    )
    text = [
        *chart(done.losses, height=5),
        f"loss {first:.3g} → {last:.3g} in {len(done.losses)} steps; IoU of the batch: {scores}",
        verdict,
    ]
    console.answer(document, "\n".join(text))
    return 0 if done.can_learn else EXIT_NO


def _list_configs(console: Console) -> int:
    from lamella.training.compose import group_options, shipped_configs

    groups = group_options()
    document = {"configs": list(shipped_configs()), "pieces": groups}
    lines = ["configurations", *(f"  {name}" for name in shipped_configs()), "", "pieces"]
    lines += [f"  {group + '=':<14}{'  '.join(pieces)}" for group, pieces in groups.items()]
    console.answer(document, "\n".join(lines))
    return 0


def _list_backbones(console: Console, pattern: str) -> int:
    from lamella.networks.backbones import list_backbones, tested_backbones

    found = list_backbones(pattern)
    versions = ", ".join(f"{name} {number}" for name, number in tested_backbones().versions.items())
    document = {
        "versions": tested_backbones().versions,
        "backbones": [dataclasses.asdict(one) for one in found],
    }
    lines = [
        *(str(one) for one in found),
        "",
        f"{len(found):,} encoders that were built and run under these heads, with {versions};"
        " a pattern narrows the list: lamella train --list-backbones 'tu-convnext*'",
        "use one: network=unet_resnet18 network.arguments.encoder=NAME",
    ]
    console.answer(document, "\n".join(lines))
    return 0
