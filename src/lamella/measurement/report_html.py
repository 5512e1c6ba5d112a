"""The report as one HTML file: everything inline, nothing fetched, readable on paper and at night.

Text from files and people is escaped, and the page forbids itself (by its content security policy)
to load anything.
"""

import base64
import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from lamella.measurement.report_chart import Histogram, draw_histogram, short_number

__all__ = ["Card", "Column", "LegendEntry", "Page", "Picture", "render_page"]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture with its caption; ``png`` holds the encoded bytes."""

    png: bytes
    caption: str
    alt: str


@dataclass(frozen=True, slots=True)
class Card:
    """A picture of one object and a share of 0..1, drawn as a bar."""

    picture: Picture
    share: float


@dataclass(frozen=True, slots=True)
class LegendEntry:
    """A colour (RGB) and what it stands for."""

    color: tuple[int, int, int]
    name: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: head of the column.
        values: one per row; numbers are set to the right and sorted by value.
        unit: written small below the title.
        colors: RGB per row for a swatch before the value.
        is_share: whether the values are shares of 0..1, drawn as bars.
    """

    title: str
    values: Sequence[Any]
    unit: str = ""
    colors: Sequence[tuple[int, int, int]] | None = None
    is_share: bool = False

    @property
    def is_text(self) -> bool:
        """Whether the values are words."""
        return any(isinstance(value, str) for value in self.values)


@dataclass(frozen=True, slots=True)
class Page:
    """All that the page shows, in its order.

    Attributes:
        title: first line.
        lead: second line.
        facts: name, value and a smaller detail.
        warnings: sentences, shown before anything else.
        slices: pictures side by side.
        slices_note: how to read them.
        legend: colours in the pictures.
        projection: the labels in space.
        histogram: of sizes, with the label of its axis.
        gallery: objects worth a look.
        gallery_title: of the gallery.
        gallery_note: how to read it.
        classes: table of classes.
        objects: table of objects.
        objects_note: how many of how many, where the rest is.
        manifest: shown folded.
        footer: last line.
    """

    title: str
    lead: str
    facts: Sequence[tuple[str, str, str]] = ()
    warnings: Sequence[str] = ()
    slices: Sequence[Picture] = ()
    slices_note: str = ""
    legend: Sequence[LegendEntry] = ()
    projection: Picture | None = None
    histogram: tuple[Histogram, str] | None = None
    gallery: Sequence[Card] = ()
    gallery_title: str = ""
    gallery_note: str = ""
    classes: Sequence[Column] = ()
    objects: Sequence[Column] = ()
    objects_note: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict[str, Any])
    footer: str = ""


def render_page(page: Page) -> str:
    """The whole HTML document."""
    body = "\n".join(
        part
        for part in (
            _header(page),
            _warnings(page.warnings),
            _slices(page),
            _space_and_sizes(page),
            _gallery(page),
            _table_section("Classes", page.classes),
            _table_section("Objects", page.objects, page.objects_note, is_tall=True),
            _manifest(page.manifest),
            f"<footer>{_text(page.footer)}</footer>" if page.footer else "",
        )
        if part
    )
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(page.title)}</title>
<style>
{_asset("report.css")}</style>
</head>
<body>
<main>
{body}
</main>
<script>
{_asset("report.js")}</script>
</body>
</html>
"""


def _header(page: Page) -> str:
    facts = "".join(
        f"<div><dt>{_text(name)}</dt><dd>{_text(value)}"
        + (f"<small>{_text(detail)}</small>" if detail else "")
        + "</dd></div>"
        for name, value, detail in page.facts
    )
    return (
        f'<header><h1>{_text(page.title)}</h1><p class="lead">{_text(page.lead)}</p></header>\n'
        f'<dl class="facts">{facts}</dl>'
    )


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    head = "Please note" if len(warnings) == 1 else f"Please note: {len(warnings)} warnings"
    items = "".join(f"<li>{_text(text)}</li>" for text in warnings)
    return f'<div class="warnings" role="alert"><h2>{head}</h2><ul>{items}</ul></div>'


def _slices(page: Page) -> str:
    if not page.slices:
        return ""
    figures = "".join(_figure(picture) for picture in page.slices)
    note = f'<p class="note">{_text(page.slices_note)}</p>' if page.slices_note else ""
    return (
        f'<section><h2>Slices</h2><div class="pair">{figures}</div>{_legend(page.legend)}'
        f"{note}</section>"
    )


def _space_and_sizes(page: Page) -> str:
    parts = []
    if page.projection is not None:
        parts.append(f'<div class="stage"><h2>In space</h2>{_figure(page.projection)}</div>')
    if page.histogram is not None:
        histogram, label = page.histogram
        scale = " The axis is logarithmic." if histogram.is_log else ""
        parts.append(
            f"<div><h2>Sizes</h2><figure>{draw_histogram(histogram, label=label)}<figcaption>"
            f"{sum(histogram.counts):,} objects by size.{scale}</figcaption></figure></div>"
        )
    return f'<section class="split">{"".join(parts)}</section>' if parts else ""


def _table_section(
    title: str, columns: Sequence[Column], note: str = "", *, is_tall: bool = False
) -> str:
    if not columns or not columns[0].values:
        return ""
    caption = f'<p class="note">{_text(note)}</p>' if note else ""
    kind = "scroll tall" if is_tall else "scroll"
    return (
        f'<section><h2>{title}</h2><div class="{kind}">{_table(columns)}</div>{caption}</section>'
    )


def _table(columns: Sequence[Column]) -> str:
    heads = "".join(
        f'<th class="{"text" if column.is_text else "number"}"'
        f' data-sort="{"text" if column.is_text else "number"}">{_text(column.title)}'
        + (f"<small>{_text(column.unit)}</small>" if column.unit else "")
        + "</th>"
        for column in columns
    )
    rows = "".join(
        f"<tr>{''.join(_cell(column, row) for column in columns)}</tr>"
        for row in range(len(columns[0].values))
    )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def _cell(column: Column, row: int) -> str:
    value = column.values[row]
    swatch = "" if column.colors is None else _swatch(column.colors[row])
    if isinstance(value, bool):
        return f'<td data-value="{int(value)}">{"yes" if value else "no"}</td>'
    if isinstance(value, str):
        return f'<td class="text">{swatch}{_text(value)}</td>'
    if value is None or not math.isfinite(value):
        return '<td data-value=""></td>'
    if column.is_share:
        return f'<td data-value="{value!r}">{_bar(value)}{value:.2f}</td>'
    text = f"{value:,}" if isinstance(value, int) else short_number(value)
    return f'<td data-value="{value!r}">{swatch}{text}</td>'


def _bar(share: float) -> str:
    width = 100.0 * min(1.0, max(0.0, share))
    return f'<span class="share"><i style="width: {width:.1f}%"></i></span>'


def _gallery(page: Page) -> str:
    if not page.gallery:
        return ""
    cards = "".join(
        f"<li>{_figure(card.picture)}<p>{_bar(card.share)}<b>{card.share:.2f}</b></p></li>"
        for card in page.gallery
    )
    return (
        f'<section><h2>{_text(page.gallery_title)}</h2><ul class="gallery">{cards}</ul>'
        f'<p class="note">{_text(page.gallery_note)}</p></section>'
    )


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{_text(picture.alt)}">'
        f"<figcaption>{_text(picture.caption)}</figcaption></figure>"
    )


def _legend(entries: Sequence[LegendEntry]) -> str:
    if not entries:
        return ""
    items = "".join(
        f"<li>{_swatch(entry.color)}<span>{_text(entry.name)}"
        + (f' <span class="lead">{_text(entry.detail)}</span>' if entry.detail else "")
        + "</span></li>"
        for entry in entries
    )
    return f'<ul class="legend">{items}</ul>'


def _swatch(color: tuple[int, int, int]) -> str:
    return f'<span class="swatch" style="background: rgb({color[0]} {color[1]} {color[2]})"></span>'


def _manifest(manifest: Mapping[str, Any]) -> str:
    if not manifest:
        return ""
    text = json.dumps(manifest, indent=2, ensure_ascii=False, default=str)
    return (
        "<section><h2>Provenance</h2><details><summary>Manifest: everything needed to run this"
        f" again</summary><pre>{_text(text)}</pre></details></section>"
    )


def _text(text: object) -> str:
    return html.escape(str(text), quote=True)


def _asset(name: str) -> str:
    return files("lamella.measurement").joinpath(name).read_text("utf-8")
