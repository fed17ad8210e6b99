import xml.etree.ElementTree as ElementTree

import pytest

from pipelines.dot_plot import Panel, draw_dots, make_axis

SVG = "{http://www.w3.org/2000/svg}"


def test_every_value_is_a_dot_at_its_place() -> None:
    panels = [
        Panel(title="acc1 <of> a & b", rows={"raw": [0.2, 0.4], "curated": [0.6, 0.5]}),
        Panel(title="recall", rows={"raw": [0.1], "curated": [0.1]}),
    ]
    text = draw_dots(panels)
    assert text == draw_dots(panels)
    root = ElementTree.fromstring(text)
    dots = [float(dot.attrib["cx"]) for dot in root.iter(f"{SVG}circle")]
    assert len(dots) == 6
    # 0.2 and 0.6 are the ends of the first axis.
    assert dots[0] < dots[1] < dots[3] < dots[2]
    assert dots[1] - dots[0] == pytest.approx((dots[2] - dots[0]) / 2, abs=0.2)
    titles = [node.text for node in root.iter(f"{SVG}text")]
    assert "acc1 <of> a & b" in titles
    assert {"0.2", "0.3", "0.4", "0.5", "0.6"} <= set(titles)
    assert float(root.attrib["height"]) > max(float(dot.attrib["cy"]) for dot in root.iter(f"{SVG}circle"))


@pytest.mark.parametrize(
    ("values", "axis"),
    [
        ([0.0, 1.0], (0.0, 0.5, 1.0)),
        ([0.31, 0.37], (0.3, 0.02, 0.38)),
        ([0.5], (0.4, 0.2, 0.6)),
        ([0.0], (0.0, 0.5, 0.5)),
        ([-3.0, 5.0], (-4.0, 2.0, 6.0)),
    ],
)
def test_axes_have_round_ends(values: list[float], axis: tuple[float, float, float]) -> None:
    assert make_axis(values) == pytest.approx(axis)
    assert axis[0] <= min(values) <= max(values) <= axis[2]
