"""How pleasing a picture is, by a head over its embedding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from curate.models.head import HeadOperator, unit_rows
from curate.operator import Annotate


@dataclass(frozen=True, kw_only=True)
class AestheticScore(HeadOperator):
    """How pleasing the picture is, by LAION's aesthetic head or the like over its embedding, or by prompts.

    aesthetic_score   with `weights` what the head gives: 1 to 10 for LAION's heads over CLIP ViT-L/14, whose 100 million least biased
                      pairs have > 4.5 (arXiv 2312.14232); without, 0 to 1: the share of `positive` in the softmax over both sets of prompts

    `weights` is a linear layer or several (sa_0_4_vit_l_14_linear.pth, sac+logos+ava1-l14-linearMSE.pth), over unit embeddings of the
    model they were trained with. Scores by prompts order pictures; their scale depends on the model. About 1 us per picture.
    """

    name = "aesthetic_score"
    version = 1
    writes = pa.schema([("aesthetic_score", pa.float32())])
    default_positive = (
        "a beautiful, well composed photograph|a professional, aesthetically pleasing picture|stunning artwork"
    )
    default_negative = "an ugly, badly framed picture|a blurry, dull snapshot|a low quality image with bad lighting"

    def load(self) -> Annotate:
        score, _ = self.load_score()

        def annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
            return {"aesthetic_score": pa.array(score(unit_rows(batch.column("image_embedding"))), pa.float32())}

        return annotate
