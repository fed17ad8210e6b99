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

# Pixels around a box whose mean colour fills it, as a share of its height.
_MARGIN = 0.25


@dataclass(frozen=True, kw_only=True)
class MaskedClipScore(TowerOperator):
    """The cosine of the caption with the picture whose text is painted over (T-MARS, arXiv 2307.03132), -1 to 1.

    masked_clip_score   every text box is filled with the mean colour of the pixels around it; without text it is the plain clip_score

    T-MARS drops the lower half of the pool: pictures that agree with their caption only because the caption can be read in them. Only
    pictures with text go through the image tower again, at the cost of clip_embedding. Needs text_spotting and both embeddings.
    """

    name = "masked_clip_score"
    version = 1
    reads = ("image", "text_boxes", "image_embedding", "text_embedding")
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
        return (*found, *(() if "text_boxes" in self.bind else (TextSpotting(),)))

    def prepare(self) -> Prepare:
        settings = load_settings(self.model, self.revision, any_shape=True)

        def prepare(batch: pa.Table) -> pa.Table:
            boxes = batch.column("text_boxes").to_pylist()
            masked = [
                mask_boxes(picture, found) if found else np.zeros((1, 1, 3), np.uint8)
                for picture, found in zip(pixels(batch.column("image")), boxes, strict=True)
                if picture is not None
            ]
            return pa.table({
                "pixels": prepare_images(settings, pa.chunked_array([to_column(masked)])),
                "has_text": [bool(found) for found in boxes],
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


def mask_boxes(picture: np.ndarray, boxes: Sequence[Sequence[float]]) -> np.ndarray:
    """Return a copy in which each box (left, top, right, bottom as ratios) has the mean colour of what surrounds it."""
    height, width = picture.shape[:2]
    masked = picture.copy()
    for left, top, right, bottom in boxes:
        x0, x1 = int(left * width), min(width, int(np.ceil(right * width)))
        y0, y1 = int(top * height), min(height, int(np.ceil(bottom * height)))
        if x1 <= x0 or y1 <= y0:
            continue
        margin = max(1, round((y1 - y0) * _MARGIN))
        around = picture[max(0, y0 - margin) : y1 + margin, max(0, x0 - margin) : x1 + margin]
        inside = picture[y0:y1, x0:x1]
        count = around.shape[0] * around.shape[1] - inside.shape[0] * inside.shape[1]
        # A box that fills the picture has nothing around it: its own mean then.
        total = around.sum(axis=(0, 1), dtype=np.float64) - (inside.sum(axis=(0, 1), dtype=np.float64) if count else 0)
        masked[y0:y1, x0:x1] = np.round(total / (count or inside.shape[0] * inside.shape[1]))
    return masked
