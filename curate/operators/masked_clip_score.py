"""How well picture and caption agree where the text in the picture is painted over (T-MARS)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curate.images import pixels, to_column
from curate.models.clip import TowerOperator, load_model, to_matrix
from curate.models.preprocess import load_settings, prepare_images
from curate.operator import Annotate, Operator, Prepare
from curate.operators.clip_embedding import ClipEmbedding
from curate.operators.clip_text_embedding import ClipTextEmbedding
from curate.operators.text_spotting import TextSpotting

# Pixels around a line of text whose mean colour fills it, as a share of its height.
_MARGIN = 0.25


@dataclass(frozen=True, kw_only=True)
class MaskedClipScore(TowerOperator):
    """The cosine of the caption with the picture whose text is painted over (T-MARS, arXiv 2307.03132), -1 to 1.

    masked_clip_score   every line of text is filled with the mean colour of the pixels around it, those of other lines left out where
                        they are fewer than half; without text it is the plain clip_score

    T-MARS drops the lower half of the pool: pictures that agree with their caption only because the caption can be read in them. Only
    pictures with text go through the image tower again, at the cost of clip_embedding. Needs text_spotting and both embeddings.
    """

    name = "masked_clip_score"
    version = 2
    reads = ("image", "text_corners", "image_embedding", "text_embedding")
    writes = pa.schema([("masked_clip_score", pa.float32())])

    def requires(self) -> tuple[Operator, ...]:
        suffix = f"{self.label}_" if self.label else ""
        text_bind = {"alt_text": self.bind["alt_text"]} if "alt_text" in self.bind else {}
        found: list[Operator] = [
            ClipEmbedding(model=self.model, revision=self.revision, label=f"{suffix}clip_embedding" if suffix else ""),
            ClipTextEmbedding(
                model=self.model,
                revision=self.revision,
                bind=text_bind,
                label=f"{suffix}clip_text_embedding" if suffix else "",
            ),
        ]
        return (*found, *(() if "text_corners" in self.bind else (TextSpotting(),)))

    def prepare(self) -> Prepare:
        settings = load_settings(self.model, self.revision, any_shape=True)

        def prepare(batch: pa.Table) -> pa.Table:
            lines = batch.column("text_corners").to_pylist()
            masked = [
                mask_lines(picture, found) if found else np.zeros((1, 1, 3), np.uint8)
                for picture, found in zip(pixels(batch.column("image")), lines, strict=True)
                if picture is not None
            ]
            return pa.table({
                "pixels": prepare_images(settings, pa.chunked_array([to_column(masked)])),
                "has_text": [bool(found) for found in lines],
                "image_embedding": batch.column("image_embedding"),
                "text_embedding": batch.column("text_embedding"),
            })

        return prepare

    def load(self) -> Annotate:
        model = load_model(self.model, self.revision)

        def annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
            images, texts = to_matrix(batch.column("image_embedding")), to_matrix(batch.column("text_embedding"))
            has_text = batch.column("has_text").to_numpy(zero_copy_only=False).astype(bool)
            if has_text.any():
                images[has_text] = model.encode_images(batch.column("pixels").filter(pa.array(has_text)))
            lengths = np.linalg.norm(images, axis=1) * np.linalg.norm(texts, axis=1)
            return {"masked_clip_score": pa.array(((images * texts).sum(axis=1) / lengths).astype(np.float32))}

        return annotate


def mask_lines(picture: np.ndarray, lines: Sequence[Sequence[float]]) -> np.ndarray:
    """Return a copy in which each line of text has the mean colour of what surrounds it, without other lines where half of it is free.

    A line is a polygon: x and y of its corners, one after the other, as ratios of width and height.
    """
    import cv2

    height, width = picture.shape[:2]
    last = np.array([width - 1, height - 1])
    shapes = [
        np.clip(np.round(np.reshape(line, (-1, 2)) * np.array([width, height])), 0, last).astype(np.int32)
        for line in lines
    ]
    is_text = np.zeros((height, width), np.uint8)
    for shape in shapes:
        cv2.fillPoly(is_text, [shape], 1)
    masked = picture.copy()
    for shape in shapes:
        margin = max(1, round(min(cv2.minAreaRect(shape)[1]) * _MARGIN))
        left, top = np.maximum(shape.min(axis=0) - margin, 0).tolist()
        right, bottom = (shape.max(axis=0) + margin + 1).tolist()
        window = np.s_[top:bottom, left:right]
        inside = np.zeros_like(is_text[window])
        around = inside.copy()
        place = shape - np.array([left, top], np.int32)
        cv2.polylines(around, [place], isClosed=True, color=1, thickness=2 * margin + 1)
        cv2.fillPoly(inside, [place], 1)
        around &= 1 - inside
        free = around & (1 - is_text[window])
        # Of stacked lines only the ends are free, and show what lies behind a package; around a line that fills the picture is nothing.
        source = free if 2 * np.count_nonzero(free) >= np.count_nonzero(around) else around
        colour = cv2.mean(picture[window], mask=source if source.any() else inside)[:3]
        cv2.fillPoly(masked, [shape], np.round(colour).tolist())
    return masked
