"""A picture of an image's quality: its spectrum over the noise floor, and its slices.

The spectrum shows what the verdict rests on: how far the signal stands above the noise, and where
fine detail ends. For volumes the second panel shows noise and sharpness slice by slice, odd slices
marked.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from lamella.restoration.quality import BLURRED_SIGMA, NOISY_CNR, Quality

__all__ = ["draw_quality"]

_WIDTH, _PANEL, _MARGIN = 760, 230, 64
_INK, _SOFT, _LINE, _PAPER = (24, 28, 34), (110, 118, 130), (226, 229, 234), (255, 255, 255)
_SIGNAL, _NOISE, _ODD = (21, 101, 192), (216, 67, 21), (198, 40, 40)
_DECADES = 6

Point = tuple[float, float]


def draw_quality(quality: Quality, *, title: str = "") -> bytes:
    """Draw the quality of one channel.

    Args:
        quality: as measured.
        title: the image's name.

    Returns:
        A PNG.
    """
    from PIL import Image, ImageDraw

    panels = 1 + 2 * bool(quality.slices)
    page = Image.new("RGB", (_WIDTH, 84 + panels * (_PANEL + 46)), _PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN, 14), f"{title}  {quality.verdict}".strip(), fill=_INK, font=_font(20))
    draw.text((_MARGIN, 42), quality.reason, fill=_SOFT, font=_font(13))
    _spectrum(draw, quality, top=84)
    if quality.slices:
        top = 84 + _PANEL + 46
        odd = {entry.z: ", ".join(entry.flags) for entry in quality.bad_slices}
        for k, (name, color) in enumerate((("noise_sigma", _NOISE), ("sharpness", _SIGNAL))):
            values = [getattr(entry, name) for entry in quality.slices]
            words = "noise (sigma) by slice" if name == "noise_sigma" else "sharpness by slice"
            _profile(draw, values, odd, top=top + k * (_PANEL + 46), title=words, color=color)
    stream = io.BytesIO()
    page.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _spectrum(draw: Any, quality: Quality, *, top: int) -> None:
    """Power over frequency, both relative: decades below the strongest."""
    frequency, power = (np.asarray(v) for v in (quality.spectrum_frequency, quality.spectrum_power))
    strongest = max(float(power.max(initial=0.0)), 1e-300)
    decades = np.clip(-np.log10(np.maximum(power / strongest, 1e-30)), 0, _DECADES) / _DECADES
    floor = max(quality.spectrum_floor / strongest, 10.0**-_DECADES)
    _frame(draw, top, "power of detail over its size (cycles per pixel)")
    for share in (0.1, 0.2, 0.3, 0.4, 0.5):
        x = _MARGIN + share / 0.5 * (_WIDTH - 2 * _MARGIN)
        draw.line((x, top, x, top + _PANEL), fill=_LINE)
        draw.text((x, top + _PANEL + 4), f"{share:g}", fill=_SOFT, font=_font(12), anchor="ma")
    for decade in range(0, _DECADES + 1, 2):
        y = top + decade / _DECADES * _PANEL
        label = "1" if not decade else f"1e-{decade}"
        draw.text((_MARGIN - 8, y), label, fill=_SOFT, font=_font(12), anchor="rm")
    y = top + float(-np.log10(floor)) / _DECADES * _PANEL
    draw.line((_MARGIN, y, _WIDTH - _MARGIN, y), fill=_NOISE, width=2)
    draw.text((_MARGIN + 8, y - 3), "noise", fill=_NOISE, font=_font(13), anchor="lb")
    points = [
        (_MARGIN + float(f) / 0.5 * (_WIDTH - 2 * _MARGIN), top + float(d) * _PANEL)
        for f, d in zip(frequency, decades, strict=True)
        if f >= 0.01  # below lies the mean, which was taken off
    ]
    if len(points) > 1:
        draw.line(points, fill=_SIGNAL, width=3, joint="curve")
    words = (
        f"contrast to noise {quality.contrast_to_noise:.3g} (noisy below {NOISY_CNR:g})",
        f"sharpness {quality.sharpness:.3g}",
        "blur hidden by noise"
        if quality.blur_sigma is None
        else f"blur {quality.blur_sigma:.2f} px (blurred from {BLURRED_SIGMA:g})",
    )
    for row, text in enumerate(words):
        at = (_WIDTH - _MARGIN - 10, top + 10 + 20 * row)
        draw.text(at, text, fill=_INK, font=_font(13), anchor="ra")


def _profile(
    draw: Any,
    values: Sequence[float],
    odd: dict[int, str],
    *,
    top: int,
    title: str,
    color: tuple[int, int, int],
) -> None:
    """A number over the slices, odd slices marked by a ring and the first few named."""
    _frame(draw, top, title)
    highest = max(*values, 1e-300) * 1.1
    span = max(1, len(values) - 1)
    points: list[Point] = [
        (
            _MARGIN + k / span * (_WIDTH - 2 * _MARGIN),
            top + _PANEL - value / highest * _PANEL,
        )
        for k, value in enumerate(values)
    ]
    draw.line(points, fill=color, width=2, joint="curve")
    draw.text((_MARGIN - 8, top), f"{highest:.3g}", fill=_SOFT, font=_font(12), anchor="rm")
    draw.text((_MARGIN - 8, top + _PANEL), "0", fill=_SOFT, font=_font(12), anchor="rm")
    for k in sorted({0, span // 2, span}):
        x = points[min(k, len(points) - 1)][0]
        draw.text((x, top + _PANEL + 4), str(k), fill=_SOFT, font=_font(12), anchor="ma")
    for number, (z, words) in enumerate(odd.items()):
        x, y = points[z]
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), outline=_ODD, width=2)
        if number < 4:
            anchor = "lm" if x < _WIDTH / 2 else "rm"
            shift = 10 if anchor == "lm" else -10
            draw.text((x + shift, y), f"{z}: {words}", fill=_ODD, font=_font(12), anchor=anchor)


def _frame(draw: Any, top: int, title: str) -> None:
    box = (_MARGIN, top, _WIDTH - _MARGIN, top + _PANEL)
    draw.rectangle(box, outline=_LINE)
    draw.text((_WIDTH / 2, top + _PANEL + 22), title, fill=_SOFT, font=_font(13), anchor="ma")


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)
