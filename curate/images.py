"""Encoded bytes to upright RGB and back: the only image decoder in `curate/`. Every byte is taken to be hostile.

Sizes are read and compared with a pixel limit before anything is decoded; only formats on a list are opened; damage that a lenient
decoder paints over is an error. JPEG goes through libjpeg-turbo (at a reduced scale where the caller allows it, without the
interpreter lock), everything else through Pillow.
"""

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import pyarrow as pa

from curate import jpeg
from curate.operator import IMAGE_TYPE

if TYPE_CHECKING:
    from PIL import Image

# 85 x 1024^2 pixels, 256 MiB as RGB: Pillow's own limit of suspicion. It also bounds what a resize may produce.
MAX_PIXELS = 89_478_485

# How much larger than its target a reduced decode must stay, for the resize that follows to average instead of blur.
OVERSAMPLING = 1.5

ResizeMode = Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"]
RESIZE_MODES: tuple[ResizeMode, ...] = ("no", "border", "keep_ratio", "keep_ratio_largest", "center_crop")
ENCODE_FORMATS = ("jpg", "png", "webp")

# No PostScript, no layered, vector or icon format: what is left is what web pages show and OpenCV reads.
_PILLOW_FORMATS = ("PNG", "GIF", "WEBP", "AVIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM")
_DECODING_ERROR = "Image decoding error"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TRANSPOSED = frozenset([5, 6, 7, 8])
# A ratio of 1.7 goes by way of two, one of 1.6 straight to one.
_ROUND_UP_FROM = 0.3


class ImageError(ValueError):
    """A picture that cannot be used; the message starts as img2dataset's do, so that the same words find it."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What a header says: the format in lower case ("jpeg", "png", ...), and the size in pixels as stored, before orientation."""

    format: str
    width: int
    height: int


def probe(data: bytes) -> ImageInfo:
    """Read the header only; an unknown format or an unreadable header raises ImageError."""
    if data.startswith(jpeg.SIGNATURE):
        height, width, _ = _read_jpeg_header(data)
        return ImageInfo("jpeg", width, height)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        # Pillow allocates the whole canvas when it opens a WebP, so its size has to be known before.
        width, height = _webp_size(data)
        return ImageInfo("webp", width, height)
    with _open(data) as image:
        return ImageInfo((image.format or "").lower(), image.width, image.height)


def decode(
    data: bytes, *, max_pixels: int = MAX_PIXELS, min_side: int | None = None, out: np.ndarray | None = None
) -> np.ndarray:
    """Return the picture as upright RGB: uint8, (height, width, 3), C-contiguous.

    EXIF orientation is applied, transparency lies over white, CMYK and greyscale become RGB, 16-bit values are scaled, an animation
    gives its first frame. With `min_side` a JPEG may come out at 1/2, 1/4 or 1/8 of its size, its short side at least that long; ask for
    `OVERSAMPLING` times the side you will resize to. The result may lie at the start of `out`, flat bytes to decode into where that is
    possible and they suffice: pictures decoded into memory that is in the cache already are there for the next reader.
    """
    info = probe(data)
    if info.width * info.height > max_pixels:
        raise ImageError(f"{_DECODING_ERROR}: more than {max_pixels} pixels")
    if info.format == "jpeg":
        pixels = _decode_jpeg(data, _jpeg_reduction(info, min_side), out)
        return upright(pixels, jpeg.read_orientation(data))
    if data.startswith(_PNG_SIGNATURE):
        _check_png(data)
    return _decode_with_pillow(data)


def upright(rgb: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation (1 to 8)."""
    if orientation in _TRANSPOSED:
        rgb = rgb.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        rgb = rgb[:, ::-1]
    if orientation in (3, 4, 7, 8):
        rgb = rgb[::-1]
    return np.ascontiguousarray(rgb)


def plan_size(height: int, width: int, size: int, mode: ResizeMode, *, only_if_bigger: bool = False) -> tuple[int, int]:
    """Return (height, width) of the picture after scaling and before cropping or padding, rounded as img2dataset rounds."""
    if mode == "no":
        return height, width
    side = _fixed_side(height, width, mode)
    if side == size or (only_if_bigger and side < size):
        return height, width
    scale = size / side
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize(
    rgb: np.ndarray,
    size: int,
    mode: ResizeMode,
    *,
    only_if_bigger: bool = False,
    original: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Resize as img2dataset's mode of that name does: the same size, crop and white border to the pixel.

    `original` is the picture's full (height, width) where `rgb` is a reduced decode of it.
    """
    full_height, full_width = original or rgb.shape[:2]
    height, width = plan_size(full_height, full_width, size, mode, only_if_bigger=only_if_bigger)
    if height * width > max_pixels:
        raise ImageError(f"image area too large: {mode} gives more than {max_pixels} pixels")
    scaled = resize_to(rgb, height, width)
    if only_if_bigger and _fixed_side(full_height, full_width, mode) <= size:
        return scaled
    if mode == "center_crop":
        top, left = (height - size) // 2, (width - size) // 2
        return np.ascontiguousarray(scaled[top : top + size, left : left + size])
    if mode == "border":
        canvas = np.full((size, size, 3), 255, dtype=np.uint8)
        top, left = (size - height) // 2, (size - width) // 2
        canvas[top : top + height, left : left + width] = scaled
        return canvas
    return scaled


def resize_to(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize to exactly (height, width) without aliasing: an area average downwards, bicubic upwards.

    The area average goes by way of a whole multiple of the target: linear interpolation moves by a factor below 1.7, where it weighs
    nearly as an area average does, then an exact box average (a fast path of OpenCV) does the rest. It costs a seventh to a third of
    `cv2.INTER_AREA`, and is about as near to a floating-point Lanczos as that is (`benchmarks/bench_download.py` measures both).
    """
    import cv2

    cv2.setNumThreads(1)
    if rgb.shape[:2] == (height, width):
        return rgb
    if rgb.shape[0] <= height and rgb.shape[1] <= width:
        # img2dataset takes Lanczos here, which costs several times as much and knows no more of pixels that are not there.
        return cast(np.ndarray, cv2.resize(rgb, (width, height), interpolation=cv2.INTER_CUBIC))
    boxes = width * _whole_multiple(rgb.shape[1] / width), height * _whole_multiple(rgb.shape[0] / height)
    if boxes != (rgb.shape[1], rgb.shape[0]):
        # Not OpenCV's own fixed-point arithmetic but Intel's, where it is built in: half the time, as near to the references, and the
        # same bytes for every instruction set. The switch is the thread's.
        cv2.ipp.setUseIPP_NotExact(True)
        rgb = cv2.resize(rgb, boxes, interpolation=cv2.INTER_LINEAR)
        cv2.ipp.setUseIPP_NotExact(False)
    return (
        rgb
        if boxes == (width, height)
        else cast(np.ndarray, cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA))
    )


def load_decoders() -> None:
    """Load the libraries that the first picture would wait for."""
    import cv2  # noqa: F401
    import simplejpeg  # noqa: F401


def encode(rgb: np.ndarray, format: str = "jpg", quality: int = 95) -> bytes:
    """Encode RGB pixels as jpg (4:2:0, quality 1 to 100), png (quality is the compression, 0 to 9) or webp (1 to 100)."""
    try:
        if format == "jpg":
            import simplejpeg

            return cast(bytes, simplejpeg.encode_jpeg(rgb, quality=quality, colorspace="RGB", colorsubsampling="420"))
        from PIL import Image

        buffer = io.BytesIO()
        options: dict[str, int] = {"compress_level": quality} if format == "png" else {"quality": quality}
        Image.fromarray(rgb).save(buffer, format=format, **options)
        return buffer.getvalue()
    except (ValueError, OSError) as error:  # JPEG and WebP have a largest side
        raise ImageError(f"Image encoding error: {rgb.shape[1]}x{rgb.shape[0]} as {format}: {error}") from error


def to_column(images: Sequence[np.ndarray | None]) -> pa.Array:
    """Return pictures as an Arrow column of IMAGE_TYPE; None is null."""
    valid = [image is not None for image in images]
    rgb = pa.array([None if i is None else np.ascontiguousarray(i).data.cast("B") for i in images], pa.large_binary())
    heights = pa.array([None if i is None else i.shape[0] for i in images], pa.int32())
    widths = pa.array([None if i is None else i.shape[1] for i in images], pa.int32())
    mask = pa.array([not v for v in valid], pa.bool_())
    return pa.StructArray.from_arrays([rgb, heights, widths], fields=list(IMAGE_TYPE), mask=mask)


def pixels(column: pa.ChunkedArray | pa.Array) -> list[np.ndarray | None]:
    """Return the pictures of a column of IMAGE_TYPE as read-only views of its memory; null is None."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return [picture for chunk in chunks for picture in _chunk_pixels(chunk)]


def _fixed_side(height: int, width: int, mode: ResizeMode) -> int:
    return min(height, width) if mode in ("keep_ratio", "center_crop") else max(height, width)


def _chunk_pixels(chunk: pa.Array) -> list[np.ndarray | None]:
    if len(chunk) == 0:
        return []
    # `field` ignores the parent's offset and nulls; `flatten` applies both.
    rgb, heights, widths = chunk.flatten()
    buffers = rgb.buffers()
    offsets = np.frombuffer(buffers[1], dtype=np.int64, count=len(rgb) + 1, offset=8 * rgb.offset)
    data = np.frombuffer(buffers[2] or b"", dtype=np.uint8)
    found: list[np.ndarray | None] = []
    for row, (height, width) in enumerate(zip(heights.to_pylist(), widths.to_pylist(), strict=True)):
        if height is None or width is None:
            found.append(None)
            continue
        view = data[offsets[row] : offsets[row + 1]].reshape(height, width, 3)
        view.flags.writeable = False
        found.append(view)
    return found


def _whole_multiple(ratio: float) -> int:
    return max(1, int(ratio + _ROUND_UP_FROM))


def _read_jpeg_header(data: bytes) -> tuple[int, int, str]:
    import simplejpeg

    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError) as error:  # KeyError: a header cut off before it names a colour space
        raise ImageError(f"{_DECODING_ERROR}: not a readable JPEG header") from error
    return height, width, colorspace


def _jpeg_reduction(info: ImageInfo, min_side: int | None) -> int:
    # Only powers of two have vectorised inverse transforms; the steps between decode slower than the full size.
    short = min(info.width, info.height)
    return next((factor for factor in (8, 4, 2) if min_side and -(-short // factor) >= min_side), 1)


def _decode_jpeg(data: bytes, reduction: int, out: np.ndarray | None) -> np.ndarray:
    import simplejpeg

    height, width, colorspace = _read_jpeg_header(data)
    if jpeg.count_scans(data) > jpeg.MAX_SCANS:
        raise ImageError(f"{_DECODING_ERROR}: more than {jpeg.MAX_SCANS} scans")
    is_cmyk = colorspace in ("CMYK", "YCCK")
    smallest = {"min_height": -(-height // reduction), "min_width": -(-width // reduction)} if reduction > 1 else {}
    space = "CMYK" if is_cmyk else "RGB"
    buffer = out if out is not None and not is_cmyk and 3 * height * width <= out.nbytes else None
    try:
        decoded = simplejpeg.decode_jpeg(data, colorspace=space, strict=True, buffer=buffer, **smallest)
    except ValueError:
        # A strict decode also stops at junk in the header, which harms nothing: without it, what remains is damage.
        try:
            decoded = simplejpeg.decode_jpeg(jpeg.drop_junk(data), colorspace=space, strict=True, **smallest)
        except ValueError as error:
            raise ImageError(f"{_DECODING_ERROR}: {_jpeg_reason(str(error))}") from error
    return _cmyk_to_rgb(decoded) if is_cmyk else cast(np.ndarray, decoded)


def _jpeg_reason(text: str) -> str:
    # Few distinct messages, so that they can be counted.
    return "truncated JPEG" if "Premature end" in text or "too small" in text else "corrupt JPEG data"


def _cmyk_to_rgb(cmyk: np.ndarray) -> np.ndarray:
    # Every program that writes CMYK JPEG follows Adobe in storing ink inverted, whether or not it says so.
    light = cmyk.astype(np.uint16)
    product = light[..., :3] * light[..., 3:]
    return ((product + 127) // 255).astype(np.uint8)


def _open(data: bytes) -> "Image.Image":
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(f"{_DECODING_ERROR}: not an image in an accepted format") from error
    except Exception as error:
        raise ImageError(f"{_DECODING_ERROR}: unreadable header ({type(error).__name__})") from error


def _decode_with_pillow(data: bytes) -> np.ndarray:
    from PIL import ImageOps

    with _open(data) as image:
        try:
            image.load()
            oriented = ImageOps.exif_transpose(image)
            return np.ascontiguousarray(_to_rgb(oriented))
        except Exception as error:
            reason = "truncated" if "truncated" in str(error) else f"corrupt {image.format}"
            raise ImageError(f"{_DECODING_ERROR}: {reason}") from error


def _to_rgb(image: "Image.Image") -> np.ndarray:
    from PIL import Image

    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        grey = _scale_to_bytes(np.asarray(image))
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGB", rgba.size, (255, 255, 255))
        canvas.paste(rgba, mask=rgba.getchannel("A"))
        return np.asarray(canvas)
    return np.asarray(image.convert("RGB"))


def _scale_to_bytes(values: np.ndarray) -> np.ndarray:
    # 16 bits are the common case; 32-bit integers and floats say nothing about their range, so it is taken from the values.
    finite = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    top = float(finite.max(initial=0.0))
    if values.dtype.kind == "f":
        limit = next((limit for limit in (1.0, 255.0, 65535.0) if top <= limit), top)
    else:
        limit = next((float(limit) for limit in (2**16 - 1, 2**32 - 1) if top <= limit), top)
    return np.rint(np.clip(finite / limit, 0.0, 1.0) * 255).astype(np.uint8)


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X" and len(data) >= 30:
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and len(data) >= 30:
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ImageError(f"{_DECODING_ERROR}: unreadable header (WebP)")


def _check_png(data: bytes) -> None:
    # Pillow stops reading once every row is filled, and so misses damage that only the checksums show.
    position = len(_PNG_SIGNATURE)
    view = memoryview(data)
    while True:
        if position + 12 > len(data):
            raise ImageError(f"{_DECODING_ERROR}: truncated")
        (length,) = struct.unpack_from(">I", data, position)
        kind = data[position + 4 : position + 8]
        end = position + 12 + length
        if end > len(data):
            raise ImageError(f"{_DECODING_ERROR}: truncated")
        is_critical = not kind[0] & 0x20
        if is_critical and zlib.crc32(view[position + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise ImageError(f"{_DECODING_ERROR}: corrupt PNG")
        if kind == b"IEND":
            return
        position = end
