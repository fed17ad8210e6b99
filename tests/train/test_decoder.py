import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.train.dataset_builder import draw_picture, encode_picture
from train.decoder import Decoder


def _center_box(height: int, width: int) -> tuple[int, int, int, int]:
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def _decode(data: bytes, size: int = 32) -> np.ndarray:
    out = np.empty((size, size, 3), dtype=np.uint8)
    Decoder().crop(data, _center_box, out)
    return out


def _reference(data: bytes, size: int = 32) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC, box=box))


@pytest.mark.parametrize(("width", "height"), [(40, 33), (64, 64), (130, 70), (400, 300), (1000, 1100), (20, 24)])
@pytest.mark.parametrize("format", ["jpeg", "png"])
def test_pictures_of_any_size_come_out_as_an_antialiased_resize_makes_them(
    width: int, height: int, format: str
) -> None:
    data = encode_picture(draw_picture(3, width=width, height=height), format)
    difference = _decode(data).astype(int) - _reference(data)
    assert 10 * np.log10(255**2 / max(1e-9, np.square(difference).mean())) > 32


def test_orientation_transparency_and_depth_come_out_right() -> None:
    rgb = draw_picture(1, width=64, height=64)
    upright = _decode(encode_picture(rgb, "png"))

    turned = Image.fromarray(np.rot90(rgb))  # a viewer turns it back by 90 degrees clockwise
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    turned.save(file, "jpeg", exif=exif, quality=98, subsampling=0)
    assert np.abs(_decode(file.getvalue()).astype(int) - upright).mean() < 3

    clear = np.dstack([rgb, np.zeros((64, 64), dtype=np.uint8)])
    assert (_decode(encode_picture(clear, "png")) == 255).all()

    deep = np.full((40, 40), 257 * 77, dtype=np.uint16)
    assert (_decode(encode_picture(deep, "png")) == 77).all()

    file = io.BytesIO()
    Image.fromarray(rgb).convert("CMYK").save(file, "jpeg", quality=98)
    assert np.abs(_decode(file.getvalue()).astype(int) - upright).mean() < 4
    grey = encode_picture(rgb[:, :, 0], "jpeg")
    assert (np.ptp(_decode(grey).astype(int), axis=2) == 0).all()


@pytest.mark.parametrize("cut", [0, 10, 300])
def test_a_cut_off_file_is_an_error(cut: int) -> None:
    data = encode_picture(draw_picture(2), "jpeg")
    with pytest.raises(ValueError):
        _decode(data[:cut])


def _square(data: bytes, size: int = 224, **settings: object) -> np.ndarray:
    out = np.empty((size, size, 3), dtype=np.uint8)
    Decoder().square(data, out, **settings)  # type: ignore[arg-type]
    return out


def _preprocess(image: Image.Image, size: int = 224) -> np.ndarray:
    """What CLIP's `preprocess` shows the model, in its own words: Resize(size, BICUBIC), CenterCrop(size), after the RGB of the benchmarks' loaders."""
    rgb = image.convert("RGB")
    short, long = sorted(rgb.size)
    scaled = int(size * long / short)
    width, height = (size, scaled) if rgb.width <= rgb.height else (scaled, size)
    rgb = rgb.resize((width, height), Image.Resampling.BICUBIC)
    top, left = round((height - size) / 2.0), round((width - size) / 2.0)
    return np.asarray(rgb.crop((left, top, left + size, top + size)))


def _text_page() -> np.ndarray:
    """Fine black strokes on white, which any other filter shows elsewhere."""
    rng = np.random.default_rng(5)
    page = np.full((448, 448, 3), 255, dtype=np.uint8)
    for y in range(10, 440, 14):
        page[y : y + 9, 10:430][:, rng.random(420) < 0.3] = 0
    return page


@pytest.mark.parametrize(
    ("width", "height"),
    [(32, 32), (28, 28), (1, 1), (224, 224), (225, 224), (500, 375), (333, 500), (2001, 1333), (640, 90), (90, 711)],
)
@pytest.mark.parametrize("format", ["jpeg", "png", "webp"])
def test_squares_of_an_evaluation_are_pillows_to_the_level(width: int, height: int, format: str) -> None:
    data = encode_picture(draw_picture(7, width=width, height=height), format)
    np.testing.assert_array_equal(_square(data), _preprocess(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("format", ["jpeg", "png"])
def test_text_is_as_sharp_as_clip_sees_it(format: str) -> None:
    data = encode_picture(_text_page(), format)
    np.testing.assert_array_equal(_square(data), _preprocess(Image.open(io.BytesIO(data))))
    # The fast crop of training shows other strokes: this test can tell them apart.
    assert np.abs(_decode(data, 224).astype(int) - _square(data)).max() > 30


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "CMYK", "1"])
def test_squares_of_any_mode_drop_alpha_as_benchmarks_do_or_lay_it_on_white(mode: str) -> None:
    rgb = Image.fromarray(draw_picture(2, width=300, height=260))
    fade = Image.linear_gradient("L").resize(rgb.size)
    image = rgb.copy()
    if mode in {"RGBA", "LA"}:
        image.putalpha(fade)
    image = image.convert(mode)
    file = io.BytesIO()
    image.save(file, "JPEG" if mode == "CMYK" else "PNG", quality=95)
    stored = Image.open(io.BytesIO(file.getvalue()))
    np.testing.assert_array_equal(_square(file.getvalue(), on_white=False), _preprocess(stored))
    if mode in {"RGBA", "LA"}:
        layer = stored.convert("RGBA")
        stored = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        assert np.abs(_preprocess(stored).astype(int) - _preprocess(layer)).max() > 100
    np.testing.assert_array_equal(_square(file.getvalue()), _preprocess(stored))


@pytest.mark.parametrize(("width", "height"), [(4000, 40), (20, 2100), (1, 30_000), (30_000, 1)])
def test_of_long_strips_only_the_middle_is_resized(width: int, height: int) -> None:
    rgb = draw_picture(9, width=width, height=height)
    found = _square(encode_picture(rgb, "png"), 32).astype(int)
    assert np.abs(found - _preprocess(Image.fromarray(rgb), 32)).max() <= 1


def test_a_part_of_a_picture_is_taken_for_the_whole() -> None:
    rgb = draw_picture(4, width=120, height=90)
    turned = Image.Exif()
    turned[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", exif=turned)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(file.getvalue())))
    np.testing.assert_array_equal(_square(file.getvalue(), 32), _preprocess(upright, 32))
    for data in (encode_picture(rgb, "png"), encode_picture(rgb, "jpeg"), file.getvalue()):
        stored = Image.open(io.BytesIO(data)).convert("RGB")
        for left, top, right, bottom in [(10, 20, 70, 50), (-5, 60, 200, 100), (0, 0, 120, 90)]:
            expected = _preprocess(stored.crop((left, top, right, bottom)), 32)
            np.testing.assert_array_equal(_square(data, 32, box=(top, left, bottom - top, right - left)), expected)
    with pytest.raises(ValueError, match="is too large"):
        _square(encode_picture(rgb, "png"), 32, box=(0, 0, 100_000, 100_000))


@pytest.mark.parametrize("cut", [0, 10, 300])
@pytest.mark.parametrize("format", ["jpeg", "png"])
def test_a_square_of_a_cut_off_file_is_an_error(cut: int, format: str) -> None:
    data = encode_picture(draw_picture(2), format)
    with pytest.raises(ValueError):
        _square(data[:cut])


@pytest.mark.parametrize("format", ["jpeg", "png"])
@pytest.mark.parametrize("boxes", [[(10, 20, 200, 300)], [(0, 0, 60, 70), (100, 150, 300, 500), (400, 500, 90, 80)]])
def test_several_parts_are_those_of_a_decode_each(format: str, boxes: list[tuple[int, int, int, int]]) -> None:
    data = encode_picture(draw_picture(3, width=640, height=512), format)
    outs = [np.empty((size, size, 3), dtype=np.uint8) for size in (32, 24, 16)[: len(boxes)]]
    decoder = Decoder()
    decoder.crops(data, [lambda *_, box=box: box for box in boxes], outs)
    for box, out in zip(boxes, outs, strict=True):
        alone = np.empty_like(out)
        decoder.crop(data, lambda *_, box=box: box, alone)
        if len(boxes) == 1 or format == "png":
            np.testing.assert_array_equal(out, alone)
        # Together they are decoded as finely as the smallest part needs, and reduced from there.
        assert np.abs(out.astype(int) - alone).mean() < 4


def test_broken_files_have_no_parts() -> None:
    data = encode_picture(draw_picture(3, width=64, height=64), "jpeg")
    out = np.empty((8, 8, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="cannot identify image file"):
        Decoder().crops(b"no picture", [_center_box], [out])
    grey = encode_picture(draw_picture(1, width=64, height=64)[:, :, 0], "jpeg")
    Decoder().crops(grey, [_center_box], [out])
    assert np.ptp(out.astype(int), axis=2).max() == 0
    with pytest.raises(ValueError, match="Truncated"):
        Decoder().crops(data[: len(data) // 3], [_center_box], [out])
