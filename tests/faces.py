"""A drawn face that a face detector takes for one."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

_GROUND, _HAIR, _SKIN, _SHADE = (90, 110, 140), (60, 40, 30), (224, 180, 150), (205, 155, 125)
_WHITE, _BROWN, _LIPS = (250, 250, 250), (40, 30, 20), (180, 80, 80)


def draw_face(x: float, y: float, size: float, *, canvas: tuple[int, int] = (320, 240)) -> np.ndarray:
    """Return a picture (height x width x 3) with one face, its middle at x, y."""
    picture = Image.new("RGB", canvas, _GROUND)
    pen = ImageDraw.Draw(picture)
    half = size / 2

    def ellipse(left: float, top: float, right: float, bottom: float, colour: tuple[int, int, int]) -> None:
        pen.ellipse((x + left * half, y + top * half, x + right * half, y + bottom * half), fill=colour)

    ellipse(-0.75, -1, 0.75, 1, _HAIR)
    ellipse(-0.62, -0.75, 0.62, 0.95, _SKIN)
    for side in (-1, 1):
        eye = side * 0.27
        ellipse(eye - 0.14, -0.17, eye + 0.14, -0.03, _WHITE)
        ellipse(eye - 0.06, -0.16, eye + 0.06, -0.04, _BROWN)
        brow = (x + (eye - 0.17) * half, y - 0.35 * half, x + (eye + 0.17) * half, y - 0.05 * half)
        pen.arc(brow, 200, 340, fill=_HAIR, width=max(1, round(0.06 * half)))
    pen.polygon([(x, y), (x - 0.1 * half, y + 0.28 * half), (x + 0.1 * half, y + 0.28 * half)], fill=_SHADE)
    ellipse(-0.25, 0.45, 0.25, 0.6, _LIPS)
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(size / 80)))
