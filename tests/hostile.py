"""Rows as the web has them at its worst: captions and pictures that something somewhere has choked on."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from curate.fetch.importing_rows import clean_text
from tests.pool import Row, draw, jpeg

MEGABYTE = 1 << 20


def captions() -> dict[str, str | None]:
    """Return captions by what is wrong with them."""
    return {
        "missing": None,
        "empty": "",
        "blank": " \t\n\u00a0\u3000",
        "one letter": "x",
        "a megabyte of one letter": "a" * MEGABYTE,
        "a megabyte of words": "black cat, red dog " * (MEGABYTE // 19),
        "a megabyte of signs": "!?(" * (MEGABYTE // 3),
        "emoji": "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f1e9\U0001f1ea",
        "right to left": "\u05ea\u05de\u05d5\u05e0\u05d4 \u0635\u0648\u0631\u0629 \u202eabc\u202c",
        "no spaces": "\u732b\u5728\u6c99\u53d1\u4e0a\u7761\u89c9",
        "control characters": "a cat\x01\x02\x1b[31m on\x7f a\x85 sofa\u2028",
        "nul": "a cat\x00 on a sofa",
        # What JSON's "\ud800" has become by the time it is in a pool.
        "lone surrogate": clean_text("a cat \ud800 on a sofa"),
        "combining": "e" + "\u0301" * 5_000,
        "markup": "<script>alert(1)</script> & ' OR 1=1 -- {label} %s \\p{L}",
        "numbers": "0" * 400 + " 1e999 -0 NaN",
        "private use": "\ue000\uffff\U0010ffff",
        "sound": "a brown dog chases a small cat",
    }


def pictures() -> dict[str, bytes]:
    """Return files by what is wrong with them; the last three cannot be read."""
    photo = draw((200, 30, 40), "circle", seed=1)
    deep = np.random.default_rng(0).integers(0, 1 << 16, (40, 50), dtype=np.uint16)
    whole = jpeg(photo)
    made: dict[str, Callable[[], bytes]] = {
        "1 x 1": lambda: jpeg(Image.new("RGB", (1, 1), (9, 99, 199))),
        "20,000 x 2": lambda: png(Image.new("RGB", (20_000, 2), (200, 100, 50))),
        "2 x 20,000": lambda: png(Image.new("RGB", (2, 20_000), (200, 100, 50))),
        "3 x 3": lambda: png(photo.resize((3, 3))),
        "black": lambda: jpeg(Image.new("RGB", (64, 48))),
        "white": lambda: jpeg(Image.new("RGB", (64, 48), (255, 255, 255))),
        "grey": lambda: jpeg(photo.convert("L")),
        "alpha": lambda: png(_with_alpha(photo)),
        "all transparent": lambda: png(Image.new("RGBA", (40, 40), (255, 0, 0, 0))),
        "palette": lambda: png(photo.quantize(16)),
        "one bit": lambda: png(photo.convert("1")),
        "16 bit": lambda: png(Image.fromarray(deep)),
        "cmyk": lambda: jpeg(photo.convert("CMYK")),
        "sound": lambda: whole,
        "truncated": lambda: whole[: len(whole) // 2],
        "header only": lambda: whole[:20],
        "no picture": lambda: b"<html>404</html>",
    }
    return {name: make() for name, make in made.items()}


def hostile_rows() -> list[Row]:
    """Return a row for each caption, each beside a picture, the failed download that a pool always has among them."""
    files = list(pictures().values())
    rows = [
        Row(url=f"https://example.org/{number}", caption=caption, image=files[number % len(files)])
        for number, caption in enumerate(captions().values())
    ]
    rows.append(
        Row(
            url="https://example.org/gone",
            caption="a picture that is gone",
            image=None,
            status="failed_to_download",
            error_message="HTTP Error 404: Not Found",
        )
    )
    # Copies of a hostile row, and sound ones, for what compares rows.
    rows += [
        Row(url=f"https://example.org/again/{row}", caption=rows[row].caption, image=rows[row].image)
        for row in (1, 7, 10)
    ]
    for number in range(3):
        picture = draw((40, 70, 190), "square", seed=number)
        rows.append(
            Row(
                url=f"https://example.org/sound/{number}", caption=f"a blue square number {number}", image=jpeg(picture)
            )
        )
    return rows


def png(picture: Image.Image) -> bytes:
    """Return the picture as a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _with_alpha(picture: Image.Image) -> Image.Image:
    clear = picture.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(picture.size))
    return clear
