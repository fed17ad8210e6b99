"""Draws values of a few arms as an SVG: a panel per metric, a row per arm, a dot per seed, and a line at their mean."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

_LABEL_WIDTH, _PLOT_WIDTH, _MARGIN = 300, 420, 16
_ROW, _TITLE, _AXIS = 22, 26, 24
_COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5")
_NUM_TICKS = 4


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A metric: the values of each arm."""

    title: str
    rows: Mapping[str, Sequence[float]]


def draw_dots(panels: Sequence[Panel]) -> str:
    """Return an SVG of the panels below each other; each has an axis of its own, and the same values give the same text."""
    parts = []
    top = _MARGIN
    for panel in panels:
        parts += _draw_panel(panel, top)
        top += _TITLE + _ROW * len(panel.rows) + _AXIS + _MARGIN
    width = _LABEL_WIDTH + _PLOT_WIDTH + 3 * _MARGIN
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top}" viewBox="0 0 {width} {top}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{top}" fill="white"/>',
        *parts,
        "</svg>",
        "",
    ])


def _draw_panel(panel: Panel, top: int) -> list[str]:
    low, step, high = make_axis([value for values in panel.rows.values() for value in values])
    left = _LABEL_WIDTH + _MARGIN

    def place(value: float) -> str:
        return f"{left + _PLOT_WIDTH * (value - low) / (high - low):.1f}"

    bottom = top + _TITLE + _ROW * len(panel.rows)
    parts = [f'<text x="{_MARGIN}" y="{top + 14}" font-weight="bold">{escape(panel.title)}</text>']
    for number in range(round((high - low) / step) + 1):
        tick = low + number * step
        x = place(tick)
        parts += [
            f'<line x1="{x}" y1="{top + _TITLE}" x2="{x}" y2="{bottom}" stroke="#dddddd"/>',
            f'<text x="{x}" y="{bottom + 14}" text-anchor="middle" fill="#555555">{tick:.{num_decimals(step)}f}</text>',
        ]
    for number, (arm, values) in enumerate(panel.rows.items()):
        y = top + _TITLE + _ROW * number + _ROW // 2
        colour = _COLOURS[number % len(_COLOURS)]
        mean = place(statistics.fmean(values))
        parts += [
            f'<text x="{_LABEL_WIDTH}" y="{y + 4}" text-anchor="end">{escape(_shorten(arm))}<title>{escape(arm)}</title></text>',
            f'<line x1="{mean}" y1="{y - 8}" x2="{mean}" y2="{y + 8}" stroke="{colour}" stroke-width="2"/>',
            *(
                f'<circle cx="{place(value)}" cy="{y}" r="4" fill="{colour}" fill-opacity="0.6"><title>{value:.4f}</title></circle>'
                for value in values
            ),
        ]
    return parts


def make_axis(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the ends of an axis around some values, and the step of its ticks: 1, 2 or 5 times a power of ten."""
    low, high = min(values), max(values)
    spread = high - low or abs(high) or 1.0
    rough = spread / _NUM_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    start = math.floor(low / step + 1e-9) * step
    end = math.ceil(high / step - 1e-9) * step
    return start, step, end if end > start else start + step


def num_decimals(step: float) -> int:
    """Return how many digits after the point tell ticks apart that are a step from each other."""
    return max(0, -math.floor(math.log10(step) + 1e-9))


def _shorten(text: str) -> str:
    return text if len(text) <= 44 else f"{text[:41]}..."
