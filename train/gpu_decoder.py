"""Turns a batch of JPEG files into a batch of cropped pictures on the GPU: nvJPEG decodes, two matrix products crop and resize.

The files are decoded whole, in one call, by torchvision, whose build must have nvJPEG. Every picture has a box of its own to keep and a size
of its own, so the antialiased bicubic resize of a picture is written as (rows x height) @ picture @ (width x columns), with the box in
the two matrices: pictures of any size go through one batched product, which is what a GPU is fastest at.
"""

from collections.abc import Callable, Iterator, Sequence

import torch

from schemas.errors import InputError, StaleDatasetError
from train.config import Decode
from train.decoder import Decoder

# From files, as tensors of bytes, to pictures (3, height, width) on the device; raises RuntimeError where one is none.
DecodeJpegs = Callable[[list[torch.Tensor]], list[torch.Tensor]]

_CUBIC = -0.5  # as Pillow and torch take it for antialiased resizes
_MAX_PIXELS = 1 << 25  # of the pictures that are resized at once, margins included


def load_nvjpeg(device: torch.device) -> DecodeJpegs:
    """Return torchvision's decoder on a GPU, or raise InputError where there is none."""
    if device.type != "cuda":
        raise InputError("decode gpu needs a GPU; leave it out, and the loader's workers decode")
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except ImportError as error:
        raise InputError(
            "decode gpu needs torchvision of the same build as torch: pip install torchvision, or leave it out"
        ) from error

    def decode(files: list[torch.Tensor]) -> list[torch.Tensor]:
        pictures: list[torch.Tensor] = decode_jpeg(files, mode=ImageReadMode.RGB, device=device)
        return pictures

    return decode


def open_decoder(decode: Decode, size: int, device: torch.device) -> "GpuDecoder | None":
    """Return what makes square pictures of `size` pixels out of the files that the loader leaves, or None where its workers decode."""
    return GpuDecoder(load_nvjpeg(device), size, device) if decode == "gpu" else None


class GpuDecoder:
    """Decodes what a loader with `decode="gpu"` left in the pictures' places."""

    def __init__(self, decode: DecodeJpegs, size: int, device: torch.device) -> None:
        """`size` is the side of the square pictures that come out, in pixels."""
        self._decode = decode
        self._size = size
        self._device = device

    def decode(self, places: torch.Tensor, files: torch.Tensor, uids: Sequence[str]) -> torch.Tensor:
        """Return pictures (n, 3, S, S), uint8 on the device, channels last in memory.

        `places` is uint8 (n, 3 * S * S), where picture i is S x S x 3 bytes of pixels, or a file where `files[i, 0]`, its number of bytes, is
        above 0; `files[i, 1:]` is then the box to keep. `uids` name the samples in errors.
        """
        pictures = torch.empty((len(places), self._size, self._size, 3), dtype=torch.uint8, device=self._device)
        lengths = files[:, 0].tolist()
        rows = [row for row, length in enumerate(lengths) if length]
        whole = [row for row, length in enumerate(lengths) if not length]
        if whole:
            pictures[whole] = places[whole].reshape(-1, self._size, self._size, 3).to(self._device)
        if rows:
            given = [places[row, : lengths[row]] for row in rows]
            try:
                decoded = self._decode(given)
            except RuntimeError:
                decoded = [self._decode_alone(file, uids[row]) for row, file in zip(rows, given, strict=True)]
            pictures[rows] = self._resize(decoded, files[rows, 1:])
        return pictures.permute(0, 3, 1, 2)

    def _decode_alone(self, file: torch.Tensor, uid: str) -> torch.Tensor:
        """Decode one file of a batch that holds one that the GPU cannot decode: on the CPU where it is the one."""
        try:
            return self._decode([file])[0]
        except RuntimeError:
            pass
        try:
            picture = Decoder().whole(file.numpy().tobytes())
        except ValueError as error:
            raise StaleDatasetError(
                f"the picture of sample {uid} is not readable ({error}); build the dataset again without it"
            ) from error
        return torch.tensor(picture, device=self._device).permute(2, 0, 1)

    def _resize(self, pictures: Sequence[torch.Tensor], boxes: torch.Tensor) -> torch.Tensor:
        """Return each picture's box as (n, S, S, 3)."""
        found = torch.empty((len(pictures), self._size, self._size, 3), dtype=torch.uint8, device=self._device)
        for rows in _alike([tuple(picture.shape[1:]) for picture in pictures]):
            own = [pictures[row] for row in rows]
            found[rows] = resize_boxes(own, boxes[rows].to(self._device), self._size)
        return found


def resize_boxes(pictures: Sequence[torch.Tensor], boxes: torch.Tensor, size: int) -> torch.Tensor:
    """Return the part of each picture that its box (top, left, height, width) keeps, as uint8 (n, size, size, 3).

    Pictures are uint8 (3, height, width). An antialiased bicubic resize, to within 1 of Pillow's. A GPU computes in half precision.
    """
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (1, 2))
    kind = torch.float16 if boxes.is_cuda else torch.float32
    padded = boxes.new_zeros((len(pictures), 3, height, width), dtype=kind)
    for target, picture in zip(padded, pictures, strict=True):
        target[:, : picture.shape[1], : picture.shape[2]] = picture
    top, left, box_height, box_width = boxes.float().unbind(1)
    down = _weights(top, box_height, size, height).to(kind)
    across = _weights(left, box_width, size, width).to(kind)
    narrow = (padded.flatten(1, 2) @ across.transpose(1, 2)).reshape(len(pictures), 3, height, size)
    narrow = narrow.round_().clamp_(
        0, 255
    )  # bytes between the two, as Pillow has them; so half precision loses nothing
    small = down @ narrow.transpose(1, 2).reshape(len(pictures), height, 3 * size)
    return small.reshape(-1, size, 3, size).transpose(2, 3).round().clamp(0, 255).to(torch.uint8)


def _weights(first: torch.Tensor, length: torch.Tensor, size: int, padded: int) -> torch.Tensor:
    """Return what each of `size` new pixels takes of `padded` old ones, (n, size, padded), rows of sum 1; those outside count nothing."""
    scale = (length / size).unsqueeze(1)
    centres = first.unsqueeze(1) + (torch.arange(size, device=first.device) + 0.5) * scale
    places = torch.arange(padded, device=first.device)
    distance = ((places + 0.5 - centres.unsqueeze(2)) / scale.clamp(min=1).unsqueeze(2)).abs()
    inside = (places >= first.unsqueeze(1)) & (places < (first + length).unsqueeze(1))
    weights = _cubic(distance) * inside.unsqueeze(1)
    return weights / weights.sum(dim=2, keepdim=True)


def _cubic(distance: torch.Tensor) -> torch.Tensor:
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * _CUBIC
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0))


def _alike(shapes: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
    """Yield the numbers of pictures that are resized at once: neighbours in size, so that little is filled up."""
    group: list[int] = []
    height = width = 0
    for number in sorted(range(len(shapes)), key=lambda number: shapes[number]):
        height, width = max(height, shapes[number][0]), max(width, shapes[number][1])
        if group and (len(group) + 1) * height * width > _MAX_PIXELS:
            yield group
            group, (height, width) = [], shapes[number]
        group.append(number)
    if group:
        yield group
