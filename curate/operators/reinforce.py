"""Crops of every picture and what a teacher makes of them, stored once: MobileCLIP's reinforced datasets."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pyarrow as pa

from curate.images import pixels, to_column
from curate.models.clip import EMBEDDING_TYPE, TowerOperator, load_model, to_half
from curate.models.preprocess import load_settings, prepare_images
from curate.operator import Annotate, Prepare, Resources
from schemas.errors import InputError

# How often a crop is drawn that does not fit into the picture, before the middle is taken.
_TRIES = 10


@dataclass(frozen=True, kw_only=True)
class Reinforce(TowerOperator):
    """Random crops, and their embeddings by a teacher, as MobileCLIP stores them (Vasu et al. 2023, arXiv 2311.17049).

    crop_boxes        of each crop its top, left, height and width in pixels of the upright picture, one crop after the other
    crop_embeddings   of each crop the teacher's image embedding, a unit vector in half precision, one after the other

    A training with `crop_boxes: reinforce.crop_boxes` shows these crops and no others, and its loss `distillation` with `crops: true` reads
    the embedding of the one that is shown: a teacher's knowledge of augmented pictures without a teacher. Crops are drawn by `seed` and
    uid: areas even between `min_scale` and the whole picture, ratios of width to height from 3/4 to 4/3, and stretched to the teacher's
    square. The authors store 30 for 12 million pairs and 10 for a billion, of two ViT-L/14 (here an operator each, with the same seed), and
    vary colours too. `model` is a two-tower model for pictures of one size. Costs `num_crops` times what clip_embedding does, and for
    ten crops and 768 dimensions 15 KB a picture.
    """

    name = "reinforce"
    version = 1
    reads = ("uid", "image")
    writes = pa.schema([("crop_boxes", pa.list_(pa.int32())), ("crop_embeddings", EMBEDDING_TYPE)])
    # A row is `num_crops` pictures to the model.
    resources = Resources(model=True, batch_size=16, gpu_batch_size=128)

    num_crops: int = 10
    min_scale: float = 0.08  # of the picture's area, above 0 and at most 1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_crops < 1 or not 0 < self.min_scale <= 1:
            raise InputError(
                f"reinforce: num_crops is at least 1, min_scale above 0 and at most 1, got {self.num_crops} and {self.min_scale}"
            )

    def identity(self) -> dict[str, Any]:
        """Return the model's weights or commit, and what the crops depend on."""
        return {
            **super().identity(),
            "num_crops": self.num_crops,
            "min_scale": self.min_scale,
            "seed": self.seed,
        }

    def prepare(self) -> Prepare:
        settings = load_settings(self.model, self.revision)
        # A crop has a shape of its own already.
        stretched = replace(settings, resize=settings.size, crop=None)

        def prepare(batch: pa.Table) -> pa.Table:
            boxes, crops = [], []
            for uid, picture in zip(batch.column("uid").to_pylist(), pixels(batch.column("image")), strict=True):
                assert picture is not None  # `image` is not nullable
                height, width = picture.shape[:2]
                own = draw_boxes(height, width, self.num_crops, self.min_scale, Random(f"{self.seed} {uid}"))
                boxes.append([number for box in own for number in box])
                crops += [picture[top : top + height, left : left + width] for top, left, height, width in own]
            prepared = prepare_images(stretched, pa.chunked_array([to_column(crops)]))
            return pa.table({
                "boxes": pa.array(boxes, self.writes.field("crop_boxes").type),
                "pixels": pa.FixedSizeListArray.from_arrays(prepared, self.num_crops),
            })

        return prepare

    def load(self) -> Annotate:
        model = load_model(self.model, self.revision)

        def annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
            crops = [chunk.flatten() for chunk in batch.column("pixels").chunks]
            features = model.encode_images(pa.chunked_array(crops, batch.schema.field("pixels").type.value_type))
            return {
                "crop_boxes": batch.column("boxes"),
                "crop_embeddings": to_half(features.reshape(batch.num_rows, self.num_crops * features.shape[1])),
            }

        return annotate


def draw_boxes(
    height: int, width: int, count: int, min_scale: float, random: Random
) -> list[tuple[int, int, int, int]]:
    """Return (top, left, height, width) of random crops, with the areas and ratios of Inception's (Szegedy et al. 2015)."""
    low, high = math.log(3 / 4), math.log(4 / 3)
    boxes = []
    for _ in range(count):
        for _ in range(_TRIES):
            area, ratio = height * width * random.uniform(min_scale, 1), math.exp(random.uniform(low, high))
            own_height, own_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < own_height <= height and 0 < own_width <= width:
                break
        else:
            # The largest part whose ratio is allowed.
            own_height, own_width = min(height, max(1, width * 4 // 3)), min(width, max(1, height * 4 // 3))
            boxes.append(((height - own_height) // 2, (width - own_width) // 2, own_height, own_width))
            continue
        top, left = random.randint(0, height - own_height), random.randint(0, width - own_width)
        boxes.append((top, left, own_height, own_width))
    return boxes
