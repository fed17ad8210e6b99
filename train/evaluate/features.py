"""Encodes the images and texts of an evaluation: worker processes decode, the model runs here."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch

from schemas.progress import Progress
from train.evaluate.task import ImageSet
from train.loader import CenterCropJob
from train.picture_files import FileCropJob
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
    model: Encoder,
    images: ImageSet,
    *,
    batch_size: int,
    num_workers: int,
    progress: Progress,
    change: Callable[[torch.Tensor], torch.Tensor] | None = None,
    before_projection: bool = False,
) -> torch.Tensor:
    """Return the features of the images in order, float32 on the CPU, shape (images, d).

    Images are scaled so that the short side fits the model, and cut to the square in the middle, with the pixels of CLIP's own preprocessing (a
    model that trains on whole pictures is shown squares too); then `change` is done to them, a batch of uint8 (n, 3, S, S) at a time.
    `before_projection` asks for what the image tower gives before it is projected into the space that texts share, which is no unit vector; a model
    without such a projection gives its features.
    """
    job = FileCropJob if images.are_files else CenterCropJob
    pool = WorkerPool(
        job(images.tars, images.shards, images.offsets, images.sizes, images.boxes, images.on_white),
        max_rows=batch_size,
        image_size=model.image_size,
        num_workers=min(num_workers, -(-len(images) // batch_size)),
    )
    parts = []
    try:
        with _projected(model) as projected:
            for filled in pool.run(_requests(len(images), batch_size)):
                pictures = torch.from_numpy(filled.images).permute(0, 3, 1, 2)
                with torch.inference_mode():
                    features = model.encode_image(change(pictures) if change else pictures)
                    if before_projection and projected:
                        features = projected.pop()
                    parts.append(features.float().cpu())
                projected.clear()
                progress.advance(len(pictures))
    finally:
        pool.close()
    return torch.cat(parts)


@contextmanager
def _projected(model: Encoder) -> Iterator[list[torch.Tensor]]:
    """Collect what enters the model's projection of images; nothing where it has none."""
    seen: list[torch.Tensor] = []
    projection = getattr(getattr(model, "network", None), "visual_projection", None)
    if not isinstance(projection, torch.nn.Module):
        yield seen
        return
    hook = projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        hook.remove()


def project_images(model: Encoder, features: torch.Tensor) -> torch.Tensor:
    """Return what `encode_images` gives by itself, of what it gives before the projection."""
    projection = getattr(getattr(model, "network", None), "visual_projection", None)
    if not isinstance(projection, torch.nn.Module):
        return features
    with torch.inference_mode():
        projected = torch.nn.functional.normalize(
            projection(features.to(next(projection.parameters()).device)).float(), dim=-1
        )
    # Outside of inference mode, where a classifier is fitted on it.
    return projected.clone().to(features.device)


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
