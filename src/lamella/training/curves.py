"""A picture of a training: losses, scores by class, learning rate, waiting for data.

``curves.png`` is for reports and chats; ``curves.html`` is one file without any other, renews
itself while the training runs, and shows numbers under the pointer.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamella.core.optional import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lamella.training.history import History, Row

__all__ = ["Heading", "curves_html", "draw_curves"]

# Okabe & Ito (2008): told apart by people with any colour vision.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C00", "#5B4B8A")
_INK, _FAINT, _GRID = "#222222", "#777777", "#E3E3E3"
_TRAIN, _VALIDATION = "#8C8C8C", "#111111"
_MOST_CLASSES = 8
_TEMPLATE = Path(__file__).with_name("curves.html")


@dataclass(frozen=True, slots=True)
class Heading:
    """What is said above the curves.

    Attributes:
        title: of the model.
        steps: planned.
        state: ``running``, ``finished``, ``stopped`` or ``failed``.
        best_step: of the best validation; None before the first.
        elapsed: time so far, for people.
        notes: further words, such as why it ended.
    """

    title: str
    steps: int
    state: str = "running"
    best_step: int | None = None
    elapsed: str = ""
    notes: str = ""


def draw_curves(history: History, heading: Heading) -> bytes:
    """The picture, PNG.

    Args:
        history: at least one row.
        heading: what is said above.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    require("matplotlib", extra="train", purpose="drawing curves")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = {
        "font.size": 11, "axes.edgecolor": _FAINT, "axes.labelcolor": _INK, "text.color": _INK,
        "xtick.color": _FAINT, "ytick.color": _FAINT, "axes.spines.top": False,
        "axes.spines.right": False, "axes.titlelocation": "left", "axes.titleweight": "bold",
        "axes.titlesize": 12, "font.family": "DejaVu Sans", "legend.frameon": False,
    }  # fmt: skip
    with mpl.rc_context(style):
        figure = Figure(figsize=(12.0, 7.0), layout="constrained")
        layout: Any = figure.get_layout_engine()
        layout.set(h_pad=0.08, w_pad=0.12)
        figure.suptitle(
            _headline(history, heading), x=0.012, ha="left", fontsize=14, fontweight="bold"
        )
        axes: Any = figure.subplot_mosaic(
            [["loss", "score"], ["rate", "wait"]], height_ratios=[3.2, 1], sharex=True
        )
        _draw_loss(axes["loss"], history)
        _draw_scores(axes["score"], history, heading)
        _draw_small(axes["rate"], history.rows, "learning_rate", "learning rate")
        _draw_small(axes["wait"], history.rows, "data_share", "share of time waited for data")
        last = max(heading.steps if heading.state == "running" else 0, history.rows[-1].step)
        for name, one in axes.items():
            one.grid(axis="y", color=_GRID, linewidth=0.8)
            one.set_axisbelow(True)
            one.set_xlim(0, last)
            one.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
            one.tick_params(labelbottom=name in ("rate", "wait"), length=3)
        for name in ("rate", "wait"):
            axes[name].set_xlabel("step")
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=110, facecolor="white")
    return picture.getvalue()


def curves_html(history: History, heading: Heading) -> str:
    """The page: one file, nothing loaded from anywhere.

    Args:
        history: at least one row.
        heading: what is said above.
    """
    data = {
        "title": heading.title,
        "headline": _headline(history, heading),
        "state": heading.state,
        "steps": heading.steps,
        "best_step": heading.best_step,
        "classes": list(history.classes),
        "colors": list(_COLORS),
        "rows": [
            {
                "step": row.step,
                "time_s": row.time_s,
                "loss": _number(row.loss),
                "rate": _number(row.learning_rate),
                "wait": _number(row.data_share),
                "validation": _number(row.validation_loss),
                "score": _number(row.score),
                "classes": [_number(row.classes.get(name)) for name in history.classes],
            }
            for row in history.rows
        ],
    }
    # "<" could end the script it stands in.
    text = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    page = _TEMPLATE.read_text(encoding="utf-8").replace("/*DATA*/null", text)
    refresh = '<meta http-equiv="refresh" content="15">' if heading.state == "running" else ""
    return page.replace("<!--REFRESH-->", refresh)


def _headline(history: History, heading: Heading) -> str:
    step = history.rows[-1].step
    parts = [heading.title, f"step {step:,} of {heading.steps:,}"]
    best = next((row for row in history.validations if row.step == heading.best_step), None)
    if best is not None and best.score is not None:
        parts.append(f"best {_score_name(history)} {best.score:.3f} at step {best.step:,}")
    parts += [text for text in (heading.elapsed, heading.notes) if text]
    return "  ·  ".join(parts)


def _score_name(history: History) -> str:
    return "mean IoU" if len(history.classes) > 1 else "IoU"


def _draw_loss(axes: Any, history: History) -> None:
    rows, validations = history.rows, history.validations
    steps, losses = [row.step for row in rows], [row.loss for row in rows]
    axes.plot(steps, losses, color=_TRAIN, alpha=0.35, linewidth=1.0)
    axes.plot(steps, _smooth(losses), color=_TRAIN, linewidth=2.0, label="training")
    known = [(row.step, row.validation_loss) for row in validations if _is(row.validation_loss)]
    if known:
        axes.plot(*zip(*known, strict=True), color=_VALIDATION, linewidth=2.0, marker="o",
                  markersize=4 if len(known) < 40 else 0, label="validation")  # fmt: skip
    finite = [v for v in (*losses, *(v for _, v in known)) if v is not None and math.isfinite(v)]
    if finite and min(finite) > 0 and max(finite) > 30 * min(finite):
        axes.set_yscale("log")
    elif finite:
        axes.set_ylim(bottom=min(0.0, *finite))
    axes.set_title("loss")
    axes.legend(loc="upper right")


def _draw_scores(axes: Any, history: History, heading: Heading) -> None:
    axes.set_title("IoU on the validation data")
    axes.set_ylim(0, 1)
    validations = history.validations
    if not validations:
        axes.text(
            0.5, 0.5, "no validation yet", transform=axes.transAxes, ha="center", color=_FAINT
        )
        return
    steps = [row.step for row in validations]
    markers = {"marker": "o", "markersize": 3.5 if len(steps) < 40 else 0}
    shown = history.classes[:_MOST_CLASSES]
    for name, color in zip(shown, _COLORS, strict=False):
        values = [row.classes.get(name, math.nan) for row in validations]
        axes.plot(steps, values, color=color, linewidth=1.6, label=name, **markers)
    if len(history.classes) > 1:
        means = [math.nan if row.score is None else row.score for row in validations]
        axes.plot(steps, means, color=_INK, linewidth=2.6, label="mean", **markers)
    best = next((row for row in validations if row.step == heading.best_step), None)
    if best is not None and _is(best.score):
        axes.plot([best.step], [best.score], marker="*", markersize=17, color="#F2B705",
                  markeredgecolor=_INK, markeredgewidth=0.8, linestyle="none", zorder=5,
                  label=f"best: {best.score:.3f}", clip_on=False)  # fmt: skip
    hidden = len(history.classes) - len(shown)
    axes.legend(
        loc="lower right", fontsize=10, ncols=2 if len(shown) > 4 else 1,
        title=f"and {hidden} more classes" if hidden > 0 else None,
    )  # fmt: skip


def _draw_small(axes: Any, rows: Sequence[Row], name: str, title: str) -> None:
    known = [(row.step, getattr(row, name)) for row in rows if _is(getattr(row, name))]
    if known:
        axes.plot(*zip(*known, strict=True), color=_COLORS[0], linewidth=1.6)
    axes.set_title(title, fontsize=11)
    if name == "data_share":
        axes.set_ylim(0, max(0.2, *(value for _, value in known), 0.0) * 1.05)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    else:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}")


def _smooth(values: Sequence[float], share: float = 0.05) -> list[float]:
    """Running mean over a share of the curve, as wide before as behind."""
    half = max(1, round(len(values) * share / 2))
    return [
        sum(part) / len(part)
        for part in (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    ]


def _is(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _number(value: float | None) -> float | None:
    """A number of JSON: neither NaN nor infinite, and no more digits than can be seen."""
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None
