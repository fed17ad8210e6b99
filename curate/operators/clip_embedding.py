"""The picture's embedding by a CLIP or SigLIP model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from curate.models.clip import EMBEDDING_TYPE, TowerOperator, load_model, to_half
from curate.models.preprocess import load_settings, prepare_images
from curate.operator import Annotate, Prepare


@dataclass(frozen=True, kw_only=True)
class ClipEmbedding(TowerOperator):
    """The image tower's feature (Radford et al. 2021; Zhai et al. 2023), a unit vector in half precision.

    `model` is a folder or hub id of a CLIP, SigLIP, SigLIP 2 or dual encoder, or a checkpoint of `winnow train`. Towers for pictures of
    any shape (NaFlex, `winnow train`'s navit) get them scaled as SigLIP 2's processor does, to as many patches as its settings allow. ViT-B/32
    takes 0.1 s of one CPU core per picture. Embeddings of different models cannot be compared: keep them apart by `label`.
    """

    name = "clip_embedding"
    version = 1
    reads = ("image",)
    writes = pa.schema([("image_embedding", EMBEDDING_TYPE)])

    def prepare(self) -> Prepare:
        settings = load_settings(self.model, self.revision, any_shape=True)

        def prepare(batch: pa.Table) -> pa.Table:
            return pa.table({"pixels": prepare_images(settings, batch.column("image"))})

        return prepare

    def load(self) -> Annotate:
        model = load_model(self.model, self.revision)

        def annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
            return {"image_embedding": to_half(model.encode_images(batch.column("pixels")))}

        return annotate
