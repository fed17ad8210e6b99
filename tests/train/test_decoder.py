import io

import numpy as np
import pytest
from PIL import Image

from tests.train.dataset_builder import draw_picture, encode_picture
from train.crop import center_box
from train.decoder import Decoder


def _decode(data: bytes, size: int = 32) -> np.ndarray:
    out = np.empty((size, size, 3), dtype=np.uint8)
    Decoder().crop(data, center_box, out)
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
