"""Decodes the pictures of a batch: one image file at a time, cropped and resized into the batch's memory."""

import io
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from train.crop import Box, fit_short_side
from train.workers import Facts, Pixels

_JPEG_START = b"\xff\xd8\xff"
_EXIF_SEARCH_BYTES = 1 << 16
_PLAIN_COLOURS = ("YCbCr", "Gray")
_LONGEST_STRIP = 8  # times as long as wide


def use_one_thread() -> None:
    """Keep this process's decoders to one thread: the processes are the parallelism."""
    cv2.setNumThreads(1)


class Decoder:
    """Decodes one image after another; keeps the memory it decodes into, whose first touch costs a fifth of a decode."""

    def __init__(self) -> None:
        self._scratch = np.empty(0, dtype=np.uint8)

    def crop(self, data: bytes, choose: Callable[[int, int], Box], out: Pixels) -> None:
        """Decode an image, and resize the part that `choose(height, width)` keeps into `out` (S, S, 3), RGB.

        A JPEG is decoded at the smallest of 1, 1/2, 3/8, 1/4 and 1/8 of its size that still covers `out`. Between 1 and 2 times `out` the
        resize is bilinear, which differs from an antialiased bicubic one by 41 dB on photos; below, bicubic. Raises ValueError where the
        bytes are no image or a broken one.
        """
        self.fit(data, choose, lambda _: out)

    def crops(self, data: bytes, chosen: Sequence[Callable[[int, int], Box]], outs: Sequence[Pixels]) -> None:
        """As `crop`, several parts of one image, which is decoded once, as finely as the part that needs most of it."""
        if data[:3] == _JPEG_START and _is_upright(data):
            try:
                height, width, *_ = simplejpeg.decode_jpeg_header(data)
                boxes = [choose(height, width) for choose in chosen]
                rgb = self._decode_jpeg(data, (height, width), list(zip(boxes, outs, strict=True)))
            except ValueError:
                pass  # as in `fit`
            else:
                for box, out in zip(boxes, outs, strict=True):
                    _resize(rgb, _shrink_box(box, (height, width), rgb), out)
                return
        rgb = _decode_with_pillow(data)
        for choose, out in zip(chosen, outs, strict=True):
            _resize(rgb, choose(*rgb.shape[:2]), out)

    def fit(self, data: bytes, choose: Callable[[int, int], Box], allocate: Callable[[Box], Pixels]) -> Pixels:
        """As `crop`, into what `allocate` returns for the part that is kept, which may be called twice."""
        if data[:3] == _JPEG_START and _is_upright(data):
            try:
                return self._fit_jpeg(data, choose, allocate)
            except ValueError:
                pass  # an unusual colour space, or damage, on which Pillow has the last word
        rgb = _decode_with_pillow(data)
        box = choose(*rgb.shape[:2])
        return _resize(rgb, box, allocate(box))

    def pack(self, data: bytes, choose: Callable[[int, int], Box], out: Pixels, facts: Facts) -> None:
        """Leave a common JPEG to the GPU: its bytes go into `out`, their number and the part to keep into `facts`.

        What is no upright JPEG of three colours, or larger than `out`, is decoded here as `crop` does, and its number of bytes is 0.
        """
        if len(data) <= out.size and data[:3] == _JPEG_START and _is_upright(data):
            try:
                height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            except ValueError:
                colours = ""
            if colours == "YCbCr":
                out.reshape(-1)[: len(data)] = np.frombuffer(data, dtype=np.uint8)
                facts[:5] = len(data), *choose(height, width)
                return
        self.crop(data, choose, out)
        facts[:5] = 0

    def square(self, data: bytes, out: Pixels, *, box: Box | None = None, on_white: bool = True) -> None:
        """Decode an image as CLIP's evaluation does, to the level: Pillow's antialiased bicubic resize of the short side, then the middle square.

        The pixels are those of torchvision's `Resize(S)` and `CenterCrop(S)` on Pillow's RGB picture: a JPEG is decoded at its full size, which
        takes three times as long as `crop`. `box` is the part of the stored picture, before any EXIF rotation, to take for the whole; what of it
        lies outside is black. With `on_white=False` transparency is dropped, as benchmarks' own code drops it, instead of laid on white.
        """
        image = self._open_rgb(data, is_turned=box is None, on_white=on_white)
        if box is not None:
            top, left, height, width = box
            try:
                image = image.crop((left, top, left + width, top + height))
            except Image.DecompressionBombError as error:
                raise ValueError(f"the part {box} is too large: {error}") from error
        out[:] = np.asarray(_resize_middle(image, out.shape[0]))

    def whole(self, data: bytes) -> Pixels:
        """Return an image as it is, upright, RGB; raises ValueError where the bytes are none."""
        return _decode_with_pillow(data)

    def _open_rgb(self, data: bytes, *, is_turned: bool, on_white: bool) -> Image.Image:
        """Return a picture in RGB; JPEGs through the faster decoder, set to what Pillow does."""
        if data[:3] == _JPEG_START and (not is_turned or _is_upright(data)):
            try:
                if simplejpeg.decode_jpeg_header(data)[2] in _PLAIN_COLOURS:
                    return Image.fromarray(simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False))
            except ValueError:
                pass  # damage, on which Pillow has the last word
        return _open_with_pillow(data, is_turned=is_turned, on_white=on_white)

    def _fit_jpeg(self, data: bytes, choose: Callable[[int, int], Box], allocate: Callable[[Box], Pixels]) -> Pixels:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        box = choose(height, width)
        out = allocate(box)
        rgb = self._decode_jpeg(data, (height, width), [(box, out)])
        return _resize(rgb, _shrink_box(box, (height, width), rgb), out)

    def _decode_jpeg(self, data: bytes, size: tuple[int, int], parts: Sequence[tuple[Box, Pixels]]) -> Pixels:
        """Return a JPEG at the smallest of its sizes whose parts still cover what they are to become; the next call takes its memory."""
        height, width = size
        if len(self._scratch) < height * width * 3:
            self._scratch = np.empty(height * width * 3, dtype=np.uint8)
        found: Pixels = simplejpeg.decode_jpeg(
            data,
            colorspace="RGB",
            fastupsample=True,
            min_height=max(min(height, -(-out.shape[0] * height // box[2])) for box, out in parts),
            min_width=max(min(width, -(-out.shape[1] * width // box[3])) for box, out in parts),
            min_factor=2,
            buffer=self._scratch,
        )
        return found


def _shrink_box(box: Box, size: tuple[int, int], rgb: Pixels) -> Box:
    """Return a part of a picture of this height and width in the reduced one."""
    if rgb.shape[0] == size[0]:
        return box
    down, across = rgb.shape[0] / size[0], rgb.shape[1] / size[1]
    top, left = round(box[0] * down), round(box[1] * across)
    bottom, right = round((box[0] + box[2]) * down), round((box[1] + box[3]) * across)
    return top, left, max(1, bottom - top), max(1, right - left)


def _resize(rgb: Pixels, box: Box, out: Pixels) -> Pixels:
    top, left, height, width = box
    part = rgb[top : top + height, left : left + width]
    factor = min(height / out.shape[0], width / out.shape[1])
    method = cv2.INTER_CUBIC if factor < 1 else cv2.INTER_LINEAR if factor < 2 else cv2.INTER_AREA
    resized = cv2.resize(part, (out.shape[1], out.shape[0]), dst=out, interpolation=method)
    if not np.may_share_memory(resized, out):  # cv2 allocates where it cannot write into `out`
        out[:] = resized
    return out


def _resize_middle(image: Image.Image, side: int) -> Image.Image:
    """Return the middle square of a picture whose short side is resized to `side`."""
    width, height = fit_short_side(image.width, image.height, side)
    # Rounding half to even, as torchvision's CenterCrop does.
    left, top = round((width - side) / 2), round((height - side) / 2)
    if max(width, height) <= _LONGEST_STRIP * side:
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        return resized.crop((left, top, left + side, top + side))
    # Of a long strip only the middle, or a line one pixel wide would fill the memory. Pillow rounds between rows and columns, and may then take
    # them in the other order: a level off on photos.
    across, down = image.width / width, image.height / height
    box = (left * across, top * down, (left + side) * across, (top + side) * down)
    return image.resize((side, side), Image.Resampling.BICUBIC, box=box)


def _is_upright(data: bytes) -> bool:
    if data.find(b"Exif\0\0", 0, _EXIF_SEARCH_BYTES) < 0:
        return True
    try:
        with Image.open(io.BytesIO(data)) as image:
            return bool(image.getexif().get(0x0112, 1) == 1)
    except (OSError, SyntaxError, ValueError):
        return True


def _decode_with_pillow(data: bytes) -> Pixels:
    return np.asarray(_open_with_pillow(data))


def _open_with_pillow(data: bytes, *, is_turned: bool = True, on_white: bool = True) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data)) as image:
            turned = ImageOps.exif_transpose(image) if is_turned else image
            return _to_rgb(turned) if on_white else turned.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return the picture in RGB: 16 bits scaled to 8, transparent parts on white."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray((wide.clip(0, 65_535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, layer)
    return image.convert("RGB")
