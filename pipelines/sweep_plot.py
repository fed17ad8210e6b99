"""Draws a sweep as one PNG: what is kept, means, shares and overlaps; curves over one axis, maps over two."""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from curate.sweep import SweepReport
from pipelines.dot_plot import make_axis, num_decimals
from pipelines.sheet import to_ascii
from pipelines.sweep_report import Scores, most_frequent

_WIDTH, _HEIGHT, _PER_ROW = 620, 360, 2
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 18, 50, 54
# Drawn larger and then reduced, which smooths the lines.
_SCALE = 2
_INK, _GREY, _LINE, _PAPER, _BLUE = (25, 25, 25), (105, 105, 105), (225, 225, 225), (255, 255, 255), (66, 105, 208)
_COLOURS = (
    _BLUE, (239, 177, 24), (255, 114, 92), (108, 197, 176), (60, 169, 81), (255, 138, 183), (164, 99, 242), (156, 156, 156),
)  # fmt: skip
_MAX_CURVES = len(_COLOURS)
_MAX_OVERLAPS = 40
_LETTER = 6.2

Colour = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class _Box:
    """Where a panel is drawn, in pixels before the scale."""

    left: float
    top: float
    width: float
    height: float


_Draw = Callable[["_Pen", _Box], None]


def draw_sweep(report: SweepReport, scores: Scores | None = None) -> bytes:
    """Return the PNG of a sweep; the same numbers give the same picture."""
    panels = _panels(report, scores or {})
    rows = -(-len(panels) // _PER_ROW)
    size = (_SCALE * _WIDTH * min(_PER_ROW, len(panels)), _SCALE * _HEIGHT * rows)
    canvas = Image.new("RGB", size, _PAPER)
    pen = _Pen(canvas)
    for number, (title, draw) in enumerate(panels):
        left, top = number % _PER_ROW * _WIDTH, number // _PER_ROW * _HEIGHT
        pen.text(left + 12, top + 10, title, size=14)
        box = _Box(left=left + _LEFT, top=top + _TOP, width=_WIDTH - _LEFT - _RIGHT, height=_HEIGHT - _TOP - _BOTTOM)
        draw(pen, box)
    buffer = io.BytesIO()
    canvas.resize((size[0] // _SCALE, size[1] // _SCALE), Image.Resampling.LANCZOS).save(buffer, "PNG")
    return buffer.getvalue()


def _panels(report: SweepReport, scores: Scores) -> list[tuple[str, _Draw]]:
    points = report.points
    axes = list(points[0].values)
    values = {"rows kept": [float(point.num_kept) for point in points]}
    for name in points[0].means:
        values[f"mean {name}"] = [math.nan if (m := point.means[name]) is None else m for point in points]
    for metric in next(iter(scores.values())) if scores else ():
        values[metric] = [scores[point.selection.name][metric] for point in points]
    labels = [", ".join(point.values.values()) for point in points]
    is_grid = len(axes) == 2 and len({p.values[axes[0]] for p in points}) > 1 < len({p.values[axes[1]] for p in points})
    panels: list[tuple[str, _Draw]] = []
    for title, numbers in values.items():
        if is_grid:
            panels.append((title, _draw_grid(report, numbers)))
        else:
            panels.append((title, _draw_curves(labels, axes, {"": numbers}, from_zero=title == "rows kept")))
    for column in points[0].counts:
        shown = most_frequent(report, column, _MAX_CURVES)
        if is_grid and shown:
            numbers = [point.shares(column).get(shown[0], 0.0) for point in points]
            panels.append((f"share of {column} = {shown[0]}", _draw_grid(report, numbers)))
        elif shown:
            curves = {value: [point.shares(column).get(value, 0.0) for point in points] for value in shown}
            panels.append((f"share of {column}", _draw_curves(labels, axes, curves, from_zero=True)))
    if 1 < len(points) <= _MAX_OVERLAPS:
        panels.append(("rows in both / in either", _draw_overlaps(report, labels)))
    return panels


def _draw_curves(
    labels: Sequence[str], axes: Sequence[str], curves: dict[str, list[float]], *, from_zero: bool
) -> _Draw:
    def draw(pen: "_Pen", box: _Box) -> None:
        known = [value for values in curves.values() for value in values if math.isfinite(value)]
        low, step, high = make_axis([*known, 0.0] if from_zero or not known else known)
        decimals = num_decimals(step)
        for number in range(round((high - low) / step) + 1):
            tick = low + number * step
            y = box.top + box.height * (high - tick) / (high - low)
            pen.line([(box.left, y), (box.left + box.width, y)], _LINE, 1)
            pen.text(box.left - 6, y - 6, _short(tick, decimals), anchor="right", colour=_GREY)
        xs = [box.left + box.width * (number + 0.5) / len(labels) for number in range(len(labels))]
        pen.labels(xs, labels, box.top + box.height + 6, box.width / len(labels))
        pen.text(box.left + box.width / 2, box.top + box.height + 24, ", ".join(axes), anchor="middle", colour=_GREY)
        for values, colour in zip(curves.values(), _COLOURS, strict=False):
            places = [
                (x, box.top + box.height * (high - value) / (high - low))
                for x, value in zip(xs, values, strict=True)
                if math.isfinite(value)
            ]
            pen.line(places, colour, 2)
            for place in places:
                pen.dot(place, colour)
        if len(curves) > 1:
            pen.legend(box, dict(zip(curves, _COLOURS, strict=False)))

    return draw


def _draw_grid(report: SweepReport, numbers: Sequence[float]) -> _Draw:
    points = report.points
    down_title, across_title = points[0].values
    down = list(dict.fromkeys(point.values[down_title] for point in points))
    across = list(dict.fromkeys(point.values[across_title] for point in points))
    cells = [list(numbers[start : start + len(across)]) for start in range(0, len(numbers), len(across))]

    def draw(pen: "_Pen", box: _Box) -> None:
        pen.map(box, cells, down, across)
        pen.text(box.left + box.width / 2, box.top + box.height + 24, across_title, anchor="middle", colour=_GREY)
        pen.text(box.left - _LEFT + 12, box.top + box.height + 24, f"down: {down_title}", colour=_GREY)

    return draw


def _draw_overlaps(report: SweepReport, labels: Sequence[str]) -> _Draw:
    numbers = range(len(labels))
    cells = [[report.jaccard(first, second) for second in numbers] for first in numbers]
    return lambda pen, box: pen.map(box, cells, labels, labels, low=0.0, high=1.0)


class _Pen:
    """Draws in pixels before the scale."""

    def __init__(self, canvas: Image.Image) -> None:
        self._draw = ImageDraw.Draw(canvas)
        self._fonts = {size: ImageFont.load_default(size * _SCALE) for size in (9, 11, 14)}

    def text(
        self, x: float, y: float, text: str, *, size: int = 11, anchor: str = "left", colour: Colour = _INK
    ) -> None:
        kind = {"left": "la", "middle": "ma", "right": "ra"}[anchor]
        shown = to_ascii(text) or "?"
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        self._draw.text((x * _SCALE, y * _SCALE), shown, fill=colour, font=self._fonts[size], anchor=kind)

    def line(self, places: Sequence[tuple[float, float]], colour: Colour, width: int) -> None:
        if len(places) > 1:
            scaled = [(x * _SCALE, y * _SCALE) for x, y in places]
            self._draw.line(scaled, fill=colour, width=width * _SCALE, joint="curve")

    def dot(self, place: tuple[float, float], colour: Colour) -> None:
        x, y = place[0] * _SCALE, place[1] * _SCALE
        self._draw.ellipse((x - 3 * _SCALE, y - 3 * _SCALE, x + 3 * _SCALE, y + 3 * _SCALE), fill=colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        self._draw.rectangle((left * _SCALE, top * _SCALE, right * _SCALE - 1, bottom * _SCALE - 1), fill=colour)

    def labels(self, xs: Sequence[float], labels: Sequence[str], y: float, room: float) -> None:
        """Write labels below an axis, as many as there is room for."""
        every = max(1, math.ceil(max(map(len, labels)) * _LETTER / room))
        for number in range(0, len(labels), every):
            self.text(xs[number], y, labels[number], anchor="middle", colour=_GREY)

    def legend(self, box: _Box, colours: dict[str, Colour]) -> None:
        x = box.left
        for name, colour in colours.items():
            shown = name if len(name) <= 14 else f"{name[:11]}..."
            if x + 14 + len(shown) * _LETTER > box.left + box.width:
                break
            self.box(x, box.top - 17, x + 9, box.top - 8, colour)
            self.text(x + 12, box.top - 19, shown, colour=_GREY)
            x += 24 + len(shown) * _LETTER

    def map(
        self,
        box: _Box,
        cells: Sequence[Sequence[float]],
        down: Sequence[str],
        across: Sequence[str],
        *,
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        """Draw numbers as colours, darker where higher, and write them where there is room."""
        known = [value for row in cells for value in row if math.isfinite(value)] or [0.0]
        least, most = min(known) if low is None else low, max(known) if high is None else high
        width, height = box.width / len(across), box.height / len(down)
        decimals = 0 if all(value == int(value) for value in known) else 2 + (most - least < 0.1)
        for y, row in enumerate(cells):
            for x, value in enumerate(row):
                share = (value - least) / (most - least) if most > least and math.isfinite(value) else 0.0
                colour = _mix(share)
                left, top = box.left + x * width, box.top + y * height
                self.box(left, top, left + width, top + height, colour)
                text = _short(value, decimals)
                if math.isfinite(value) and len(text) * _LETTER * 0.85 < width and height > 11:
                    ink = _PAPER if share > 0.6 else _INK
                    self.text(left + width / 2, top + height / 2 - 5, text, size=9, anchor="middle", colour=ink)
        every = max(1, math.ceil(12 / height))
        for number in range(0, len(down), every):
            middle = box.top + (number + 0.5) * height - 6
            self.text(box.left - 6, middle, down[number][-11:], anchor="right", colour=_GREY)
        xs = [box.left + (number + 0.5) * width for number in range(len(across))]
        self.labels(xs, across, box.top + box.height + 6, width)


def _mix(share: float) -> Colour:
    """Return a colour between paper and blue."""
    first, second, third = (
        round(paper + (ink - paper) * (0.06 + 0.94 * share)) for paper, ink in zip(_PAPER, _BLUE, strict=True)
    )
    return first, second, third


def _short(value: float, decimals: int) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            factor = 1e3 if letter == "k" else size
            return f"{value / factor:.3g}{letter}"
    return f"{value:,.{decimals}f}"
