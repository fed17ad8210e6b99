"""The curve of a score, as a picture."""

import io

import numpy as np
from PIL import Image

from pipelines.demo.compare import CurvePoint
from pipelines.demo.curve import draw_curve, place


def test_the_points_lie_where_they_should() -> None:
    points = [
        CurvePoint(dropped_share=0.1, precision=0.9, recall=0.3),
        CurvePoint(dropped_share=0.5, precision=0.4, recall=0.95),
    ]
    pixels = np.asarray(Image.open(io.BytesIO(draw_curve(points))).convert("RGB")).astype(int)

    def is_red(recall: float, precision: float) -> bool:
        x, y = place(recall, precision)
        red, green, _ = pixels[round(y), round(x)]
        return bool(red > green + 80)

    assert is_red(0.3, 0.9) and is_red(0.95, 0.4)
    assert not is_red(0.3, 0.4)
    # Above and to the right is better.
    assert place(1, 1)[0] > place(0, 1)[0] and place(0, 1)[1] < place(0, 0)[1]


def test_no_point_is_an_empty_picture() -> None:
    assert Image.open(io.BytesIO(draw_curve([]))).size[0] > 300
