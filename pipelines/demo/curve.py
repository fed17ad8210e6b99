"""The curve of a score against mismatched captions, as a small picture: precision over recall at every share dropped."""

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from pipelines.demo.compare import CurvePoint

SIDE = 320
_MARGIN = 44
_PAPER, _INK, _LINE, _CURVE = (255, 255, 255), (20, 20, 20), (220, 220, 220), (200, 60, 40)
_TICKS = 5


def draw_curve(points: Sequence[CurvePoint]) -> bytes:
    """Return the curve as PNG; every point is what dropping one more twentieth of the pairs gives, from the left on."""
    picture = Image.new("RGB", (SIDE + 2 * _MARGIN, SIDE + 2 * _MARGIN), _PAPER)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    for tick in range(_TICKS + 1):
        share = tick / _TICKS
        pen.line((place(share, 0), place(share, 1)), fill=_LINE)
        pen.line((place(0, share), place(1, share)), fill=_LINE)
        pen.text((place(share, 0)[0], place(0, 0)[1] + 6), f"{share:.1f}", fill=_INK, font=font, anchor="ma")
        pen.text((_MARGIN - 6, place(0, share)[1]), f"{share:.1f}", fill=_INK, font=font, anchor="rm")
    corners = [place(point.recall, point.precision) for point in points]
    if len(corners) > 1:
        pen.line(corners, fill=_CURVE, width=2)
    for x, y in corners:
        pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=_CURVE)
    middle = _MARGIN + SIDE / 2
    pen.text((middle, 8), "mismatched captions by score", fill=_INK, font=font, anchor="ma")
    pen.text((middle, SIDE + 2 * _MARGIN - 16), "recall", fill=_INK, font=font, anchor="ma")
    pen.text((4, 24), "precision", fill=_INK, font=font)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def place(recall: float, precision: float) -> tuple[float, float]:
    """Return where a point of the curve lies, pixels from the left and from the top."""
    return _MARGIN + recall * SIDE, _MARGIN + (1 - precision) * SIDE
