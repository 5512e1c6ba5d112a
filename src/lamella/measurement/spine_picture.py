"""An overview of the spine for a reader's eye: two views, outlines, level names, centroids.

Names stand in a column between the views, at the height of their vertebrae, with a line to each;
what is doubtful is marked there and said below.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.measurement.spine_projection import Projection, project_spine
from lamella.measurement.vertebrae import Vertebra
from lamella.volume.labels import Labels
from lamella.volume.volume import Volume

__all__ = ["draw_spine", "vertebra_color"]

Color = tuple[int, int, int]

_TONES: dict[str, tuple[Color, Color]] = {
    "C": ((86, 180, 233), (40, 120, 200)),
    "T": ((60, 190, 140), (150, 210, 90)),
    "L": ((240, 170, 30), (235, 120, 50)),
    "S": ((204, 121, 167), (204, 121, 167)),
}
"""Two tones a region, alternating, so that neighbours differ; after Okabe & Ito (2008)."""

_PANEL_ROWS = 860
_WIDEST_PANEL = 620
_NARROWEST = 480
_GUTTER = 132
_MARGIN = 16
_HEADER = 40
_LINE = 20
_GROUND: Color = (18, 19, 22)
_TEXT: Color = (226, 228, 232)
_FAINT: Color = (150, 154, 162)
_ALARM: Color = (255, 190, 70)
_WINDOW_HU = (-150.0, 900.0)
_TEXT_GAP = 19


@dataclass(frozen=True, slots=True)
class _Panel:
    """A view as it is placed: pixels, and where its rows and columns come to lie."""

    view: Projection
    picture: NDArray[np.uint8]
    left: int
    scale: tuple[float, float]

    def place(self, k: int) -> tuple[float, float]:
        """(x, y) of a centroid on the canvas."""
        row, column = self.view.centroids[k]
        return (
            self.left + (column + 0.5) * self.scale[1],
            _HEADER + (row + 0.5) * self.scale[0],
        )


def vertebra_color(level: str) -> Color:
    """The colour of a level, the same in every picture."""
    return _TONES[level[0]][int(level[1:]) % 2]


def draw_spine(
    labels: Labels,
    vertebrae: Sequence[Vertebra],
    *,
    image: Volume | None = None,
    title: str = "",
    warnings: Sequence[str] = (),
    doubtful: Sequence[str] = (),
) -> NDArray[np.uint8]:
    """Draw the overview.

    Args:
        labels: class ids, (z, y, x), RAS.
        vertebrae: in their order along the spine, at least one.
        image: intensities on the labels' grid; CT is shown in a window for bone.
        title: head line.
        warnings: sentences below the picture.
        doubtful: levels that are marked.

    Returns:
        uint8 RGB, (rows, columns, 3).
    """
    from PIL import Image, ImageDraw

    views = project_spine(labels, vertebrae, image)
    colors = {known.value: vertebra_color(known.level) for known in vertebrae}
    rows_mm = views[0].labels.shape[0] * views[0].pixel_mm[0]
    widest = max(view.labels.shape[1] * view.pixel_mm[1] for view in views)
    pixels_per_mm = min(_PANEL_ROWS / rows_mm, _WIDEST_PANEL / widest)
    first = _panel(views[0], colors, pixels_per_mm, _MARGIN)
    second = _panel(views[1], colors, pixels_per_mm, _MARGIN + first.picture.shape[1] + _GUTTER)
    width = second.left + second.picture.shape[1] + _MARGIN
    width = max(width, _NARROWEST, math.ceil(_font(17).getlength(title)) + 2 * _MARGIN)
    lines = _wrapped(warnings, width - 2 * _MARGIN - 16)
    height = _HEADER + first.picture.shape[0] + 26 + _LINE * (len(lines) + 1) + _MARGIN
    canvas = Image.new("RGB", (width, height), _GROUND)
    for panel in (first, second):
        canvas.paste(Image.fromarray(panel.picture), (panel.left, _HEADER))
    draw = ImageDraw.Draw(canvas, "RGBA")
    for panel in (first, second):
        _letters(draw, panel)
    _scale_bar(draw, second, pixels_per_mm)
    _names(draw, vertebrae, (first, second), doubtful)
    for panel in (first, second):
        for k in range(len(vertebrae)):
            _cross(draw, *panel.place(k))
    draw.text((_MARGIN, 11), title, font=_font(17), fill=_TEXT)
    top = _HEADER + first.picture.shape[0] + 10
    _foot(draw, lines, top, has_image=image is not None)
    return np.asarray(canvas)


def _panel(view: Projection, colors: dict[int, Color], pixels_per_mm: float, left: int) -> _Panel:
    from PIL import Image

    rows, columns = view.labels.shape
    size = (
        max(1, round(columns * view.pixel_mm[1] * pixels_per_mm)),
        max(1, round(rows * view.pixel_mm[0] * pixels_per_mm)),
    )
    if view.intensities is None:
        grey = np.full((size[1], size[0]), 34.0, np.float32)
    else:
        low, high = _window(view.intensities)
        shown = np.clip((view.intensities - low) / max(high - low, 1e-6), 0, 1) * 255
        picture = Image.fromarray(shown.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
        grey = np.clip(np.asarray(picture, np.float32), 0, 255)
    numbered = np.zeros((size[1], size[0]), np.int64)
    strength = np.full(numbered.shape, 0.5, np.float32)
    for value in colors:
        # Outlines of a smoothed mask: coarse voxels would draw stairs over the bone.
        mask = Image.fromarray((view.labels == value).astype(np.float32))
        share = np.asarray(mask.resize(size, Image.Resampling.BICUBIC))
        inside = share > strength
        numbered[inside] = value
        strength[inside] = share[inside]
    rgb = np.repeat(grey[:, :, None], 3, axis=2)
    edges = _edges(numbered)
    fill = 0.22 if view.intensities is not None else 0.6
    for value, color in colors.items():
        tone = np.array(color, np.float32)
        area = (numbered == value) & ~edges
        rgb[area] = (1 - fill) * rgb[area] + fill * tone
        rgb[(numbered == value) & edges] = tone
    scale = (size[1] / rows, size[0] / columns)
    return _Panel(view, np.rint(np.clip(rgb, 0, 255)).astype(np.uint8), left, scale)


def _window(values: NDArray[np.float32]) -> tuple[float, float]:
    """Bone, where the values look like Hounsfield units; else their own span."""
    finite = values[np.isfinite(values)]
    low, high = (float(v) for v in np.percentile(finite, (1, 99.8))) if finite.size else (0.0, 1.0)
    return _WINDOW_HU if low < 0 and high > 300 else (low, high)


def _edges(numbered: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Pixels of a label beside another value, two pixels wide."""
    edge = np.zeros(numbered.shape, bool)
    for axis in (0, 1):
        for step in (-1, 1):
            moved = np.roll(numbered, step, axis)
            edge |= (moved != numbered) & (numbered != 0)
    thick = edge.copy()
    thick[1:] |= edge[:-1]
    thick[:, 1:] |= edge[:, :-1]
    return thick & (numbered != 0)


def _names(
    draw: Any, vertebrae: Sequence[Vertebra], panels: tuple[_Panel, _Panel], doubtful: Sequence[str]
) -> None:
    """Level names between the views, apart from each other, with lines to the centroids."""
    first, second = panels
    left = first.left + first.picture.shape[1]
    centre = left + _GUTTER // 2
    heights = [panels[0].place(k)[1] for k in range(len(vertebrae))]
    bottom = _HEADER + first.picture.shape[0]
    for k, (vertebra, at) in enumerate(
        zip(vertebrae, _spread(heights, _HEADER + 10, bottom - 10), strict=True)
    ):
        color = vertebra_color(vertebra.level)
        is_doubtful = vertebra.level in doubtful
        mark = ("!" if is_doubtful else "") + (" cut off" if vertebra.is_incomplete else "")
        name_width = draw.textlength(vertebra.level, font=_font(16))
        mark_width = draw.textlength(mark, font=_font(12))
        start = centre - (name_width + mark_width) / 2
        for panel, edge in ((first, start - 7), (second, start + name_width + mark_width + 7)):
            x, y = panel.place(k)
            turn = left + 8 if panel is first else left + _GUTTER - 8
            draw.line(((x, y), (turn, at), (edge, at)), fill=(*color, 150), width=1)
        draw.text((start, at), vertebra.level, font=_font(16), fill=color, anchor="lm")
        draw.text(
            (start + name_width + 2, at + 1),
            mark,
            font=_font(12),
            fill=_ALARM if is_doubtful else _FAINT,
            anchor="lm",
        )


def _spread(heights: Sequence[float], low: float, high: float) -> list[float]:
    """Heights at least a line apart, as near to the wanted ones as one pass each way allows."""
    order = np.argsort(heights, kind="stable")
    placed = [float(heights[k]) for k in order]
    for k in range(len(placed)):
        least = low if k == 0 else placed[k - 1] + _TEXT_GAP
        placed[k] = max(placed[k], least)
    for k in range(len(placed) - 1, -1, -1):
        most = high if k == len(placed) - 1 else placed[k + 1] - _TEXT_GAP
        placed[k] = min(placed[k], most)
    found = [0.0] * len(placed)
    for k, at in zip(order, placed, strict=True):
        found[int(k)] = at
    return found


def _cross(draw: Any, x: float, y: float) -> None:
    for color, width in (((0, 0, 0, 200), 4), ((255, 255, 255, 255), 2)):
        draw.line(((x - 6, y), (x + 6, y)), fill=color, width=width)
        draw.line(((x, y - 6), (x, y + 6)), fill=color, width=width)


def _letters(draw: Any, panel: _Panel) -> None:
    rows, columns = panel.picture.shape[:2]
    middle = _HEADER + rows / 2
    for text, at, anchor in (
        (panel.view.left, (panel.left + 6, middle), "lm"),
        (panel.view.right, (panel.left + columns - 6, middle), "rm"),
        ("S", (panel.left + 10, _HEADER + 6), "lt"),
        ("I", (panel.left + 10, _HEADER + rows - 6), "lb"),
    ):
        draw.text(
            at, text, font=_font(15), fill=_TEXT, anchor=anchor, stroke_width=2,
            stroke_fill=(0, 0, 0, 180),
        )  # fmt: skip


def _scale_bar(draw: Any, panel: _Panel, pixels_per_mm: float) -> None:
    rows, columns = panel.picture.shape[:2]
    length = next((n for n in (100, 50, 20, 10) if n * pixels_per_mm < 0.45 * columns), 5)
    right, bottom = panel.left + columns - 12, _HEADER + rows - 12
    left = right - length * pixels_per_mm
    draw.line(((left - 1, bottom), (right + 1, bottom)), fill=(0, 0, 0, 180), width=5)
    draw.line(((left, bottom), (right, bottom)), fill=(255, 255, 255, 255), width=3)
    draw.text(
        ((left + right) / 2, bottom - 6), f"{length} mm", font=_font(13), fill=_TEXT, anchor="mb",
        stroke_width=2, stroke_fill=(0, 0, 0, 180),
    )  # fmt: skip


def _foot(draw: Any, lines: Sequence[tuple[str, bool]], top: int, *, has_image: bool) -> None:
    for k, (line, is_first) in enumerate(lines):
        y = top + k * _LINE
        if is_first:
            draw.text((_MARGIN, y), "!", font=_font(14), fill=_ALARM)
        draw.text((_MARGIN + 14, y), line, font=_font(13), fill=_ALARM)
    text = "Research use only."
    if has_image:
        text = f"Brightest values within 14 mm of the spine's curve. {text}"
    draw.text((_MARGIN, top + len(lines) * _LINE + 4), text, font=_font(12), fill=_FAINT)


def _wrapped(sentences: Sequence[str], width: int) -> list[tuple[str, bool]]:
    """Lines that fit, and whether each begins a sentence."""
    font = _font(13)
    lines: list[tuple[str, bool]] = []
    for sentence in sentences:
        line, is_first = "", True
        for word in sentence.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append((line, is_first))
                line, is_first = word, False
            else:
                line = longer
        lines.append((line, is_first))
    return lines


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size=size)
