"""Charts are well-formed, escape what they are told, and place marks where the numbers say."""

import re
from xml.etree import ElementTree

import pytest

from pipelines.page.chart import Bin, Line, Series, bar, curves, histogram

HOSTILE = '"><script>alert(1)</script>'
BINS = [Bin(low=0.0, high=1.0, num_rows=8, num_kept=2), Bin(low=1.0, high=2.0, num_rows=4, num_kept=4)]


def parse(chart: str) -> ElementTree.Element:
    return ElementTree.fromstring(str(chart).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def marks(chart: str, tag: str, kind: str = "") -> list[ElementTree.Element]:
    found = parse(chart).iter(f"{{http://www.w3.org/2000/svg}}{tag}")
    return [mark for mark in found if not kind or kind in mark.get("class", "").split()]


def draw(
    bins: list[Bin] = BINS, lines: tuple[Line, ...] = (), *, is_log: bool = False, has_verdict: bool = True
) -> str:
    return histogram(bins, lines, title="Histogram of x", is_log=is_log, has_verdict=has_verdict)


def test_bars_stack_the_kept_below_the_dropped() -> None:
    dropped, kept = marks(draw(), "rect", "fill-dropped"), marks(draw(), "rect", "fill-kept")
    assert (len(dropped), len(kept)) == (1, 2)
    heights = [float(mark.get("height", "")) for mark in (*dropped, *kept)]
    assert heights[0] == pytest.approx(3 * heights[1], abs=0.2)
    assert heights[2] == pytest.approx(2 * heights[1], abs=0.2)
    assert dropped[0][0].text == "0 to 1: 8 rows, 2 kept"
    assert float(dropped[0].get("y", "")) + heights[0] == pytest.approx(float(kept[0].get("y", "")), abs=0.2)


def test_without_a_selection_bars_have_one_colour() -> None:
    shown = draw(has_verdict=False)
    assert len(marks(shown, "rect", "fill-plain")) == 2
    assert not marks(shown, "rect", "fill-kept")
    assert "kept" not in shown


def test_a_threshold_lies_where_its_value_does() -> None:
    shown = draw(lines=(Line(value=1.0, label="wide enough"),))
    (line,) = marks(shown, "line", "threshold")
    first, second = (float(mark.get("x", "")) for mark in marks(shown, "rect", "fill-kept"))
    assert float(line.get("x1", "")) == pytest.approx(second, abs=0.1)
    assert first < second
    assert [mark.text for mark in marks(shown, "text", "threshold-label")] == ["wide enough"]


def test_words_of_near_thresholds_do_not_overlap() -> None:
    shown = draw(lines=(Line(value=1.0, label="first of the rules"), Line(value=1.05, label="second of the rules")))
    tops = {mark.get("y") for mark in marks(shown, "text", "threshold-label")}
    assert len(tops) == 2


def test_a_logarithmic_axis_gives_each_power_the_same_room() -> None:
    bins = [Bin(low=10.0**power, high=10.0 ** (power + 1), num_rows=1, num_kept=1) for power in range(4)]
    widths = [float(mark.get("width", "")) for mark in marks(draw(bins, is_log=True), "rect", "fill-kept")]
    assert max(widths) - min(widths) < 0.2


def test_texts_are_escaped() -> None:
    for shown in (
        histogram(BINS, [Line(value=1.0, label=HOSTILE)], title=HOSTILE, is_log=False, has_verdict=True),
        curves([Series(name=HOSTILE, points=[(0, 1), (1, 2)])], title=HOSTILE, x_title=HOSTILE),
        bar(0.5, label=HOSTILE),
    ):
        assert "<script" not in shown
        assert parse(shown) is not None
        assert not re.search(r"\sstyle=|\son\w+=", shown)


def test_curves_draw_a_line_per_series_and_tell_where_it_ends() -> None:
    shown = curves(
        [Series(name="raw", points=[(0, 3.0), (100, 1.0)]), Series(name="curated", points=[(0, 3.0), (100, 0.5)])],
        title="Loss",
        x_title="samples seen",
    )
    lines = [mark.get("points", "").split() for mark in marks(shown, "polyline")]
    ends = [tuple(map(float, points[-1].split(","))) for points in lines]
    assert ends[0][0] == ends[1][0]
    assert ends[0][1] < ends[1][1]  # the lower loss lies lower, and y grows downwards
    assert "curated: 0.5 after 100" in shown


@pytest.mark.parametrize("points", [[(0.0, 1.0)], [(5.0, 0.0)], [(1.0, 2.0), (2.0, 2.0)], [(0.0, -1e9), (1e12, 1e9)]])
def test_curves_of_any_range_are_finite(points: list[tuple[float, float]]) -> None:
    shown = curves([Series(name="a", points=points)], title="a", x_title="x")
    assert "nan" not in shown
    assert "inf" not in shown


@pytest.mark.parametrize(("share", "width"), [(-1.0, "0.00"), (0.25, "25.00"), (7.0, "100.00")])
def test_a_bar_stays_in_its_cell(share: float, width: str) -> None:
    assert f'width="{width}"' in bar(share, kind="kept")
