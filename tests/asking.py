"""An operator that asks an engine about a picture and its caption, given by its path: `tests/asking.py:model=tiny,engine=openai,url=...`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from curate.models.engine import Message, Request
from curate.models.generation import GenerationOperator, provenance_fields
from curate.operator import Annotate


@dataclass(frozen=True, kw_only=True)
class Asking(GenerationOperator):
    """Whatever the model says of the picture and the caption."""

    name = "asking"
    version = 1
    reads = ("uid", "image", "alt_text")
    writes = pa.schema([("asking", pa.string()), *provenance_fields("asking")])

    def load(self) -> Annotate:
        engine = self.open_engine()

        def annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
            rows = zip(*(batch[name].to_pylist() for name in self.reads), strict=True)
            requests = [
                Request(messages=(Message(role="user", text=text),), image=image, seed=self.request_seed(uid))
                for uid, image, text in rows
            ]
            answers = engine.generate(requests, self.sampling)
            return {
                "asking": [answer.text for answer in answers],
                "error": [answer.error or None for answer in answers],
                **self.provenance("asking", requests, answers),
            }

        return annotate
