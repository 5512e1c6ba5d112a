"""A histogram as inline SVG, with round ticks; logarithmic where sizes span decades."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["Histogram", "draw_histogram", "size_histogram"]

_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 26, 12, 44
_LOG_FROM = 30.0
"""Largest over smallest size from which the axis is logarithmic."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts between edges.

    Attributes:
        edges: one more than ``counts``, ascending.
        counts: objects from each edge (inclusive) to the next.
        is_log: whether the edges are evenly spaced on a logarithmic axis.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    is_log: bool


def size_histogram(sizes: ArrayLike, *, bins: int | None = None) -> Histogram | None:
    """Count sizes in even bins, logarithmic where they span more than a factor of 30.

    Args:
        sizes: positive numbers; others are left out.
        bins: how many; from the number of sizes (square root, 8 to 32) unless given.

    Returns:
        None when there is nothing to count.

    Examples:
        >>> size_histogram([1, 1, 2, 3], bins=2).counts
        (2, 2)
    """
    values = np.asarray(sizes, np.float64)
    values = values[np.isfinite(values) & (values > 0)]
    if values.size == 0:
        return None
    n_bins = bins or int(np.clip(round(math.sqrt(values.size) * 1.5), 8, 32))
    low, high = float(values.min()), float(values.max())
    is_log = high / low > _LOG_FROM
    if high == low:
        low, high, n_bins = low * 0.5, high * 1.5, 1
    edges = np.geomspace(low, high, n_bins + 1) if is_log else np.linspace(low, high, n_bins + 1)
    counts, _ = np.histogram(values, edges)
    return Histogram(tuple(map(float, edges)), tuple(map(int, counts)), is_log)


def draw_histogram(histogram: Histogram, *, label: str) -> str:
    """The histogram as an SVG element.

    Args:
        histogram: what to draw.
        label: of the horizontal axis, with its unit.
    """
    top = _nice_ceiling(max(histogram.counts))
    inner = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    base = _TOP + inner[1]
    low, high = histogram.edges[0], histogram.edges[-1]

    def across(value: float) -> float:
        if histogram.is_log:
            share = math.log(value / low) / math.log(high / low)
        else:
            share = (value - low) / (high - low)
        return _LEFT + share * inner[0]

    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
        f' aria-label="{html.escape(label)}: histogram">'
    ]
    for tick in _linear_ticks(0, top, 4):
        y = base - tick / top * inner[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for start, stop, count in zip(
        histogram.edges[:-1], histogram.edges[1:], histogram.counts, strict=True
    ):
        x, width, height = across(start), across(stop) - across(start), count / top * inner[1]
        parts.append(
            f'<rect class="bar" x="{x + 0.75:.2f}" y="{base - height:.2f}"'
            f' width="{max(0.5, width - 1.5):.2f}" height="{height:.2f}" rx="1.5">'
            f"<title>{count} from {short_number(start)} to {short_number(stop)}</title></rect>"
        )
    parts.append(
        f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{base}" y2="{base}"/>'
    )
    ticks = _log_ticks(low, high) if histogram.is_log else _linear_ticks(low, high, 6)
    for tick in ticks:
        x = across(tick)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{base + 18}" text-anchor="middle">{short_number(tick)}</text>'
        )
    middle = _LEFT + inner[0] / 2
    parts.append(
        f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{html.escape(label)}</text>'
    )
    return "".join(parts) + "</svg>"


def short_number(value: float) -> str:
    """A number for an axis or a cell: four digits, thousands apart, powers where it is extreme.

    Examples:
        >>> short_number(1234.5), short_number(0.01234), short_number(2.5e9)
        ('1,234', '0.01234', '2.5e9')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    magnitude = abs(value)
    if magnitude >= 1e7 or magnitude < 1e-4:
        mantissa, exponent = f"{value:.3g}".split("e") if "e" in f"{value:.3g}" else ("", "")
        return f"{mantissa}e{int(exponent)}" if mantissa else f"{value:,.0f}"
    if magnitude >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _nice_ceiling(value: int) -> int:
    if value <= 4:
        return 4
    step = 10 ** math.floor(math.log10(value))
    return next(int(factor * step) for factor in (1, 2, 4, 6, 8, 10) if factor * step >= value)


def _linear_ticks(low: float, high: float, wanted: int) -> Sequence[float]:
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> Sequence[float]:
    decades = math.log10(high / low)
    factors = (1,) if decades > 3 else (1, 3) if decades > 1.5 else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    return [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
