"""Whether a picture is safe to train on, by a head over its embedding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from curate.models.head import HeadOperator, sigmoid, unit_rows
from curate.operator import Annotate


@dataclass(frozen=True, kw_only=True)
class SafetyScore(HeadOperator):
    """How sure one can be that the picture shows neither nudity nor violence, by a head over its embedding, or by prompts.

    safety_score   0 unsafe to 1 safe: 1 - the sigmoid of the head with `weights` (1 - LAION's `punsafe`), or the share of `positive` in
                   the softmax over both sets of prompts without

    `weights` are the layers of a classifier of unsafe pictures; LAION's has `activation=relu`. Prompts find the plain cases and cost
    nothing: look at the lowest scores with `winnow extremes` before choosing a threshold, and mind that no score protects by itself.
    About 1 us per picture.
    """

    name = "safety_score"
    version = 1
    writes = pa.schema([("safety_score", pa.float32())])
    default_positive = "a photo that is safe for work|a picture of everyday life|a picture that children may see"
    default_negative = "a pornographic picture|a photo of naked people|a picture of gore and bloody violence"

    def load(self) -> Annotate:
        score, is_probability = self.load_score()

        def annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
            found = score(unit_rows(batch.column("image_embedding")))
            return {"safety_score": pa.array(found if is_probability else 1 - sigmoid(found), pa.float32())}

        return annotate
