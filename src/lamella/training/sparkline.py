"""Curves in a line of text.

Examples:
    >>> sparkline([1, 2, 3, 2, 8])
    '▁▂▃▂█'
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["chart", "sparkline"]

_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None], width: int = 24) -> str:
    """Numbers as bars between the smallest and the largest.

    Args:
        values: what is no number leaves a gap.
        width: most characters; more values are averaged.

    Examples:
        >>> sparkline([0.0, None, 1.0]), sparkline([]), sparkline([5.0])
        ('▁ █', '', '▁')
    """
    known = _averaged(values, width)
    finite = [value for value in known if value is not None]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    return "".join(" " if value is None else _BARS[_level(value, low, high, 7)] for value in known)


def chart(values: Sequence[float | None], *, width: int = 60, height: int = 6) -> list[str]:
    """Numbers as a small area under a curve, with the largest and smallest at its left.

    Examples:
        >>> for line in chart([1.0, 0.5, 0.25, 0.125], height=2):
        ...     print(line)
        1.000 ┤█
        0.125 ┤█▇▃▁
    """
    known = _averaged(values, width)
    finite = [value for value in known if value is not None]
    if not finite:
        return []
    low, high = min(finite), max(finite)
    levels = [0 if v is None else 1 + _level(v, low, high, 8 * height - 1) for v in known]
    lines = []
    for row in reversed(range(height)):
        parts = [max(0, min(8, level - 8 * row)) for level in levels]
        body = "".join(" " if part == 0 else _BARS[part - 1] for part in parts)
        label = f"{high:.3f}" if row == height - 1 else f"{low:.3f}" if row == 0 else ""
        width_of_label = max(len(f"{high:.3f}"), len(f"{low:.3f}"))
        lines.append(f"{label:>{width_of_label}} ┤{body.rstrip()}")
    return lines


def _level(value: float, low: float, high: float, top: int) -> int:
    return 0 if high == low else round((value - low) / (high - low) * top)


def _averaged(values: Sequence[float | None], width: int) -> list[float | None]:
    known = [value if value is not None and math.isfinite(value) else None for value in values]
    if len(known) <= width:
        return known
    means: list[float | None] = []
    for i in range(width):
        part = known[i * len(known) // width : (i + 1) * len(known) // width]
        finite = [value for value in part if value is not None]
        means.append(sum(finite) / len(finite) if finite else None)
    return means
