"""Encodes the images and texts of an evaluation: worker processes decode, the model runs here."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch

from schemas.progress import Progress
from train.evaluate.task import ImageSet
from train.loader import CenterCropJob
from train.workers import Request, WorkerPool


class Encoder(Protocol):
    """The part of a model that an evaluation uses; features are unit vectors, one row per input."""

    @property
    def image_size(self) -> int:
        """Side of the square images it takes, in pixels."""

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """Encode uint8 RGB images (n, 3, S, S)."""

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Encode texts."""


def encode_images(
    model: Encoder, images: ImageSet, *, batch_size: int, num_workers: int, progress: Progress
) -> torch.Tensor:
    """Return the features of the images in order, float32 on the CPU, shape (images, d).

    Images are scaled so that the short side fits the model, and cut to the square in the middle.
    """
    pool = WorkerPool(
        CenterCropJob(images.tars, images.shards, images.offsets, images.sizes),
        max_rows=batch_size,
        image_size=model.image_size,
        num_workers=min(num_workers, -(-len(images) // batch_size)),
    )
    parts = []
    try:
        for filled in pool.run(_requests(len(images), batch_size)):
            pictures = torch.from_numpy(filled.images).permute(0, 3, 1, 2)
            with torch.inference_mode():
                parts.append(model.encode_image(pictures).float().cpu())
            progress.advance(len(pictures))
    finally:
        pool.close()
    return torch.cat(parts)


def encode_texts(model: Encoder, texts: Sequence[str], *, batch_size: int) -> torch.Tensor:
    """Return the features of the texts in order, float32 on the CPU, shape (texts, d)."""
    parts = []
    for start in range(0, len(texts), batch_size):
        with torch.inference_mode():
            parts.append(model.encode_text(texts[start : start + batch_size]).float().cpu())
    return torch.cat(parts)


def _requests(count: int, batch_size: int) -> Iterator[Request]:
    for start in range(0, count, batch_size):
        yield Request((), np.arange(start, min(start + batch_size, count), dtype=np.int64))
