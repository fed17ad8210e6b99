"""Paints a scene with Pillow: textured background, then every object at twice its size, scaled down once so that edges are smooth."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from pipelines.demo.scenes import Group, Scene

RGB = tuple[int, int, int]
Point = tuple[float, float]

SUPERSAMPLING = 2
PALETTE: dict[str, RGB] = {
    "red": (214, 40, 40),
    "orange": (247, 140, 30),
    "yellow": (250, 218, 60),
    "green": (46, 160, 67),
    "blue": (38, 92, 214),
    "purple": (128, 52, 168),
    "pink": (250, 140, 190),
    "brown": (124, 76, 40),
    "black": (24, 24, 28),
    "white": (248, 248, 248),
}
# Where, in units of the object's half-size from its middle, the object's own colour is certain to show.
BODY_POINTS: dict[str, Point] = {
    "circle": (0.0, 0.0),
    "square": (0.0, 0.0),
    "triangle": (0.0, 0.3),
    "star": (0.0, 0.0),
    "heart": (0.0, 0.0),
    "moon": (-0.4, 0.0),
    "house": (0.0, 0.12),
    "tree": (0.0, -0.35),
    "car": (0.0, 0.2),
    "fish": (-0.1, 0.2),
    "flower": (0.0, -0.6),
    "cup": (-0.15, 0.1),
}


@dataclass(frozen=True, kw_only=True)
class Placed:
    """One drawn object in pixels of the finished picture: its middle and half its size."""

    object: str
    colour: str
    x: float
    y: float
    radius: float

    @property
    def body_point(self) -> tuple[int, int]:
        """The pixel that certainly has the object's colour."""
        dx, dy = BODY_POINTS[self.object]
        return round(self.x + dx * self.radius), round(self.y + dy * self.radius)


def draw_scene(scene: Scene) -> tuple[Image.Image, list[Placed]]:
    """Return the picture (130 to 211 pixels a side) and where each object lies, in drawing order."""
    random_source = random.Random(scene.seed)
    # Nearly square, because evaluation crops the middle square and a caption must stay true after that.
    width = random_source.randrange(144, 193, 8)
    height = round(width * random_source.uniform(0.9, 1.1))
    placed = _place(scene, width, height, random_source)
    canvas = draw_background(scene.background, width, height, scene.seed)
    canvas = canvas.resize((width * SUPERSAMPLING, height * SUPERSAMPLING), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(canvas)
    for item in placed:
        tone = _jitter(PALETTE[item.colour], random_source, 10)
        scale = SUPERSAMPLING
        PAINTERS[item.object](_Brush(pen, item.x * scale, item.y * scale, item.radius * scale, tone))
    return canvas.reduce(SUPERSAMPLING), placed


def draw_background(kind: str, width: int, height: int, seed: int) -> Image.Image:
    """Return an empty background: pale enough that every object colour stands out, with noise so that no two files are alike."""
    noise = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    base = np.float32(noise.uniform(-14, 14, 3))
    low, high, amount = _BACKGROUND_TONES[kind]
    if kind == "striped":
        mix = ((x + y * noise.uniform(-0.6, 0.6)) // noise.integers(7, 14)) % 2
    elif kind == "dotted":
        step = float(noise.integers(14, 24))
        mix = np.float32(((x % step - step / 2) ** 2 + (y % step - step / 2) ** 2) < (step / 4) ** 2)
    elif kind == "sea":
        mix = 0.5 + 0.5 * np.sin(y / noise.uniform(3, 6) + np.sin(x / 9) * 1.5)
    elif kind == "night":
        mix = np.float32(noise.random((height, width)) > 0.985)
    elif kind == "plain":
        mix = np.zeros((height, width), np.float32)
    else:
        mix = (x * noise.uniform(-1, 1) + y) / (width + height) + 0.25
    mix = np.clip(mix, 0, 1)[..., None]
    pixels = np.array(low, np.float32) * (1 - mix) + np.array(high, np.float32) * mix + base
    pixels += amount * noise.standard_normal((height, width, 1), np.float32)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


# Tone at either end of the pattern, and the standard deviation of the noise in grey levels.
_BACKGROUND_TONES: dict[str, tuple[RGB, RGB, float]] = {
    "plain": ((212, 212, 214), (212, 212, 214), 3.0),
    "gradient": ((236, 226, 214), (176, 196, 214), 4.0),
    "striped": ((226, 214, 226), (188, 190, 206), 4.0),
    "dotted": ((224, 226, 210), (176, 186, 196), 4.0),
    "grass": ((150, 190, 128), (120, 168, 110), 14.0),
    "sand": ((226, 206, 160), (206, 186, 140), 12.0),
    "sea": ((136, 190, 208), (108, 164, 196), 5.0),
    "night": ((58, 60, 84), (190, 190, 180), 5.0),
}


def _place(scene: Scene, width: int, height: int, random_source: random.Random) -> list[Placed]:
    if not scene.relation:
        return _fill((0, 0, width, height), scene.groups[0], random_source)
    first, second = scene.groups
    if scene.relation == "left of":
        split = width * random_source.uniform(0.45, 0.55)
        cells = ((0.0, 0.0, split, float(height)), (split, 0.0, float(width), float(height)))
    elif scene.relation == "above":
        split = height * random_source.uniform(0.45, 0.55)
        cells = ((0.0, 0.0, float(width), split), (0.0, split, float(width), float(height)))
    else:
        outer = _fill((0, 0, width, height), second, random_source)[0]
        return [outer, _nest(first, outer)]
    return [*_fill(cells[0], first, random_source), *_fill(cells[1], second, random_source)]


def _nest(group: Group, outer: Placed) -> Placed:
    dx, dy = {"heart": (0.0, -0.05), "house": (0.0, 0.3)}.get(outer.object, (0.0, 0.0))
    share = {"house": 0.4, "heart": 0.42}.get(outer.object, 0.48)
    return Placed(
        object=group.object,
        colour=group.colour,
        x=outer.x + dx * outer.radius,
        y=outer.y + dy * outer.radius,
        radius=outer.radius * share,
    )


_ARRANGEMENTS: dict[int, tuple[Sequence[Point], ...]] = {
    1: (((0.5, 0.5),),),
    2: (((0.27, 0.5), (0.73, 0.5)), ((0.5, 0.27), (0.5, 0.73)), ((0.28, 0.3), (0.72, 0.7))),
    3: (((0.5, 0.27), (0.27, 0.73), (0.73, 0.73)), ((0.27, 0.27), (0.73, 0.27), (0.5, 0.73))),
    4: (((0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)),),
}
_SHARES = {"small": 0.62, "": 0.8, "large": 0.97}


def _fill(cell: tuple[float, float, float, float], group: Group, random_source: random.Random) -> list[Placed]:
    left, top, right, bottom = cell
    side = min(right - left, bottom - top)
    # A group of several shares the room of one; a narrow cell lets two stand along its long side.
    points = list(random_source.choice(_ARRANGEMENTS[group.count]))
    if group.count == 2:
        points = [(0.27, 0.5), (0.73, 0.5)] if right - left > bottom - top else [(0.5, 0.27), (0.5, 0.73)]
    room = 0.46 if group.count == 1 else 0.23
    radius = side * room * _SHARES[group.size]
    slack = side * room - radius
    return [
        Placed(
            object=group.object,
            colour=group.colour,
            x=left + px * (right - left) + random_source.uniform(-1, 1) * slack,
            y=top + py * (bottom - top) + random_source.uniform(-1, 1) * slack,
            radius=radius,
        )
        for px, py in points
    ]


def _jitter(tone: RGB, random_source: random.Random, amount: int) -> RGB:
    red, green, blue = (min(255, max(0, value + random_source.randint(-amount, amount))) for value in tone)
    return red, green, blue


class _Brush:
    """Draws in units of the object's half-size around its middle, y downwards, with the object's outline."""

    def __init__(self, pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, tone: RGB) -> None:
        self.pen, self.x, self.y, self.radius, self.tone = pen, x, y, radius, tone
        self.dark: RGB = (tone[0] * 3 // 5, tone[1] * 3 // 5, tone[2] * 3 // 5)
        self.outline: RGB = (235, 235, 235) if sum(tone) < 150 else (30, 30, 34)
        self.width = max(1, round(radius * 0.06))

    def polygon(self, points: Sequence[Point], tone: RGB | None = None) -> None:
        moved = [(self.x + px * self.radius, self.y + py * self.radius) for px, py in points]
        self.pen.polygon(moved, fill=tone or self.tone, outline=self.outline, width=self.width)

    def ellipse(self, left: float, top: float, right: float, bottom: float, tone: RGB | None = None) -> None:
        self.pen.ellipse(
            self._box(left, top, right, bottom), fill=tone or self.tone, outline=self.outline, width=self.width
        )

    def rectangle(self, left: float, top: float, right: float, bottom: float, tone: RGB | None = None) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], tone)

    def ring(self, left: float, top: float, right: float, bottom: float) -> None:
        self.pen.ellipse(self._box(left, top, right, bottom), outline=self.tone, width=self.width * 3)

    def _box(self, left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
        x, y, r = self.x, self.y, self.radius
        return x + left * r, y + top * r, x + right * r, y + bottom * r


def _paint_circle(brush: _Brush) -> None:
    brush.ellipse(-1, -1, 1, 1)


def _paint_square(brush: _Brush) -> None:
    brush.rectangle(-0.88, -0.88, 0.88, 0.88)


def _paint_triangle(brush: _Brush) -> None:
    brush.polygon([(0, -0.95), (1, 0.8), (-1, 0.8)])


def _paint_star(brush: _Brush) -> None:
    angles = [math.pi * (index / 5 - 0.5) for index in range(10)]
    brush.polygon([(math.cos(a) * r, math.sin(a) * r) for a, r in zip(angles, (1.0, 0.42) * 5, strict=True)])


def _paint_heart(brush: _Brush) -> None:
    angles = [2 * math.pi * index / 40 for index in range(40)]
    brush.polygon([
        (math.sin(a) ** 3, -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16)
        for a in angles
    ])


def _paint_moon(brush: _Brush) -> None:
    outer = [math.pi * (0.5 + index / 20) for index in range(21)]
    inner = list(reversed(outer))
    points = [(math.cos(a) * 0.95 + 0.25, math.sin(a) * 0.98) for a in outer]
    points += [(math.cos(a) * 0.35 + 0.25, math.sin(a) * 0.98) for a in inner]
    brush.polygon(points)


def _paint_house(brush: _Brush) -> None:
    brush.rectangle(-0.75, -0.1, 0.75, 0.95)
    brush.polygon([(-1, -0.1), (0, -0.95), (1, -0.1)], brush.dark)
    brush.rectangle(-0.2, 0.4, 0.2, 0.95, brush.dark)


def _paint_tree(brush: _Brush) -> None:
    brush.rectangle(-0.14, 0.2, 0.14, 0.98, (98, 66, 38))
    brush.ellipse(-0.8, -0.3, 0.1, 0.5)
    brush.ellipse(-0.1, -0.3, 0.8, 0.5)
    brush.ellipse(-0.55, -0.98, 0.55, 0.3)


def _paint_car(brush: _Brush) -> None:
    brush.polygon([(-0.55, -0.05), (-0.35, -0.5), (0.35, -0.5), (0.6, -0.05)], brush.dark)
    brush.rectangle(-1, -0.08, 1, 0.42)
    for middle in (-0.55, 0.55):
        brush.ellipse(middle - 0.24, 0.2, middle + 0.24, 0.68, (45, 45, 48))


def _paint_fish(brush: _Brush) -> None:
    brush.polygon([(0.45, 0), (1, -0.5), (1, 0.5)])
    brush.ellipse(-1, -0.55, 0.65, 0.55)
    brush.ellipse(-0.72, -0.22, -0.5, 0, (250, 250, 250))


def _paint_flower(brush: _Brush) -> None:
    for index in range(6):
        angle = math.pi * (index / 3 - 0.5)
        x, y = math.cos(angle) * 0.6, math.sin(angle) * 0.6
        brush.ellipse(x - 0.36, y - 0.36, x + 0.36, y + 0.36)
    brush.ellipse(-0.3, -0.3, 0.3, 0.3, (244, 224, 130))


def _paint_cup(brush: _Brush) -> None:
    brush.ring(0.3, -0.35, 1, 0.45)
    brush.polygon([(-0.8, -0.7), (0.55, -0.7), (0.42, 0.8), (-0.66, 0.8)])


PAINTERS: dict[str, Callable[[_Brush], None]] = {
    "circle": _paint_circle,
    "square": _paint_square,
    "triangle": _paint_triangle,
    "star": _paint_star,
    "heart": _paint_heart,
    "moon": _paint_moon,
    "house": _paint_house,
    "tree": _paint_tree,
    "car": _paint_car,
    "fish": _paint_fish,
    "flower": _paint_flower,
    "cup": _paint_cup,
}
