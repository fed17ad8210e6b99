"""Small charts as inline SVG. Colours are classes of the theme, so one drawing serves light and dark; a `<title>` on each mark tells its value.

Every text is escaped, nothing uses a `style` attribute, and the same values give the same characters.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

_WIDTH, _HEIGHT = 350, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 26, 24
_NUM_TICKS = 4
# Width of a letter of the threshold's label, to keep two of them apart.
_LETTER = 6.2

Scale = Callable[[float], float]


@dataclass(frozen=True, kw_only=True)
class Bin:
    """A bar of a histogram: rows from `low` to `high`, of which `num_kept` are kept."""

    low: float
    high: float
    num_rows: int
    num_kept: int


@dataclass(frozen=True, kw_only=True)
class Line:
    """A vertical line at a value, with a word for it."""

    value: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of a curve, in order of x."""

    name: str
    points: Sequence[tuple[float, float]]


def histogram(
    bins: Sequence[Bin], thresholds: Sequence[Line], *, title: str, is_log: bool, has_verdict: bool
) -> Markup:
    """Return bars of rows per bin, the kept ones below the dropped ones, and a dashed line with its rule at each threshold."""
    low, high = bins[0].low, bins[-1].high
    top = max(1, *(each.num_rows for each in bins))

    def x(value: float) -> float:
        share = math.log(value / low) / math.log(high / low) if is_log else (value - low) / (high - low)
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * min(1.0, max(0.0, share))

    def y(number: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * number / top

    parts = [_count_axis(top, y), *(_bar(each, x, y, has_verdict=has_verdict) for each in bins if each.num_rows)]
    parts.append(_line("axis", _LEFT, _HEIGHT - _BOTTOM, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM))
    ticks = _log_ticks(low, high) if is_log else _ticks(low, high)
    parts += [_text(x(tick), _HEIGHT - 8, _short(tick), anchor="middle") for tick in ticks]
    parts += _thresholds(thresholds, x)
    return _svg(_WIDTH, _HEIGHT, title, parts)


def curves(series: Sequence[Series], *, title: str, x_title: str) -> Markup:
    """Return one line per series over shared axes; at most six series have colours of their own."""
    width, height, bottom = _WIDTH, 210, 40
    xs = [x for each in series for x, _ in each.points]
    ys = [y for each in series for _, y in each.points]
    x_ticks, y_ticks = _ticks(0.0, max(xs) or 1.0), _ticks(min(ys), max(ys))
    x_low, x_high = 0.0, max(max(xs), x_ticks[-1])
    y_low, y_high = min(min(ys), y_ticks[0]), max(max(ys), y_ticks[-1])

    def x(value: float) -> float:
        return _LEFT + (width - _LEFT - _RIGHT) * (value - x_low) / ((x_high - x_low) or 1.0)

    def y(value: float) -> float:
        return height - bottom - (height - 12 - bottom) * (value - y_low) / ((y_high - y_low) or 1.0)

    parts = []
    for tick in y_ticks:
        parts += [_line("grid", _LEFT, y(tick), width - _RIGHT, y(tick)), _text(_LEFT - 6, y(tick) + 4, _short(tick))]
    parts.append(_line("axis", _LEFT, y(y_low), width - _RIGHT, y(y_low)))
    parts += [_text(x(tick), height - bottom + 16, _short(tick), anchor="middle") for tick in x_ticks]
    parts.append(_text((width + _LEFT) / 2, height - 6, x_title, anchor="middle"))
    for number, each in enumerate(series):
        points = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in each.points)
        last_x, last_y = each.points[-1]
        parts += [
            Markup(
                '<g class="series-{}"><polyline class="line series" points="{}"><title>{}</title></polyline>'
            ).format(number % 6 + 1, points, each.name),
            Markup(
                '<circle class="dot series" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}: {}</title></circle></g>'
            ).format(x(last_x), y(last_y), each.name, f"{last_y:.4g} after {last_x:,.0f}"),
        ]
    return _svg(width, height, title, parts)


def bar(share: float, *, kind: str = "plain", behind: float | None = None, label: str = "") -> Markup:
    """Return a horizontal bar for a cell of a table: `share` of its width, 0 to 1, and a paler one up to `behind`."""
    title = Markup("<title>{}</title>").format(label) if label else Markup()
    parts = [Markup('<rect class="fill-track" width="100" height="10" rx="2"/>')]
    if behind is not None:
        parts.append(Markup('<rect class="fill-dropped" width="{:.2f}" height="10" rx="1"/>').format(_percent(behind)))
    parts.append(Markup('<rect class="fill-{}" width="{:.2f}" height="10" rx="1"/>').format(kind, _percent(share)))
    start = Markup('<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" focusable="false">')
    return start + title + Markup("").join(parts) + Markup("</svg>")


def _percent(share: float) -> float:
    return 100 * min(1.0, max(0.0, share))


def _bar(each: Bin, x: Scale, y: Scale, *, has_verdict: bool) -> Markup:
    left, right = x(each.low), x(each.high)
    width = max(0.5, right - left - 1)
    span = f"{_short(each.low)} to {_short(each.high)}: {each.num_rows:,} rows"
    if not has_verdict:
        return _rect("plain", left, y(each.num_rows), width, y(0) - y(each.num_rows), span)
    title = f"{span}, {each.num_kept:,} kept"
    dropped = _rect("dropped", left, y(each.num_rows), width, y(each.num_kept) - y(each.num_rows), title)
    kept = _rect("kept", left, y(each.num_kept), width, y(0) - y(each.num_kept), title)
    return (dropped if each.num_rows > each.num_kept else Markup()) + (kept if each.num_kept else Markup())


def _thresholds(thresholds: Sequence[Line], x: Scale) -> list[Markup]:
    """Return the lines and their words; where two words would overlap, the later one goes a line lower."""
    parts = []
    ends = [-math.inf, -math.inf, -math.inf]
    for each in sorted(thresholds, key=lambda line: line.value):
        place = x(each.value)
        words = each.label if len(each.label) <= 28 else f"{each.label[:25]}..."
        half = len(words) * _LETTER / 2
        middle = min(max(place, _LEFT + half), _WIDTH - _RIGHT - half)
        level = next((number for number, end in enumerate(ends) if middle - half > end + 4), len(ends) - 1)
        ends[level] = middle + half
        top = 12 + 13 * level
        parts += [
            Markup(
                '<line class="threshold" x1="{0:.1f}" y1="{1}" x2="{0:.1f}" y2="{2}"><title>{3}</title></line>'
            ).format(place, top + 4, _HEIGHT - _BOTTOM, f"{each.label}: {each.value:.6g}"),
            Markup('<text class="threshold-label" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                middle, top, words
            ),
        ]
    return parts


def _count_axis(top: int, y: Scale) -> Markup:
    parts = Markup()
    for tick in _ticks(0, top):
        if 0 < tick <= top:
            parts += _line("grid", _LEFT, y(tick), _WIDTH - _RIGHT, y(tick)) + _text(
                _LEFT - 6, y(tick) + 4, _short(tick)
            )
    return parts


def _svg(width: int, height: int, title: str, parts: Sequence[Markup]) -> Markup:
    start = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(width, height, title)
    return start + Markup("").join(parts) + Markup("</svg>")


def _rect(kind: str, x: float, y: float, width: float, height: float, title: str) -> Markup:
    return Markup(
        '<rect class="fill-{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>'
    ).format(kind, x, y, width, max(0.0, height), title)


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x1, y1, x2, y2)


def _text(x: float, y: float, words: str, *, anchor: str = "end") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, words)


def _ticks(low: float, high: float) -> list[float]:
    """Return about four round values from `low` to `high`, at steps of 1, 2 or 5 times a power of ten."""
    spread = (high - low) or abs(high) or 1.0
    rough = spread / _NUM_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)] or [low]


def _log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten between `low` and `high`, and their halves and fifths where these are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 3 else (1,)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    found = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
    return found[:: max(1, len(found) // 7)] or [low]


def _short(number: float) -> str:
    """Return a number for an axis: 12k, 3.4M, 0.25."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(number) >= limit:
            return f"{number / (1e3 if unit == 'k' else limit):.4g}{unit}"
    return f"{number:.4g}"
