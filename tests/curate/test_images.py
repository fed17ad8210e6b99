"""Every kind of picture comes out right, and nothing but ImageError comes out of bytes that are none."""

import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from curate import images, jpeg
from curate.images import ImageError, decode, encode, pixels, plan_size, probe, resize, resize_to, to_column
from curate.operator import IMAGE_TYPE

DATA = Path(os.environ.get("WINNOW_DATA", Path(__file__).parents[3] / "shared" / "data"))
# Formats that the web does not show in <img>, which a reference decoder reads and we do not.
REFUSED_FORMATS = {"ICO", "TGA"}
# The reference paints over damage in the middle of these files.
DAMAGED = {"hopper_bad_exif.jpg"}
needs_data = pytest.mark.skipif(
    not (DATA / "hostile.jsonl").exists(), reason="the shared data folder is not here (WINNOW_DATA)"
)


def photo(height: int = 120, width: int = 160, seed: int = 0) -> np.ndarray:
    """A smooth picture with an upper left corner that is unlike the others."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    rgb = np.stack([80 + 60 * np.sin(x / 17 + seed), 90 + 50 * np.cos(y / 13), 100 + 40 * np.sin((x + y) / 23)], -1)
    rgb[: height // 3, : width // 3] = (230, 20, 20)
    return rgb.astype(np.uint8)


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("format", "options", "tolerance"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}, 2),
        ("JPEG", {"quality": 95, "progressive": True}, 2),
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 3),
        ("AVIF", {"quality": 95}, 3),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("JPEG2000", {}, 0),
        ("PPM", {}, 0),
    ],
)
def test_formats(format: str, options: dict[str, object], tolerance: int) -> None:
    rgb = photo()
    data = saved(Image.fromarray(rgb), format, **options)
    decoded = decode(data)
    assert decoded.shape == rgb.shape
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    assert np.abs(decoded.astype(int) - rgb).mean() <= tolerance  # a lossy format blurs the colour of hard edges
    assert (probe(data).width, probe(data).height) == (160, 120)


def test_alpha_lies_over_white() -> None:
    rgba = np.zeros((10, 10, 4), dtype=np.uint8)
    rgba[:5] = (0, 0, 0, 128)
    rgba[5:] = (200, 10, 10, 0)
    for format, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        decoded = decode(saved(Image.fromarray(rgba), format, **options))
        assert np.abs(decoded[0, 0].astype(int) - 127).max() <= 1
        assert (decoded[9, 9] == 255).all()


def test_transparent_palette_and_greyscale() -> None:
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((0, 0), 1)
    assert (decode(saved(palette, "GIF"))[1, 1] == (10, 20, 30)).all()
    transparent = decode(saved(palette, "GIF", transparency=0))
    assert (transparent[1, 1] == 255).all()
    assert (transparent[0, 0] == (200, 100, 50)).all()
    grey = decode(saved(Image.new("L", (4, 4), 77), "PNG"))
    assert grey.shape == (4, 4, 3)
    assert (grey == 77).all()
    assert (decode(saved(Image.new("LA", (4, 4), (0, 0)), "PNG")) == 255).all()
    assert (decode(saved(Image.new("1", (4, 4), 1), "PNG")) == 255).all()


def test_sixteen_bits_are_scaled() -> None:
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    for format in ("PNG", "TIFF"):
        assert decode(saved(Image.fromarray(values), format))[0, :, 0].tolist() == [0, 100, 255]


def test_float_and_32_bit_tiff_are_scaled_by_their_values() -> None:
    unit = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    assert decode(saved(Image.fromarray(unit), "TIFF"))[0, :, 0].tolist() == [0, 128, 255]
    bright = np.array([[0.0, np.nan, 1000.0]], dtype=np.float32)
    assert decode(saved(Image.fromarray(bright), "TIFF"))[0, :, 0].tolist()[:2] == [0, 0]


def test_cmyk_is_inverted_as_adobe_stores_it() -> None:
    rgb = photo()
    data = saved(Image.fromarray(rgb).convert("CMYK"), "JPEG", quality=98, subsampling=0)
    assert np.abs(decode(data).astype(int) - rgb).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, format: str) -> None:
    image = Image.fromarray(photo())
    exif = image.getexif()
    exif[0x0112] = orientation
    data = saved(image, format, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    decoded = decode(data)
    assert decoded.shape == expected.shape
    assert np.abs(decoded.astype(int) - expected).max() <= 2
    if format == "JPEG":
        assert jpeg.read_orientation(data) == orientation
        assert probe(data).width == 160  # as stored


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    for format, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        data = saved(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert (decode(data)[4, 4] == (255, 0, 0)).all()


def test_content_decides_not_the_name() -> None:
    data = saved(Image.fromarray(photo()), "PNG")
    assert probe(data).format == "png"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8\xff",
        b"<html><img></html>",
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        b"8BPS\0\1" + b"\0" * 40,
        b"RIFF\x10\0\0\0WEBPVP8 ",
        b"GIF89a",
        b"\x89PNG\r\n\x1a\n",
        saved(Image.new("RGBA", (16, 16)), "ICO"),
    ],
)
def test_what_is_no_picture_is_an_image_error(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"^Image decoding error"):
        decode(data)


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("GIF", {}),
        ("WEBP", {}),
        ("AVIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
    ],
)
def test_truncated_files_are_errors(format: str, options: dict[str, object]) -> None:
    data = saved(Image.fromarray(photo()), format, **options)
    for part in (0.1, 0.5, 0.9):
        with pytest.raises(ImageError):
            decode(data[: int(len(data) * part)])


def test_damage_in_the_middle_of_a_jpeg_is_an_error() -> None:
    data = bytearray(saved(Image.fromarray(photo(400, 400)), "JPEG", quality=90))
    middle = len(data) // 2
    data[middle : middle + 40] = b"\0" * 40
    with pytest.raises(ImageError, match="corrupt JPEG data"):
        decode(bytes(data))
    with pytest.raises(ImageError):  # at a reduced scale too
        decode(bytes(data), min_side=10)


def test_damage_that_only_a_png_checksum_shows_is_an_error() -> None:
    data = bytearray(saved(Image.fromarray(photo()), "PNG"))
    data[data.index(b"IDAT") + 200] ^= 0x10
    with pytest.raises(ImageError, match="corrupt PNG"):
        decode(bytes(data))


def test_junk_in_a_jpeg_header_is_no_damage() -> None:
    data = saved(Image.fromarray(photo()), "JPEG")
    segments = list(jpeg.read_segments(data))
    junk = data[: segments[0].end] + b"\0\x42junk" + data[segments[0].end :]
    assert (decode(junk) == decode(data)).all()


def png_bomb(side: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def test_the_pixel_limit_comes_before_the_decoder() -> None:
    for side in (12_000, 20_000, 60_000):
        with pytest.raises(ImageError, match=r"more than 89478485 pixels|unreadable header"):
            decode(png_bomb(side))
    webp = b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\x3f\0" * 2 + b"\0" * 40
    with pytest.raises(ImageError, match="more than"):
        decode(webp)
    with pytest.raises(ImageError, match="more than 100 pixels"):
        decode(saved(Image.new("RGB", (11, 10)), "JPEG"), max_pixels=100)


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = saved(Image.fromarray(photo()), "JPEG", progressive=True)
    scan = data.index(b"\xff\xda")
    with pytest.raises(ImageError, match="scans"):
        decode(data[:-2] + data[scan : scan + 20] * 600 + data[-2:])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "TIFF", "JPEG2000", "PPM"]), st.data())
def test_flipped_bytes_never_crash(format: str, draw: st.DataObject) -> None:
    data = bytearray(saved(Image.fromarray(photo(40, 50)), format))
    for _ in range(draw.draw(st.integers(1, 8))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    cut = draw.draw(st.integers(0, len(data)))
    for candidate in (bytes(data), bytes(data[:cut])):
        try:
            decoded = decode(candidate, max_pixels=1_000_000)
        except ImageError as error:
            assert str(error).startswith("Image decoding error")
        else:
            assert decoded.ndim == 3
            assert decoded.shape[2] == 3


@needs_data
def test_the_hostile_collection() -> None:
    wrong = []
    for row in map(json.loads, (DATA / "hostile.jsonl").read_text().splitlines()):
        data = (DATA / row["image"]).read_bytes()
        expected = row["ok"] and row.get("format") not in REFUSED_FORMATS and Path(row["image"]).name not in DAMAGED
        try:
            decode(data)
            found = True
        except ImageError:
            found = False
        if found != expected:
            wrong.append((row["image"], expected, found))
    assert wrong == []


@needs_data
def test_real_files_decode_as_a_reference_does() -> None:
    for path in sorted([*(DATA / "originals").glob("*"), *(DATA / "copies" / "modes").glob("*.*")]):
        if path.suffix in {".md"}:
            continue
        image = Image.open(path)
        if image.mode in {"RGBA", "LA", "PA"}:
            continue
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
        decoded = decode(path.read_bytes())
        assert decoded.shape == expected.shape, path
        assert np.abs(decoded - expected).max() <= 2, path


def test_reduced_decode_keeps_the_side_asked_for() -> None:
    data = saved(Image.fromarray(photo(600, 900)), "JPEG")
    assert decode(data, min_side=300).shape == (300, 450, 3)
    assert decode(data, min_side=301).shape == (600, 900, 3)
    assert decode(data, min_side=1).shape == (75, 113, 3)
    png = saved(Image.fromarray(photo(600, 900)), "PNG")
    assert decode(png, min_side=10).shape == (600, 900, 3)


@pytest.mark.parametrize("mode", images.RESIZE_MODES)
@pytest.mark.parametrize("only_if_bigger", [False, True])
@pytest.mark.parametrize("size", [64, 101])
def test_resize_gives_img2datasets_geometry(mode: images.ResizeMode, only_if_bigger: bool, size: int) -> None:
    from img2dataset.resizer import Resizer

    reference = Resizer(size, mode, only_if_bigger, encode_format="png", encode_quality=1)
    for height, width in [(50, 80), (300, 101), (101, 101), (7, 333), (240, 181), (101, 40)]:
        rgb = photo(height, width)
        stored, ref_width, ref_height, *_ = reference(io.BytesIO(saved(Image.fromarray(rgb), "PNG")))
        resized = resize(rgb, size, mode, only_if_bigger=only_if_bigger)
        assert resized.shape == (ref_height, ref_width, 3)
        assert np.abs(resized.astype(float) - decode(stored)).mean() < 4


def test_resize_of_a_reduced_decode_plans_by_the_original() -> None:
    data = saved(Image.fromarray(photo(601, 899)), "JPEG")
    reduced = decode(data, min_side=150)
    assert reduced.shape[:2] == (151, 225)
    resized = resize(reduced, 100, "keep_ratio", original=(601, 899))
    assert resized.shape[:2] == plan_size(601, 899, 100, "keep_ratio") == (100, 150)


def test_resize_refuses_to_explode() -> None:
    with pytest.raises(ImageError, match="image area too large"):
        resize(np.zeros((2, 60_000, 3), dtype=np.uint8), 256, "keep_ratio")


def test_resize_down_is_near_an_area_average() -> None:
    rgb = photo(300, 400)
    for height, width in [(150, 200), (100, 133), (187, 250), (75, 100), (200, 399)]:
        exact = np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BOX)).astype(float)
        assert np.abs(resize_to(rgb, height, width) - exact).mean() < 1.6
    checkers = (np.indices((400, 400)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, -1)
    assert np.abs(resize_to(checkers, 100, 100).astype(int) - 127).max() <= 2  # no aliasing


def test_resize_to_the_same_size_and_up() -> None:
    rgb = photo(40, 30)
    assert (resize_to(rgb, 40, 30) == rgb).all()
    assert resize_to(rgb, 80, 61).shape == (80, 61, 3)
    assert resize_to(rgb, 80, 10).shape == (80, 10, 3)
    assert resize_to(rgb, 1, 1).shape == (1, 1, 3)


def test_encode_round_trips() -> None:
    rgb = photo()
    for format, quality, tolerance in (("jpg", 95, 2), ("png", 6, 0), ("webp", 95, 3)):
        data = encode(rgb, format, quality)
        assert np.abs(decode(data).astype(int) - rgb).mean() <= tolerance
        assert encode(rgb, format, quality) == data
    with pytest.raises(ImageError, match="Image encoding error: 70000x1 as jpg"):
        encode(np.zeros((1, 70_000, 3), dtype=np.uint8), "jpg")


def test_columns_of_pictures_are_views() -> None:
    first, second = photo(5, 7), photo(3, 2)
    column = to_column([first, None, second])
    assert column.type == pa.struct(list(IMAGE_TYPE))
    assert column.null_count == 1
    for chunked in (column, pa.chunked_array([column, column.slice(1)])):
        found = pixels(chunked)
        assert [None if f is None else f.shape for f in found[:3]] == [(5, 7, 3), None, (3, 2, 3)]
        assert (found[0] == first).all()
        assert not found[0].flags.writeable
    assert (pixels(column.slice(2))[0] == second).all()
    assert pixels(to_column([])) == []
    assert pixels(to_column([None])) == [None]
