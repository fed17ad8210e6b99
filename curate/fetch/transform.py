"""From downloaded bytes to what a shard stores: checks, decode, resize, encode, EXIF text, hash."""

import hashlib
from dataclasses import dataclass

from curate import jpeg
from curate.fetch.config import DownloadConfig
from curate.fetch.errors import HASH_MISMATCH
from curate.fetch.exif import read_exif
from curate.images import OVERSAMPLING, ImageError, ImageInfo, decode, encode, plan_size, probe, resize
from schemas.sample import STATUS_FAILED_DOWNLOAD, STATUS_FAILED_RESIZE, STATUS_SUCCESS

_TRANSPOSED = frozenset([5, 6, 7, 8])


@dataclass(frozen=True, slots=True)
class Transformed:
    """What became of one row; sizes are in pixels, upright, and null like `sha256` (of the original bytes) unless it is a success."""

    status: str
    error_message: str | None = None
    image: bytes = b""
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    exif: str | None = None
    sha256: str | None = None


def failed_download(message: str) -> Transformed:
    """Return the row of a URL that gave no usable bytes."""
    return Transformed(STATUS_FAILED_DOWNLOAD, message)


def transform(data: bytes, expected_sha256: str | None, config: DownloadConfig) -> Transformed:
    """Check, decode, resize and encode one download; never raises for the sake of its bytes."""
    digest = hashlib.sha256(data).hexdigest()
    if expected_sha256 and digest != expected_sha256.strip():
        return failed_download(HASH_MISMATCH)
    try:
        return _transform(data, digest, config)
    except ImageError as error:
        return Transformed(STATUS_FAILED_RESIZE, str(error))
    except MemoryError:
        return Transformed(STATUS_FAILED_RESIZE, "Image decoding error: not enough memory")


def _transform(data: bytes, digest: str, config: DownloadConfig) -> Transformed:
    info = probe(data)
    _check_size(info, config)
    size, mode, only_if_bigger = config.image_size, config.resize_mode, config.resize_only_if_bigger
    if config.keep_original:
        # A decode at the smallest scale still reads every byte, and so finds damage.
        short_side: int | None = 1
    else:
        short_side = (
            int(OVERSAMPLING * min(plan_size(info.height, info.width, size, mode, only_if_bigger=only_if_bigger))) + 1
        )
    rgb = decode(
        data, max_pixels=config.max_pixels, min_side=None if mode == "no" and not config.keep_original else short_side
    )
    original_height, original_width = _upright_size(info, data, rgb.shape)
    if config.keep_original:
        stored, height, width = data, original_height, original_width
    else:
        rgb = resize(
            rgb,
            size,
            mode,
            only_if_bigger=only_if_bigger,
            original=(original_height, original_width),
            max_pixels=config.max_pixels,
        )
        height, width = rgb.shape[:2]
        stored = encode(rgb, config.encode_format, config.quality)
    return Transformed(
        STATUS_SUCCESS, None, stored, width, height, original_width, original_height, read_exif(data), digest
    )


def _check_size(info: ImageInfo, config: DownloadConfig) -> None:
    short, long = sorted((info.width, info.height))
    if short == 0:
        raise ImageError("Image decoding error: no pixels")
    if short < config.min_image_size:
        raise ImageError("image too small")
    if info.width * info.height > config.max_image_area:
        raise ImageError("image area too large")
    if long / short > config.max_aspect_ratio:
        raise ImageError("aspect ratio too large")


def _upright_size(info: ImageInfo, data: bytes, decoded: tuple[int, ...]) -> tuple[int, int]:
    # Only a JPEG is decoded at a reduced size; of everything else the decoded height tells whether it was turned.
    if info.format != "jpeg":
        is_turned = decoded[0] != info.height
    elif decoded[0] == decoded[1]:
        is_turned = jpeg.read_orientation(data) in _TRANSPOSED
    else:
        is_turned = (decoded[0] > decoded[1]) != (info.height > info.width)
    return (info.width, info.height) if is_turned else (info.height, info.width)
