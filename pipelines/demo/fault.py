"""Spoils pictures: the bytes of every planted fault that lies in the file rather than in its caption."""

import io
import random
import textwrap

from PIL import Image, ImageDraw, ImageEnhance, ImageFont

BROKEN_KINDS = ("truncated", "html", "empty", "corrupt")
_HTML = """<!doctype html>
<html><head><title>Not found</title></head><body><h1>This picture has moved</h1><p>Please log in to see it.</p></body></html>
"""


def encode(image: Image.Image, quality: int = 90) -> bytes:
    """Return the picture as JPEG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def copy_nearly(image: Image.Image, random_source: random.Random) -> bytes:
    """Return the picture as another site would have it: scaled, cropped at the edge, brighter or darker, encoded again."""
    edit = random_source.choice(("encode", "scale", "crop", "brightness"))
    if edit == "scale":
        share = random_source.uniform(0.7, 0.95)
        image = image.resize((round(image.width * share), round(image.height * share)), Image.Resampling.BICUBIC)
    elif edit == "crop":
        edge = max(2, round(min(image.size) * random_source.uniform(0.015, 0.04)))
        image = image.crop((edge, edge, image.width - edge, image.height - edge))
    elif edit == "brightness":
        image = ImageEnhance.Brightness(image).enhance(random_source.choice((0.88, 0.92, 1.08, 1.12)))
    return encode(image, random_source.randrange(55, 78))


def paint_text(image: Image.Image, text: str) -> Image.Image:
    """Return the picture with `text` written over it in large letters on a pale strip."""
    painted = image.copy()
    pen = ImageDraw.Draw(painted)
    size = max(11, painted.width // 11)
    font = ImageFont.load_default(size)
    lines = textwrap.wrap(text, width=max(8, round(painted.width / (size * 0.52))))
    height = len(lines) * (size + 3)
    top = max(0, (painted.height - height) // 2)
    pen.rectangle((0, top - 4, painted.width, top + height + 4), fill=(250, 250, 244))
    for index, line in enumerate(lines):
        pen.text((painted.width // 2, top + index * (size + 3)), line, fill=(20, 20, 20), font=font, anchor="ma")
    return painted


def shrink(image: Image.Image, random_source: random.Random) -> bytes:
    """Return the picture as a thumbnail of 12 to 40 pixels."""
    side = random_source.randrange(12, 41)
    return encode(image.resize((side, side), Image.Resampling.BICUBIC))


def stretch(image: Image.Image, random_source: random.Random) -> bytes:
    """Return the picture pulled to a banner, 7 to 12 times as long as it is wide; every third one stands upright."""
    short = random_source.randrange(70, 100)
    long = round(short * random_source.uniform(7, 12))
    size = (short, long) if random_source.random() < 0.33 else (long, short)
    return encode(image.resize(size, Image.Resampling.BICUBIC), 80)


def break_file(data: bytes, kind: str, random_source: random.Random) -> bytes:
    """Return what a server sends in place of a good JPEG; `kind` is one of BROKEN_KINDS."""
    if kind == "truncated":
        return data[: round(len(data) * random_source.uniform(0.3, 0.8))]
    if kind == "html":
        return _HTML.encode()
    if kind == "empty":
        return b""
    # Noise in the middle of the coded pixels: headers and the end mark stay, so the file looks whole from outside.
    start = round(len(data) * random_source.uniform(0.35, 0.5))
    length = max(60, len(data) // 8)
    return data[:start] + random_source.randbytes(length) + data[start + length :]
