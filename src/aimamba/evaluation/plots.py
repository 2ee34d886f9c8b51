"""Small line plots as SVG."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

_WIDTH, _HEIGHT = 420.0, 312.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 14.0, 34.0, 76.0  # below are the axis, its name and two rows of the legend
_COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1")
_GREY = "#666"

_Range = tuple[float, float]


class Series(NamedTuple):
    """A line of a plot.

    Attributes:
        name: Text in the legend.
        points: (x, y).
        marks: Texts beside the points; may be empty.
        dots: Mark every point with a dot.
    """

    name: str
    points: Sequence[tuple[float, float]]
    marks: Sequence[str] = ()
    dots: bool = True


def plot(
    title: str,
    x_name: str,
    y_name: str,
    series: Sequence[Series],
    *,
    x_range: _Range | None = None,
    y_range: _Range | None = None,
) -> str:
    """Plot lines over common axes.

    Args:
        title: Title above the plot.
        x_name: Name of the x axis.
        y_name: Name of the y axis.
        series: The lines, at most four, with at least one point.
        x_range: Range of the x axis; that of the points by default.
        y_range: Range of the y axis; that of the points by default.

    Returns:
        An ``<svg>`` element.
    """
    xs, ys = ([point[axis] for each in series for point in each.points] for axis in (0, 1))
    x_ticks = _ticks(*(x_range or (min(xs), max(xs))))
    y_ticks = _ticks(*(y_range or (min(ys), max(ys))))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_text(_LEFT, 16.0, title, "start", size=13, colour="#222")]
    for x in x_ticks:
        left, bottom = place(x, y_ticks[0])
        parts += [_line(left, bottom, left, _TOP), _text(left, bottom + 15, f"{x:g}", "middle")]
    for y in y_ticks:
        left, height = place(x_ticks[0], y)
        parts += [_line(left, height, _WIDTH - _RIGHT, height), _text(left - 6, height + 4, f"{y:g}", "end")]
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - _BOTTOM + 34, x_name, "middle"))
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    turned = f' transform="rotate(-90 14 {middle:.1f})"'
    parts.append(_text(14.0, middle, y_name, "middle", more=turned))
    for number, each in enumerate(series):
        parts += _curve(each, [place(*point) for point in each.points], _COLOURS[number % len(_COLOURS)])
        if len(series) > 1:
            row, column = divmod(number, 2)
            corner = _LEFT + column * (_WIDTH - _LEFT) / 2, _HEIGHT - 22 + 14 * row
            parts.append(_text(*corner, each.name, "start", colour=_COLOURS[number % len(_COLOURS)]))
    box = f'viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" width="{_WIDTH:g}" height="{_HEIGHT:g}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box} font-family="sans-serif">{"".join(parts)}</svg>'


def beside(plots: Sequence[str], columns: int = 2) -> str:
    """Return several plots as one SVG, row by row."""
    placed = []
    for number, each in enumerate(plots):
        down, across = divmod(number, columns)
        placed.append(each.replace("<svg ", f'<svg x="{across * _WIDTH:g}" y="{down * _HEIGHT:g}" ', 1))
    width, height = min(columns, len(plots)) * _WIDTH, -(-len(plots) // columns) * _HEIGHT
    box = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box}>{"".join(placed)}</svg>'


def _curve(series: Series, places: list[tuple[float, float]], colour: str) -> list[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>']
    if series.dots:
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{colour}"/>' for x, y in places]
    parts += [
        _text(x, y - 8, mark, "middle", colour=colour) for (x, y), mark in zip(places, series.marks, strict=False)
    ]
    return parts


def _ticks(low: float, high: float) -> list[float]:
    """Return four to nine round numbers that cover ``low`` to ``high``."""
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):
        room = abs(low) / 10 or 1.0
        low, high = low - room, high + room
    magnitude = 10.0 ** math.floor(math.log10(high - low))
    step = next(size * magnitude for size in (0.2, 0.25, 0.5, 1, 2) if (high - low) / (size * magnitude) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * number, 12) for number in range(first, last + 1)]


def _text(x: float, y: float, text: str, anchor: str, *, size: int = 11, colour: str = _GREY, more: str = "") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}"'
    return f"<text {place}{more}>{escape(text)}</text>"


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#e2e2e2"/>'
